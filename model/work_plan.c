/* SPDX-License-Identifier: MIT
 * Sizes of what the stages allocate, as pure functions of hyper-parameters, types and limits. Called by the coordinator's memory
 * plan and by the stages themselves, any thread. Allocates nothing and knows no tensor data. Everything is rounded to pages or
 * cache lines here, as the budget does, so that the sum that was planned is the sum that is taken. */
#include "model/work_plan.h"

#include "kernels/attn.h"
#include "kernels/gemm.h"
#include "kernels/quant.h"
#include "model/gemma3.h"
#include "proto/util.h"

#define LINE 64
#define PAGE 4096
#define ROPE_SLOTS_MIN 64
#define ROPE_SLOTS_MAX 4096
#define BLOCK_ROWS 64    /* query rows (queries x heads of a group) that share one pass over the keys */
#define BLOCK_QUERIES 32 /* and at most so many queries, so that a chunk gives every thread something */
#define BOUNCE_MIN (4u << 20)
#define PIECE_MIN ((2u << 20) - 2 * PAGE) /* with what an aligned read has too much a huge page */
#define GRAIN_BYTES (48u << 10)           /* of weights, about 5 us of one thread's bandwidth */

_Static_assert(WORK_PLAN_PAGE_POSITIONS == ATTN_PAGE, "pages are those of the kernels");

static uint64_t round_page(uint64_t n)
{
    return (n + PAGE - 1) / PAGE * PAGE;
}

void work_plan_attn_shape(const struct hparams *h, int global, int kv_type, struct attn_shape *ret)
{
    *ret = (struct attn_shape){.n_heads = h->n_heads,
                               .n_kv_heads = h->n_kv_heads,
                               .head_dim = h->head_dim,
                               .window = global ? 0 : h->window,
                               .scale = h->attn_scale,
                               .kv_type = kv_type};
}

/* A local layer holds the window below the oldest position that may come again, and everything in flight above it. Only ring_slots
 * chunks are in flight at a time, but every sequence has room for all of them: one whose turn has passed keeps what its last chunk
 * needed, committed meanwhile or not, until its next one, and others may have as many in flight before that comes. */
static uint32_t local_pages(const struct hparams *h, uint32_t positions, uint32_t chunk_tokens, uint32_t ring_slots)
{
    uint64_t span = (uint64_t)h->window + (uint64_t)ring_slots * chunk_tokens + chunk_tokens;
    return (uint32_t)MIN((span + ATTN_PAGE - 1) / ATTN_PAGE + 2, (positions + ATTN_PAGE - 1) / ATTN_PAGE);
}

uint64_t work_plan_kv_pages(const struct hparams *h, uint32_t positions, uint32_t chunk_tokens, uint32_t ring_slots)
{
    uint64_t n_global = h->n_layers / h->global_every, global = (positions + ATTN_PAGE - 1) / ATTN_PAGE;
    return n_global * global + (h->n_layers - n_global) * local_pages(h, positions, chunk_tokens, ring_slots);
}

void work_plan_kv_init(struct work_plan_kv *ret, const struct hparams *h, uint32_t context, uint32_t sequences,
                       uint32_t chunk_tokens, uint32_t ring_slots, int kv_type, uint64_t pages)
{
    struct attn_shape shape;
    work_plan_attn_shape(h, 1, kv_type, &shape);
    ret->table_pages = ret->global = (context + ATTN_PAGE - 1) / ATTN_PAGE;
    ret->local = local_pages(h, context, chunk_tokens, ring_slots);
    ret->sequence_pages = work_plan_kv_pages(h, context, chunk_tokens, ring_slots);
    ret->pages = pages ? pages : sequences * ret->sequence_pages;
    ret->page_bytes = round_page(attn_page_bytes(&shape));
    ret->pool_bytes = ret->pages * ret->page_bytes;
    ret->tables_bytes = round_page((uint64_t)h->n_layers * sequences * ret->table_pages * sizeof(void *));
    ret->blocks_bytes = round_page((uint64_t)h->n_layers * sequences * ret->table_pages * sizeof(uint32_t));
}

