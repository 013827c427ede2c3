/* SPDX-License-Identifier: MIT
 * Owns the daemon of libmicrohttpd, its place in the loop, and the list of connections. Called by cmd_serve.c; everything runs on
 * the loop's thread, inside MHD_run.
 *
 * libmicrohttpd polls nothing itself: its epoll descriptor is watched by the loop, and a timer follows MHD_get_timeout, or comes at
 * once when a connection was resumed (that alone does not make the descriptor readable). While an
 * answer is computed its connection is suspended; then libmicrohttpd does not look at the socket, so a uv_poll of ours looks for
 * the client's end. Whoever takes longer than 'http.timeout' over a request, or reads nothing of an answer for so long, is cut; at
 * the limit of connections whoever has been longest without a whole request is. */
#include "coordinator/http.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "coordinator/http_auth.h"
#include "coordinator/http_impl.h"
#include "coordinator/http_listen.h"
#include "proto/err.h"
#include "proto/io.h"
#include "proto/log.h"
#include "proto/util.h"

#define POOL_BYTES (32u << 10) /* of a connection: the head of a request, and a piece of an answer */
#define TICK_MS 250
#define SPARE 16u /* connections above the limit: they can ask, and get an answer which says that there are too many */
#define PEM_MAX_BYTES (1u << 20)
#define CLIENT_DISCIPLINE_LVL ((enum MHD_OPTION)38) /* MHD_OPTION_..., which headers before 1.0 do not know */

static void on_handle_closed(uv_handle_t *handle)
{
    struct http *h = handle->data;
    if (--h->n_handles)
        return;
    http_auth_close(h->auth);
    if (h->tls_key)
        explicit_bzero(h->tls_key, strlen(h->tls_key));
    free(h->tls_key);
    free(h->tls_cert);
    free(h);
}

static void on_timer(uv_timer_t *t);

static void run_daemon(struct http *h)
{
    MHD_UNSIGNED_LONG_LONG ms;
    h->woken = false;
    MHD_run(h->daemon);
    if (h->woken)
        uv_timer_start(&h->timer, on_timer, 0, 0);
    else if (MHD_get_timeout(h->daemon, &ms) == MHD_YES)
        uv_timer_start(&h->timer, on_timer, ms, 0);
    else
        uv_timer_stop(&h->timer);
}

static void on_timer(uv_timer_t *t)
{
    run_daemon(t->data);
}

void http_run_soon(struct http *h)
{
    h->woken = true;
    uv_timer_start(&h->timer, on_timer, 0, 0);
}

static void on_epoll(uv_poll_t *p, int status, int events)
{
    (void)status, (void)events;
    run_daemon(p->data);
}

/* It has not sent a whole request yet. */
static bool is_asking(const struct connection *c)
{
    return !c->x || c->x->state == HTTP_READING || c->x->state == HTTP_REFUSED;
}

bool http_full(const struct http *h)
{
    uint32_t n = 0;
    if (h->n_connections <= h->config->max_connections)
        return false;
    for (const struct connection *c = h->connections; c; c = c->next)
        n += !is_asking(c);
    return n > h->config->max_connections;
}

/* The last place is taken: who has been asking for longest gives way, or connections that never ask would keep out all others. */
static void make_room(const struct http *h, const struct connection *newest)
{
    const struct connection *oldest = NULL;
    for (const struct connection *c = h->connections; c; c = c->next) {
        if (c != newest && is_asking(c) && (!oldest || c->since_ns < oldest->since_ns))
            oldest = c;
    }
    if (oldest)
        shutdown(oldest->fd, SHUT_RDWR);
}

/* Requests whose time is over, and clients that are too slow in asking. */
static void on_tick(uv_timer_t *t)
{
    struct http *h = t->data;
    uint64_t now = util_now_ns(), patience = (uint64_t)h->config->timeout * 1000000000u;
    for (struct connection *c = h->connections, *next; c; c = next) {
        next = c->next;
        struct http_exchange *x = c->x;
        if (is_asking(c) && now - c->since_ns > patience)
            shutdown(c->fd, SHUT_RDWR);
        if (x && x->deadline_ns && now > x->deadline_ns) {
            x->deadline_ns = 0;
            x->work.expired(x->work.ctx);
        }
    }
    http_run_soon(h); /* after a shortage of descriptors nothing else makes it listen again */
}

static void on_watch_closed(uv_handle_t *handle)
{
    struct connection *c = handle->data;
    handle->data = c->h;
    on_handle_closed(handle);
    free(c);
}

/* A client that vanished without a word is found by keep-alive probes, one that acknowledges nothing by TCP_USER_TIMEOUT. */
static void set_socket(int fd, unsigned timeout_s)
{
    int on = 1, idle = 30, interval = 10, count = 3;
    unsigned ms = timeout_s * 1000;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms));
}

