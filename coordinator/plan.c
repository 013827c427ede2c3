/* SPDX-License-Identifier: MIT
 * Computes what every process will hold, by category, from config and GGUF metadata. Called before anything is loaded; allocates
 * nothing, reads no tensor data. Weights, KV and scratch come from the same functions that the stages allocate by. */
#include "coordinator/plan.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/quant.h"
#include "model/gguf.h"
#include "model/segment.h"
#include "model/work_plan.h"
#include "proto/chunk.h"
#include "proto/err.h"
#include "proto/ring.h"
#include "proto/util.h"

#define MIB (1024.0 * 1024.0)
#define DEFAULT_CHUNK 128
#define DEFAULT_RING_SLOTS 4
#define GOOD_CHUNK 16 /* prefill is slow below it: rather fewer sequences at once */
#define DEFAULT_STREAM_SLOTS 2
#define LOGITS_BLOCK_BYTES (4u << 20)

const char *plan_process_name(enum config_process p)
{
    static const char *const names[] = {"coordinator", "loader", "npu_worker", "gpu_worker"};
    return names[p];
}

bool plan_streams(const struct plan *p)
{
    return p->residency[CONFIG_NPU].n_streamed || p->residency[CONFIG_GPU].n_streamed;
}

static int collect_types(const struct gguf *g, struct plan *p, struct err *err)
{
    const struct hparams *h = &p->hparams;
    uint32_t n = 0, per_layer = segment_n_tensors(SEGMENT_ATTN) + segment_n_tensors(SEGMENT_FFN);
    if ((size_t)h->n_layers * per_layer + segment_n_tensors(SEGMENT_HEAD) + 1 > sizeof(p->types))
        return err_set(err, -E2BIG, "model has %u layers; at most %zu are supported", h->n_layers,
                       sizeof(p->types) / per_layer - 1);
    for (uint32_t layer = 0; layer < h->n_layers; layer++) {
        int r = segment_types(g, SEGMENT_ATTN, layer, p->types + n, err);
        n += segment_n_tensors(SEGMENT_ATTN);
        if (r == 0)
            r = segment_types(g, SEGMENT_FFN, layer, p->types + n, err);
        n += segment_n_tensors(SEGMENT_FFN);
        if (r < 0)
            return r;
    }
    int r = segment_types(g, SEGMENT_HEAD, 0, p->types + n, err);
    n += segment_n_tensors(SEGMENT_HEAD);
    const struct gguf_tensor *embd;
    if (r == 0)
        r = gemma3_find(g, GEMMA3_TOKEN_EMBD, 0, &embd, err);
    if (r == 0) {
        p->types[n++] = (uint8_t)embd->type;
        p->n_types = n;
    }
    return r;
}

/* Bytes of one worker's weights in memory: pinned layers, and slots as large as the largest layer that passes through each. */
struct held {
    uint64_t pinned, slots, streamed; /* streamed: read from the file in every pass */
    uint64_t largest;                 /* segment */
    uint64_t largest_streamed, pair;  /* pair: the most that two pinned segments take which follow each other */
};

static void hold(struct held *h, uint64_t slot[RESIDENCY_SLOTS_MAX], const struct residency *r, uint32_t layer, uint64_t bytes,
                 uint64_t *last)
{
    uint32_t index = layer < r->n_layers ? residency_index(r, layer) : RESIDENCY_PINNED; /* the head is pinned */
    h->largest = MAX(h->largest, bytes);
    if (index == RESIDENCY_PINNED) {
        h->pinned += bytes;
        h->pair = MAX(h->pair, *last + bytes);
        *last = bytes;
        return;
    }
    uint64_t *s = &slot[index % r->n_slots];
    h->streamed += bytes;
    h->slots += bytes > *s ? bytes - *s : 0;
    *s = MAX(*s, bytes);
    h->largest_streamed = MAX(h->largest_streamed, bytes);
}

/* Where gpu_worker's weights are. On a device that copies them a segment goes as soon as it is copied, two at most exist at once;
 * but with "auto" on a device with memory of its own all must have room here, should the processor have to take over. What is
 * streamed is copied from its slot into one buffer. */
