/* SPDX-License-Identifier: MIT
 * Owns the listening socket, the token file, and the connections that have not said HELLO. Called by the supervisor; events come
 * from the loop. A guest is believed nothing: whatever it does, it loses its own connection and no more.
 *
 * The token file is also the lock: who holds a flock on it listens. It is written before anybody can connect, so that a stage that
 * reads it once it is connected finds the token of its listener. */
#include "coordinator/stage_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "proto/conn.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/msg.h"
#include "proto/stage_connect.h"
#include "proto/util.h"

#define TICK_MS 500

struct guest {
    struct stage_socket *owner;
    struct conn *conn; /* NULL: this place is free */
    int pid;
    uint64_t since; /* uv_now */
};

struct stage_socket {
    uv_loop_t *loop;
    uv_poll_t poll;
    uv_timer_t timer; /* ticks while there are guests */
    int n_handles, fd, lock;
    bool bound;
    stage_socket_hello *hello;
    void *ctx;
    struct guest guests[STAGE_SOCKET_GUESTS];
    char token[STAGE_TOKEN_CHARS + 1];
    struct sockaddr_un address;
    char token_path[sizeof(((struct sockaddr_un *)NULL)->sun_path) + sizeof(STAGE_TOKEN_SUFFIX)];
};

static void refuse(struct guest *g, const struct err *why)
{
    struct msg m = {.type = MSG_TYPE_error, .error = {.code = why->code}};
    log_warn("supervise", "process %d is refused at '%s': %s", g->pid, g->owner->address.sun_path, why->text);
    snprintf(m.error.text, sizeof(m.error.text), "%s", why->text);
    conn_send(g->conn, &m, NULL, 0, NULL);
    conn_close(take_ptr(&g->conn));
}

static bool same_token(const struct stage_socket *s, const char given[STAGE_TOKEN_CHARS + 1])
{
    volatile unsigned char differs = 0;
    for (size_t i = 0; i <= STAGE_TOKEN_CHARS; i++)
        differs |= (unsigned char)(given[i] ^ s->token[i]);
    return differs == 0;
}

static void on_message(void *ctx, struct conn *conn, const struct msg *m, int *fds, int n_fds)
{
    struct guest *g = ctx;
    struct stage_socket *s = g->owner;
    struct err why = {0};
    int r;
    (void)fds;
    (void)n_fds;
    if (m->type != MSG_TYPE_hello)
        r = err_set(&why, -EPROTO, "it sent a %s message before HELLO", msg_name(m->type));
    else if (!same_token(s, m->hello.token))
        r = err_set(&why, -EACCES, "%s stage token; expected what '%s' says", m->hello.token[0] ? "it has a wrong" : "it has no",
                    s->token_path);
    else
        r = s->hello(s->ctx, conn, g->pid, m, &why);
    if (r < 0)
        refuse(g, &why);
    else
        g->conn = NULL;
}

static void on_closed(void *ctx, struct conn *conn, const struct err *err)
{
    struct guest *g = ctx;
    log_warn("supervise", "process %d left '%s' without a HELLO%s%s", g->pid, g->owner->address.sun_path, err->code ? ": " : "",
             err->code ? err->text : "");
    g->conn = NULL;
    conn_close(conn);
}

static void on_tick(uv_timer_t *t)
{
    struct stage_socket *s = t->data;
    struct err why = {0};
    bool any = false;
    err_set(&why, -ETIMEDOUT, "it said no HELLO within %d ms", STAGE_SOCKET_HELLO_MS);
    for (int i = 0; i < STAGE_SOCKET_GUESTS; i++) {
        struct guest *g = &s->guests[i];
        if (g->conn && uv_now(s->loop) - g->since > STAGE_SOCKET_HELLO_MS)
            refuse(g, &why);
        any |= g->conn != NULL;
    }
    if (!any)
        uv_timer_stop(t);
}

static struct guest *make_room(struct stage_socket *s)
{
    struct guest *g = &s->guests[0];
    struct err why = {0};
    for (int i = 0; i < STAGE_SOCKET_GUESTS && g->conn; i++) {
        if (!s->guests[i].conn || s->guests[i].since < g->since)
            g = &s->guests[i];
    }
    err_set(&why, -EBUSY, "too many connect at once");
    if (g->conn)
        refuse(g, &why);
    return g;
}

static void on_connection(uv_poll_t *p, int status, int events)
{
    static const struct conn_handlers handlers = {.message = on_message, .closed = on_closed};
    struct stage_socket *s = p->data;
    struct err err = {0};
    struct ucred cred = {0};
    socklen_t n = sizeof(cred);
    (void)status;
    (void)events;
    auto_fd fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    struct guest *g = make_room(s);
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n);
    *g = (struct guest){.owner = s, .pid = cred.pid, .since = uv_now(s->loop)};
    if (conn_open(s->loop, fd, "a stage", &handlers, g, &g->conn, &err) < 0) {
        log_warn("supervise", "process %d is refused at '%s': %s", g->pid, s->address.sun_path, err.text);
        return;
    }
    take_fd(&fd);
    uv_timer_start(&s->timer, on_tick, TICK_MS, TICK_MS);
}

static int make_token(struct stage_socket *s, struct err *err)
{
    static const char digits[] = "0123456789abcdef";
    unsigned char random[STAGE_TOKEN_CHARS / 2];
    if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
        return err_set_errno(err, -errno, "stage token: no random numbers");
    for (size_t i = 0; i < sizeof(random); i++) {
        s->token[2 * i] = digits[random[i] >> 4];
        s->token[2 * i + 1] = digits[random[i] & 15];
    }
    if (fchmod(s->lock, 0600) < 0 || ftruncate(s->lock, 0) < 0)
        return err_set_errno(err, -errno, "stage token '%s'", s->token_path);
    int r = util_write_all(s->lock, s->token, STAGE_TOKEN_CHARS);
    return r < 0 ? err_set_errno(err, r, "stage token '%s' cannot be written", s->token_path) : 0;
}

