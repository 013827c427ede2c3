/* SPDX-License-Identifier: MIT
 * Notices stages that hang: one timer of the loop looks at the status page of each data thread, and pings each control thread. Only
 * kills; what follows is recovery.c's. `deadlines: off` leaves it out, for debuggers.
 *
 * A chunk may take as long as its stage's page says is usual, twenty times over, and at least two seconds; the first of its kind,
 * in which drivers compile, a minute. A stage that waits for input, space or weights is not busy. When this process itself did not
 * run for a while (stopped, suspended, starved), all clocks start anew. */
#include <errno.h>

#include "coordinator/child.h"
#include "coordinator/plan.h"
#include "coordinator/supervise_impl.h"
#include "proto/config.h"
#include "proto/log.h"
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

static double seconds(uint64_t ns)
{
    return (double)ns / 1e9;
}

static void hangs(struct stage *st, uint64_t silent_ns, const struct err *why)
{
    st->silent_ns = silent_ns;
    child_kill(st->child, why);
}

static bool check_chunk(struct stage *st, uint64_t now)
{
    struct status_work w;
    struct err why = {0};
    status_read(st->page, &w);
    if (w.since_ns == 0 || w.since_ns > now)
        return false;
    uint64_t usual = MIN(w.usual_ns, 1000 * SECOND), limit = usual ? MAX(20 * usual, CHUNK_LEAST) : CHUNK_FIRST;
    uint64_t took = now - MAX(w.since_ns, st->owner->resumed_ns);
    if (took <= limit)
        return false;
    err_set(&why, -ETIMEDOUT,
            "%s (pid %d) hangs: chunk %llu of %u tokens is at layer %u for %.1f s; at most %.1f s are allowed%s (see 'deadlines')",
            msg_role_name(st->role), st->pid, (unsigned long long)w.chunk, w.n_tokens, w.layer, seconds(took), seconds(limit),
            usual ? ", 20 times what is usual" : " to the first of its kind");
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
    }
}

static void on_watch(uv_timer_t *t)
{
    struct supervise *s = t->data;
    uint64_t now = util_now_ns();
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
