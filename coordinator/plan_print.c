/* SPDX-License-Identifier: MIT
 * The plan as a table and as JSON. Reads the plan alone; computes nothing that anybody else depends on. */
#include <errno.h>
#include <inttypes.h>

#include <jansson.h>

#include "coordinator/plan.h"
#include "coordinator/plan_impl.h"
#include "kernels/quant.h"
#include "model/work_plan.h"
#include "proto/err.h"
#include "proto/memlock.h"
#include "proto/util.h"

#define MIB (1024.0 * 1024.0)

static uint64_t kv_tokens(const struct plan *p)
{
    struct work_plan_kv kv;
    work_plan_kv_init(&kv, &p->hparams, p->context, p->sequences, p->chunk_tokens, p->ring_slots, p->kv_type, p->kv_pages);
    return p->kv_pages * (uint64_t)p->context / kv.sequence_pages;
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
            "\nKV cache    %u pages of %u positions and %s, for %.1f sequences of %u (%" PRIu64 " tokens): %u a global "
            "layer, at most %u a local one\n",
            p->kv_pages, WORK_PLAN_PAGE_POSITIONS, util_format_bytes(page, sizeof(page), kv.page_bytes),
            (double)p->kv_pages / (double)kv.sequence_pages, p->context, kv_tokens(p), kv.global, kv.local);
}

/* Bytes of attention weights that move for a token: read by the processor, quantized, or unpacked to bf16 and sent to the NPU once
 * for a chunk. */
static void print_xrt(const struct plan *p, FILE *f)
{
    char few[32], many[32];
    if (p->npu.xrt)
        fprintf(f,
                "NPU         '%s', weights of %u layers stay there; moved for a token: %s on the processor, %s to the NPU in "
                "chunks of %u\n",
                p->npu.name, p->npu_resident, util_format_bytes(few, sizeof(few), p->attention_bytes),
                util_format_bytes(many, sizeof(many), p->npu.moved * (p->hparams.n_layers - p->npu_resident) / p->chunk_tokens),
                p->chunk_tokens);
    else if (p->npu.reason[0])
        fprintf(f, "NPU         not used: %s\n", p->npu.reason);
    if (p->npu.heap && p->npu.lockable != MEMLOCK_UNLIMITED)
        fprintf(f, "locked      %s for the NPU, its driver's heap included, of %s that may be (ulimit -l)\n",
                util_format_bytes(few, sizeof(few), plan_locked(p)), util_format_bytes(many, sizeof(many), p->npu.lockable));
}

/* The most that decode can reach where the processor reads all weights, and K and V of a full context, for every token. */
static double memory_tokens(const struct plan *p)
{
    struct work_plan_kv kv;
    work_plan_kv_init(&kv, &p->hparams, p->context, 1, 1, 1, p->kv_type, 0);
    return p->gpu.vulkan ? 0 : p->read_rate / (double)(p->token_bytes + kv.sequence_pages * kv.page_bytes);
}

/* And where the disk is read for every token. */
static double disk_tokens(const struct plan *p)
{
    return p->streamed_bytes ? p->disk_rate / (double)p->streamed_bytes : 0;
}

/* Both go on at the same time: the slower one decides. 0: not known. */
static double most_tokens(const struct plan *p)
{
    double a = memory_tokens(p), b = disk_tokens(p);
    return a > 0 && b > 0 ? MIN(a, b) : MAX(a, b);
}

static void print_residency(const struct plan *p, FILE *f)
{
    char a[32], b[32];
    fputs("weights     ", f);
    for (int i = CONFIG_NPU; i <= CONFIG_GPU; i++) {
        const struct residency *r = &p->residency[i];
        fprintf(f, "%s%s: %u layers pinned", i == CONFIG_NPU ? "" : "; ", plan_process_name((enum config_process)i),
                r->n_layers - r->n_streamed);
        if (r->n_streamed)
            fprintf(f, ", %u streamed through %u slots", r->n_streamed, r->n_slots);
    }
    fputc('\n', f);
    if (!p->streamed_bytes)
        return;
    fprintf(f, "streaming   %s of the file are read for a token", util_format_bytes(a, sizeof(a), p->streamed_bytes));
    if (p->disk_rate > 0)
        fprintf(f, "; its disk gives %s/s: at most %.2f tokens/s of one sequence",
                util_format_bytes(b, sizeof(b), (uint64_t)p->disk_rate), disk_tokens(p));
    fprintf(f, "; prompts in passes of %u tokens\n", p->ring_slots * p->chunk_tokens);
}

