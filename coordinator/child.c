/* SPDX-License-Identifier: MIT
 * Owns one connection and one uv_process_t, or of a process that others started a pidfd, which tells its end and takes our kill
 * whatever becomes of the number. Called by the supervisor on the loop's thread. A stage ends in many ways (exit, signal, an error
 * message, a broken protocol, our own kill); whichever is noticed first is the reason, and all end in `ended`. */
#include "coordinator/child.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "proto/conn.h"
#include "proto/err.h"
#include "proto/place.h"
#include "proto/util.h"

struct child {
    uv_loop_t *loop;
    enum msg_role role;
    struct child_handlers h;
    void *ctx;
    bool spawned, awaited; /* awaited: it may be attached */
    union {
        uv_process_t process;
        uv_poll_t end; /* of pidfd */
    };
    int pid, pidfd; /* pidfd: -1 where it is our child */
    struct conn *conn;
    bool running, handle_open;
    struct err why; /* code != 0: the reason why it ended or will */
    int signal;
    char path[PATH_MAX];
};

int child_path(const char *stage_dir, const char *name, char *buf, size_t size, struct err *err)
{
    if (!stage_dir) {
        struct err why = {0};
        int r = place_file(PLACE_STAGES, name, buf, size, &why);
        return r < 0 ? err_set(err, r, "%s%s", why.text, r == -ENOENT ? "; build or install Tandem again" : "") : 0;
    }
    if ((size_t)snprintf(buf, size, "%s/%s", stage_dir, name) >= size)
        return err_set(err, -ENAMETOOLONG, "path of '%s' is too long", name);
    return 0;
}

int child_open(uv_loop_t *loop, enum msg_role role, const char *stage_dir, bool spawn, const struct child_handlers *h, void *ctx,
               struct child **ret, struct err *err)
{
    struct child *c = calloc(1, sizeof(*c));
    if (!c)
        return err_set(err, -ENOMEM, "%s: out of memory", msg_role_name(role));
    *c = (struct child){.loop = loop, .role = role, .h = *h, .ctx = ctx, .spawned = spawn, .pidfd = -1};
    int r = child_path(stage_dir, msg_role_name(role), c->path, sizeof(c->path), err);
    if (r < 0 && (spawn || r != -ENOENT)) {
        free(c);
        return r;
    }
    *ret = c;
    return 0;
}

void child_kill(struct child *c, const struct err *why)
{
    if (!c->handle_open)
        return;
    if (!c->why.code)
        c->why = *why;
    if (c->running && c->spawned)
        uv_process_kill(&c->process, SIGKILL);
    else if (c->running)
        syscall(SYS_pidfd_send_signal, c->pidfd, SIGKILL, NULL, 0);
}

static void on_message(void *ctx, struct conn *conn, const struct msg *m, int *fds, int n_fds)
{
    struct child *c = ctx;
    struct err err = {0};
    (void)conn;
    (void)n_fds;
    if (!c->why.code && c->h.message(c->ctx, m, fds, &err) < 0)
        child_kill(c, &err);
}

static void on_closed(void *ctx, struct conn *conn, const struct err *err)
{
    struct child *c = ctx;
    c->conn = NULL;
    conn_close(conn);
    if (err->code == 0)
        return; /* it ends: on_process_exit tells how */
    struct err e = *err;
    err_wrap(&e, e.code, "%s (pid %d)", msg_role_name(c->role), c->pid);
    child_kill(c, &e);
}

/* Where the kernel would put a core dump, for signals that make one. */
static void core_hint(char *buf, size_t size)
{
    struct rlimit limit;
    char pattern[128] = "core";
    auto_file f = fopen("/proc/sys/kernel/core_pattern", "re");
    if (f && fgets(pattern, sizeof(pattern), f))
        pattern[strcspn(pattern, "\n")] = '\0';
    if (pattern[0] != '|' && getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_cur == 0)
        snprintf(buf, size, "; no core dump ('ulimit -c' is 0)");
    else
        snprintf(buf, size, "; core dump by '%s' of kernel.core_pattern", pattern);
}

static void describe_end(struct child *c, int64_t status, int signal)
{
    const char *name = msg_role_name(c->role);
    char core[192] = "";
    if (signal == CHILD_SIGNAL_UNKNOWN) {
        err_set(&c->why, -ECHILD, "%s (pid %d) ended; who started it knows how", name, c->pid);
        return;
    }
    bool dumps = signal == SIGSEGV || signal == SIGABRT || signal == SIGBUS || signal == SIGILL || signal == SIGFPE ||
                 signal == SIGTRAP || signal == SIGSYS || signal == SIGQUIT;
    if (dumps)
        core_hint(core, sizeof(core));
    if (signal == SIGSYS)
        err_set(&c->why, -ECHILD,
                "%s (pid %d) was ended by its seccomp filter (SIGSYS): it made a system call that it never needs, which "
                "the kernel's log names (dmesg); 'sandbox: off' runs without filters%s",
                name, c->pid, core);
    else if (signal)
        err_set(&c->why, -ECHILD, "%s (pid %d) was killed by signal %d (%s)%s", name, c->pid, signal, strsignal(signal), core);
    else
        err_set(&c->why, -ECHILD, "%s (pid %d) ended with status %d", name, c->pid, (int)status);
}

