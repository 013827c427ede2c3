/* SPDX-License-Identifier: MIT
 * Threads that fill segments from the model file. Owns them and a buffer for each; callers of fill_run wait. A thread takes the
 * next piece of the oldest segment that has one, reads it with O_DIRECT into its buffer and moves it into the segment, so that the
 * disk always has a request while processors repack. Checksums need a tensor's pieces in order: a thread whose piece comes too
 * early waits, on the first read of a tensor alone. */
#include "loader/fill.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "model/checksums.h"
#include "model/gguf.h"
#include "model/work_plan.h"
#include "proto/budget.h"
#include "proto/err.h"
#include "proto/io.h"
#include "proto/log.h"
#include "proto/trace.h"
#include "proto/util.h"

struct job {
    struct job *next;
    uint32_t layer;
    const struct segment_layout *layout;
    const struct gguf_tensor *sources[SEGMENT_MAX_TENSORS];
    void *dst;
    struct segment_cursor cursor;
    uint32_t taken, hashed, placed; /* pieces */
    bool all_taken;
    XXH3_state_t *hash; /* of the tensor whose turn it is; NULL: nothing is to be verified */
    int result;
    struct err err;
};

struct fill {
    const struct gguf *gguf;
    struct budget *budget;
    struct trace *trace; /* NULL: off */
    const void *sums;    /* NULL: not verified */
    uint8_t *seen;       /* [tensors]: verified */
    size_t piece_bytes;
    uint8_t *buffers; /* one for each thread */
    size_t buffers_bytes;
    pthread_t threads[WORK_PLAN_FILL_THREADS];
    uint32_t n_threads;
    pthread_mutex_t mutex; /* of all below */
    pthread_cond_t work, progress;
    struct job *jobs;
    uint32_t n_running; /* threads that have their buffer */
    bool stop;
    _Atomic uint64_t bytes_read;
};

_Static_assert(TRACE_FILL + WORK_PLAN_FILL_THREADS == TRACE_LANES, "a lane for each");

static uint32_t tensor_index(const struct fill *f, const struct gguf_tensor *t)
{
    return (uint32_t)(t - gguf_tensor_at(f->gguf, 0));
}

/* The oldest job that has a piece; one that fills what an older one is still filling waits. */
static struct job *next_piece(struct fill *f, struct segment_piece *ret, uint32_t *ret_number)
{
    for (struct job *j = f->jobs; j; j = j->next) {
        if (j->all_taken)
            continue;
        for (struct job *k = f->jobs; k != j; k = k->next) {
            if (k->dst == j->dst)
                return NULL;
        }
        segment_next(j->layout, j->sources, f->piece_bytes, &j->cursor, ret);
        *ret_number = j->taken++;
        j->all_taken = j->cursor.tensor == j->layout->n_tensors;
        return j;
    }
    return NULL;
}

static int changed(const struct fill *f, const struct gguf_tensor *t, uint64_t got, uint64_t want, struct err *err)
{
    return err_set(err, -EBADMSG,
                   "tensor '%s' is damaged: its checksum is %016" PRIx64 "; expected %016" PRIx64 " (file '%s', offset %" PRIu64
                   ", %" PRIu64 " bytes). Get the file again; if another program changed it on purpose, set 'checksums' to false",
                   t->name, got, want, gguf_file(f->gguf, t->file), t->offset, t->bytes);
}

/* In the order of pieces. */
static int hash_piece(struct fill *f, struct job *j, const struct segment_piece *p, uint32_t number, const void *raw,
                      struct err *err)
{
    uint32_t i = tensor_index(f, p->src);
    uint64_t got = 0, want = 0;
    if (!j->hash)
        return 0;
    pthread_mutex_lock(&f->mutex);
    while (j->hashed != number && j->result == 0)
        pthread_cond_wait(&f->progress, &f->mutex);
    bool go = j->result == 0, seen = f->seen[i];
    pthread_mutex_unlock(&f->mutex);
    if (!go) /* the job has failed meanwhile */
        return 0;
    if (!seen) { /* nobody else touches the hash before `hashed` goes on */
        if (p->first)
            XXH3_64bits_reset(j->hash);
        XXH3_64bits_update(j->hash, raw, p->bytes);
    }
    if (!seen && p->last) {
        got = XXH3_64bits_digest(j->hash);
        want = checksums_at(f->sums, i);
    }
    pthread_mutex_lock(&f->mutex);
    f->seen[i] |= p->last && got == want;
    j->hashed++;
    pthread_cond_broadcast(&f->progress);
    pthread_mutex_unlock(&f->mutex);
    return got == want ? 0 : changed(f, p->src, got, want, err);
}

static void record(struct fill *f, uint32_t thread, enum trace_kind kind, const struct job *j, uint64_t bytes, uint64_t start)
{
    trace_add(f->trace, (enum trace_lane)(TRACE_FILL + thread),
              &(struct trace_event){.kind = (uint8_t)kind,
                                    .start_ns = start,
                                    .end_ns = trace_now(f->trace),
                                    .id = bytes,
                                    .layer = (uint16_t)j->layer,
                                    .seq = (uint8_t)j->layout->kind});
}

static int do_piece(struct fill *f, struct job *j, const struct segment_piece *p, uint32_t number, uint8_t *buffer, uint32_t thread,
                    struct err *err)
{
    size_t skip;
    uint64_t start = trace_now(f->trace);
    int r = io_read_extent(gguf_io(f->gguf, p->src->file), p->src->offset + p->offset, p->bytes, buffer, &skip, err);
    if (r < 0)
        return err_wrap(err, r, "tensor '%s'", p->src->name);
    record(f, thread, TRACE_READ, j, p->bytes, start);
    atomic_fetch_add_explicit(&f->bytes_read, p->bytes, memory_order_relaxed);
    start = trace_now(f->trace);
    r = hash_piece(f, j, p, number, buffer + skip, err);
    if (j->hash)
        record(f, thread, TRACE_VERIFY, j, p->bytes, start);
    start = trace_now(f->trace);
    if (r == 0)
        segment_place(p, buffer + skip, j->dst);
    record(f, thread, TRACE_PLACE, j, p->bytes, start);
    return r;
}

