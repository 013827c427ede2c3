/* SPDX-License-Identifier: MIT
 * Notices stages that hang, and chunks that are lost: one timer of the loop looks at the status page of each data thread and at the
 * rings, and pings each control thread. Only kills; what follows is recovery.c's. `deadlines: off` leaves it out, for debuggers.
 *
 * A chunk may take as long as its stage's page says is usual, twenty times over, and at least two seconds; the first of its kind,
 * in which drivers compile, a minute. A stage that waits for input, space or weights is not busy. When this process itself did not
 * run for a while (stopped, suspended, starved), all clocks start anew.
 *
 * A chunk that a stage takes and does not pass on is missing in the books of the rings, and the stage is the one whose books do not
 * add up. What lies before a stage that waits, and is not taken, is its fault too. When chunks are on their way and lie nowhere,
 * nobody has them and the books say nothing (they are written by the stages), all three have to go. The loader owes what it was
 * asked to fill. */
#include <errno.h>

#include "coordinator/child.h"
#include "coordinator/plan.h"
#include "coordinator/rings.h"
#include "coordinator/segments.h"
#include "coordinator/slots.h"
#include "coordinator/supervise_impl.h"
#include "proto/config.h"
#include "proto/log.h"
#include "proto/ring.h"
#include "proto/status.h"
#include "proto/util.h"

#define PERIOD_MS 250
#define LATE_NS UINT64_C(500000000)
#define PING_TICKS 4 /* one a second */
#define SECOND UINT64_C(1000000000)
#define CHUNK_LEAST (2 * SECOND)
#define CHUNK_FIRST (60 * SECOND)
#define START_LIMIT (10 * SECOND)
#define DRIVER_LIMIT (60 * SECOND) /* which compiles, on the control thread */
#define ANSWER_LIMIT (60 * SECOND) /* of PAUSED after PAUSE, of READY after START */
/* Of a chunk that is missing; where only waiting shows it, `heartbeat_s` is added: a process that does not answer is told as that.
 */
#define LOST_LIMIT (2 * SECOND)
#define FILL_LIMIT (60 * SECOND)      /* without any weights from the loader, and for the bytes at */
#define FILL_RATE (UINT64_C(8) << 20) /* a second */

static double seconds(uint64_t ns)
{
    return (double)ns / 1e9;
}

static void hangs(struct stage *st, uint64_t silent_ns, const struct err *why)
{
    st->silent_ns = silent_ns;
    child_kill(st->child, why);
}

/* A worker that waits for an NPU knows when to stop, and says more than that it hangs. */
static uint64_t device_limit(const struct stage *st)
{
    const struct supervise *s = st->owner;
    bool waits = st->role == MSG_ROLE_NPU && s->o.plan->npu.xrt;
    return waits ? s->o.config->xrt.timeout_ms * UINT64_C(1000000) + CHUNK_LEAST : 0;
}

static bool check_chunk(struct stage *st, uint64_t now)
{
    struct status_work w;
    struct err why = {0};
    status_read(st->page, &w);
    if (w.since_ns == 0)
        return false;
    if (w.since_ns > now && w.since_ns - now > SECOND) {
        err_set(&why, -EPROTO, "%s (pid %d): its status page says that it began chunk %llu in the future", msg_role_name(st->role),
                st->pid, (unsigned long long)w.chunk);
        hangs(st, 0, &why);
        return true;
    }
    uint64_t usual = MIN(w.usual_ns, 1000 * SECOND), limit = usual ? MAX(20 * usual, CHUNK_LEAST) : CHUNK_FIRST;
    limit = MAX(limit, device_limit(st));
    uint64_t took = now - MIN(now, MAX(w.since_ns, st->owner->resumed_ns));
    if (took <= limit)
        return false;
    err_set(&why, -ETIMEDOUT,
            "%s (pid %d) hangs: chunk %llu of %u tokens is at layer %u for %.1f s; at most %.1f s are allowed%s (see 'deadlines')",
            msg_role_name(st->role), st->pid, (unsigned long long)w.chunk, w.n_tokens, w.layer, seconds(took), seconds(limit),
            limit == device_limit(st) ? ", 'npu.timeout_ms' and 2 s"
            : usual                   ? ", 20 times what is usual"
                                      : " to the first of its kind");
    hangs(st, took, &why);
    return true;
}

/* How long the control thread may be silent. */
static uint64_t silence_limit(const struct stage *st)
{
    const struct plan *p = st->owner->o.plan;
    uint64_t beat = st->owner->o.config->heartbeat_s * SECOND;
    bool driver = st->configured && (st->role == MSG_ROLE_GPU ? p->gpu.vulkan : st->role == MSG_ROLE_NPU && p->npu.xrt);
    return st->lived ? beat : MAX(driver ? DRIVER_LIMIT : START_LIMIT, beat);
}

