/* SPDX-License-Identifier: MIT
 * The control connection: order, partial writes, file descriptors and their attribution, and peers that break the rules. Either
 * both ends are connections in one loop, or one end is a raw socket that sends what no conn_send would. */
#include "tests/proto/proto_test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "proto/conn.h"
#include "proto/util.h"

#define KEEP_MAX 8

struct end {
    struct conn *conn;
    uint32_t n_messages, n_closed;
    uint64_t serial; /* of stats_request: must count up */
    bool out_of_order, close_at_once, reply;
    struct msg last;
    int kept[KEEP_MAX], n_kept;
    struct err error;
};

struct link {
    uv_loop_t loop;
    struct end ends[2];
    int raw; /* >= 0: ends[1] is not a connection */
};

static void on_message(void *ctx, struct conn *c, const struct msg *m, int *fds, int n_fds)
{
    struct end *e = ctx;
    assert_ptr_equal(c, e->conn);
    assert_int_equal(n_fds, msg_n_fds(m->type));
    e->n_messages++;
    e->last = *m;
    if (m->type == MSG_TYPE_stats_request)
        e->out_of_order |= m->stats_request.serial != e->serial++;
    for (int i = 0; i < n_fds; i++) {
        assert_true(fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
        if (e->n_kept < KEEP_MAX)
            e->kept[e->n_kept++] = take_fd(&fds[i]);
    }
    if (e->reply)
        assert_ok(conn_send(c, &(struct msg){.type = MSG_TYPE_drained}, NULL, 0, err));
    if (e->close_at_once) {
        conn_close(c);
        e->conn = NULL;
    }
}

static void on_closed(void *ctx, struct conn *c, const struct err *err)
{
    struct end *e = ctx;
    assert_ptr_equal(c, e->conn);
    e->n_closed++;
    e->error = *err;
}

static const struct conn_handlers handlers = {.message = on_message, .closed = on_closed};

static void link_open(struct link *l, bool raw)
{
    int fds[2];
    memset(l, 0, sizeof(*l));
    assert_int_equal(uv_loop_init(&l->loop), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    assert_ok(conn_open(&l->loop, fds[0], "peer", &handlers, &l->ends[0], &l->ends[0].conn, err));
    l->raw = raw ? fds[1] : -1;
    if (!raw)
        assert_ok(conn_open(&l->loop, fds[1], "other", &handlers, &l->ends[1], &l->ends[1].conn, err));
}

static void link_close(struct link *l)
{
    for (int i = 0; i < 2; i++) {
        conn_close(l->ends[i].conn);
        for (int k = 0; k < l->ends[i].n_kept; k++)
            close(l->ends[i].kept[k]);
    }
    conn_close(NULL);
    uv_run(&l->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&l->loop), 0);
    if (l->raw >= 0)
        close(l->raw);
}

/* Turn the loop until nothing is ready any more. */
static void settle(struct link *l)
{
    for (int i = 0; i < 50; i++)
        uv_run(&l->loop, UV_RUN_NOWAIT);
}

static void run_until_closed(struct link *l, int end)
{
    while (!l->ends[end].n_closed)
        uv_run(&l->loop, UV_RUN_ONCE);
    settle(l);
    assert_int_equal(l->ends[end].n_closed, 1);
}

static const struct msg drain = {.type = MSG_TYPE_drain};

/* ---- raw side ---- */

#define PREAMBLE "TANDEM\r\n\x01\0\0\0\0\0\0\0"

static void raw_send(struct link *l, const void *data, size_t n, const int *fds, size_t n_fds)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * 64)];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = n};
    struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
    if (n_fds) {
        memset(&control, 0, sizeof(control));
        mh.msg_control = control.bytes;
        mh.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
        struct cmsghdr *cm = CMSG_FIRSTHDR(&mh);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
        memcpy(CMSG_DATA(cm), fds, sizeof(int) * n_fds);
    }
    assert_int_equal(sendmsg(l->raw, &mh, MSG_NOSIGNAL), (ssize_t)n);
}

static size_t frame(const struct msg *m, uint8_t *buf)
{
    uint8_t *body;
    size_t n;
    assert_ok(msg_encode(m, &body, &n, err));
    for (int i = 0; i < 4; i++)
        buf[i] = (uint8_t)(n >> (8 * i));
    memcpy(buf + 4, body, n);
    free(body);
    return n + 4;
}

static void raw_message(struct link *l, const struct msg *m, const int *fds, size_t n_fds)
{
    uint8_t buf[16384];
    raw_send(l, buf, frame(m, buf), fds, n_fds);
}

