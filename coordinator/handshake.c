/* SPDX-License-Identifier: MIT
 * What stages say, and what is answered; called by the supervisor on the loop's thread. A negative return ends the stage.
 *
 * Life of a stage: started -> HELLO -> SEGMENT_HELD* + CONFIGURE -> SEGMENT_NEW* + SEGMENT_END -> SEGMENT_FILLED* -> ATTACH_RING*
 * -> START -> READY. Segments are filled by the loader, whenever it is there: what was announced before is asked for when it is
 * configured. PAUSE takes every stage back to where it needs ATTACH_RING and START. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "coordinator/child.h"
#include "coordinator/configure.h"
#include "coordinator/rings.h"
#include "coordinator/segments.h"
#include "coordinator/slots.h"
#include "coordinator/supervise_impl.h"
#include "coordinator/tracer.h"
#include "model/segment.h"
#include "proto/log.h"
#include "proto/sandbox.h"
#include "proto/shm.h"
#include "proto/status.h"
#include "proto/trace.h"
#include "proto/util.h"

#define FILL_NEVER (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)
#define REMIND_NS 100000000u /* a worker that asks again sooner is not heard: the loader has other things to do */
#define OPEN_MAX 64u         /* requests for one slot: a worker asks again only when it has been answered, or was paused */

bool handshake_is_sealed(const struct held_segment *g)
{
    int seals = fcntl(g->fd, F_GET_SEALS);
    return seals >= 0 && (seals & F_SEAL_WRITE);
}

static int start_if_complete(struct stage *st, struct err *err)
{
    if (st->started || !st->attached || !st->segments_known || st->n_filled < st->n_segments)
        return 0;
    st->started = true;
    st->asked_ns = util_now_ns();
    return child_send(st->child, &(struct msg){.type = MSG_TYPE_start}, NULL, 0, err);
}

int handshake_attach(struct stage *st, struct err *err)
{
    const struct supervise *s = st->owner;
    struct ring_end ends[RINGS_OF_STAGE_MAX];
    uint32_t n = rings_of(s->rings, st->role, ends);
    for (uint32_t i = 0; i < n; i++) {
        struct msg m = {.type = MSG_TYPE_attach_ring};
        m.attach_ring.direction = ends[i].direction;
        m.attach_ring.index = ends[i].index;
        m.attach_ring.epoch = s->epoch;
        int r = child_send(st->child, &m, ends[i].fds, 2, err);
        if (r < 0)
            return r;
    }
    st->attached = true;
    return start_if_complete(st, err);
}

static int ask_for(struct supervise *s, const struct held_segment *g, struct err *err)
{
    struct msg m = {.type = MSG_TYPE_segment_fill, .segment_fill = {.kind = g->kind, .layer = g->layer, .bytes = g->bytes}};
    return child_send(s->stages[MSG_ROLE_LOADER].child, &m, &g->fd, 1, err);
}

static int ask_for_slot(struct supervise *s, struct held_slot *h, struct err *err)
{
    h->asked_ns = util_now_ns();
    struct msg m = {
        .type = MSG_TYPE_slot_fill,
        .slot_fill = {.kind = h->kind, .slot = h->slot, .layer = h->layer, .bytes = h->bytes_wanted, .serial = h->serial}};
    return child_send(s->stages[MSG_ROLE_LOADER].child, &m, &h->fd, 1, err);
}

/* A new loader: what its predecessor did not fill. */
static int ask_for_all(struct supervise *s, struct err *err)
{
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < slots_count(s->slots); i++) {
        struct held_slot *h = slots_at(s->slots, i);
        h->n_open = h->serial != 0;
        r = h->serial ? ask_for_slot(s, h, err) : 0;
    }
    for (uint32_t i = 0; r == 0 && i < segments_count(s->segments); i++) {
        const struct held_segment *g = segments_at(s->segments, i);
        r = g->filled ? 0 : ask_for(s, g, err);
    }
    return r;
}

