/* SPDX-License-Identifier: MIT
 * Owns the memory and the threads of one run: readers, converting threads, and the caller, who feeds the sink. One mutex guards
 * the order of tasks: it is taken a few times for each block of a megabyte or more, never for a row. A task is some rows of one
 * piece; it gets its part of the window before its input is read, so that tasks finish in any order and leave in theirs.
 * Nobody waits for a later task: the window always has room for the first unfinished one, hence no deadlock. */
#include "quantizer/pipeline.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels/quant.h"
#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"

#define MAX_TASKS 1024u
#define N_READERS 2
#define MAX_CHUNK (4u << 20)
#define MAX_BLOCK (4u << 20)
#define MIN_BLOCK (64u << 10)
#define COPY (256u << 10) /* bytes of metadata at once */
#define STACK (256u << 10)
#define POLL_NS 100000000 /* between looks at the stop flag */

enum task_state { TASK_FREE, TASK_CLAIMED, TASK_READY, TASK_DONE };

struct task {
    enum task_state state;
    const struct pipeline_piece *piece;
    uint64_t row, n_rows;
    uint64_t begin, end; /* in the stream */
    uint8_t *block;      /* NULL when nothing was read */
    const uint8_t *src;
};

/* Where the next task begins. */
struct cursor {
    uint32_t piece;
    uint64_t row;
};

struct pipeline {
    const struct pipeline_options *o;
    uint8_t *memory, *window;
    uint8_t *free_blocks[PIPELINE_MAX_THREADS * 2 + 8];
    unsigned n_free;
    pthread_mutex_t lock;
    pthread_cond_t room, ready, done; /* for readers, converting threads, the caller */
    struct task tasks[MAX_TASKS];
    uint64_t claimed, taken, finished; /* tasks: given to a reader, given to a thread, done without a gap before */
    struct cursor next;
    bool all_claimed, stopped;
    uint64_t front, written; /* of the stream: converted without a gap; given to the sink */
    uint64_t again;          /* bytes before the beginning that the first task makes again: they need room too */
    uint64_t failed_task;    /* tasks from here on are dropped; UINT64_MAX: none failed */
    int code;
    struct err error;
    struct pipeline_stats stats;
};

/* ---- sizes ---- */

static uint64_t rows_per_block(const struct pipeline_piece *p, size_t block)
{
    return p->bytes ? MIN(block, COPY) : MAX(block / MAX(p->rows.src_row, 1u), 1u);
}

/* The largest part of the window that one task takes, and the longest row. */
static void extremes(const struct pipeline_piece *pieces, uint32_t n, size_t block, size_t *ret_out, size_t *ret_scratch)
{
    *ret_out = *ret_scratch = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct pipeline_piece *p = &pieces[i];
        uint64_t rows = MIN(rows_per_block(p, block), p->n_rows), row = p->bytes ? 1 : p->rows.dst_row;
        uint64_t padding = p->end - p->begin - p->n_rows * row;
        *ret_out = MAX(*ret_out, (size_t)(rows * row + padding));
        if (!p->bytes)
            *ret_scratch = MAX(*ret_scratch, rows_scratch(p->rows.cols) * sizeof(float) + p->rows.dst_row);
    }
    *ret_scratch = util_round_up(*ret_scratch, PIPELINE_PAGE);
}

static size_t longest_row(const struct pipeline_piece *pieces, uint32_t n)
{
    size_t row = 0;
    for (uint32_t i = 0; i < n; i++)
        row = MAX(row, pieces[i].bytes ? 0 : pieces[i].rows.src_row);
    return row;
}

/* Input of the largest piece: a larger block is of no use. */
static size_t largest_piece(const struct pipeline_piece *pieces, uint32_t n)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < n; i++)
        bytes = MAX(bytes, pieces[i].n_rows * (pieces[i].bytes ? 1 : pieces[i].rows.src_row));
    return (size_t)util_round_up(MIN(bytes, MAX_BLOCK), PIPELINE_PAGE);
}

