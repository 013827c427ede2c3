/* SPDX-License-Identifier: MIT
 * Owns an operator with its buffers. W is cut into tiles of the operator's n rows, the tokens
 * into groups of its m; tile after tile, and within a tile group after group. Two tiles of W and two results alternate, so that one
 * run is under way while the processor unpacks weights or takes over results. Never falls back: what the device says is the
 * caller's. */
#include "npu_worker/xrt_gemm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/pool.h"
#include "kernels/quant.h"
#include "kernels/quant_ops.h"
#include "kernels/repack.h"
#include "npu_worker/arena.h"
#include "proto/err.h"
#include "proto/util.h"

#define GROUPS_MAX (XRT_OPERATOR_BUFFERS - 4)

struct xrt_gemm {
    struct xrt_operator x;
    struct xrt_buffer *a[GROUPS_MAX], *b[2], *c[2];
    uint32_t m, k, n, n_groups;

    /* the tile that is being unpacked */
    const struct gemm_matrix *w;
    uint16_t *tile;
    uint32_t first_row;
};

static size_t groups(const struct manifest_operator *op, uint32_t n_tokens)
{
    uint32_t m = op->dims[MANIFEST_M];
    return (n_tokens + m - 1) / m;
}

static uint64_t buffer_bytes(const struct manifest_operator *op, uint32_t n_tokens)
{
    return groups(op, n_tokens) * xrt_operator_argument_bytes(op, MANIFEST_ARG_A) +
           2 * (xrt_operator_argument_bytes(op, MANIFEST_ARG_B) + xrt_operator_argument_bytes(op, MANIFEST_ARG_C));
}

int xrt_gemm_bytes(const struct manifest_operator *op, uint32_t n_tokens, uint64_t *ret, struct err *err)
{
    int r = xrt_operator_fixed_bytes(op, ret, err);
    *ret += buffer_bytes(op, n_tokens);
    return r;
}

/* Of a thread: 16 rows of floats, one row as it lies in a file. */
static size_t thread_bytes(const struct manifest_operator *op)
{
    size_t k = op->dims[MANIFEST_K];
    return util_round_up(REPACK_ROWS * k * sizeof(float) + k * sizeof(float), REPACK_ALIGN);
}

uint64_t xrt_gemm_scratch_bytes(const struct manifest_operator *op, uint32_t n_threads)
{
    return thread_bytes(op) * (uint64_t)n_threads;
}

int xrt_gemm_usable(const struct manifest_operator *op, struct err *err)
{
    int a = manifest_argument(op, MANIFEST_ARG_A), b = manifest_argument(op, MANIFEST_ARG_B),
        c = manifest_argument(op, MANIFEST_ARG_C);
    if (op->kind != MANIFEST_GEMM || a < 0 || b < 0 || c < 0)
        return err_set(err, -ENOTSUP, "operator of line %u of the manifest: expected a gemm", op->line);
    if (op->dims[MANIFEST_N] % REPACK_ROWS)
        return err_set(err, -ENOTSUP, "operator of line %u of the manifest: n is %u; expected a multiple of %d", op->line,
                       op->dims[MANIFEST_N], REPACK_ROWS);
    if (op->dtypes[a] == MANIFEST_BF16 && op->dtypes[b] == MANIFEST_BF16 &&
        (op->dtypes[c] == MANIFEST_BF16 || op->dtypes[c] == MANIFEST_F32))
        return 0;
    return err_set(err, -ENOTSUP, "operator of line %u of the manifest: expected bf16 for a and b, bf16 or f32 for c", op->line);
}

static int make_buffers(struct xrt_gemm *g, struct err *err)
{
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < g->n_groups; i++)
        r = xrt_operator_make_buffer(&g->x, MANIFEST_ARG_A, &g->a[i], err);
    for (int i = 0; r == 0 && i < 2; i++) {
        r = xrt_operator_make_buffer(&g->x, MANIFEST_ARG_B, &g->b[i], err);
        if (r == 0)
            r = xrt_operator_make_buffer(&g->x, MANIFEST_ARG_C, &g->c[i], err);
        struct xrt_buffer *const buffers[MANIFEST_ROLES] = {
            [MANIFEST_ARG_A] = g->a[0], [MANIFEST_ARG_B] = g->b[i], [MANIFEST_ARG_C] = g->c[i]};
        if (r == 0)
            r = xrt_operator_make_run(&g->x, i, buffers, err);
    }
    return r;
}

