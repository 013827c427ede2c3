/* SPDX-License-Identifier: MIT
 * Owns <base>/tandem-<uid>/<pid>/ with the files "lock" (flock held while we live), "cgroup" and "config" (a path each), and the
 * sockets of control.c and stage_socket.c. Called by engine.c on the loop's thread. A folder whose lock can be had belongs to
 * nobody any more and is removed, with its cgroup, which tells whether the kernel killed it for memory; who looks for such folders
 * or makes its own holds a lock on the folder above meanwhile, so that none is taken for dead while young. It never follows links
 * and never removes anything but these files and the folder itself. A folder in which requests in progress are left is renamed
 * instead. */
#include "coordinator/runtime_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "coordinator/cgroup.h"
#include "coordinator/oom.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/stage_connect.h"
#include "proto/util.h"

static const char *const files[] = {
    "cgroup", "config", RUNTIME_DIR_SOCKET, RUNTIME_DIR_STAGES, RUNTIME_DIR_STAGES STAGE_TOKEN_SUFFIX,
    "lock"}; /* the lock last: without it we are dead */

struct runtime_dir {
    char base[PATH_MAX - 32]; /* <...>/tandem-<uid> */
    char path[PATH_MAX];
    int lock;
};

static int make_private(const char *path, struct err *err)
{
    struct stat st;
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return err_set_errno(err, -errno, "runtime folder '%s' cannot be made; set TANDEM_RUNTIME_DIR to a folder of yours", path);
    if (lstat(path, &st) < 0 || !S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077))
        return err_set(err, -EPERM,
                       "runtime folder '%s' is not a folder of this user with mode 0700; remove it or set TANDEM_RUNTIME_DIR",
                       path);
    return 0;
}

static void keep_requests(int base, const char *name)
{
    char kept[64];
    for (int i = 0; i < 1000; i++) {
        snprintf(kept, sizeof(kept), "journal-%.20s-%d", name, i);
        if (renameat2(base, name, base, kept, RENAME_NOREPLACE) == 0) {
            log_warn("runtime", "coordinator %s left requests in progress; 'coordinator --config FILE --resume' finishes them",
                     name);
            return;
        }
        if (errno != EEXIST)
            return;
    }
}

/* Who is killed for memory cannot say so; its group still can. */
static void tell_kill(const char *cgroup, const char *name)
{
    uint64_t cap = 0;
    struct cgroup_kill kill;
    char who[64], text[sizeof(kill.group) + 512];
    if (!cgroup_stale_kill(cgroup, "coordinator", &cap, &kill))
        return;
    snprintf(who, sizeof(who), "coordinator %.20s", name);
    oom_describe(
        &kill, who, cap,
        "raise 'memory.coordinator', or lower what `serve` holds for clients: 'http.max_body', 'http.max_queue', 'sequences'", text,
        sizeof(text));
    log_warn("memory", "%s", text);
}

static void remove_stale(int base, const char *name)
{
    char cgroup[PATH_MAX] = "";
    auto_fd dir = openat(base, name, O_DIRECTORY | O_NOFOLLOW | O_RDONLY | O_CLOEXEC);
    if (dir < 0)
        return;
    auto_fd lock = openat(dir, "lock", O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) < 0)
        return; /* alive */
    if (lock < 0 && errno != ENOENT)
        return;
    auto_fd f = openat(dir, "cgroup", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    ssize_t n = f >= 0 ? read(f, cgroup, sizeof(cgroup) - 1) : -1;
    if (n > 0) {
        cgroup[n] = '\0';
        cgroup[strcspn(cgroup, "\n")] = '\0';
        tell_kill(cgroup, name);
        cgroup_remove_stale(cgroup);
    }
    for (size_t i = 0; i < ARRAY_LEN(files); i++)
        unlinkat(dir, files[i], 0);
    if (unlinkat(base, name, AT_REMOVEDIR) == 0)
        log_info("runtime", "removed the runtime folder of coordinator %s, which was killed", name);
    else if (errno == ENOTEMPTY || errno == EEXIST)
        keep_requests(base, name);
}

