/* SPDX-License-Identifier: MIT
 * Called by line.c. Nothing is open between calls: who adds a prompt opens the file, locks it, and makes sure that it is still the
 * one of that name, because whoever found it too long has put a shorter one in its place. Reading needs no lock: lines are whole,
 * but for a last one without its newline, which a full disk may have left. */
#include "coordinator/line_history.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "proto/err.h"
#include "proto/io.h"
#include "proto/utf8.h"
#include "proto/util.h"

#define LINES_MOST (LINE_HISTORY_LINES + LINE_HISTORY_LINES / 5)

static int failed(struct err *err, int code, const char *path, const char *what)
{
    return err_set_errno(err, code, "history '%s': %s; `history: off` in the configuration does without it", path, what);
}

/* At most LINE_HISTORY_BYTES from the end, beginning with a line. */
static int read_end(int fd, const char *path, char **ret, size_t *ret_n, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return failed(err, -errno, path, "cannot be read");
    uint64_t size = (uint64_t)MAX(st.st_size, (off_t)0), from = size > LINE_HISTORY_BYTES ? size - LINE_HISTORY_BYTES : 0;
    auto_free char *text = malloc((size_t)(size - from) + 1);
    if (!text)
        return failed(err, -ENOMEM, path, "cannot be read");
    ssize_t n = io_pread(fd, from, text, (size_t)(size - from));
    if (n < 0)
        return failed(err, (int)n, path, "cannot be read");
    char *begin = from ? memchr(text, '\n', (size_t)n) : NULL;
    size_t skip = begin ? (size_t)(begin - text) + 1 : 0;
    memmove(text, text + skip, (size_t)n - skip);
    *ret_n = (size_t)n - skip;
    *ret = take_ptr(&text);
    return 0;
}

static size_t count_lines(const char *text, size_t n)
{
    size_t lines = 0;
    for (size_t i = 0; i < n; i++)
        lines += text[i] == '\n';
    return lines;
}

/* Where the last `lines` lines begin that fit into `bytes`. */
static size_t last_lines(const char *text, size_t n, size_t lines, size_t bytes)
{
    size_t have = count_lines(text, n), at = 0;
    while (at < n && (have > lines || n - at > bytes)) {
        const char *end = memchr(text + at, '\n', n - at);
        at = end ? (size_t)(end - text) + 1 : n;
        have--;
    }
    return at;
}

/* In place. */
static void unescape(char *s)
{
    char *to = s;
    for (; *s; s++) {
        if (*s == '\\' && (s[1] == 'n' || s[1] == '\\'))
            *to++ = *++s == 'n' ? '\n' : '\\';
        else
            *to++ = *s;
    }
    *to = '\0';
}

/* With its newline; NULL: out of memory. */
static char *escape(const char *s, size_t *ret_n)
{
    char *text = malloc(2 * strlen(s) + 2), *to = text;
    for (; text && *s; s++) {
        if (*s == '\n' || *s == '\\')
            *to++ = '\\';
        *to++ = *s == '\n' ? 'n' : *s;
    }
    if (text) {
        *to++ = '\n';
        *ret_n = (size_t)(to - text);
    }
    return text;
}

static bool regular(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
}

int line_history_load(const char *path, void (*each)(void *ctx, const char *text), void *ctx, struct err *err)
{
    size_t n = 0;
    auto_free char *text = NULL;
    auto_fd fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return errno == ENOENT ? 0 : failed(err, -errno, path, "cannot be opened");
    if (!regular(fd))
        return 0;
    int r = read_end(fd, path, &text, &n, err);
    if (r < 0)
        return r;
    for (size_t at = last_lines(text, n, LINE_HISTORY_LINES, LINE_HISTORY_BYTES); at < n;) {
        char *end = memchr(text + at, '\n', n - at);
        size_t length = end ? (size_t)(end - text) - at : 0;
        if (!end)
            break;
        *end = '\0';
        if (length && !memchr(text + at, 0, length) && utf8_valid(text + at, length)) {
            unescape(text + at);
            each(ctx, text + at);
        }
        at += length + 1;
    }
    return 0;
}

/* Open and locked, and of that name. */
static int open_locked(const char *path, struct err *err)
{
    for (int tries = 0; tries < 100; tries++) {
        struct stat ours, named;
        auto_fd fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);
        if (fd < 0)
            return failed(err, -errno, path, "cannot be opened");
        if (!regular(fd))
            return take_fd(&fd);
        while (flock(fd, LOCK_EX) < 0) {
            if (errno != EINTR)
                return failed(err, -errno, path, "cannot be locked");
        }
        if (fstat(fd, &ours) == 0 && stat(path, &named) == 0 && ours.st_ino == named.st_ino && ours.st_dev == named.st_dev)
            return take_fd(&fd);
    }
    return failed(err, -EBUSY, path, "cannot be locked");
}

static int replace(const char *path, const char *kept, size_t n_kept, const char *line, size_t n_line, struct err *err)
{
    struct io_out *o = NULL;
    int r = io_out_open_as(path, IO_OUT_PRIVATE, &o, err);
    if (r == 0)
        r = io_out_write(o, kept, n_kept, err);
    if (r == 0 && n_kept && kept[n_kept - 1] != '\n')
        r = io_out_write(o, "\n", 1, err);
    if (r == 0)
        r = io_out_write(o, line, n_line, err);
    if (r < 0) {
        io_out_abort(o);
        return r;
    }
    return io_out_commit(o, err);
}

int line_history_add(const char *path, const char *text, struct err *err)
{
    size_t n = 0, n_line = 0;
    auto_free char *line = escape(text, &n_line), *old = NULL;
    if (!line)
        return failed(err, -ENOMEM, path, "cannot be written");
    if (n_line > LINE_HISTORY_ENTRY_BYTES)
        return 0;
    struct stat st;
    auto_fd fd = open_locked(path, err);
    if (fd < 0)
        return fd;
    int r = regular(fd) && fstat(fd, &st) == 0 ? read_end(fd, path, &old, &n, err) : 0;
    if (r < 0 || !old)
        return r;
    if (count_lines(old, n) >= LINES_MOST || st.st_size + (off_t)n_line + 1 > LINE_HISTORY_BYTES) {
        size_t at = last_lines(old, n, LINE_HISTORY_LINES - 1, LINE_HISTORY_BYTES / 2);
        return replace(path, old + at, n - at, line, n_line, err);
    }
    if (n && old[n - 1] != '\n') /* of a write that was cut short */
        r = util_write_all(fd, "\n", 1);
    if (r == 0)
        r = util_write_all(fd, line, n_line);
    return r < 0 ? failed(err, r, path, "cannot be written") : 0;
}