/* A new worker: what its predecessor had. */
static int send_held(struct stage *st, struct err *err)
{
    struct segments *all = st->owner->segments;
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < segments_count(all); i++) {
        struct held_segment *g = segments_at(all, i);
        if (g->role != st->role)
            continue;
        g->inherited = true;
        struct msg m = {.type = MSG_TYPE_segment_held,
                        .segment_held = {.kind = g->kind, .layer = g->layer, .bytes = g->bytes, .filled = g->filled}};
        r = child_send(st->child, &m, &g->fd, 1, err);
        st->n_segments++;
        st->n_filled += g->filled;
    }
    for (uint32_t i = 0; r == 0 && i < slots_count(st->owner->slots); i++) {
        struct held_slot *h = slots_at(st->owner->slots, i);
        if (h->role != st->role)
            continue;
        struct msg m = {.type = MSG_TYPE_slot_held, .slot_held = {.kind = h->kind, .slot = h->slot, .bytes = h->bytes}};
        h->inherited = true;
        r = child_send(st->child, &m, &h->fd, 1, err);
    }
    return r;
}

/* One that cannot be traced works without. */
static int send_trace(struct stage *st, struct err *err)
{
    struct tracer *t = st->owner->o.tracer;
    struct err why = {0};
    if (!t)
        return 0;
    auto_fd fd = tracer_stage(t, st->role, st->pid, st->stats.restarts, &why);
    if (fd < 0) {
        log_warn("trace", "%s; %s (pid %d) is not traced", why.text, msg_role_name(st->role), st->pid);
        return 0;
    }
    uint64_t now = util_now_ns();
    trace_add(tracer_own(t), TRACE_CONTROL,
              &(struct trace_event){.kind = TRACE_RUNNING,
                                    .start_ns = now,
                                    .end_ns = now,
                                    .tokens = (uint16_t)st->stats.restarts,
                                    .seq = (uint8_t)st->role});
    return child_send(st->child, &(struct msg){.type = MSG_TYPE_trace}, &fd, 1, err);
}

static int send_configure(struct stage *st, struct err *err)
{
    const struct supervise *s = st->owner;
    struct msg m = {.type = MSG_TYPE_configure};
    int r = configure_fill(&m.configure, st->role, s->o.config, s->o.plan, s->epoch, st->stats.restarts == 0, err);
    if (r < 0)
        return r;
    auto_fd page = status_make(err);
    if (page < 0)
        return page;
    r = status_map(page, &st->page, err);
    return r < 0 ? r : child_send(st->child, &m, (int[]){rings_bell_fd(s->rings, st->role), page}, 2, err);
}

static int on_hello(struct stage *st, const struct msg_hello *h, struct err *err)
{
    struct supervise *s = st->owner;
    if (st->configured || h->role != (uint32_t)st->role)
        return err_set(err, -EPROTO, "%s: HELLO with role %u%s; expected role %u once", msg_role_name(st->role), h->role,
                       st->configured ? " again" : "", st->role);
    if (strcmp(h->build, TANDEM_VERSION) != 0)
        return err_set(err, -EPROTO, "%s is version '%s', the coordinator '%s'; install both from one build",
                       msg_role_name(st->role), h->build, TANDEM_VERSION);
    int r = send_held(st, err);
    if (r == 0)
        r = send_trace(st, err);
    if (r == 0)
        r = send_configure(st, err);
    if (r < 0)
        return r;
    st->configured = true;
    s->configured_ns = st->moved_ns = util_now_ns();
    if (st->role == MSG_ROLE_LOADER && (r = ask_for_all(s, err)) < 0)
        return r;
    return rings_made(s->rings) ? handshake_attach(st, err) : 0;
}

/* The loader writes into it: what a worker makes must not be its trap. never: seals that would be one. */
static int check_memfd(const struct stage *st, uint32_t kind, uint64_t bytes, int fd, int never, struct err *err)
{
    const char *name = msg_role_name(st->role);
    if (st->role != (kind == SEGMENT_ATTN ? MSG_ROLE_NPU : MSG_ROLE_GPU))
        return err_set(err, -EPROTO, "%s: made room for weights of kind %u, which are not its own", name, kind);
    if (bytes == 0)
        return err_set(err, -EPROTO, "%s: made room for 0 bytes of weights", name);
    int r = shm_check(fd, bytes, err);
    if (r < 0)
        return err_wrap(err, r, "%s", name);
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals & never)
        return err_set(err, -EPROTO, "%s: memfd for weights with seals 0x%x; expected one that can be filled", name,
                       (unsigned)seals);
    return 0;
}

