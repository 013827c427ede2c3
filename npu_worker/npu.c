/* SPDX-License-Identifier: MIT
 * The stage: attention of one chunk at one layer. Owns arena, KV cache and backend; which backend it is matters only in configure.
 * configure, segment and close run on the main thread, process on the data thread. Chunks that come back from gpu_worker are taken
 * before new ones, so that neither worker waits for the other with a full ring. */
#include "npu_worker/npu.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "model/collect.h"
#include "model/residency.h"
#include "model/segment.h"
#include "model/work_plan.h"
#include "npu_worker/arena.h"
#include "npu_worker/attn_backend.h"
#include "npu_worker/kv.h"
#include "proto/chunk.h"
#include "proto/err.h"
#include "proto/util.h"

struct npu {
    struct hparams hparams;
    struct residency residency;
    uint8_t types[sizeof(((struct msg_configure *)0)->types)];
    struct arena *arena;
    uint32_t *weights; /* [layer]: block of its segment */
    struct kv *kv;
    const struct attn_backend *backend;
    void *device;
    double *_Atomic collected; /* where the squares of what enters matrices are summed, or NULL */
};

static int npu_open(void **ret_state, struct err *err)
{
    *ret_state = calloc(1, sizeof(struct npu));
    return *ret_state ? 0 : err_set(err, -ENOMEM, "npu_worker: out of memory");
}

static int layout(const struct npu *n, uint32_t layer, struct segment_layout *ret, struct err *err)
{
    return segment_layout_init(ret, &n->hparams, SEGMENT_ATTN, n->types + (size_t)layer * GEMMA3_LAYER_TENSORS, err);
}

static int want(const struct npu *n, struct stage_io *io, uint32_t layer, struct err *err)
{
    struct segment_layout l;
    uint32_t index = residency_index(&n->residency, layer);
    int r = layout(n, layer, &l, err);
    if (r < 0)
        return r;
    return index == RESIDENCY_PINNED ? stage_want_segment(io, SEGMENT_ATTN, layer, l.bytes, err)
                                     : stage_stream_segment(io, SEGMENT_ATTN, layer, index % n->residency.n_slots, l.bytes, err);
}

/* What its segments take of the pool: of streamed layers, the slots, under the layers that are first in them. */
static int reserve_weights(struct npu *n, struct err *err)
{
    uint64_t slots[RESIDENCY_SLOTS_MAX] = {0};
    struct segment_layout l;
    int r = 0;
    n->weights = malloc(n->hparams.n_layers * sizeof(*n->weights));
    if (!n->weights)
        return err_set(err, -ENOMEM, "npu_worker: out of memory");
    memset(n->weights, 0xff, n->hparams.n_layers * sizeof(*n->weights)); /* OFFSETS_NONE */
    for (uint32_t layer = 0; r == 0 && layer < n->hparams.n_layers; layer++) {
        uint32_t index = residency_index(&n->residency, layer);
        r = layout(n, layer, &l, err);
        if (r == 0 && index == RESIDENCY_PINNED)
            r = arena_reserve(n->arena, ARENA_WEIGHTS, l.bytes, &n->weights[layer], err);
        else if (r == 0)
            slots[index % n->residency.n_slots] = MAX(slots[index % n->residency.n_slots], l.bytes);
    }
    for (uint32_t i = 0; r == 0 && i < n->residency.n_slots; i++)
        r = arena_reserve(n->arena, ARENA_WEIGHTS, slots[i], &n->weights[residency_layer(&n->residency, i)], err);
    return r;
}

static int npu_configure(void *state, struct stage_io *io, const struct msg_configure *c, struct err *err)
{
    struct npu *n = state;
    hparams_from_msg(c, &n->hparams);
    if (c->types_len < n->hparams.n_layers * GEMMA3_LAYER_TENSORS)
        return err_set(err, -EPROTO, "CONFIGURE lists %u tensor types; expected %u or more", c->types_len,
                       n->hparams.n_layers * GEMMA3_LAYER_TENSORS);
    memcpy(n->types, c->types, c->types_len);
    n->residency = (struct residency){n->hparams.n_layers, c->streamed, c->stream_slots};
    if (!residency_valid(&n->residency))
        return err_set(err, -EPROTO, "CONFIGURE: %u of %u layers through %u slots", c->streamed, n->hparams.n_layers,
                       c->stream_slots);
    struct kv_options k = {.hparams = &n->hparams,
                           .budget = stage_budget(io),
                           .context = c->context,
                           .sequences = c->sequences,
                           .chunk_tokens = c->chunk_tokens,
                           .ring_slots = c->ring_slots,
                           .kv_type = (int)c->kv_type,
                           .pages = c->kv_pages};
    int r = kv_make_arena(&k, c->pool, &n->arena, err);
    k.arena = n->arena;
    if (r == 0)
        r = reserve_weights(n, err);
    if (r == 0)
        r = kv_open(&k, &n->kv, err);
    if (r < 0)
        return r;
    const struct attn_backend_options o = {.hparams = &n->hparams,
                                           .budget = stage_budget(io),
                                           .arena = n->arena,
                                           .kv = n->kv,
                                           .types = n->types,
                                           .context = c->context,
                                           .n_threads = c->threads,
                                           .pin = c->pin,
                                           .chunk_tokens = c->chunk_tokens,
                                           .ring_slots = c->ring_slots,
                                           .kv_type = (int)c->kv_type,
                                           .variant = c->variant,
                                           .trace = stage_trace(io),
                                           .device = {.manifest = c->manifest,
                                                      .index = c->device_index,
                                                      .many = c->device_many,
                                                      .timeout_ms = c->device_timeout_ms,
                                                      .resident = c->streamed ? 0 : c->device_resident}};
    struct attn_open opened;
    r = attn_open(c->backend, &o, &opened, err);
    n->backend = opened.backend;
    n->device = opened.device;
    for (uint32_t layer = 0; r == 0 && layer < n->hparams.n_layers; layer++)
        r = want(n, io, layer, err);
    if (r == 0)
        arena_publish(n->arena); /* later the data thread does */
    return r;
}

