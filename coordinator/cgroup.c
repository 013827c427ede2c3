/* SPDX-License-Identifier: MIT
 * Owns one cgroup folder "tandem-<pid>" below this process's own memory cgroup and a child of it per capped process.
 * v1: controller "memory" mounted on its own; v2: the unified hierarchy with the memory controller enabled for children.
 * Nothing is mounted and no controller is taken from others: where the system does not allow it, open says why. */
#include "coordinator/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "proto/err.h"
#include "proto/util.h"

#define CHILDREN_MAX 8
#define CHARGE_MAX \
    (UINT64_C(1) << 20) /* the kernel asks for less at once; what does not fit leaves a group so far below its limit */
#define STALE_TRIES 100 /* a stage whose coordinator was killed a moment ago is still ending */
#define STALE_WAIT_US 10000

struct cgroup {
    bool v2;
    char home[PATH_MAX - 64];   /* our own group, when we came */
    char parent[PATH_MAX - 64]; /* it, or the root of the hierarchy */
    char path[PATH_MAX + 64];   /* <parent>/tandem-<pid> */
    char root[1024];            /* of the hierarchy */
    bool enabled;               /* the memory controller for children of parent, by us */
    bool dmem, dmem_enabled;    /* children have the dmem controller; parent's by us */
    char children[CHILDREN_MAX][32];
    int n_children;
    bool has_self;
};

static int write_file(const char *dir, const char *name, const char *text)
{
    char path[PATH_MAX + 192];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    auto_fd fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    return write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

static int read_u64(const char *dir, const char *name, uint64_t *ret)
{
    char path[PATH_MAX + 192];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    auto_file f = fopen(path, "re");
    if (!f)
        return -errno;
    return fscanf(f, "%" SCNu64, ret) == 1 ? 0 : -EINVAL;
}

static FILE *proc_open(const char *proc, const char *name)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", proc ? proc : "/proc/self", name);
    return fopen(path, "re");
}

/* Where a hierarchy is mounted: v1 with the memory controller, or v2. Mount points with spaces are not looked for. */
static bool find_mount(const char *proc, bool v2, char *ret, size_t size)
{
    auto_file f = proc_open(proc, "mounts");
    char line[4096], dir[PATH_MAX], type[64], opts[1024];
    while (f && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "%*s %4095s %63s %1023s", dir, type, opts) != 3)
            continue;
        bool is_memory = strcmp(type, "cgroup") == 0 && (strstr(opts, ",memory") || strncmp(opts, "memory", 6) == 0);
        if (v2 ? strcmp(type, "cgroup2") == 0 : is_memory)
            return (size_t)snprintf(ret, size, "%s", dir) < size;
    }
    return false;
}

/* Our group within the hierarchy, from /proc/self/cgroup: lines "id:controllers:path". */
static bool find_self(const char *proc, bool v2, char *ret, size_t size)
{
    auto_file f = proc_open(proc, "cgroup");
    char line[4096];
    while (f && fgets(line, sizeof(line), f)) {
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = '\0';
        controllers++;
        path[strcspn(path, "\n")] = '\0';
        if (v2 ? *controllers == '\0' : strcmp(controllers, "memory") == 0)
            return (size_t)snprintf(ret, size, "%s", strcmp(path, "/") == 0 ? "" : path) < size;
    }
    return false;
}

static bool has_word(const char *dir, const char *file, const char *word)
{
    char path[PATH_MAX + 192], name[64];
    snprintf(path, sizeof(path), "%s/%s", dir, file);
    FILE *f = fopen(path, "re");
    bool found = false;
    while (f && !found && fscanf(f, "%63s", name) == 1)
        found = strcmp(name, word) == 0;
    if (f)
        fclose(f);
    return found;
}

static int move_self(const char *dir)
{
    char text[32];
    snprintf(text, sizeof(text), "%d", (int)getpid());
    return write_file(dir, "cgroup.procs", text);
}

