/* SPDX-License-Identifier: MIT
 * Owns an operator with two sets of buffers: q and o [heads][tokens][head_dim], k and v [kv_heads][keys][head_dim], and where in
 * the sequence they lie. Rows of a buffer that a group does not fill keep finite values of earlier ones, or zeroes; the operator
 * is told how many count. Never falls back: what the device says is the caller's. */
#include "npu_worker/xrt_attend.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/pool.h"
#include "kernels/quant.h"
#include "kernels/quant_ops.h"
#include "npu_worker/attn_backend.h"
#include "proto/err.h"
#include "proto/util.h"

enum { Q, K, V, POSITIONS, O, BUFFERS };
static const enum manifest_role roles[BUFFERS] = {MANIFEST_ARG_Q, MANIFEST_ARG_K, MANIFEST_ARG_V, MANIFEST_ARG_POSITIONS,
                                                  MANIFEST_ARG_O};

/* Queries of one run, and the keys from the first that any of them sees to the last query's own. */
struct group {
    const struct attn_queries *x;
    uint32_t at, n, first, n_keys; /* at: query in x */
    int which;
};

struct xrt_attend {
    struct xrt_operator x;
    struct attn_shape shape;
    const struct attn_ops *kernels;
    struct xrt_buffer *buffers[2][BUFFERS];
    struct group group; /* that the pool works on */
};

static enum manifest_dtype dtype(const struct manifest_operator *op, int buffer)
{
    return op->dtypes[manifest_argument(op, roles[buffer])];
}

int xrt_attend_usable(const struct manifest_operator *op, struct err *err)
{
    uint32_t window = op->dims[MANIFEST_WINDOW], tokens = op->dims[MANIFEST_TOKENS], keys = op->dims[MANIFEST_KEYS];
    if (op->kind != MANIFEST_ATTENTION)
        return err_set(err, -ENOTSUP, "operator of line %u of the manifest: expected an attention", op->line);
    if (manifest_argument(op, MANIFEST_ARG_POSITIONS) < 0)
        return err_set(err, -ENOTSUP,
                       "operator of line %u of the manifest takes no positions: it cannot be told where in a sequence it is",
                       op->line);
    if (window && keys < (uint64_t)window + tokens - 1)
        return err_set(err, -ENOTSUP,
                       "operator of line %u of the manifest: %u tokens with a window of %u see %u keys; it has room for %u",
                       op->line, tokens, window, window + tokens - 1, keys);
    if (dtype(op, Q) == MANIFEST_BF16 && dtype(op, K) == MANIFEST_BF16 && dtype(op, V) == MANIFEST_BF16 &&
        dtype(op, O) == MANIFEST_BF16 && dtype(op, POSITIONS) == MANIFEST_I32)
        return 0;
    return err_set(err, -ENOTSUP, "operator of line %u of the manifest: expected bf16 for q, k, v and o, i32 for positions",
                   op->line);
}

static uint64_t buffer_bytes(const struct manifest_operator *op)
{
    uint64_t bytes = 0;
    for (int i = 0; i < BUFFERS; i++)
        bytes += 2 * xrt_operator_argument_bytes(op, roles[i]);
    return bytes;
}

int xrt_attend_bytes(const struct manifest_operator *op, uint64_t *ret, struct err *err)
{
    int r = xrt_operator_fixed_bytes(op, ret, err);
    *ret += buffer_bytes(op);
    return r;
}

/* Of a thread: K and V of a page and head, and K turned. */
static size_t thread_bytes(const struct manifest_operator *op)
{
    return (size_t)3 * ATTN_PAGE * op->dims[MANIFEST_HEAD_DIM] * sizeof(float);
}

uint64_t xrt_attend_scratch_bytes(const struct manifest_operator *op, uint32_t n_threads)
{
    return thread_bytes(op) * (uint64_t)n_threads;
}

static int make_buffers(struct xrt_attend *a, struct err *err)
{
    int r = 0;
    for (int which = 0; r == 0 && which < 2; which++) {
        struct xrt_buffer *arguments[MANIFEST_ROLES] = {NULL}, **b = a->buffers[which];
        for (int i = 0; r == 0 && i < BUFFERS; i++) {
            r = xrt_operator_make_buffer(&a->x, roles[i], &b[i], err);
            if (r < 0)
                break;
            memset(a->x.o.ops->map(b[i]), 0, a->x.o.ops->size(b[i]));
            arguments[roles[i]] = b[i];
        }
        if (r == 0)
            r = xrt_operator_make_run(&a->x, which, arguments, err);
    }
    return r;
}

