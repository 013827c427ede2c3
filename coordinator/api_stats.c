/* SPDX-License-Identifier: MIT
 * GET /v1/stats and /metrics: a snapshot of the pipeline, and what the server has to say of itself, as JSON and for Prometheus. Who
 * asks while others wait gets the same snapshot (monitor.h). Called by api.c on the loop's thread. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/api_impl.h"
#include "coordinator/monitor.h"
#include "coordinator/monitor_json.h"
#include "proto/config.h"

struct api_asking {
    struct api_asking *next, *prev;
    struct api *api;
    struct http_exchange *x;
    struct monitor_wait wait;
    bool answered, metrics;
};

static json_t *stats_json(const struct api *a, const struct monitor_snapshot *s)
{
    json_t *j = monitor_json_make(s);
    json_t *http = json_pack("{s:i, s:i, s:I, s:i}", "connections", (int)http_connections(a->http), "max_connections",
                             (int)a->config->http.max_connections, "requests", (json_int_t)http_requests(a->http), "max_queue",
                             (int)a->config->http.max_queue);
    int r = json_object_set_new(j, "model", json_string(a->model));
    r |= json_object_set_new(j, "http", http);
    if (r == 0)
        return j;
    json_decref(j);
    return NULL;
}

static void answer_metrics(const struct api *a, struct http_exchange *x, const struct monitor_snapshot *s)
{
    const struct metrics_server server = {
        .model = a->model, .connections = http_connections(a->http), .requests = http_requests(a->http)};
    char *text = metrics_text(&a->metrics, &server, s);
    http_set_type(x, "text/plain; version=0.0.4; charset=utf-8", NULL);
    http_reply(x, 200, text, text ? strlen(text) : 0, 0);
}

static void on_snapshot(void *ctx, const struct monitor_snapshot *s)
{
    struct api_asking *w = ctx;
    w->answered = true;
    if (w->metrics)
        answer_metrics(w->api, w->x, s);
    else
        api_answer_json(w->x, 200, stats_json(w->api, s));
}

static void give_up(struct api_asking *w, const char *why)
{
    monitor_cancel(engine_monitor(w->api->engine), &w->wait);
    if (!w->answered)
        http_error(w->x, 503, NULL, "no_statistics", "%s", why);
    w->answered = true;
}

static void on_expired(void *ctx)
{
    give_up(ctx, "the stages did not answer");
}

static void on_ended(void *ctx)
{
    struct api_asking *w = ctx;
    monitor_cancel(engine_monitor(w->api->engine), &w->wait);
    *(w->prev ? &w->prev->next : &w->api->asking) = w->next;
    if (w->next)
        w->next->prev = w->prev;
    free(w);
}

static void ask(struct api *a, struct http_exchange *x, bool metrics)
{
    struct monitor *m = engine_monitor(a->engine);
    struct api_asking *w = m ? calloc(1, sizeof(*w)) : NULL;
    if (!m) {
        http_error(x, 503, NULL, "loading", "the pipeline is starting");
        return;
    }
    if (!w) {
        http_reply(x, 500, NULL, 0, 0);
        return;
    }
    *w = (struct api_asking){.next = a->asking, .api = a, .x = x, .metrics = metrics, .wait = {.done = on_snapshot, .ctx = w}};
    if (w->next)
        w->next->prev = w;
    a->asking = w;
    const struct http_work work = {.expired = on_expired, .ended = on_ended, .ctx = w};
    http_defer(x, &work);
    monitor_ask(m, &w->wait);
}

void api_stats(struct api *a, struct http_exchange *x)
{
    ask(a, x, false);
}

void api_metrics(struct api *a, struct http_exchange *x)
{
    ask(a, x, true);
}

void api_stats_close(struct api *a)
{
    for (struct api_asking *w = a->asking; w; w = w->next)
        give_up(w, "the server is ending");
}
