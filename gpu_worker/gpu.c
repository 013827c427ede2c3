/* SPDX-License-Identifier: MIT
 * The stage: FFN of one chunk at one layer, and after the last layer the logits that were asked for and the completion. Owns the
 * backend and the rows gathered for the head. configure, segment and close run on the main thread, process on the data thread.
 *
 * A device that fails while it loads, for want of memory or otherwise, gives way to the processor, if the configuration leaves the
 * choice ("auto"): the segments are the same ones.
 *
 * After the last layer only tokens that want logits matter, so the last FFN runs for those alone; a chunk that wants none is done
 * at once. Logits leave in blocks of logits_rows rows, written by the backend into the ring slot. */
#include "gpu_worker/gpu.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_worker/ffn_backend.h"
#include "model/collect.h"
#include "model/residency.h"
#include "model/segment.h"
#include "model/work_plan.h"
#include "proto/budget.h"
#include "proto/chunk.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/trace.h"
#include "proto/util.h"

#define OUTPUT_NPU 0
#define OUTPUT_COORDINATOR 1

struct arrived {
    const void *data; /* borrowed; NULL once the backend has copied it */
    bool came;
};

struct gpu {
    struct hparams hparams;
    struct residency residency;
    uint8_t types[sizeof(((struct msg_configure *)0)->types)];
    uint32_t logits_rows;
    struct stage_io *io;
    struct budget *budget;
    float *rows; /* [chunk_tokens][hidden] */
    size_t rows_bytes;
    const struct ffn_backend *backend;
    void *device;
    bool profile;                       /* of the device's time, logged at the end */
    struct ffn_backend_options options; /* for the processor, should the device fail while it loads */
    char variant[sizeof(((struct msg_configure *)0)->variant)];
    bool choose;               /* the backend is ours to choose */
    struct arrived *segments;  /* [n_layers + 1] */
    double *_Atomic collected; /* where the squares of what enters matrices are summed, or NULL */
};

static int gpu_open(void **ret_state, struct err *err)
{
    *ret_state = calloc(1, sizeof(struct gpu));
    return *ret_state ? 0 : err_set(err, -ENOMEM, "gpu_worker: out of memory");
}

static int layout(const struct gpu *g, enum segment_kind kind, uint32_t layer, struct segment_layout *ret, struct err *err)
{
    uint32_t n_layers = g->hparams.n_layers;
    const uint8_t *types = kind == SEGMENT_HEAD ? g->types + (size_t)n_layers * GEMMA3_LAYER_TENSORS
                                                : g->types + (size_t)layer * GEMMA3_LAYER_TENSORS + segment_n_tensors(SEGMENT_ATTN);
    return segment_layout_init(ret, &g->hparams, kind, types, err);
}

/* index: of the layer, or n_layers for the head. */
static int want(struct gpu *g, uint32_t index, uint64_t *largest, struct err *err)
{
    bool head = index == g->hparams.n_layers;
    enum segment_kind kind = head ? SEGMENT_HEAD : SEGMENT_FFN;
    struct segment_layout l;
    uint32_t streamed = head ? RESIDENCY_PINNED : residency_index(&g->residency, index);
    int r = layout(g, kind, index, &l, err);
    if (r < 0)
        return r;
    *largest = MAX(*largest, l.bytes);
    return streamed == RESIDENCY_PINNED ? stage_want_segment(g->io, kind, head ? 0 : index, l.bytes, err)
                                        : stage_stream_segment(g->io, kind, index, streamed % g->residency.n_slots, l.bytes, err);
}

static int open_backend(struct gpu *g, const char *name, const struct ffn_backend_options *o, struct err *err)
{
    struct ffn_open opened = {0};
    int r = ffn_open(name, o, &opened, err);
    g->backend = opened.backend;
    g->device = opened.device;
    return r;
}

