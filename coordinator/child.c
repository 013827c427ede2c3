/* SPDX-License-Identifier: MIT
 * Owns one uv_process_t and one connection. Called by the supervisor on the loop's thread. A stage ends in many ways (exit, signal,
 * an error message, a broken protocol, our own kill); whichever is noticed first is the reason, and all end in `ended`. */
#include "coordinator/child.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "proto/conn.h"
#include "proto/err.h"
#include "proto/util.h"

struct child {
    uv_loop_t *loop;
    enum msg_role role;
    struct child_handlers h;
    void *ctx;
    uv_process_t process;
    struct conn *conn;
    bool running, handle_open;
    struct err why; /* code != 0: the reason why it ended or will */
    int signal;
    char path[PATH_MAX];
};

int child_path(const char *stage_dir, const char *name, char *buf, size_t size, struct err *err)
{
    char dir[PATH_MAX];
    if (!stage_dir) {
        ssize_t n = readlink("/proc/self/exe", dir, sizeof(dir) - 1);
        if (n < 0)
            return err_set_errno(err, -errno, "cannot find this program's folder");
        dir[n] = '\0';
        char *slash = strrchr(dir, '/');
        if (slash)
            *slash = '\0';
        stage_dir = dir;
    }
    if ((size_t)snprintf(buf, size, "%s/%s", stage_dir, name) >= size)
        return err_set(err, -ENAMETOOLONG, "path of '%s' is too long", name);
    return 0;
}

int child_open(uv_loop_t *loop, enum msg_role role, const char *stage_dir, const struct child_handlers *h, void *ctx,
               struct child **ret, struct err *err)
{
    struct child *c = calloc(1, sizeof(*c));
    if (!c)
        return err_set(err, -ENOMEM, "%s: out of memory", msg_role_name(role));
    *c = (struct child){.loop = loop, .role = role, .h = *h, .ctx = ctx};
    int r = child_path(stage_dir, msg_role_name(role), c->path, sizeof(c->path), err);
    if (r < 0) {
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
    if (c->running)
        uv_process_kill(&c->process, SIGKILL);
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
    err_wrap(&e, e.code, "%s (pid %d)", msg_role_name(c->role), c->process.pid);
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
    bool dumps = signal == SIGSEGV || signal == SIGABRT || signal == SIGBUS || signal == SIGILL || signal == SIGFPE ||
                 signal == SIGTRAP || signal == SIGSYS || signal == SIGQUIT;
    if (dumps)
        core_hint(core, sizeof(core));
    if (signal == SIGSYS)
        err_set(&c->why, -ECHILD,
                "%s (pid %d) was ended by its seccomp filter (SIGSYS): it made a system call that it never needs, which "
                "the kernel's log names (dmesg); 'sandbox: off' runs without filters%s",
                name, c->process.pid, core);
    else if (signal)
        err_set(&c->why, -ECHILD, "%s (pid %d) was killed by signal %d (%s)%s", name, c->process.pid, signal, strsignal(signal),
                core);
    else
        err_set(&c->why, -ECHILD, "%s (pid %d) ended with status %d", name, c->process.pid, (int)status);
}

static void on_process_closed(uv_handle_t *h)
{
    struct child *c = h->data;
    c->handle_open = false;
    if (c->why.code) { /* 0: it never started */
        struct err why = c->why;
        c->why.code = 0;
        c->h.ended(c->ctx, &why, c->signal);
    }
}

static void on_process_exit(uv_process_t *p, int64_t status, int signal)
{
    struct child *c = p->data;
    c->running = false;
    conn_read(c->conn); /* what it said last may say why */
    c->signal = c->why.code ? 0 : signal;
    conn_close(take_ptr(&c->conn));
    if (!c->why.code)
        describe_end(c, status, signal);
    uv_close((uv_handle_t *)p, on_process_closed);
}

int child_start(struct child *c, struct err *err)
{
    static const struct conn_handlers handlers = {.message = on_message, .closed = on_closed};
    const char *name = msg_role_name(c->role);
    int pair[2];
    c->why.code = 0;
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
        uv_close((uv_handle_t *)&c->process, on_process_closed);
        return err_set(err, r, "cannot start '%s': %s%s", c->path, uv_strerror(r),
                       r == UV_ENOENT ? "; build or install it beside the coordinator" : "");
    }
    c->running = true;
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
    return c->running ? c->process.pid : 0;
}

void child_close(struct child *c)
{
    if (!c)
        return;
    conn_close(c->conn);
    free(c);
}
