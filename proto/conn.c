/* SPDX-License-Identifier: MIT
 * Owns one connected Unix stream socket, its uv_poll handle, its input buffer and its queue of output frames with their fds.
 * Everything runs on the loop's thread. libuv's own pipes cannot pass memfds, hence sendmsg and recvmsg here.
 *
 * Fds of a frame travel with its first byte and are queued on arrival; a complete frame takes as many as its type says. The
 * kernel ends a read behind data that carries fds, so when every byte that was read is used up, fds that are still queued
 * belong to nobody, and with a started frame in the buffer at most that frame's are: anything else breaks the connection.
 *
 * A peer that is gone is noticed when reading, never when writing: its last message may still lie in the socket.
 * The structure is freed in the poll handle's close callback and not before. */
#include "proto/conn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

#include "proto/err.h"
#include "proto/util.h"

#define PREAMBLE_MAGIC "TANDEM\r\n"
#define PREAMBLE_BYTES 16
#define FDS_MAX 64 /* received and not yet taken */
#define OUTPUT_MAX (8u << 20)

struct frame {
    struct frame *next;
    size_t size, sent;
    int fds[MSG_MAX_FDS];
    int n_fds;
    uint8_t data[];
};

struct conn {
    uv_poll_t poll;
    int fd;
    const char *name;
    const struct conn_handlers *handlers;
    void *ctx;
    bool (*filter)(void *ctx);
    void *filter_ctx;
    bool closing, broken, greeted;
    struct frame *out, **out_end;
    size_t pending;
    int fds[FDS_MAX];
    int n_fds;
    size_t in_size;
    uint8_t in[MSG_MAX_FRAME + 4];
};

static void on_poll(uv_poll_t *p, int status, int events);

static void put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void trace(const struct conn *c, const char *direction, const struct msg *m)
{
    if (!util_env(UTIL_ENV_TRACE))
        return;
    uint64_t now = util_now_ns();
    auto_free char *line = NULL;
    size_t n;
    FILE *f = open_memstream(&line, &n);
    if (!f)
        return;
    fprintf(f, "[%llu.%06llu] %d %s %s: ", (unsigned long long)(now / 1000000000), (unsigned long long)(now / 1000 % 1000000),
            (int)getpid(), direction, c->name);
    msg_print(f, m);
    if (fclose(f) == 0)
        util_write_all(2, line, n);
}

static void frame_free(struct frame *f)
{
    for (int i = 0; i < f->n_fds; i++)
        close(f->fds[i]);
    free(f);
}

static struct frame *frame_new(const void *data, size_t n)
{
    struct frame *f = malloc(sizeof(*f) + n);
    if (!f)
        return NULL;
    *f = (struct frame){.size = n};
    if (data)
        memcpy(f->data, data, n);
    return f;
}

static void enqueue(struct conn *c, struct frame *f)
{
    *c->out_end = f;
    c->out_end = &f->next;
    c->pending += f->size;
}

static void watch(struct conn *c)
{
    if (!c->closing && !c->broken)
        uv_poll_start(&c->poll, UV_READABLE | (c->out ? UV_WRITABLE : 0), on_poll);
}

static void drop_fds(struct conn *c)
{
    while (c->n_fds)
        close(c->fds[--c->n_fds]);
}

static void broken(struct conn *c, const struct err *err)
{
    if (c->broken || c->closing)
        return;
    c->broken = true;
    drop_fds(c);
    uv_poll_stop(&c->poll);
    c->handlers->closed(c->ctx, c, err);
}

static int send_frame(struct conn *c, struct frame *f)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * MSG_MAX_FDS)];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = f->data + f->sent, .iov_len = f->size - f->sent};
    struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
    if (f->sent == 0 && f->n_fds) {
        memset(&control, 0, sizeof(control));
        mh.msg_control = control.bytes;
        mh.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)f->n_fds);
        struct cmsghdr *cm = CMSG_FIRSTHDR(&mh);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)f->n_fds);
        memcpy(CMSG_DATA(cm), f->fds, sizeof(int) * (size_t)f->n_fds);
    }
    ssize_t n = sendmsg(c->fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR || errno == ETOOMANYREFS ? 0 : -errno;
    f->sent += (size_t)n;
    c->pending -= (size_t)n;
    return 1;
}

static void drop_frame(struct conn *c)
{
    struct frame *f = c->out;
    c->out = f->next;
    if (!c->out)
        c->out_end = &c->out;
    c->pending -= f->size - f->sent;
    frame_free(f);
}

/* Send what the socket takes; all of it goes when nobody will ever read it. */
static int flush(struct conn *c)
{
    while (c->out) {
        int r = send_frame(c, c->out);
        if (r == 0 || (r < 0 && r != -EPIPE && r != -ECONNRESET))
            return r;
        if (r < 0 || c->out->sent == c->out->size)
            drop_frame(c);
    }
    return 0;
}

