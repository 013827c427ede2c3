/* SPDX-License-Identifier: MIT
 * Owns one descriptor per request in progress. Called by schedule.c as tokens come and by cmd_resume.c.
 *
 * A file: struct header, the model's path, the prompt's ids; then 8 bytes for each token, its id and the same id mixed with its
 * number, so that what a kill left half written, or other bytes, are seen. Where the request has ended, another 8 bytes say how,
 * with an id that no token has. Native byte order: it never leaves the machine. What is read back was written by a process of this
 * user, and is checked like any input all the same. */
#include "coordinator/journal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "proto/err.h"
#include "proto/util.h"

#define MAGIC "TNDMREQ2"
#define IDS_MAX 1048576u /* as 'context' allows */
#define PATH_BYTES_MAX 4096u
#define END_FIRST 0xffffff00u /* + how it ended; no vocabulary has so many tokens */
#define END_LAST (END_FIRST + ENGINE_FINISH_CONTEXT)

struct header {
    char magic[8];
    uint64_t check; /* of all that follows, up to the tokens */
    uint64_t model_bytes, model_time_ns, seed;
    uint32_t n_prompt, path_bytes, choice, max_tokens, context, unused, top_k, repeat_last;
    float temperature, top_p, min_p, repeat_penalty;
};
_Static_assert(sizeof(struct header) == 88, "layout");

struct token {
    uint32_t id, mixed;
};

struct journal {
    int folder;
    char *model;
    uint64_t model_bytes, model_time_ns;
    uint32_t context, vocab, serial;
};

struct journal_file {
    struct journal *j;
    int fd;        /* -1: nothing is added any more */
    bool there;    /* it is in the folder */
    uint32_t n;    /* tokens in it */
    uint32_t *ids; /* of a claimed one */
    size_t bytes;  /* what of it is whole */
    char name[24]; /* in the folder */
};

static uint64_t fnv(uint64_t h, const void *p, size_t n)
{
    const uint8_t *b = p;
    for (size_t i = 0; i < n; i++)
        h = (h ^ b[i]) * UINT64_C(1099511628211);
    return h;
}

static uint64_t check_of(const struct header *h, const void *rest, size_t n)
{
    size_t skip = offsetof(struct header, model_bytes);
    return fnv(fnv(UINT64_C(14695981039346656037), (const char *)h + skip, sizeof(*h) - skip), rest, n);
}

static uint32_t mix(uint32_t id, uint32_t index)
{
    return (id ^ 0x544f4b31u) * 2654435761u + index;
}

