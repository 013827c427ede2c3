/* SPDX-License-Identifier: MIT
 * File input in exact pieces and file output that appears whole or not at all. Owns the fds it opens. Reads are pread, from any
 * thread; with O_DIRECT an unaligned request goes through an aligned buffer that lives for the call. Output is written beside its
 * final name and renamed after fsync, so that no reader ever sees half a file. */
#include "proto/io.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "proto/err.h"
#include "proto/util.h"

#define ALIGN IO_ALIGN
#define BOUNCE (1u << 20)

static const struct io_system real = {pread, pwrite, fsync};
static const struct io_system *sys = &real;

void io_set_system(const struct io_system *s)
{
    sys = s ? s : &real;
}

struct io_file {
    int fd;        /* buffered */
    int direct_fd; /* O_DIRECT, or -1 */
    uint64_t size;
    struct timespec changed;
    char path[];
};

int io_open(const char *path, bool direct, struct io_file **ret, struct err *err)
{
    auto_fd fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* opening a FIFO would wait for its writer */
    struct stat st;
    if (fd < 0)
        return err_set_errno(err, -errno, "cannot open '%s'", path);
    if (fstat(fd, &st) < 0)
        return err_set_errno(err, -errno, "cannot stat '%s'", path);
    if (S_ISDIR(st.st_mode))
        return err_set(err, -EISDIR, "'%s' is a folder; expected a file", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, -EINVAL, "'%s' is not a regular file", path);
    struct io_file *f = malloc(sizeof(*f) + strlen(path) + 1);
    if (!f)
        return err_set(err, -ENOMEM, "'%s': out of memory", path);
    memcpy(f->path, path, strlen(path) + 1);
    f->size = (uint64_t)st.st_size;
    f->changed = st.st_mtim;
    f->direct_fd = direct ? open(path, O_RDONLY | O_CLOEXEC | O_DIRECT) : -1;
    f->fd = take_fd(&fd);
    *ret = f;
    return 0;
}

void io_close(struct io_file *f)
{
    if (!f)
        return;
    util_close_fd(&f->fd);
    util_close_fd(&f->direct_fd);
    free(f);
}

uint64_t io_size(const struct io_file *f)
{
    return f->size;
}

const char *io_path(const struct io_file *f)
{
    return f->path;
}

/* As much as there is, up to n; a count or a negative errno. Under O_DIRECT a piece that is no multiple of the alignment is the
 * end of the file, and what follows it could not be asked for. */
static ssize_t read_some(int fd, bool direct, uint64_t offset, void *buf, size_t n)
{
    size_t got = 0;
    while (got < n) {
        ssize_t r = sys->pread(fd, (char *)buf + got, n - got, (off_t)(offset + got));
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return -errno;
        if (r == 0)
            break;
        got += (size_t)r;
        if (direct && got % ALIGN)
            break;
    }
    return (ssize_t)got;
}

ssize_t io_pread(int fd, uint64_t offset, void *buf, size_t n)
{
    return read_some(fd, false, offset, buf, n);
}

int io_pwrite(int fd, uint64_t offset, const void *data, size_t n)
{
    size_t done = 0;
    while (done < n) {
        ssize_t w = sys->pwrite(fd, (const char *)data + done, n - done, (off_t)(offset + done));
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return w < 0 ? -errno : -EIO;
        done += (size_t)w;
    }
    return 0;
}

int io_sync(int fd)
{
    return sys->sync(fd) < 0 ? -errno : 0;
}

static ssize_t read_direct(const struct io_file *f, uint64_t offset, void *buf, size_t n)
{
    if (((uintptr_t)buf | offset | n) % ALIGN == 0)
        return read_some(f->direct_fd, true, offset, buf, n);
    void *bounce;
    size_t size = MIN(util_round_up(n + ALIGN, ALIGN), BOUNCE), got = 0;
    if (posix_memalign(&bounce, ALIGN, size))
        return -ENOMEM;
    ssize_t r = 0;
    while (got < n) {
        uint64_t at = (offset + got) / ALIGN * ALIGN;
        size_t skip = (size_t)(offset + got - at);
        r = read_some(f->direct_fd, true, at, bounce, MIN(size, util_round_up(skip + n - got, ALIGN)));
        if (r < 0 || (size_t)r <= skip)
            break;
        size_t piece = MIN((size_t)r - skip, n - got);
        memcpy((char *)buf + got, (char *)bounce + skip, piece);
        got += piece;
    }
    free(bounce);
    return r < 0 ? r : (ssize_t)got;
}

