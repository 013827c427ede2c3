/* SPDX-License-Identifier: MIT
 * A stage ended: the others are paused, rings are made anew under the next epoch, the stage is started again and gets the segments
 * of its predecessor. Called by the supervisor on the loop's thread; whom the death costs what is the schedule's matter.
 *
 * Order. (1) `lost`: nobody here uses the rings any more; they are closed, the epoch rises, PAUSE goes to all configured stages.
 * (2) The stage is started, at once or after a while. (3) When all have answered PAUSED, so that the old rings are gone and their
 * memory is free, new ones are made and sent to every stage that is configured, and to the others when they are. (4) All are READY.
 * Another death on the way starts again at (1), under another epoch where new rings may have been sent already. */
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "coordinator/cgroup.h"
#include "coordinator/child.h"
#include "coordinator/configure.h"
#include "coordinator/oom.h"
#include "coordinator/plan.h"
#include "coordinator/rings.h"
#include "coordinator/segments.h"
#include "coordinator/slots.h"
#include "coordinator/supervise_impl.h"
#include "coordinator/tracer.h"
#include "proto/log.h"
#include "proto/status.h"
#include "proto/trace.h"
#include "proto/util.h"

static void fail(struct supervise *s, const struct err *why, const char *then)
{
    struct err err = {0};
    err_set(&err, why->code, "%s%s", why->text, then);
    supervise_fail(s, &err);
}

/* A kill by the kernel for memory is told apart from any other. True: its own cap was too small, and will be again. */
static bool passed_cap(struct stage *st, struct err *why)
{
    const struct supervise *s = st->owner;
    const char *name = msg_role_name(st->role);
    struct cgroup_kill kill;
    char who[64], remedy[64], text[sizeof(why->text)];
    if (!cgroup_killed(s->o.cgroup, NULL, name, &st->counts, &kill))
        return false;
    snprintf(who, sizeof(who), "%s (pid %d)", name, st->pid);
    snprintf(remedy, sizeof(remedy), "raise 'memory.%s'", name);
    oom_describe(&kill, who, s->o.plan->process[configure_process(st->role)].cap, remedy, text, sizeof(text));
    err_set(why, -ECHILD, "%s", text);
    return kill.cause == CGROUP_CAP;
}

/* What a loader filled and did not come to say. What it did not fill is asked for again when its successor comes; the segments of a
 * worker stay for its successor, also those that are still being filled: their memory is the worker's, and there is no room for
 * them twice. */
static int settle_segments(struct supervise *s, struct err *err)
{
    int r = 0;
    s->n_stale_fills = 0;
    for (uint32_t i = 0; r == 0 && i < segments_count(s->segments); i++) {
        struct held_segment *g = segments_at(s->segments, i);
        if (!g->filled && handshake_is_sealed(g))
            r = handshake_filled(s, g, err);
    }
    return r;
}

static void forget(struct stage *st)
{
    struct slots *slots = st->owner->slots;
    for (uint32_t i = 0; i < slots_count(slots); i++) {
        struct held_slot *h = slots_at(slots, i);
        if (h->role != st->role)
            continue;
        h->serial = 0; /* what is being filled there has nobody who waits for it */
        h->granted = false;
    }
    status_unmap(take_ptr(&st->page));
    tracer_stage_ended(st->owner->o.tracer, st->role);
    st->configured = st->attached = st->started = st->ready = st->pausing = st->lived = st->segments_known = false;
    st->n_segments = st->n_filled = 0;
}

static int pause_others(struct supervise *s, struct err *err)
{
    struct msg m = {.type = MSG_TYPE_pause, .pause = {.epoch = s->epoch}};
    int r = 0;
    for (int i = 0; r == 0 && i < MSG_ROLES; i++) {
        struct stage *st = &s->stages[i];
        if (!st->configured)
            continue;
        st->pausing = true;
        st->attached = st->started = st->ready = false;
        st->asked_ns = util_now_ns();
        r = child_send(st->child, &m, NULL, 0, err);
    }
    return r;
}

static void on_delay(uv_timer_t *t)
{
    struct stage *st = t->data;
    struct err err = {0};
    if (supervise_start_stage(st, &err) < 0)
        supervise_fail(st->owner, &err);
}

/* The one that was reached, as an end of the run or of a request tells it. */
static void name_limit(const struct restart *r, const struct restart_limits *limits, char *ret, size_t size)
{
    bool in_a_row = r->in_a_row >= limits->in_a_row;
    uint32_t n = in_a_row ? limits->in_a_row : limits->per_minute;
    snprintf(ret, size, "%u restart%s %s", n, n == 1 ? "" : "s",
             in_a_row ? "without progress ('restarts')" : "within a minute ('restarts_per_minute')");
}

