/* SPDX-License-Identifier: MIT
 * Owns one page table per layer and sequence, and the pages in them, which come from the arena. Called by the stage (free) and
 * by the attention backend (prepare) on the data thread; all pages are charged at open, and none is asked of the system later.
 *
 * A table holds pages `first` .. `next` - 1; below `first` everything was given back, `end` positions have been stored. A chunk may
 * repeat positions (a re-issued chunk does), but it may not leave a gap: that would let attention read what another sequence left
 * in a page. */
#include "npu_worker/kv.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>

#include "kernels/attn.h"
#include "kernels/quant.h"
#include "model/work_plan.h"
#include "npu_worker/arena.h"
#include "proto/budget.h"
#include "proto/err.h"
#include "proto/util.h"

#define BLOCKS_OF_LAYER 5 /* a segment, and tiles of four matrices that stay on an NPU */
#define BLOCKS_BESIDE 16  /* scratch; tiles and instructions of four operators */

struct table {
    void **pages;
    uint32_t *blocks; /* of the arena */
    uint32_t first, next, end;
};

struct kv {
    struct hparams hparams;
    struct budget *budget;
    struct work_plan_kv plan;
    uint32_t context, sequences;
    struct arena *arena;
    void **pages_memory;
    uint32_t *blocks_memory;
    uint64_t charged;
    _Atomic uint64_t n_used; /* the data thread counts, any thread reads */
    struct table *tables;    /* [layer * sequences + seq] */
};

static struct table *table_of(struct kv *kv, uint32_t layer, uint32_t seq)
{
    return &kv->tables[(size_t)layer * kv->sequences + seq];
}

static void plan(const struct kv_options *o, struct work_plan_kv *ret)
{
    work_plan_kv_init(ret, o->hparams, o->context, o->sequences, o->chunk_tokens, o->ring_slots, o->kv_type, o->pages);
}

int kv_make_arena(const struct kv_options *o, uint64_t pool, struct arena **ret, struct err *err)
{
    struct work_plan_kv p;
    plan(o, &p);
    return arena_open(pool, (uint32_t)p.pages + o->hparams->n_layers * BLOCKS_OF_LAYER + BLOCKS_BESIDE, ret, err);
}

int kv_open(const struct kv_options *o, struct kv **ret, struct err *err)
{
    int t = o->kv_type;
    if ((t != QUANT_F32 && t != QUANT_F16 && t != QUANT_Q8_0) || (t == QUANT_Q8_0 && o->hparams->head_dim % QUANT_BLOCK))
        return err_set(err, -ENOTSUP,
                       "KV cache of type %d with heads of %u; expected f32, f16, or q8_0 with a multiple of %d (change 'kv_type')",
                       t, o->hparams->head_dim, QUANT_BLOCK);
    struct kv *kv = calloc(1, sizeof(*kv));
    if (!kv)
        return err_set(err, -ENOMEM, "KV cache: out of memory");
    kv->hparams = *o->hparams;
    kv->budget = o->budget;
    kv->arena = o->arena;
    kv->context = o->context;
    kv->sequences = o->sequences;
    plan(o, &kv->plan);
    size_t n = (size_t)kv->hparams.n_layers * o->sequences;
    kv->tables = calloc(n, sizeof(*kv->tables));
    int r = kv->tables ? 0 : err_set(err, -ENOMEM, "KV cache: out of memory");
    if (r == 0)
        r = budget_alloc(o->budget, BUDGET_KV, kv->plan.tables_bytes, (void **)&kv->pages_memory, err);
    if (r == 0)
        r = budget_alloc(o->budget, BUDGET_KV, kv->plan.blocks_bytes, (void **)&kv->blocks_memory, err);
    if (r == 0)
        r = budget_take(o->budget, BUDGET_KV, kv->plan.pool_bytes, err);
    kv->charged = r == 0 ? kv->plan.pool_bytes : 0;
    if (r == 0)
        r = arena_promise(o->arena, ARENA_KV, kv->plan.pool_bytes, err);
    if (r < 0) {
        kv_close(kv);
        return err_wrap(err, r, "KV cache for %u sequences of %u tokens (lower 'context' or 'sequences')", o->sequences,
                        o->context);
    }
    for (size_t i = 0; i < n; i++) {
        kv->tables[i].pages = kv->pages_memory + i * kv->plan.table_pages;
        kv->tables[i].blocks = kv->blocks_memory + i * kv->plan.table_pages;
    }
    *ret = kv;
    return 0;
}