static int on_segment_new(struct stage *st, const struct msg_segment_new *m, int *fd, struct err *err)
{
    struct supervise *s = st->owner;
    struct held_segment h = {.role = st->role, .kind = m->kind, .layer = m->layer, .bytes = m->bytes, .fd = *fd};
    struct held_segment *before = segments_find(s->segments, m->kind, m->layer);
    int r = check_memfd(st, m->kind, m->bytes, *fd, FILL_NEVER | F_SEAL_SEAL, err);
    if (r < 0)
        return r;
    if (before && before->inherited && !st->segments_known) { /* of its predecessor: not to its taste */
        s->n_stale_fills += !before->filled && s->stages[MSG_ROLE_LOADER].configured;
        st->n_segments--;
        st->n_filled -= before->filled;
        segments_remove(s->segments, before);
    }
    if (st->segments_known || !segments_add(s->segments, &h))
        return err_set(err, -EPROTO, "%s: unexpected SEGMENT_NEW (kind %u, layer %u)", msg_role_name(st->role), m->kind, m->layer);
    take_fd(fd);
    st->n_segments++;
    st->moved_ns = util_now_ns();
    return s->stages[MSG_ROLE_LOADER].configured ? ask_for(s, &h, err) : 0;
}

static int on_segment_released(struct stage *st, const struct msg_segment_released *m, struct err *err)
{
    struct supervise *s = st->owner;
    struct held_segment *g = segments_find(s->segments, m->kind, m->layer);
    if (!g || g->role != st->role || !g->filled)
        return err_set(err, -EPROTO, "%s: SEGMENT_RELEASED for kind %u layer %u, which it does not hold", msg_role_name(st->role),
                       m->kind, m->layer);
    segments_remove(s->segments, g);
    return 0;
}

static int on_segment_filled(struct stage *st, const struct msg_segment_filled *m, struct err *err)
{
    struct supervise *s = st->owner;
    if (st->role != MSG_ROLE_LOADER)
        return err_set(err, -EPROTO, "%s: unexpected SEGMENT_FILLED", msg_role_name(st->role));
    s->filling_ns = 0;
    struct held_segment *g = segments_find(s->segments, m->kind, m->layer);
    if (!g || g->filled || !handshake_is_sealed(g)) {
        if (s->n_stale_fills == 0)
            return err_set(err, -EPROTO, "loader: SEGMENT_FILLED for kind %u layer %u, %s", m->kind, m->layer,
                           g && !g->filled ? "which is not sealed against writing" : "which nobody asked for");
        s->n_stale_fills--; /* of a worker that ended meanwhile */
        return 0;
    }
    return handshake_filled(s, g, err);
}

int handshake_filled(struct supervise *s, struct held_segment *g, struct err *err)
{
    struct stage *to = &s->stages[g->role];
    struct msg m = {.type = MSG_TYPE_segment_filled, .segment_filled = {.kind = g->kind, .layer = g->layer}};
    g->filled = true;
    if (!to->configured)
        return 0; /* the one that comes is told before it is configured */
    to->n_filled++;
    to->moved_ns = util_now_ns();
    int r = child_send(to->child, &m, NULL, 0, err);
    return r < 0 ? r : start_if_complete(to, err);
}

static int on_segment_end(struct stage *st, const struct msg_segment_end *m, struct err *err)
{
    if (m->count != st->n_segments)
        return err_set(err, -EPROTO, "%s: SEGMENT_END with count %u; %u were announced", msg_role_name(st->role), m->count,
                       st->n_segments);
    st->segments_known = true;
    return start_if_complete(st, err);
}

