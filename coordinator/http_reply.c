/* SPDX-License-Identifier: MIT
 * Answers: whole ones, streams, and the wait for either. A reply is stored in the exchange and queued when libmicrohttpd calls
 * back, because only then may it be. Thread: the loop's. */
#include <jansson.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/http_impl.h"
#include "proto/err.h"
#include "proto/util.h"

#define STREAM_BLOCK_BYTES 4096
#define MAX_ASKED 1024u /* bytes of the names of headers that a page may send */

static void on_client_gone(uv_poll_t *p, int status, int events)
{
    struct connection *c = p->data;
    (void)status, (void)events;
    if (c->x)
        http_cut(c->x);
}

void http_suspend(struct http_exchange *x)
{
    if (x->suspended)
        return;
    x->suspended = true;
    MHD_suspend_connection(x->c->mhd);
    uv_poll_start(&x->c->watch, UV_DISCONNECT, on_client_gone);
}

void http_resume(struct http_exchange *x)
{
    if (!x->suspended)
        return;
    x->suspended = false;
    uv_poll_stop(&x->c->watch);
    MHD_resume_connection(x->c->mhd);
    http_run_soon(x->c->h);
}

void http_cut(struct http_exchange *x)
{
    x->cut = true;
    http_resume(x);
}

static ssize_t on_read(void *cls, uint64_t pos, char *buf, size_t max)
{
    struct http_exchange *x = cls;
    (void)pos;
    if (x->cut)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    ssize_t n = x->work.read(x->work.ctx, buf, max);
    if (n == 0)
        http_suspend(x);
    return n < 0 ? MHD_CONTENT_READER_END_OF_STREAM : n;
}

/* What a page of an origin that may use this server may send: the headers that its browser asks for, as OpenAI's client for
 * JavaScript sends a dozen of its own; they mean nothing here. What comes back is made of names of headers alone. */
static const char *headers_allowed(const struct http_exchange *x)
{
    static const char names[] = HTTP_TOKEN ", ";
    const char *asked = http_header(x, "Access-Control-Request-Headers");
    size_t n = asked ? strlen(asked) : 0;
    return n && n <= MAX_ASKED && !asked[strspn(asked, names)] ? asked : "Authorization, Content-Type";
}

static void add_headers(const struct http_exchange *x, struct MHD_Response *r)
{
    bool stream = x->state == HTTP_STREAMING;
    char seconds[16];
    const char *type = stream ? "text/event-stream; charset=utf-8" : x->type;
    MHD_add_response_header(r, "Content-Type", type ? type : "application/json");
    if (x->policy) {
        MHD_add_response_header(r, "Content-Security-Policy", x->policy);
        MHD_add_response_header(r, "Referrer-Policy", "no-referrer");
    }
    MHD_add_response_header(r, "Cache-Control", "no-store");
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    if (x->status == 401)
        MHD_add_response_header(r, "WWW-Authenticate", "Bearer");
    if (x->allow)
        MHD_add_response_header(r, "Allow", x->allow);
    if (x->close)
        MHD_add_response_header(r, "Connection", "close");
    if (x->retry_after) {
        snprintf(seconds, sizeof(seconds), "%u", x->retry_after);
        MHD_add_response_header(r, "Retry-After", seconds);
    }
    if (x->origin[0]) {
        MHD_add_response_header(r, "Access-Control-Allow-Origin", x->origin);
        MHD_add_response_header(r, "Access-Control-Expose-Headers", "Retry-After");
        MHD_add_response_header(r, "Vary", "Origin");
    }
    if (x->origin[0] && x->status == 204) {
        MHD_add_response_header(r, "Access-Control-Allow-Methods", "GET, POST");
        MHD_add_response_header(r, "Access-Control-Allow-Headers", headers_allowed(x));
        MHD_add_response_header(r, "Access-Control-Max-Age", "3600");
    }
}

