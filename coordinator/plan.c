/* SPDX-License-Identifier: MIT
 * Computes what every process will hold, by category, from config and GGUF metadata. Called before anything is loaded; allocates
 * nothing, reads no tensor data. Weights, KV and scratch come from the same functions that the stages allocate by. */
#include "coordinator/plan.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <jansson.h>

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
#define LOGITS_BLOCK_BYTES (4u << 20)

const char *plan_process_name(enum config_process p)
{
    static const char *const names[] = {"coordinator", "loader", "npu_worker", "gpu_worker"};
    return names[p];
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

/* Where gpu_worker's weights are. On a device that copies them a segment goes as soon as it is copied, two at most exist at once;
 * but with "auto" on a device with memory of its own all must have room here, should the processor have to take over. */
static void device_weights(const struct config *c, struct plan *p, uint64_t largest, uint64_t pair)
{
    uint64_t *bytes = p->process[CONFIG_GPU].bytes, all = bytes[BUDGET_WEIGHTS], fit = 65536;
    if (!p->gpu.vulkan || largest <= p->gpu.importable)
        return;
    uint64_t copies = all + p->hparams.n_layers * fit; /* each tensor in a buffer of its own, rounded up */
    if (p->gpu.unified)
        bytes[BUDGET_DEVICE] += copies;
    else
        p->device_bytes = copies;
    if (p->gpu.unified || strcmp(c->gpu.backend, "auto") != 0)
        bytes[BUDGET_WEIGHTS] = pair;
}

static int weights(const struct config *c, struct plan *p, const struct gguf *g, struct err *err)
{
    const struct hparams *h = &p->hparams;
    struct segment_layout l;
    const uint8_t *t = p->types;
    uint64_t largest_bounce = 0, largest = 0, pair = 0, last = 0; /* of gpu_worker, in the order of loading */
    for (uint32_t layer = 0; layer <= h->n_layers; layer++) {
        for (int kind = SEGMENT_ATTN; kind <= SEGMENT_HEAD; kind++) {
            if ((layer == h->n_layers) != (kind == SEGMENT_HEAD))
                continue;
            int r = segment_layout_init(&l, h, (enum segment_kind)kind, t, err);
            if (r < 0)
                return r;
            t += segment_n_tensors((enum segment_kind)kind);
            p->process[kind == SEGMENT_ATTN ? CONFIG_NPU : CONFIG_GPU].bytes[BUDGET_WEIGHTS] += l.bytes;
            p->token_bytes += l.bytes;
            largest_bounce = MAX(largest_bounce, segment_bounce_min(&l));
            if (kind == SEGMENT_ATTN)
                continue;
            largest = MAX(largest, l.bytes);
            pair = MAX(pair, last + l.bytes);
            last = l.bytes;
        }
    }
    p->process[CONFIG_LOADER].bytes[BUDGET_SCRATCH] = work_plan_loader_bytes(h, largest_bounce);
    device_weights(c, p, largest, pair);
    for (uint32_t i = 0; i < gguf_n_tensors(g); i++)
        p->tensor_bytes += gguf_tensor_at(g, i)->bytes;
    return 0;
}

/* The loader gives a slot back after it has passed the chunk on, which may be through the whole pipeline by then: a credit is no
 * promise of a free slot among as many as there are credits. */
uint32_t plan_token_slots(const struct plan *p)
{
    return 2 * p->ring_slots;
}

static void rings(struct plan *p)
{
    const struct hparams *h = &p->hparams;
    p->token_slot_bytes = chunk_slot_bytes(p->chunk_tokens, p->sequences, p->chunk_tokens * sizeof(uint32_t));
    p->worker_slot_bytes = chunk_slot_bytes(p->chunk_tokens, p->sequences, (size_t)p->chunk_tokens * h->hidden * sizeof(float));
    p->out_slot_bytes = chunk_slot_bytes(p->chunk_tokens, p->sequences, (size_t)p->logits_rows * h->vocab * sizeof(float));
    p->process[CONFIG_COORDINATOR].bytes[BUDGET_RING] = ring_bytes(plan_token_slots(p), p->token_slot_bytes) +
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
    if (pages && p->npu.xrt && p->npu.kept)
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

/* What npu_worker takes from its pool, and why chunks and pages are what they are. */
static void print_npu(const struct plan *p, FILE *f)
{
    const struct hparams *h = &p->hparams;
    const uint64_t *bytes = p->process[CONFIG_NPU].bytes;
    struct work_plan_kv kv;
    char all[32], w[32], k[32], s[32], page[32], pool[32], few[32];
    work_plan_kv_init(&kv, h, p->context, p->sequences, p->chunk_tokens, p->ring_slots, p->kv_type, p->kv_pages);
    fprintf(f, "npu_worker  weights %s + KV cache %s + scratch %s%s%s for chunks of %u tokens = %s",
            util_format_bytes(w, sizeof(w), bytes[BUDGET_WEIGHTS]), util_format_bytes(k, sizeof(k), bytes[BUDGET_KV]),
            util_format_bytes(s, sizeof(s), bytes[BUDGET_SCRATCH]), p->npu.xrt ? " + NPU tiles " : "",
            p->npu.xrt ? util_format_bytes(few, sizeof(few), bytes[BUDGET_DEVICE]) : "", p->chunk_tokens,
            util_format_bytes(all, sizeof(all),
                              bytes[BUDGET_WEIGHTS] + bytes[BUDGET_KV] + bytes[BUDGET_SCRATCH] + bytes[BUDGET_DEVICE]));
    if (p->npu_pool)
        fprintf(f, " of %s (80%% of npu.memory)", util_format_bytes(pool, sizeof(pool), p->npu_pool));
    fprintf(f,
            "\nKV cache    %u pages of %u positions and %s, for %.1f sequences of %u: %u a global layer, at most %u a local one\n",
            p->kv_pages, WORK_PLAN_PAGE_POSITIONS, util_format_bytes(page, sizeof(page), kv.page_bytes),
            (double)p->kv_pages / (double)kv.sequence_pages, p->context, kv.global, kv.local);
}

/* Bytes of attention weights that move for a token: read by the processor, quantized, or unpacked to bf16 and sent to the NPU once
 * for a chunk. */
static void print_xrt(const struct plan *p, FILE *f)
{
    char few[32], many[32];
    uint64_t weights = p->process[CONFIG_NPU].bytes[BUDGET_WEIGHTS];
    if (p->npu.xrt)
        fprintf(f,
                "NPU         '%s', weights of %u layers stay there; moved for a token: %s on the processor, %s to the NPU in "
                "chunks of %u\n",
                p->npu.name, p->npu_resident, util_format_bytes(few, sizeof(few), weights),
                util_format_bytes(many, sizeof(many), p->npu.moved * (p->hparams.n_layers - p->npu_resident) / p->chunk_tokens),
                p->chunk_tokens);
    else if (p->npu.reason[0])
        fprintf(f, "NPU         not used: %s\n", p->npu.reason);
}

/* The most that decode can reach where the processor reads all weights, and K and V of a full context, for every token. */
static double most_tokens(const struct plan *p)
{
    struct work_plan_kv kv;
    work_plan_kv_init(&kv, &p->hparams, p->context, 1, 1, 1, p->kv_type, 0);
    return p->gpu.vulkan ? 0 : p->read_rate / (double)(p->token_bytes + kv.sequence_pages * kv.page_bytes);
}

static void print_machine(const struct plan *p, uint64_t total, FILE *f)
{
    char a[32], b[32], c[32];
    if (p->machine.total)
        fprintf(f, "machine     %s of memory, %s of it free; the processes need %s%s\n",
                util_format_bytes(a, sizeof(a), p->machine.total), util_format_bytes(b, sizeof(b), p->machine.available),
                util_format_bytes(c, sizeof(c), total), total > p->machine.available ? ": close other programs first" : "");
    if (most_tokens(p) > 0)
        fprintf(f,
                "speed       memory is read at %s/s by %u threads: at most %.1f tokens/s of one sequence, whose every token reads "
                "%s of weights\n",
                util_format_bytes(a, sizeof(a), (uint64_t)p->read_rate), MAX(p->npu_threads, p->gpu_threads), most_tokens(p),
                util_format_bytes(b, sizeof(b), p->token_bytes));
}

void plan_print(const struct plan *p, FILE *f)
{
    char buf[32];
    fprintf(f, "model       %u layers, hidden %u, FFN %u, %u heads (%u KV) of %u, vocabulary %u, tensors %s\n", p->hparams.n_layers,
            p->hparams.hidden, p->hparams.ffn, p->hparams.n_heads, p->hparams.n_kv_heads, p->hparams.head_dim, p->hparams.vocab,
            util_format_bytes(buf, sizeof(buf), p->tensor_bytes));
    fprintf(f, "run         context %u x %u sequences, KV %s, chunks of %u tokens, %u in flight, logits %u rows a block\n",
            p->context, p->sequences, quant_name(p->kv_type), p->chunk_tokens, p->ring_slots, p->logits_rows);
    print_npu(p, f);
    print_xrt(p, f);
    fprintf(f, "threads     npu_worker %u, gpu_worker %u\n", p->npu_threads, p->gpu_threads);
    if (p->gpu.vulkan)
        fprintf(f, "device      '%s', %s memory%s%s%s\n", p->gpu.name, p->gpu.unified ? "unified" : "its own",
                p->device_bytes ? ": " : "", p->device_bytes ? util_format_bytes(buf, sizeof(buf), p->device_bytes) : "",
                p->device_bytes ? " there besides (accounted)" : "");
    else if (p->gpu.reason[0])
        fprintf(f, "device      none: %s\n", p->gpu.reason);
    fputc('\n', f);
    fprintf(f, "%-12s", "MiB");
    for (int k = 0; k < BUDGET_CATEGORIES; k++)
        fprintf(f, "%10s", budget_category_name((enum budget_category)k));
    fprintf(f, "%10s%10s%10s\n", "fixed", "total", "cap");
    uint64_t total = 0, cap = 0;
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        fprintf(f, "%-12s", plan_process_name((enum config_process)i));
        for (int k = 0; k < BUDGET_CATEGORIES; k++)
            fprintf(f, "%10.1f", (double)p->process[i].bytes[k] / MIB);
        fprintf(f, "%10.1f%10.1f%10.1f\n", (double)p->process[i].fixed / MIB, (double)p->process[i].total / MIB,
                (double)p->process[i].cap / MIB);
        total += p->process[i].total;
        cap += p->process[i].cap;
    }
    fprintf(f, "%-12s%*s%10.1f%10.1f\n\n", "all", 10 * (BUDGET_CATEGORIES + 1), "", (double)total / MIB, (double)cap / MIB);
    print_machine(p, total, f);
}

int plan_print_json(const struct plan *p, FILE *f, struct err *err)
{
    json_t *processes = json_object();
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        json_t *o = json_object();
        for (int k = 0; k < BUDGET_CATEGORIES; k++)
            json_object_set_new(o, budget_category_name((enum budget_category)k), json_integer((json_int_t)p->process[i].bytes[k]));
        json_object_set_new(o, "fixed", json_integer((json_int_t)p->process[i].fixed));
        json_object_set_new(o, "total", json_integer((json_int_t)p->process[i].total));
        json_object_set_new(o, "cap", json_integer((json_int_t)p->process[i].cap));
        json_object_set_new(processes, plan_process_name((enum config_process)i), o);
    }
    json_t *root = json_pack(
        "{s:i, s:i, s:i, s:s, s:I, s:I, s:i, s:i, s:i, s:i, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:o}", "layers",
        (int)p->hparams.n_layers, "context", (int)p->context, "sequences", (int)p->sequences, "kv_type", quant_name(p->kv_type),
        "kv_pages", (json_int_t)p->kv_pages, "npu_pool", (json_int_t)p->npu_pool, "chunk_tokens", (int)p->chunk_tokens,
        "ring_slots", (int)p->ring_slots, "npu_threads", (int)p->npu_threads, "gpu_threads", (int)p->gpu_threads, "gpu_device",
        p->gpu.vulkan ? p->gpu.name : "", "npu_device", p->npu.xrt ? p->npu.name : "", "npu_resident", (json_int_t)p->npu_resident,
        "npu_moved_bytes", (json_int_t)(p->npu.moved * (p->hparams.n_layers - p->npu_resident)), "device_bytes",
        (json_int_t)p->device_bytes, "tensor_bytes", (json_int_t)p->tensor_bytes, "token_bytes", (json_int_t)p->token_bytes,
        "machine_bytes", (json_int_t)p->machine.total, "machine_free_bytes", (json_int_t)p->machine.available, "read_rate",
        p->read_rate, "most_tokens_per_second", most_tokens(p), "processes", processes);
    int r = root && json_dumpf(root, f, JSON_INDENT(2)) == 0 && fputc('\n', f) != EOF ? 0 : -EIO;
    json_decref(root);
    return r < 0 ? err_set(err, r, "cannot write the plan as JSON") : 0;
}
