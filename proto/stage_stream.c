/* SPDX-License-Identifier: MIT
 * Layers that pass through slots. The main thread makes the slots, asks for what the data thread wants in them and hears when it is
 * there; the data thread waits for a layer, and gives its slot to the next one when the pass has left it. They share two numbers of
 * each slot: `want`, written by the data thread, and `held`, which the main thread sets when a layer has come and clears before it
 * asks for another.
 *
 * Layers come in a cycle, so what follows is known; a layer that is wanted out of turn (after a restart) is asked for when a chunk
 * stands before it.
 *
 * A request that has no answer after twice the usual time, or two seconds, is made again, under its number: if a message was lost,
 * nobody else would notice for a long time, and if none was, who gets it twice knows it by the number. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/conn.h"
#include "proto/ring.h"
#include "proto/shm.h"
#include "proto/stage_impl.h"
#include "proto/status.h"
#include "proto/util.h"

#define AGAIN_LEAST_NS 500000000u
#define AGAIN_FIRST_NS 2000000000u /* at most: later, a worker that waits for what nobody heard of is taken for one that hangs */
#define AGAIN_MOST_NS 16000000000u

struct slot {
    uint64_t bytes;
    int fd;
    void *data;            /* read-only mapping */
    _Atomic uint32_t want; /* index of a layer in `layers`, + 1; 0: none yet */
    _Atomic uint64_t turn; /* of the wish, among those of all slots: they are asked for in order */
    _Atomic uint32_t held; /* likewise: what is in it, whole */
    uint32_t asked;        /* likewise: of the last request; the main thread's */
    uint64_t serial;       /* of the last request, */
    uint64_t asked_ns;     /* when it was made first, */
    uint64_t again_ns;     /* when it is made again (0: it has its answer), */
    uint64_t patience_ns;  /* and how long after the last time that is */
};

struct layer {
    uint32_t kind, layer, slot;
    uint32_t next; /* index of the one that has the slot after it */
    uint64_t bytes;
};

struct stream {
    struct slot slots[STAGE_SLOTS_MAX];
    uint32_t n_slots, n_layers;
    struct layer *layers;    /* in the order of a pass */
    uint32_t by_number[512]; /* index + 1 in `layers`; 0: not streamed */
    uint64_t serial;
    uint64_t usual_ns; /* from a request to its answer, in the mean; 0: not known */
    uint64_t turns;    /* wishes so far; the data thread's, or the main thread's while none runs */
    uint32_t current;  /* index + 1 of the layer that the data thread is at */
    bool released;     /* its slot is another's already */
    _Atomic uint64_t visits, hits, wait_ns, wait_max_ns;
    _Atomic uint32_t layer_us[512]; /* waited for each, by number */
};

int stage_stream_segment(struct stage_io *io, uint32_t kind, uint32_t layer, uint32_t slot, uint64_t bytes, struct err *err)
{
    struct stream *s = io->stream;
    if (!s) {
        s = io->stream = calloc(1, sizeof(*s));
        for (uint32_t i = 0; s && i < STAGE_SLOTS_MAX; i++)
            s->slots[i].fd = -1;
    }
    struct layer *l =
        s && layer < ARRAY_LEN(s->by_number) && slot < STAGE_SLOTS_MAX ? realloc(s->layers, (s->n_layers + 1) * sizeof(*l)) : NULL;
    if (!l)
        return err_set(err, -ENOMEM, "weights of layer %u, slot %u: out of memory", layer, slot);
    s->layers = l;
    l[s->n_layers] = (struct layer){.kind = kind, .layer = layer, .slot = slot, .bytes = bytes};
    s->by_number[layer] = ++s->n_layers;
    s->n_slots = MAX(s->n_slots, slot + 1);
    s->slots[slot].bytes = MAX(s->slots[slot].bytes, bytes);
    return 0;
}

