/* SPDX-License-Identifier: MIT
 * Owns the descriptors of the one output file that is open. Called by the conversion's thread: sequential writes of whole pages, a
 * sync at every point from which a later run may continue, reads only to verify what an earlier run left. It never renames before
 * every file is complete and synced, and never removes a file that has its final name. */
#include "quantizer/output.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"
#include "quantizer/plan.h"

#define SUFFIX ".partial"

struct output {
    const struct plan *plan;
    enum output_mode mode;
    uint32_t file; /* that is open; n_files: none */
    int fd, direct_fd;
    bool direct, dirty;
    int *locks;          /* [n_files], one descriptor each; -1: has its final name */
    char path[PATH_MAX]; /* of the open file */
};

static int partial_path(const struct plan_file *f, char path[PATH_MAX], struct err *err)
{
    if (snprintf(path, PATH_MAX, "%s" SUFFIX, f->path) >= PATH_MAX)
        return err_set(err, -ENAMETOOLONG, "output '%s': the name is too long", f->path);
    return 0;
}

static void close_file(struct output *o)
{
    util_close_fd(&o->fd);
    util_close_fd(&o->direct_fd);
    o->fd = o->direct_fd = -1;
    o->file = o->plan->n_files;
}

static int sync_file(struct output *o, struct err *err)
{
    if (!o->dirty)
        return 0;
    int r = io_sync(o->fd);
    if (r < 0)
        return err_set_errno(err, r, "'%s': cannot sync", o->path);
    posix_fadvise(o->fd, 0, 0, POSIX_FADV_DONTNEED);
    o->dirty = false;
    return 0;
}

/* Opened and locked under its name: a file that was renamed or removed between the two would protect nothing. */
static int lock_file(struct output *o, uint32_t i, struct err *err)
{
    char path[PATH_MAX];
    int r = partial_path(&o->plan->files[i], path, err), flags = o->mode == OUTPUT_NEW ? O_CREAT : 0;
    while (r == 0) {
        struct stat a, b;
        auto_fd fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | flags, 0666);
        if (fd < 0 && errno == ENOENT && o->mode == OUTPUT_RENAMED)
            return 0;
        if (fd < 0 && errno == ELOOP)
            return err_set(err, -ELOOP, "'%s' is a link, which the quantizer does not follow; remove it", path);
        if (fd < 0)
            return err_set_errno(err, -errno, "cannot open '%s' for writing", path);
        if (fstat(fd, &a) < 0 || !S_ISREG(a.st_mode))
            return err_set(err, -EEXIST, "'%s' is not a regular file; remove it", path);
        if (flock(fd, LOCK_EX | LOCK_NB) < 0)
            return errno == EWOULDBLOCK
                       ? err_set(err, -EBUSY, "'%s' is being written by another quantizer; wait for it, or choose another name",
                                 path)
                       : err_set_errno(err, -errno, "cannot lock '%s'", path);
        if (stat(path, &b) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev) {
            o->locks[i] = take_fd(&fd);
            return 0;
        }
    }
    return r;
}

static int lock_files(struct output *o, struct err *err)
{
    int r = 0;
    o->locks = malloc(o->plan->n_files * sizeof(*o->locks));
    if (!o->locks)
        return err_set(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < o->plan->n_files; i++)
        o->locks[i] = -1;
    for (uint32_t i = 0; r == 0 && i < o->plan->n_files; i++)
        r = lock_file(o, i, err);
    return r;
}

/* Opens file i; the one before is synced, because nothing more will be written to it. */
static int use_file(struct output *o, uint32_t i, int flags, struct err *err)
{
    const struct plan_file *f = &o->plan->files[i];
    if (o->file == i)
        return 0;
    int r = o->file < o->plan->n_files ? sync_file(o, err) : 0;
    close_file(o);
    if (r == 0)
        r = partial_path(f, o->path, err);
    if (r < 0)
        return r;
    o->fd = open(o->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0666);
    if (o->fd < 0 && errno == ENOENT && o->mode == OUTPUT_RENAMED) {
        snprintf(o->path, sizeof(o->path), "%s", f->path);
        o->fd = open(o->path, O_RDWR | O_CLOEXEC);
    }
    if (o->fd < 0)
        return err_set_errno(err, -errno, "cannot open '%s' for writing", o->path);
    o->direct_fd = open(o->path, O_RDWR | O_CLOEXEC | O_DIRECT);
    o->direct = o->direct_fd >= 0;
    o->file = i;
    return 0;
}