static int on_slot_new(struct stage *st, const struct msg_slot_new *m, int *fd, struct err *err)
{
    struct supervise *s = st->owner;
    struct held_slot h = {.role = st->role, .kind = m->kind, .slot = m->slot, .bytes = m->bytes, .fd = *fd};
    struct held_slot *before = slots_find(s->slots, m->kind, m->slot);
    int r = check_memfd(st, m->kind, m->bytes, *fd, FILL_NEVER, err);
    if (r < 0)
        return r;
    if (before && before->inherited && !st->segments_known) /* of its predecessor: not to its taste */
        slots_remove(s->slots, before);
    if (st->segments_known || !slots_add(s->slots, &h))
        return err_set(err, -EPROTO, "%s: unexpected SLOT_NEW (kind %u, slot %u)", msg_role_name(st->role), m->kind, m->slot);
    take_fd(fd);
    return 0;
}

static int grant_slot(struct supervise *s, const struct held_slot *h, struct err *err)
{
    struct msg m = {.type = MSG_TYPE_slot_filled,
                    .slot_filled = {.kind = h->kind, .slot = h->slot, .layer = h->layer, .serial = h->worker_serial}};
    return child_send(s->stages[h->role].child, &m, NULL, 0, err);
}

/* The worker has no answer to its last request: it is given again, or the loader is reminded. Either may have been on its way. */
static int remind(struct supervise *s, struct held_slot *h, struct err *err)
{
    if (util_now_ns() - h->asked_ns < REMIND_NS || !s->stages[MSG_ROLE_LOADER].configured)
        return 0;
    log_debug("supervise", "%s asks again for layer %u, slot %u: %s", msg_role_name(h->role), h->layer, h->slot,
              h->granted ? "it is filled" : "the loader has not said that it is filled");
    if (!h->granted)
        return ask_for_slot(s, h, err);
    h->asked_ns = util_now_ns();
    return grant_slot(s, h, err);
}

static int on_slot_want(struct stage *st, const struct msg_slot_want *m, struct err *err)
{
    struct supervise *s = st->owner;
    struct held_slot *h = slots_find(s->slots, m->kind, m->slot);
    if (!h || h->role != st->role || m->bytes > h->bytes)
        return err_set(err, -EPROTO, "%s: SLOT_WANT (kind %u, slot %u, layer %u) of a slot that it does not have",
                       msg_role_name(st->role), m->kind, m->slot, m->layer);
    if ((h->serial || h->granted) && h->worker_serial == m->serial && h->layer == m->layer && h->bytes_wanted == m->bytes)
        return remind(s, h, err);
    if (h->n_open >= OPEN_MAX)
        return err_set(err, -EPROTO, "%s: SLOT_WANT (kind %u, slot %u) again and again; %u requests are not answered yet",
                       msg_role_name(st->role), m->kind, m->slot, h->n_open);
    h->layer = m->layer;
    h->bytes_wanted = m->bytes;
    h->worker_serial = m->serial;
    h->serial = slots_serial(s->slots);
    h->granted = false;
    if (!s->stages[MSG_ROLE_LOADER].configured)
        return 0;
    h->n_open++;
    return ask_for_slot(s, h, err);
}

static int on_slot_filled(struct stage *st, const struct msg_slot_filled *m, struct err *err)
{
    struct supervise *s = st->owner;
    struct held_slot *h = st->role == MSG_ROLE_LOADER ? slots_find(s->slots, m->kind, m->slot) : NULL;
    if (!h)
        return err_set(err, -EPROTO, "%s: unexpected SLOT_FILLED (kind %u, slot %u)", msg_role_name(st->role), m->kind, m->slot);
    s->filling_ns = 0;
    h->n_open -= h->n_open > 0;
    if (m->serial != h->serial)
        return 0; /* something else has been wanted there since */
    h->serial = 0;
    h->granted = true;
    return grant_slot(s, h, err);
}

static int on_paused(struct stage *st, const struct msg_paused *m, struct err *err)
{
    if (!st->pausing && m->epoch >= st->owner->epoch)
        return err_set(err, -EPROTO, "%s: unexpected PAUSED", msg_role_name(st->role));
    if (m->epoch != st->owner->epoch)
        return 0; /* there was another pause meanwhile */
    st->pausing = false;
    recovery_step(st->owner);
    return 0;
}