int conn_send(struct conn *c, const struct msg *m, const int *fds, int n_fds, struct err *err)
{
    uint8_t *body;
    size_t n;
    if (c->closing || c->broken)
        return err_set(err, -EPIPE, "connection to %s is closed", c->name);
    if (msg_n_fds(m->type) != n_fds || n_fds > MSG_MAX_FDS)
        return err_set(err, -EINVAL, "message '%s' with %d fds; expected %d", msg_name(m->type), n_fds, msg_n_fds(m->type));
    if (c->filter && c->filter(c->filter_ctx))
        return 0;
    int r = msg_encode(m, &body, &n, err);
    if (r < 0)
        return r;
    struct frame *f = c->pending + n <= OUTPUT_MAX ? frame_new(NULL, n + 4) : NULL;
    if (!f) {
        free(body);
        return err_set(err, -ENOBUFS, "connection to %s: %zu bytes are queued already; the peer does not read", c->name,
                       c->pending);
    }
    put_u32(f->data, (uint32_t)n);
    memcpy(f->data + 4, body, n);
    free(body);
    for (int i = 0; i < n_fds; i++) {
        int fd = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
        if (fd < 0) {
            r = -errno;
            frame_free(f);
            return err_set_errno(err, r, "connection to %s: fd %d cannot be duplicated", c->name, fds[i]);
        }
        f->fds[f->n_fds++] = fd;
    }
    trace(c, "->", m);
    enqueue(c, f);
    r = flush(c);
    if (r < 0)
        return err_set_errno(err, r, "connection to %s", c->name);
    watch(c);
    return 0;
}

void conn_set_filter(struct conn *c, bool (*filter)(void *ctx), void *ctx)
{
    c->filter = filter;
    c->filter_ctx = ctx;
}

void conn_set_owner(struct conn *c, const char *name, const struct conn_handlers *h, void *ctx)
{
    c->name = name;
    c->handlers = h;
    c->ctx = ctx;
}

int conn_fd(const struct conn *c)
{
    return c->fd;
}

size_t conn_pending(const struct conn *c)
{
    return c->pending;
}

/* Collect received fds; more than fit, or a cut-off list, breaks the connection and closes them all. */
static int take_fds(struct conn *c, struct msghdr *mh, struct err *err)
{
    bool overflow = mh->msg_flags & MSG_CTRUNC;
    for (struct cmsghdr *cm = CMSG_FIRSTHDR(mh); cm; cm = CMSG_NXTHDR(mh, cm)) {
        if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(cm) + i * sizeof(int), sizeof(int));
            if (c->n_fds < FDS_MAX) {
                c->fds[c->n_fds++] = fd;
            } else {
                close(fd);
                overflow = true;
            }
        }
    }
    return overflow ? err_set(err, -EPROTO, "more file descriptors arrived than messages take") : 0;
}

static int receive(struct conn *c, struct err *err)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * 28)];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = c->in + c->in_size, .iov_len = sizeof(c->in) - c->in_size};
    struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    ssize_t n = recvmsg(c->fd, &mh, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0 && errno != ECONNRESET) /* reset: it closed without reading all that we sent */
        return errno == EAGAIN || errno == EINTR ? 0 : err_set_errno(err, -errno, "receive");
    int r = n > 0 ? take_fds(c, &mh, err) : 0;
    if (r < 0)
        return r;
    if (n <= 0) {
        if (c->in_size || c->n_fds)
            return err_set(err, -EPROTO, "the peer closed in the middle of a message");
        err->code = 0;
        return -EPIPE; /* clean end */
    }
    c->in_size += (size_t)n;
    return 1;
}