static int no_space(const struct output *o, struct err *err)
{
    struct statvfs v;
    char need[16], have[16];
    uint64_t left = fstatvfs(o->fd, &v) == 0 ? (uint64_t)v.f_bavail * v.f_frsize : 0;
    return err_set(err, -ENOSPC,
                   "'%s': the disk is full: all files need %s, and %s are left beside what is written (choose another "
                   "disk or a smaller type)",
                   o->path, util_format_bytes(need, sizeof(need), o->plan->bytes), util_format_bytes(have, sizeof(have), left));
}

static int make_file(struct output *o, uint32_t i, struct err *err)
{
    int r = use_file(o, i, o->mode == OUTPUT_NEW ? O_TRUNC : 0, err);
    if (r < 0)
        return r;
    uint64_t bytes = util_round_up(o->plan->files[i].bytes, IO_ALIGN);
    if (fallocate(o->fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
        return errno == ENOSPC ? no_space(o, err)
                               : err_set_errno(err, -errno, "'%s': cannot get %" PRIu64 " bytes", o->path, bytes);
    return 0;
}

static int sync_folder(const char *path, struct err *err)
{
    char folder[PATH_MAX];
    snprintf(folder, sizeof(folder), "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder] = '\0';
    auto_fd fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = fd < 0 ? -errno : io_sync(fd);
    return r < 0 && r != -EINVAL ? err_set_errno(err, r, "cannot sync the folder of '%s'", path) : 0;
}

int output_open(const struct plan *p, enum output_mode mode, struct output **ret, struct err *err)
{
    struct output *o = calloc(1, sizeof(*o));
    int r = 0;
    if (!o)
        return err_set(err, -ENOMEM, "out of memory");
    o->plan = p;
    o->mode = mode;
    o->fd = o->direct_fd = -1;
    o->file = p->n_files;
    r = lock_files(o, err);
    bool ours = r == 0;
    for (uint32_t i = 0; r == 0 && i < p->n_files; i++)
        r = make_file(o, i, err);
    if (r == 0 && mode == OUTPUT_NEW)
        r = sync_folder(p->files[0].path, err);
    if (r < 0) {
        if (mode == OUTPUT_NEW && ours)
            output_remove(p);
        output_close(o);
        return r;
    }
    *ret = o;
    return 0;
}

void output_close(struct output *o)
{
    if (!o)
        return;
    close_file(o);
    for (uint32_t i = 0; o->locks && i < o->plan->n_files; i++)
        util_close_fd(&o->locks[i]);
    free(o->locks);
    free(o);
}

bool output_is_direct(const struct output *o)
{
    return o->direct;
}

static uint32_t file_at(const struct plan *p, uint64_t at)
{
    uint32_t i = 0;
    while (i + 1 < p->n_files && p->files[i + 1].begin <= at)
        i++;
    return i;
}

/* How much of [at, at + n) lies in file i, whose last page counts as a whole. */
static size_t part_in_file(const struct plan *p, uint32_t i, uint64_t at, size_t n)
{
    uint64_t end = i + 1 < p->n_files ? p->files[i + 1].begin : p->stream_bytes;
    return (size_t)MIN(n, end - at);
}

/* Written pages of a buffered file: on their way to the disk now, out of the cache when they have got there. */
static void drop_behind(const struct output *o, uint64_t offset, size_t n)
{
    sync_file_range(o->fd, (off_t)offset, (off_t)n, SYNC_FILE_RANGE_WRITE);
    if (offset >= n) {
        sync_file_range(o->fd, (off_t)(offset - n), (off_t)n,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
        posix_fadvise(o->fd, (off_t)(offset - n), (off_t)n, POSIX_FADV_DONTNEED);
    }
}

static int write_part(struct output *o, uint64_t offset, const uint8_t *data, size_t n, struct err *err)
{
    int r = o->direct ? io_pwrite(o->direct_fd, offset, data, n) : -EINVAL;
    if (r == -EINVAL) { /* no O_DIRECT after all, or a call that stopped inside a page */
        r = io_pwrite(o->fd, offset, data, n);
        if (r == 0)
            drop_behind(o, offset, n);
    }
    o->dirty = true;
    return r < 0 ? err_set_errno(err, r, "'%s': cannot write %zu bytes at offset %" PRIu64, o->path, n, offset) : 0;
}

int output_write(struct output *o, uint64_t at, const uint8_t *data, size_t n, struct err *err)
{
    int r = 0;
    while (r == 0 && n > 0) {
        uint32_t i = file_at(o->plan, at);
        size_t part = part_in_file(o->plan, i, at, n);
        r = use_file(o, i, 0, err);
        if (r == 0)
            r = write_part(o, at - o->plan->files[i].begin, data, part, err);
        at += part;
        data += part;
        n -= part;
    }
    return r;
}

int output_read(struct output *o, uint64_t at, uint8_t *data, size_t n, struct err *err)
{
    while (n > 0) {
        uint32_t i = file_at(o->plan, at);
        size_t part = part_in_file(o->plan, i, at, n);
        uint64_t offset = at - o->plan->files[i].begin;
        int r = use_file(o, i, 0, err);
        if (r < 0)
            return r;
        ssize_t got = o->direct ? io_pread(o->direct_fd, offset, data, part) : -EINVAL;
        if (got == -EINVAL)
            got = io_pread(o->fd, offset, data, part);
        if (got < 0)
            return err_set_errno(err, (int)got, "'%s': cannot read %zu bytes at offset %" PRIu64, o->path, part, offset);
        memset(data + got, 0, part - (size_t)got); /* cut to its size before the run was killed */
        if (!o->direct)
            posix_fadvise(o->fd, (off_t)offset, (off_t)part, POSIX_FADV_DONTNEED);
        at += part;
        data += part;
        n -= part;
    }
    return 0;
}

int output_sync(struct output *o, struct err *err)
{
    return sync_file(o, err);
}

static int finish_file(struct output *o, uint32_t i, const uint64_t *checksums, struct err *err)
{
    const struct plan_file *f = &o->plan->files[i];
    int r = use_file(o, i, 0, err);
    if (r < 0)
        return r;
    if (i == 0)
        r = io_pwrite(o->fd, o->plan->checksums, checksums, o->plan->n_tensors * sizeof(*checksums));
    if (r == 0 && ftruncate(o->fd, (off_t)f->bytes) < 0)
        r = -errno;
    if (r < 0)
        return err_set_errno(err, r, "'%s': cannot write the checksums", o->path);
    o->dirty = true;
    return sync_file(o, err);
}

static int name_file(const struct plan_file *f, struct err *err)
{
    char partial[PATH_MAX];
    int r = partial_path(f, partial, err);
    if (r == 0 && rename(partial, f->path) < 0 && !(errno == ENOENT && access(f->path, F_OK) == 0))
        r = err_set_errno(err, -errno, "cannot rename '%s' to '%s'", partial, f->path);
    return r;
}

int output_finish(struct output *o, const uint64_t *checksums, struct err *err)
{
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < o->plan->n_files; i++)
        r = finish_file(o, i, checksums, err);
    for (uint32_t i = 0; r == 0 && i < o->plan->n_files; i++)
        r = name_file(&o->plan->files[i], err);
    return r < 0 ? r : sync_folder(o->plan->files[0].path, err);
}

void output_remove(const struct plan *p)
{
    char path[PATH_MAX];
    for (uint32_t i = 0; i < p->n_files; i++) {
        if (partial_path(&p->files[i], path, NULL) == 0)
            unlink(path);
    }
}

/* "m.gguf" -> "m.gguf.partial" and "m-?????-of-?????.gguf.partial", as a pattern of glob(3). */
static int find_left(const char *out, glob_t *g)
{
    char quoted[PATH_MAX], one[PATH_MAX], parts[PATH_MAX];
    size_t n = 0;
    for (const char *p = out; *p && n + 3 < sizeof(quoted); p++) {
        if (strchr("*?[]\\", *p))
            quoted[n++] = '\\';
        quoted[n++] = *p;
    }
    quoted[n] = '\0';
    size_t stem = n > 5 && strcmp(quoted + n - 5, ".gguf") == 0 ? n - 5 : n;
    if (snprintf(one, sizeof(one), "%s" SUFFIX, quoted) >= PATH_MAX ||
        snprintf(parts, sizeof(parts), "%.*s-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].gguf" SUFFIX, (int)stem,
                 quoted) >= PATH_MAX)
        return GLOB_NOMATCH;
    int r = glob(one, 0, NULL, g);
    int s = glob(parts, r == 0 ? GLOB_APPEND : 0, NULL, g);
    return r == 0 || s == 0 ? 0 : GLOB_NOMATCH;
}

char *output_find_left(const char *out)
{
    glob_t g = {0};
    char *r = find_left(out, &g) == 0 && g.gl_pathc ? strdup(g.gl_pathv[0]) : NULL;
    globfree(&g);
    return r;
}

void output_remove_left(const char *out)
{
    glob_t g = {0};
    if (find_left(out, &g) == 0) {
        for (size_t i = 0; i < g.gl_pathc; i++)
            unlink(g.gl_pathv[i]);
    }
    globfree(&g);
}
