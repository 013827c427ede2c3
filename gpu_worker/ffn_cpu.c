/* SPDX-License-Identifier: MIT
 * The feed-forward network and the output head on the CPU. Owns the thread pool and one scratch block (laid out by
 * model/work_plan, taken from the budget at open); borrows the weights. `run` and `head` are called on the data thread; they
 * allocate nothing, take no lock and never log.
 *
 * One layer is five parallel loops: norm + preparation by token; gate, up and GeGLU by groups of tiles; preparation of the product
 * by token; tiles of down; post norm with residual by token. Gate and up of the same rows are computed by the same task into a
 * buffer on its stack, so that only their product goes to memory. Values never depend on the chunk or on the thread count. */
#include "gpu_worker/ffn_backend.h"

#include <errno.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/gemm.h"
#include "kernels/pool.h"
#include "kernels/repack.h"
#include "kernels/vec.h"
#include "model/work_plan.h"
#include "proto/budget.h"
#include "proto/err.h"
#include "proto/util.h"

#define FUSED_TOKENS 64 /* tokens x 16 rows of gate and of up are 8 KiB of stack */

struct weights {
    struct gemm_matrix gate, up, down;
    const float *norm, *post_norm; /* norm NULL: not loaded */
};

struct ffn {
    struct hparams hparams;
    struct budget *budget;
    const struct cpu_kernels *kernels;
    struct pool *pool;
    char name[32];
    struct work_plan_ffn plan;
    uint8_t *scratch;
    struct weights *layers;
    struct gemm_matrix output;
    const float *output_norm;
    uint32_t chunk_tokens, logits_rows;

    /* the run under way */
    const struct weights *w;
    const float *in;
    float *out;
    uint32_t n_tokens;
};

static float *floats(const struct ffn *f, size_t offset)
{
    return (float *)(void *)(f->scratch + offset);
}

static const char *cpu_describe(void *b)
{
    return ((struct ffn *)b)->name;
}

static void cpu_close(void *b)
{
    struct ffn *f = b;
    if (!f)
        return;
    pool_close(f->pool);
    budget_free(f->budget, BUDGET_SCRATCH, f->scratch, f->plan.bytes);
    free(f->layers);
    free(f);
}

static int cpu_open(const struct ffn_backend_options *o, void **ret, struct err *err)
{
    const struct cpu_kernels *kernels = cpu_select(o->variant);
    if (!kernels)
        return err_set(err, -ENOTSUP,
                       "kernel variant '%s' is unknown or not supported by this processor; expected auto or one of: %s", o->variant,
                       cpu_available());
    struct ffn *f = calloc(1, sizeof(*f));
    if (!f)
        return err_set(err, -ENOMEM, "FFN: out of memory");
    f->hparams = *o->hparams;
    f->budget = o->budget;
    f->kernels = kernels;
    f->chunk_tokens = o->chunk_tokens;
    f->logits_rows = o->logits_rows;
    snprintf(f->name, sizeof(f->name), "cpu %s", kernels->name);
    work_plan_ffn_init(&f->plan, o->hparams, o->types, o->chunk_tokens, o->logits_rows);
    f->layers = calloc(f->hparams.n_layers, sizeof(*f->layers));
    int r = f->layers ? 0 : err_set(err, -ENOMEM, "FFN: out of memory");
    if (r == 0)
        r = budget_alloc(o->budget, BUDGET_SCRATCH, f->plan.bytes, (void **)&f->scratch, err);
    if (r == 0) {
        r = pool_open((int)o->n_threads, &f->pool);
        if (r < 0)
            err_set_errno(err, r, "FFN: %u threads", o->n_threads);
        else if (o->pin)
            pool_pin(f->pool);
    }
    if (r < 0) {
        cpu_close(f);
        return r;
    }
    *ret = f;
    return 0;
}

static int cpu_load_segment(void *b, uint32_t layer, const struct segment_layout *l, const void *data, struct err *err)
{
    struct ffn *f = b;
    if (l->kind == SEGMENT_HEAD) {
        f->output_norm = segment_norm(l, data, GEMMA3_OUTPUT_NORM);
        f->output = segment_matrix(l, data, GEMMA3_OUTPUT);
        return 0;
    }
    if (l->kind != SEGMENT_FFN || layer >= f->hparams.n_layers)
        return err_set(err, -EINVAL, "FFN: unexpected segment (kind %d, layer %u)", (int)l->kind, layer);
    f->layers[layer] = (struct weights){.gate = segment_matrix(l, data, GEMMA3_FFN_GATE),
                                        .up = segment_matrix(l, data, GEMMA3_FFN_UP),
                                        .down = segment_matrix(l, data, GEMMA3_FFN_DOWN),
                                        .norm = segment_norm(l, data, GEMMA3_FFN_NORM),
                                        .post_norm = segment_norm(l, data, GEMMA3_POST_FFN_NORM)};
    return 0;
}