static void drop_held(struct stage_io *io)
{
    for (uint32_t i = 0; i < STAGE_SLOTS_MAX; i++) {
        auto_fd fd = take_fd(&io->held_slots[i]);
        (void)fd;
    }
}

static void link_layers(struct stream *s)
{
    for (uint32_t i = 0; i < s->n_layers; i++) {
        uint32_t next = (i + 1) % s->n_layers;
        while (s->layers[next].slot != s->layers[i].slot)
            next = (next + 1) % s->n_layers;
        s->layers[i].next = next;
    }
}

static int make_slot(struct stage_io *io, uint32_t i, struct err *err)
{
    struct slot *t = &io->stream->slots[i];
    int r = budget_take(&io->budget, BUDGET_WEIGHTS, t->bytes, err);
    if (r < 0)
        return err_wrap(err, r, "slot %u for streamed weights", i);
    t->fd = take_fd(&io->held_slots[i]);
    bool held = t->fd >= 0 && shm_check(t->fd, t->bytes, NULL) == 0;
    if (!held) {
        util_close_fd(&t->fd);
        t->fd = shm_make("tandem-slot", t->bytes, false, err);
    }
    r = t->fd < 0 ? t->fd : shm_map(t->fd, t->bytes, false, &t->data, err);
    if (r < 0 || held)
        return r;
    struct msg m = {.type = MSG_TYPE_slot_new, .slot_new = {.kind = io->stream->layers[0].kind, .slot = i, .bytes = t->bytes}};
    return conn_send(io->conn, &m, &t->fd, 1, err);
}

int stage_stream_held(struct stage_io *io, const struct msg_slot_held *m, int *fd, struct err *err)
{
    if (io->configured || m->slot >= STAGE_SLOTS_MAX || io->held_slots[m->slot] >= 0)
        return err_set(err, -EPROTO, "unexpected SLOT_HELD (slot %u)%s", m->slot, io->configured ? " after CONFIGURE" : "");
    io->held_slots[m->slot] = take_fd(fd);
    return 0;
}

int stage_stream_make(struct stage_io *io, struct err *err)
{
    struct stream *s = io->stream;
    int r = 0;
    if (!s) {
        drop_held(io);
        return 0;
    }
    link_layers(s);
    for (uint32_t i = 0; r == 0 && i < s->n_slots; i++)
        r = make_slot(io, i, err);
    drop_held(io);
    for (uint32_t i = 0; r >= 0 && i < s->n_layers; i++) {
        const struct layer *l = &s->layers[i];
        if (io->ops->segment)
            r = io->ops->segment(io->state, l->kind, l->layer, s->slots[l->slot].data, l->bytes, err);
    }
    return MIN(r, 0);
}

static void wish(struct stream *s, uint32_t index)
{
    struct slot *t = &s->slots[s->layers[index].slot];
    atomic_store(&t->turn, ++s->turns);
    atomic_store(&t->want, index + 1);
}

void stage_stream_start(struct stage_io *io)
{
    struct stream *s = io->stream;
    for (uint32_t i = 0; s && i < MIN(s->n_layers, s->n_slots); i++)
        wish(s, i);
    if (s)
        s->current = 0;
    io->pass_open = false;
}

/* The slot whose wish has not been passed on for longest; NULL: all have. */
static struct slot *next_wish(struct stream *s, uint32_t *ret_want)
{
    struct slot *first = NULL;
    for (uint32_t i = 0; i < s->n_slots; i++) {
        struct slot *t = &s->slots[i];
        uint32_t want = atomic_load(&t->want);
        if (want == 0 || want == t->asked || (first && atomic_load(&t->turn) > atomic_load(&first->turn)))
            continue;
        first = t;
        *ret_want = want;
    }
    return first;
}

