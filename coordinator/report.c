/* SPDX-License-Identifier: MIT
 * Tables and JSON of memory per process against its cap and of tokens/s; used by the commands on the main thread. It measures
 * nothing: numbers come from engine_stats and from finished answers. */
#include "coordinator/report.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "coordinator/answer.h"
#include "proto/budget.h"
#include "proto/config.h"
#include "proto/util.h"

static uint64_t budget_sum(const struct engine_process_stats *s)
{
    uint64_t sum = 0;
    for (int i = 0; i < BUDGET_CATEGORIES; i++)
        sum += s->budget[i];
    return sum;
}

void report_processes(const struct engine_process_stats *stats, FILE *f)
{
    int width = 12; /* of the longest backend's name */
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        width = MAX(width, (int)strlen(stats[i].backend));
    fprintf(f, "%-12s %8s  %-*s %11s %11s %11s  %s\n", "process", "pid", width, "backend", "budget", "peak", "cap", "cap held by");
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        const struct engine_process_stats *s = &stats[i];
        char budget[24], peak[24], cap[24];
        fprintf(f, "%-12s %8d  %-*s %11s %11s %11s  %s\n", s->name, s->pid, width, s->backend,
                util_format_bytes(budget, sizeof(budget), budget_sum(s)), util_format_bytes(peak, sizeof(peak), s->peak_bytes),
                util_format_bytes(cap, sizeof(cap), s->cap), s->cap_enforced ? "kernel" : "accounted");
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
            fprintf(f, "%-12s %" PRIu64 " of %" PRIu64 " matrix products on the NPU\n", stats[i].name, stats[i].offloaded,
                    stats[i].products);
    }
}

json_t *report_processes_json(const struct engine_process_stats *stats)
{
    json_t *list = json_array();
    for (int i = 0; list && i < CONFIG_PROCESSES; i++) {
        const struct engine_process_stats *s = &stats[i];
        json_t *budget = json_object();
        for (int k = 0; k < BUDGET_CATEGORIES; k++)
            json_object_set_new(budget, budget_category_name((enum budget_category)k), json_integer((json_int_t)s->budget[k]));
        json_object_set_new(budget, "total", json_integer((json_int_t)budget_sum(s)));
        json_object_set_new(budget, "total_peak", json_integer((json_int_t)s->total_peak));
        json_t *one = json_pack(
            "{s:s, s:i, s:s, s:I, s:b, s:I, s:I, s:I, s:o, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "name", s->name,
            "pid", s->pid, "backend", s->backend, "cap_bytes", (json_int_t)s->cap, "cap_enforced", (int)s->cap_enforced,
            "peak_bytes", (json_int_t)s->peak_bytes, "rss_bytes", (json_int_t)s->rss, "pss_bytes", (json_int_t)s->pss, "budget",
            budget, "busy_ms", (double)s->busy_ns / 1e6, "idle_ms", (double)s->idle_ns / 1e6, "blocked_ms",
            (double)s->blocked_ns / 1e6, "chunks", (json_int_t)s->chunks, "bytes_read", (json_int_t)s->bytes_read, "products",
            (json_int_t)s->products, "offloaded", (json_int_t)s->offloaded, "stream_visits", (json_int_t)s->stream_visits,
            "stream_hits", (json_int_t)s->stream_hits, "stream_wait_ms", (double)s->stream_wait_ns / 1e6, "stream_wait_max_ms",
            (double)s->stream_wait_max_ns / 1e6);
        if (!one || json_array_append_new(list, one) < 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
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