static int check_range(const struct io_file *f, uint64_t offset, size_t n, struct err *err)
{
    if (offset > f->size || n > f->size - offset)
        return err_set(err, -EIO, "'%s': %zu bytes wanted at offset %" PRIu64 "; the file has %" PRIu64 " (is it cut off?)",
                       f->path, n, offset, f->size);
    return 0;
}

static int check_result(const struct io_file *f, uint64_t offset, size_t n, ssize_t r, struct err *err)
{
    if (r < 0)
        return err_set_errno(err, (int)r, "'%s': cannot read %zu bytes at offset %" PRIu64, f->path, n, offset);
    if ((size_t)r != n)
        return err_set(err, -EIO, "'%s': got %zd of %zu bytes at offset %" PRIu64 "; the file was cut while open", f->path, r, n,
                       offset);
    return 0;
}

int io_read(struct io_file *f, uint64_t offset, void *buf, size_t n, struct err *err)
{
    int e = check_range(f, offset, n, err);
    if (e < 0)
        return e;
    ssize_t r = -EINVAL;
    if (f->direct_fd >= 0 && n >= ALIGN)
        r = read_direct(f, offset, buf, n);
    if (r == -EINVAL) /* no O_DIRECT here after all, or a small piece */
        r = read_some(f->fd, false, offset, buf, n);
    return check_result(f, offset, n, r, err);
}

int io_unchanged(const struct io_file *f, struct err *err)
{
    struct stat st;
    if (fstat(f->fd, &st) < 0)
        return err_set_errno(err, -errno, "cannot stat '%s'", f->path);
    if ((uint64_t)st.st_size != f->size)
        return err_set(err, -ESTALE, "'%s' has changed while it was read: it had %" PRIu64 " bytes, and has %" PRIu64, f->path,
                       f->size, (uint64_t)st.st_size);
    if (st.st_mtim.tv_sec != f->changed.tv_sec || st.st_mtim.tv_nsec != f->changed.tv_nsec)
        return err_set(err, -ESTALE, "'%s' has changed while it was read: it was written to", f->path);
    return 0;
}

bool io_is_direct(const struct io_file *f)
{
    return f->direct_fd >= 0;
}

int io_read_extent(struct io_file *f, uint64_t offset, size_t n, void *buf, size_t *ret_skip, struct err *err)
{
    int e = check_range(f, offset, n, err);
    if (e < 0)
        return e;
    size_t skip = f->direct_fd >= 0 ? (size_t)(offset % ALIGN) : 0, got = 0;
    if (f->direct_fd >= 0) {
        ssize_t r = read_some(f->direct_fd, true, offset - skip, buf, util_round_up(skip + n, ALIGN));
        if (r < 0 && r != -EINVAL)
            return check_result(f, offset, n, r, err);
        got = r > (ssize_t)skip ? MIN((size_t)r - skip, n) : 0;
    }
    if (got < n) { /* no O_DIRECT here, or it ended in the middle of a page */
        ssize_t r = read_some(f->fd, false, offset + got, (char *)buf + skip + got, n - got);
        e = check_result(f, offset + got, n - got, r, err);
        if (e < 0)
            return e;
        posix_fadvise(f->fd, (off_t)offset, (off_t)n, POSIX_FADV_DONTNEED);
    }
    *ret_skip = skip;
    return 0;
}

struct io_out {
    int fd;
    unsigned flags;
    uint64_t end;
    char *path, *temporary;
};

static void out_free(struct io_out *o)
{
    util_close_fd(&o->fd);
    free(o->path);
    free(o->temporary);
    free(o);
}