static void size_for(const struct pipeline_piece *pieces, uint32_t n, unsigned n_threads, size_t block, unsigned spare,
                     struct pipeline_size *ret)
{
    size_t out;
    *ret = (struct pipeline_size){.block = block, .n_threads = n_threads, .n_blocks = n_threads + spare};
    extremes(pieces, n, block, &out, &ret->scratch);
    ret->chunk = MIN(MAX_CHUNK, util_round_up(block, PIPELINE_PAGE));
    ret->window = util_round_up(ret->chunk + (ret->n_blocks + 1) * out, PIPELINE_PAGE) + 2 * (size_t)PIPELINE_PAGE;
    ret->total =
        ret->n_blocks * (util_round_up(block, PIPELINE_PAGE) + 2 * (size_t)PIPELINE_PAGE) + ret->window + n_threads * ret->scratch;
}

int pipeline_fit(const struct pipeline_piece *pieces, uint32_t n, unsigned n_threads, uint64_t limit, struct pipeline_size *ret)
{
    size_t smallest = MAX(MIN_BLOCK, longest_row(pieces, n));
    for (size_t block = MAX(largest_piece(pieces, n), smallest);; block = MAX(block / 2, smallest)) {
        size_for(pieces, n, n_threads, block, N_READERS + 2, ret);
        if (ret->total <= limit)
            return 0;
        if (block == smallest)
            break;
    }
    size_for(pieces, n, n_threads, smallest, 1, ret);
    return ret->total <= limit ? 0 : -ENOSPC;
}

/* ---- order of tasks; all with the lock held ---- */

static void fail(struct pipeline *p, uint64_t task, int code, const struct err *err)
{
    if (task < p->failed_task) {
        p->failed_task = task;
        p->code = code;
        p->error = *err;
    }
    pthread_cond_broadcast(&p->room);
    pthread_cond_broadcast(&p->ready);
    pthread_cond_broadcast(&p->done);
}

/* The next task, if there is one and it finds room. */
static bool can_claim(const struct pipeline *p)
{
    const struct pipeline_piece *piece = &p->o->pieces[p->next.piece];
    uint64_t row_bytes = piece->bytes ? 1 : piece->rows.dst_row;
    uint64_t n = MIN(rows_per_block(piece, p->o->size.block), piece->n_rows - p->next.row), row = p->next.row + n;
    uint64_t end = row == piece->n_rows ? piece->end : piece->begin + row * row_bytes;
    return p->claimed - p->finished < MAX_TASKS && end + p->again <= p->written + p->o->size.window &&
           (piece->bytes || p->n_free > 0);
}

static struct task *claim(struct pipeline *p)
{
    const struct pipeline_piece *piece = &p->o->pieces[p->next.piece];
    uint64_t row_bytes = piece->bytes ? 1 : piece->rows.dst_row;
    struct task *t = &p->tasks[p->claimed++ % MAX_TASKS];
    uint64_t n = MIN(rows_per_block(piece, p->o->size.block), piece->n_rows - p->next.row);
    *t = (struct task){.state = TASK_CLAIMED, .piece = piece, .row = p->next.row, .n_rows = n};
    t->begin = piece->begin + t->row * row_bytes;
    p->next.row += n;
    t->end = t->begin + n * row_bytes;
    if (p->next.row == piece->n_rows) {
        t->end = piece->end;
        p->next = (struct cursor){.piece = p->next.piece + 1};
        p->all_claimed = p->next.piece == p->o->n_pieces;
    }
    if (!piece->bytes && n)
        t->block = p->free_blocks[--p->n_free];
    return t;
}

static void finish(struct pipeline *p, struct task *t)
{
    t->state = TASK_DONE;
    if (t->block) {
        p->free_blocks[p->n_free++] = t->block;
        pthread_cond_signal(&p->room);
    }
    while (p->finished < p->taken && p->tasks[p->finished % MAX_TASKS].state == TASK_DONE) {
        p->front = p->tasks[p->finished % MAX_TASKS].end;
        p->finished++;
    }
    pthread_cond_signal(&p->done);
}

/* ---- readers ---- */

