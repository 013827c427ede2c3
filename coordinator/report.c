/* SPDX-License-Identifier: MIT
 * Tables and JSON of memory per process against its cap and of tokens/s; used by the commands on the main thread. It measures
 * nothing: numbers come from engine_stats and from finished answers. */
#include "coordinator/report.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "coordinator/answer.h"
#include "coordinator/meter.h"
#include "coordinator/monitor.h"
#include "proto/budget.h"
#include "proto/config.h"
#include "proto/util.h"

#define MIB (1024.0 * 1024.0)

static uint64_t budget_sum(const struct engine_process_stats *s)
{
    uint64_t sum = 0;
    for (int i = 0; i < BUDGET_CATEGORIES; i++)
        sum += s->budget[i];
    return sum;
}

static void print_pool(const char *process, const struct engine_pool *p, FILE *f)
{
    const struct {
        const char *name;
        uint64_t bytes;
    } uses[] = {{"weights", p->weights},
                {"KV pages", p->kv},
                {"scratch", p->scratch},
                {"NPU tiles", p->tiles},
                {"NPU instructions", p->instructions}};
    char of[24], used[24], peak[24], largest[24];
    util_format_bytes(used, sizeof(used), monitor_pool_used(p));
    util_format_bytes(peak, sizeof(peak), p->peak);
    if (p->limited)
        fprintf(f, "%-12s %s of %s in use (%s at most), largest free part %s, %.0f%% fragmented:", process, used,
                util_format_bytes(of, sizeof(of), p->bytes), peak, util_format_bytes(largest, sizeof(largest), p->largest),
                100 * monitor_pool_fragmentation(p));
    else /* what the machine has is nothing that it may take */
        fprintf(f, "%-12s %s in use (%s at most; 'npu.memory' sets no limit):", process, used, peak);
    bool more = false;
    for (size_t i = 0; i < ARRAY_LEN(uses); i++) {
        char bytes[24];
        if (uses[i].bytes)
            fprintf(f, "%s %s %s", more ? "," : "", uses[i].name, util_format_bytes(bytes, sizeof(bytes), uses[i].bytes));
        more |= uses[i].bytes > 0;
    }
    fputc('\n', f);
}

void report_processes(const struct monitor_snapshot *m, FILE *f)
{
    const struct engine_process_stats *stats = m->process;
    int width = 12; /* of the longest backend's name */
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        width = MAX(width, (int)strlen(stats[i].backend));
    fprintf(f, "%-12s %8s  %-*s %11s %11s %11s  %s\n", "process", "pid", width, "backend", "budget", "peak", "cap", "cap held by");
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        const struct engine_process_stats *s = &stats[i];
        char budget[24], peak[24], cap[24];
        fprintf(f, "%-12s %8d  %-*s %11s %11s %11s  %s\n", s->name, s->pid, width, s->backend,
                util_format_bytes(budget, sizeof(budget), budget_sum(s)), util_format_bytes(peak, sizeof(peak), s->peak_bytes),
                util_format_bytes(cap, sizeof(cap), s->cap),
                !s->spawned       ? "others"
                : s->cap_enforced ? "kernel"
                                  : "accounted");
    }
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        const struct engine_process_stats *s = &stats[i];
        if (s->stream_visits)
            fprintf(f,
                    "%-12s streamed layers: there in time %" PRIu64 " of %" PRIu64
                    " times, waited for %.0f ms in all, %.1f ms on average, "
                    "%.1f ms at most\n",
                    s->name, s->stream_hits, s->stream_visits, (double)s->stream_wait_ns / 1e6,
                    (double)s->stream_wait_ns / 1e6 / (double)s->stream_visits, (double)s->stream_wait_max_ns / 1e6);
        if (stats[i].products)
            fprintf(f, "%-12s %" PRIu64 " of %" PRIu64 " operations of attention on the NPU\n", stats[i].name, stats[i].offloaded,
                    stats[i].products);
        if (stats[i].pool.bytes)
            print_pool(stats[i].name, &stats[i].pool, f);
        if (stats[i].restarts)
            fprintf(f, "%-12s started again %" PRIu64 " times; the last: %s\n", stats[i].name, stats[i].restarts,
                    stats[i].last_reason);
    }
}

void report_recovery(const struct engine_recovery *r, FILE *f)
{
    if (r->n)
        fprintf(f, "recoveries   %u; the last after the end of %s: pause %.1f ms (restart %.1f, remap %.1f, re-prefill %.1f)\n",
                r->n, r->stage, (double)r->pause_ns / 1e6, (double)r->restart_ns / 1e6, (double)r->remap_ns / 1e6,
                (double)r->reprefill_ns / 1e6);
}