/* Whether, and when, it is started again. False: told to the owner. */
static bool decide(struct stage *st, const struct err *why, int signal, bool at_work, uint64_t *ret_delay_ms)
{
    struct supervise *s = st->owner;
    const struct config *c = s->o.config;
    const struct restart_limits limits = {.in_a_row = c->restarts, .per_minute = c->restarts_per_minute};
    char limit[96], then[160];
    /* It said what does not work, and will again; and a damaged file stays one. */
    bool refused = (!s->was_ready && signal == 0 && !st->silent_ns) || why->code == -EBADMSG;
    if (c->restarts == 0 || s->no_restarts || refused) {
        fail(s, why, s->no_restarts ? "; what it had collected is lost" : "");
        return false;
    }
    s->random = s->random * 1664525u + 1013904223u;
    if (restart_decide(&st->restart, &limits, util_now_ns(), s->o.progress(s->o.ctx), s->random >> 8, ret_delay_ms))
        return true;
    *ret_delay_ms = 0;
    name_limit(&st->restart, &limits, limit, sizeof(limit));
    if ((s->o.fallback && s->o.fallback(s->o.ctx, st->role, why)) ||
        (at_work && s->o.give_up && s->o.give_up(s->o.ctx, limit, why))) {
        restart_forget(&st->restart);
        return true;
    }
    snprintf(then, sizeof(then), "; it is not started again after %s", limit);
    fail(s, why, then);
    return false;
}

static int let_go(struct stage *st, struct err *err)
{
    struct supervise *s = st->owner;
    int r = st->role == MSG_ROLE_LOADER ? settle_segments(s, err) : 0;
    if (r == 0 && rings_made(s->rings)) {
        rings_drop(s->rings);
        s->epoch++;
        r = pause_others(s, err);
    }
    return r < 0 ? r : rings_renew_bell(s->rings, st->role, err);
}

/* A stage that could not make sense of its ring: who has the other end, and wrote that, would write the like to its successor.
 * Where both find the ring spoilt each names the other, and the first one that is heard takes both with it: what was started since
 * has not been given a ring (`attached`), and did nothing. */
static void end_neighbour(struct stage *st)
{
    struct supervise *s = st->owner;
    struct err why = {0};
    bool writes = st->bad_input != 0;
    int other = writes           ? rings_writer(st->role, st->bad_input - 1)
                : st->bad_output ? rings_reader(st->role, st->bad_output - 1)
                                 : -1;
    st->bad_input = st->bad_output = 0;
    if (other < 0 || !s->stages[other].attached)
        return;
    err_set(&why, -EPROTO, "%s (pid %d) put into its %s ring what %s could make no sense of", msg_role_name((enum msg_role)other),
            s->stages[other].pid, writes ? "output" : "input", msg_role_name(st->role));
    child_kill(s->stages[other].child, &why);
}

void recovery_lost(struct stage *st, const struct err *ended, int signal)
{
    struct supervise *s = st->owner;
    struct err why = *ended, err = {0};
    uint64_t delay_ms = 0;
    forget(st);
    if (s->stopping || s->failed)
        return;
    uint64_t now = util_now_ns();
    trace_add(
        tracer_own(s->o.tracer), TRACE_CONTROL,
        &(struct trace_event){
            .kind = TRACE_ENDED, .start_ns = now, .end_ns = now, .tokens = (uint16_t)st->stats.restarts, .seq = (uint8_t)st->role});
    if (signal == SIGKILL && passed_cap(st, &why))
        signal = 0;
    bool at_work = !s->recovering;
    if (at_work) {
        s->recovering = true;
        s->lost_ns = util_now_ns();
        s->recovery = (struct supervise_recovery){.role = st->role, .detect_ns = st->silent_ns};
        s->o.lost(s->o.ctx, st->role);
    }
    end_neighbour(st);
    bool again = decide(st, &why, signal, at_work, &delay_ms);
    st->silent_ns = 0;
    if (!again)
        return;
    st->stats.restarts++;
    snprintf(st->stats.reason, sizeof(st->stats.reason), "%.255s", why.text);
    log_warn("supervise", "%s; %s (restart %u)", why.text,
             child_spawned(st->child) ? "it is started again" : "it goes on when others have started it again", st->stats.restarts);
    s->recovery.kv_lost |= st->role == MSG_ROLE_NPU;
    int r = let_go(st, &err);
    if (r == 0 && delay_ms && child_spawned(st->child))
        uv_timer_start(&st->delay, on_delay, delay_ms, 0);
    else if (r == 0)
        r = supervise_start_stage(st, &err);
    if (r < 0)
        supervise_fail(s, &err);
    else
        recovery_step(s);
}

void recovery_step(struct supervise *s)
{
    struct err err = {0};
    int r = 0;
    if (!s->recovering || s->failed || s->stopping)
        return;
    for (int i = 0; !rings_made(s->rings) && i < MSG_ROLES; i++) {
        if (s->stages[i].pausing)
            return;
    }
    if (!rings_made(s->rings))
        r = rings_make(s->rings, s->epoch, &err);
    for (int i = 0; r == 0 && i < MSG_ROLES; i++) {
        struct stage *st = &s->stages[i];
        if (st->configured && !st->attached && !st->pausing)
            r = handshake_attach(st, &err);
    }
    if (r < 0)
        supervise_fail(s, &err);
}

void recovery_ready(struct supervise *s)
{
    for (int i = 0; i < MSG_ROLES; i++) {
        if (!s->stages[i].ready)
            return;
    }
    struct supervise_recovery r = s->recovery;
    r.first = !s->was_ready;
    r.restart_ns = s->configured_ns > s->lost_ns ? s->configured_ns - s->lost_ns : 0;
    r.remap_ns = util_now_ns() - s->lost_ns - r.restart_ns;
    s->was_ready = true;
    s->recovering = false;
    s->recovery = (struct supervise_recovery){0};
    s->o.ready(s->o.ctx, &r);
}
