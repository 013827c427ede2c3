/* SPDX-License-Identifier: MIT
 * Computes what every process will hold, by category, from config and GGUF metadata. Called before anything is loaded; allocates
 * nothing, reads no tensor data. Weights, KV and scratch come from the same functions that the stages allocate by. Which chunk
 * size, how many pages and which residency are to be had is found in plan_fit.c, which asks for plans until one fits. */
#include "coordinator/plan.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "coordinator/plan_impl.h"
#include "coordinator/tokenizer.h"
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
#define DEFAULT_STREAM_SLOTS 2
#define DEFAULT_NPU_POOL (UINT64_C(2) << 30) /* of an NPU; the processor has no pool of its own */
#define LOGITS_BLOCK_BYTES (4u << 20)

const char *plan_process_name(enum config_process p)
{
    static const char *const names[] = {"coordinator", "loader", "npu_worker", "gpu_worker"};
    return names[p];
}

uint64_t plan_bytes(const struct plan *p)
{
    uint64_t bytes = 0;
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        bytes += p->process[i].total;
    return bytes;
}

bool plan_lacks_memory(const struct plan *p)
{
    return p->machine.total && plan_bytes(p) > p->machine.available;
}

bool plan_streams(const struct plan *p)
{
    return p->residency[CONFIG_NPU].n_streamed || p->residency[CONFIG_GPU].n_streamed;
}

uint32_t plan_stream_slots(const struct config *c, uint32_t n_layers)
{
    uint32_t wanted = c->stream_slots ? c->stream_slots : DEFAULT_STREAM_SLOTS;
    return MIN(wanted, MAX(n_layers / 2, DEFAULT_STREAM_SLOTS)); /* with more, hardly a layer would have to give its place up */
}

uint64_t plan_npu_memory(const struct config *c, const struct npu_device *npu)
{
    return c->npu.memory || !npu->xrt ? c->npu.memory : DEFAULT_NPU_POOL;
}

static int collect_types(const struct gguf *g, struct plan_inputs *p, struct err *err)
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

/* Sizes of all segments. */
static int collect_sizes(const struct gguf *g, struct plan_inputs *in, struct err *err)
{
    const struct hparams *h = &in->hparams;
    struct segment_layout l;
    const uint8_t *t = in->types;
    for (uint32_t layer = 0; layer <= h->n_layers; layer++) {
        for (int kind = SEGMENT_ATTN; kind <= SEGMENT_HEAD; kind++) {
            if ((layer == h->n_layers) != (kind == SEGMENT_HEAD))
                continue;
            int r = segment_layout_init(&l, h, (enum segment_kind)kind, t, err);
            if (r < 0)
                return r;
            t += segment_n_tensors((enum segment_kind)kind);
            *(kind == SEGMENT_HEAD ? &in->head : &in->layers[kind == SEGMENT_FFN][layer]) = l.bytes;
            in->least = MAX(in->least, segment_bounce_min(&l));
            for (uint32_t i = 0; i < l.n_tensors && kind != SEGMENT_HEAD; i++)
                in->in_file[kind == SEGMENT_FFN][layer] +=
                    (uint64_t)l.tensors[i].n_rows * quant_row_bytes(l.tensors[i].type, l.tensors[i].n_cols);
        }
    }
    for (uint32_t i = 0; i < gguf_n_tensors(g); i++)
        in->tensor_bytes += gguf_tensor_at(g, i)->bytes;
    return 0;
}

/* Bytes of one worker's weights: pinned layers, and slots as large as the largest layer that passes through each. */
struct held {
    uint64_t pinned, slots, streamed, read; /* read: of what is streamed, from the file in every pass */
    uint64_t largest;                       /* segment */
    uint64_t largest_streamed, pair;        /* pair: the most that two pinned segments take which follow each other */
};

static struct held hold(const struct plan_inputs *in, const struct residency *r, int worker)
{
    struct held h = {0};
    uint64_t slot[RESIDENCY_SLOTS_MAX] = {0}, last = 0;
    for (uint32_t layer = 0; layer <= r->n_layers; layer++) {
        bool head = layer == r->n_layers; /* is pinned */
        uint32_t index = head ? RESIDENCY_PINNED : residency_index(r, layer);
        uint64_t bytes = !head ? in->layers[worker][layer] : worker ? in->head : 0;
        h.largest = MAX(h.largest, bytes);
        if (index == RESIDENCY_PINNED) {
            h.pinned += bytes;
            h.pair = MAX(h.pair, last + bytes);
            last = bytes;
            continue;
        }
        uint64_t *s = &slot[index % r->n_slots];
        h.streamed += bytes;
        h.read += in->in_file[worker][layer];
        h.slots += bytes > *s ? bytes - *s : 0;
        *s = MAX(*s, bytes);
        h.largest_streamed = MAX(h.largest_streamed, bytes);
    }
    return h;
}