void kv_close(struct kv *kv)
{
    if (!kv)
        return;
    for (uint32_t seq = 0; kv->n_used && seq < kv->sequences; seq++)
        kv_free(kv, seq);
    arena_promise(kv->arena, ARENA_KV, 0, NULL);
    budget_give(kv->budget, BUDGET_KV, kv->charged);
    budget_free(kv->budget, BUDGET_KV, kv->blocks_memory, kv->plan.blocks_bytes);
    budget_free(kv->budget, BUDGET_KV, kv->pages_memory, kv->plan.tables_bytes);
    free(kv->tables);
    free(kv);
}

static void give_back(struct kv *kv, struct table *t, uint32_t until)
{
    for (; t->first < until; t->first++) {
        arena_give(kv->arena, ARENA_KV, t->blocks[t->first]);
        t->pages[t->first] = NULL;
        kv->n_used--;
    }
}

/* Lowest position that a query at `pos` sees. */
static uint32_t lowest_seen(const struct kv *kv, uint32_t layer, uint32_t pos)
{
    bool all = hparams_is_global(&kv->hparams, layer) || pos + 1 <= kv->hparams.window;
    return all ? 0 : pos + 1 - kv->hparams.window;
}

static int check(const struct kv *kv, const struct table *t, uint32_t layer, uint32_t seq, uint32_t pos, uint32_t n,
                 struct err *err)
{
    if (pos >= kv->context || n > kv->context - pos)
        return err_set(err, -EINVAL, "sequence %u: positions %u to %" PRIu64 " do not fit a context of %u", seq, pos,
                       (uint64_t)pos + n - 1, kv->context);
    if (pos > t->end)
        return err_set(err, -EINVAL,
                       "sequence %u, layer %u: position %u comes after %u stored ones; the positions between are missing", seq,
                       layer, pos, t->end);
    if (lowest_seen(kv, layer, pos) / ATTN_PAGE < t->first)
        return err_set(err, -EINVAL, "sequence %u, layer %u: position %u sees positions below %u, which were given back", seq,
                       layer, pos, t->first * ATTN_PAGE);
    return 0;
}

int kv_prepare(struct kv *kv, uint32_t layer, uint32_t seq, uint32_t committed_pos, uint32_t pos, uint32_t n,
               void *const **ret_pages, struct err *err)
{
    if (layer >= kv->hparams.n_layers || seq >= kv->sequences || n == 0)
        return err_set(err, -EINVAL, "layer %u, sequence %u; expected less than %u and %u", layer, seq, kv->hparams.n_layers,
                       kv->sequences);
    struct table *t = table_of(kv, layer, seq);
    give_back(kv, t, MIN(lowest_seen(kv, layer, committed_pos) / ATTN_PAGE, t->next));
    int r = check(kv, t, layer, seq, pos, n, err);
    if (r < 0)
        return r;
    uint32_t last = (pos + n - 1) / ATTN_PAGE;
    for (; t->next <= last; t->next++) {
        if (kv->n_used == kv->plan.pages)
            return err_set(err, -ENOSPC, "KV cache: all %" PRIu64 " pages are in use at sequence %u, layer %u, position %u",
                           kv->plan.pages, seq, layer, pos);
        r = arena_take(kv->arena, ARENA_KV, kv->plan.page_bytes, &t->blocks[t->next], &t->pages[t->next], err);
        if (r < 0)
            return r;
        kv->n_used++;
    }
    t->end = MAX(t->end, pos + n);
    *ret_pages = t->pages;
    return 0;
}

void kv_free(struct kv *kv, uint32_t seq)
{
    if (seq >= kv->sequences)
        return;
    for (uint32_t layer = 0; layer < kv->hparams.n_layers; layer++) {
        struct table *t = table_of(kv, layer, seq);
        give_back(kv, t, t->next);
        t->first = t->next = t->end = 0;
    }
}

uint64_t kv_pages_used(const struct kv *kv)
{
    return atomic_load_explicit(&kv->n_used, memory_order_relaxed);
}

uint64_t kv_pages_total(const struct kv *kv)
{
    return kv->plan.pages;
}
