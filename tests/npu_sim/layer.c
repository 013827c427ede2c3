/* SPDX-License-Identifier: MIT
 * Owns a layer's weights, pool, budget, cache and backend until it is closed; one thread. */
#include "tests/npu_sim/layer.h"

#include <stdlib.h>

#include "kernels/quant.h"
#include "kernels/quant_ops.h"
#include "kernels/repack.h"
#include "npu_worker/kv.h"
#include "proto/err.h"
#include "proto/util.h"
#include "tests/npu_sim/rig.h"

#define TILES 13 /* different ones of a matrix; no tile of an operator's n rows begins with the same one as its neighbour */
#define THREADS 2

static const struct hparams of_27b = {.n_layers = 1,
                                      .hidden = 5376,
                                      .ffn = 21504,
                                      .n_heads = 32,
                                      .n_kv_heads = 16,
                                      .head_dim = 128,
                                      .vocab = 262144,
                                      .window = 1024,
                                      .global_every = 6,
                                      .context_max = 131072,
                                      .eps = 1e-6f,
                                      .rope_base_global = 1e6f,
                                      .rope_base_local = 1e4f,
                                      .rope_factor_global = 8,
                                      .attn_scale = 0.0771517f};
static const char *const operators_27b[] = {"gemm:128x5376x512:nk", "gemm:128x4096x256",
                                            "attention:128x1152x32x16x128x1024:0.0771517"};

static const struct hparams medium = {.n_layers = 1,
                                      .hidden = 1024,
                                      .ffn = 2048,
                                      .n_heads = 8,
                                      .n_kv_heads = 4,
                                      .head_dim = 128,
                                      .vocab = 256,
                                      .window = 512,
                                      .global_every = 6,
                                      .context_max = 4096,
                                      .eps = 1e-6f,
                                      .rope_base_global = 1e6f,
                                      .rope_base_local = 1e4f,
                                      .rope_factor_global = 1,
                                      .attn_scale = 0.088f};
static const char *const operators_medium[] = {"gemm:128x1024x512:nk", "attention:128x640x8x4x128x512:0.088"};

static const struct hparams little = {.n_layers = 1,
                                      .hidden = 64,
                                      .ffn = 128,
                                      .n_heads = 4,
                                      .n_kv_heads = 2,
                                      .head_dim = 32,
                                      .vocab = 256,
                                      .window = 100,
                                      .global_every = 6,
                                      .context_max = 1 << 20,
                                      .eps = 1e-6f,
                                      .rope_base_global = 1e6f,
                                      .rope_base_local = 1e4f,
                                      .rope_factor_global = 1,
                                      .attn_scale = 0.176f};
static const char *const operators_little[] = {"gemm:32x128x64", "attention:16x115x4x2x32x100:0.176"};

const struct layer_shape layer_27b = {&of_27b, operators_27b, 2, QUANT_Q4_0},
                         layer_27b_attends = {&of_27b, operators_27b, 3, QUANT_Q4_0},
                         layer_medium = {&medium, operators_medium, 1, QUANT_BF16},
                         layer_medium_attends = {&medium, operators_medium, 2, QUANT_BF16},
                         layer_little = {&little, operators_little, 1, QUANT_Q8_0},
                         layer_little_attends = {&little, operators_little, 2, QUANT_Q8_0};

/* ---- weights ---- */

static void fill_matrix(const struct segment_tensor *t, uint8_t *at)
{
    size_t row = quant_row_bytes(t->type, t->n_cols), tile = repack_tile_bytes(t->type, t->n_cols), n = repack_n_tiles(t->n_rows);
    float *values = malloc(t->n_cols * sizeof(float));
    uint8_t *rows = malloc(REPACK_ROWS * row);
    for (size_t i = 0; i < n; i++) {
        if (i >= TILES) {
            memcpy(at + i * tile, at + i % TILES * tile, tile);
            continue;
        }
        for (size_t r = 0; r < REPACK_ROWS; r++) {
            for (uint32_t c = 0; c < t->n_cols; c++)
                values[c] = rig_random();
            quant_ops_best()->from_f32(t->type, values, rows + r * row, t->n_cols);
        }
        repack_tile(t->type, rows, REPACK_ROWS, t->n_cols, at + i * tile);
    }
    free(values);
    free(rows);
}

static void fill(struct layer *l)
{
    l->data = aligned_alloc(4096, l->layout.bytes);
    memset(l->data, 0, l->layout.bytes);
    for (uint32_t i = 0; i < l->layout.n_tensors; i++) {
        const struct segment_tensor *t = &l->layout.tensors[i];
        uint8_t *at = (uint8_t *)l->data + t->offset;
        if (!gemma3_is_norm(t->role)) {
            fill_matrix(t, at);
            continue;
        }
        for (uint32_t c = 0; c < t->n_cols; c++)
            ((float *)(void *)at)[c] = 1 + rig_random() / 4;
    }
}