/* Where gpu_worker's weights are. On a device that copies them a segment goes as soon as it is copied, two at most exist at once;
 * but with "auto" on a device with memory of its own all must have room here, should the processor have to take over. What is
 * streamed is copied from its slot into one place. */
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

static void weights(const struct plan_inputs *in, const struct plan_choice *ch, struct plan *p)
{
    for (int i = 0; i < 2; i++) {
        enum config_process worker = i ? CONFIG_GPU : CONFIG_NPU;
        uint32_t n = ch->streamed[i], slots = plan_stream_slots(in->config, p->hparams.n_layers);
        p->residency[worker] = (struct residency){.n_layers = p->hparams.n_layers, .n_streamed = n, .n_slots = n ? slots : 0};
        struct held h = hold(in, &p->residency[worker], i);
        p->process[worker].bytes[BUDGET_WEIGHTS] = h.pinned + h.slots;
        p->token_bytes += h.pinned + h.streamed;
        p->attention_bytes += i ? 0 : h.pinned + h.streamed;
        p->streamed_bytes += h.read;
        if (i)
            device_weights(in->config, p, &h);
    }
    p->tensor_bytes = in->tensor_bytes;
    p->process[CONFIG_LOADER].bytes[BUDGET_SCRATCH] = work_plan_loader_bytes(&p->hparams, in->least);
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

/* What a process holds beside its budget: program, private pages of libraries, heap, stacks. Measured on Debian 12 as peak less
 * budget, with demo, 1B-, 4B- and 27B-shaped models (e2e_plan_true holds them to it). The coordinator's grows with the vocabulary:
 * tokenizer and file metadata take 3 MiB with 4096 pieces, 10 with 32768, 18 with 65536, and what a text takes while it
 * becomes tokens; without a tokenizer (eval, bench) less. */
static void fixed(struct plan *p)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    const uint64_t sanitizer = 1u << 30; /* shadow and quarantine, or the kernel's cap would end instrumented stages */
#else
    const uint64_t sanitizer = 0;
#endif
    uint64_t vocab = p->hparams.vocab;
    p->process[CONFIG_COORDINATOR].fixed = (uint64_t)(3 * MIB) + vocab * 254 + tokenizer_encode_bytes(p->context);
    p->process[CONFIG_LOADER].fixed = (uint64_t)(3 * MIB) + vocab * 24;
    p->process[CONFIG_NPU].fixed = (uint64_t)(5 * MIB) + (p->npu.xrt ? (uint64_t)(8 * MIB) : 0); /* XRT: 4 measured */
    p->process[CONFIG_NPU].fixed += p->npu.heap; /* locked, and so in memory as a whole; as stated, no hardware was measured */
    p->process[CONFIG_GPU].fixed = (uint64_t)(3 * MIB);
    if (p->gpu
            .vulkan) /* driver and compiler, measured: lavapipe 55 to 70 MiB with one type and 9 for each further one; NVIDIA 40 */
        p->process[CONFIG_GPU].fixed +=
            (uint64_t)(80 * MIB) + matrix_types(p) * (uint64_t)(12 * MIB) + work_plan_vulkan_commands(&p->hparams);
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        p->process[i].fixed += sanitizer;
}

static uint64_t total_of(const struct plan *p, int process)
{
    uint64_t total = p->process[process].fixed;
    for (int k = 0; k < BUDGET_CATEGORIES; k++)
        total += p->process[process].bytes[k];
    return total;
}

/* Memory that the processes may have together on this machine: all but a sixteenth, where it is much. */
static uint64_t machine_limit(const struct plan *p)
{
    return p->machine.total > (UINT64_C(1) << 30) ? p->machine.total - p->machine.total / 16 : p->machine.total;
}

/* Caps that the config does not name: what is planned, a tenth more, and 16 MiB; where a total or the machine has less than that
 * for all, 8 MiB, and what is left in equal shares of the rest. */