static int send_want(struct stage_io *io, struct slot *t, struct err *err)
{
    const struct layer *l = &io->stream->layers[t->asked - 1];
    struct msg m = {.type = MSG_TYPE_slot_want,
                    .slot_want = {.kind = l->kind, .slot = l->slot, .layer = l->layer, .bytes = l->bytes, .serial = t->serial}};
    t->again_ns = util_now_ns() + t->patience_ns;
    return conn_send(io->conn, &m, NULL, 0, err);
}

/* The timer rings when the first request is to be made again. */
static void set_timer(struct stage_io *io)
{
    uint64_t first = 0, now = util_now_ns();
    for (uint32_t i = 0; i < io->stream->n_slots; i++) {
        uint64_t at = io->stream->slots[i].again_ns;
        first = at && (!first || at < first) ? at : first;
    }
    if (first)
        uv_timer_start(&io->again, stage_stream_again, (first - MIN(first, now)) / 1000000 + 1, 0);
    else
        uv_timer_stop(&io->again);
}

int stage_stream_ask(struct stage_io *io, struct err *err)
{
    struct stream *s = io->stream;
    struct slot *t;
    uint32_t want = 0;
    bool asked = false;
    while (s && io->running && (t = next_wish(s, &want))) {
        atomic_store(&t->held, 0);
        t->asked = want;
        t->serial = ++s->serial;
        t->asked_ns = util_now_ns();
        t->patience_ns = MIN(MAX(2 * s->usual_ns, AGAIN_LEAST_NS), AGAIN_FIRST_NS);
        int r = send_want(io, t, err);
        if (r < 0)
            return r;
        asked = true;
    }
    if (asked)
        set_timer(io);
    return 0;
}

void stage_stream_again(uv_timer_t *timer)
{
    struct stage_io *io = timer->data;
    struct err err = {0};
    uint64_t now = util_now_ns();
    for (uint32_t i = 0; !io->finished && i < io->stream->n_slots; i++) {
        struct slot *t = &io->stream->slots[i];
        if (!t->again_ns || t->again_ns > now)
            continue;
        t->patience_ns = MIN(2 * t->patience_ns, AGAIN_MOST_NS);
        if (send_want(io, t, &err) < 0)
            stage_fail(io, &err);
    }
    if (!io->finished)
        set_timer(io);
}

int stage_stream_filled(struct stage_io *io, const struct msg_slot_filled *m, struct err *err)
{
    struct stream *s = io->stream;
    if (!s || m->slot >= s->n_slots || m->serial > s->serial)
        return err_set(err, -EPROTO, "unexpected SLOT_FILLED (kind %u, slot %u, layer %u)", m->kind, m->slot, m->layer);
    struct slot *t = &s->slots[m->slot];
    if (m->serial != t->serial || t->asked == 0)
        return 0; /* something else is wanted there by now */
    const struct layer *l = &s->layers[t->asked - 1];
    if (l->layer != m->layer || l->kind != m->kind)
        return err_set(err, -EPROTO, "SLOT_FILLED says layer %u of slot %u; layer %u was wanted", m->layer, m->slot, l->layer);
    if (t->again_ns) { /* the first answer */
        uint64_t took = util_now_ns() - t->asked_ns;
        s->usual_ns = s->usual_ns ? s->usual_ns + took / 8 - s->usual_ns / 8 : took;
        t->again_ns = 0;
        set_timer(io);
    }
    atomic_store(&t->held, t->asked);
    bell_ring(io->bell);
    return 0;
}

void stage_stream_stats(struct stage_io *io, struct msg_stats *ret)
{
    struct stream *s = io->stream;
    if (!s)
        return;
    ret->stream_visits = atomic_load(&s->visits);
    ret->stream_hits = atomic_load(&s->hits);
    ret->stream_wait_ns = atomic_load(&s->wait_ns);
    ret->stream_wait_max_ns = atomic_load(&s->wait_max_ns);
    for (uint32_t i = 0; i < s->n_layers; i++) {
        uint32_t number = s->layers[i].layer, us = atomic_load_explicit(&s->layer_us[number], memory_order_relaxed);
        memcpy(ret->stream_layers + number * sizeof(us), &us, sizeof(us));
        ret->stream_layers_len = MAX(ret->stream_layers_len, (number + 1) * (uint32_t)sizeof(us));
    }
}