int xrt_gemm_open(const struct xrt_operator_options *o, struct xrt_gemm **ret, struct err *err)
{
    const struct manifest_operator *op = o->op;
    int r = xrt_gemm_usable(op, err);
    if (r == 0 && groups(op, o->n_tokens) > GROUPS_MAX)
        r = err_set(err, -ENOTSUP, "operator of line %u of the manifest takes %u rows; %u tokens need more than %u calls", op->line,
                    op->dims[MANIFEST_M], o->n_tokens, GROUPS_MAX);
    if (r < 0)
        return r;
    struct xrt_gemm *g = calloc(1, sizeof(*g));
    if (!g)
        return err_set(err, -ENOMEM, "NPU product: out of memory");
    g->m = op->dims[MANIFEST_M];
    g->k = op->dims[MANIFEST_K];
    g->n = op->dims[MANIFEST_N];
    g->n_groups = (uint32_t)groups(op, o->n_tokens);
    r = xrt_operator_open(&g->x, o, buffer_bytes(op, o->n_tokens), err);
    if (r == 0)
        r = make_buffers(g, err);
    if (r < 0) {
        xrt_gemm_close(g);
        return r;
    }
    *ret = g;
    return 0;
}

void xrt_gemm_close(struct xrt_gemm *g)
{
    if (!g)
        return;
    xrt_operator_close(&g->x);
    free(g);
}

/* ---- tokens to the device, results back ---- */

static int put_tokens(struct xrt_gemm *g, uint32_t group, const float *x, uint32_t n_tokens, struct err *err)
{
    size_t cols = g->w->n_cols;
    uint16_t *a = g->x.o.ops->map(g->a[group]);
    for (uint32_t i = 0; i < g->m; i++, a += g->k) {
        uint32_t t = group * g->m + i, n = t < n_tokens ? (uint32_t)cols : 0;
        if (n)
            quant_ops_best()->from_f32(QUANT_BF16, x + t * cols, a, n);
        memset(a + n, 0, (g->k - n) * sizeof(*a));
    }
    return xrt_operator_sync(&g->x, g->a[group], MANIFEST_ARG_A, XRT_DEVICE_TO, err);
}

static int take_results(struct xrt_gemm *g, int which, uint32_t first_row, uint32_t group, uint32_t n_tokens, float *y,
                        struct err *err)
{
    const struct manifest_operator *op = g->x.o.op;
    enum manifest_dtype type = op->dtypes[manifest_argument(op, MANIFEST_ARG_C)];
    int r = xrt_operator_wait(&g->x, which, err);
    if (r == 0)
        r = xrt_operator_sync(&g->x, g->c[which], MANIFEST_ARG_C, XRT_DEVICE_FROM, err);
    if (r < 0)
        return r;
    uint32_t rows = MIN(g->n, g->w->n_rows - first_row), tokens = MIN(g->m, n_tokens - group * g->m);
    const uint8_t *c = g->x.o.ops->map(g->c[which]);
    for (uint32_t i = 0; i < tokens; i++)
        quant_ops_best()->to_f32(type == MANIFEST_BF16 ? QUANT_BF16 : QUANT_F32, c + (size_t)i * g->n * manifest_dtype_bytes(type),
                                 y + (size_t)(group * g->m + i) * g->w->n_rows + first_row, rows);
    return 0;
}

/* ---- weights ---- */

/* Items: sixteen rows of the tile. */
static void unpack_rows(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct xrt_gemm *g = ctx;
    const struct gemm_matrix *w = g->w;
    const struct quant_ops *ops = quant_ops_best();
    size_t cols = w->n_cols, tile_bytes = repack_tile_bytes(w->type, cols);
    float *rows = (float *)(void *)((uint8_t *)g->x.o.scratch + (size_t)thread * thread_bytes(g->x.o.op));
    uint8_t *packed = (uint8_t *)(rows + REPACK_ROWS * cols);
    for (uint32_t i = begin; i < end; i++) {
        uint32_t first = g->first_row + i * REPACK_ROWS, n = first < w->n_rows ? MIN(w->n_rows - first, (uint32_t)REPACK_ROWS) : 0;
        const uint8_t *tile = (const uint8_t *)w->tiles + (size_t)(first / REPACK_ROWS) * tile_bytes;
        for (uint32_t j = 0; j < n; j++) {
            repack_extract_row(w->type, tile, j, cols, packed);
            ops->to_f32(w->type, packed, rows + j * cols, cols);
        }
        for (uint32_t j = 0; j < REPACK_ROWS && i * REPACK_ROWS + j < g->n; j++) {
            size_t row = i * REPACK_ROWS + j, have = j < n ? cols : 0;
            if (g->x.o.op->b_nk) {
                if (have)
                    ops->from_f32(QUANT_BF16, rows + j * cols, g->tile + row * g->k, have);
                memset(g->tile + row * g->k + have, 0, (g->k - have) * sizeof(*g->tile));
            } else {
                for (size_t c = 0; c < g->k; c++)
                    g->tile[c * g->n + row] = c < have ? quant_f32_to_bf16(rows[j * cols + c]) : 0;
            }
        }
    }
}

static int put_weights(struct xrt_gemm *g, struct xrt_buffer *tile, uint32_t first_row, struct err *err)
{
    g->tile = g->x.o.ops->map(tile);
    g->first_row = first_row;
    pool_run(g->x.o.pool, (g->n + REPACK_ROWS - 1) / REPACK_ROWS, 1, unpack_rows, g);
    return xrt_operator_sync(&g->x, tile, MANIFEST_ARG_B, XRT_DEVICE_TO, err);
}