json_t *report_recovery_json(const struct engine_recovery *r)
{
    return json_pack("{s:I, s:s, s:f, s:f, s:f, s:f, s:f}", "count", (json_int_t)r->n, "last_stage", r->n ? r->stage : "",
                     "detect_ms", (double)r->detect_ns / 1e6, "restart_ms", (double)r->restart_ns / 1e6, "remap_ms",
                     (double)r->remap_ns / 1e6, "reprefill_ms", (double)r->reprefill_ns / 1e6, "pause_ms",
                     (double)r->pause_ns / 1e6);
}

static void report_memory(const struct monitor_snapshot *m, FILE *f)
{
    fprintf(f, "%-12s", "MiB");
    for (int k = 0; k < BUDGET_CATEGORIES; k++)
        fprintf(f, "%17s", budget_category_name((enum budget_category)k));
    fprintf(f, "%10s%10s%10s%10s%10s%7s%9s\n", "private", "rss", "pss", "used", "cap", "kills", "restarts");
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        const struct engine_process_stats *s = &m->process[i];
        const uint64_t sizes[] = {s->anon, s->rss, s->pss, monitor_used(m, (enum config_process)i), s->cap};
        fprintf(f, "%-12s", s->name);
        for (int k = 0; k < BUDGET_CATEGORIES; k++)
            fprintf(f, "%10.1f/%6.1f", (double)s->budget[k] / MIB, (double)s->peak[k] / MIB);
        for (size_t k = 0; k < ARRAY_LEN(sizes); k++)
            fprintf(f, "%10.1f", (double)sizes[k] / MIB);
        fprintf(f, "%7" PRIu64 "%9" PRIu64 "%s\n", s->kills, s->restarts, s->answered ? "" : "  (does not answer)");
    }
}

void report_snapshot(const struct monitor_snapshot *m, FILE *f)
{
    const struct schedule_counts *c = &m->counts;
    char prompt[METER_TEXT], output[METER_TEXT];
    fprintf(f, "coordinator %d, %s, %.1f s since its start; context %u\n", m->process[CONFIG_COORDINATOR].pid,
            monitor_state_name(m->state), (double)m->uptime_ms / 1e3, m->context);
    fprintf(f, "requests    %u running of %u at most, %u waiting; %" PRIu64 " finished, %" PRIu64 " of them failed\n", c->running,
            c->sequences, c->queued, c->finished, c->failed);
    fprintf(f, "tokens/s    prompt %s, answers %s; tokens since start %" PRIu64 " and %" PRIu64 "\n",
            meter_text(prompt, c->prompt_per_second), meter_text(output, c->output_per_second), c->prompt_tokens, c->output_tokens);
    fprintf(f, "chunks      %u of %u in flight; rings:", c->in_flight, c->in_flight_most);
    for (int i = 0; i < SUPERVISE_RINGS; i++)
        fprintf(f, " %s %u/%u", m->rings[i].name, m->rings[i].fill, m->rings[i].slots);
    fprintf(f, "\nKV cache    %" PRIu64 " of %" PRIu64 " pages in use\n\n", m->kv_pages_used, m->kv_pages);
    report_processes(m, f);
    fprintf(f, "\nMemory by category, now/highest:\n");
    report_memory(m, f);
}

void report_answers(const struct answer *a, size_t n, FILE *f)
{
    for (size_t i = 0; i < n; i++) {
        if (n > 1)
            fprintf(f, "answer %zu: ", i);
        fprintf(f, "prompt %u tokens, %.1f tokens/s; answer %u tokens, %.1f tokens/s (%s)\n", a[i].result.n_prompt,
                answer_prefill_rate(&a[i]), a[i].result.n_output, answer_decode_rate(&a[i]),
                engine_finish_name(a[i].result.finish));
    }
}

int report_print_json(json_t *j, FILE *f, struct err *err)
{
    if (!j)
        return err_set(err, -ENOMEM, "JSON: out of memory");
    int r = json_dumpf(j, f, JSON_COMPACT | JSON_REAL_PRECISION(12));
    json_decref(j);
    if (r < 0 || fputc('\n', f) == EOF || fflush(f) == EOF)
        return err_set(err, -EIO, "standard output: cannot be written");
    return 0;
}