/* ---- a layer that runs ---- */

int layer_prepare(struct layer *l, const struct layer_shape *s, const char *folder, uint32_t context, uint32_t chunk_tokens,
                  struct err *err)
{
    memset(l, 0, sizeof(*l));
    l->s = s;
    l->variant = "auto";
    l->context = context;
    for (int i = 0; i < GEMMA3_LAYER_TENSORS; i++)
        l->types[i] = (uint8_t)(gemma3_is_norm((enum gemma3_tensor)i) ? QUANT_F32 : s->type);
    snprintf(l->manifest, sizeof(l->manifest), "%.4000s/manifest.yaml", folder);
    budget_init(&l->budget, "npu_worker", LAYER_POOL + (UINT64_C(1) << 20)); /* tables of the cache lie outside the pool */
    struct kv_options k = {.hparams = s->h,
                           .budget = &l->budget,
                           .context = context,
                           .sequences = 1,
                           .chunk_tokens = chunk_tokens,
                           .ring_slots = 1,
                           .kv_type = QUANT_F16};
    int r = segment_layout_init(&l->layout, s->h, SEGMENT_ATTN, l->types, err);
    if (r == 0)
        r = budget_take(&l->budget, BUDGET_WEIGHTS, l->layout.bytes, err);
    if (r == 0)
        r = kv_make_arena(&k, LAYER_POOL, &l->arena, err);
    k.arena = l->arena;
    if (r == 0)
        r = arena_reserve(l->arena, ARENA_WEIGHTS, l->layout.bytes, &l->weights, err);
    if (r == 0)
        r = kv_open(&k, &l->kv, err);
    if (r < 0)
        return r;
    fill(l);
    l->x = calloc((size_t)chunk_tokens * s->h->hidden, sizeof(float));
    l->h = calloc((size_t)chunk_tokens * s->h->hidden, sizeof(float));
    for (size_t i = 0; i < (size_t)chunk_tokens * s->h->hidden; i++)
        l->x[i] = rig_random();
    return 0;
}

int layer_open_backend(struct layer *l, const struct attn_backend *backend, uint32_t chunk_tokens, uint32_t many, struct err *err)
{
    const struct attn_backend_options o = {.hparams = l->s->h,
                                           .budget = &l->budget,
                                           .arena = l->arena,
                                           .kv = l->kv,
                                           .types = l->types,
                                           .context = l->context,
                                           .n_threads = THREADS,
                                           .chunk_tokens = chunk_tokens,
                                           .ring_slots = 1,
                                           .kv_type = QUANT_F16,
                                           .variant = l->variant,
                                           .device = {.manifest = l->manifest, .many = many, .timeout_ms = 60000}};
    l->backend = backend;
    return backend->open(&o, &l->attn, err);
}

int layer_load(struct layer *l, struct err *err)
{
    return l->backend->load_segment(l->attn, 0, &l->layout, l->data, err);
}

void layer_close_backend(struct layer *l)
{
    if (l->backend)
        l->backend->close(l->attn);
    l->attn = NULL;
}

int layer_open(struct layer *l, const struct layer_shape *s, const char *folder, uint32_t context, uint32_t chunk_tokens,
               struct err *err)
{
    int r = layer_prepare(l, s, folder, context, chunk_tokens, err);
    if (r == 0)
        r = layer_open_backend(l, &attn_xrt, chunk_tokens, 1, err);
    return r < 0 ? r : layer_load(l, err);
}

int layer_close(struct layer *l)
{
    struct arena_stats s;
    layer_close_backend(l);
    kv_close(l->kv);
    arena_give(l->arena, ARENA_WEIGHTS, l->weights);
    arena_stats(l->arena, &s);
    arena_close(l->arena);
    budget_give(&l->budget, BUDGET_WEIGHTS, l->layout.bytes);
    free(l->data);
    free(l->x);
    free(l->h);
    CHECK(l->budget.total == 0 && s.all.used == 0);
    return 0;
}

int layer_chunk(struct layer *l, uint32_t pos, uint32_t n, attn_dump_fn dump, struct err *err)
{
    struct chunk *c = &l->chunk;
    memset(&c->h, 0, sizeof(c->h));
    c->h.n_tokens = n;
    c->h.n_seqs = 1;
    c->seqs[0] = (struct chunk_seq){.committed_pos = pos};
    for (uint32_t i = 0; i < n; i++)
        c->tokens[i] = (struct chunk_token){.pos = pos + i};
    return l->backend->run(l->attn, 0, c, l->x, l->h, dump, l, err);
}

int layer_prompt(struct layer *l, uint32_t n, uint32_t chunk_tokens, attn_dump_fn dump, struct err *err)
{
    int r = 0;
    kv_free(l->kv, 0);
    for (uint32_t at = 0; r == 0 && at < n; at += chunk_tokens)
        r = layer_chunk(l, at, MIN(chunk_tokens, n - at), dump, err);
    return r;
}
