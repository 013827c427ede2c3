/* SPDX-License-Identifier: MIT
 * The byte stream of a control connection, preamble included: whatever arrives, every message that is handed over is well
 * formed, the end is reported exactly once, and no descriptor stays open. The first byte's low bit sends a descriptor along. */
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/conn.h"
#include "proto/err.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int n_closed;

static void on_message(void *ctx, struct conn *c, const struct msg *m, int *fds, int n_fds)
{
    (void)ctx;
    (void)c;
    if (n_closed || !msg_name(m->type) || n_fds != msg_n_fds(m->type))
        abort();
    for (int i = 0; i < n_fds; i++) {
        if (fds[i] < 0)
            abort();
    }
}

static void on_closed(void *ctx, struct conn *c, const struct err *err)
{
    (void)ctx;
    if (++n_closed != 1 || (err->code && !err->text[0]))
        abort();
    conn_close(c);
}

static void send_bytes(int fd, const uint8_t *data, size_t n, int with)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = n};
    struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
    if (with >= 0) {
        mh.msg_control = control.bytes;
        mh.msg_controllen = sizeof(control.bytes);
        struct cmsghdr *cm = CMSG_FIRSTHDR(&mh);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int));
        *(int *)(void *)CMSG_DATA(cm) = with;
    }
    if (sendmsg(fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct conn_handlers handlers = {.message = on_message, .closed = on_closed};
    struct err err = {0};
    struct conn *c;
    uv_loop_t loop;
    int fds[2];
    if (size < 2)
        return 0;
    n_closed = 0;
    if (uv_loop_init(&loop) < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 ||
        conn_open(&loop, fds[0], "fuzz", &handlers, NULL, &c, &err) < 0)
        abort();
    send_bytes(fds[1], data + 1, size - 1, data[0] & 1 ? fds[1] : -1);
    shutdown(fds[1], SHUT_WR);
    uv_run(&loop, UV_RUN_DEFAULT); /* until the connection has closed itself */
    close(fds[1]);
    if (n_closed != 1 || uv_loop_close(&loop) < 0)
        abort();
    return 0;
}
