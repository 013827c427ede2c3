/* SPDX-License-Identifier: MIT
 * Owns the listening socket and a fixed number of clients; called by engine.c, events come from the loop. A client has one request
 * at a time: while its answer is made and written nothing is read from it, so that memory is bounded and whoever does not read
 * waits for himself. Nothing that a client sends ends more than its own connection. */
#include "coordinator/control.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "coordinator/monitor.h"
#include "coordinator/monitor_json.h"
#include "coordinator/runtime_dir.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

struct client {
    struct control *owner;
    uv_pipe_t pipe;
    uv_timer_t timer;
    uv_write_t write;
    int n_handles;              /* not closed yet; 0: this client is free */
    bool closing, busy, at_end; /* busy: a request is being answered; at_end: nothing more will come */
    bool last;                  /* the answer under way is the last */
    uint64_t idle_since;        /* uv_now */
    struct monitor_wait wait;
    char in[CONTROL_LINE_MAX], *out;
    size_t n_in;
};

struct control {
    uv_pipe_t server;
    bool server_open, knocked; /* knocked: somebody waits to be accepted */
    struct monitor *monitor;
    char dir[4096];
    struct client clients[CONTROL_CLIENTS];
};

static void accept_client(struct control *c);
static void next_request(struct client *k);

static void on_client_closed(uv_handle_t *h)
{
    struct client *k = h->data;
    if (--k->n_handles == 0 && k->owner->knocked && k->owner->server_open)
        accept_client(k->owner);
}

static void drop(struct client *k)
{
    if (k->closing)
        return;
    k->closing = true;
    monitor_cancel(k->owner->monitor, &k->wait);
    uv_close((uv_handle_t *)&k->pipe, on_client_closed);
    uv_close((uv_handle_t *)&k->timer, on_client_closed);
}

static void on_deadline(uv_timer_t *t)
{
    drop(t->data);
}

static void on_written(uv_write_t *w, int status)
{
    struct client *k = w->data;
    free(k->out);
    k->out = NULL;
    if (k->closing)
        return;
    if (status < 0 || k->last) {
        drop(k);
        return;
    }
    k->busy = false;
    next_request(k);
}

/* Takes j; NULL is out of memory. */
static void answer(struct client *k, json_t *j)
{
    char newline[] = "\n";
    k->out = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(12)) : NULL;
    json_decref(j);
    if (!k->out) {
        drop(k);
        return;
    }
    size_t n = strlen(k->out);
    char *whole = realloc(k->out, n + 2);
    if (whole) {
        k->out = whole;
        memcpy(whole + n, newline, sizeof(newline));
    }
    uv_buf_t buf = uv_buf_init(k->out, (unsigned)n + 1);
    k->write.data = k;
    uv_timer_start(&k->timer, on_deadline, CONTROL_WRITE_MS, 0);
    if (!whole || uv_write(&k->write, (uv_stream_t *)&k->pipe, &buf, 1, on_written) < 0) {
        free(k->out);
        k->out = NULL;
        drop(k);
    }
}

static void refuse(struct client *k, const char *why)
{
    json_t *text = json_string(why); /* NULL: what it quotes of the request is no UTF-8 */
    answer(k,
           json_pack("{s:o}", "error", text ? text : json_string("request: it is not UTF-8; expected a JSON object on one line")));
}

static void on_snapshot(void *ctx, const struct monitor_snapshot *s)
{
    answer(ctx, monitor_json_make(s));
}

/* What is wrong with {"op": "stats", "pss": true}, or NULL. */
static const char *check_stats(json_t *request, bool *ret_pss)
{
    const char *key;
    json_t *value;
    json_object_foreach(request, key, value)
    {
        if (strcmp(key, "op") == 0)
            continue;
        if (strcmp(key, "pss") != 0)
            return "request 'stats': unknown key; expected nothing besides op and pss";
        if (!json_is_boolean(value))
            return "request 'stats': key 'pss' is neither true nor false";
        *ret_pss = json_is_true(value);
    }
    return NULL;
}

static void handle(struct client *k, const char *line, size_t n)
{
    json_error_t e;
    json_t *request = json_loadb(line, n, JSON_REJECT_DUPLICATES, &e);
    const char *op = json_string_value(json_object_get(request, "op")), *why = NULL;
    char text[sizeof(e.text) + 64];
    k->busy = true;
    uv_read_stop((uv_stream_t *)&k->pipe);
    k->wait = (struct monitor_wait){.done = on_snapshot, .ctx = k};
    if (!request) {
        snprintf(text, sizeof(text), "request is no JSON object: %s", e.text);
        why = text;
    } else if (!op) {
        why = "request has no 'op'; expected an object such as {\"op\":\"stats\"}";
    } else if (strcmp(op, "stats") != 0) {
        why = "request has an unknown 'op'; expected stats";
    } else {
        why = check_stats(request, &k->wait.pss);
    }
    json_decref(request);
    if (why) {
        refuse(k, why);
        return;
    }
    uv_timer_stop(&k->timer); /* the monitor has a deadline of its own */
    monitor_ask(k->owner->monitor, &k->wait);
}

static void on_room(uv_handle_t *h, size_t suggested, uv_buf_t *buf)
{
    struct client *k = h->data;
    (void)suggested;
    *buf = uv_buf_init(k->in + k->n_in, (unsigned)(sizeof(k->in) - k->n_in));
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *buf)
{
    struct client *k = s->data;
    (void)buf;
    if (n > 0)
        k->n_in += (size_t)n;
    k->at_end |= n < 0;
    if (n != 0 && !k->busy)
        next_request(k);
}

