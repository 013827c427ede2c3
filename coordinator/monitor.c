/* SPDX-License-Identifier: MIT
 * Owns the last answer of every stage, the list of those who wait for a snapshot, and one timer. A round asks all stages; it ends
 * with their last answer or the deadline, then the rest is read here and everybody who waits is told. It never blocks, and changes
 * nothing in what it looks at. */
#include "coordinator/monitor.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/cgroup.h"
#include "coordinator/process_memory.h"
#include "coordinator/watch.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

struct monitor {
    struct monitor_options o;
    enum monitor_state state;
    uint64_t opened_ns, serial;
    uint32_t pending; /* bit per role */
    bool asking;
    struct msg_stats last[MSG_ROLES];
    bool answered[MSG_ROLES];             /* in this round */
    uint64_t seen_peak[CONFIG_PROCESSES]; /* where no cgroup counts */
    struct monitor_wait *waits, *told;    /* told: those of the round that ends */
    struct monitor_snapshot snapshot;
    uv_timer_t timer;
    bool timer_open;
};

const char *monitor_state_name(enum monitor_state s)
{
    static const char *const names[] = {"starting", "running", "recovering", "failed"};
    return (unsigned)s < MONITOR_STATES ? names[s] : "?";
}

void monitor_set_state(struct monitor *m, enum monitor_state state)
{
    m->state = state;
}

uint64_t monitor_used(const struct monitor_snapshot *s, enum config_process p)
{
    const struct engine_process_stats *q = &s->process[p];
    return q->usage ? q->usage : q->anon + q->budget[p == CONFIG_COORDINATOR ? BUDGET_RING : BUDGET_WEIGHTS];
}

uint64_t monitor_pool_used(const struct engine_pool *p)
{
    return p->weights + p->kv + p->scratch + p->tiles + p->instructions;
}

double monitor_pool_fragmentation(const struct engine_pool *p)
{
    uint64_t used = monitor_pool_used(p);
    return p->limited && p->bytes > used && p->largest < p->bytes - used ? 1.0 - (double)p->largest / (double)(p->bytes - used)
                                                                         : 0.0;
}

static void from_stage(struct engine_process_stats *s, const struct msg_stats *m)
{
    s->budget[BUDGET_WEIGHTS] = m->weights;
    s->budget[BUDGET_KV] = m->kv;
    s->budget[BUDGET_SCRATCH] = m->scratch;
    s->budget[BUDGET_RING] = m->ring;
    s->budget[BUDGET_DEVICE] = m->device;
    s->peak[BUDGET_WEIGHTS] = m->weights_peak;
    s->peak[BUDGET_KV] = m->kv_peak;
    s->peak[BUDGET_SCRATCH] = m->scratch_peak;
    s->peak[BUDGET_RING] = m->ring_peak;
    s->peak[BUDGET_DEVICE] = m->device_peak;
    s->total_peak = m->total_peak;
    s->busy_ns = m->busy_ns;
    s->idle_ns = m->idle_ns;
    s->blocked_ns = m->blocked_ns;
    s->chunks = m->chunks;
    s->bytes_read = m->bytes_read;
    s->stream_visits = m->stream_visits;
    s->stream_hits = m->stream_hits;
    s->stream_wait_ns = m->stream_wait_ns;
    s->stream_wait_max_ns = m->stream_wait_max_ns;
    s->n_stream_layers = m->stream_layers_len / (uint32_t)sizeof(s->stream_layer_us[0]);
    memcpy(s->stream_layer_us, m->stream_layers, s->n_stream_layers * sizeof(s->stream_layer_us[0]));
    s->products = m->products;
    s->offloaded = m->offloaded;
    s->pool = (struct engine_pool){.bytes = m->pool,
                                   .peak = m->pool_peak,
                                   .largest = m->pool_largest,
                                   .weights = m->pool_weights,
                                   .kv = m->pool_kv,
                                   .scratch = m->pool_scratch,
                                   .tiles = m->pool_tiles,
                                   .instructions = m->pool_instructions};
}

static void look_at_process(struct monitor *m, int process, bool pss, struct engine_process_stats *s)
{
    const bool self = process == CONFIG_COORDINATOR;
    uint64_t *most = &m->seen_peak[process];
    struct process_memory p;
    if (s->pid && process_memory_read(s->pid, pss, &p) == 0) {
        s->rss = p.rss;
        s->pss = p.pss;
        s->anon = p.anon;
        *most = MAX(*most, p.anon + s->peak[self ? BUDGET_RING : BUDGET_WEIGHTS]); /* memfds of its own making */
        if (m->o.watch)
            *most = MAX(*most, watch_peak(m->o.watch, (enum config_process)process));
        s->peak_bytes = *most;
    }
    if (!s->cap_enforced)
        return;
    uint64_t peak = cgroup_peak(m->o.cgroup, s->name);
    s->usage = cgroup_usage(m->o.cgroup, s->name);
    s->kills = cgroup_kills(m->o.cgroup, s->name);
    if (peak) /* the tokenizer was there before the coordinator's group */
        s->peak_bytes = peak + (self ? m->o.outside : 0);
}