static void raw_open(struct link *l)
{
    link_open(l, true);
    raw_send(l, PREAMBLE, 16, NULL, 0);
}

/* ---- tests ---- */

static void test_both_ways(void **state)
{
    (void)state;
    struct link l;
    link_open(&l, false);
    struct msg hello = {.type = MSG_TYPE_hello, .hello = {.role = 2, .pid = 77, .build = "0.1", .backends = "cpu"}};
    assert_ok(conn_send(l.ends[0].conn, &hello, NULL, 0, err));
    l.ends[1].reply = true;
    settle(&l);
    assert_int_equal(l.ends[1].last.type, MSG_TYPE_hello);
    assert_memory_equal(&l.ends[1].last.hello, &hello.hello, sizeof(hello.hello));
    assert_int_equal(l.ends[0].last.type, MSG_TYPE_drained);
    link_close(&l);
}

/* More than the socket takes: the rest waits, in order, and arrives. */
static void test_partial_writes(void **state)
{
    (void)state;
    struct link l;
    link_open(&l, false);
    settle(&l);
    const uint32_t n = 50000;
    for (uint32_t i = 0; i < n; i++) {
        struct msg m = {.type = MSG_TYPE_stats_request, .stats_request = {.serial = i}};
        assert_ok(conn_send(l.ends[0].conn, &m, NULL, 0, err));
    }
    assert_true(conn_pending(l.ends[0].conn) > 0);
    while (l.ends[1].n_messages < n)
        uv_run(&l.loop, UV_RUN_ONCE);
    assert_false(l.ends[1].out_of_order);
    assert_int_equal(conn_pending(l.ends[0].conn), 0);
    link_close(&l);
}

static void test_bounded_output(void **state)
{
    (void)state;
    struct link l;
    link_open(&l, true); /* which never reads */
    struct msg m = {.type = MSG_TYPE_error, .error = {.code = -1}};
    memset(m.error.text, 'x', sizeof(m.error.text) - 1);
    int r = 0;
    struct err e = {0};
    for (int i = 0; i < 100000 && r == 0; i++)
        r = conn_send(l.ends[0].conn, &m, NULL, 0, &e);
    assert_int_equal(r, -ENOBUFS);
    assert_non_null(strstr(e.text, "the peer does not read"));
    assert_true(conn_pending(l.ends[0].conn) < (16u << 20));
    link_close(&l);
}

static int marked(char mark)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    assert_int_equal(pwrite(fd, &mark, 1, 0), 1);
    return fd;
}

static char mark_of(int fd)
{
    char c = 0;
    assert_int_equal(pread(fd, &c, 1, 0), 1);
    return c;
}