static int read_task(struct task *t, struct err *err)
{
    const struct pipeline_piece *p = t->piece;
    size_t skip = 0;
    if (!t->block)
        return 0;
    int r =
        io_read_extent(p->file, p->offset + t->row * p->rows.src_row, (size_t)t->n_rows * p->rows.src_row, t->block, &skip, err);
    t->src = t->block + skip;
    return r < 0 ? err_wrap(err, r, "tensor '%s'", p->name) : 0;
}

static void *reader_main(void *arg)
{
    struct pipeline *p = arg;
    struct err err = {0};
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->stopped && p->failed_task == UINT64_MAX && !p->all_claimed && !can_claim(p))
            pthread_cond_wait(&p->room, &p->lock);
        if (p->stopped || p->failed_task != UINT64_MAX || p->all_claimed)
            break;
        uint64_t number = p->claimed;
        struct task *t = claim(p);
        pthread_mutex_unlock(&p->lock);
        uint64_t begin = util_now_ns();
        int r = read_task(t, &err);
        uint64_t end = util_now_ns();
        pthread_mutex_lock(&p->lock);
        p->stats.read_s += (double)(end - begin) / 1e9;
        p->stats.bytes_read += t->block ? t->n_rows * t->piece->rows.src_row : 0;
        if (r < 0)
            fail(p, number, r, &err);
        t->state = TASK_READY;
        pthread_cond_broadcast(&p->ready);
    }
    pthread_cond_broadcast(&p->room);
    pthread_cond_broadcast(&p->ready);
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* ---- converting threads ---- */

static void window_put(struct pipeline *p, uint64_t at, const void *data, size_t n)
{
    size_t pos = (size_t)(at % p->o->size.window), first = MIN(n, p->o->size.window - pos);
    if (data) {
        memcpy(p->window + pos, data, first);
        memcpy(p->window, (const uint8_t *)data + first, n - first);
    } else {
        memset(p->window + pos, 0, first);
        memset(p->window, 0, n - first);
    }
}

static int bad_number(const struct task *t, uint64_t row, float *scratch, struct err *err)
{
    const struct rows *r = &t->piece->rows;
    float x;
    size_t column = rows_find_bad(r, t->src + row * r->src_row, scratch, &x);
    return err_set(err, -EDOM,
                   "tensor '%s', row %" PRIu64 ", column %zu is %g; expected a finite number that type %s can hold (is "
                   "the checkpoint whole? bf16 and f32 hold what is finite)",
                   t->piece->name, t->row + row, column, (double)x, quant_name(r->dst_type));
}

static int convert_task(struct pipeline *p, const struct task *t, float *scratch, struct err *err)
{
    const struct pipeline_piece *piece = t->piece;
    const struct rows *r = &piece->rows;
    size_t row_bytes = piece->bytes ? 1 : r->dst_row, window = p->o->size.window;
    uint8_t *split_row = (uint8_t *)(scratch + (piece->bytes ? 0 : rows_scratch(r->cols)));
    if (piece->bytes)
        window_put(p, t->begin, piece->bytes + t->row, (size_t)t->n_rows);
    for (uint64_t i = 0; !piece->bytes && i < t->n_rows; i++) {
        uint64_t at = t->begin + i * row_bytes;
        size_t pos = (size_t)(at % window);
        uint8_t *dst = pos + row_bytes <= window ? p->window + pos : split_row;
        if (!rows_convert(r, t->src + i * r->src_row, dst, scratch))
            return bad_number(t, i, scratch, err);
        if (dst == split_row)
            window_put(p, at, split_row, row_bytes);
    }
    uint64_t used = t->begin + t->n_rows * row_bytes;
    if (used < t->end)
        window_put(p, used, NULL, (size_t)(t->end - used));
    return 0;
}

struct worker {
    struct pipeline *p;
    float *scratch;
    pthread_t thread;
};

