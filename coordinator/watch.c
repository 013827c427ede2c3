/* SPDX-License-Identifier: MIT
 * Owns one timer. Leaves stages alone that others start: they may be under valgrind, and have caps of their own. Reads one small
 * file of /proc per process and period; allocates nothing, and ends processes only through supervise. */
#include "coordinator/watch.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "coordinator/plan.h"
#include "coordinator/process_memory.h"
#include "coordinator/supervise.h"
#include "proto/err.h"
#include "proto/util.h"

struct watch {
    uv_timer_t timer;
    const struct plan *plan;
    struct supervise *supervise;
    void (*over)(void *ctx, const struct err *err);
    void *ctx;
    uint64_t peak[CONFIG_PROCESSES]; /* the most that was held when it was looked at */
    bool open;
};

/* What counts against the cap: private pages, and the segments that a worker made (the coordinator: rings), touched or not. What it
 * maps of others is no more than there is; the rest of its shared pages is its own, whatever made them. */
static uint64_t held(const struct plan *p, enum config_process process, const struct process_memory *m)
{
    uint64_t rings = p->process[CONFIG_COORDINATOR].bytes[BUDGET_RING], own, of_others = rings;
    own = process == CONFIG_COORDINATOR ? rings : p->process[process].bytes[BUDGET_WEIGHTS];
    if (process == CONFIG_COORDINATOR)
        of_others = 0;
    if (process == CONFIG_LOADER) /* fills them */
        of_others += p->process[CONFIG_NPU].bytes[BUDGET_WEIGHTS] + p->process[CONFIG_GPU].bytes[BUDGET_WEIGHTS];
    return m->anon + MAX(own, m->shmem - MIN(m->shmem, of_others));
}

/* False: it holds less than its cap, or is gone. */
static bool passed(struct watch *w, enum config_process process, int pid, struct err *err)
{
    struct process_memory m;
    uint64_t bytes, cap = w->plan->process[process].cap;
    char used[32], allowed[32];
    if (pid <= 0 || process_memory_read(pid, false, &m) < 0 || m.anon == 0)
        return false;
    bytes = held(w->plan, process, &m);
    w->peak[process] = MAX(w->peak[process], bytes);
    if (bytes <= cap)
        return false;
    const char *name = plan_process_name(process);
    err_set(err, -ENOMEM, "%s (pid %d) was ended: it needed more than its cap of %s (%s); raise 'memory.%s'", name, pid,
            util_format_bytes(allowed, sizeof(allowed), cap), util_format_bytes(used, sizeof(used), bytes), name);
    return true;
}

uint64_t watch_peak(const struct watch *w, enum config_process process)
{
    return w->peak[process];
}

static void on_timer(uv_timer_t *t)
{
    static const enum config_process process[] = {
        [MSG_ROLE_LOADER] = CONFIG_LOADER, [MSG_ROLE_NPU] = CONFIG_NPU, [MSG_ROLE_GPU] = CONFIG_GPU};
    struct watch *w = t->data;
    struct err err = {0};
    for (int i = 0; i < MSG_ROLES; i++) {
        if (supervise_spawned(w->supervise, (enum msg_role)i) &&
            passed(w, process[i], supervise_pid(w->supervise, (enum msg_role)i), &err))
            supervise_kill(w->supervise, (enum msg_role)i, &err);
    }
    if (passed(w, CONFIG_COORDINATOR, (int)getpid(), &err))
        w->over(w->ctx, &err);
}

int watch_open(uv_loop_t *loop, const struct plan *plan, struct supervise *supervise,
               void (*over)(void *ctx, const struct err *err), void *ctx, struct watch **ret, struct err *err)
{
    struct watch *w = calloc(1, sizeof(*w));
    if (!w)
        return err_set(err, -ENOMEM, "watch of memory: out of memory");
    *w = (struct watch){.plan = plan, .supervise = supervise, .over = over, .ctx = ctx};
    int r = uv_timer_init(loop, &w->timer);
    if (r == 0) {
        w->timer.data = w;
        w->open = true;
        r = uv_timer_start(&w->timer, on_timer, WATCH_PERIOD_MS, WATCH_PERIOD_MS);
    }
    *ret = w;
    return r < 0 ? err_set(err, r, "watch of memory: %s", uv_strerror(r)) : 0;
}

static void on_closed(uv_handle_t *h)
{
    ((struct watch *)h->data)->open = false;
}

void watch_close(struct watch *w)
{
    if (!w)
        return;
    if (w->open)
        uv_close((uv_handle_t *)&w->timer, on_closed);
    while (w->open)
        uv_run(w->timer.loop, UV_RUN_ONCE);
    free(w);
}