static void *fill_main(void *arg)
{
    struct fill *f = arg;
    struct segment_piece p;
    uint32_t number;
    pthread_setname_np(pthread_self(), "fill");
    pthread_mutex_lock(&f->mutex);
    uint32_t thread = f->n_running++;
    uint8_t *buffer = f->buffers + (f->piece_bytes + 2 * IO_ALIGN) * thread;
    for (;;) {
        struct job *j = f->stop ? NULL : next_piece(f, &p, &number);
        if (f->stop)
            break;
        if (!j) {
            pthread_cond_wait(&f->work, &f->mutex);
            continue;
        }
        pthread_mutex_unlock(&f->mutex);
        struct err err = {0};
        int r = do_piece(f, j, &p, number, buffer, thread, &err);
        pthread_mutex_lock(&f->mutex);
        j->placed++;
        if (r < 0 && j->result == 0) {
            j->result = r;
            j->err = err;
            j->all_taken = true;
        }
        pthread_cond_broadcast(&f->progress);
    }
    pthread_mutex_unlock(&f->mutex);
    return NULL;
}

/* With the first segment, when the process has given up what it does not need: threads keep what they are born with. Under the
 * mutex. */
static int start_threads(struct fill *f, struct err *err)
{
    sigset_t all, old;
    int r = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (r == 0 && f->n_threads < WORK_PLAN_FILL_THREADS) {
        r = -pthread_create(&f->threads[f->n_threads], NULL, fill_main, f);
        if (r < 0)
            err_set_errno(err, r, "filling segments: thread %u", f->n_threads);
        else
            f->n_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return r;
}

int fill_open(const struct gguf *g, struct budget *budget, uint64_t least, bool verify, struct fill **ret, struct err *err)
{
    struct fill *f = calloc(1, sizeof(*f));
    const char *why = "";
    if (!f)
        return err_set(err, -ENOMEM, "filling segments: out of memory");
    f->gguf = g;
    f->budget = budget;
    f->piece_bytes = work_plan_piece_bytes(least);
    f->buffers_bytes = work_plan_fill_bytes(least);
    pthread_mutex_init(&f->mutex, NULL);
    pthread_cond_init(&f->work, NULL);
    pthread_cond_init(&f->progress, NULL);
    f->seen = calloc(MAX(gguf_n_tensors(g), 1u), 1);
    int r = f->seen ? 0 : err_set(err, -ENOMEM, "filling segments: out of memory");
    if (r == 0 && verify)
        r = checksums_find(g, &f->sums, &why, err);
    if (r == 0 && !f->sums)
        log_debug("loader", "tensors are not verified: the file %s", verify ? why : "is to be read as it is");
    if (r == 0)
        r = budget_alloc(budget, BUDGET_SCRATCH, f->buffers_bytes, (void **)&f->buffers, err);
    if (r < 0) {
        fill_close(f);
        return r;
    }
    *ret = f;
    return 0;
}

void fill_trace(struct fill *f, struct trace *t)
{
    f->trace = t;
}

void fill_close(struct fill *f)
{
    if (!f)
        return;
    pthread_mutex_lock(&f->mutex);
    f->stop = true;
    pthread_cond_broadcast(&f->work);
    pthread_mutex_unlock(&f->mutex);
    for (uint32_t i = 0; i < f->n_threads; i++)
        pthread_join(f->threads[i], NULL);
    budget_free(f->budget, BUDGET_SCRATCH, f->buffers, f->buffers_bytes);
    pthread_cond_destroy(&f->progress);
    pthread_cond_destroy(&f->work);
    pthread_mutex_destroy(&f->mutex);
    free(f->seen);
    free(f);
}

static bool to_verify(const struct fill *f, const struct job *j)
{
    for (uint32_t i = 0; f->sums && i < j->layout->n_tensors; i++) {
        if (!f->seen[tensor_index(f, j->sources[i])])
            return true;
    }
    return false;
}

int fill_run(struct fill *f, uint32_t layer, const struct segment_layout *l, void *dst, struct err *err)
{
    struct job j = {.layer = layer, .layout = l, .dst = dst}, **p;
    int r = segment_sources(f->gguf, layer, l, j.sources, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&f->mutex);
    r = start_threads(f, err);
    if (r == 0 && to_verify(f, &j) && !(j.hash = XXH3_createState()))
        r = err_set(err, -ENOMEM, "filling segments: out of memory");
    if (r < 0) {
        pthread_mutex_unlock(&f->mutex);
        return r;
    }
    for (p = &f->jobs; *p; p = &(*p)->next)
        ;
    *p = &j;
    pthread_cond_broadcast(&f->work);
    while (!j.all_taken || j.placed < j.taken)
        pthread_cond_wait(&f->progress, &f->mutex);
    for (p = &f->jobs; *p != &j; p = &(*p)->next)
        ;
    *p = j.next;
    pthread_cond_broadcast(&f->work); /* one that waits for dst */
    pthread_mutex_unlock(&f->mutex);
    XXH3_freeState(j.hash);
    if (j.result < 0)
        return err_set(err, j.result, "%s", j.err.text);
    return 0;
}

uint64_t fill_bytes_read(const struct fill *f)
{
    return atomic_load_explicit(&f->bytes_read, memory_order_relaxed);
}