/* v2: children of our group below `parent` get the memory controller. */
static int enable_memory(struct cgroup *g)
{
    char leaf[PATH_MAX + 128];
    snprintf(leaf, sizeof(leaf), "%s/coordinator", g->path);
    int r = 0;
    if (!has_word(g->parent, "cgroup.subtree_control", "memory")) {
        r = write_file(g->parent, "cgroup.subtree_control", "+memory");
        g->enabled = r == 0;
    }
    if (r == -EBUSY && (mkdir(leaf, 0755) == 0 || errno == EEXIST)) { /* we are in it; perhaps nobody else is */
        r = move_self(leaf);
        if (r == 0)
            r = write_file(g->parent, "cgroup.subtree_control", "+memory");
        g->enabled = g->has_self = r == 0;
        if (r == 0) {
            snprintf(g->children[g->n_children++], sizeof(g->children[0]), "coordinator");
        } else {
            move_self(g->home);
            rmdir(leaf);
        }
    }
    return r < 0 ? r : write_file(g->path, "cgroup.subtree_control", "+memory");
}

/* v2: likewise the dmem controller, where the kernel has one. */
static void enable_dmem(struct cgroup *g)
{
    if (!has_word(g->parent, "cgroup.controllers", "dmem"))
        return;
    if (!has_word(g->parent, "cgroup.subtree_control", "dmem"))
        g->dmem_enabled = write_file(g->parent, "cgroup.subtree_control", "+dmem") == 0;
    g->dmem = write_file(g->path, "cgroup.subtree_control", "+dmem") == 0;
}

/* Of a line "key value"; 0: not there. */
static uint64_t read_event(const char *dir, const char *file, const char *key)
{
    char path[PATH_MAX + 192], name[64];
    uint64_t v;
    snprintf(path, sizeof(path), "%s/%s", dir, file);
    auto_file f = fopen(path, "re");
    while (f && fscanf(f, "%63s %" SCNu64, name, &v) == 2) {
        if (strcmp(name, key) == 0)
            return v;
    }
    return 0;
}

/* What a group with this limit has left: what it uses less what the kernel takes back at once, pages of files that nobody reads. */
static uint64_t left_of(const char *dir, bool v2, uint64_t limit)
{
    uint64_t usage = 0, cache = read_event(dir, "memory.stat", v2 ? "inactive_file" : "total_inactive_file");
    if (read_u64(dir, v2 ? "memory.current" : "memory.usage_in_bytes", &usage) < 0)
        return limit;
    usage -= MIN(usage, cache);
    return limit - MIN(limit, usage);
}

uint64_t cgroup_limit(const char *proc, uint64_t *ret_left)
{
    uint64_t least = 0;
    *ret_left = UINT64_MAX;
    for (int v2 = 0; v2 < 2; v2++) {
        char mount[1024], self[PATH_MAX - 1100], dir[PATH_MAX - 64];
        if (!find_mount(proc, v2, mount, sizeof(mount)) || !find_self(proc, v2, self, sizeof(self)))
            continue;
        snprintf(dir, sizeof(dir), "%s%s", mount, self);
        while (strlen(dir) >= strlen(mount)) {
            uint64_t limit;
            if (read_u64(dir, v2 ? "memory.max" : "memory.limit_in_bytes", &limit) == 0 && limit) {
                least = least ? MIN(least, limit) : limit;
                *ret_left = MIN(*ret_left, left_of(dir, v2, limit));
            }
            char *slash = strrchr(dir, '/');
            if (!slash)
                break;
            *slash = '\0';
        }
    }
    return least;
}