static int start(struct xrt_gemm *g, int which, struct xrt_buffer *tile, uint32_t group, struct err *err)
{
    int r = xrt_operator_set(&g->x, which, MANIFEST_ARG_A, g->a[group], err);
    if (r == 0)
        r = xrt_operator_set(&g->x, which, MANIFEST_ARG_B, tile, err);
    return r < 0 ? r : xrt_operator_start(&g->x, which, err);
}

/* kept: tiles that are there already, or NULL */
static int multiply(struct xrt_gemm *g, const struct gemm_matrix *m, struct xrt_buffer *const *kept, const float *x,
                    uint32_t n_tokens, float *y, struct err *err)
{
    if (m->n_cols > g->k || n_tokens == 0 || n_tokens > g->x.o.n_tokens)
        return err_set(err, -EINVAL, "NPU product of %u tokens with rows of %u; expected 1 to %u, and at most %u", n_tokens,
                       m->n_cols, g->x.o.n_tokens, g->k);
    uint32_t n_groups = (n_tokens + g->m - 1) / g->m, n_tiles = (m->n_rows + g->n - 1) / g->n, step = 0, last_row = 0,
             last_group = 0;
    int r = 0;
    g->w = m;
    for (uint32_t i = 0; r == 0 && i < n_groups; i++)
        r = put_tokens(g, i, x, n_tokens, err);
    for (uint32_t tile = 0; r == 0 && tile < n_tiles; tile++) {
        if (!kept)
            r = put_weights(g, g->b[tile % 2], tile * g->n, err);
        for (uint32_t group = 0; r == 0 && group < n_groups; group++, step++) {
            r = start(g, (int)(step % 2), kept ? kept[tile] : g->b[tile % 2], group, err);
            if (r == 0 && step > 0)
                r = take_results(g, (int)((step - 1) % 2), last_row, last_group, n_tokens, y, err);
            last_row = tile * g->n;
            last_group = group;
        }
    }
    if (r == 0)
        r = take_results(g, (int)((step - 1) % 2), last_row, last_group, n_tokens, y, err);
    if (r < 0)
        xrt_operator_settle(&g->x);
    return r;
}

int xrt_gemm_multiply(struct xrt_gemm *g, const struct gemm_matrix *m, const float *x, uint32_t n_tokens, float *y, struct err *err)
{
    return multiply(g, m, NULL, x, n_tokens, y, err);
}

/* ---- weights that stay ---- */

struct xrt_weights {
    struct gemm_matrix m;
    uint32_t n_tiles, block;
    struct xrt_buffer *tiles[];
};

uint64_t xrt_gemm_kept_bytes(const struct manifest_operator *op, uint32_t n_rows)
{
    uint32_t n = op->dims[MANIFEST_N];
    return (uint64_t)((n_rows + n - 1) / n) * xrt_operator_argument_bytes(op, MANIFEST_ARG_B);
}

int xrt_gemm_keep(struct xrt_gemm *g, const struct gemm_matrix *m, struct xrt_weights **ret, struct err *err)
{
    uint32_t n_tiles = (m->n_rows + g->n - 1) / g->n;
    unsigned b = (unsigned)manifest_argument(g->x.o.op, MANIFEST_ARG_B);
    struct xrt_weights *w = calloc(1, sizeof(*w) + n_tiles * sizeof(*w->tiles));
    if (!w)
        return err_set(err, -ENOMEM, "weights on the NPU: out of memory");
    w->m = *m;
    w->n_tiles = n_tiles;
    w->block = OFFSETS_NONE;
    g->w = &w->m;
    int r = arena_reserve(g->x.o.arena, ARENA_TILES, xrt_gemm_kept_bytes(g->x.o.op, m->n_rows), &w->block, err);
    for (uint32_t i = 0; r == 0 && i < n_tiles; i++) {
        r = g->x.o.ops->make_buffer(g->x.kernel, b, manifest_bytes(g->x.o.op, b), &w->tiles[i], err);
        if (r == 0)
            r = put_weights(g, w->tiles[i], i * g->n, err);
    }
    if (r < 0) {
        xrt_gemm_free_kept(g, w);
        return r;
    }
    *ret = w;
    return 0;
}

void xrt_gemm_free_kept(struct xrt_gemm *g, struct xrt_weights *w)
{
    if (!w)
        return;
    for (uint32_t i = 0; i < w->n_tiles; i++)
        g->x.o.ops->free_buffer(w->tiles[i]);
    arena_give(g->x.o.arena, ARENA_TILES, w->block);
    free(w);
}

int xrt_gemm_multiply_kept(struct xrt_gemm *g, const struct xrt_weights *w, const float *x, uint32_t n_tokens, float *y,
                           struct err *err)
{
    return multiply(g, &w->m, w->tiles, x, n_tokens, y, err);
}