int xrt_attend_open(const struct xrt_operator_options *o, const struct attn_shape *s, const struct attn_ops *kernels,
                    struct xrt_attend **ret, struct err *err)
{
    int r = xrt_attend_usable(o->op, err);
    if (r < 0)
        return r;
    struct xrt_attend *a = calloc(1, sizeof(*a));
    if (!a)
        return err_set(err, -ENOMEM, "attention on the NPU: out of memory");
    a->shape = *s;
    a->kernels = kernels;
    r = xrt_operator_open(&a->x, o, buffer_bytes(o->op), err);
    if (r == 0)
        r = make_buffers(a, err);
    if (r < 0) {
        xrt_attend_close(a);
        return r;
    }
    *ret = a;
    return 0;
}

void xrt_attend_close(struct xrt_attend *a)
{
    if (!a)
        return;
    xrt_operator_close(&a->x);
    free(a);
}

bool xrt_attend_fits(const struct manifest_operator *op, uint32_t pos, uint32_t n)
{
    return op->dims[MANIFEST_WINDOW] || (uint64_t)pos + n <= op->dims[MANIFEST_KEYS];
}

/* ---- to the device and back ---- */

static size_t width(const struct xrt_attend *a)
{
    return (size_t)a->shape.n_heads * a->shape.head_dim;
}

static void *map(const struct xrt_attend *a, int buffer)
{
    return a->x.o.ops->map(a->buffers[a->group.which][buffer]);
}

/* Items: heads. */
static void put_queries(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    const struct xrt_attend *a = ctx;
    const struct group *g = &a->group;
    size_t d = a->shape.head_dim, tokens = a->x.o.op->dims[MANIFEST_TOKENS];
    uint16_t *q = map(a, Q);
    (void)thread;
    for (uint32_t h = begin; h < end; h++) {
        for (uint32_t i = 0; i < g->n; i++)
            quant_ops_best()->from_f32(QUANT_BF16, g->x->q + (g->at + i) * width(a) + h * d, q + (h * tokens + i) * d, d);
    }
}

/* Items: (KV head, page). */
static void put_keys(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    const struct xrt_attend *a = ctx;
    const struct group *g = &a->group;
    size_t d = a->shape.head_dim, keys = a->x.o.op->dims[MANIFEST_KEYS];
    uint32_t last = g->first + g->n_keys, page0 = g->first / ATTN_PAGE, n_pages = (last - 1) / ATTN_PAGE - page0 + 1;
    float *wide = (float *)(void *)((uint8_t *)a->x.o.scratch + (size_t)thread * thread_bytes(a->x.o.op));
    float *turned = wide + 2 * ATTN_PAGE * d;
    uint16_t *k = map(a, K), *v = map(a, V);
    for (uint32_t item = begin; item < end; item++) {
        uint32_t head = item / n_pages, page = page0 + item % n_pages, base = page * ATTN_PAGE;
        uint32_t lo = MAX(g->first, base) - base, n = MIN(last, base + ATTN_PAGE) - base - lo;
        size_t to = (head * keys + (base + lo - g->first)) * d;
        a->kernels->load(&a->shape, g->x->pages[page], head, wide);
        for (uint32_t i = 0; i < n; i++) {
            for (size_t x = 0; x < d; x++)
                turned[i * d + x] = wide[x * ATTN_PAGE + lo + i];
        }
        quant_ops_best()->from_f32(QUANT_BF16, turned, k + to, n * d);
        quant_ops_best()->from_f32(QUANT_BF16, wide + (ATTN_PAGE + lo) * d, v + to, n * d);
    }
}