static int try_parent(struct cgroup *g, const char *parent, struct err *err)
{
    snprintf(g->parent, sizeof(g->parent), "%s", parent);
    if ((size_t)snprintf(g->path, sizeof(g->path), "%s/tandem-%d", g->parent, (int)getpid()) >= sizeof(g->path))
        return err_set(err, -ENAMETOOLONG, "cgroup path below '%s' is too long", g->parent);
    if (mkdir(g->path, 0755) < 0 && errno != EEXIST)
        return err_set_errno(err, -errno,
                             "cgroup '%s' cannot be made (run as root, or under 'systemd-run --user --scope -p Delegate=yes')",
                             g->path);
    char probe[PATH_MAX + 128];
    int r = g->v2 ? enable_memory(g) : 0;
    snprintf(probe, sizeof(probe), "%s/%s", g->path, g->v2 ? "memory.max" : "memory.limit_in_bytes");
    if (r == 0 && access(probe, W_OK) < 0)
        r = -errno;
    if (r == 0 && g->v2)
        enable_dmem(g);
    if (r == 0)
        return 0;
    rmdir(g->path);
    if (r == -EBUSY)
        return err_set(err, -ENOTSUP,
                       "cgroup '%s' has other processes, and so no capped groups of ours (start it in a group of its own: "
                       "'systemd-run --user --scope -p Delegate=yes', or be root)",
                       g->parent);
    return err_set(err, -ENOTSUP,
                   "cgroup '%s' has no memory controller that we may use (run as root, or under 'systemd-run --user "
                   "--scope -p Delegate=yes')",
                   g->parent);
}

static int try_open(struct cgroup *g, const char *proc, bool v2, struct err *err)
{
    char mount[1024], self[2048];
    g->v2 = v2;
    if (!find_mount(proc, v2, mount, sizeof(mount)) || !find_self(proc, v2, self, sizeof(self)))
        return err_set(err, -ENOTSUP, "no memory controller of cgroup %s here", v2 ? "v2" : "v1");
    snprintf(g->home, sizeof(g->home), "%s%s", mount, self);
    snprintf(g->root, sizeof(g->root), "%s", mount);
    int r = try_parent(g, g->home, err);
    if (r < 0 && v2 && *self && geteuid() == 0)
        r = try_parent(g, mount, err);
    return r;
}

static bool is_ours(const char *path)
{
    char mount[1024];
    const char *base = strrchr(path, '/');
    bool below = (find_mount(NULL, true, mount, sizeof(mount)) && strncmp(path, mount, strlen(mount)) == 0) ||
                 (find_mount(NULL, false, mount, sizeof(mount)) && strncmp(path, mount, strlen(mount)) == 0);
    return below && !strstr(path, "/../") && base && strncmp(base, "/tandem-", 8) == 0 && base[8] &&
           base[8 + strspn(base + 8, "0123456789")] == '\0';
}

/* ---- kills ---- */

/* How often a group's limit was reached. v2 counts when nothing could be taken back for it (before Linux 5.12 with groups below),
 * v1 every time. */
static uint64_t times_full(const char *dir, bool v2)
{
    uint64_t n = 0;
    if (v2)
        return read_event(dir, has_word(dir, "memory.events.local", "oom") ? "memory.events.local" : "memory.events", "oom");
    read_u64(dir, "memory.failcnt", &n);
    return n;
}

/* v1: memory and swap together have a limit of their own, which comes first where it is the same, and is not counted (Linux 6.18);
 * its peak tells, for as long as the group is there. */
static bool both_full(const char *dir)
{
    uint64_t peak, limit;
    return read_u64(dir, "memory.memsw.max_usage_in_bytes", &peak) == 0 &&
           read_u64(dir, "memory.memsw.limit_in_bytes", &limit) == 0 && peak + CHARGE_MAX >= limit;
}

static bool was_full(const char *dir, bool v2, uint64_t before)
{
    return times_full(dir, v2) > before || (!v2 && both_full(dir));
}

static uint64_t times_killed(const char *dir, bool v2)
{
    return read_event(dir, v2 ? "memory.events" : "memory.oom_control", "oom_kill");
}