static void device_weights(const struct config *c, struct plan *p, const struct held *h)
{
    uint64_t *bytes = p->process[CONFIG_GPU].bytes, fit = 65536;
    if (!p->gpu.vulkan || h->largest <= p->gpu.importable)
        return;
    uint64_t copies = h->pinned + h->largest_streamed + p->hparams.n_layers * fit; /* each tensor in a buffer, rounded up */
    if (p->gpu.unified)
        bytes[BUDGET_DEVICE] += copies;
    else
        p->device_bytes = copies;
    if (p->gpu.unified || strcmp(c->gpu.backend, "auto") != 0)
        bytes[BUDGET_WEIGHTS] = h->pair + h->slots;
}

static int weights(const struct config *c, struct plan *p, const struct gguf *g, struct err *err)
{
    const struct hparams *h = &p->hparams;
    struct segment_layout l;
    const uint8_t *t = p->types;
    struct held held[CONFIG_PROCESSES] = {{0}};
    uint64_t slot[CONFIG_PROCESSES][RESIDENCY_SLOTS_MAX] = {{0}}, last[CONFIG_PROCESSES] = {0}, least = 0;
    for (uint32_t layer = 0; layer <= h->n_layers; layer++) {
        for (int kind = SEGMENT_ATTN; kind <= SEGMENT_HEAD; kind++) {
            if ((layer == h->n_layers) != (kind == SEGMENT_HEAD))
                continue;
            int r = segment_layout_init(&l, h, (enum segment_kind)kind, t, err);
            if (r < 0)
                return r;
            t += segment_n_tensors((enum segment_kind)kind);
            int worker = kind == SEGMENT_ATTN ? CONFIG_NPU : CONFIG_GPU;
            hold(&held[worker], slot[worker], &p->residency[worker], layer, l.bytes, &last[worker]);
            p->token_bytes += l.bytes;
            least = MAX(least, segment_bounce_min(&l));
        }
    }
    for (int worker = CONFIG_NPU; worker <= CONFIG_GPU; worker++) {
        p->process[worker].bytes[BUDGET_WEIGHTS] = held[worker].pinned + held[worker].slots;
        p->streamed_bytes += held[worker].streamed;
    }
    p->process[CONFIG_LOADER].bytes[BUDGET_SCRATCH] = work_plan_loader_bytes(h, least);
    device_weights(c, p, &held[CONFIG_GPU]);
    for (uint32_t i = 0; i < gguf_n_tensors(g); i++)
        p->tensor_bytes += gguf_tensor_at(g, i)->bytes;
    return 0;
}

static void rings(struct plan *p)
{
    const struct hparams *h = &p->hparams;
    p->token_slot_bytes = chunk_slot_bytes(p->chunk_tokens, p->sequences, p->chunk_tokens * sizeof(uint32_t));
    p->worker_slot_bytes = chunk_slot_bytes(p->chunk_tokens, p->sequences, (size_t)p->chunk_tokens * h->hidden * sizeof(float));
    p->out_slot_bytes = chunk_slot_bytes(p->chunk_tokens, p->sequences, (size_t)p->logits_rows * h->vocab * sizeof(float));
    p->process[CONFIG_COORDINATOR].bytes[BUDGET_RING] = ring_bytes(p->token_slots, p->token_slot_bytes) +
                                                        3 * ring_bytes(p->ring_slots, p->worker_slot_bytes) +
                                                        ring_bytes(p->logits_slots, p->out_slot_bytes);
}

/* Types of the matrices that gpu_worker has: each needs kernels of its own. */
static uint32_t matrix_types(const struct plan *p)
{
    uint64_t seen = 0;
    for (uint32_t i = 0; i + 1 < p->n_types; i++) { /* the last is the embedding's, which the loader has */
        uint32_t role = i % GEMMA3_LAYER_TENSORS;
        bool head = i >= p->hparams.n_layers * GEMMA3_LAYER_TENSORS;
        if (head ? role == 1 : role >= segment_n_tensors(SEGMENT_ATTN) && !gemma3_is_norm((enum gemma3_tensor)role))
            seen |= UINT64_C(1) << (p->types[i] & 63);
    }
    return (uint32_t)__builtin_popcountll(seen);
}

/* What a process holds beside its budget: program, libraries' private pages, heap, stacks. Measured on Debian 12 as peak less
 * budget; the coordinator's part grows with the vocabulary (tokenizer and file metadata): 80 MiB with the 262144 pieces of Gemma 3,
 * 9 MiB with the demo model's 4096. */
