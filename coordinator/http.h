/* SPDX-License-Identifier: MIT
 * An HTTP/1.1 server on somebody's libuv loop: libmicrohttpd without threads, its epoll descriptor under the loop. It reads whole
 * requests within limits, checks what must hold for all of them (framing, origin, API key) and hands them to one function, which
 * answers at once, later, or as a stream. It knows no model. Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_HTTP_H
#define TANDEM_COORDINATOR_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct config_http;
struct err;
struct http;
struct http_exchange; /* one request and its answer */
struct uv_loop_s;

enum http_method { HTTP_GET, HTTP_POST, HTTP_OTHER }; /* HEAD is GET; OPTIONS is answered here */

/* The request was read whole. Before it returns, `handle` calls one of http_reply, http_error, http_defer, http_stream. */
typedef void http_handle_fn(void *ctx, struct http_exchange *x);

/* Listens. c: borrowed until http_close. */
int http_open(struct uv_loop_s *loop, const struct config_http *c, http_handle_fn *handle, void *ctx, struct http **ret,
              struct err *err);
/* Takes no more connections, sends what is queued for at most `flush_ms` (running the loop), cuts the rest. NULL is fine. Memory
 * goes when the loop has run once more. Not inside a callback of the loop. */
void http_close(struct http *h, unsigned flush_ms);
const char *http_address(const struct http *h); /* "127.0.0.1:8080", "[::1]:8080" with the port that was bound */
bool http_tls(const struct http *h);
uint32_t http_connections(const struct http *h);
uint64_t http_requests(const struct http *h); /* handed to `handle` so far */
/* Memory that connections and requests may take together, JSON trees of bodies left out. */
uint64_t http_memory(const struct config_http *c);

/* Of the request; borrowed until the exchange ends. */
enum http_method http_method(const struct http_exchange *x);
const char *http_path(const struct http_exchange *x);
const char *http_body(const struct http_exchange *x, size_t *ret_n);
void http_drop_body(struct http_exchange *x); /* it was read: its memory is free for others */

/* body: malloc'ed, taken; NULL: out of memory, which is answered as such. retry_after: seconds, 0 = none. */
void http_reply(struct http_exchange *x, unsigned status, char *body, size_t n, unsigned retry_after);
/* Before http_reply: the answer is of another type than JSON. policy: its Content-Security-Policy, or NULL. Texts that live on. */
void http_set_type(struct http_exchange *x, const char *type, const char *policy);
/* OpenAI's error object. param, code: may be NULL. */
void http_error(struct http_exchange *x, unsigned status, const char *param, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* 405: this path takes other methods, "GET, HEAD" for instance; a text that lives on. */
void http_not_allowed(struct http_exchange *x, const char *takes);
/* The text of such an object, malloc'ed; NULL: out of memory. */
char *http_error_json(unsigned status, const char *param, const char *code, const char *text);

struct http_work {
    /* For http_stream: up to max bytes of what is there; 0: nothing now, http_wake says when; -1: the end. */
    ssize_t (*read)(void *ctx, char *buf, size_t max);
    /* The request's time is over. Answer (or end the stream) and wake. */
    void (*expired)(void *ctx);
    /* The exchange is over: answered, or the client is gone. x is not to be used again. Called once, also in http_close. */
    void (*ended)(void *ctx);
    void *ctx;
};
void http_defer(struct http_exchange *x, const struct http_work *w);  /* http_reply comes later */
void http_stream(struct http_exchange *x, const struct http_work *w); /* 200 and server-sent events */
void http_wake(struct http_exchange *x);                              /* `read` has something */

#endif