static int on_ready(struct stage *st, const struct msg_ready *m, struct err *err)
{
    struct supervise *s = st->owner;
    if (st->pausing)
        return 0; /* it was, of an epoch that is over */
    if (!st->started || st->ready)
        return err_set(err, -EPROTO, "%s: unexpected READY", msg_role_name(st->role));
    if (s->o.config->sandbox && !st->lived && sandbox_text_lacks(m->sandbox))
        log_warn("supervise", "%s (pid %d) is not held as 'sandbox: auto' means: %s", msg_role_name(st->role), child_pid(st->child),
                 m->sandbox);
    st->ready = st->lived = true;
    if (st->backend[0] && strncmp(st->backend, m->backend, strcspn(st->backend, " ")) != 0) {
        log_warn("supervise", "%s goes on with backend %s instead of %s; results may differ in their last bits",
                 msg_role_name(st->role), m->backend, st->backend);
        s->recovery.backend_changed = true;
    }
    snprintf(st->backend, sizeof(st->backend), "%s", m->backend);
    log_info("supervise", "%s (pid %d) is ready: backend %s; sandbox %s", msg_role_name(st->role), child_pid(st->child),
             st->backend, m->sandbox);
    recovery_ready(s);
    return 0;
}

int handshake_message(struct stage *st, const struct msg *m, int *fds, struct err *err)
{
    struct supervise *s = st->owner;
    st->pinged_ns = 0;
    if (!st->configured && m->type != MSG_TYPE_hello && m->type != MSG_TYPE_error)
        return err_set(err, -EPROTO, "%s: sent a %s message before HELLO", msg_role_name(st->role), msg_name(m->type));
    switch (m->type) {
    case MSG_TYPE_hello:
        return on_hello(st, &m->hello, err);
    case MSG_TYPE_segment_new:
        return on_segment_new(st, &m->segment_new, &fds[0], err);
    case MSG_TYPE_segment_end:
        return on_segment_end(st, &m->segment_end, err);
    case MSG_TYPE_segment_released:
        return on_segment_released(st, &m->segment_released, err);
    case MSG_TYPE_segment_filled:
        return on_segment_filled(st, &m->segment_filled, err);
    case MSG_TYPE_slot_new:
        return on_slot_new(st, &m->slot_new, &fds[0], err);
    case MSG_TYPE_slot_want:
        return on_slot_want(st, &m->slot_want, err);
    case MSG_TYPE_slot_filled:
        return on_slot_filled(st, &m->slot_filled, err);
    case MSG_TYPE_paused:
        return on_paused(st, &m->paused, err);
    case MSG_TYPE_ready:
        return on_ready(st, &m->ready, err);
    case MSG_TYPE_stats:
        if (s->o.stats)
            s->o.stats(s->o.ctx, st->role, &m->stats);
        return 0;
    case MSG_TYPE_error:
        st->bad_input = m->error.bad_input;
        st->bad_output = m->error.bad_output;
        return err_set(err, m->error.code < 0 ? m->error.code : -EIO, "%s (pid %d): %s", msg_role_name(st->role),
                       child_pid(st->child), m->error.text);
    case MSG_TYPE_collecting:
        if (s->o.collecting)
            s->o.collecting(s->o.ctx, st->role);
        return 0;
    case MSG_TYPE_pong:
    case MSG_TYPE_drained:
        return 0;
    case MSG_NONE:
    case MSG_TYPE_configure:
    case MSG_TYPE_attach_ring:
    case MSG_TYPE_segment_fill:
    case MSG_TYPE_segment_held:
    case MSG_TYPE_slot_held:
    case MSG_TYPE_trace:
    case MSG_TYPE_slot_fill:
    case MSG_TYPE_start:
    case MSG_TYPE_pause:
    case MSG_TYPE_ping:
    case MSG_TYPE_stats_request:
    case MSG_TYPE_collect:
    case MSG_TYPE_drain:
    case MSG_TYPE_shutdown:
    default:
        return err_set(err, -EPROTO, "%s: sent a %s message, which only the coordinator may send", msg_role_name(st->role),
                       msg_name(m->type));
    }
}
