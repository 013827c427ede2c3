/* SPDX-License-Identifier: MIT
 * Owns no memory but the text that it makes. Called by api_job.c (observations, as tokens come) and api_stats.c (the text). What is
 * counted in a stage begins anew when it is started again, as Prometheus expects of a counter. */
#include "coordinator/metrics.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "coordinator/monitor.h"
#include "proto/util.h"

#define MODEL_LABEL_BYTES 300

static const double bounds[METRICS_BUCKETS] = {0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15,
                                               0.25,  0.5,    0.75,  1,    2.5,  5,    10,   30,   60,  300};

struct out {
    FILE *f;
    char model[MODEL_LABEL_BYTES]; /* as a label, escaped */
};

void metrics_observe(struct metrics_histogram *h, uint64_t ns)
{
    double s = (double)ns / 1e9;
    size_t i = 0;
    while (i < METRICS_BUCKETS && s > bounds[i])
        i++;
    h->buckets[i]++;
    h->sum += s;
}

static void family(const struct out *o, const char *name, const char *type, const char *help)
{
    fprintf(o->f, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void histogram(const struct out *o, const char *name, const char *help, const struct metrics_histogram *h)
{
    uint64_t count = 0;
    family(o, name, "histogram", help);
    for (size_t i = 0; i < METRICS_BUCKETS; i++) {
        count += h->buckets[i];
        fprintf(o->f, "%s_bucket{model_name=\"%s\",le=\"%g\"} %llu\n", name, o->model, bounds[i], (unsigned long long)count);
    }
    count += h->buckets[METRICS_BUCKETS];
    fprintf(o->f, "%s_bucket{model_name=\"%s\",le=\"+Inf\"} %llu\n", name, o->model, (unsigned long long)count);
    fprintf(o->f, "%s_sum{model_name=\"%s\"} %.9g\n%s_count{model_name=\"%s\"} %llu\n", name, o->model, h->sum, name, o->model,
            (unsigned long long)count);
}

static void of_model(const struct out *o, const char *name, const char *type, const char *help, double v)
{
    family(o, name, type, help);
    fprintf(o->f, "%s{model_name=\"%s\"} %.17g\n", name, o->model, v);
}

static void alone(const struct out *o, const char *name, const char *type, const char *help, double v)
{
    family(o, name, type, help);
    fprintf(o->f, "%s %.17g\n", name, v);
}

static void write_requests(const struct out *o, const struct metrics *m, const struct monitor_snapshot *s)
{
    of_model(o, "vllm:num_requests_running", "gauge", "Requests that have a sequence slot.", s->counts.running);
    of_model(o, "vllm:num_requests_waiting", "gauge", "Requests that wait for one.", s->counts.queued);
    of_model(o, "vllm:kv_cache_usage_perc", "gauge", "Used part of the KV cache's pages; 1 is all.",
             s->kv_pages ? (double)s->kv_pages_used / (double)s->kv_pages : 0);
    of_model(o, "vllm:prompt_tokens_total", "counter", "Prompt tokens processed.", (double)s->counts.prompt_tokens);
    of_model(o, "vllm:generation_tokens_total", "counter", "Tokens generated.", (double)s->counts.output_tokens);
    of_model(o, "vllm:prefix_cache_queries_total", "counter", "Prompt tokens that were looked for in what the KV cache keeps.",
             (double)s->counts.asked_tokens);
    of_model(o, "vllm:prefix_cache_hits_total", "counter", "Of these, those that were there.", (double)s->counts.cached_tokens);
    family(o, "vllm:request_success_total", "counter", "Answers of the HTTP server by how they ended.");
    static const struct {
        const char *reason;
        enum engine_finish finish;
    } reasons[] = {{"stop", ENGINE_FINISH_STOP}, {"length", ENGINE_FINISH_LENGTH}, {"abort", ENGINE_FINISH_CANCELLED}};
    for (size_t i = 0; i < ARRAY_LEN(reasons); i++) {
        uint64_t n = m->finished[reasons[i].finish];
        n += reasons[i].finish == ENGINE_FINISH_LENGTH ? m->finished[ENGINE_FINISH_CONTEXT] : 0;
        fprintf(o->f, "vllm:request_success_total{model_name=\"%s\",finished_reason=\"%s\"} %llu\n", o->model, reasons[i].reason,
                (unsigned long long)n);
    }
    of_model(o, "tandem_request_errors_total", "counter", "Answers of the HTTP server that ended with an error.",
             (double)m->finished[ENGINE_FINISH_ERROR]);
    histogram(o, "vllm:time_to_first_token_seconds", "From a request to its first token.", &m->first_token);
    histogram(o, "vllm:time_per_output_token_seconds", "From one token of an answer to the next.", &m->next_token);
    histogram(o, "vllm:e2e_request_latency_seconds", "From a request to the end of its answer.", &m->whole);
    histogram(o, "vllm:request_queue_time_seconds", "How long a request waited for a sequence slot.", &m->queue);
}

static void write_pipeline(const struct out *o, const struct metrics_server *server, const struct monitor_snapshot *s)
{
    family(o, "tandem_state", "gauge", "1 for the state that the pipeline is in.");
    for (int i = 0; i < MONITOR_STATES; i++)
        fprintf(o->f, "tandem_state{state=\"%s\"} %d\n", monitor_state_name((enum monitor_state)i),
                s->state == (enum monitor_state)i);
    alone(o, "tandem_uptime_seconds", "gauge", "Since the pipeline was begun.", (double)s->uptime_ms / 1e3);
    alone(o, "tandem_sequences", "gauge", "Sequence slots.", s->counts.sequences);
    alone(o, "tandem_chunks_in_flight", "gauge", "Chunks on their way through the stages.", s->counts.in_flight);
    alone(o, "tandem_chunks_in_flight_limit", "gauge", "How many may be.", s->counts.in_flight_most);
    alone(o, "tandem_kv_pages", "gauge", "Pages of the KV cache.", (double)s->kv_pages);
    alone(o, "tandem_kv_pages_used", "gauge", "Of these, in use.", (double)s->kv_pages_used);
    alone(o, "tandem_http_connections", "gauge", "Open connections.", server->connections);
    alone(o, "tandem_http_requests_total", "counter", "HTTP requests that were read.", (double)server->requests);
    family(o, "tandem_ring_fill_slots", "gauge", "Full slots of a ring between two processes.");
    for (int i = 0; i < SUPERVISE_RINGS; i++)
        fprintf(o->f, "tandem_ring_fill_slots{ring=\"%s\"} %u\n", s->rings[i].name, s->rings[i].fill);
    family(o, "tandem_ring_slots", "gauge", "Slots of a ring.");
    for (int i = 0; i < SUPERVISE_RINGS; i++)
        fprintf(o->f, "tandem_ring_slots{ring=\"%s\"} %u\n", s->rings[i].name, s->rings[i].slots);
}

struct process_metric {
    const char *name, *type, *help;
    size_t offset; /* of a uint64_t in struct engine_process_stats */
    double scale;
    bool stages; /* alone */
};

#define OF(name, type, help, member, scale, stages)                                      \
    {                                                                                    \
        name, type, help, offsetof(struct engine_process_stats, member), (scale), stages \
    }
static const struct process_metric process_metrics[] = {
    OF("tandem_memory_cap_bytes", "gauge", "The cap of a process.", cap, 1, false),
    OF("tandem_memory_peak_bytes", "gauge", "The most that it held against its cap.", peak_bytes, 1, false),
    OF("tandem_memory_kills_total", "counter", "Processes killed by the kernel for their cap.", kills, 1, false),
    OF("tandem_restarts_total", "counter", "How often a stage was started again.", restarts, 1, true),
    OF("tandem_chunks_total", "counter", "Chunks processed, once for each layer.", chunks, 1, true),
    OF("tandem_read_bytes_total", "counter", "Bytes read from the model's file, streamed weights included.", bytes_read, 1, true),
    OF("tandem_stream_visits_total", "counter", "Visits of chunks to streamed layers.", stream_visits, 1, true),
    OF("tandem_stream_hits_total", "counter", "Of these, with the weights there already.", stream_hits, 1, true),
    OF("tandem_stream_wait_seconds_total", "counter", "Time spent waiting for streamed weights.", stream_wait_ns, 1e-9, true),
    OF("tandem_busy_seconds_total", "counter", "Time spent computing.", busy_ns, 1e-9, true),
    OF("tandem_idle_seconds_total", "counter", "Time spent waiting for a chunk.", idle_ns, 1e-9, true),
    OF("tandem_blocked_seconds_total", "counter", "Time spent waiting for room in the next ring.", blocked_ns, 1e-9, true),
    OF("tandem_products_total", "counter",
       "Operations of attention that an NPU could have: matrix products, and attention itself where there is an operator.",
       products, 1, true),
    OF("tandem_products_offloaded_total", "counter", "Of these, those that an NPU computed.", offloaded, 1, true),
};
#undef OF

static void write_processes(const struct out *o, const struct monitor_snapshot *s)
{
    for (size_t k = 0; k < ARRAY_LEN(process_metrics); k++) {
        const struct process_metric *m = &process_metrics[k];
        family(o, m->name, m->type, m->help);
        for (int i = m->stages ? CONFIG_COORDINATOR + 1 : 0; i < CONFIG_PROCESSES; i++)
            fprintf(o->f, "%s{process=\"%s\"} %.17g\n", m->name, s->process[i].name,
                    (double)*(const uint64_t *)((const char *)&s->process[i] + m->offset) * m->scale);
    }
    family(o, "tandem_memory_used_bytes", "gauge", "What a process holds against its cap.");
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        fprintf(o->f, "tandem_memory_used_bytes{process=\"%s\"} %llu\n", s->process[i].name,
                (unsigned long long)monitor_used(s, (enum config_process)i));
    family(o, "tandem_memory_bytes", "gauge", "What a process accounts for, by category.");
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        for (int c = 0; c < BUDGET_CATEGORIES; c++)
            fprintf(o->f, "tandem_memory_bytes{process=\"%s\",category=\"%s\"} %llu\n", s->process[i].name,
                    budget_category_name((enum budget_category)c), (unsigned long long)s->process[i].budget[c]);
    }
    family(o, "tandem_process_up", "gauge", "1 while a process runs.");
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        fprintf(o->f, "tandem_process_up{process=\"%s\"} %d\n", s->process[i].name, s->process[i].pid != 0);
}

static void set_model(struct out *o, const char *model)
{
    size_t n = 0;
    for (; *model && n + 3 < sizeof(o->model); model++) {
        if (*model == '\\' || *model == '"' || *model == '\n')
            o->model[n++] = '\\';
        o->model[n++] = *model == '\n' ? 'n' : *model;
    }
    o->model[n] = '\0';
}

char *metrics_text(const struct metrics *m, const struct metrics_server *server, const struct monitor_snapshot *s)
{
    char *text = NULL;
    size_t n = 0;
    struct out o = {.f = open_memstream(&text, &n)};
    if (!o.f)
        return NULL;
    set_model(&o, server->model);
    write_requests(&o, m, s);
    write_pipeline(&o, server, s);
    write_processes(&o, s);
    bool failed = ferror(o.f);
    if (fclose(o.f) != EOF && !failed)
        return text;
    free(text);
    return NULL;
}
