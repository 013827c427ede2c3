/* SPDX-License-Identifier: MIT
 * Owns <base>/tandem-<uid>/<pid>/ with the files "lock" (flock held while we live) and "cgroup" (a path, one line). Called by
 * engine.c on the loop's thread. A folder whose lock can be had belongs to nobody any more and is removed, with its cgroup; who
 * looks for such folders or makes its own holds a lock on the folder above meanwhile, so that none is taken for dead while young.
 * It never follows links and never removes anything but these two files and the folder itself. A folder in which requests in
 * progress are left is renamed instead. */
#include "coordinator/runtime_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "coordinator/cgroup.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

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
            log_warn("runtime",
                     "coordinator %s was killed with requests in progress; 'coordinator --config FILE --resume' finishes them",
                     name);
            return;
        }
        if (errno != EEXIST)
            return;
    }
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
        cgroup_remove_stale(cgroup);
    }
    unlinkat(dir, "cgroup", 0);
    unlinkat(dir, "lock", 0);
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

int runtime_dir_open(struct runtime_dir **ret, struct err *err)
{
    struct runtime_dir *r = calloc(1, sizeof(*r));
    char run_user[64];
    if (!r)
        return err_set(err, -ENOMEM, "runtime folder: out of memory");
    r->lock = -1;
    snprintf(run_user, sizeof(run_user), "/run/user/%u", (unsigned)geteuid());
    const char *root = util_env(UTIL_ENV_RUNTIME_DIR);
    if (!root)
        root = access(run_user, W_OK) == 0 ? run_user : geteuid() == 0 && access("/run", W_OK) == 0 ? "/run" : "/tmp";
    if ((size_t)snprintf(r->base, sizeof(r->base), "%s/tandem-%u", root, (unsigned)geteuid()) >= sizeof(r->base)) {
        free(r);
        return err_set(err, -ENAMETOOLONG, "runtime folder below '%s': the path is too long", root);
    }
    snprintf(r->path, sizeof(r->path), "%s/%d", r->base, (int)getpid());
    int code = -ENOENT;
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

int runtime_dir_note_cgroup(struct runtime_dir *r, const char *cgroup_path, struct err *err)
{
    char path[PATH_MAX + 8];
    snprintf(path, sizeof(path), "%s/cgroup", r->path);
    auto_fd fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || util_write_all(fd, cgroup_path, strlen(cgroup_path)) < 0)
        return err_set_errno(err, -errno, "cannot write '%s'", path);
    return 0;
}

void runtime_dir_close(struct runtime_dir *r)
{
    if (!r)
        return;
    char path[PATH_MAX + 8];
    snprintf(path, sizeof(path), "%s/cgroup", r->path);
    unlink(path);
    snprintf(path, sizeof(path), "%s/lock", r->path);
    unlink(path);
    rmdir(r->path);
    rmdir(r->base); /* when it was the last */
    util_close_fd(&r->lock);
    free(r);
}