static void fixed(struct plan *p)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    const uint64_t sanitizer = 1u << 30; /* shadow and quarantine, or the kernel's cap would end instrumented stages */
#else
    const uint64_t sanitizer = 0;
#endif
    p->process[CONFIG_COORDINATOR].fixed = (uint64_t)(14 * MIB) + (uint64_t)p->hparams.vocab * 270;
    p->process[CONFIG_LOADER].fixed = (uint64_t)(8 * MIB) + (uint64_t)p->hparams.vocab * 24;
    p->process[CONFIG_NPU].fixed = (uint64_t)(8 * MIB) + (p->npu.xrt ? (uint64_t)(8 * MIB) : 0); /* XRT: 4 measured */
    p->process[CONFIG_GPU].fixed = (uint64_t)(8 * MIB);
    if (p->gpu
            .vulkan) /* driver and compiler, measured: lavapipe 55 to 70 MiB with one type and 9 for each further one; NVIDIA 40 */
        p->process[CONFIG_GPU].fixed +=
            (uint64_t)(80 * MIB) + matrix_types(p) * (uint64_t)(12 * MIB) + work_plan_vulkan_commands(&p->hparams);
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        p->process[i].fixed += sanitizer;
}

static void totals(const struct config *c, struct plan *p)
{
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        uint64_t total = p->process[i].fixed;
        for (int k = 0; k < BUDGET_CATEGORIES; k++)
            total += p->process[i].bytes[k];
        p->process[i].total = total;
        p->process[i].cap = c->caps[i] ? c->caps[i] : total + total / 10 + (16u << 20);
    }
}

/* What the device lacks, in the words of an error; a device that shares the processor's memory lacks nothing here. */
static int room(const struct plan *p, struct err *err)
{
    char need[32], have[32];
    if (p->device_bytes <= p->gpu.room)
        return 0;
    return err_set(err, -ENOMEM,
                   "weights and scratch need %s on device '%s', where %s are free; close what uses it, or set "
                   "'gpu.backend' to cpu",
                   util_format_bytes(need, sizeof(need), p->device_bytes), p->gpu.name,
                   util_format_bytes(have, sizeof(have), p->gpu.room));
}

static int caps(const struct config *c, const struct plan *p, struct err *err)
{
    char need[32], have[32], raise[32];
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        uint64_t total = p->process[i].total;
        if (total > p->process[i].cap)
            return err_set(err, -ENOMEM,
                           "%s needs %s (%" PRIu64 " bytes) but 'memory.%s' allows %s; raise it to at least %" PRIu64
                           " MiB, or lower 'context', 'sequences' or 'chunk_tokens'",
                           plan_process_name((enum config_process)i), util_format_bytes(need, sizeof(need), total), total,
                           plan_process_name((enum config_process)i), util_format_bytes(have, sizeof(have), p->process[i].cap),
                           (total + (1u << 20) - 1) >> 20);
    }
    uint64_t sum = 0;
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        sum += p->process[i].total;
    if (p->machine.total && sum > p->machine.total)
        return err_set(
            err, -ENOMEM,
            "all processes together need %s, and this machine has %s of memory; lower 'context' or 'sequences', set 'kv_type' "
            "to q8_0, or take a model of a smaller type",
            util_format_bytes(need, sizeof(need), sum), util_format_bytes(have, sizeof(have), p->machine.total));
    const uint64_t *g = p->process[CONFIG_GPU].bytes;
    uint64_t pool = g[BUDGET_WEIGHTS] + g[BUDGET_SCRATCH] + g[BUDGET_DEVICE];
    if (c->gpu.memory && pool > c->gpu.memory)
        return err_set(err, -ENOMEM, "gpu_worker's weights and scratch need %s but 'gpu.memory' is %s; raise it to %" PRIu64 " MiB",
                       util_format_bytes(need, sizeof(need), pool), util_format_bytes(raise, sizeof(raise), c->gpu.memory),
                       (pool + (1u << 20) - 1) >> 20);
    return 0;
}

/* What npu_worker takes from its pool with such chunks and so many pages (0: all that the sequences may want). On the CPU backend
 * the pool is ordinary memory. */