static int dispatch(struct conn *c, const uint8_t *body, size_t n, struct err *err)
{
    struct msg m;
    uint32_t unknown = 0;
    int r = msg_decode(body, n, &m, &unknown, err);
    if (r == -ENOTSUP && c->n_fds)
        return err_set(err, -EPROTO, "file descriptors came with a message of the unknown type %u", unknown);
    if (r == -ENOTSUP) {
        struct msg reply = {.type = MSG_TYPE_error, .error = {.code = -ENOTSUP}};
        snprintf(reply.error.text, sizeof(reply.error.text), "%.*s", (int)sizeof(reply.error.text) - 1, err->text);
        return conn_send(c, &reply, NULL, 0, err);
    }
    if (r < 0)
        return r;
    int want = msg_n_fds(m.type);
    if (c->n_fds < want)
        return err_set(err, -EPROTO, "message '%s' came with %d fds; expected %d", msg_name(m.type), c->n_fds, want);
    int fds[MSG_MAX_FDS];
    memcpy(fds, c->fds, sizeof(int) * (size_t)want);
    c->n_fds -= want;
    memmove(c->fds, c->fds + want, sizeof(int) * (size_t)c->n_fds);
    trace(c, "<-", &m);
    c->handlers->message(c->ctx, c, &m, fds, want);
    for (int i = 0; i < want; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
    return 0;
}

static int check_preamble(const uint8_t *p, struct err *err)
{
    if (memcmp(p, PREAMBLE_MAGIC, 8) != 0)
        return err_set(err, -EPROTO, "the peer does not speak this protocol (wrong preamble)");
    if (get_u32(p + 8) != MSG_VERSION)
        return err_set(err, -EPROTONOSUPPORT,
                       "the peer speaks protocol version %u, this program version %u; use programs of one build", get_u32(p + 8),
                       MSG_VERSION);
    return 0;
}

/* Handle every complete frame in the buffer. */
static int parse(struct conn *c, struct err *err)
{
    size_t at = 0;
    int r = 0;
    while (r == 0 && !c->closing) {
        const uint8_t *p = c->in + at;
        size_t left = c->in_size - at, need = c->greeted ? 4 : PREAMBLE_BYTES;
        if (left < need)
            break;
        if (!c->greeted) {
            r = check_preamble(p, err);
            c->greeted = true;
            at += PREAMBLE_BYTES;
            continue;
        }
        uint32_t n = get_u32(p);
        if (n == 0 || n > MSG_MAX_FRAME)
            return err_set(err, -EPROTO, "frame of %u bytes; expected 1 to %u", n, MSG_MAX_FRAME);
        if (left - 4 < n)
            break;
        at += 4 + (size_t)n;
        r = dispatch(c, p + 4, n, err);
    }
    if (r < 0 || c->closing)
        return r;
    c->in_size -= at;
    memmove(c->in, c->in + at, c->in_size);
    if (c->n_fds > (c->in_size ? MSG_MAX_FDS : 0))
        return err_set(err, -EPROTO, "%d file descriptors came that no message takes", c->n_fds);
    return 0;
}

/* 1: something was read and handled; 0: nothing is there. */
static int read_some(struct conn *c, struct err *err)
{
    int r = receive(c, err);
    if (r <= 0)
        return r;
    r = parse(c, err);
    return r < 0 ? r : 1;
}

static void on_poll(uv_poll_t *p, int status, int events)
{
    struct conn *c = p->data;
    struct err err = {0};
    int r = 0;
    if (status < 0) { /* a reset socket; libuv has stopped polling, what the peer said before lies there still */
        while (!c->closing && (r = read_some(c, &err)) > 0)
            ;
        if (r == 0)
            r = err_set(&err, status, "poll: %s", uv_strerror(status));
    } else if (events & UV_READABLE) {
        r = read_some(c, &err);
    }
    if (r >= 0 && !c->closing && (events & UV_WRITABLE)) {
        r = flush(c);
        if (r < 0)
            err_set_errno(&err, r, "send");
    }
    if (r < 0)
        broken(c, &err);
    else
        watch(c);
}

void conn_read(struct conn *c)
{
    struct err err = {0};
    int r = 0;
    while (c && !c->closing && !c->broken && (r = read_some(c, &err)) > 0)
        ;
    if (r < 0)
        broken(c, &err);
}

int conn_open(uv_loop_t *loop, int fd, const char *name, const struct conn_handlers *h, void *ctx, struct conn **ret,
              struct err *err)
{
    struct ucred cred;
    socklen_t n = sizeof(cred);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) < 0)
        return err_set_errno(err, -errno, "%s: fd %d is not a connected Unix socket", name, fd);
    if (cred.uid != geteuid())
        return err_set(err, -EPERM, "%s: the peer runs as user %u; expected user %u", name, (unsigned)cred.uid,
                       (unsigned)geteuid());
    struct conn *c = calloc(1, sizeof(*c));
    if (!c)
        return err_set(err, -ENOMEM, "%s: out of memory", name);
    c->fd = -1;
    c->name = name;
    c->handlers = h;
    c->ctx = ctx;
    c->out_end = &c->out;
    c->poll.data = c;
    uint8_t preamble[PREAMBLE_BYTES] = PREAMBLE_MAGIC;
    put_u32(preamble + 8, MSG_VERSION);
    struct frame *f = frame_new(preamble, sizeof(preamble));
    int r = f ? uv_poll_init(loop, &c->poll, fd) : UV_ENOMEM;
    if (r < 0) {
        free(f);
        free(c);
        return err_set(err, r, "%s: %s", name, uv_strerror(r));
    }
    c->fd = fd;
    enqueue(c, f);
    flush(c);
    watch(c);
    *ret = c;
    return 0;
}

static void on_closed(uv_handle_t *h)
{
    struct conn *c = h->data;
    while (c->out)
        drop_frame(c);
    drop_fds(c);
    close(c->fd);
    free(c);
}

void conn_close(struct conn *c)
{
    if (!c || c->closing)
        return;
    if (!c->broken)
        flush(c);
    c->closing = true;
    uv_close((uv_handle_t *)&c->poll, on_closed);
}
