/* SPDX-License-Identifier: MIT
 * Routes, and the answers that need no more than a line: health, models. Owns the HTTP server of the running coordinator. Called by
 * cmd_serve.c; requests come from http.c on the loop's thread. */
#include "coordinator/api.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "coordinator/api_impl.h"
#include "coordinator/json_cost.h"
#include "coordinator/page.h"
#include "proto/config.h"
#include "proto/utf8.h"
#include "proto/util.h"

#define JSON_FACTOR 40u /* a tree may take so many times max_body: lists of ids take 28, many short messages as much */
#define FLUSH_MS 1000u

int api_refuse(struct api_refusal *r, unsigned status, const char *param, const char *code, const char *fmt, ...)
{
    va_list args;
    r->status = status;
    r->code = code;
    r->err.code = -EINVAL;
    snprintf(r->param, sizeof(r->param), "%s", param ? param : "");
    va_start(args, fmt);
    vsnprintf(r->err.text, sizeof(r->err.text), fmt, args);
    va_end(args);
    return -EINVAL;
}

void api_answer_refusal(struct http_exchange *x, const struct api_refusal *why)
{
    http_error(x, why->status, why->param[0] ? why->param : NULL, why->code, "%s", why->err.text);
}

void api_answer_json(struct http_exchange *x, unsigned status, json_t *j)
{
    char *body = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(12)) : NULL;
    json_decref(j);
    http_reply(x, status, body, body ? strlen(body) : 0, status == 503);
}

static void health(struct api *a, struct http_exchange *x)
{
    const char *reason;
    enum engine_state state = engine_state(a->engine, &reason);
    if (state == ENGINE_READY)
        api_answer_json(x, 200, json_pack("{s:s}", "status", "ok"));
    else
        api_answer_json(x, 503, json_pack("{s:s, s:s}", "status", engine_state_name(state), "reason", reason));
}

static json_t *model_json(const struct api *a)
{
    return json_pack("{s:s, s:s, s:I, s:s, s:i}", "id", a->model, "object", "model", "created", (json_int_t)a->created, "owned_by",
                     "tandem", "max_model_len", (int)engine_plan(a->engine)->context);
}

static void models(struct api *a, struct http_exchange *x)
{
    api_answer_json(x, 200, json_pack("{s:s, s:[o]}", "object", "list", "data", model_json(a)));
}

static void one_model(struct api *a, struct http_exchange *x, const char *name)
{
    if (strcmp(name, a->model) == 0)
        api_answer_json(x, 200, model_json(a));
    else
        http_error(x, 404, "model", "model_not_found", "there is no model '%.80s'; expected '%s'", name, a->model);
}

uint64_t api_json_bytes(const struct config_http *c)
{
    return JSON_FACTOR * c->max_body;
}

/* The body as a JSON object; NULL: answered. A tree that the plan has no room for is not begun. */
static json_t *read_body(const struct api *a, struct http_exchange *x)
{
    json_error_t e;
    size_t n;
    const char *body = http_body(x, &n);
    uint64_t cost = json_cost(body, n), most = api_json_bytes(&a->config->http);
    if (cost > most) {
        http_error(x, 400, NULL, "json_too_complex",
                   "the body's objects, lists and values could take %llu bytes of memory; 'http.max_body' allows bodies that take "
                   "%llu: fewer or longer values, or a larger 'http.max_body'",
                   (unsigned long long)cost, (unsigned long long)most);
        return NULL;
    }
    json_t *j = json_loadb(body, n, JSON_REJECT_DUPLICATES, &e);
    if (j && json_is_object(j)) {
        http_drop_body(x);
        return j;
    }
    if (j)
        http_error(x, 400, NULL, "invalid_json", "the body is a list; expected a JSON object");
    else if (json_error_code(&e) == json_error_out_of_memory)
        http_error(x, 500, NULL, "out_of_memory", "out of memory");
    else if (json_error_code(&e) == json_error_numeric_overflow)
        http_error(x, 400, NULL, "invalid_value",
                   "the body has a number that is too large, at byte %d: %s; expected whole numbers of 64 bits with a sign, others "
                   "below 1.8e308",
                   e.position, e.text);
    else if (json_error_code(&e) == json_error_null_character || json_error_code(&e) == json_error_null_byte_in_key)
        http_error(x, 400, NULL, "invalid_value", "the body has a \\u0000 in a text, at byte %d; expected text without it",
                   e.position);
    else
        http_error(x, 400, NULL, "invalid_json", "the body is not JSON, at byte %d: %s; expected an object", e.position, e.text);
    json_decref(j);
    return NULL;
}