static uint64_t npu_need(const struct plan *p, uint32_t chunk, uint64_t pages, uint64_t *ret_kv, uint64_t *ret_scratch)
{
    uint64_t tiles = npu_device_bytes(&p->npu, chunk);
    const struct hparams *h = &p->hparams;
    *ret_kv = work_plan_kv_bytes(h, p->context, p->sequences, chunk, p->ring_slots, p->kv_type, pages);
    *ret_scratch = work_plan_attn_bytes(h, p->types, chunk, p->ring_slots, p->npu_threads) + p->npu.scratch * p->npu_threads;
    return p->process[CONFIG_NPU].bytes[BUDGET_WEIGHTS] + *ret_kv + *ret_scratch + tiles;
}

/* Pages for such chunks: all that may be wanted, or as many as fit, at least what one sequence may hold; 0: they do not fit. */
static uint64_t npu_pages(const struct plan *p, uint32_t chunk, bool all)
{
    uint64_t kv, scratch, one = work_plan_kv_pages(&p->hparams, p->context, chunk, p->ring_slots), most = one * p->sequences;
    if (p->npu_pool == 0 || npu_need(p, chunk, most, &kv, &scratch) <= p->npu_pool)
        return most;
    if (all || npu_need(p, chunk, one, &kv, &scratch) > p->npu_pool)
        return 0;
    for (uint64_t step = most - one; step > 0; step = step / 2) {
        while (one + step <= most && npu_need(p, chunk, one + step, &kv, &scratch) <= p->npu_pool)
            one += step;
    }
    return one;
}

/* The chunk and the pages that npu.memory allows, at 80% of it: large chunks first, then fewer pages, then small chunks. */
static int fit_npu(const struct config *c, struct plan *p, struct err *err)
{
    uint32_t first = c->chunk_tokens ? c->chunk_tokens : MIN(DEFAULT_CHUNK, c->context), chunk;
    uint32_t least = c->chunk_tokens ? first : MAX(p->sequences, 1u);
    uint64_t *bytes = p->process[CONFIG_NPU].bytes, pages = 0;
    first = MAX(first, p->sequences); /* a decode chunk holds one token of each */
    least = MAX(MIN(least, first), p->sequences);
    p->npu_pool = c->npu.memory / 5 * 4;
    for (chunk = first; chunk >= MAX(least, GOOD_CHUNK) && !(pages = npu_pages(p, chunk, true)); chunk /= 2)
        ;
    for (chunk = pages ? chunk : MAX(MIN(first, GOOD_CHUNK), least);
         !pages && !(pages = npu_pages(p, chunk, false)) && chunk > least;)
        chunk = MAX(chunk / 2, least);
    p->chunk_tokens = chunk;
    p->kv_pages = (uint32_t)(pages ? pages : work_plan_kv_pages(&p->hparams, p->context, chunk, p->ring_slots));
    uint64_t need = npu_need(p, chunk, p->kv_pages, &bytes[BUDGET_KV], &bytes[BUDGET_SCRATCH]);
    bytes[BUDGET_DEVICE] = npu_device_bytes(&p->npu, chunk);
    /* What is left holds weights as the NPU takes them, of as many layers as fit: with no limit, of all. */
    if (pages && p->npu.xrt && p->npu.kept && !p->residency[CONFIG_NPU].n_streamed)
        p->npu_resident =
            (uint32_t)MIN((uint64_t)p->hparams.n_layers, p->npu_pool ? (p->npu_pool - need) / p->npu.kept : UINT64_MAX);
    bytes[BUDGET_DEVICE] += p->npu_resident * p->npu.kept;
    if (pages)
        return 0;
    char a[32], b[32];
    uint64_t raise = (need / 4 * 5 + (1u << 20)) >> 20;
    return err_set(err, -ENOMEM,
                   "npu_worker's weights, one sequence's KV cache and scratch for chunks of %u tokens need %s, at most 80%% of "
                   "'npu.memory', which is %s; raise it to at least %" PRIu64 " MiB, or lower 'context'%s",
                   chunk, util_format_bytes(a, sizeof(a), need), util_format_bytes(b, sizeof(b), c->npu.memory), raise,
                   c->chunk_tokens    ? " or 'chunk_tokens'"
                   : p->sequences > 1 ? " or 'sequences'"
                                      : "");
}