static int gpu_configure(void *state, struct stage_io *io, const struct msg_configure *c, struct err *err)
{
    struct gpu *g = state;
    hparams_from_msg(c, &g->hparams);
    uint32_t n_types = g->hparams.n_layers * GEMMA3_LAYER_TENSORS + segment_n_tensors(SEGMENT_HEAD);
    if (c->types_len < n_types)
        return err_set(err, -EPROTO, "CONFIGURE lists %u tensor types; expected %u or more", c->types_len, n_types);
    memcpy(g->types, c->types, c->types_len);
    g->residency = (struct residency){g->hparams.n_layers, c->streamed, c->stream_slots};
    if (!residency_valid(&g->residency))
        return err_set(err, -EPROTO, "CONFIGURE: %u of %u layers through %u slots", c->streamed, g->hparams.n_layers,
                       c->stream_slots);
    g->logits_rows = c->logits_rows;
    g->io = io;
    g->budget = stage_budget(io);
    g->rows_bytes = work_plan_gather_bytes(&g->hparams, c->chunk_tokens);
    int r = budget_alloc(g->budget, BUDGET_SCRATCH, g->rows_bytes, (void **)&g->rows, err);
    if (r < 0)
        return r;
    snprintf(g->variant, sizeof(g->variant), "%s", c->variant);
    g->choose = strcmp(c->backend, "auto") == 0;
    g->options = (struct ffn_backend_options){.hparams = &g->hparams,
                                              .budget = g->budget,
                                              .types = g->types,
                                              .n_threads = c->threads,
                                              .pin = c->pin,
                                              .chunk_tokens = c->chunk_tokens,
                                              .logits_rows = c->logits_rows,
                                              .variant = g->variant,
                                              .trace = stage_trace(io)};
    struct ffn_backend_options o = g->options;
    o.device = (struct ffn_device_options){.name = c->device,
                                           .allow_cpu = c->device_flags & 1,
                                           .validate = c->device_flags & 2,
                                           .profile = c->device_flags & 4,
                                           .without = c->device_without,
                                           .subgroup = c->device_subgroup,
                                           .many = c->device_many,
                                           .max_buffer = c->device_max_buffer,
                                           .memory = c->device_memory};
    g->segments = calloc(g->hparams.n_layers + 1, sizeof(*g->segments));
    if (!g->segments)
        return err_set(err, -ENOMEM, "gpu_worker: out of memory");
    r = open_backend(g, c->backend, &o, err);
    g->profile = r == 0 && o.device.profile && g->backend->profile;
    if (r == 0 && o.device.profile && !g->profile)
        log_warn("gpu", "gpu.profile: backend '%s' keeps no times of kernels; vulkan does", g->backend->name);
    uint64_t largest = 0;
    for (uint32_t i = 0; r == 0 && i <= g->hparams.n_layers; i++)
        r = want(g, i, &largest, err);
    if (r == 0 && g->backend->copies && g->backend->copies(g->device, largest))
        stage_lease(io, 2); /* one is filled while the other is copied */
    return r;
}

static bool is_streamed(const struct gpu *g, uint32_t index)
{
    return index < g->hparams.n_layers && residency_index(&g->residency, index) != RESIDENCY_PINNED;
}

/* Loaded when all are announced. */
static int announce(struct gpu *g, uint32_t index, struct err *err)
{
    struct segment_layout l;
    int r = layout(g, SEGMENT_FFN, index, &l, err);
    if (r == 0)
        r = g->backend->announce_streamed(g->device, index, &l, g->segments[index].data, err);
    for (uint32_t i = 0; i < g->residency.n_streamed; i++) {
        if (!g->segments[residency_layer(&g->residency, i)].came)
            return r;
    }
    for (uint32_t i = 0; r == 0 && i < g->residency.n_streamed; i++)
        r = g->backend->load_streamed(g->device, residency_layer(&g->residency, i), err);
    return r;
}