static void remove_all_stale(const char *path)
{
    int fd = open(path, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *e;
    while (d && (e = readdir(d))) {
        if (e->d_name[strspn(e->d_name, "0123456789")] == '\0')
            remove_stale(dirfd(d), e->d_name);
    }
    if (d)
        closedir(d);
    else
        util_close_fd(&fd);
}

/* Our own folder with its lock, after the stale ones. -ENOENT: the base folder was removed by a coordinator that ended. */
static int make_own(struct runtime_dir *r, struct err *err)
{
    char lock[PATH_MAX + 8];
    int code = make_private(r->base, err);
    if (code < 0)
        return code;
    auto_fd base = open(r->base, O_DIRECTORY | O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (base < 0)
        return err_set_errno(err, -errno, "runtime folder '%s'", r->base);
    while (flock(base, LOCK_EX) < 0) {
        if (errno != EINTR)
            return err_set_errno(err, -errno, "lock on '%s'", r->base);
    }
    remove_all_stale(r->base);
    code = make_private(r->path, err);
    if (code < 0)
        return code;
    snprintf(lock, sizeof(lock), "%s/lock", r->path);
    r->lock = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    return r->lock < 0 || flock(r->lock, LOCK_EX | LOCK_NB) < 0 ? err_set_errno(err, -errno, "lock '%s'", lock) : 0;
}

static int base_path(char *ret, size_t size, struct err *err)
{
    char run_user[64];
    snprintf(run_user, sizeof(run_user), "/run/user/%u", (unsigned)geteuid());
    const char *root = util_env(UTIL_ENV_RUNTIME_DIR);
    if (!root)
        root = access(run_user, W_OK) == 0 ? run_user : geteuid() == 0 && access("/run", W_OK) == 0 ? "/run" : "/tmp";
    if ((size_t)snprintf(ret, size, "%s/tandem-%u", root, (unsigned)geteuid()) >= size)
        return err_set(err, -ENAMETOOLONG, "runtime folder below '%s': the path is too long", root);
    return 0;
}

int runtime_dir_open(struct runtime_dir **ret, struct err *err)
{
    struct runtime_dir *r = calloc(1, sizeof(*r));
    if (!r)
        return err_set(err, -ENOMEM, "runtime folder: out of memory");
    r->lock = -1;
    int code = base_path(r->base, sizeof(r->base), err);
    if (code < 0) {
        free(r);
        return code;
    }
    snprintf(r->path, sizeof(r->path), "%s/%d", r->base, (int)getpid());
    code = -ENOENT;
    for (int i = 0; i < 100 && code == -ENOENT; i++)
        code = make_own(r, err);
    if (code < 0) {
        runtime_dir_close(r);
        return code;
    }
    *ret = r;
    return 0;
}

const char *runtime_dir_path(const struct runtime_dir *r)
{
    return r->path;
}

const char *runtime_dir_base(const struct runtime_dir *r)
{
    return r->base;
}

static int note(const struct runtime_dir *r, const char *name, const char *text, struct err *err)
{
    char path[PATH_MAX + 16];
    snprintf(path, sizeof(path), "%s/%s", r->path, name);
    auto_fd fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || util_write_all(fd, text, strlen(text)) < 0)
        return err_set_errno(err, -errno, "cannot write '%s'", path);
    return 0;
}

int runtime_dir_note_cgroup(struct runtime_dir *r, const char *cgroup_path, struct err *err)
{
    return note(r, "cgroup", cgroup_path, err);
}

int runtime_dir_note_config(struct runtime_dir *r, const char *config_path, struct err *err)
{
    auto_free char *real = realpath(config_path, NULL);
    return note(r, "config", real ? real : config_path, err);
}

void runtime_dir_close(struct runtime_dir *r)
{
    if (!r)
        return;
    char path[PATH_MAX + 16];
    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        snprintf(path, sizeof(path), "%s/%s", r->path, files[i]);
        unlink(path);
    }
    rmdir(r->path);
    rmdir(r->base); /* when it was the last */
    util_close_fd(&r->lock);
    free(r);
}