static void connection_open(struct http *h, struct MHD_Connection *mhd, void **socket_context)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct connection *c = calloc(1, sizeof(*c));
    if (!c || !info || uv_poll_init(h->loop, &c->watch, info->connect_fd) < 0) {
        free(c);
        return; /* its requests are cut: they find no connection */
    }
    *c = (struct connection){.h = h, .mhd = mhd, .fd = info->connect_fd, .watch = c->watch, .since_ns = util_now_ns()};
    c->watch.data = c;
    set_socket(c->fd, h->config->timeout);
    c->next = h->connections;
    if (c->next)
        c->next->prev = c;
    h->connections = c;
    h->n_connections++;
    h->n_handles++;
    *socket_context = c;
    if (h->n_connections >= h->config->max_connections + SPARE)
        make_room(h, c);
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **socket_context, enum MHD_ConnectionNotificationCode what)
{
    struct http *h = cls;
    struct connection *c = *socket_context;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        connection_open(h, mhd, socket_context);
        return;
    }
    if (!c)
        return;
    *(c->prev ? &c->prev->next : &h->connections) = c->next;
    if (c->next)
        c->next->prev = c->prev;
    h->n_connections--;
    h->woken = true;                                     /* at the limit, libmicrohttpd listens again with the next run only */
    uv_close((uv_handle_t *)&c->watch, on_watch_closed); /* leaves the loop's epoll now, before the socket is closed */
}

__attribute__((format(printf, 2, 0))) static void on_log(void *cls, const char *fmt, va_list args)
{
    char text[256];
    (void)cls;
    if (!log_enabled(LOG_DEBUG, "http"))
        return;
    vsnprintf(text, sizeof(text), fmt, args);
    text[strcspn(text, "\n")] = '\0';
    log_debug("http", "%s", text);
}

static int read_pem(const char *key, const char *path, char **ret, struct err *err)
{
    struct io_file *f;
    int r = io_open(path, false, &f, err);
    if (r < 0)
        return err_wrap(err, r, "key '%s'", key);
    size_t n = io_size(f);
    *ret = n <= PEM_MAX_BYTES ? calloc(1, n + 1) : NULL;
    r = *ret ? io_read(f, 0, *ret, n, err) : err_set(err, -EFBIG, "file '%s': expected a PEM file", path);
    io_close(f);
    return r < 0 ? err_wrap(err, r, "key '%s'", key) : 0;
}

/* As browsers send it: without a path, or a slash at its end. */
static int check_cors(const char *cors, struct err *err)
{
    const char *host = strstr(cors, "://");
    if (strcmp(cors, "none") == 0 || strcmp(cors, "*") == 0 || (host && host > cors && host[3] && !strpbrk(host + 3, "/?# ")))
        return 0;
    return err_set(err, -EINVAL,
                   "key 'http.cors': found '%.120s'; expected none, * or one origin such as https://chat.example.org, "
                   "without a path or a '/' at its end",
                   cors);
}

static int open_secrets(struct http *h, struct err *err)
{
    const struct config_http *c = h->config;
    int r = check_cors(c->cors, err);
    if (r == 0 && c->api_key_file[0])
        r = http_auth_open("key 'http.api_key_file'", c->api_key_file, &h->auth, err);
    if (r < 0)
        return r;
    if (!c->tls_cert[0] != !c->tls_key[0])
        return err_set(err, -EINVAL, "keys 'http.tls_cert' and 'http.tls_key': found one of them; expected both, or none");
    if (!c->tls_cert[0])
        return 0;
    if (MHD_is_feature_supported(MHD_FEATURE_TLS) != MHD_YES)
        return err_set(err, -ENOTSUP, "key 'http.tls_cert': this libmicrohttpd has no TLS");
    r = read_pem("http.tls_cert", c->tls_cert, &h->tls_cert, err);
    return r < 0 ? r : read_pem("http.tls_key", c->tls_key, &h->tls_key, err);
}

/* fd: taken. */
static int start_daemon(struct http *h, int fd, struct err *err)
{
    const struct config_http *c = h->config;
    struct MHD_OptionItem some[4] = {{MHD_OPTION_END, 0, NULL}}, *next = some;
    if (h->tls_cert) {
        *next++ = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_CERT, 0, h->tls_cert};
        *next++ = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_KEY, 0, h->tls_key};
    }
    if (http_library_is_strict())
        *next++ = (struct MHD_OptionItem){CLIENT_DISCIPLINE_LVL, 1, NULL};
    *next = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG | (h->tls_cert ? MHD_USE_TLS : 0);
    h->daemon = MHD_start_daemon(flags, 0, NULL, NULL, http_on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
                                 MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, c->max_connections + SPARE,
                                 MHD_OPTION_CONNECTION_TIMEOUT, c->timeout, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)POOL_BYTES,
                                 MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_URI_LOG_CALLBACK, http_on_target, h,
                                 MHD_OPTION_NOTIFY_COMPLETED, http_on_completed, h, MHD_OPTION_NOTIFY_CONNECTION, on_connection, h,
                                 MHD_OPTION_ARRAY, some, MHD_OPTION_END);
    if (h->daemon)
        return 0;
    close(fd);
    return err_set(err, -EIO, "HTTP server on %s: cannot be started%s", h->address,
                   h->tls_cert ? "; expected a certificate and its key in 'http.tls_cert' and 'http.tls_key' (PEM)" : "");
}