static int with_devices(const struct config *c, const struct gguf *g, const struct plan_machine *m, uint64_t command_bytes,
                        struct plan *p, struct err *err)
{
    const struct gpu_device *gpu = m->gpu;
    memset(p, 0, sizeof(*p));
    p->gpu = *m->gpu;
    p->npu = *m->npu;
    p->machine = m->memory;
    int r = gemma3_hparams(g, &p->hparams, err);
    if (r < 0)
        return r;
    const struct hparams *h = &p->hparams;
    if (c->context > h->context_max)
        return err_set(err, -EINVAL, "'context' is %u; the model was made for at most %u", c->context, h->context_max);
    p->context = c->context;
    p->sequences = c->sequences;
    p->ring_slots = DEFAULT_RING_SLOTS;
    p->token_slots = 2 * p->ring_slots; /* a chunk can be back before the loader gives its slot up: more slots than chunks */
    p->logits_rows = MIN(MAX(LOGITS_BLOCK_BYTES / (h->vocab * 4), 4u), 64u);
    p->logits_slots = 4;
    p->kv_type = c->kv_type;
    if (p->kv_type == QUANT_Q8_0 && h->head_dim % QUANT_BLOCK)
        return err_set(err, -EINVAL, "'kv_type' is q8_0; this model's heads of %u are no multiple of %d: expected f16 or f32",
                       h->head_dim, QUANT_BLOCK);
    uint32_t cores = (uint32_t)cpu_order(NULL, 0);
    p->npu_threads = c->npu.threads ? c->npu.threads : cores;
    p->gpu_threads = c->gpu.threads ? c->gpu.threads : cores;
    p->pin_threads = c->pin_threads && p->npu_threads + p->gpu_threads > cores;
    uint32_t slots = c->stream_slots ? c->stream_slots : DEFAULT_STREAM_SLOTS;
    for (int worker = CONFIG_NPU; worker <= CONFIG_GPU; worker++) {
        uint32_t n = worker == CONFIG_NPU ? c->npu.streamed : c->gpu.streamed;
        n = n == CONFIG_AUTO ? 0 : residency_round(h->n_layers, n, slots);
        p->residency[worker] = (struct residency){.n_layers = h->n_layers, .n_streamed = n, .n_slots = n ? slots : 0};
    }
    if ((r = collect_types(g, p, err)) < 0 || (r = weights(c, p, g, err)) < 0)
        return r;
    int fits = fit_npu(c, p, err);
    p->process[CONFIG_GPU].bytes[BUDGET_SCRATCH] = work_plan_last_bytes(h, p->chunk_tokens, p->logits_rows);
    if (!gpu->vulkan || strcmp(c->gpu.backend, "auto") == 0) /* auto may end on the processor, when the device fails at start */
        p->process[CONFIG_GPU].bytes[BUDGET_SCRATCH] += work_plan_ffn_bytes(h, p->types, p->chunk_tokens, p->logits_rows);
    if (gpu->vulkan)
        p->process[CONFIG_GPU].bytes[BUDGET_DEVICE] += work_plan_vulkan_bytes(h, p->chunk_tokens);
    if (gpu->vulkan && !gpu->unified)
        p->device_bytes += work_plan_vulkan_bytes(h, p->chunk_tokens);
    rings(p);
    fixed(p);
    p->process[CONFIG_COORDINATOR].fixed += command_bytes;
    totals(c, p);
    if (fits == 0)
        fits = room(p, err);
    return fits < 0 ? fits : caps(c, p, err);
}

int plan_make(const struct config *c, const struct gguf *g, const struct plan_machine *m, uint64_t command_bytes, struct plan *ret,
              struct err *err)
{
    struct err lacks = {0};
    struct npu_device no_npu = {.xrt = false};
    struct gpu_device no_gpu = {.vulkan = false};
    struct plan_machine less = *m;
    int r = with_devices(c, g, &less, command_bytes, ret, &lacks);
    if (r == -ENOMEM && m->npu->xrt && strcmp(c->npu.backend, "auto") == 0) {
        snprintf(no_npu.reason, sizeof(no_npu.reason), "%s", lacks.text);
        less.npu = &no_npu;
        r = with_devices(c, g, &less, command_bytes, ret, &lacks);
    }
    if (r == -ENOMEM && m->gpu->vulkan && strcmp(c->gpu.backend, "auto") == 0) {
        snprintf(no_gpu.reason, sizeof(no_gpu.reason), "%s", lacks.text);
        less.gpu = &no_gpu;
        return with_devices(c, g, &less, command_bytes, ret, err);
    }
    return r < 0 ? err_set(err, r, "%s", lacks.text) : 0;
}