int journal_open(const struct journal_options *o, struct journal **ret, struct err *err)
{
    struct stat st;
    struct journal *j = calloc(1, sizeof(*j));
    if (!j || !(j->model = strdup(o->model))) {
        free(j);
        return err_set(err, -ENOMEM, "journal: out of memory");
    }
    j->context = o->context;
    j->vocab = o->vocab;
    j->folder = open(o->folder, O_DIRECTORY | O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (j->folder < 0 || stat(o->model, &st) < 0) {
        int r = err_set_errno(err, -errno, "journal in '%s' of requests to '%s'", o->folder, o->model);
        journal_close(j);
        return r;
    }
    j->model_bytes = (uint64_t)st.st_size;
    j->model_time_ns = (uint64_t)st.st_mtim.tv_sec * 1000000000u + (uint64_t)st.st_mtim.tv_nsec;
    *ret = j;
    return 0;
}

void journal_close(struct journal *j)
{
    if (!j)
        return;
    util_close_fd(&j->folder);
    free(j->model);
    free(j);
}

static struct journal_file *file_new(struct journal *j)
{
    struct journal_file *f = calloc(1, sizeof(*f));
    if (!f)
        return NULL;
    f->j = j;
    f->fd = -1;
    snprintf(f->name, sizeof(f->name), "request-%06u", j->serial++);
    return f;
}

static int write_head(struct journal_file *f, const struct journal_request *q)
{
    const struct journal *j = f->j;
    size_t path_bytes = strlen(j->model) + 1, n = path_bytes + (q->n_prompt + (size_t)2 * q->n_done) * sizeof(uint32_t);
    auto_free char *buf = malloc(sizeof(struct header) + n);
    if (!buf)
        return -ENOMEM;
    struct header h = {.model_bytes = j->model_bytes,
                       .model_time_ns = j->model_time_ns,
                       .seed = q->sample.seed,
                       .n_prompt = q->n_prompt,
                       .path_bytes = (uint32_t)path_bytes,
                       .choice = q->choice,
                       .max_tokens = q->max_tokens,
                       .context = j->context,
                       .top_k = q->sample.top_k,
                       .repeat_last = q->sample.repeat_last,
                       .temperature = q->sample.temperature,
                       .top_p = q->sample.top_p,
                       .min_p = q->sample.min_p,
                       .repeat_penalty = q->sample.repeat_penalty};
    memcpy(h.magic, MAGIC, sizeof(h.magic));
    char *rest = buf + sizeof(h);
    memcpy(rest, j->model, path_bytes);
    memcpy(rest + path_bytes, q->ids, q->n_prompt * sizeof(uint32_t));
    h.check = check_of(&h, rest, path_bytes + q->n_prompt * sizeof(uint32_t));
    memcpy(buf, &h, sizeof(h));
    f->bytes = sizeof(h) + path_bytes + q->n_prompt * sizeof(uint32_t);
    return util_write_all(f->fd, buf, f->bytes);
}

int journal_begin(struct journal *j, const struct journal_request *q, struct journal_file **ret, struct err *err)
{
    struct journal_file *f = file_new(j);
    if (!f)
        return err_set(err, -ENOMEM, "journal: out of memory");
    f->fd = openat(j->folder, f->name, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    f->there = f->fd >= 0;
    int r = f->there ? write_head(f, q) : -errno;
    if (r < 0) {
        journal_end(f);
        return err_set_errno(err, r, "journal file '%s' of the runtime folder cannot be written", "request-*");
    }
    *ret = f;
    return 0;
}

/* Where nothing more can be written, such as on a full disk, the file stays with what is whole: it may be all that is left of an
 * answer. Half an entry is seen as such when it is read, should it stay as well. */
static bool add(struct journal_file *f, uint32_t id)
{
    const struct token t = {id, mix(id, f->n)};
    if (f->fd < 0)
        return true;
    if (util_write_all(f->fd, &t, sizeof(t)) == 0) {
        f->n++;
        f->bytes += sizeof(t);
        return true;
    }
    int cut = ftruncate(f->fd, (off_t)f->bytes);
    (void)cut;
    util_close_fd(&f->fd);
    f->fd = -1;
    return false;
}

bool journal_token(struct journal_file *f, uint32_t id)
{
    return add(f, id);
}

bool journal_finish(struct journal_file *f, enum engine_finish why)
{
    return add(f, END_FIRST + (uint32_t)why);
}

void journal_leave(struct journal_file *f)
{
    util_close_fd(&f->fd);
    free(f->ids);
    free(f);
}

void journal_end(struct journal_file *f)
{
    if (!f)
        return;
    if (f->there)
        unlinkat(f->j->folder, f->name, 0);
    journal_leave(f);
}

/* The tokens that are whole; *ret_end: what comes after them, where the request has ended, or 0. */
static uint32_t count_tokens(const char *p, size_t n, uint32_t vocab, uint32_t *ret_end)
{
    uint32_t i = 0;
    struct token t;
    *ret_end = 0;
    for (; (i + 1) * sizeof(t) <= n && i < IDS_MAX; i++) {
        memcpy(&t, p + i * sizeof(t), sizeof(t));
        if (t.mixed != mix(t.id, i))
            break;
        if (t.id >= END_FIRST && t.id <= END_LAST)
            *ret_end = t.id;
        if (t.id >= vocab)
            break;
    }
    return i;
}

static bool known(const uint32_t *ids, uint32_t n, uint32_t vocab)
{
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] >= vocab)
            return false;
    }
    return true;
}

static bool sane(const struct header *h)
{
    struct sample_params p = {.temperature = h->temperature,
                              .top_p = h->top_p,
                              .min_p = h->min_p,
                              .repeat_penalty = h->repeat_penalty,
                              .top_k = h->top_k,
                              .repeat_last = h->repeat_last};
    return memcmp(h->magic, MAGIC, sizeof(h->magic)) == 0 && h->context <= IDS_MAX && h->n_prompt > 0 &&
           h->n_prompt <= h->context && h->max_tokens > 0 && h->max_tokens <= IDS_MAX && h->path_bytes > 0 &&
           h->path_bytes <= PATH_BYTES_MAX && sample_params_check(&p, NULL) == 0;
}