/* A group of a process, and those above it up to the mount. */
struct place {
    bool v2, capped;
    char own[PATH_MAX + 128], above[PATH_MAX + 128]; /* not capped: the same */
    size_t mount;                                    /* length of the mount's path */
};

static bool find_place(const struct cgroup *g, const char *proc, const char *name, struct place *ret)
{
    char mount[1024], self[2048];
    *ret = (struct place){.v2 = g && g->v2, .capped = g != NULL};
    if (g) {
        snprintf(ret->own, sizeof(ret->own), "%s/%s", g->path, name);
        snprintf(ret->above, sizeof(ret->above), "%s", g->parent);
        ret->mount = strlen(g->root);
        return true;
    }
    bool v1 = find_mount(proc, false, mount, sizeof(mount)) && find_self(proc, false, self, sizeof(self));
    if (!v1 && (!find_mount(proc, true, mount, sizeof(mount)) || !find_self(proc, true, self, sizeof(self))))
        return false;
    ret->v2 = !v1;
    ret->mount = strlen(mount);
    snprintf(ret->own, sizeof(ret->own), "%s%s", mount, self);
    snprintf(ret->above, sizeof(ret->above), "%s", ret->own);
    return true;
}

/* From a group to the one above it; false: that was the mount. */
static bool go_up(char *dir, size_t mount)
{
    char *slash = strrchr(dir, '/');
    if (!slash || slash < dir + mount)
        return false;
    *slash = '\0';
    return true;
}

static void count(const struct place *p, struct cgroup_counts *ret)
{
    char dir[PATH_MAX + 128];
    *ret = (struct cgroup_counts){.kills = times_killed(p->own, p->v2), .full = p->capped ? times_full(p->own, p->v2) : 0};
    snprintf(dir, sizeof(dir), "%s", p->above);
    for (int i = 0; i < CGROUP_ABOVE_MAX; i++) {
        ret->above[i] = times_full(dir, p->v2);
        if (!go_up(dir, p->mount))
            return;
    }
}

/* The nearest group whose limit was reached since `before`. */
static void find_cause(const struct place *p, const struct cgroup_counts *before, struct cgroup_kill *ret)
{
    char dir[PATH_MAX + 128];
    bool cap = p->capped && was_full(p->own, p->v2, before->full);
    *ret = (struct cgroup_kill){.cause = cap ? CGROUP_CAP : CGROUP_MACHINE, .capped = p->capped};
    if (p->capped && read_u64(p->own, p->v2 ? "memory.peak" : "memory.max_usage_in_bytes", &ret->peak) < 0)
        ret->peak = 0; /* before Linux 5.19 */
    snprintf(dir, sizeof(dir), "%s", p->above);
    for (int i = 0; ret->cause == CGROUP_MACHINE && i < CGROUP_ABOVE_MAX; i++) {
        if (was_full(dir, p->v2, before->above[i]) &&
            read_u64(dir, p->v2 ? "memory.max" : "memory.limit_in_bytes", &ret->limit) == 0) {
            ret->cause = CGROUP_LIMIT;
            snprintf(ret->group, sizeof(ret->group), "%.*s", (int)sizeof(ret->group) - 1, dir);
        }
        if (!go_up(dir, p->mount))
            return;
    }
}

void cgroup_count(const struct cgroup *g, const char *proc, const char *name, struct cgroup_counts *ret)
{
    struct place p;
    *ret = (struct cgroup_counts){0};
    if (find_place(g, proc, name, &p))
        count(&p, ret);
}

bool cgroup_killed(const struct cgroup *g, const char *proc, const char *name, const struct cgroup_counts *before,
                   struct cgroup_kill *ret)
{
    struct place p;
    if (!find_place(g, proc, name, &p) || times_killed(p.own, p.v2) <= before->kills)
        return false;
    find_cause(&p, before, ret);
    return true;
}