static int load(struct gpu *g, uint32_t index, struct err *err)
{
    if (is_streamed(g, index) && g->backend->announce_streamed)
        return announce(g, index, err);
    bool head = index == g->hparams.n_layers;
    struct segment_layout l;
    int r = layout(g, head ? SEGMENT_HEAD : SEGMENT_FFN, index, &l, err);
    if (r == 0)
        r = g->backend->load_segment(g->device, head ? 0 : index, &l, g->segments[index].data, err);
    if (r == FFN_COPIED)
        g->segments[index].data = NULL;
    return r;
}

/* What the device had copied is wanted once more, all of it now. */
static int fall_back(struct gpu *g, struct err *err)
{
    uint64_t largest = 0;
    log_warn("gpu", "%s; gpu_worker computes on the processor instead", err->text);
    g->backend->close(g->device);
    g->profile = false;
    int r = open_backend(g, "cpu", &g->options, err);
    stage_lease(g->io, 0);
    for (uint32_t i = 0; r == 0 && i <= g->hparams.n_layers; i++) {
        if (g->segments[i].came)
            r = g->segments[i].data ? load(g, i, err) : want(g, i, &largest, err);
    }
    return r;
}

static int gpu_segment(void *state, uint32_t kind, uint32_t layer, const void *data, uint64_t bytes, struct err *err)
{
    struct gpu *g = state;
    struct segment_layout l;
    if ((kind != SEGMENT_FFN && kind != SEGMENT_HEAD) || layer >= g->hparams.n_layers)
        return err_set(err, -EPROTO, "gpu_worker: segment of kind %u, layer %u was not asked for", kind, layer);
    int r = layout(g, (enum segment_kind)kind, layer, &l, err);
    if (r == 0 && bytes != l.bytes)
        r = err_set(err, -EPROTO, "gpu_worker: segment of kind %u, layer %u has %llu bytes; expected %zu", kind, layer,
                    (unsigned long long)bytes, l.bytes);
    if (r < 0)
        return r;
    uint32_t index = kind == SEGMENT_HEAD ? g->hparams.n_layers : layer;
    g->segments[index] = (struct arrived){data, true};
    r = load(g, index, err);
    if (r < 0 && g->choose && g->backend != &ffn_cpu)
        r = fall_back(g, err);
    return r == FFN_COPIED ? STAGE_SEGMENT_COPIED : r;
}

/* A device that was lost, does not answer or is out of memory will not do better with the next chunk. */
static int judge(int r)
{
    return r == -ETIMEDOUT || r == -ENOMEM || r == -EIO ? -ENODEV : r;
}

static int gpu_streamed(void *state, uint32_t kind, uint32_t layer, struct err *err)
{
    const struct gpu *g = state;
    (void)kind;
    int r = g->backend->refill ? g->backend->refill(g->device, layer, err) : 0;
    return r == FFN_COPIED ? STAGE_SEGMENT_COPIED : judge(r);
}

static int send_done(struct stage_io *io, struct chunk *c)
{
    c->h.kind = CHUNK_DONE;
    c->h.first_row = c->h.n_rows = c->h.payload_bytes = 0;
    c->h.status = 0;
    if (!stage_reserve(io, OUTPUT_COORDINATOR, c))
        return -ECANCELED;
    stage_commit(io, OUTPUT_COORDINATOR);
    return 0;
}

static int send_logits(struct gpu *g, struct stage_io *io, struct chunk *c, uint32_t n_rows, struct err *err)
{
    c->h.kind = CHUNK_LOGITS;
    for (uint32_t at = 0; at < n_rows; at += g->logits_rows) {
        c->h.first_row = at;
        c->h.n_rows = MIN(g->logits_rows, n_rows - at);
        c->h.payload_bytes = (uint32_t)((size_t)c->h.n_rows * g->hparams.vocab * sizeof(float));
        float *logits = stage_reserve(io, OUTPUT_COORDINATOR, c);
        if (!logits)
            return -ECANCELED;
        uint64_t start = trace_now(g->options.trace);
        int r = g->backend->head(g->device, c->h.n_rows, g->rows + (size_t)at * g->hparams.hidden, logits, NULL, NULL, err);
        if (r < 0)
            return judge(r);
        trace_span(g->options.trace, TRACE_DATA, TRACE_HEAD, start, trace_now(g->options.trace));
        stage_commit(io, OUTPUT_COORDINATOR);
    }
    return 0;
}