static int npu_segment(void *state, uint32_t kind, uint32_t layer, const void *data, uint64_t bytes, struct err *err)
{
    struct npu *n = state;
    struct segment_layout l;
    if (kind != SEGMENT_ATTN || layer >= n->hparams.n_layers)
        return err_set(err, -EPROTO, "npu_worker: segment of kind %u, layer %u was not asked for", kind, layer);
    int r = layout(n, layer, &l, err);
    if (r == 0 && bytes != l.bytes)
        r = err_set(err, -EPROTO, "npu_worker: segment of layer %u has %llu bytes; expected %zu", layer, (unsigned long long)bytes,
                    l.bytes);
    return r < 0 ? r : n->backend->load_segment(n->device, layer, &l, data, err);
}

static int npu_process(void *state, struct stage_io *io, uint32_t input, struct chunk *c, const void *payload, struct err *err)
{
    struct npu *n = state;
    (void)input;
    if (c->h.kind != CHUNK_HIDDEN)
        return err_set(err, -EPROTO, "npu_worker: chunk of kind %u; expected hidden states", c->h.kind);
    for (uint32_t i = 0; c->h.layer == 0 && i < c->h.n_seqs; i++) {
        if (c->seqs[i].flags & CHUNK_SEQ_FREE)
            kv_free(n->kv, c->seqs[i].seq);
    }
    float *h = stage_reserve(io, 0, c);
    if (!h)
        return -ECANCELED;
    struct collect collect = {atomic_load(&n->collected), &n->hparams, c->h.layer};
    int r = c->h.n_tokens ? n->backend->run(n->device, c->h.layer, c, payload, h, collect.area ? collect_rows : NULL, &collect, err)
                          : 0;
    if (c->h.layer + 1 == n->hparams.n_layers)
        arena_publish(n->arena);
    if (r == 0)
        stage_commit(io, 0);
    return r;
}

static int npu_collect(void *state, double *area, uint64_t bytes, struct err *err)
{
    struct npu *n = state;
    size_t expected = collect_bytes(&n->hparams, SEGMENT_ATTN);
    if (bytes != expected)
        return err_set(err, -EPROTO, "npu_worker: COLLECT with %llu bytes; expected %zu", (unsigned long long)bytes, expected);
    atomic_store(&n->collected, area);
    return 0;
}

static void npu_stats(void *state, struct msg_stats *ret)
{
    struct npu *n = state;
    if (n->backend && n->backend->count)
        n->backend->count(n->device, &ret->products, &ret->offloaded);
    if (!n->arena)
        return;
    struct arena_stats s;
    arena_published(n->arena, &s);
    ret->pool = s.all.bytes;
    ret->pool_peak = s.all.peak;
    ret->pool_largest = s.all.largest;
    ret->pool_weights = s.used[ARENA_WEIGHTS];
    ret->pool_kv = s.used[ARENA_KV];
    ret->pool_scratch = s.used[ARENA_SCRATCH];
    ret->pool_tiles = s.used[ARENA_TILES];
    ret->pool_instructions = s.used[ARENA_INSTRUCTIONS];
    if (n->kv) {
        ret->kv_pages = kv_pages_total(n->kv);
        ret->kv_pages_used = kv_pages_used(n->kv);
    }
}

static const char *npu_backend(void *state)
{
    const struct npu *n = state;
    return n->backend->describe(n->device);
}

static void npu_close(void *state)
{
    struct npu *n = state;
    if (!n)
        return;
    if (n->backend)
        n->backend->close(n->device);
    kv_close(n->kv);
    for (uint32_t layer = 0; n->weights && layer < n->hparams.n_layers; layer++)
        arena_give(n->arena, ARENA_WEIGHTS, n->weights[layer]);
    free(n->weights);
    arena_close(n->arena);
    free(n);
}

const struct stage_ops npu_ops = {.role = MSG_ROLE_NPU,
                                  .n_inputs = 2,
                                  .n_outputs = 1,
                                  .open = npu_open,
                                  .configure = npu_configure,
                                  .segment = npu_segment,
                                  .process = npu_process,
                                  .stats = npu_stats,
                                  .collect = npu_collect,
                                  .backend = npu_backend,
                                  .close = npu_close};