/* Fills *ret and f->ids from the bytes of a file. 0; -EPROTO: it is none of ours, damaged, or of another model. */
static int parse(const struct journal *j, const char *p, size_t n, struct journal_request *ret, struct journal_file *f)
{
    struct header h;
    if (n < sizeof(h))
        return -EPROTO;
    memcpy(&h, p, sizeof(h));
    size_t head = h.path_bytes + h.n_prompt * sizeof(uint32_t);
    if (!sane(&h) || n - sizeof(h) < head || h.check != check_of(&h, p + sizeof(h), head))
        return -EPROTO;
    const char *path = p + sizeof(h), *tokens = path + head;
    if (path[h.path_bytes - 1] != '\0' || strcmp(path, j->model) != 0 || h.model_bytes != j->model_bytes ||
        h.model_time_ns != j->model_time_ns)
        return -EPROTO;
    uint32_t end, n_done = count_tokens(tokens, n - sizeof(h) - head, j->vocab, &end);
    uint32_t *ids = malloc(((size_t)h.n_prompt + n_done) * sizeof(*ids));
    if (!ids)
        return -ENOMEM;
    memcpy(ids, path + h.path_bytes, h.n_prompt * sizeof(*ids));
    if (!known(ids, h.n_prompt, j->vocab)) {
        free(ids);
        return -EPROTO;
    }
    for (uint32_t i = 0; i < n_done; i++)
        memcpy(&ids[h.n_prompt + i], tokens + i * sizeof(struct token), sizeof(*ids));
    f->ids = ids;
    f->n = n_done + (end != 0);
    f->bytes = sizeof(h) + head + f->n * sizeof(struct token);
    *ret = (struct journal_request){.ids = ids,
                                    .n_prompt = h.n_prompt,
                                    .n_done = n_done,
                                    .max_tokens = h.max_tokens,
                                    .choice = h.choice,
                                    .context = h.context,
                                    .ended = end != 0,
                                    .finish = end ? (enum engine_finish)(end - END_FIRST) : ENGINE_FINISH_STOP,
                                    .sample = {.temperature = h.temperature,
                                               .top_k = h.top_k,
                                               .top_p = h.top_p,
                                               .min_p = h.min_p,
                                               .repeat_penalty = h.repeat_penalty,
                                               .repeat_last = h.repeat_last,
                                               .seed = h.seed}};
    return 0;
}

static int read_whole(int fd, char **ret, size_t *ret_n)
{
    struct stat st;
    const size_t most =
        sizeof(struct header) + PATH_BYTES_MAX + IDS_MAX * (sizeof(uint32_t) + sizeof(struct token)) + sizeof(struct token);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size < 0 || (uint64_t)st.st_size > most)
        return -EPROTO;
    size_t n = 0, size = (size_t)st.st_size;
    char *buf = malloc(size + 1);
    while (buf && n < size) {
        ssize_t got = read(fd, buf + n, size - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        n += (size_t)got;
    }
    *ret = buf;
    *ret_n = n;
    return buf ? 0 : -ENOMEM;
}

/* 1: taken; 0: it is not for us. */
static int try_file(struct journal *j, int folder, const char *name, struct journal_request *ret, struct journal_file **ret_file)
{
    auto_fd fd = openat(folder, name, O_RDWR | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    auto_free char *bytes = NULL;
    size_t n;
    if (fd < 0 || read_whole(fd, &bytes, &n) < 0)
        return 0;
    struct journal_file *f = file_new(j);
    int r = f ? parse(j, bytes, n, ret, f) : -ENOMEM;
    if (r == 0 && renameat(folder, name, j->folder, f->name) < 0)
        r = -errno;                                   /* somebody else was faster */
    if (r == 0 && ftruncate(fd, (off_t)f->bytes) < 0) /* what was half written goes, so that more can follow */
        r = -errno;
    if (r < 0) {
        journal_end(f);
        return 0;
    }
    f->fd = take_fd(&fd);
    f->there = true;
    *ret_file = f;
    return 1;
}

static int is_request(const struct dirent *e)
{
    return strncmp(e->d_name, "request-", 8) == 0;
}

static int is_left(const struct dirent *e)
{
    return strncmp(e->d_name, "journal-", 8) == 0;
}

static void free_names(struct dirent **names, int n)
{
    for (int i = 0; i < n; i++)
        free(names[i]);
    free(names);
}

static int claim_in(struct journal *j, int base, const char *name, struct journal_request *ret, struct journal_file **ret_file,
                    uint32_t *ret_others)
{
    struct dirent **names = NULL;
    auto_fd folder = openat(base, name, O_DIRECTORY | O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    int n = folder < 0 ? 0 : scandirat(folder, ".", &names, is_request, alphasort), r = 0;
    for (int i = 0; i < n && r == 0; i++) {
        r = try_file(j, folder, names[i]->d_name, ret, ret_file);
        *ret_others += r == 0;
    }
    free_names(names, n);
    unlinkat(base, name, AT_REMOVEDIR); /* when it is empty */
    return r;
}

int journal_claim(struct journal *j, const char *base, struct journal_request *ret, struct journal_file **ret_file,
                  uint32_t *ret_others, struct err *err)
{
    struct dirent **names = NULL;
    auto_fd fd = open(base, O_DIRECTORY | O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return err_set_errno(err, -errno, "journal: folder '%s'", base);
    int n = scandirat(fd, ".", &names, is_left, alphasort), r = 0;
    *ret_others = 0;
    for (int i = 0; i < n && r == 0; i++)
        r = claim_in(j, fd, names[i]->d_name, ret, ret_file, ret_others);
    free_names(names, n);
    return r;
}
