/* SPDX-License-Identifier: MIT
 * What http.c (daemon, loop, connections), http_head.c (heads of requests), http_request.c (reading and checking) and http_reply.c
 * (answering) share. */
#ifndef TANDEM_COORDINATOR_HTTP_IMPL_H
#define TANDEM_COORDINATOR_HTTP_IMPL_H

#include <microhttpd.h>
#include <uv.h>

#include "coordinator/http.h"
#include "proto/config.h"

#define HTTP_BODIES 8u /* so many times max_body may be held by all requests together */

struct connection {
    struct connection *next, *prev;
    struct http *h;
    struct MHD_Connection *mhd;
    struct http_exchange *x; /* at most one at a time */
    int fd;                  /* libmicrohttpd's */
    uv_poll_t watch;         /* for the client's end, while libmicrohttpd does not look */
    uint64_t since_ns;       /* the connection, or its last answer; a request must be there within the timeout */
    size_t target_bytes;     /* of the request that comes, as it was sent: with its %XX and its query */
    size_t scheme_bytes;     /* of a target in absolute form ("http://", RFC 9112, 3.2.2); 0: in origin form */
    bool bad_target;         /* it has what no target has */
};

struct http {
    uv_loop_t *loop;
    const struct config_http *config;
    http_handle_fn *handle;
    void *ctx;
    struct http_auth *auth;   /* NULL: no key is asked for */
    char *tls_cert, *tls_key; /* NULL: no TLS */
    struct MHD_Daemon *daemon;
    uv_poll_t epoll;
    uv_timer_t timer, tick;
    uint32_t n_handles; /* of the loop; the memory goes with the last one */
    char address[64];
    bool loopback;
    bool woken; /* since the last MHD_run */
    struct connection *connections;
    uint32_t n_connections, n_exchanges;
    size_t body_bytes; /* of all exchanges */
    uint64_t n_requests;
};

enum http_state {
    HTTP_READING,
    HTTP_REFUSED,  /* status and body are there, but its own body may still come */
    HTTP_HANDLING, /* inside `handle` */
    HTTP_DEFERRED,
    HTTP_REPLIED, /* status and body are there, not queued */
    HTTP_STREAMING,
    HTTP_QUEUED /* libmicrohttpd has it */
};

struct http_exchange {
    struct connection *c;
    enum http_state state;
    enum http_method method;
    char path[256];
    char origin[256]; /* answered with CORS headers; "" = none */
    char *body;
    size_t n_body, room, dropped; /* dropped: bytes of a body that is not kept */
    bool overloaded;              /* why: others held the memory */
    bool suspended, cut;          /* cut: end the connection */
    bool close;                   /* after the answer */
    unsigned status, retry_after;
    char *answer;
    size_t n_answer;
    const char *type, *policy, *allow; /* of the answer; NULL: JSON, none, none */
    struct http_work work;
    uint64_t deadline_ns; /* 0: none */
};

/* http.c */
void http_run_soon(struct http *h);
bool http_full(const struct http *h); /* more connections have a request that is whole, and not answered yet, than may */
/* http_head.c */
void *http_on_target(void *cls, const char *target, struct MHD_Connection *mhd);
/* Refuses heads and chunks that can be read in two ways, with HTML of its own. */
bool http_library_is_strict(void);
/* What names and methods are made of: RFC 9110, 5.6.2. */
#define HTTP_TOKEN "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
const char *http_header(const struct http_exchange *x, const char *name); /* NULL: there is none */
/* False: it was answered, and nothing behind it on the connection may be taken for a request. ret_length: of the body, 0 where it
 * comes in chunks. */
bool http_head_check(struct http_exchange *x, const char *url, const char *method, const char *version, uint64_t *ret_length);
/* http_request.c */
enum MHD_Result http_on_request(void *cls, struct MHD_Connection *mhd, const char *url, const char *method, const char *version,
                                const char *upload, size_t *upload_size, void **con_cls);
void http_on_completed(void *cls, struct MHD_Connection *mhd, void **con_cls, enum MHD_RequestTerminationCode how);
struct connection *http_connection_of(struct MHD_Connection *mhd);
/* http_reply.c */
enum MHD_Result http_send(struct http_exchange *x); /* queue what there is, or suspend */
void http_suspend(struct http_exchange *x);
void http_resume(struct http_exchange *x);
void http_cut(struct http_exchange *x); /* end the connection as soon as libmicrohttpd runs */

#endif
