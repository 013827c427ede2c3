/* SPDX-License-Identifier: MIT
 * Owns the layout of the memory that events lie in. Indices run freely in u32; each side keeps its own one privately, so that the
 * other cannot change it, and publishes a copy. No thread of its own; never blocks. */
#include "proto/trace.h"

#include <stdatomic.h>

#include "proto/err.h"
#include "proto/shm.h"

#define PAGE 4096u
#define TRACE_MAGIC 0x43415254u /* "TRAC" */
#define VERSION 1u
#define LINE 64

/* Room for what is recorded while the reader sleeps, and on a busy machine does not get a processor: the data thread of a tiny
 * model records up to 60 events a millisecond, others a few for each megabyte or layer. Powers of two. */
static const uint32_t room[TRACE_LANES] = {
    [TRACE_DATA] = 16384,   [TRACE_DEVICE] = 4096,  [TRACE_CONTROL] = 256, [TRACE_FILL] = 256,
    [TRACE_FILL + 1] = 256, [TRACE_FILL + 2] = 256, [TRACE_FILL + 3] = 256};
#define ROOM (16384u + 4096u + 5u * 256u)

struct lane {
    _Alignas(LINE) _Atomic uint32_t head; /* events put so far; the writer's line */
    _Atomic uint32_t lost;
    _Alignas(LINE) _Atomic uint32_t tail; /* events taken so far; the reader's */
};

struct shared {
    uint32_t magic, version, event_bytes, n_lanes;
    struct lane lanes[TRACE_LANES];
};
_Static_assert(sizeof(struct trace_event) == 32, "layout");
_Static_assert(sizeof(struct lane) == 2 * LINE && offsetof(struct shared, lanes) == LINE, "layout");
_Static_assert(sizeof(struct shared) <= PAGE, "layout");

struct side {
    struct trace_event *events;
    uint32_t index, seen; /* index: ours; seen: of the other side, as last read; the reader: drops as last read */
    uint32_t bad;         /* the reader: events that were none, not told yet */
    bool broken;
};

struct trace {
    struct shared *shared;
    struct trace_event chunk;
    struct side sides[TRACE_LANES];
};

size_t trace_bytes(void)
{
    return PAGE + ROOM * sizeof(struct trace_event);
}

int trace_make(struct err *err)
{
    auto_fd fd = shm_make("tandem-trace", trace_bytes(), false, err);
    void *p;
    if (fd < 0)
        return fd;
    int r = shm_map(fd, trace_bytes(), true, &p, err);
    if (r < 0)
        return r;
    struct shared *s = p;
    s->magic = TRACE_MAGIC;
    s->version = VERSION;
    s->event_bytes = sizeof(struct trace_event);
    s->n_lanes = TRACE_LANES;
    shm_unmap(p, trace_bytes());
    return take_fd(&fd);
}

int trace_map(int fd, struct trace **ret, struct err *err)
{
    void *p;
    struct trace *t = calloc(1, sizeof(*t));
    if (!t)
        return err_set(err, -ENOMEM, "trace: out of memory");
    int r = shm_map(fd, trace_bytes(), true, &p, err);
    if (r < 0) {
        free(t);
        return err_wrap(err, r, "trace");
    }
    const struct shared *s = t->shared = p;
    if (s->magic != TRACE_MAGIC || s->version != VERSION || s->event_bytes != sizeof(struct trace_event) ||
        s->n_lanes != TRACE_LANES) {
        r = err_set(err, -EPROTO, "trace: magic 0x%x, version %u, %u lanes of events of %u bytes; expected 0x%x, %u, %u and %zu",
                    s->magic, s->version, s->n_lanes, s->event_bytes, TRACE_MAGIC, VERSION, (unsigned)TRACE_LANES,
                    sizeof(struct trace_event));
        trace_unmap(t);
        return r;
    }
    struct trace_event *events = (struct trace_event *)(void *)((uint8_t *)p + PAGE);
    for (uint32_t i = 0; i < TRACE_LANES; i++) {
        t->sides[i].events = events;
        events += room[i];
    }
    *ret = t;
    return 0;
}

void trace_unmap(struct trace *t)
{
    if (!t)
        return;
    shm_unmap(t->shared, trace_bytes());
    free(t);
}

void trace_set_chunk(struct trace *t, const struct trace_event *e)
{
    t->chunk = *e;
}

void trace_put(struct trace *t, enum trace_lane lane, const struct trace_event *e)
{
    struct lane *l = &t->shared->lanes[lane];
    struct side *s = &t->sides[lane];
    if (s->index - s->seen >= room[lane]) {
        s->seen = atomic_load_explicit(&l->tail, memory_order_acquire);
        if (s->index - s->seen >= room[lane]) {
            atomic_store_explicit(&l->lost, atomic_load_explicit(&l->lost, memory_order_relaxed) + 1, memory_order_relaxed);
            return;
        }
    }
    s->events[s->index % room[lane]] = *e;
    atomic_store_explicit(&l->head, ++s->index, memory_order_release);
}

void trace_put_span(struct trace *t, enum trace_lane lane, enum trace_kind kind, uint64_t start_ns, uint64_t end_ns)
{
    struct trace_event e = t->chunk;
    e.kind = (uint8_t)kind;
    e.start_ns = start_ns;
    e.end_ns = end_ns;
    trace_put(t, lane, &e);
}

static bool is_event(const struct trace_event *e)
{
    return e->kind > TRACE_NONE && e->kind < TRACE_KINDS && e->start_ns <= e->end_ns;
}

bool trace_take(struct trace *t, enum trace_lane lane, struct trace_event *ret)
{
    struct lane *l = &t->shared->lanes[lane];
    struct side *s = &t->sides[lane];
    for (uint32_t n = room[lane]; n && !s->broken; n--) {
        uint32_t fill = atomic_load_explicit(&l->head, memory_order_acquire) - s->index;
        if (fill > room[lane]) { /* what lies there is not known any more */
            s->broken = true;
            s->bad++;
        }
        if (fill == 0 || s->broken)
            return false;
        *ret = s->events[s->index % room[lane]];
        atomic_store_explicit(&l->tail, ++s->index, memory_order_release);
        if (is_event(ret))
            return true;
        s->bad++;
    }
    return false;
}

uint32_t trace_lost(struct trace *t, enum trace_lane lane)
{
    struct side *s = &t->sides[lane];
    uint32_t lost = atomic_load_explicit(&t->shared->lanes[lane].lost, memory_order_relaxed), n = lost - s->seen + s->bad;
    s->seen = lost;
    s->bad = 0;
    return n;
}