static int check_folder(const char *path, struct err *err)
{
    char dir[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
    struct stat st;
    snprintf(dir, sizeof(dir), "%s", path);
    char *slash = strrchr(dir, '/');
    slash[slash == dir] = '\0';
    if (lstat(dir, &st) < 0)
        return err_set_errno(err, -errno, "key 'stage_socket': folder '%s'; make it, with mode 0700", dir);
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077))
        return err_set(err, -EPERM, "key 'stage_socket': '%s' is not a folder of this user with mode 0700", dir);
    return 0;
}

/* Until the file that we locked is the one that has the name: its owner may just have removed it. */
static int take_lock(struct stage_socket *s, struct err *err)
{
    struct stat ours, named;
    for (;;) {
        util_close_fd(&s->lock);
        s->lock = open(s->token_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
        if (s->lock < 0 || fstat(s->lock, &ours) < 0)
            return err_set_errno(err, -errno, "stage token '%s'", s->token_path);
        if (!S_ISREG(ours.st_mode) || ours.st_uid != geteuid())
            return err_set(err, -EPERM, "stage token '%s' is not a file of this user; remove it", s->token_path);
        if (flock(s->lock, LOCK_EX | LOCK_NB) < 0)
            return err_set(err, -EADDRINUSE, "another coordinator listens at '%s'; end it, or give this one another 'stage_socket'",
                           s->address.sun_path);
        if (stat(s->token_path, &named) == 0 && named.st_ino == ours.st_ino && named.st_dev == ours.st_dev)
            return 0;
    }
}

static int listen_there(struct stage_socket *s, struct err *err)
{
    struct stat st;
    const char *path = s->address.sun_path;
    if (lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode))
        return err_set(err, -EEXIST, "key 'stage_socket': '%s' is there, and no socket", path);
    unlink(path);
    s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->fd < 0 || bind(s->fd, (const struct sockaddr *)&s->address, sizeof(s->address)) < 0)
        return err_set_errno(err, -errno, "socket for stages '%s'", path);
    s->bound = true;
    if (chmod(path, 0600) < 0 || listen(s->fd, STAGE_SOCKET_GUESTS) < 0)
        return err_set_errno(err, -errno, "socket for stages '%s'", path);
    int r = uv_timer_init(s->loop, &s->timer);
    s->n_handles += r == 0;
    if (r == 0) {
        r = uv_poll_init(s->loop, &s->poll, s->fd);
        s->n_handles += r == 0;
    }
    s->timer.data = s->poll.data = s;
    if (r == 0)
        r = uv_poll_start(&s->poll, UV_READABLE, on_connection);
    return r < 0 ? err_set(err, r, "socket for stages '%s': %s", path, uv_strerror(r)) : 0;
}

int stage_socket_open(uv_loop_t *loop, const char *path, stage_socket_hello *hello, void *ctx, struct stage_socket **ret,
                      struct err *err)
{
    size_t n = strlen(path);
    struct stage_socket *s = calloc(1, sizeof(*s));
    if (!s)
        return err_set(err, -ENOMEM, "socket for stages: out of memory");
    s->loop = loop;
    s->hello = hello;
    s->ctx = ctx;
    s->fd = s->lock = -1;
    s->address.sun_family = AF_UNIX;
    int r = 0;
    if (n >= sizeof(s->address.sun_path))
        r = err_set(
            err, -ENAMETOOLONG,
            "socket for stages '%.40s...': the path has %zu bytes; expected at most %zu, by 'stage_socket' or TANDEM_RUNTIME_DIR",
            path, n, sizeof(s->address.sun_path) - 1);
    else
        memcpy(s->address.sun_path, path, n + 1);
    snprintf(s->token_path, sizeof(s->token_path), "%s" STAGE_TOKEN_SUFFIX, s->address.sun_path);
    if (r == 0)
        r = check_folder(path, err);
    if (r == 0)
        r = take_lock(s, err);
    if (r < 0)
        util_close_fd(&s->lock); /* and the file stays whose it is */
    if (r < 0)
        s->lock = -1;
    if (r == 0)
        r = make_token(s, err);
    if (r == 0)
        r = listen_there(s, err);
    if (r < 0) {
        stage_socket_close(s);
        return r;
    }
    *ret = s;
    return 0;
}

static void on_handle_closed(uv_handle_t *h)
{
    ((struct stage_socket *)h->data)->n_handles--;
}

void stage_socket_close(struct stage_socket *s)
{
    if (!s)
        return;
    for (int i = 0; i < STAGE_SOCKET_GUESTS; i++)
        conn_close(s->guests[i].conn);
    if (s->n_handles > 1)
        uv_close((uv_handle_t *)&s->poll, on_handle_closed);
    if (s->n_handles > 0)
        uv_close((uv_handle_t *)&s->timer, on_handle_closed);
    while (s->n_handles)
        uv_run(s->loop, UV_RUN_ONCE);
    if (s->bound)
        unlink(s->address.sun_path);
    if (s->lock >= 0)
        unlink(s->token_path); /* while it is locked */
    util_close_fd(&s->fd);
    util_close_fd(&s->lock);
    explicit_bzero(s->token, sizeof(s->token));
    free(s);
}