static void print_machine(const struct plan *p, uint64_t total, FILE *f)
{
    char a[32], b[32], c[32];
    if (p->machine.total)
        fprintf(f, "machine     %s of memory, %s of it free; the processes need %s%s\n",
                util_format_bytes(a, sizeof(a), p->machine.total), util_format_bytes(b, sizeof(b), p->machine.available),
                util_format_bytes(c, sizeof(c), total), plan_lacks_memory(p) ? ": close other programs first" : "");
    if (p->machine.total)
        machine_print(f);
    if (memory_tokens(p) > 0)
        fprintf(f,
                "speed       memory is read at %s/s by %u threads: at most %.1f tokens/s of one sequence, whose every token reads "
                "%s of weights\n",
                util_format_bytes(a, sizeof(a), (uint64_t)p->read_rate), MAX(p->npu_threads, p->gpu_threads), memory_tokens(p),
                util_format_bytes(b, sizeof(b), p->token_bytes));
}

/* For those who write units. */
static void print_others(const struct plan *p, FILE *f)
{
    bool any = false;
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        if (!p->process[i].others)
            continue;
        fprintf(f, "%s%s (MemoryMax=%" PRIu64 ")",
                any ? ", " : "others      start these, and enforce their caps: ", plan_process_name((enum config_process)i),
                p->process[i].cap);
        any = true;
    }
    if (any)
        fputc('\n', f);
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
    print_residency(p, f);
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
    if (p->total_cap)
        cap = p->total_cap;
    fprintf(f, "%-12s%*s%10.1f%10.1f\n\n", "all", 10 * (BUDGET_CATEGORIES + 1), "", (double)total / MIB, (double)cap / MIB);
    print_others(p, f);
    print_machine(p, total, f);
}

static json_t *change_json(const struct plan_change *c)
{
    json_t *o = json_pack("{s:s}", c->key, c->value);
    if (c->also)
        json_object_set_new(o, c->also, json_string(c->value));
    return o;
}

static json_t *refusal_json(const struct plan_refusal *r)
{
    json_t *o = json_pack("{s:b}", "fits", r->text[0] == '\0');
    if (!r->text[0])
        return o;
    json_t *raise = json_object(), *other = json_array();
    for (int i = 0; i < r->n_raise; i++)
        json_object_update_new(raise, change_json(&r->raise[i]));
    for (int i = 0; i < r->n_other; i++)
        json_array_append_new(other, change_json(&r->other[i]));
    json_object_set_new(o, "refusal", json_string(r->text));
    json_object_set_new(o, "raise", raise);
    json_object_set_new(o, "or_set", other);
    return o;
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
        json_object_set_new(o, "spawned", json_boolean(!p->process[i].others));
        json_object_set_new(processes, plan_process_name((enum config_process)i), o);
    }
    json_t *root = json_pack(
        "{s:i, s:i, s:i, s:s, s:I, s:I, s:i, s:i, s:i, s:i, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:o}",
        "layers", (int)p->hparams.n_layers, "context", (int)p->context, "sequences", (int)p->sequences, "kv_type",
        quant_name(p->kv_type), "kv_pages", (json_int_t)p->kv_pages, "npu_pool", (json_int_t)p->npu_pool, "chunk_tokens",
        (int)p->chunk_tokens, "ring_slots", (int)p->ring_slots, "npu_threads", (int)p->npu_threads, "gpu_threads",
        (int)p->gpu_threads, "gpu_device", p->gpu.vulkan ? p->gpu.name : "", "npu_device", p->npu.xrt ? p->npu.name : "",
        "npu_resident", (json_int_t)p->npu_resident, "npu_moved_bytes",
        (json_int_t)(p->npu.moved * (p->hparams.n_layers - p->npu_resident)), "device_bytes", (json_int_t)p->device_bytes,
        "tensor_bytes", (json_int_t)p->tensor_bytes, "token_bytes", (json_int_t)p->token_bytes, "streamed_bytes",
        (json_int_t)p->streamed_bytes, "machine_bytes", (json_int_t)p->machine.total, "machine_free_bytes",
        (json_int_t)p->machine.available, "read_rate", p->read_rate, "most_tokens_per_second", most_tokens(p), "processes",
        processes);
    for (int i = CONFIG_NPU; root && i <= CONFIG_GPU; i++) {
        const struct residency *r = &p->residency[i];
        json_object_set_new(json_object_get(processes, plan_process_name((enum config_process)i)), "layers",
                            json_pack("{s:i, s:i, s:i}", "pinned", (int)(r->n_layers - r->n_streamed), "streamed",
                                      (int)r->n_streamed, "slots", (int)r->n_slots));
    }
    json_t *more = json_pack("{s:I, s:I, s:f, s:f, s:f}", "memory_total", (json_int_t)p->total_cap, "kv_tokens",
                             (json_int_t)kv_tokens(p), "disk_rate", p->disk_rate, "disk_tokens_per_second", disk_tokens(p),
                             "memory_tokens_per_second", memory_tokens(p));
    json_object_update(root, more);
    json_decref(more);
    json_t *machine = machine_json();
    json_object_update(root, machine);
    json_decref(machine);
    json_object_update_new(root, refusal_json(&p->refusal));
    int r = root && json_dumpf(root, f, JSON_INDENT(2)) == 0 && fputc('\n', f) != EOF ? 0 : -EIO;
    json_decref(root);
    return r < 0 ? err_set(err, r, "cannot write the plan as JSON") : 0;
}