static bool worker_done(const struct pipeline *p)
{
    return p->stopped || p->taken >= p->failed_task || (p->all_claimed && p->taken == p->claimed);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct pipeline *p = w->p;
    struct err err = {0};
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!worker_done(p) && (p->taken == p->claimed || p->tasks[p->taken % MAX_TASKS].state != TASK_READY)) {
            if (p->failed_task != UINT64_MAX && p->taken == p->claimed)
                break;
            pthread_cond_wait(&p->ready, &p->lock);
        }
        if (worker_done(p) || p->taken == p->claimed)
            break;
        uint64_t number = p->taken;
        struct task *t = &p->tasks[p->taken++ % MAX_TASKS];
        pthread_mutex_unlock(&p->lock);
        uint64_t begin = util_now_ns();
        int r = convert_task(p, t, w->scratch, &err);
        uint64_t end = util_now_ns();
        pthread_mutex_lock(&p->lock);
        p->stats.convert_s += (double)(end - begin) / 1e9;
        if (r < 0)
            fail(p, number, r, &err);
        else
            finish(p, t);
    }
    pthread_cond_broadcast(&p->ready);
    pthread_cond_signal(&p->done);
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* ---- the caller ---- */

static void poll_wait(struct pipeline *p)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += POLL_NS;
    if (t.tv_nsec >= 1000000000) {
        t.tv_nsec -= 1000000000;
        t.tv_sec++;
    }
    pthread_cond_timedwait(&p->done, &p->lock, &t);
}

static bool interrupted(const struct pipeline *p)
{
    return p->o->stop && *p->o->stop;
}

/* What may go to the sink, in whole pages. */
static size_t writable(const struct pipeline *p)
{
    uint64_t front = p->front / PIPELINE_PAGE * PIPELINE_PAGE, n = front > p->written ? front - p->written : 0;
    return (size_t)MIN(MIN(n, p->o->size.chunk), p->o->size.window - p->written % p->o->size.window);
}

static const char *name_at(const struct pipeline *p, uint64_t at, uint32_t *piece)
{
    while (*piece + 1 < p->o->n_pieces && p->o->pieces[*piece].end < at)
        ++*piece;
    return p->o->pieces[*piece].name;
}

static int sink_some(struct pipeline *p, size_t n, uint32_t *piece, struct err *err)
{
    uint64_t begin = util_now_ns();
    int r = p->o->sink(p->o->ctx, p->written, p->window + p->written % p->o->size.window, n, err);
    p->stats.sink_s += (double)(util_now_ns() - begin) / 1e9;
    if (r == 0 && p->o->progress)
        p->o->progress(p->o->ctx, p->written + n, name_at(p, p->written + n, piece));
    return r;
}

static int feed_sink(struct pipeline *p, struct err *err)
{
    uint64_t end = p->o->pieces[p->o->n_pieces - 1].end;
    uint32_t piece = 0;
    int r = 0;
    pthread_mutex_lock(&p->lock);
    while (r == 0 && p->written < end && p->failed_task == UINT64_MAX && !p->stopped) {
        if (interrupted(p)) {
            p->stopped = true;
            break;
        }
        size_t n = writable(p), wrap = p->o->size.window - (size_t)(p->written % p->o->size.window);
        if (n == 0 || (n < p->o->size.chunk && n < wrap && p->front < end)) {
            poll_wait(p);
            continue;
        }
        pthread_mutex_unlock(&p->lock);
        r = sink_some(p, n, &piece, err);
        pthread_mutex_lock(&p->lock);
        if (r == 0)
            p->written += n;
        pthread_cond_broadcast(&p->room);
    }
    p->stopped = p->stopped || r < 0;
    pthread_cond_broadcast(&p->room);
    pthread_cond_broadcast(&p->ready);
    pthread_mutex_unlock(&p->lock);
    return r;
}

/* After the threads have ended. */
static int feed_rest(struct pipeline *p, struct err *err)
{
    uint32_t piece = 0;
    int r = 0;
    for (size_t n = writable(p); r == 0 && n > 0; n = writable(p)) {
        r = sink_some(p, n, &piece, err);
        if (r == 0)
            p->written += n;
    }
    return r;
}

/* ---- beginning and end ---- */