void stage_stream_close(struct stage_io *io)
{
    struct stream *s = io->stream;
    drop_held(io);
    for (uint32_t i = 0; s && i < s->n_slots; i++) {
        shm_unmap(s->slots[i].data, s->slots[i].bytes);
        util_close_fd(&s->slots[i].fd);
    }
    if (s)
        free(s->layers);
    free(s);
    io->stream = NULL;
}

/* ---- data thread ---- */

/* The slot of the current layer is the next one's. */
static void release(struct stage_io *io)
{
    struct stream *s = io->stream;
    const struct layer *l = &s->layers[s->current - 1];
    wish(s, l->next);
    s->released = true;
    uv_async_send(&io->report);
}

static bool wait_for(struct stage_io *io, uint32_t index)
{
    struct slot *t = &io->stream->slots[io->stream->layers[index].slot];
    for (;;) {
        uint32_t seen = bell_read(io->bell);
        if (atomic_load(&t->want) != index + 1) { /* out of turn */
            wish(io->stream, index);
            uv_async_send(&io->report);
        } else if (atomic_load(&t->held) == index + 1) {
            return true;
        }
        if (atomic_load_explicit(&io->stop, memory_order_acquire) || atomic_load(&io->hold))
            return false;
        bell_wait(io->bell, seen, 0, BELL_AGAIN_NS);
    }
}

static bool is_there(const struct stream *s, uint32_t index)
{
    const struct slot *t = &s->slots[s->layers[index].slot];
    return atomic_load(&t->want) == index + 1 && atomic_load(&t->held) == index + 1;
}

int stage_stream_enter(struct stage_io *io, uint32_t layer, struct err *err)
{
    struct stream *s = io->stream;
    if (!s || layer >= ARRAY_LEN(s->by_number))
        return 0;
    uint32_t index = s->by_number[layer];
    if (s->current && s->current == index)
        return 0;
    if (s->current && !s->released) /* the last chunk of the pass did not come: it failed before this stage */
        release(io);
    s->current = 0;
    if (!index)
        return 0;
    atomic_fetch_add_explicit(&s->visits, 1, memory_order_relaxed);
    if (is_there(s, index - 1)) {
        atomic_fetch_add_explicit(&s->hits, 1, memory_order_relaxed);
    } else {
        uint64_t start = util_now_ns();
        status_waits(io->page, STATUS_WEIGHTS);
        bool there = wait_for(io, index - 1);
        status_waits(io->page, STATUS_INPUT);
        if (!there)
            return -ECANCELED;
        uint64_t waited = util_now_ns() - start;
        trace_span(io->trace, TRACE_DATA, TRACE_WAIT_WEIGHTS, start, start + waited);
        io->process_blocked_ns += waited;
        atomic_fetch_add_explicit(&s->wait_ns, waited, memory_order_relaxed);
        atomic_fetch_add_explicit(&s->layer_us[layer], (uint32_t)(waited / 1000), memory_order_relaxed);
        if (waited > atomic_load_explicit(&s->wait_max_ns, memory_order_relaxed))
            atomic_store_explicit(&s->wait_max_ns, waited, memory_order_relaxed);
    }
    s->current = index;
    s->released = false;
    int r = io->ops->streamed ? io->ops->streamed(io->state, s->layers[index - 1].kind, layer, err) : 0;
    if (r == STAGE_SEGMENT_COPIED)
        release(io);
    return MIN(r, 0);
}

void stage_stream_leave(struct stage_io *io, bool last_of_pass)
{
    struct stream *s = io->stream;
    if (!s || !s->current || !last_of_pass)
        return;
    if (!s->released)
        release(io);
    s->current = 0;
}