static int run_layer(struct gpu *g, uint32_t layer, uint32_t n_tokens, const float *h, float *x, struct err *err)
{
    struct collect c = {atomic_load(&g->collected), &g->hparams, layer};
    uint32_t most = c.area && g->backend->dump_most ? g->backend->dump_most(g->device) : n_tokens;
    int r = 0;
    for (uint32_t at = 0, n; r == 0 && at < n_tokens; at += n) {
        size_t first = (size_t)at * g->hparams.hidden;
        n = MIN(n_tokens - at, most);
        r = g->backend->run(g->device, layer, n, h + first, x + first, c.area ? collect_rows : NULL, &c, err);
    }
    return judge(r);
}

static int last_layer(struct gpu *g, struct stage_io *io, struct chunk *c, const float *h, struct err *err)
{
    size_t width = g->hparams.hidden;
    uint32_t n = 0;
    for (uint32_t t = 0; t < c->h.n_tokens; t++) {
        if (c->tokens[t].flags & CHUNK_WANT_LOGITS)
            memcpy(g->rows + n++ * width, h + t * width, width * sizeof(float));
    }
    int r = n ? run_layer(g, c->h.layer, n, g->rows, g->rows, err) : 0;
    if (r == 0)
        r = send_logits(g, io, c, n, err);
    return r < 0 ? r : send_done(io, c);
}

static int gpu_process(void *state, struct stage_io *io, uint32_t input, struct chunk *c, const void *payload, struct err *err)
{
    struct gpu *g = state;
    (void)input;
    if (c->h.kind != CHUNK_HIDDEN)
        return err_set(err, -EPROTO, "gpu_worker: chunk of kind %u; expected hidden states", c->h.kind);
    if (c->h.n_tokens == 0)
        return send_done(io, c);
    if (c->h.layer + 1 == g->hparams.n_layers)
        return last_layer(g, io, c, payload, err);
    uint32_t layer = c->h.layer++;
    float *x = stage_reserve(io, OUTPUT_NPU, c);
    if (!x)
        return -ECANCELED;
    int r = run_layer(g, layer, c->h.n_tokens, payload, x, err);
    if (r == 0)
        stage_commit(io, OUTPUT_NPU);
    return r;
}

static int gpu_collect(void *state, double *area, uint64_t bytes, struct err *err)
{
    struct gpu *g = state;
    size_t expected = collect_bytes(&g->hparams, SEGMENT_FFN);
    if (bytes != expected)
        return err_set(err, -EPROTO, "gpu_worker: COLLECT with %llu bytes; expected %zu", (unsigned long long)bytes, expected);
    atomic_store(&g->collected, area);
    return 0;
}

static const char *gpu_backend(void *state)
{
    const struct gpu *g = state;
    return g->backend->describe(g->device);
}

static void log_profile(void *ctx, const char *line)
{
    (void)ctx;
    log_info("profile", "%s", line);
}

static void gpu_close(void *state)
{
    struct err err = {0};
    struct gpu *g = state;
    if (!g)
        return;
    if (g->profile && g->backend->profile(g->device, log_profile, NULL, &err) < 0)
        log_warn("gpu", "%s", err.text);
    if (g->backend)
        g->backend->close(g->device);
    budget_free(g->budget, BUDGET_SCRATCH, g->rows, g->rows_bytes);
    free(g->segments);
    free(g);
}

const struct stage_ops gpu_ops = {.role = MSG_ROLE_GPU,
                                  .n_inputs = 1,
                                  .n_outputs = 2,
                                  .open = gpu_open,
                                  .configure = gpu_configure,
                                  .segment = gpu_segment,
                                  .streamed = gpu_streamed,
                                  .process = gpu_process,
                                  .collect = gpu_collect,
                                  .backend = gpu_backend,
                                  .close = gpu_close};