/* ---- parallel loops ---- */

static void do_input(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct ffn *f = ctx;
    const struct gemm_matrix *gate = &f->w->gate, *up = &f->w->up;
    size_t n = f->hparams.hidden;
    (void)thread;
    for (uint32_t t = begin; t < end; t++) {
        float *row = floats(f, f->plan.norm) + t * n;
        f->kernels->vec->rmsnorm(f->in + t * n, f->w->norm, n, f->hparams.eps, row);
        f->kernels->gemm->prepare(gate->type, row, n,
                                  f->scratch + f->plan.act[work_plan_form(gate->type)] + t * gemm_act_bytes(gate->type, n));
        if (!gemm_same_act(gate->type, up->type))
            f->kernels->gemm->prepare(up->type, row, n,
                                      f->scratch + f->plan.act[work_plan_form(up->type)] + t * gemm_act_bytes(up->type, n));
    }
}

/* A few tiles of a few tokens: gate and up side by side on the stack, their product to memory. */
static void fused(const struct ffn *f, uint32_t tile, uint32_t n_tiles, uint32_t token, uint32_t n_tokens)
{
    _Alignas(64) float gate[FUSED_TOKENS * REPACK_ROWS], up[FUSED_TOKENS * REPACK_ROWS];
    const struct gemm_matrix *g = &f->w->gate, *u = &f->w->up;
    uint32_t row0 = tile * REPACK_ROWS, n = MIN(n_tiles * REPACK_ROWS, g->n_rows - row0);
    size_t stride = (size_t)n_tiles * REPACK_ROWS;
    const uint8_t *act_g = f->scratch + f->plan.act[work_plan_form(g->type)] + token * gemm_act_bytes(g->type, g->n_cols);
    const uint8_t *act_u = f->scratch + f->plan.act[work_plan_form(u->type)] + token * gemm_act_bytes(u->type, u->n_cols);
    const struct gemm_matrix part_g = {.type = g->type,
                                       .n_rows = n,
                                       .n_cols = g->n_cols,
                                       .tiles = (const uint8_t *)g->tiles + tile * repack_tile_bytes(g->type, g->n_cols)};
    const struct gemm_matrix part_u = {.type = u->type,
                                       .n_rows = n,
                                       .n_cols = u->n_cols,
                                       .tiles = (const uint8_t *)u->tiles + tile * repack_tile_bytes(u->type, u->n_cols)};
    f->kernels->gemm->tiles(&part_g, 0, n_tiles, act_g, n_tokens, gate, stride);
    f->kernels->gemm->tiles(&part_u, 0, n_tiles, act_u, n_tokens, up, stride);
    for (uint32_t t = 0; t < n_tokens; t++)
        f->kernels->vec->geglu(gate + t * stride, up + t * stride, n,
                               floats(f, f->plan.product) + (size_t)(token + t) * f->hparams.ffn + row0);
}

static void do_gate_up(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct ffn *f = ctx;
    uint32_t tokens = MIN(f->n_tokens, FUSED_TOKENS), tiles = FUSED_TOKENS / tokens;
    (void)thread;
    for (uint32_t tile = begin; tile < end; tile += tiles) {
        for (uint32_t t = 0; t < f->n_tokens; t += tokens)
            fused(f, tile, MIN(tiles, end - tile), t, MIN(tokens, f->n_tokens - t));
    }
}

static void do_product(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct ffn *f = ctx;
    const struct gemm_matrix *m = &f->w->down;
    (void)thread;
    for (uint32_t t = begin; t < end; t++)
        f->kernels->gemm->prepare(m->type, floats(f, f->plan.product) + (size_t)t * m->n_cols, m->n_cols,
                                  f->scratch + f->plan.act_down + t * gemm_act_bytes(m->type, m->n_cols));
}

static void do_down(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct ffn *f = ctx;
    (void)thread;
    f->kernels->gemm->tiles(&f->w->down, begin, end, f->scratch + f->plan.act_down, f->n_tokens, floats(f, f->plan.norm),
                            f->w->down.n_rows);
}

static void do_post(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct ffn *f = ctx;
    size_t n = f->hparams.hidden;
    (void)thread;
    for (uint32_t t = begin; t < end; t++)
        f->kernels->vec->rmsnorm_add(floats(f, f->plan.norm) + t * n, f->w->post_norm, n, f->hparams.eps, f->in + t * n,
                                     f->out + t * n);
}

static void do_head(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct ffn *f = ctx;
    const struct gemm_matrix *m = &f->output;
    (void)thread;
    f->kernels->gemm->tiles(m, begin, end, f->scratch + f->plan.act[work_plan_form(m->type)], f->n_tokens, f->out, m->n_rows);
}

static void each_token(struct ffn *f, uint32_t width, pool_fn fn)
{
    pool_run(f->pool, f->n_tokens, work_plan_token_grain(width), fn, f);
}