static void totals(const struct config *c, struct plan *p)
{
    uint64_t taken = 0, wanted = 0, limit = c->total ? c->total : UINT64_MAX;
    if (p->machine.total)
        limit = MIN(limit, machine_limit(p));
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        uint64_t total = total_of(p, i), more = total / 10 + 2 * PLAN_MARGIN;
        p->process[i].total = total;
        p->process[i].cap = c->caps[i] ? c->caps[i] : total + more;
        taken += c->caps[i] ? c->caps[i] : total + PLAN_MARGIN;
        wanted += c->caps[i] ? 0 : more - PLAN_MARGIN;
    }
    p->total_cap = c->total;
    uint64_t left = limit - MIN(limit, taken);
    if (wanted <= left)
        return;
    double share = (double)left / (double)wanted;
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        uint64_t total = p->process[i].total, more = total / 10 + PLAN_MARGIN;
        if (!c->caps[i])
            p->process[i].cap = total + PLAN_MARGIN + (uint64_t)((double)more * share);
    }
}

static uint64_t gpu_pool(const struct plan *p)
{
    const uint64_t *g = p->process[CONFIG_GPU].bytes;
    return g[BUDGET_WEIGHTS] + g[BUDGET_SCRATCH] + g[BUDGET_DEVICE];
}

static uint64_t npu_pool(const struct plan *p)
{
    return p->process[CONFIG_NPU].total - p->process[CONFIG_NPU].fixed;
}

uint64_t plan_locked(const struct plan *p)
{
    return p->npu.heap + p->process[CONFIG_NPU].bytes[BUDGET_DEVICE];
}

enum plan_limit plan_passes(const struct plan_inputs *in, const struct plan *p, enum config_process *ret_process)
{
    const struct config *c = in->config;
    uint64_t least = 0, caps = 0; /* least: of them all, where the config's caps are not reached */
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        *ret_process = (enum config_process)i;
        if (c->caps[i] && p->process[i].total > c->caps[i])
            return PLAN_CAP;
        least += p->process[i].total + (c->caps[i] ? 0 : PLAN_MARGIN);
        caps += c->caps[i] ? c->caps[i] : p->process[i].total + PLAN_MARGIN;
    }
    return p->npu.heap && plan_locked(p) > p->npu.lockable ? PLAN_LOCKED
           : p->npu_pool && npu_pool(p) > p->npu_pool      ? PLAN_NPU_POOL
           : c->gpu.memory && gpu_pool(p) > c->gpu.memory  ? PLAN_GPU_POOL
           : c->total && caps > c->total                   ? PLAN_TOTAL
           : p->device_bytes > p->gpu.room                 ? PLAN_DEVICE
           : p->machine.total && least > machine_limit(p)  ? PLAN_MACHINE
                                                           : PLAN_FITS;
}

void plan_compose(const struct plan_inputs *in, const struct plan_choice *ch, struct plan *p)
{
    const struct config *c = in->config;
    const struct plan_machine *m = in->machine;
    const struct hparams *h = &in->hparams;
    memset(p, 0, offsetof(struct plan, types));
    p->gpu = *m->gpu;
    p->npu = *m->npu;
    p->machine = m->memory;
    p->hparams = *h;
    p->n_types = in->n_types;
    memcpy(p->types, in->types, in->n_types);
    p->context = c->context;
    p->sequences = c->sequences;
    p->chunk_tokens = ch->chunk;
    p->kv_pages = (uint32_t)ch->pages;
    p->kv_type = c->kv_type;
    p->ring_slots = ch->ring_slots;
    p->token_slots = 2 * p->ring_slots; /* a chunk can be back before the loader gives its slot up: more slots than chunks */
    p->logits_rows = MIN(MAX(LOGITS_BLOCK_BYTES / (h->vocab * 4), 4u), 64u);
    p->logits_slots = 4;
    uint32_t cores = (uint32_t)cpu_order(NULL, 0);
    p->npu_threads = c->npu.threads ? c->npu.threads : cores;
    p->gpu_threads = c->gpu.threads ? c->gpu.threads : cores;
    for (int i = CONFIG_LOADER; i < CONFIG_PROCESSES; i++)
        p->process[i].others = !c->spawn[i];
    p->pin_threads = c->pin_threads && p->npu_threads + p->gpu_threads > cores;
    p->npu_pool = plan_npu_memory(c, &p->npu) / 5 * 4;
    p->npu_resident = ch->npu_resident;
    weights(in, ch, p);

    uint64_t *bytes = p->process[CONFIG_NPU].bytes;
    bytes[BUDGET_KV] = work_plan_kv_bytes(h, p->context, p->sequences, p->chunk_tokens, p->ring_slots, p->kv_type, p->kv_pages);
    bytes[BUDGET_SCRATCH] =
        work_plan_attn_bytes(h, p->types, p->chunk_tokens, p->ring_slots, p->npu_threads) + p->npu.scratch * p->npu_threads;
    bytes[BUDGET_DEVICE] = npu_device_bytes(&p->npu, p->chunk_tokens) + p->npu_resident * p->npu.kept;
    bytes = p->process[CONFIG_GPU].bytes;
    bytes[BUDGET_SCRATCH] = work_plan_gather_bytes(h, p->chunk_tokens);
    if (!p->gpu.vulkan || strcmp(c->gpu.backend, "auto") == 0) /* auto may end on the processor, when the device fails at start */
        bytes[BUDGET_SCRATCH] += work_plan_ffn_bytes(h, p->types, p->chunk_tokens, p->logits_rows);
    if (p->gpu.vulkan)
        bytes[BUDGET_DEVICE] += work_plan_vulkan_bytes(h, p->chunk_tokens);
    if (p->gpu.vulkan && !p->gpu.unified)
        p->device_bytes += work_plan_vulkan_bytes(h, p->chunk_tokens);
    rings(p);
    fixed(p);
    p->process[CONFIG_COORDINATOR].fixed += in->command_bytes;
    totals(c, p);
}