/* Fds reach the message they were sent with, also between messages without any and when frames come in pieces. */
static void test_fds(void **state)
{
    (void)state;
    struct link l;
    link_open(&l, false);
    int fds[4];
    for (int i = 0; i < 4; i++)
        fds[i] = marked((char)('a' + i));
    struct msg attach = {.type = MSG_TYPE_attach_ring, .attach_ring = {.epoch = 1}};
    struct msg segment = {.type = MSG_TYPE_segment_new, .segment_new = {.bytes = 5}};
    assert_ok(conn_send(l.ends[0].conn, &drain, NULL, 0, err));
    assert_ok(conn_send(l.ends[0].conn, &attach, fds, 2, err));
    assert_ok(conn_send(l.ends[0].conn, &drain, NULL, 0, err));
    assert_ok(conn_send(l.ends[0].conn, &segment, fds + 2, 1, err));
    assert_ok(conn_send(l.ends[0].conn, &segment, fds + 3, 1, err));
    assert_ok(conn_send(l.ends[0].conn, &drain, NULL, 0, err));
    for (int i = 0; i < 4; i++)
        close(fds[i]); /* the connection has its own */
    settle(&l);
    assert_int_equal(l.ends[1].n_messages, 6);
    assert_int_equal(l.ends[1].n_closed, 0);
    assert_int_equal(l.ends[1].n_kept, 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(mark_of(l.ends[1].kept[i]), 'a' + i);
    link_close(&l);
}

/* Hundreds of messages with fds, most of them still queued when the peer starts to read: nothing lost, nothing leaked. */
static void test_many_fds(void **state)
{
    (void)state;
    struct link l;
    link_open(&l, false);
    settle(&l);
    int fds[2] = {marked('x'), marked('y')};
    struct msg attach = {.type = MSG_TYPE_attach_ring, .attach_ring = {.epoch = 1}};
    for (int i = 0; i < 200; i++) {
        assert_ok(conn_send(l.ends[0].conn, &attach, fds, 2, err));
        assert_ok(conn_send(l.ends[0].conn, &drain, NULL, 0, err));
    }
    close(fds[0]);
    close(fds[1]);
    while (l.ends[1].n_messages < 400)
        uv_run(&l.loop, UV_RUN_ONCE);
    assert_int_equal(l.ends[1].n_closed, 0);
    for (int i = 0; i < KEEP_MAX; i++)
        assert_int_equal(mark_of(l.ends[1].kept[i]), i % 2 ? 'y' : 'x');
    link_close(&l);
}

static void test_send_refused(void **state)
{
    (void)state;
    struct link l;
    link_open(&l, false);
    struct msg attach = {.type = MSG_TYPE_attach_ring, .attach_ring = {.epoch = 1}};
    int bad[2] = {-1, 9999};
    assert_err(conn_send(l.ends[0].conn, &attach, NULL, 0, err), -EINVAL, "'attach_ring' with 0 fds; expected 2");
    assert_err(conn_send(l.ends[0].conn, &drain, bad, 1, err), -EINVAL, "expected 0");
    assert_err(conn_send(l.ends[0].conn, &attach, bad, 2, err), -EBADF, "cannot be duplicated");
    settle(&l);
    assert_int_equal(l.ends[1].n_messages, 0);
    assert_int_equal(l.ends[1].n_closed, 0);
    link_close(&l);
}

/* A message with other than its own number of fds ends the connection and closes what came. */
static void test_fd_count(void **state)
{
    (void)state;
    struct msg attach = {.type = MSG_TYPE_attach_ring, .attach_ring = {.epoch = 1}};
    static const struct {
        size_t n_fds;
        bool attach;
        const char *part;
    } cases[] = {
        {0, true, "'attach_ring' came with 0 fds; expected 2"},
        {1, true, "'attach_ring' came with 1 fds; expected 2"},
        {3, true, "1 file descriptors came that no message takes"},
        {1, false, "1 file descriptors came that no message takes"},
        {28, false, "28 file descriptors"},
        {29, true, "more file descriptors"},
        {60, false, "more file descriptors"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct link l;
        int fds[64];
        raw_open(&l);
        for (size_t k = 0; k < cases[i].n_fds; k++)
            fds[k] = marked('z');
        raw_message(&l, cases[i].attach ? &attach : &drain, fds, cases[i].n_fds);
        for (size_t k = 0; k < cases[i].n_fds; k++)
            close(fds[k]);
        run_until_closed(&l, 0);
        assert_int_equal(l.ends[0].error.code, -EPROTO);
        assert_non_null(strstr(l.ends[0].error.text, cases[i].part));
        assert_err(conn_send(l.ends[0].conn, &drain, NULL, 0, err), -EPIPE, "is closed");
        link_close(&l);
    }
}

static void test_fds_of_unfinished_frame(void **state)
{
    (void)state;
    struct msg attach = {.type = MSG_TYPE_attach_ring, .attach_ring = {.epoch = 1}};
    uint8_t buf[256];
    size_t n = frame(&attach, buf);
    for (int too_many = 0; too_many < 2; too_many++) {
        struct link l;
        int fds[6];
        raw_open(&l);
        for (int k = 0; k < 6; k++)
            fds[k] = marked('z');
        raw_send(&l, buf, 5, fds, too_many ? 6 : 2);
        for (int k = 0; k < 6; k++)
            close(fds[k]);
        settle(&l);
        assert_int_equal(l.ends[0].n_closed, too_many);
        if (!too_many) {
            raw_send(&l, buf + 5, n - 5, NULL, 0);
            settle(&l);
            assert_int_equal(l.ends[0].n_messages, 1);
            assert_int_equal(l.ends[0].n_kept, 2);
        }
        link_close(&l);
    }
}

static void test_byte_by_byte(void **state)
{
    (void)state;
    struct link l;
    uint8_t buf[256];
    size_t n = frame(&drain, buf);
    link_open(&l, true);
    for (int i = 0; i < 16; i++, settle(&l))
        raw_send(&l, &PREAMBLE[i], 1, NULL, 0);
    for (int k = 0; k < 2; k++) {
        for (size_t i = 0; i < n; i++, settle(&l))
            raw_send(&l, buf + i, 1, NULL, 0);
    }
    assert_int_equal(l.ends[0].n_messages, 2);
    link_close(&l);
}

static void test_frame_limits(void **state)
{
    (void)state;
    static uint8_t big[4 + MSG_MAX_FRAME];
    static const uint8_t head[] = {0x82, 0xa1, 't', MSG_TYPE_drain, 0xa1, 'z', 0xc6, 0, 0, 0, 0};
    memcpy(big + 4, head, sizeof(head));
    uint32_t filler = MSG_MAX_FRAME - (uint32_t)sizeof(head);
    for (int i = 0; i < 4; i++) {
        big[i] = (uint8_t)(MSG_MAX_FRAME >> (8 * i));
        big[4 + 7 + i] = (uint8_t)(filler >> (24 - 8 * i));
    }
    struct link l;
    raw_open(&l);
    raw_send(&l, big, sizeof(big), NULL, 0);
    settle(&l);
    assert_int_equal(l.ends[0].n_messages, 1);
    raw_message(&l, &drain, NULL, 0);
    settle(&l);
    assert_int_equal(l.ends[0].n_messages, 2);
    link_close(&l);

    static const uint32_t bad[] = {0, MSG_MAX_FRAME + 1, UINT32_MAX};
    for (size_t k = 0; k < ARRAY_LEN(bad); k++) {
        char want[64];
        raw_open(&l);
        uint8_t length[4];
        for (int i = 0; i < 4; i++)
            length[i] = (uint8_t)(bad[k] >> (8 * i));
        raw_send(&l, length, 4, NULL, 0);
        run_until_closed(&l, 0);
        snprintf(want, sizeof(want), "frame of %u bytes; expected 1 to 65536", bad[k]);
        assert_int_equal(l.ends[0].error.code, -EPROTO);
        assert_non_null(strstr(l.ends[0].error.text, want));
        link_close(&l);
    }
}

static void test_bad_body(void **state)
{
    (void)state;
    struct link l;
    raw_open(&l);
    raw_send(&l, "\x01\0\0\0\xc1", 5, NULL, 0);
    run_until_closed(&l, 0);
    assert_int_equal(l.ends[0].error.code, -EPROTO);
    assert_int_equal(l.ends[0].n_messages, 0);
    link_close(&l);
}

static void test_preamble(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        int code;
        const char *part;
    } cases[] = {
        {"TANDEM\r\n\x02\0\0\0\0\0\0\0", -EPROTONOSUPPORT, "peer speaks protocol version 2, this program version 1"},
        {"TANDEM\n\n\x01\0\0\0\0\0\0\0", -EPROTO, "does not speak this protocol"},
        {"GET / HTTP/1.1\r\n", -EPROTO, "does not speak this protocol"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct link l;
        link_open(&l, true);
        raw_send(&l, cases[i].bytes, 16, NULL, 0);
        run_until_closed(&l, 0);
        assert_int_equal(l.ends[0].error.code, cases[i].code);
        assert_non_null(strstr(l.ends[0].error.text, cases[i].part));
        char ours[17] = "";
        assert_int_equal(recv(l.raw, ours, 16, MSG_DONTWAIT), 16); /* it has introduced itself all the same */
        assert_memory_equal(ours, PREAMBLE, 16);
        link_close(&l);
    }
}

static void test_unknown_type(void **state)
{
    (void)state;
    struct link l;
    uint8_t buf[1024];
    raw_open(&l);
    raw_send(&l, "\x04\0\0\0\x81\xa1t\x63", 8, NULL, 0);
    raw_message(&l, &drain, NULL, 0);
    settle(&l);
    assert_int_equal(l.ends[0].n_closed, 0);
    assert_int_equal(l.ends[0].n_messages, 1); /* drain; the unknown one never arrives */
    ssize_t n = recv(l.raw, buf, sizeof(buf), MSG_DONTWAIT);
    struct msg m;
    uint32_t unknown;
    assert_true(n > 20);
    assert_ok(msg_decode(buf + 20, (size_t)n - 20, &m, &unknown, err));
    assert_int_equal(m.type, MSG_TYPE_error);
    assert_int_equal(m.error.code, -ENOTSUP);
    assert_non_null(strstr(m.error.text, "type 99"));
    int fd = marked('q'); /* whose fd is it? nobody can tell */
    raw_send(&l, "\x04\0\0\0\x81\xa1t\x63", 8, &fd, 1);
    close(fd);
    run_until_closed(&l, 0);
    assert_int_equal(l.ends[0].error.code, -EPROTO);
    link_close(&l);
}

static void test_end(void **state)
{
    (void)state;
    struct link l;
    raw_open(&l); /* clean */
    raw_message(&l, &drain, NULL, 0);
    close(take_fd(&l.raw));
    run_until_closed(&l, 0);
    assert_int_equal(l.ends[0].n_messages, 1);
    assert_int_equal(l.ends[0].error.code, 0);
    assert_int_equal(conn_pending(l.ends[0].conn), 0);
    link_close(&l);

    raw_open(&l); /* in the middle of a frame */
    raw_send(&l, "\x04\0\0\0\x81", 5, NULL, 0);
    close(take_fd(&l.raw));
    run_until_closed(&l, 0);
    assert_int_equal(l.ends[0].error.code, -EPROTO);
    assert_non_null(strstr(l.ends[0].error.text, "in the middle of a message"));
    link_close(&l);
}

/* The peer says why it ends, and ends without reading what we sent: the reason arrives before the end, which is no error. */
static void test_last_words(void **state)
{
    (void)state;
    struct link l;
    raw_open(&l);
    settle(&l);
    struct msg m = {.type = MSG_TYPE_error, .error = {.code = -ENOMEM, .text = "why"}};
    raw_message(&l, &m, NULL, 0);
    close(take_fd(&l.raw)); /* our preamble lies there unread: a reset */
    assert_ok(conn_send(l.ends[0].conn, &drain, NULL, 0, err));
    run_until_closed(&l, 0);
    assert_int_equal(l.ends[0].n_messages, 1);
    assert_string_equal(l.ends[0].last.error.text, "why");
    assert_int_equal(l.ends[0].error.code, 0);
    link_close(&l);
}

static void test_close_in_handler(void **state)
{
    (void)state;
    struct link l;
    link_open(&l, false);
    l.ends[1].close_at_once = l.ends[1].reply = true;
    for (int i = 0; i < 3; i++)
        assert_ok(conn_send(l.ends[0].conn, &drain, NULL, 0, err));
    run_until_closed(&l, 0);
    assert_int_equal(l.ends[1].n_messages, 1);
    assert_int_equal(l.ends[0].n_messages, 1); /* the reply was queued before the close */
    assert_int_equal(l.ends[1].n_closed, 0);
    link_close(&l);
}

static void test_open_refused(void **state)
{
    (void)state;
    uv_loop_t loop;
    int fds[2];
    struct conn *c = NULL;
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    assert_true(conn_open(&loop, fds[0], "pipe", &handlers, NULL, &c, NULL) < 0);
    assert_true(conn_open(&loop, -1, "none", &handlers, NULL, &c, NULL) < 0);
    close(fds[0]);
    close(fds[1]);
    if (geteuid() == 0) { /* another user's socket */
        assert_int_equal(seteuid(65534), 0);
        int r = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds);
        assert_int_equal(seteuid(0), 0);
        assert_int_equal(r, 0);
        assert_err(conn_open(&loop, fds[0], "stranger", &handlers, NULL, &c, err), -EPERM, "the peer runs as user 65534");
        close(fds[0]);
        close(fds[1]);
    }
    assert_null(c);
    assert_int_equal(uv_loop_close(&loop), 0);
}

static void test_trace(void **state)
{
    (void)state;
    struct link l;
    int out = memfd_create("stderr", MFD_CLOEXEC), saved = fcntl(2, F_DUPFD_CLOEXEC, 3);
    char text[2048] = "";
    setenv("TANDEM_TRACE", "msg", 1);
    link_open(&l, false);
    dup2(out, 2);
    assert_ok(
        conn_send(l.ends[0].conn, &(struct msg){.type = MSG_TYPE_stats_request, .stats_request = {.serial = 5}}, NULL, 0, err));
    settle(&l);
    dup2(saved, 2);
    close(saved);
    unsetenv("TANDEM_TRACE");
    assert_true(pread(out, text, sizeof(text) - 1, 0) > 0);
    close(out);
    assert_non_null(strstr(text, "-> peer: stats_request serial=5\n"));
    assert_non_null(strstr(text, "<- other: stats_request serial=5\n"));
    link_close(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FD_TEST(test_both_ways),
        FD_TEST(test_partial_writes),
        FD_TEST(test_bounded_output),
        FD_TEST(test_fds),
        FD_TEST(test_many_fds),
        FD_TEST(test_send_refused),
        FD_TEST(test_fd_count),
        FD_TEST(test_byte_by_byte),
        FD_TEST(test_fds_of_unfinished_frame),
        FD_TEST(test_frame_limits),
        FD_TEST(test_bad_body),
        FD_TEST(test_preamble),
        FD_TEST(test_unknown_type),
        FD_TEST(test_end),
        FD_TEST(test_last_words),
        FD_TEST(test_trace),
        FD_TEST(test_open_refused),
        FD_TEST(test_close_in_handler),
    };
    uv_loop_t loop; /* the first one makes two descriptors that libuv keeps */
    if (uv_loop_init(&loop) == 0)
        uv_loop_close(&loop);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