int io_may_replace(const char *path, const void *magic, size_t n, const char *kind, struct err *err)
{
    struct io_file *f;
    struct stat st;
    char found[16] = "";
    if (*path == '\0')
        return err_set(err, -EINVAL, "output: found an empty name; expected that of a file");
    if (stat(path, &st) < 0 && errno == ENOENT)
        return lstat(path, &st) < 0 ? 0
                                    : err_set(err, -ENOENT, "output '%s' is a link to a file that does not exist; remove it", path);
    if (stat(path, &st) < 0)
        return err_set_errno(err, -errno, "output '%s'", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL, "output '%s' is %s; expected the name of a file", path,
                       S_ISDIR(st.st_mode) ? "a folder" : "a device, pipe or socket");
    int r = st.st_size == 0 ? 0 : io_open(path, false, &f, err);
    if (r < 0 || st.st_size == 0)
        return r < 0 ? err_wrap(err, r, "output") : 0;
    if (io_size(f) >= n && n <= sizeof(found))
        r = io_read(f, 0, found, n, err);
    io_close(f);
    if (r == 0 && memcmp(found, magic, n) != 0)
        r = err_set(err, -EEXIST, "output '%s' exists and is not %s; remove it, or choose another name", path, kind);
    return r;
}

int io_out_open(const char *path, struct io_out **ret, struct err *err)
{
    return io_out_open_as(path, 0, ret, err);
}

int io_out_open_as(const char *path, unsigned flags, struct io_out **ret, struct err *err)
{
    auto_free char *resolved = realpath(path, NULL); /* of a link, the file that it points to */
    struct io_out *o = calloc(1, sizeof(*o));
    if (!o)
        return err_set(err, -ENOMEM, "'%s': out of memory", path);
    o->fd = -1;
    o->flags = flags;
    if (resolved)
        path = resolved;
    o->path = strdup(path);
    if (!o->path || asprintf(&o->temporary, "%s.tmp-%d", path, (int)getpid()) < 0) {
        o->temporary = NULL;
        out_free(o);
        return err_set(err, -ENOMEM, "'%s': out of memory", path);
    }
    unlink(o->temporary); /* of a killed process that had our id */
    o->fd = open(o->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, flags & IO_OUT_PRIVATE ? 0600 : 0666);
    if (o->fd < 0) {
        int code = -errno;
        err_set_errno(err, code, "cannot create '%s'", o->temporary);
        out_free(o);
        return code;
    }
    *ret = o;
    return 0;
}

int io_out_pwrite(struct io_out *o, uint64_t offset, const void *data, size_t n, struct err *err)
{
    int r = io_pwrite(o->fd, offset, data, n);
    if (r < 0)
        return err_set_errno(err, r, "'%s': cannot write %zu bytes at offset %" PRIu64, o->path, n, offset);
    o->end = MAX(o->end, offset + n);
    return 0;
}

int io_out_write(struct io_out *o, const void *data, size_t n, struct err *err)
{
    return io_out_pwrite(o, o->end, data, n, err);
}

static void sync_folder(const char *path)
{
    char dir[PATH_MAX];
    snprintf(dir, sizeof(dir), "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = '\0';
    auto_fd fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        fsync(fd);
}

/* 0 or a negative errno. link() is for file systems that know no rename without replacing. */
static int take_name(const struct io_out *o)
{
    if (!(o->flags & IO_OUT_NEW))
        return rename(o->temporary, o->path) < 0 ? -errno : 0;
    if (renameat2(AT_FDCWD, o->temporary, AT_FDCWD, o->path, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -errno;
    if (link(o->temporary, o->path) < 0)
        return -errno;
    unlink(o->temporary);
    return 0;
}

int io_out_commit(struct io_out *o, struct err *err)
{
    int code = 0, named = 0;
    int r = io_sync(o->fd);
    if (r < 0)
        code = err_set_errno(err, r, "'%s': fsync", o->path);
    else if ((named = take_name(o)) == -EEXIST)
        code = err_set(err, named, "'%s' is there already", o->path);
    else if (named < 0)
        code = err_set_errno(err, named, "cannot rename '%s' to '%s'", o->temporary, o->path);
    if (code < 0) {
        io_out_abort(o);
        return code;
    }
    sync_folder(o->path);
    out_free(o);
    return 0;
}

void io_out_abort(struct io_out *o)
{
    if (!o)
        return;
    unlink(o->temporary);
    out_free(o);
}