static uint64_t since(const struct supervise *s, uint64_t now, uint64_t then)
{
    return now - MIN(now, MAX(then, s->resumed_ns));
}

static void check(struct stage *st, uint64_t now)
{
    const struct supervise *s = st->owner;
    struct err why = {0};
    if (!child_pid(st->child) || (st->page && check_chunk(st, now)))
        return;
    uint64_t limit = silence_limit(st), asked = since(s, now, st->asked_ns);
    uint64_t from = st->configured ? st->pinged_ns : st->asked_ns, silent = from ? since(s, now, from) : 0;
    if (silent > limit) {
        err_set(&why, -ETIMEDOUT, "%s (pid %d) hangs: it has not answered for %.1f s; at most %.1f s are allowed (see '%s')",
                msg_role_name(st->role), st->pid, seconds(silent), seconds(limit), st->lived ? "heartbeat_s" : "deadlines");
        hangs(st, silent, &why);
    } else if ((st->pausing || (st->started && !st->ready)) && asked > ANSWER_LIMIT) {
        err_set(&why, -ETIMEDOUT, "%s (pid %d) hangs: it has not %s for %.1f s", msg_role_name(st->role), st->pid,
                st->pausing ? "let go of its rings" : "become ready", seconds(asked));
        hangs(st, asked, &why);
    } else if (st->configured && !st->segments_known && st->n_filled >= st->n_segments &&
               since(s, now, st->moved_ns) > ANSWER_LIMIT) {
        err_set(&why, -ETIMEDOUT, "%s (pid %d) hangs: it has not said which weights it needs for %.1f s", msg_role_name(st->role),
                st->pid, seconds(since(s, now, st->moved_ns)));
        hangs(st, since(s, now, st->moved_ns), &why);
    }
}

/* How long `condition` has been true; *since: 0 while it is not. */
static uint64_t lasts(const struct supervise *s, bool condition, uint64_t *since_ns, uint64_t now)
{
    *since_ns = !condition ? 0 : *since_ns ? *since_ns : now;
    return *since_ns ? since(s, now, *since_ns) : 0;
}

/* The loader has something to fill for it. */
static bool waits_for_loader(const struct stage *st)
{
    const struct supervise *s = st->owner;
    for (uint32_t i = 0; i < slots_count(s->slots); i++) {
        const struct held_slot *h = slots_at(s->slots, i);
        if (h->role == st->role && h->serial)
            return true;
    }
    return false;
}

static bool could_go_on(const struct stage *st, const struct ring_books *b, const struct status_work *w)
{
    if (w->since_ns)
        return false;
    return w->wait == STATUS_INPUT ? b->has_input : w->wait == STATUS_SPACE ? !b->output_full : !waits_for_loader(st);
}

static void check_books(struct stage *st, const struct ring_books *b, const struct status_work *w, uint64_t now)
{
    struct supervise *s = st->owner;
    struct err why = {0};
    uint64_t patience = LOST_LIMIT + s->o.config->heartbeat_s * SECOND;
    int32_t missing = (int32_t)(b->taken - b->given);
    bool moved = b->taken != st->taken || b->given != st->given; /* what waits is not what waited */
    uint64_t owes = lasts(s, missing > 0, &st->owes_ns, now), idle = lasts(s, !moved && could_go_on(st, b, w), &st->idle_ns, now);
    st->taken = b->taken;
    st->given = b->given;
    if (owes > LOST_LIMIT) {
        err_set(&why, -ETIMEDOUT, "%s (pid %d) lost %d chunk%s: it took %u and passed %u on, %.1f s ago (see 'deadlines')",
                msg_role_name(st->role), st->pid, missing, missing == 1 ? "" : "s", b->taken, b->given, seconds(owes));
        hangs(st, owes, &why);
    } else if (idle > patience) {
        err_set(&why, -ETIMEDOUT, "%s (pid %d) hangs: it waits for %s for %.1f s; at most %.1f s are allowed",
                msg_role_name(st->role), st->pid,
                w->wait == STATUS_INPUT   ? "a chunk that is there"
                : w->wait == STATUS_SPACE ? "space that is there"
                                          : "weights that it did not ask for",
                seconds(idle), seconds(patience));
        hangs(st, idle, &why);
    }
}

static void forget_chunks(struct supervise *s)
{
    s->lost_since_ns = 0;
    for (int i = 0; i < MSG_ROLES; i++)
        s->stages[i].owes_ns = s->stages[i].idle_ns = 0;
}