static int open_handles(struct http *h, struct err *err)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    int r = info ? uv_poll_init(h->loop, &h->epoll, info->epoll_fd) : UV_EBADF;
    if (r < 0)
        return err_set(err, r, "HTTP server: its epoll descriptor: %s", uv_strerror(r));
    uv_timer_init(h->loop, &h->timer);
    uv_timer_init(h->loop, &h->tick);
    h->epoll.data = h->timer.data = h->tick.data = h;
    h->n_handles = 3;
    uv_poll_start(&h->epoll, UV_READABLE, on_epoll);
    uv_timer_start(&h->tick, on_tick, TICK_MS, TICK_MS);
    return 0;
}

static void free_unopened(struct http *h)
{
    if (h->daemon)
        MHD_stop_daemon(h->daemon);
    uv_handle_t none = {.data = h};
    h->n_handles = 1;
    on_handle_closed(&none);
}

int http_open(uv_loop_t *loop, const struct config_http *c, http_handle_fn *handle, void *ctx, struct http **ret, struct err *err)
{
    struct http *h = calloc(1, sizeof(*h));
    if (!h)
        return err_set(err, -ENOMEM, "HTTP server: out of memory");
    *h = (struct http){.loop = loop, .config = c, .handle = handle, .ctx = ctx};
    int r = http_listen_check(c->listen, &h->loopback, err);
    if (r == 0 && !h->loopback && !c->api_key_file[0] && !c->insecure)
        r = err_set(
            err, -EPERM,
            "key 'http.listen': '%.80s' can be reached from other machines, and no key is asked for; set 'http.api_key_file', "
            "or 'http.insecure: true' if everybody may use it",
            c->listen);
    if (r == 0)
        r = open_secrets(h, err);
    int fd = r == 0 ? http_listen(c->listen, &h->loopback, h->address, sizeof(h->address), err) : r;
    if (fd >= 0)
        r = start_daemon(h, fd, err);
    else
        r = fd;
    if (r == 0)
        r = open_handles(h, err);
    if (r < 0) {
        free_unopened(h);
        return r;
    }
    *ret = h;
    return 0;
}

static void on_flush_end(uv_timer_t *t)
{
    *(bool *)t->data = true;
}

static void flush(struct http *h, unsigned ms)
{
    bool over = false;
    uv_timer_stop(&h->tick);
    h->tick.data = &over;
    uv_timer_start(&h->tick, on_flush_end, ms, 0);
    while (!over && h->n_exchanges)
        uv_run(h->loop, UV_RUN_ONCE);
    uv_timer_stop(&h->tick);
    h->tick.data = h;
}

void http_close(struct http *h, unsigned flush_ms)
{
    if (!h)
        return;
    MHD_socket listener = MHD_quiesce_daemon(h->daemon);
    if (listener != MHD_INVALID_SOCKET)
        close(listener);
    flush(h, flush_ms);
    for (struct connection *c = h->connections; c; c = c->next) {
        if (c->x)
            http_cut(c->x);
    }
    for (int i = 0; i < 4; i++) /* resumed ones take a round to come back, one to end */
        MHD_run(h->daemon);
    uv_close((uv_handle_t *)&h->epoll, on_handle_closed);
    uv_close((uv_handle_t *)&h->timer, on_handle_closed);
    uv_close((uv_handle_t *)&h->tick, on_handle_closed);
    MHD_stop_daemon(h->daemon);
    h->daemon = NULL;
}

const char *http_address(const struct http *h)
{
    return h->address;
}

bool http_tls(const struct http *h)
{
    return h->tls_cert != NULL;
}

uint32_t http_connections(const struct http *h)
{
    return h->n_connections;
}

uint64_t http_requests(const struct http *h)
{
    return h->n_requests;
}

uint64_t http_memory(const struct config_http *c)
{
    return (uint64_t)(c->max_connections + SPARE) * (POOL_BYTES + sizeof(struct connection) + sizeof(struct http_exchange) + 2048) +
           (HTTP_BODIES + 1) * c->max_body; /* while one grows it may be there twice */
}