/* While a stage that ended is started again, requests wait in the queue. */
static bool ready(struct api *a, struct http_exchange *x)
{
    const char *reason;
    enum engine_state state = engine_state(a->engine, &reason);
    if (state == ENGINE_READY || state == ENGINE_RECOVERING)
        return true;
    http_error(x, 503, NULL, engine_state_name(state), "not ready: %s", reason);
    return false;
}

static void chat(struct api *a, struct http_exchange *x, json_t *j)
{
    api_job_start(a, x, API_CHAT, j);
}

static void complete(struct api *a, struct http_exchange *x, json_t *j)
{
    api_job_start(a, x, API_COMPLETION, j);
}

static const struct {
    const char *path;
    void (*get)(struct api *a, struct http_exchange *x);
    void (*post)(struct api *a, struct http_exchange *x, json_t *j); /* takes j */
    bool needs_engine;
} routes[] = {
    {"/health", health, NULL, false},           {"/v1/models", models, NULL, false},
    {"/v1/stats", api_stats, NULL, false},      {"/metrics", api_metrics, NULL, false},
    {"/v1/chat/completions", NULL, chat, true}, {"/v1/completions", NULL, complete, true},
    {"/tokenize", NULL, api_tokenize, false},   {"/detokenize", NULL, api_detokenize, false},
};

static void route(struct api *a, struct http_exchange *x, size_t i)
{
    enum http_method m = http_method(x);
    if (m == HTTP_GET ? !routes[i].get : m != HTTP_POST || !routes[i].post) {
        http_not_allowed(x, routes[i].get ? "GET, HEAD" : "POST");
        return;
    }
    if (routes[i].needs_engine && !ready(a, x))
        return;
    if (m == HTTP_GET) {
        routes[i].get(a, x);
        return;
    }
    json_t *j = read_body(a, x);
    if (j)
        routes[i].post(a, x, j);
}

static void page(struct http_exchange *x, const struct page_file *f)
{
    size_t n = (size_t)(f->end - f->begin);
    char *body = malloc(n);
    if (body)
        memcpy(body, f->begin, n);
    http_set_type(x, f->type, PAGE_POLICY);
    http_reply(x, 200, body, n, 0);
}

static void on_request(void *ctx, struct http_exchange *x)
{
    struct api *a = ctx;
    const char *path = http_path(x);
    for (size_t i = 0; i < ARRAY_LEN(routes); i++) {
        if (strcmp(routes[i].path, path) == 0) {
            route(a, x, i);
            return;
        }
    }
    const struct page_file *f = page_find(path);
    bool model = strncmp(path, "/v1/models/", 11) == 0;
    if ((f || model) && http_method(x) != HTTP_GET)
        http_not_allowed(x, "GET, HEAD");
    else if (f)
        page(x, f);
    else if (model)
        one_model(a, x, path + 11);
    else
        http_error(x, 404, NULL, "not_found", "there is nothing at '%.80s'; docs/HTTP.md lists the paths", path);
}

static void set_model(struct api *a)
{
    struct stat st;
    config_model_name(a->config, a->model, sizeof(a->model));
    a->created = stat(a->config->model, &st) == 0 ? (int64_t)st.st_mtime : 0;
}

int api_open(const struct config *c, struct engine *e, const struct tokenizer *t, struct api **ret, struct err *err)
{
    struct api *a = calloc(1, sizeof(*a));
    if (!a)
        return err_set(err, -ENOMEM, "HTTP server: out of memory");
    *a = (struct api){.config = c, .engine = e, .tokenizer = t};
    set_model(a);
    int r = utf8_valid(a->model, strlen(a->model))
                ? 0
                : err_set(err, -EINVAL, "the name of the model's file is no UTF-8; set 'http.model_name'");
    if (r == 0)
        r = http_open(engine_loop(e), &c->http, on_request, a, &a->http, err);
    if (r < 0) {
        free(a);
        return r;
    }
    *ret = a;
    return 0;
}

void api_close(struct api *a)
{
    if (!a)
        return;
    struct err why = {.code = -ECANCELED, .text = "the server is ending"};
    api_jobs_fail(a, 503, &why);
    api_stats_close(a);
    http_close(a->http, FLUSH_MS);
    api_format_free(a);
    free(a);
}

const struct http *api_http(const struct api *a)
{
    return a->http;
}