/* Chunks on their way: somebody has each, or it lies in a ring. */
static void check_chunks(struct supervise *s, uint64_t now)
{
    struct ring_books books[MSG_ROLES];
    struct status_work work[MSG_ROLES];
    struct err why = {0};
    uint32_t done, n = s->o.in_flight(s->o.ctx, &done);
    bool busy = false;
    if (ring_poisoned(rings_tokens(s->rings))) {
        err_set(&why, -EPROTO, "loader (pid %d) keeps more slots of its input ring than it can be working on, or has spoilt it",
                s->stages[MSG_ROLE_LOADER].pid);
        child_kill(s->stages[MSG_ROLE_LOADER].child, &why);
        return;
    }
    if (n == 0) { /* what was seen of the last one is over */
        forget_chunks(s);
        return;
    }
    for (int i = 0; i < MSG_ROLES; i++) {
        status_read(s->stages[i].page, &work[i]);
        busy |= work[i].since_ns || work[i].wait != STATUS_INPUT;
    }
    int full = rings_books(s->rings, done, books, &why);
    if (full < 0) {
        log_warn("supervise", "the rings cannot be looked at: %s", why.text);
        return;
    }
    for (int i = 0; i < MSG_ROLES; i++)
        check_books(&s->stages[i], &books[i], &work[i], now);
    uint64_t lost = lasts(s, !full && !busy, &s->lost_since_ns, now), patience = LOST_LIMIT + s->o.config->heartbeat_s * SECOND;
    if (lost <= patience)
        return;
    err_set(&why, -ETIMEDOUT,
            "%u chunk%s lost: nobody has had %s for %.1f s, and no ring holds %s; which stage it was cannot be told", n,
            n == 1 ? " is" : "s are", n == 1 ? "it" : "them", seconds(lost), n == 1 ? "it" : "them");
    for (int i = 0; i < MSG_ROLES; i++)
        hangs(&s->stages[i], lost, &why);
}

/* The most bytes that the loader was asked to fill and did not; 0: it owes nothing. */
static uint64_t owed_bytes(struct supervise *s)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < segments_count(s->segments); i++) {
        const struct held_segment *g = segments_at(s->segments, i);
        most = g->filled ? most : MAX(most, g->bytes);
    }
    for (uint32_t i = 0; i < slots_count(s->slots); i++) {
        const struct held_slot *h = slots_at(s->slots, i);
        most = h->serial ? MAX(most, MAX(h->bytes_wanted, 1u)) : most;
    }
    return most;
}

static void check_fills(struct supervise *s, uint64_t now)
{
    struct stage *st = &s->stages[MSG_ROLE_LOADER];
    struct err why = {0};
    uint64_t bytes = st->configured ? owed_bytes(s) : 0, limit = FILL_LIMIT + bytes / FILL_RATE * SECOND;
    uint64_t silent = lasts(s, bytes > 0, &s->filling_ns, now);
    if (silent <= limit)
        return;
    err_set(&why, -ETIMEDOUT, "loader (pid %d) hangs: weights are wanted and none have come for %.1f s; at most %.1f s are allowed",
            st->pid, seconds(silent), seconds(limit));
    hangs(st, silent, &why);
}

static void on_watch(uv_timer_t *t)
{
    liveness_look(t->data, util_now_ns());
}

void liveness_look(struct supervise *s, uint64_t now)
{
    if (s->stopping || s->failed)
        return;
    if (now - s->watched_ns > LATE_NS)
        s->resumed_ns = now;
    s->watched_ns = now;
    struct msg ping = {.type = MSG_TYPE_ping, .ping = {.serial = ++s->ping_serial}};
    for (int i = 0; i < MSG_ROLES; i++) {
        struct stage *st = &s->stages[i];
        check(st, now);
        if (!st->configured || s->ping_serial % PING_TICKS)
            continue;
        st->pinged_ns = st->pinged_ns ? st->pinged_ns : now; /* the oldest that is not answered */
        child_send(st->child, &ping, NULL, 0, NULL);         /* one that does not read is found by its silence */
    }
    check_fills(s, now);
    if (s->recovering)
        forget_chunks(s);
    else
        check_chunks(s, now);
}

int liveness_open(struct supervise *s, struct err *err)
{
    if (!s->o.config->deadlines) {
        log_info("supervise", "deadlines are off: a stage that hangs is waited for");
        return 0;
    }
    int r = uv_timer_init(s->o.loop, &s->watch);
    if (r == 0) {
        s->watch.data = s;
        s->watch_open = true;
        s->watched_ns = util_now_ns();
        r = uv_timer_start(&s->watch, on_watch, PERIOD_MS, PERIOD_MS);
    }
    return r < 0 ? err_set(err, r, "watch of stages: %s", uv_strerror(r)) : 0;
}
