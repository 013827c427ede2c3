/* SPDX-License-Identifier: MIT
 * GET /v1/stats: the coordinator's own numbers, and those of the stages, which are asked by message. One question at a time; who
 * comes while it is on its way gets the same answer. Called by api.c on the loop's thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/api_impl.h"
#include "coordinator/report.h"
#include "proto/config.h"
#include "proto/util.h"

struct waiting {
    struct waiting *next, *prev;
    struct api *api;
    struct http_exchange *x;
    bool answered;
};

struct api_stats {
    struct engine_process_stats processes[CONFIG_PROCESSES];
    struct waiting *waiting;
    bool asked;
};

static json_t *stats_json(const struct api *a, const struct engine_process_stats *s)
{
    const struct plan *p = engine_plan(a->engine);
    uint32_t running = MIN(a->n_running, p->sequences);
    json_t *queue = json_pack("{s:i, s:i, s:i}", "running", (int)running, "waiting", (int)(a->n_running - running), "max_waiting",
                              (int)a->config->http.max_queue);
    json_t *http = json_pack("{s:i, s:i, s:I}", "connections", (int)http_connections(a->http), "max_connections",
                             (int)a->config->http.max_connections, "requests", (json_int_t)http_requests(a->http));
    json_t *tokens = json_pack("{s:I, s:I}", "prompt", (json_int_t)a->n_prompt, "generated", (json_int_t)a->n_output);
    return json_pack("{s:s, s:f, s:i, s:i, s:o, s:o, s:o, s:o}", "model", a->model, "uptime_s",
                     (double)(util_now_ns() - a->started_ns) / 1e9, "context", (int)p->context, "sequences", (int)p->sequences,
                     "requests", queue, "http", http, "tokens", tokens, "processes", report_processes_json(s));
}

static void answer_all(struct api *a, unsigned status, char *(*text)(struct api *a, const struct err *why), const struct err *why)
{
    for (struct waiting *w = a->stats->waiting; w; w = w->next) {
        if (w->answered)
            continue;
        char *body = text(a, why);
        w->answered = true;
        http_reply(w->x, status, body, body ? strlen(body) : 0, status == 503);
    }
}

static char *stats_text(struct api *a, const struct err *why)
{
    json_t *j = stats_json(a, a->stats->processes);
    char *text = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(12)) : NULL;
    (void)why;
    json_decref(j);
    return text;
}

static char *error_text(struct api *a, const struct err *why)
{
    (void)a;
    return http_error_json(503, NULL, "no_statistics", why->text);
}

static void on_stats(void *ctx, const struct err *failed)
{
    struct api *a = ctx;
    a->stats->asked = false;
    answer_all(a, failed ? 503 : 200, failed ? error_text : stats_text, failed);
}

static void on_expired(void *ctx)
{
    struct waiting *w = ctx;
    struct err why = {.code = -ETIMEDOUT, .text = "the stages did not answer"};
    char *body = w->answered ? NULL : error_text(w->api, &why);
    if (body)
        http_reply(w->x, 503, body, strlen(body), 1);
    w->answered = true;
}

static void on_ended(void *ctx)
{
    struct waiting *w = ctx;
    *(w->prev ? &w->prev->next : &w->api->stats->waiting) = w->next;
    if (w->next)
        w->next->prev = w->prev;
    free(w);
}

static int ask(struct api *a, struct err *err)
{
    if (!a->stats)
        a->stats = calloc(1, sizeof(*a->stats));
    if (!a->stats)
        return err_set(err, -ENOMEM, "out of memory");
    if (a->stats->asked)
        return 0;
    int r = engine_stats_ask(a->engine, a->stats->processes, on_stats, a, err);
    a->stats->asked = r == 0;
    return r;
}

void api_stats(struct api *a, struct http_exchange *x)
{
    struct err err = {0};
    struct waiting *w = calloc(1, sizeof(*w));
    int r = w ? ask(a, &err) : err_set(&err, -ENOMEM, "out of memory");
    if (r < 0) {
        free(w);
        http_error(x, r == -ENOMEM ? 500 : 503, NULL, "no_statistics", "%s", err.text);
        return;
    }
    *w = (struct waiting){.next = a->stats->waiting, .api = a, .x = x};
    if (w->next)
        w->next->prev = w;
    a->stats->waiting = w;
    const struct http_work work = {.expired = on_expired, .ended = on_ended, .ctx = w};
    http_defer(x, &work);
}

void api_stats_close(struct api *a)
{
    struct err why = {.code = -ECANCELED, .text = "the server is ending"};
    if (a->stats)
        answer_all(a, 503, error_text, &why);
}