/* The task that holds byte `from` of the stream begins at a row; the bytes before `from` are made again and dropped. */
static void begin_at(struct pipeline *p, uint64_t from)
{
    const struct pipeline_options *o = p->o;
    while (p->next.piece + 1 < o->n_pieces && o->pieces[p->next.piece].end <= from)
        p->next.piece++;
    const struct pipeline_piece *piece = &o->pieces[p->next.piece];
    uint64_t row_bytes = piece->bytes ? 1 : piece->rows.dst_row;
    p->next.row = from > piece->begin ? MIN((from - piece->begin) / row_bytes, piece->n_rows) : 0;
    p->again = from > piece->begin ? from - (piece->begin + p->next.row * row_bytes) : 0;
    p->written = from;
    p->front = from;
}

static int make_memory(struct pipeline *p, struct err *err)
{
    const struct pipeline_size *s = &p->o->size;
    void *m = mmap(NULL, s->total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (m == MAP_FAILED)
        return err_set_errno(err, -ENOMEM, "cannot get %zu bytes for buffers", s->total);
    p->memory = m;
    p->window = p->memory;
    size_t stride = util_round_up(s->block, PIPELINE_PAGE) + 2 * (size_t)PIPELINE_PAGE;
    for (unsigned i = 0; i < s->n_blocks; i++)
        p->free_blocks[p->n_free++] = p->memory + s->window + i * stride;
    return 0;
}

static void init_locks(struct pipeline *p)
{
    pthread_condattr_t monotonic;
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&p->room, NULL);
    pthread_cond_init(&p->ready, NULL);
    pthread_cond_init(&p->done, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

static void release(struct pipeline *p)
{
    if (p->memory)
        munmap(p->memory, p->o->size.total);
    pthread_cond_destroy(&p->room);
    pthread_cond_destroy(&p->ready);
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static int run_threads(struct pipeline *p, struct err *err)
{
    struct worker workers[PIPELINE_MAX_THREADS];
    pthread_t readers[N_READERS];
    pthread_attr_t attr;
    const struct pipeline_size *s = &p->o->size;
    unsigned n_workers = 0, n_readers = 0;
    uint8_t *scratch = p->memory + s->total - s->n_threads * s->scratch;
    sigset_t all, old;
    int e = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old); /* signals are the caller's */
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK);
    while (e == 0 && n_workers < s->n_threads) {
        struct worker *w = &workers[n_workers];
        *w = (struct worker){.p = p, .scratch = (float *)(void *)(scratch + n_workers * s->scratch)};
        e = pthread_create(&w->thread, &attr, worker_main, w);
        n_workers += e == 0;
    }
    while (e == 0 && n_readers < N_READERS) {
        e = pthread_create(&readers[n_readers], &attr, reader_main, p);
        n_readers += e == 0;
    }
    pthread_attr_destroy(&attr);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    int r = 0;
    if (e) {
        pthread_mutex_lock(&p->lock);
        p->stopped = true;
        pthread_cond_broadcast(&p->room);
        pthread_cond_broadcast(&p->ready);
        pthread_mutex_unlock(&p->lock);
        r = err_set_errno(err, -e, "cannot make %u threads", s->n_threads + N_READERS);
    } else {
        r = feed_sink(p, err);
    }
    for (unsigned i = 0; i < n_readers; i++)
        pthread_join(readers[i], NULL);
    for (unsigned i = 0; i < n_workers; i++)
        pthread_join(workers[i].thread, NULL);
    return r;
}

int pipeline_run(const struct pipeline_options *o, struct pipeline_stats *ret, struct err *err)
{
    struct pipeline *p = calloc(1, sizeof(*p));
    if (!p)
        return err_set(err, -ENOMEM, "out of memory");
    p->o = o;
    p->failed_task = UINT64_MAX;
    init_locks(p);
    begin_at(p, o->from);
    p->all_claimed = o->from >= o->pieces[o->n_pieces - 1].end;
    int r = make_memory(p, err);
    if (r == 0)
        r = run_threads(p, err);
    if (r == 0)
        r = feed_rest(p, err);
    if (r == 0 && p->failed_task != UINT64_MAX) {
        r = p->code;
        if (err)
            *err = p->error;
    } else if (r == 0 && p->written < o->pieces[o->n_pieces - 1].end) {
        r = err_set(err, -ECANCELED, "interrupted");
    }
    *ret = p->stats;
    release(p);
    return r;
}