static void take_process(struct monitor *m, int i, bool pss, struct engine_process_stats *s)
{
    static const int roles[] = {
        [CONFIG_COORDINATOR] = -1, [CONFIG_LOADER] = MSG_ROLE_LOADER, [CONFIG_NPU] = MSG_ROLE_NPU, [CONFIG_GPU] = MSG_ROLE_GPU};
    const struct plan *p = m->o.plan;
    int role = roles[i];
    *s = (struct engine_process_stats){.name = plan_process_name((enum config_process)i),
                                       .pid = role < 0 ? (int)getpid() : supervise_pid(m->o.supervise, (enum msg_role)role),
                                       .answered = role < 0 || m->answered[role],
                                       .fixed = p->process[i].fixed,
                                       .limit = p->process[i].cap - p->process[i].fixed,
                                       .cap = p->process[i].cap,
                                       .cap_enforced = m->o.cgroup && !p->process[i].others,
                                       .spawned = !p->process[i].others};
    memcpy(s->planned, p->process[i].bytes, sizeof(s->planned));
    snprintf(s->backend, sizeof(s->backend), "%s", role < 0 ? "-" : supervise_backend(m->o.supervise, (enum msg_role)role));
    if (role >= 0) {
        const struct supervise_stage_stats *st = supervise_stage_stats(m->o.supervise, (enum msg_role)role);
        s->restarts = st->restarts;
        s->working = supervise_working(m->o.supervise, (enum msg_role)role, &s->layer);
        s->layer = MIN(s->layer, p->hparams.n_layers); /* a stage's word */
        memcpy(s->last_reason, st->reason, sizeof(s->last_reason));
    }
    if (role < 0)
        s->budget[BUDGET_RING] = s->peak[BUDGET_RING] = s->total_peak = p->process[i].bytes[BUDGET_RING];
    else
        from_stage(s, &m->last[role]);
    s->pool.limited = i == CONFIG_NPU && p->npu_pool;
    look_at_process(m, i, pss, s);
}

static void take_snapshot(struct monitor *m, bool pss)
{
    struct monitor_snapshot *s = &m->snapshot;
    *s = (struct monitor_snapshot){.state = m->state,
                                   .uptime_ms = (util_now_ns() - m->opened_ns) / 1000000,
                                   .context = m->o.plan->context,
                                   .kv_pages = m->last[MSG_ROLE_NPU].kv_pages,
                                   .kv_pages_used = m->last[MSG_ROLE_NPU].kv_pages_used};
    schedule_count(m->o.schedule, &s->counts);
    for (int i = 0; i < SUPERVISE_RINGS; i++) {
        const char *name;
        supervise_look(m->o.supervise, i, &name, &s->rings[i].fill, &s->rings[i].slots, NULL);
        snprintf(s->rings[i].name, sizeof(s->rings[i].name), "%s", name);
    }
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        take_process(m, i, pss, &s->process[i]);
}

static void finish_round(struct monitor *m)
{
    struct monitor_wait *w;
    bool pss = false;
    m->asking = false;
    uv_timer_stop(&m->timer);
    for (w = m->waits; w; w = w->next)
        pss |= w->pss;
    take_snapshot(m, pss);
    /* Those who ask again from `done` begin a new round. */
    m->told = m->waits;
    m->waits = NULL;
    while ((w = m->told)) {
        m->told = w->next;
        w->done(w->ctx, &m->snapshot);
    }
}

static void on_timer(uv_timer_t *t)
{
    finish_round(t->data);
}

void monitor_stats(struct monitor *m, enum msg_role role, const struct msg_stats *s)
{
    if (!m->asking || s->serial != m->serial)
        return;
    m->last[role] = *s;
    m->answered[role] = true;
    m->pending &= ~(1u << role);
    if (!m->pending)
        finish_round(m);
}

void monitor_lost(struct monitor *m, enum msg_role role)
{
    m->pending &= ~(1u << role);
    if (m->asking && !m->pending)
        uv_timer_start(&m->timer, on_timer, 0, 0); /* its end is still being dealt with */
}

void monitor_ask(struct monitor *m, struct monitor_wait *w)
{
    struct err err = {0};
    w->next = m->waits;
    m->waits = w;
    if (m->asking)
        return;
    m->asking = true;
    m->serial++;
    memset(m->answered, 0, sizeof(m->answered));
    int asked = supervise_request_stats(m->o.supervise, m->serial, &err);
    if (asked < 0)
        log_debug("monitor", "stages cannot be asked: %s", err.text);
    m->pending = asked < 0 ? 0 : (uint32_t)asked;
    uv_timer_start(&m->timer, on_timer, m->pending ? MONITOR_DEADLINE_MS : 0, 0);
}

static void forget(struct monitor_wait **list, const struct monitor_wait *w)
{
    for (; *list; list = &(*list)->next) {
        if (*list != w)
            continue;
        *list = w->next;
        return;
    }
}

void monitor_cancel(struct monitor *m, struct monitor_wait *w)
{
    forget(&m->waits, w);
    forget(&m->told, w);
}

int monitor_open(const struct monitor_options *o, struct monitor **ret, struct err *err)
{
    struct monitor *m = calloc(1, sizeof(*m));
    if (!m)
        return err_set(err, -ENOMEM, "monitor: out of memory");
    m->o = *o;
    m->opened_ns = util_now_ns();
    int r = uv_timer_init(o->loop, &m->timer);
    if (r < 0) {
        free(m);
        return err_set(err, r, "monitor: %s", uv_strerror(r));
    }
    m->timer.data = m;
    m->timer_open = true;
    *ret = m;
    return 0;
}

static void on_closed(uv_handle_t *h)
{
    ((struct monitor *)h->data)->timer_open = false;
}

void monitor_close(struct monitor *m)
{
    if (!m)
        return;
    m->waits = NULL;
    uv_close((uv_handle_t *)&m->timer, on_closed);
    while (m->timer_open)
        uv_run(m->o.loop, UV_RUN_ONCE);
    free(m);
}