enum MHD_Result http_send(struct http_exchange *x)
{
    struct MHD_Response *r = NULL;
    if (x->state == HTTP_DEFERRED) {
        http_suspend(x);
        return MHD_YES;
    }
    if (x->state == HTTP_STREAMING)
        r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, on_read, x, NULL);
    else if (x->answer)
        r = MHD_create_response_from_buffer(x->n_answer, x->answer, MHD_RESPMEM_MUST_FREE);
    if (!r)
        return MHD_NO;
    x->answer = NULL;
    add_headers(x, r);
    x->state = HTTP_QUEUED;
    enum MHD_Result ok = MHD_queue_response(x->c->mhd, x->status, r);
    MHD_destroy_response(r);
    return ok;
}

void http_reply(struct http_exchange *x, unsigned status, char *body, size_t n, unsigned retry_after)
{
    if (!body) {
        body = http_error_json(500, NULL, "out_of_memory", "out of memory");
        n = body ? strlen(body) : 0;
        status = 500;
        http_set_type(x, NULL, NULL);
    }
    free(x->answer);
    x->answer = body; /* NULL: the connection is cut */
    x->n_answer = n;
    x->status = status;
    x->retry_after = retry_after;
    x->deadline_ns = 0;
    x->state = x->state == HTTP_READING ? HTTP_REFUSED : HTTP_REPLIED;
    http_resume(x);
}

void http_set_type(struct http_exchange *x, const char *type, const char *policy)
{
    x->type = type;
    x->policy = policy;
}

static const char *error_type(unsigned status)
{
    if (status == 401)
        return "authentication_error";
    if (status == 429)
        return "rate_limit_error";
    return status >= 500 ? "server_error" : "invalid_request_error";
}

char *http_error_json(unsigned status, const char *param, const char *code, const char *text)
{
    json_t *message = json_string(text);
    if (!message) /* cut in the middle of a character, or bytes of the request */
        message = json_string("the request cannot be answered");
    json_t *j = json_pack("{s:{s:o, s:s, s:s?, s:s?}}", "error", "message", message, "type", error_type(status), "param", param,
                          "code", code);
    char *body = j ? json_dumps(j, JSON_COMPACT) : NULL;
    json_decref(j);
    return body;
}

/* What the request said comes back in messages: control characters and halves of characters are not repeated. */
static void clean(char *text)
{
    for (char *p = text; *p; p++) {
        if ((unsigned char)*p < ' ' || (unsigned char)*p >= 0x7F)
            *p = '?';
    }
}

void http_error(struct http_exchange *x, unsigned status, const char *param, const char *code, const char *fmt, ...)
{
    char text[ERR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    clean(text);
    http_set_type(x, NULL, NULL);
    char *body = http_error_json(status, param, code, text);
    http_reply(x, status, body, body ? strlen(body) : 0, status == 429 || status == 503 ? 1 : 0);
}

void http_not_allowed(struct http_exchange *x, const char *takes)
{
    x->allow = takes;
    http_error(x, 405, NULL, "method_not_allowed", "'%s' takes %s", x->path, takes);
}

static void set_work(struct http_exchange *x, const struct http_work *w, enum http_state state)
{
    x->work = *w;
    x->status = 200;
    x->state = state;
    x->deadline_ns = util_now_ns() + (uint64_t)x->c->h->config->request_timeout * 1000000000u;
}

void http_defer(struct http_exchange *x, const struct http_work *w)
{
    set_work(x, w, HTTP_DEFERRED);
}

void http_stream(struct http_exchange *x, const struct http_work *w)
{
    set_work(x, w, HTTP_STREAMING);
}

void http_wake(struct http_exchange *x)
{
    http_resume(x);
}

enum http_method http_method(const struct http_exchange *x)
{
    return x->method;
}

const char *http_path(const struct http_exchange *x)
{
    return x->path;
}

const char *http_body(const struct http_exchange *x, size_t *ret_n)
{
    *ret_n = x->n_body;
    return x->body ? x->body : "";
}

void http_drop_body(struct http_exchange *x)
{
    x->c->h->body_bytes -= x->room;
    free(x->body);
    x->body = NULL;
    x->n_body = x->room = 0;
}