uint64_t work_plan_kv_bytes(const struct hparams *h, uint32_t context, uint32_t sequences, uint32_t chunk_tokens,
                            uint32_t ring_slots, int kv_type, uint64_t pages)
{
    struct work_plan_kv p;
    work_plan_kv_init(&p, h, context, sequences, chunk_tokens, ring_slots, kv_type, pages);
    return p.pool_bytes + p.tables_bytes + p.blocks_bytes;
}

int work_plan_form(int type)
{
    return !gemm_same_act(type, QUANT_F32);
}

static size_t take(size_t *at, size_t bytes)
{
    size_t here = *at;
    *at += util_round_up(bytes, LINE);
    return here;
}

/* Largest prepared row of n_cols over the layers' tensors `role` in that form; 0 when none has it. */
static size_t act_row(const struct hparams *h, const uint8_t *types, enum gemma3_tensor role, int form, size_t n_cols)
{
    size_t n = 0;
    for (uint32_t layer = 0; layer < h->n_layers; layer++) {
        int type = types[(size_t)layer * GEMMA3_LAYER_TENSORS + role];
        if (work_plan_form(type) == form)
            n = MAX(n, gemm_act_bytes(type, n_cols));
    }
    return n;
}

static size_t act_row_any(const struct hparams *h, const uint8_t *types, enum gemma3_tensor role, size_t n_cols)
{
    return MAX(act_row(h, types, role, 0, n_cols), act_row(h, types, role, 1, n_cols));
}

void work_plan_attn_init(struct work_plan_attn *ret, const struct hparams *h, const uint8_t *types, uint32_t chunk_tokens,
                         uint32_t ring_slots, uint32_t n_threads)
{
    static const enum gemma3_tensor inputs[] = {GEMMA3_ATTN_Q, GEMMA3_ATTN_K, GEMMA3_ATTN_V};
    size_t n = chunk_tokens, q = (size_t)h->n_heads * h->head_dim, kv = (size_t)h->n_kv_heads * h->head_dim, at = 0, out = 0;
    for (int form = 0; form < 2; form++) {
        size_t row = 0;
        for (size_t i = 0; i < ARRAY_LEN(inputs); i++)
            row = MAX(row, act_row(h, types, inputs[i], form, h->hidden));
        ret->act[form] = take(&at, n * row);
    }
    ret->act_out = take(&out, n * act_row_any(h, types, GEMMA3_ATTN_OUTPUT, q));
    at = MAX(at, out);
    ret->q = take(&at, n * q * sizeof(float));
    ret->k = take(&at, n * kv * sizeof(float));
    ret->v = take(&at, n * kv * sizeof(float));
    ret->heads = take(&at, n * q * sizeof(float));
    ret->out = take(&at, n * h->hidden * sizeof(float));
    ret->rope_slots = ROPE_SLOTS_MIN;
    while (ret->rope_slots < ROPE_SLOTS_MAX && ret->rope_slots < (uint64_t)(ring_slots + 1) * chunk_tokens)
        ret->rope_slots *= 2;
    ret->rope = take(&at, (size_t)ret->rope_slots * 2 * h->head_dim * sizeof(float));
    struct attn_shape shape;
    work_plan_attn_shape(h, 1, QUANT_F32, &shape);
    ret->block_queries = MIN(MAX(BLOCK_ROWS / (h->n_heads / h->n_kv_heads), 1u), BLOCK_QUERIES);
    ret->thread_bytes =
        util_round_up(h->head_dim * sizeof(float), LINE) + util_round_up(attn_scratch_bytes(&shape, ret->block_queries), LINE);
    ret->thread = take(&at, ret->thread_bytes * n_threads);
    ret->bytes = round_page(at);
}

uint64_t work_plan_attn_bytes(const struct hparams *h, const uint8_t *types, uint32_t chunk_tokens, uint32_t ring_slots,
                              uint32_t n_threads)
{
    struct work_plan_attn p;
    work_plan_attn_init(&p, h, types, chunk_tokens, ring_slots, n_threads);
    return p.bytes;
}