/* matrices: how many are walked side by side */
static void each_tile(struct ffn *f, const struct gemm_matrix *m, size_t matrices, pool_fn fn)
{
    uint32_t n = (uint32_t)repack_n_tiles(m->n_rows);
    size_t bytes = repack_tile_bytes(m->type, m->n_cols) * matrices;
    pool_run(f->pool, n, work_plan_tile_grain(bytes, n, f->n_tokens, (uint32_t)pool_threads(f->pool)), fn, f);
}

/* Gate, up and product as separate matrices, one after the other in the buffer of the product. */
static void dump_product(struct ffn *f, ffn_dump_fn dump, void *ctx)
{
    const struct hparams *h = &f->hparams;
    const struct {
        const char *name;
        const struct gemm_matrix *m;
    } parts[] = {{"gate", &f->w->gate}, {"up", &f->w->up}};
    float *y = floats(f, f->plan.product);
    dump(ctx, "pre_ffn_norm", floats(f, f->plan.norm), f->n_tokens, h->hidden);
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        const struct gemm_matrix *m = parts[i].m;
        f->kernels->gemm->tiles(m, 0, (uint32_t)repack_n_tiles(m->n_rows), f->scratch + f->plan.act[work_plan_form(m->type)],
                                f->n_tokens, y, h->ffn);
        dump(ctx, parts[i].name, y, f->n_tokens, h->ffn);
    }
    each_tile(f, &f->w->gate, 2, do_gate_up);
    dump(ctx, "act", y, f->n_tokens, h->ffn);
}

static void dump_down(struct ffn *f, ffn_dump_fn dump, void *ctx)
{
    const struct hparams *h = &f->hparams;
    float *y = floats(f, f->plan.norm);
    dump(ctx, "down", y, f->n_tokens, h->hidden);
    for (uint32_t t = 0; t < f->n_tokens; t++)
        f->kernels->vec->rmsnorm(y + (size_t)t * h->hidden, f->w->post_norm, h->hidden, h->eps, y + (size_t)t * h->hidden);
    dump(ctx, "post_ffn_norm", y, f->n_tokens, h->hidden);
}

static int cpu_run(void *b, uint32_t layer, uint32_t n_tokens, const float *h, float *x, ffn_dump_fn dump, void *dump_ctx,
                   struct err *err)
{
    struct ffn *f = b;
    if (layer >= f->hparams.n_layers || !f->layers[layer].norm)
        return err_set(err, -EINVAL, "FFN: layer %u has no weights", layer);
    if (n_tokens == 0 || n_tokens > f->chunk_tokens)
        return err_set(err, -EINVAL, "FFN: chunk of %u tokens; expected 1 to %u", n_tokens, f->chunk_tokens);
    f->w = &f->layers[layer];
    f->n_tokens = n_tokens;
    f->in = h;
    f->out = x;
    pool_begin(f->pool);
    each_token(f, f->hparams.hidden, do_input);
    if (dump)
        dump_product(f, dump, dump_ctx);
    else
        each_tile(f, &f->w->gate, 2, do_gate_up);
    each_token(f, f->hparams.ffn, do_product);
    each_tile(f, &f->w->down, 1, do_down);
    each_token(f, f->hparams.hidden, do_post);
    pool_end(f->pool);
    if (dump)
        dump_down(f, dump, dump_ctx);
    return 0;
}

static int cpu_head(void *b, uint32_t n_rows, const float *x, float *logits, ffn_dump_fn dump, void *dump_ctx, struct err *err)
{
    struct ffn *f = b;
    size_t n = f->hparams.hidden;
    if (!f->output_norm || n_rows == 0 || n_rows > f->logits_rows)
        return err_set(err, -EINVAL, "head: %s; %u rows, expected 1 to %u", f->output_norm ? "loaded" : "not loaded", n_rows,
                       f->logits_rows);
    float *norm = floats(f, f->plan.norm);
    for (uint32_t t = 0; t < n_rows; t++) {
        f->kernels->vec->rmsnorm(x + t * n, f->output_norm, n, f->hparams.eps, norm + t * n);
        f->kernels->gemm->prepare(f->output.type, norm + t * n, n,
                                  f->scratch + f->plan.act[work_plan_form(f->output.type)] + t * gemm_act_bytes(f->output.type, n));
    }
    if (dump)
        dump(dump_ctx, "final_norm", norm, n_rows, (uint32_t)n);
    f->n_tokens = n_rows;
    f->out = logits;
    pool_begin(f->pool);
    each_tile(f, &f->output, 1, do_head);
    pool_end(f->pool);
    return 0;
}

const struct ffn_backend ffn_cpu = {.name = "cpu",
                                    .open = cpu_open,
                                    .describe = cpu_describe,
                                    .load_segment = cpu_load_segment,
                                    .run = cpu_run,
                                    .head = cpu_head,
                                    .close = cpu_close};