/* Answers the next line that is there whole, or reads on. */
static void next_request(struct client *k)
{
    char line[CONTROL_LINE_MAX];
    char *newline = memchr(k->in, '\n', k->n_in);
    size_t n = newline ? (size_t)(newline - k->in) : k->n_in;
    if (newline || (k->at_end && n)) {
        size_t used = MIN(n + 1, k->n_in);
        memcpy(line, k->in, n);
        memmove(k->in, k->in + used, k->n_in - used);
        k->n_in -= used;
        k->last = k->at_end && k->n_in == 0;
        handle(k, line, n);
    } else if (k->at_end) {
        drop(k);
    } else if (k->n_in == sizeof(k->in)) {
        k->busy = k->last = true;
        uv_read_stop((uv_stream_t *)&k->pipe);
        refuse(k, "request is too long; expected a line of less than 4096 bytes");
    } else {
        k->idle_since = uv_now(k->pipe.loop);
        uv_timer_start(&k->timer, on_deadline, CONTROL_IDLE_MS, 0);
        int r = uv_read_start((uv_stream_t *)&k->pipe, on_room, on_read);
        if (r < 0 && r != UV_EALREADY)
            drop(k);
    }
}

static bool is_ours(const struct client *k)
{
    struct ucred cred;
    socklen_t n = sizeof(cred);
    uv_os_fd_t fd;
    return uv_fileno((const uv_handle_t *)&k->pipe, &fd) == 0 && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) == 0 &&
           cred.uid == geteuid();
}

/* Who has been idle for longest makes room. Without one, an answer or a deadline will. */
static void drop_idle(struct control *c)
{
    struct client *idle = NULL;
    for (int i = 0; i < CONTROL_CLIENTS; i++) {
        struct client *k = &c->clients[i];
        if (!k->busy && !k->closing && (!idle || k->idle_since < idle->idle_since))
            idle = k;
    }
    if (idle)
        drop(idle);
}

static void accept_client(struct control *c)
{
    struct client *k = NULL;
    for (int i = 0; i < CONTROL_CLIENTS && !k; i++)
        k = c->clients[i].n_handles ? NULL : &c->clients[i];
    c->knocked = !k;
    if (!k) { /* libuv listens no more until this one is accepted */
        drop_idle(c);
        return;
    }
    *k = (struct client){.owner = c, .n_handles = 2};
    uv_pipe_init(c->server.loop, &k->pipe, 0);
    uv_timer_init(c->server.loop, &k->timer);
    k->pipe.data = k->timer.data = k;
    if (uv_accept((uv_stream_t *)&c->server, (uv_stream_t *)&k->pipe) < 0 || !is_ours(k))
        drop(k);
    else
        next_request(k);
}

static void on_connection(uv_stream_t *s, int status)
{
    if (status == 0)
        accept_client(s->data);
}

static int listen_at(struct control *c, struct err *err)
{
    struct sockaddr_un address;
    auto_fd dir = -1;
    int r = runtime_dir_address(c->dir, &address, &dir, err);
    if (r < 0)
        return r;
    auto_fd fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 || chmod(address.sun_path, 0600) < 0)
        return err_set_errno(err, -errno, "control socket in '%s'", c->dir);
    r = uv_pipe_open(&c->server, fd);
    if (r == 0) {
        take_fd(&fd);
        r = uv_listen((uv_stream_t *)&c->server, 2 * CONTROL_CLIENTS, on_connection);
    }
    return r < 0 ? err_set(err, r, "control socket in '%s': %s", c->dir, uv_strerror(r)) : 0;
}

int control_open(uv_loop_t *loop, const char *dir, struct monitor *monitor, struct control **ret, struct err *err)
{
    struct control *c = calloc(1, sizeof(*c));
    if (!c)
        return err_set(err, -ENOMEM, "control socket: out of memory");
    c->monitor = monitor;
    snprintf(c->dir, sizeof(c->dir), "%s", dir);
    int r = uv_pipe_init(loop, &c->server, 0);
    if (r < 0) {
        free(c);
        return err_set(err, r, "control socket: %s", uv_strerror(r));
    }
    c->server.data = c;
    c->server_open = true;
    r = listen_at(c, err);
    if (r < 0) {
        control_close(c);
        return r;
    }
    *ret = c;
    return 0;
}

static void on_server_closed(uv_handle_t *h)
{
    ((struct control *)h->data)->server_open = false;
}

static bool has_handles(const struct control *c)
{
    for (int i = 0; i < CONTROL_CLIENTS; i++) {
        if (c->clients[i].n_handles)
            return true;
    }
    return c->server_open;
}

void control_close(struct control *c)
{
    if (!c)
        return;
    uv_loop_t *loop = c->server.loop;
    c->knocked = false;
    for (int i = 0; i < CONTROL_CLIENTS; i++) {
        if (c->clients[i].n_handles)
            drop(&c->clients[i]);
    }
    uv_close((uv_handle_t *)&c->server, on_server_closed);
    while (has_handles(c))
        uv_run(loop, UV_RUN_ONCE);
    free(c); /* the socket's name goes with the runtime folder */
}