void work_plan_ffn_init(struct work_plan_ffn *ret, const struct hparams *h, const uint8_t *types, uint32_t chunk_tokens,
                        uint32_t logits_rows)
{
    size_t n = chunk_tokens, at = 0, down = 0;
    int head_type = types[(size_t)h->n_layers * GEMMA3_LAYER_TENSORS + 1];
    for (int form = 0; form < 2; form++) {
        size_t row = MAX(act_row(h, types, GEMMA3_FFN_GATE, form, h->hidden), act_row(h, types, GEMMA3_FFN_UP, form, h->hidden));
        size_t head = work_plan_form(head_type) == form ? gemm_act_bytes(head_type, h->hidden) : 0;
        ret->act[form] = take(&at, MAX(n * row, logits_rows * head));
    }
    ret->act_down = take(&down, n * act_row_any(h, types, GEMMA3_FFN_DOWN, h->ffn));
    at = MAX(at, down);
    ret->norm = take(&at, MAX(n, logits_rows) * h->hidden * sizeof(float));
    ret->product = take(&at, n * h->ffn * sizeof(float));
    ret->bytes = round_page(at);
}

size_t work_plan_gather_bytes(const struct hparams *h, uint32_t chunk_tokens)
{
    return round_page((size_t)chunk_tokens * h->hidden * sizeof(float));
}

uint64_t work_plan_ffn_bytes(const struct hparams *h, const uint8_t *types, uint32_t chunk_tokens, uint32_t logits_rows)
{
    struct work_plan_ffn p;
    work_plan_ffn_init(&p, h, types, chunk_tokens, logits_rows);
    return p.bytes;
}

size_t work_plan_embed_bytes(const struct hparams *h)
{
    size_t row = util_round_up(h->hidden * sizeof(float), LINE);
    return round_page(row * (WORK_PLAN_EMBED_ROWS + 1) + WORK_PLAN_EMBED_ROWS * sizeof(uint32_t));
}

uint64_t work_plan_vulkan_bytes(const struct hparams *h, uint32_t chunk_tokens)
{
    const uint64_t tile = WORK_PLAN_VULKAN_TILE, rows = WORK_PLAN_VULKAN_GROUP, buffers = 15;
    uint64_t tokens = util_round_up(chunk_tokens, tile);
    uint64_t hidden = 4 * (uint64_t)h->hidden, ffn = 4 * (uint64_t)h->ffn, act = (hidden + ffn) * 5 / 16 + 64;
    uint64_t wide_hidden = util_round_up(hidden, 1024), wide_ffn = util_round_up(ffn, 1024);
    uint64_t token = 2 * hidden + WORK_PLAN_VULKAN_PARTS * wide_hidden + 2 * WORK_PLAN_VULKAN_WIDE * wide_ffn + ffn + act + 4 +
                     MAX(hidden, ffn) / 2 + 128;
    return WORK_PLAN_VULKAN_STAGING + 2 * tokens * hidden + tokens * token + 2 * rows * 4 * (uint64_t)h->vocab + buffers * 4096;
}

uint64_t work_plan_vulkan_commands(const struct hparams *h)
{
    return (uint64_t)h->n_layers * 8 * (24 << 10);
}

size_t work_plan_bounce_bytes(uint64_t least)
{
    return round_page(MAX(least, BOUNCE_MIN));
}

size_t work_plan_piece_bytes(uint64_t least)
{
    return round_page(MAX(least, PIECE_MIN));
}

size_t work_plan_fill_bytes(uint64_t least)
{
    return (work_plan_piece_bytes(least) + 2 * PAGE) * WORK_PLAN_FILL_THREADS; /* an aligned read begins before and ends behind */
}

uint64_t work_plan_loader_bytes(const struct hparams *h, uint64_t least)
{
    return work_plan_fill_bytes(least) + work_plan_embed_bytes(h);
}

/* Few tokens: bandwidth decides, so pieces of some tens of KiB, in fours because the kernels walk four tiles at once. Many:
 * arithmetic decides, a tile is a long piece, and small pieces end together. */
uint32_t work_plan_tile_grain(size_t tile_bytes, uint32_t n_tiles, uint32_t n_tokens, uint32_t n_threads)
{
    uint32_t share = MAX(n_tiles / (n_threads * 4), 1u);
    if (n_threads == 1)
        return n_tiles;
    uint32_t grain = n_tokens > 8 ? 2 : (uint32_t)MAX(GRAIN_BYTES / tile_bytes, 4u);
    grain = MIN(grain, share);
    return grain >= 4 ? grain / 4 * 4 : grain;
}

uint32_t work_plan_token_grain(uint32_t width)
{
    return MIN(MAX(16384 / width, 1u), 8u);
}