bool cgroup_stale_kill(const char *path, const char *name, uint64_t *ret_cap, struct cgroup_kill *ret)
{
    char mount[1024];
    struct place p = {.capped = true};
    if (!is_ours(path) || (size_t)snprintf(p.own, sizeof(p.own), "%s/%s", path, name) >= sizeof(p.own))
        return false;
    p.v2 = read_u64(p.own, "memory.limit_in_bytes", ret_cap) < 0;
    if ((p.v2 && read_u64(p.own, "memory.max", ret_cap) < 0) || times_killed(p.own, p.v2) == 0 ||
        !find_mount(NULL, p.v2, mount, sizeof(mount)))
        return false;
    p.mount = strlen(mount);
    snprintf(p.above, sizeof(p.above), "%s", path);
    go_up(p.above, p.mount);
    find_cause(&p, &(struct cgroup_counts){0}, ret);
    return true;
}

void cgroup_remove_stale(const char *path)
{
    DIR *d = is_ours(path) ? opendir(path) : NULL;
    if (!d)
        return;
    for (int i = 0; i < STALE_TRIES; i++) {
        struct dirent *e;
        rewinddir(d);
        while ((e = readdir(d))) {
            if (e->d_type == DT_DIR && e->d_name[0] != '.')
                unlinkat(dirfd(d), e->d_name, AT_REMOVEDIR); /* refused by the kernel while a process is in it */
        }
        if (rmdir(path) == 0 || (errno != EBUSY && errno != ENOTEMPTY))
            break;
        usleep(STALE_WAIT_US);
    }
    closedir(d);
}

/* Groups of coordinators that are gone: those whose runtime folder went with them are found here only. */
static void remove_orphans(const char *parent)
{
    DIR *d = opendir(parent);
    struct dirent *e;
    while (d && (e = readdir(d))) {
        int pid, end = 0;
        char path[PATH_MAX + 300];
        if (sscanf(e->d_name, "tandem-%d%n", &pid, &end) != 1 || e->d_name[end] || kill(pid, 0) == 0 || errno != ESRCH)
            continue;
        snprintf(path, sizeof(path), "%s/%s", parent, e->d_name);
        cgroup_remove_stale(path);
    }
    if (d)
        closedir(d);
}

int cgroup_open(const char *proc, struct cgroup **ret, struct err *err)
{
    struct cgroup *g = calloc(1, sizeof(*g));
    if (!g)
        return err_set(err, -ENOMEM, "cgroup: out of memory");
    struct err v2 = {0};
    int r = try_open(g, proc, true, &v2);
    if (r < 0)
        r = try_open(g, proc, false, err);
    if (r < 0) {
        if (err && r == -ENOTSUP)
            err_wrap(err, r, "%s", v2.text);
        free(g);
        return r;
    }
    remove_orphans(g->parent);
    *ret = g;
    return 0;
}

const char *cgroup_path(const struct cgroup *g)
{
    return g->path;
}

const char *cgroup_version(const struct cgroup *g)
{
    return g->v2 ? "v2" : "v1";
}

static int set_caps(const struct cgroup *g, const char *dir, uint64_t cap)
{
    char text[32];
    snprintf(text, sizeof(text), "%" PRIu64, cap);
    int r = write_file(dir, g->v2 ? "memory.max" : "memory.limit_in_bytes", text);
    if (r == 0 && g->v2) {
        write_file(dir, "memory.swap.max", "0");  /* absent without swap */
        write_file(dir, "memory.oom.group", "1"); /* nothing of a stage outlives a kill for its cap */
    } else if (r == 0) {
        write_file(dir, "memory.swappiness", "0");
        write_file(dir, "memory.memsw.limit_in_bytes", text); /* memory and swap together: what is swapped out counts on */
    }
    return r;
}