static void on_handle_closed(uv_handle_t *h)
{
    struct child *c = h->data;
    c->handle_open = false;
    util_close_fd(&c->pidfd);
    c->pidfd = -1;
    if (c->why.code) { /* 0: it never started */
        struct err why = c->why;
        c->why.code = 0;
        c->h.ended(c->ctx, &why, c->signal);
    }
}

static void process_gone(struct child *c, int64_t status, int signal)
{
    c->running = false;
    conn_read(c->conn); /* what it said last may say why */
    c->signal = c->why.code ? 0 : signal;
    conn_close(take_ptr(&c->conn));
    if (!c->why.code)
        describe_end(c, status, signal);
    uv_close((uv_handle_t *)(c->spawned ? (void *)&c->process : (void *)&c->end), on_handle_closed);
}

static void on_process_exit(uv_process_t *p, int64_t status, int signal)
{
    process_gone(p->data, status, signal);
}

static void on_pidfd(uv_poll_t *p, int status, int events)
{
    (void)status;
    (void)events;
    process_gone(p->data, 0, CHILD_SIGNAL_UNKNOWN);
}

static const struct conn_handlers handlers = {.message = on_message, .closed = on_closed};

/* A process that lives still, so that the number is its own: its end of the socket is open. */
static int open_pidfd(struct child *c, int fd, int pid, struct err *err)
{
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};
    c->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (c->pidfd < 0)
        return err_set_errno(err, -errno, "%s (pid %d) cannot be watched (pidfd_open, Linux 5.3)", msg_role_name(c->role), pid);
    if (poll(&p, 1, 0) > 0)
        return err_set(err, -ECONNRESET, "%s (pid %d) has hung up", msg_role_name(c->role), pid);
    int r = uv_poll_init(c->loop, &c->end, c->pidfd);
    if (r < 0)
        return err_set(err, r, "%s (pid %d): %s", msg_role_name(c->role), pid, uv_strerror(r));
    return 0;
}

int child_attach(struct child *c, struct conn *conn, int pid, const struct msg *hello, struct err *err)
{
    const char *name = msg_role_name(c->role);
    if (c->handle_open)
        return err_set(err, -EBUSY, "there is a %s (pid %d) already", name, c->pid);
    if (!c->awaited)
        return err_set(err, -EBUSY, "no %s is waited for", name);
    int r = open_pidfd(c, conn_fd(conn), pid, err);
    if (r < 0) {
        util_close_fd(&c->pidfd);
        c->pidfd = -1;
        return r;
    }
    c->end.data = c;
    c->handle_open = c->running = true;
    c->awaited = false;
    c->pid = pid;
    c->why.code = 0;
    c->conn = conn;
    conn_set_owner(conn, name, &handlers, c);
    uv_poll_start(&c->end, UV_READABLE, on_pidfd);
    on_message(c, conn, hello, (int[1]){-1}, 0);
    return 0;
}

int child_start(struct child *c, struct err *err)
{
    const char *name = msg_role_name(c->role);
    int pair[2];
    c->why.code = 0;
    c->awaited = !c->spawned;
    if (c->awaited)
        return 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return err_set_errno(err, -errno, "%s: socketpair", name);
    auto_fd ours = pair[0], theirs = pair[1];
    char *argv[] = {c->path, (char[]){"--stage-fd"}, (char[]){"3"}, NULL};
    uv_stdio_container_t stdio[] = {
        {.flags = UV_IGNORE},
        {.flags = UV_INHERIT_FD, .data.fd = 2},
        {.flags = UV_INHERIT_FD, .data.fd = 2},
        {.flags = UV_INHERIT_FD, .data.fd = theirs},
    };
    uv_process_options_t po = {.exit_cb = on_process_exit, .file = c->path, .args = argv, .stdio_count = 4, .stdio = stdio};
    int r = uv_spawn(c->loop, &c->process, &po);
    c->process.data = c;
    c->handle_open = true;
    if (r < 0) {
        uv_close((uv_handle_t *)&c->process, on_handle_closed);
        return err_set(err, r, "cannot start '%s': %s%s", c->path, uv_strerror(r),
                       r == UV_ENOENT ? "; it was there when this coordinator started; build or install Tandem again" : "");
    }
    c->running = true;
    c->pid = c->process.pid;
    struct err why = {0};
    if (conn_open(c->loop, ours, name, &handlers, c, &c->conn, &why) < 0)
        child_kill(c, &why);
    else
        take_fd(&ours);
    return 0;
}

int child_send(struct child *c, const struct msg *m, const int *fds, int n_fds, struct err *err)
{
    if (!c->conn)
        return 0;
    int r = conn_send(c->conn, m, fds, n_fds, err);
    return r == -EPIPE ? 0 : r < 0 ? err_wrap(err, r, "%s", msg_role_name(c->role)) : 0;
}

bool child_running(const struct child *c)
{
    return c->handle_open;
}

bool child_connected(const struct child *c)
{
    return c->conn != NULL;
}

int child_pid(const struct child *c)
{
    return c->running ? c->pid : 0;
}

bool child_spawned(const struct child *c)
{
    return c->spawned;
}

void child_close(struct child *c)
{
    if (!c)
        return;
    conn_close(c->conn);
    free(c);
}