/* The config of a coordinator that lives; false: it is gone, or has just begun. The folder above is locked by the caller, so that a
 * look at the lock of one that begins does not stand in its way. */
static bool config_of(int base, const char *name, char *ret, size_t size)
{
    auto_fd dir = openat(base, name, O_DIRECTORY | O_NOFOLLOW | O_RDONLY | O_CLOEXEC);
    auto_fd lock = dir < 0 ? -1 : openat(dir, "lock", O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (lock < 0 || flock(lock, LOCK_SH | LOCK_NB) == 0)
        return false;
    auto_fd f = openat(dir, "config", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    ssize_t n = f >= 0 ? read(f, ret, size - 1) : -1;
    ret[MAX(n, 0)] = '\0';
    return n > 0;
}

struct search {
    char base[PATH_MAX - 32];
    const char *config;
    int pid, n, found;               /* asked for; how many there are; the last */
    char pids[256], other[PATH_MAX]; /* all of them; the config of the one asked for, where it is another */
};

static void look_at(struct search *s, int base, const char *name)
{
    char config[PATH_MAX];
    int pid = atoi(name);
    if ((s->pid && pid != s->pid) || !config_of(base, name, config, sizeof(config)))
        return;
    if (strcmp(config, s->config) != 0) {
        snprintf(s->other, sizeof(s->other), "%s", s->pid ? config : "");
        return;
    }
    size_t at = strlen(s->pids);
    snprintf(s->pids + at, sizeof(s->pids) - at, "%s%d", s->n ? ", " : "", pid);
    s->n++;
    s->found = pid;
}

static int search_result(const struct search *s, char *ret_path, size_t size, int *ret_pid, struct err *err)
{
    if (s->n == 0 && s->other[0])
        return err_set(err, -ESRCH, "coordinator %d runs with config '%s'; expected '%s'", s->pid, s->other, s->config);
    if (s->n == 0 && s->pid)
        return err_set(err, -ESRCH, "no coordinator with pid %d is running (looked in '%s')", s->pid, s->base);
    if (s->n == 0)
        return err_set(err, -ESRCH, "no coordinator with config '%s' is running (looked in '%s')", s->config, s->base);
    if (s->n > 1)
        return err_set(err, -ENOTUNIQ, "%d coordinators with config '%s' are running; choose one with --pid: %s", s->n, s->config,
                       s->pids);
    if ((size_t)snprintf(ret_path, size, "%s/%d", s->base, s->found) >= size)
        return err_set(err, -ENAMETOOLONG, "runtime folder below '%s': the path is too long", s->base);
    *ret_pid = s->found;
    return 0;
}

int runtime_dir_find(const char *config_path, int pid, char *ret_path, size_t size, int *ret_pid, struct err *err)
{
    struct search s = {.config = config_path, .pid = pid};
    int r = base_path(s.base, sizeof(s.base), err);
    if (r < 0)
        return r;
    int fd = open(s.base, O_DIRECTORY | O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0)
        flock(fd, LOCK_SH);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *e;
    while (d && (e = readdir(d))) {
        if (e->d_name[strspn(e->d_name, "0123456789")] == '\0')
            look_at(&s, dirfd(d), e->d_name);
    }
    if (d)
        closedir(d);
    else
        util_close_fd(&fd);
    return search_result(&s, ret_path, size, ret_pid, err);
}

int runtime_dir_address(const char *path, struct sockaddr_un *ret, int *ret_fd, struct err *err)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    *ret_fd = -1;
    if ((size_t)snprintf(ret->sun_path, sizeof(ret->sun_path), "%s/" RUNTIME_DIR_SOCKET, path) < sizeof(ret->sun_path))
        return 0;
    *ret_fd = open(path, O_DIRECTORY | O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (*ret_fd < 0)
        return err_set_errno(err, -errno, "runtime folder '%s'", path);
    snprintf(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d/" RUNTIME_DIR_SOCKET, *ret_fd);
    return 0;
}
