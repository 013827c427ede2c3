/* SPDX-License-Identifier: MIT
 * Owns the journal's descriptor, its lock and a copy of its records. Format, little-endian u64: magic, source, arguments, stream
 * bytes, hash of these; then records of kind, end, hash, and a hash of the record seeded with its number. Called by the
 * conversion's thread. It knows nothing of the output's content. */
#include "quantizer/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"

#define MAGIC 0x314c4e524a51445dull /* "]DQJRNL1" */
#define MAX_RECORDS (1u << 20)

struct head {
    uint64_t magic;
    struct journal_identity id;
    uint64_t hash;
};

struct entry {
    struct journal_record r;
    uint64_t hash;
};

struct journal {
    int fd;
    bool is_new;
    uint32_t n, cap;
    struct journal_record *records;
    char path[PATH_MAX];
};

static uint64_t head_hash(const struct head *h)
{
    return XXH3_64bits(h, offsetof(struct head, hash));
}

static uint64_t entry_hash(const struct journal_record *r, uint32_t number)
{
    return XXH3_64bits_withSeed(r, sizeof(*r), number);
}

/* A lock on a file that a finished run has unlinked meanwhile would protect nothing. */
static int open_locked(struct journal *j, const char *out, struct err *err)
{
    for (;;) {
        struct stat a, b;
        auto_fd fd = open(j->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
        if (fd < 0 && errno == ELOOP)
            return err_set(err, -ELOOP, "'%s' is a link, which the quantizer does not follow; remove it", j->path);
        if (fd < 0)
            return err_set_errno(err, -errno, "cannot create '%s'", j->path);
        if (fstat(fd, &a) < 0 || !S_ISREG(a.st_mode))
            return err_set(err, -EEXIST, "'%s' is not a regular file; remove it", j->path);
        if (flock(fd, LOCK_EX | LOCK_NB) < 0)
            return errno == EWOULDBLOCK
                       ? err_set(err, -EBUSY,
                                 "output '%s' is being written by another quantizer; wait for it, or choose another name", out)
                       : err_set_errno(err, -errno, "cannot lock '%s'", j->path);
        if (fstat(fd, &a) == 0 && stat(j->path, &b) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev) {
            j->fd = take_fd(&fd);
            return 0;
        }
    }
}

static int keep(struct journal *j, const struct journal_record *r)
{
    if (j->n == j->cap) {
        uint32_t cap = MAX(j->cap * 2, 64u);
        struct journal_record *p = realloc(j->records, cap * sizeof(*p));
        if (!p)
            return -ENOMEM;
        j->records = p;
        j->cap = cap;
    }
    j->records[j->n++] = *r;
    return 0;
}

/* Records up to the first that is not whole, not in order, or after the end. */
static int load_records(struct journal *j, uint64_t stream_bytes, struct err *err)
{
    uint64_t end = 0;
    struct entry e;
    while (j->n < MAX_RECORDS) {
        ssize_t got = io_pread(j->fd, sizeof(struct head) + j->n * sizeof(e), &e, sizeof(e));
        if (got < 0)
            return err_set_errno(err, (int)got, "cannot read '%s'", j->path);
        if (got != sizeof(e) || e.hash != entry_hash(&e.r, j->n) || e.r.end < end || e.r.end > stream_bytes ||
            (e.r.kind != JOURNAL_GROUP && e.r.kind != JOURNAL_COMPLETE))
            break;
        end = e.r.end;
        if (keep(j, &e.r) < 0)
            return err_set(err, -ENOMEM, "'%s': out of memory", j->path);
    }
    return 0;
}

static int begin(struct journal *j, const struct journal_identity *id, struct err *err)
{
    struct head h = {.magic = MAGIC, .id = *id};
    h.hash = head_hash(&h);
    j->n = 0;
    int r = ftruncate(j->fd, 0) < 0 ? -errno : io_pwrite(j->fd, 0, &h, sizeof(h));
    if (r == 0)
        r = io_sync(j->fd);
    return r < 0 ? err_set_errno(err, r, "cannot write '%s'", j->path) : 0;
}

static int load(struct journal *j, const char *out, const struct journal_identity *id, bool restart, struct err *err)
{
    struct head h;
    ssize_t got = io_pread(j->fd, 0, &h, sizeof(h));
    if (got < 0)
        return err_set_errno(err, (int)got, "cannot read '%s'", j->path);
    j->is_new = got == 0;
    if (got > 0 && (got < (ssize_t)sizeof(h.magic) || h.magic != MAGIC))
        return err_set(err, -EEXIST, "'%s' exists and is not a journal of the quantizer; remove it, or choose another output",
                       j->path);
    if (restart || got != sizeof(h) || h.hash != head_hash(&h))
        return begin(j, id, err);
    if (h.id.source != id->source)
        return err_set(err, -ESTALE,
                       "what an earlier run left of '%s' was begun from an input that has changed since (a file's size, time or "
                       "header); start with --restart to drop it and begin again",
                       out);
    if (h.id.arguments != id->arguments || h.id.stream_bytes != id->stream_bytes)
        return err_set(err, -ESTALE,
                       "what an earlier run left of '%s' was begun with other arguments; start with those to continue it, or with "
                       "--restart to drop it and begin again",
                       out);
    return load_records(j, id->stream_bytes, err);
}

int journal_open(const char *out, const struct journal_identity *id, bool restart, struct journal **ret, struct err *err)
{
    struct journal *j = calloc(1, sizeof(*j));
    if (!j)
        return err_set(err, -ENOMEM, "out of memory");
    j->fd = -1;
    int r = 0;
    if (snprintf(j->path, sizeof(j->path), "%s.partial.journal", out) >= (int)sizeof(j->path))
        r = err_set(err, -ENAMETOOLONG, "output '%s': the name is too long", out);
    if (r == 0)
        r = open_locked(j, out, err);
    if (r == 0)
        r = load(j, out, id, restart, err);
    if (r < 0)
        journal_close(j);
    else
        *ret = j;
    return r;
}

void journal_close(struct journal *j)
{
    if (!j)
        return;
    util_close_fd(&j->fd);
    free(j->records);
    free(j);
}

void journal_remove(struct journal *j)
{
    unlink(j->path);
    journal_close(j);
}

bool journal_is_new(const struct journal *j)
{
    return j->is_new;
}

uint32_t journal_n(const struct journal *j)
{
    return j->n;
}

struct journal_record journal_at(const struct journal *j, uint32_t i)
{
    return j->records[i];
}

int journal_cut(struct journal *j, uint32_t n, struct err *err)
{
    j->n = n;
    if (ftruncate(j->fd, (off_t)(sizeof(struct head) + n * sizeof(struct entry))) < 0)
        return err_set_errno(err, -errno, "cannot write '%s'", j->path);
    return 0;
}

int journal_add(struct journal *j, enum journal_kind kind, uint64_t end, uint64_t hash, struct err *err)
{
    struct entry e = {.r = {kind, end, hash}};
    e.hash = entry_hash(&e.r, j->n);
    int r = io_pwrite(j->fd, sizeof(struct head) + j->n * sizeof(e), &e, sizeof(e));
    if (r == 0)
        r = io_sync(j->fd);
    if (r < 0)
        return err_set_errno(err, r, "cannot write '%s'", j->path);
    return keep(j, &e.r) < 0 ? err_set(err, -ENOMEM, "'%s': out of memory", j->path) : 0;
}
