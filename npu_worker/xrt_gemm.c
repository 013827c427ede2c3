/* SPDX-License-Identifier: MIT
 * Owns the operator's instructions, its buffers and two prepared runs. W is cut into tiles of the operator's n rows, the tokens
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
#include "proto/trace.h"
#include "proto/util.h"

#define GROUPS_MAX 64

struct xrt_gemm {
    struct xrt_gemm_options o;
    struct xrt_kernel *kernel;
    struct xrt_buffer *instructions, *a[GROUPS_MAX], *b[2], *c[2];
    struct xrt_run *runs[2];
    uint64_t started_ns[2], ended_ns; /* for traces: of each run, and of the last that ended */
    uint32_t tiles_block, instructions_block;
    unsigned arg_a, arg_b, arg_c;
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

static uint64_t argument_bytes(const struct manifest_operator *op, enum manifest_role role)
{
    return util_round_up(manifest_bytes(op, (unsigned)manifest_argument(op, role)), XRT_DEVICE_ALIGN);
}

static uint64_t tiles_bytes(const struct manifest_operator *op, uint32_t n_tokens)
{
    return groups(op, n_tokens) * argument_bytes(op, MANIFEST_ARG_A) + 2 * argument_bytes(op, MANIFEST_ARG_B) +
           2 * argument_bytes(op, MANIFEST_ARG_C) + XRT_DEVICE_ALIGN; /* what stands for arguments that it does not use */
}