/* All of K or V at once; of a buffer that is mostly unused, what each head has in it. */
static int sync_keys(struct xrt_attend *a, struct xrt_buffer *b, enum manifest_role role, struct err *err)
{
    size_t keys = a->x.o.op->dims[MANIFEST_KEYS], row = a->shape.head_dim * sizeof(uint16_t);
    int r = 0;
    if (a->group.n_keys > keys / 2)
        return xrt_operator_sync(&a->x, b, role, XRT_DEVICE_TO, err);
    for (uint32_t h = 0; r == 0 && h < a->shape.n_kv_heads; h++)
        r = xrt_operator_sync_part(&a->x, b, XRT_DEVICE_TO, h * keys * row, a->group.n_keys * row, err);
    return r;
}

static int put(struct xrt_attend *a, struct err *err)
{
    const struct group *g = &a->group;
    uint32_t n_pages = (g->first + g->n_keys - 1) / ATTN_PAGE - g->first / ATTN_PAGE + 1;
    const int32_t at[] = {(int32_t)(g->x->pos + g->at), (int32_t)g->first, (int32_t)g->n, (int32_t)g->n_keys};
    memcpy(map(a, POSITIONS), at, sizeof(at));
    pool_run(a->x.o.pool, a->shape.n_heads, 1, put_queries, a);
    pool_run(a->x.o.pool, a->shape.n_kv_heads * n_pages, 1, put_keys, a);
    struct xrt_buffer *const *b = a->buffers[g->which];
    int r = xrt_operator_sync(&a->x, b[Q], MANIFEST_ARG_Q, XRT_DEVICE_TO, err);
    if (r == 0)
        r = sync_keys(a, b[K], MANIFEST_ARG_K, err);
    if (r == 0)
        r = sync_keys(a, b[V], MANIFEST_ARG_V, err);
    return r < 0 ? r : xrt_operator_sync(&a->x, b[POSITIONS], MANIFEST_ARG_POSITIONS, XRT_DEVICE_TO, err);
}

/* Items: heads. */
static void take_heads(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    const struct xrt_attend *a = ctx;
    const struct group *g = &a->group;
    size_t d = a->shape.head_dim, tokens = a->x.o.op->dims[MANIFEST_TOKENS];
    const uint16_t *o = map(a, O);
    (void)thread;
    for (uint32_t h = begin; h < end; h++) {
        for (uint32_t i = 0; i < g->n; i++)
            quant_ops_best()->to_f32(QUANT_BF16, o + (h * tokens + i) * d, g->x->out + (g->at + i) * width(a) + h * d, d);
    }
}

static int take(struct xrt_attend *a, const struct group *g, struct err *err)
{
    int r = xrt_operator_wait(&a->x, g->which, err);
    if (r == 0)
        r = xrt_operator_sync(&a->x, a->buffers[g->which][O], MANIFEST_ARG_O, XRT_DEVICE_FROM, err);
    if (r < 0)
        return r;
    a->group = *g;
    pool_run(a->x.o.pool, a->shape.n_heads, 1, take_heads, a);
    return 0;
}

static struct group group_at(const struct xrt_attend *a, const struct attn_queries *x, uint32_t at, int which)
{
    uint32_t window = a->shape.window, pos = x->pos + at, n = MIN(a->x.o.op->dims[MANIFEST_TOKENS], x->n - at);
    uint32_t first = window && pos + 1 > window ? pos + 1 - window : 0;
    return (struct group){.x = x, .at = at, .n = n, .first = first, .n_keys = pos + n - first, .which = which};
}

int xrt_attend_run(struct xrt_attend *a, const struct attn_queries *x, struct err *err)
{
    struct group before = {0};
    int r = 0;
    if (!xrt_attend_fits(a->x.o.op, x->pos, x->n) || x->n == 0)
        return err_set(err, -EINVAL, "attention on the NPU: %u queries from position %u on; the operator has room for %u keys",
                       x->n, x->pos, a->x.o.op->dims[MANIFEST_KEYS]);
    for (uint32_t at = 0; r == 0 && at < x->n; at += before.n) {
        struct group g = group_at(a, x, at, before.n ? 1 - before.which : 0);
        a->group = g;
        r = put(a, err);
        if (r == 0)
            r = xrt_operator_start(&a->x, g.which, err);
        if (r == 0 && before.n)
            r = take(a, &before, err);
        before = g;
    }
    if (r == 0)
        r = take(a, &before, err);
    if (r < 0)
        xrt_operator_settle(&a->x);
    return r;
}