bool cgroup_cap_device(struct cgroup *g, const char *name, uint64_t cap)
{
    char path[PATH_MAX + 192], region[128], text[192];
    uint64_t capacity;
    bool held = false;
    snprintf(path, sizeof(path), "%s/dmem.capacity", g->root);
    FILE *f = g->dmem ? fopen(path, "re") : NULL;
    snprintf(path, sizeof(path), "%s/%s", g->path, name);
    while (f && fscanf(f, "%127s %" SCNu64, region, &capacity) == 2) { /* "drm/0000:03:00.0/vram0 8514437120" */
        snprintf(text, sizeof(text), "%s %" PRIu64, region, cap);
        held |= write_file(path, "dmem.max", text) == 0;
    }
    if (f)
        fclose(f);
    return held;
}

static int add_child(struct cgroup *g, const char *name, const char *dir, uint64_t cap, struct err *err)
{
    if (g->n_children == CHILDREN_MAX)
        return err_set(err, -ENOSPC, "cgroup '%s' has %d children already", g->path, CHILDREN_MAX);
    if (mkdir(dir, 0755) < 0 && errno != EEXIST)
        return err_set_errno(err, -errno, "cgroup '%s' cannot be made", dir);
    snprintf(g->children[g->n_children++], sizeof(g->children[0]), "%s", name);
    int r = set_caps(g, dir, cap);
    return r < 0 ? err_set_errno(err, r, "cgroup '%s' refuses a cap of %" PRIu64 " bytes", dir, cap) : 0;
}

int cgroup_add(struct cgroup *g, const char *name, int pid, uint64_t cap, struct err *err)
{
    char dir[PATH_MAX + 128], text[32];
    int r = 0, known = 0;
    snprintf(dir, sizeof(dir), "%s/%s", g->path, name);
    while (known < g->n_children && strcmp(g->children[known], name) != 0)
        known++;
    if (known == g->n_children)
        r = add_child(g, name, dir, cap, err);
    if (r < 0)
        return r;
    snprintf(text, sizeof(text), "%d", pid);
    r = write_file(dir, "cgroup.procs", text);
    if (r == -ESRCH)
        return 0; /* it ended at once, and will be told */
    if (r < 0)
        return err_set_errno(err, r, "process %d cannot be put into cgroup '%s'", pid, dir);
    g->has_self |= pid == (int)getpid();
    return 0;
}

static uint64_t figure(const struct cgroup *g, const char *name, const char *file)
{
    char dir[PATH_MAX + 128];
    uint64_t v = 0;
    snprintf(dir, sizeof(dir), "%s/%s", g->path, name);
    return read_u64(dir, file, &v) == 0 ? v : 0;
}

uint64_t cgroup_usage(const struct cgroup *g, const char *name)
{
    return figure(g, name, g->v2 ? "memory.current" : "memory.usage_in_bytes");
}

uint64_t cgroup_peak(const struct cgroup *g, const char *name)
{
    return figure(g, name, g->v2 ? "memory.peak" : "memory.max_usage_in_bytes");
}

uint64_t cgroup_kills(const struct cgroup *g, const char *name)
{
    char dir[PATH_MAX + 128];
    snprintf(dir, sizeof(dir), "%s/%s", g->path, name);
    return times_killed(dir, g->v2);
}

void cgroup_close(struct cgroup *g)
{
    if (!g)
        return;
    /* A group whose children are capped takes no process back, so that ends first; it does while children are capped no more. */
    if (g->has_self && g->enabled && strcmp(g->home, g->parent) == 0) {
        if (g->dmem)
            write_file(g->path, "cgroup.subtree_control", "-dmem");
        if (g->dmem_enabled)
            write_file(g->parent, "cgroup.subtree_control", "-dmem");
        write_file(g->path, "cgroup.subtree_control", "-memory");
        write_file(g->parent, "cgroup.subtree_control", "-memory");
    }
    if (g->has_self)
        move_self(g->home);
    for (int i = 0; i < g->n_children; i++) {
        char dir[PATH_MAX + 128];
        snprintf(dir, sizeof(dir), "%s/%s", g->path, g->children[i]);
        rmdir(dir);
    }
    rmdir(g->path);
    free(g);
}