static int check_config(const struct config *c, const struct hparams *h, struct err *err)
{
    if (c->context > h->context_max)
        return err_set(err, -EINVAL, "'context' is %u; the model was made for at most %u", c->context, h->context_max);
    if (c->kv_type == QUANT_Q8_0 && h->head_dim % QUANT_BLOCK)
        return err_set(err, -EINVAL, "'kv_type' is q8_0; this model's heads of %u are no multiple of %d: expected f16 or f32",
                       h->head_dim, QUANT_BLOCK);
    return 0;
}

/* What "auto" may do without, in turns: the NPU, then the GPU. First none of them streams, then the first one that fits by
 * streaming. Why a device was passed over stays in its `reason`. */
static int choose_devices(struct plan_inputs *in, struct plan *ret, struct err *err)
{
    const struct config *c = in->config;
    const struct plan_machine *all = in->machine;
    const bool less_npu = all->npu->xrt && strcmp(c->npu.backend, "auto") == 0;
    const bool less_gpu = all->gpu->vulkan && strcmp(c->gpu.backend, "auto") == 0;
    int r = -ENOMEM;
    for (int streams = 0; r < 0 && streams < 2; streams++) {
        struct npu_device no_npu = {.xrt = false};
        struct gpu_device no_gpu = {.vulkan = false};
        struct plan_machine m = *all;
        in->machine = &m;
        in->may_stream = streams;
        r = plan_choose(in, ret);
        if (r < 0 && less_npu) {
            plan_refuse(in, ret);
            snprintf(no_npu.reason, sizeof(no_npu.reason), "%.*s", (int)sizeof(no_npu.reason) - 1, ret->refusal.text);
            m.npu = &no_npu;
            r = plan_choose(in, ret);
        }
        if (r < 0 && less_gpu) {
            plan_refuse(in, ret);
            snprintf(no_gpu.reason, sizeof(no_gpu.reason), "%.*s", (int)sizeof(no_gpu.reason) - 1, ret->refusal.text);
            m.gpu = &no_gpu;
            r = plan_choose(in, ret);
        }
        if (r < 0 && streams) {
            plan_refuse(in, ret);
            err_set(err, r, "%s", ret->refusal.text);
        }
        in->machine = all;
    }
    return r;
}

int plan_make(const struct config *c, const struct gguf *g, const struct plan_machine *m, uint64_t command_bytes, struct plan *ret,
              struct err *err)
{
    auto_free struct plan_inputs *in = calloc(1, sizeof(*in));
    if (!in)
        return err_set(err, -ENOBUFS, "plan: out of memory");
    in->config = c;
    in->machine = m;
    in->command_bytes = command_bytes;
    int r = gemma3_hparams(g, &in->hparams, err);
    if (r == 0)
        r = check_config(c, &in->hparams, err);
    if (r == 0)
        r = collect_types(g, in, err);
    if (r == 0)
        r = collect_sizes(g, in, err);
    return r < 0 ? r : choose_devices(in, ret, err);
}