int xrt_gemm_bytes(const struct manifest_operator *op, uint32_t n_tokens, uint64_t *ret, struct err *err)
{
    uint32_t *words = NULL;
    size_t n = 0;
    int r = manifest_instructions(op, &words, &n, err);
    free(words);
    *ret = tiles_bytes(op, n_tokens) + util_round_up(n * sizeof(*words), XRT_DEVICE_ALIGN);
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

static int make_instructions(struct xrt_gemm *g, struct err *err)
{
    uint32_t *words = NULL;
    size_t n = 0;
    int r = manifest_instructions(g->o.op, &words, &n, err);
    if (r == 0)
        r = arena_reserve(g->o.arena, ARENA_INSTRUCTIONS, n * sizeof(*words), &g->instructions_block, err);
    if (r == 0)
        r = g->o.ops->make_instructions(g->kernel, words, n, &g->instructions, err);
    free(words);
    return r;
}

static int make_buffers(struct xrt_gemm *g, struct err *err)
{
    const struct xrt_device_ops *ops = g->o.ops;
    int r = arena_reserve(g->o.arena, ARENA_TILES, tiles_bytes(g->o.op, g->o.n_tokens), &g->tiles_block, err);
    for (uint32_t i = 0; r == 0 && i < g->n_groups; i++)
        r = ops->make_buffer(g->kernel, g->arg_a, manifest_bytes(g->o.op, g->arg_a), &g->a[i], err);
    for (int i = 0; r == 0 && i < 2; i++) {
        r = ops->make_buffer(g->kernel, g->arg_b, manifest_bytes(g->o.op, g->arg_b), &g->b[i], err);
        if (r == 0)
            r = ops->make_buffer(g->kernel, g->arg_c, manifest_bytes(g->o.op, g->arg_c), &g->c[i], err);
        if (r < 0)
            break;
        struct xrt_buffer *arguments[MANIFEST_ARGUMENTS_MAX] = {NULL};
        arguments[g->arg_a] = g->a[0];
        arguments[g->arg_b] = g->b[i];
        arguments[g->arg_c] = g->c[i];
        r = ops->make_run(g->kernel, g->instructions, arguments, g->o.op->n_arguments, &g->runs[i], err);
    }
    return r;
}

int xrt_gemm_open(const struct xrt_gemm_options *o, struct xrt_gemm **ret, struct err *err)
{
    const struct manifest_operator *op = o->op;
    int r = xrt_gemm_usable(op, err);
    if (r == 0 && groups(op, o->n_tokens) > GROUPS_MAX)
        r = err_set(err, -ENOTSUP, "operator of line %u of the manifest takes %u rows; %u tokens need more than %d calls", op->line,
                    op->dims[MANIFEST_M], o->n_tokens, GROUPS_MAX);
    if (r < 0)
        return r;
    struct xrt_gemm *g = calloc(1, sizeof(*g));
    if (!g)
        return err_set(err, -ENOMEM, "NPU product: out of memory");
    g->o = *o;
    g->tiles_block = g->instructions_block = OFFSETS_NONE;
    g->arg_a = (unsigned)manifest_argument(op, MANIFEST_ARG_A);
    g->arg_b = (unsigned)manifest_argument(op, MANIFEST_ARG_B);
    g->arg_c = (unsigned)manifest_argument(op, MANIFEST_ARG_C);
    g->m = op->dims[MANIFEST_M];
    g->k = op->dims[MANIFEST_K];
    g->n = op->dims[MANIFEST_N];
    g->n_groups = (uint32_t)groups(op, o->n_tokens);
    r = o->ops->load_kernel(o->device, op->xclbin, op->kernel, &g->kernel, err);
    if (r == 0)
        r = make_instructions(g, err);
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
    const struct xrt_device_ops *ops = g->o.ops;
    for (int i = 0; i < 2; i++) {
        ops->free_run(g->runs[i]);
        ops->free_buffer(g->b[i]);
        ops->free_buffer(g->c[i]);
    }
    for (uint32_t i = 0; i < g->n_groups; i++)
        ops->free_buffer(g->a[i]);
    ops->free_buffer(g->instructions);
    ops->free_kernel(g->kernel);
    arena_give(g->o.arena, ARENA_TILES, g->tiles_block);
    arena_give(g->o.arena, ARENA_INSTRUCTIONS, g->instructions_block);
    free(g);
}

/* ---- tokens to the device, results back ---- */

static int put_tokens(struct xrt_gemm *g, uint32_t group, const float *x, uint32_t n_tokens, struct err *err)
{
    size_t cols = g->w->n_cols;
    uint16_t *a = g->o.ops->map(g->a[group]);
    for (uint32_t i = 0; i < g->m; i++, a += g->k) {
        uint32_t t = group * g->m + i, n = t < n_tokens ? (uint32_t)cols : 0;
        if (n)
            quant_ops_best()->from_f32(QUANT_BF16, x + t * cols, a, n);
        memset(a + n, 0, (g->k - n) * sizeof(*a));
    }
    return g->o.ops->sync(g->a[group], XRT_DEVICE_TO, 0, manifest_bytes(g->o.op, g->arg_a), err);
}

/* Runs follow one another: one that was started while another was under way began when that ended. */
static void note_run(struct xrt_gemm *g, int which)
{
    uint64_t now = trace_now(g->o.trace);
    trace_span(g->o.trace, TRACE_DEVICE, TRACE_DEVICE_RUN, MAX(g->started_ns[which], g->ended_ns), now);
    g->ended_ns = now;
}

static int take_results(struct xrt_gemm *g, int which, uint32_t first_row, uint32_t group, uint32_t n_tokens, float *y,
                        struct err *err)
{
    enum manifest_dtype type = g->o.op->dtypes[g->arg_c];
    int r = g->o.ops->wait(g->runs[which], g->o.timeout_ms, err);
    note_run(g, which);
    if (r == 0)
        r = g->o.ops->sync(g->c[which], XRT_DEVICE_FROM, 0, manifest_bytes(g->o.op, g->arg_c), err);
    if (r < 0)
        return r;
    uint32_t rows = MIN(g->n, g->w->n_rows - first_row), tokens = MIN(g->m, n_tokens - group * g->m);
    const uint8_t *c = g->o.ops->map(g->c[which]);
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
    float *rows = (float *)(void *)((uint8_t *)g->o.scratch + (size_t)thread * thread_bytes(g->o.op));
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
            if (g->o.op->b_nk) {
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
    g->tile = g->o.ops->map(tile);
    g->first_row = first_row;
    pool_run(g->o.pool, (g->n + REPACK_ROWS - 1) / REPACK_ROWS, 1, unpack_rows, g);
    return g->o.ops->sync(tile, XRT_DEVICE_TO, 0, manifest_bytes(g->o.op, g->arg_b), err);
}

static int start(struct xrt_gemm *g, int which, struct xrt_buffer *tile, uint32_t group, struct err *err)
{
    int r = g->o.ops->set_argument(g->runs[which], g->arg_a, g->a[group], err);
    if (r == 0)
        r = g->o.ops->set_argument(g->runs[which], g->arg_b, tile, err);
    g->started_ns[which] = trace_now(g->o.trace);
    return r < 0 ? r : g->o.ops->start(g->runs[which], err);
}

/* kept: tiles that are there already, or NULL */
static int multiply(struct xrt_gemm *g, const struct gemm_matrix *m, struct xrt_buffer *const *kept, const float *x,
                    uint32_t n_tokens, float *y, struct err *err)
{
    if (m->n_cols > g->k || n_tokens == 0 || n_tokens > g->o.n_tokens)
        return err_set(err, -EINVAL, "NPU product of %u tokens with rows of %u; expected 1 to %u, and at most %u", n_tokens,
                       m->n_cols, g->o.n_tokens, g->k);
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
    return r < 0 ? r : take_results(g, (int)((step - 1) % 2), last_row, last_group, n_tokens, y, err);
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
    return (uint64_t)((n_rows + n - 1) / n) * argument_bytes(op, MANIFEST_ARG_B);
}

int xrt_gemm_keep(struct xrt_gemm *g, const struct gemm_matrix *m, struct xrt_weights **ret, struct err *err)
{
    uint32_t n_tiles = (m->n_rows + g->n - 1) / g->n;
    struct xrt_weights *w = calloc(1, sizeof(*w) + n_tiles * sizeof(*w->tiles));
    if (!w)
        return err_set(err, -ENOMEM, "weights on the NPU: out of memory");
    w->m = *m;
    w->n_tiles = n_tiles;
    w->block = OFFSETS_NONE;
    g->w = &w->m;
    int r = arena_reserve(g->o.arena, ARENA_TILES, xrt_gemm_kept_bytes(g->o.op, m->n_rows), &w->block, err);
    for (uint32_t i = 0; r == 0 && i < n_tiles; i++) {
        r = g->o.ops->make_buffer(g->kernel, g->arg_b, manifest_bytes(g->o.op, g->arg_b), &w->tiles[i], err);
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
        g->o.ops->free_buffer(w->tiles[i]);
    arena_give(g->o.arena, ARENA_TILES, w->block);
    free(w);
}

int xrt_gemm_multiply_kept(struct xrt_gemm *g, const struct xrt_weights *w, const float *x, uint32_t n_tokens, float *y,
                           struct err *err)
{
    return multiply(g, &w->m, w->tiles, x, n_tokens, y, err);
}
