/* SPDX-License-Identifier: MIT
 * The segments that a worker wants: makes their memfds or takes those of a predecessor, tells the coordinator, maps what the loader
 * has filled, and gives back what the stage has copied. Main thread. */
#include <errno.h>
#include <fcntl.h>

#include "proto/conn.h"
#include "proto/shm.h"
#include "proto/stage_impl.h"
#include "proto/util.h"

struct segment {
    struct segment *next;
    uint32_t kind, layer;
    uint64_t bytes;
    int fd;     /* -1: not made yet, or given back */
    void *data; /* read-only mapping once it is filled */
    bool made;
};

struct held {
    struct held *next;
    uint32_t kind, layer;
    uint64_t bytes;
    bool filled;
    int fd;
};

int stage_weights_held(struct stage_io *io, const struct msg_segment_held *m, int *fd, struct err *err)
{
    if (io->configured)
        return err_set(err, -EPROTO, "SEGMENT_HELD after CONFIGURE");
    struct held *h = calloc(1, sizeof(*h));
    if (!h)
        return err_set(err, -ENOMEM, "SEGMENT_HELD: out of memory");
    *h = (struct held){
        .next = io->held, .kind = m->kind, .layer = m->layer, .bytes = m->bytes, .filled = m->filled, .fd = take_fd(fd)};
    io->held = h;
    return 0;
}

static void held_free(struct held *h)
{
    close(h->fd);
    free(h);
}

static void drop_held(struct stage_io *io)
{
    while (io->held) {
        struct held *h = io->held;
        io->held = h->next;
        held_free(h);
    }
}

/* A predecessor's memfd for this segment, if there is one that is what its sender says; -1: none. */
static int take_held(struct stage_io *io, const struct segment *s, bool *ret_filled)
{
    for (struct held **p = &io->held; *p; p = &(*p)->next) {
        struct held *h = *p;
        if (h->kind != s->kind || h->layer != s->layer)
            continue;
        int seals = fcntl(h->fd, F_GET_SEALS), fd = -1;
        *ret_filled = h->filled;
        if (h->bytes == s->bytes && seals >= 0 && (!h->filled || (seals & F_SEAL_WRITE)) && shm_check(h->fd, s->bytes, NULL) == 0)
            fd = take_fd(&h->fd);
        *p = h->next;
        held_free(h);
        return fd;
    }
    return -1;
}

int stage_want_segment(struct stage_io *io, uint32_t kind, uint32_t layer, uint64_t bytes, struct err *err)
{
    struct segment *s = calloc(1, sizeof(*s));
    if (!s)
        return err_set(err, -ENOMEM, "weights of layer %u: out of memory", layer);
    *s = (struct segment){.kind = kind, .layer = layer, .bytes = bytes, .fd = -1};
    *io->segments_end = s;
    io->segments_end = &s->next;
    io->n_segments++;
    return 0;
}

void stage_lease(struct stage_io *io, uint32_t n)
{
    io->lease = n;
}

static int release_segment(struct stage_io *io, struct segment *s, struct err *err)
{
    struct msg m = {.type = MSG_TYPE_segment_released, .segment_released = {.kind = s->kind, .layer = s->layer}};
    shm_unmap(s->data, s->bytes);
    s->data = NULL;
    close(take_fd(&s->fd));
    budget_give(&io->budget, BUDGET_WEIGHTS, s->bytes);
    return conn_send(io->conn, &m, NULL, 0, err);
}

/* It is filled and sealed: the stage may have it. */
static int hand_over(struct stage_io *io, struct segment *s, struct err *err)
{
    int r = shm_map(s->fd, s->bytes, false, &s->data, err);
    io->n_filled++;
    io->n_coming--;
    uint64_t start = trace_now(io->trace);
    if (r == 0 && io->ops->segment)
        r = io->ops->segment(io->state, s->kind, s->layer, s->data, s->bytes, err);
    trace_add(io->trace, TRACE_CONTROL,
              &(struct trace_event){.kind = TRACE_LOAD,
                                    .start_ns = start,
                                    .end_ns = trace_now(io->trace),
                                    .id = s->bytes,
                                    .layer = (uint16_t)s->layer,
                                    .seq = (uint8_t)s->kind});
    return r == STAGE_SEGMENT_COPIED ? release_segment(io, s, err) : r;
}

static int make_segment(struct stage_io *io, struct segment *s, struct err *err)
{
    int r = budget_take(&io->budget, BUDGET_WEIGHTS, s->bytes, err);
    if (r < 0)
        return err_wrap(err, r, "weights of layer %u", s->layer);
    bool filled;
    s->fd = take_held(io, s, &filled);
    if (s->fd >= 0) {
        s->made = true;
        io->n_coming++;
        return filled ? hand_over(io, s, err) : 0;
    }
    s->fd = shm_make("tandem-weights", s->bytes, true, err);
    if (s->fd < 0)
        return s->fd;
    s->made = true;
    io->n_coming++;
    struct msg m = {.type = MSG_TYPE_segment_new, .segment_new = {.kind = s->kind, .layer = s->layer, .bytes = s->bytes}};
    return conn_send(io->conn, &m, &s->fd, 1, err);
}

/* Makes what is wanted, as far as the lease goes, and says so when nothing is left that could follow: under a lease segment() may
 * still want more. */
int stage_weights_make(struct stage_io *io, struct err *err)
{
    int r = 0;
    bool left = false;
    for (struct segment *s = io->segments; r == 0 && s; s = s->next) {
        if (s->made)
            continue;
        left = io->lease && io->n_coming >= io->lease;
        if (left)
            break;
        r = make_segment(io, s, err);
    }
    if (r < 0 || left || io->all_announced || (io->lease && io->n_filled < io->n_segments))
        return r;
    io->all_announced = true;
    drop_held(io);
    struct msg m = {.type = MSG_TYPE_segment_end, .segment_end = {.count = io->n_segments}};
    return conn_send(io->conn, &m, NULL, 0, err);
}

int stage_weights_filled(struct stage_io *io, const struct msg_segment_filled *m, struct err *err)
{
    for (struct segment *s = io->segments; s; s = s->next) {
        if (s->kind != m->kind || s->layer != m->layer || s->data || s->fd < 0)
            continue;
        int seals = fcntl(s->fd, F_GET_SEALS);
        if (seals < 0 || !(seals & F_SEAL_WRITE))
            return err_set(err, -EPROTO, "segment kind %u layer %u is not sealed against writing", m->kind, m->layer);
        int r = hand_over(io, s, err);
        return r < 0 ? r : stage_weights_make(io, err);
    }
    return err_set(err, -EPROTO, "unexpected SEGMENT_FILLED (kind %u, layer %u)", m->kind, m->layer);
}

void stage_weights_close(struct stage_io *io)
{
    drop_held(io);
    while (io->segments) {
        struct segment *s = io->segments;
        io->segments = s->next;
        shm_unmap(s->data, s->bytes);
        util_close_fd(&s->fd);
        free(s);
    }
}
