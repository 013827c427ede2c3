/* SPDX-License-Identifier: MIT
 * The skeleton of a stage process, main thread: libuv loop, control connection, handshake, statistics; it never waits for compute.
 * The data thread is in stage_data.c, a worker's segments in stage_weights.c, those that pass through
 * slots in stage_stream.c, what the loader fills in stage_fill.c.
 *
 * The stage lives as long as its coordinator: parent-death signal, and the end of the control socket ends the process. SIGINT
 * is ignored because a terminal sends it to the whole group; the coordinator decides what it means. A stage that others started has
 * neither: the end of the socket has to do, and whoever started it may end it. */
#include "proto/stage.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

#include "proto/conn.h"
#include "proto/fault.h"
#include "proto/log.h"
#include "proto/ring.h"
#include "proto/sandbox.h"
#include "proto/shm.h"
#include "proto/stage_impl.h"
#include "proto/status.h"
#include "proto/util.h"

#define CLOSE_MS 1000 /* a fill under way may take so long */

static void finish(struct stage_io *io, int status)
{
    if (io->finished)
        return;
    io->finished = true;
    io->status = status;
    uv_stop(&io->loop);
}

void stage_fail(struct stage_io *io, const struct err *err)
{
    struct msg m = {.type = MSG_TYPE_error, .error = {.code = err->code, .bad_input = io->bad_input, .bad_output = io->bad_output}};
    snprintf(m.error.text, sizeof(m.error.text), "%s", err->text);
    log_debug("stage", "%s", err->text);
    if (!io->conn || conn_send(io->conn, &m, NULL, 0, NULL) < 0)
        log_error("stage", "%s", err->text);
    finish(io, 1);
}

struct budget *stage_budget(struct stage_io *io)
{
    return &io->budget;
}

struct trace *stage_trace(struct stage_io *io)
{
    return io->trace;
}

static void drop_rings(struct stage_io *io)
{
    for (int i = 0; i < STAGE_RINGS_MAX; i++) {
        struct link *both[] = {&io->inputs[i], &io->outputs[i]};
        for (size_t k = 0; k < ARRAY_LEN(both); k++) {
            ring_detach(both[k]->ring);
            bell_unmap(both[k]->peer);
            *both[k] = (struct link){0};
        }
    }
}

/* No thread of ours looks at the rings. */
static int paused(struct stage_io *io, struct err *err)
{
    struct msg m = {.type = MSG_TYPE_paused, .paused = {.epoch = io->pausing}};
    drop_rings(io);
    io->config.epoch = io->limits.epoch = io->pausing;
    io->pausing = 0;
    return conn_send(io->conn, &m, NULL, 0, err);
}

static int on_pause(struct stage_io *io, const struct msg_pause *m, struct err *err)
{
    if (!io->configured)
        return err_set(err, -EPROTO, "PAUSE before CONFIGURE");
    io->pausing = m->epoch;
    if (!stage_data_runs(io))
        return paused(io, err);
    stage_data_park(io);
    return 0;
}

static void on_report(uv_async_t *a)
{
    struct stage_io *io = a->data;
    struct err err = {0};
    if (io->finished)
        return;
    if (stage_stream_ask(io, &err) < 0) {
        stage_fail(io, &err);
        return;
    }
    if (atomic_exchange(&io->drained, false))
        conn_send(io->conn, &(struct msg){.type = MSG_TYPE_drained}, NULL, 0, NULL);
    if (atomic_load(&io->broken))
        stage_fail(io, &io->data_err);
    else if (io->pausing && !stage_data_runs(io) && paused(io, &err) < 0)
        stage_fail(io, &err);
}

static int on_trace(struct stage_io *io, int fd, struct err *err)
{
    if (io->configured || io->trace)
        return err_set(err, -EPROTO, "TRACE %s", io->trace ? "came twice" : "after CONFIGURE");
    return trace_map(fd, &io->trace, err);
}

static int on_configure(struct stage_io *io, const struct msg_configure *c, const int *fds, struct err *err)
{
    if (io->configured)
        return err_set(err, -EPROTO, "CONFIGURE came twice");
    io->configured = true;
    io->config = *c;
    uint64_t start = trace_now(io->trace);
    io->limits = (struct chunk_limits){.epoch = c->epoch,
                                       .max_tokens = c->chunk_tokens,
                                       .max_seqs = c->sequences,
                                       .context = c->context,
                                       .n_layers = c->n_layers,
                                       .vocab = c->vocab,
                                       .hidden = c->hidden};
    budget_init(&io->budget, msg_role_name(io->ops->role), c->budget);
    /* Landlock holds threads that are started later: a backend's begin in configure, the loader's with its first segment. */
    bool loader = io->ops->role == MSG_ROLE_LOADER;
    io->sandbox.off = !c->sandbox;
    io->sandbox.profile = loader || strcmp(c->backend, "cpu") == 0 ? SANDBOX_STRICT : SANDBOX_DRIVER;
    if (!loader)
        sandbox_begin(&io->sandbox, c->manifest);
    int r = bell_map(fds[0], &io->bell, err);
    if (r == 0)
        r = status_map(fds[1], &io->page, err);
    if (r == 0)
        r = fault_open(c->faults, io->control_fd, &io->faults, err);
    if (r == 0 && io->faults) {
        conn_set_filter(io->conn, fault_message, io->faults);
        r = fault_start(io->faults, err);
    }
    if (r == 0)
        r = io->ops->configure(io->state, io, &io->config, err);
    trace_span(io->trace, TRACE_CONTROL, TRACE_CONFIGURE, start, trace_now(io->trace));
    if (r == 0)
        r = stage_stream_make(io, err);
    if (loader)
        sandbox_begin(&io->sandbox, "");
    return r < 0 ? r : stage_weights_make(io, err);
}

static int on_attach(struct stage_io *io, const struct msg_attach_ring *m, const int *fds, struct err *err)
{
    uint32_t n = m->direction ? io->ops->n_outputs : io->ops->n_inputs;
    struct link *l = m->direction ? &io->outputs[m->index] : &io->inputs[m->index];
    if (!io->configured || stage_data_runs(io) || io->pausing || m->index >= n || m->index >= STAGE_RINGS_MAX || l->ring)
        return err_set(err, -EPROTO, "unexpected ATTACH_RING (direction %u, index %u of %u)", m->direction, m->index, n);
    if (m->epoch != io->config.epoch)
        return err_set(err, -ESTALE, "ATTACH_RING of epoch %u; CONFIGURE or PAUSE said %u", m->epoch, io->config.epoch);
    int r = bell_map(fds[1], &l->peer, err);
    if (r == 0)
        r = ring_attach(fds[0], m->direction ? RING_PRODUCER : RING_CONSUMER, m->epoch, io->bell, l->peer, &l->ring, err);
    return r;
}

static int on_start(struct stage_io *io, struct err *err)
{
    if (stage_data_runs(io) || io->pausing || io->n_filled != io->n_segments)
        return err_set(err, -EPROTO, "START with %u of %u segments", io->n_filled, io->n_segments);
    for (uint32_t i = 0; i < io->ops->n_inputs + io->ops->n_outputs; i++) {
        const struct link *l = i < io->ops->n_inputs ? &io->inputs[i] : &io->outputs[i - io->ops->n_inputs];
        if (!l->ring)
            return err_set(err, -EPROTO, "START before ring %u was attached", i);
    }
    stage_stream_start(io);
    int r = stage_data_start(io, err);
    if (r < 0)
        return r;
    sandbox_seal(&io->sandbox);
    struct msg m = {.type = MSG_TYPE_ready};
    sandbox_describe(&io->sandbox, m.ready.sandbox);
    const char *backend = io->ops->backend ? io->ops->backend(io->state) : "cpu";
    snprintf(m.ready.backend, sizeof(m.ready.backend), "%s", backend);
    r = conn_send(io->conn, &m, NULL, 0, err);
    return r < 0 ? r : stage_stream_ask(io, err);
}

static int on_stats(struct stage_io *io, const struct msg_stats_request *q, struct err *err)
{
    struct msg m = {.type = MSG_TYPE_stats};
    struct msg_stats *s = &m.stats;
    s->serial = q->serial;
    s->chunks = atomic_load(&io->chunks);
    s->tokens = atomic_load(&io->tokens);
    s->busy_ns = atomic_load(&io->busy_ns);
    s->idle_ns = atomic_load(&io->idle_ns);
    s->blocked_ns = atomic_load(&io->blocked_ns);
    s->weights = atomic_load(&io->budget.used[BUDGET_WEIGHTS]);
    s->kv = atomic_load(&io->budget.used[BUDGET_KV]);
    s->scratch = atomic_load(&io->budget.used[BUDGET_SCRATCH]);
    s->ring = atomic_load(&io->budget.used[BUDGET_RING]);
    s->device = atomic_load(&io->budget.used[BUDGET_DEVICE]);
    s->total_peak = atomic_load(&io->budget.total_peak);
    s->weights_peak = atomic_load(&io->budget.peak[BUDGET_WEIGHTS]);
    s->kv_peak = atomic_load(&io->budget.peak[BUDGET_KV]);
    s->scratch_peak = atomic_load(&io->budget.peak[BUDGET_SCRATCH]);
    s->ring_peak = atomic_load(&io->budget.peak[BUDGET_RING]);
    s->device_peak = atomic_load(&io->budget.peak[BUDGET_DEVICE]);
    stage_stream_stats(io, s);
    if (io->ops->stats)
        io->ops->stats(io->state, s);
    return conn_send(io->conn, &m, NULL, 0, err);
}

static int on_collect(struct stage_io *io, const struct msg_collect *q, int fd, struct err *err)
{
    if (!io->ops->collect || !io->running || io->collected)
        return err_set(err, -EPROTO, "COLLECT %s",
                       io->collected ? "a second time"
                       : io->running ? "of a stage without matrices"
                                     : "before START");
    int r = shm_map(fd, q->bytes, true, &io->collected, err);
    if (r < 0)
        return r;
    io->collected_bytes = q->bytes;
    r = io->ops->collect(io->state, io->collected, q->bytes, err);
    return r < 0 ? r : conn_send(io->conn, &(struct msg){.type = MSG_TYPE_collecting}, NULL, 0, err);
}

static void on_error(struct stage_io *io, const struct msg_error *m)
{
    if (io->configured) {
        log_debug("stage", "coordinator: %s", m->text);
        return;
    }
    log_error("stage", "the coordinator refuses this stage: %s", m->text);
    finish(io, 1);
}

static int handle(struct stage_io *io, const struct msg *m, int *fds, struct err *err)
{
    switch (m->type) {
    case MSG_TYPE_configure:
        return on_configure(io, &m->configure, fds, err);
    case MSG_TYPE_attach_ring:
        return on_attach(io, &m->attach_ring, fds, err);
    case MSG_TYPE_segment_fill:
        return stage_fill_add(io,
                              &(struct stage_fill){.kind = m->segment_fill.kind,
                                                   .layer = m->segment_fill.layer,
                                                   .slot = STAGE_NO_SLOT,
                                                   .bytes = m->segment_fill.bytes},
                              &fds[0], err);
    case MSG_TYPE_slot_fill:
        return stage_fill_add(io,
                              &(struct stage_fill){.kind = m->slot_fill.kind,
                                                   .layer = m->slot_fill.layer,
                                                   .slot = m->slot_fill.slot,
                                                   .bytes = m->slot_fill.bytes,
                                                   .serial = m->slot_fill.serial},
                              &fds[0], err);
    case MSG_TYPE_slot_filled:
        return stage_stream_filled(io, &m->slot_filled, err);
    case MSG_TYPE_segment_filled:
        return stage_weights_filled(io, &m->segment_filled, err);
    case MSG_TYPE_start:
        return on_start(io, err);
    case MSG_TYPE_segment_held:
        return stage_weights_held(io, &m->segment_held, &fds[0], err);
    case MSG_TYPE_slot_held:
        return stage_stream_held(io, &m->slot_held, &fds[0], err);
    case MSG_TYPE_trace:
        return on_trace(io, fds[0], err);
    case MSG_TYPE_pause:
        return on_pause(io, &m->pause, err);
    case MSG_TYPE_ping:
        return conn_send(io->conn, &(struct msg){.type = MSG_TYPE_pong, .pong = {.serial = m->ping.serial}}, NULL, 0, err);
    case MSG_TYPE_stats_request:
        return on_stats(io, &m->stats_request, err);
    case MSG_TYPE_collect:
        return on_collect(io, &m->collect, fds[0], err);
    case MSG_TYPE_drain:
        atomic_store(&io->draining, true);
        if (io->bell)
            bell_ring(io->bell);
        return 0;
    case MSG_TYPE_shutdown:
        finish(io, 0);
        return 0;
    case MSG_TYPE_error:
        on_error(io, &m->error);
        return 0;
    case MSG_NONE:
    case MSG_TYPE_hello:
    case MSG_TYPE_segment_new:
    case MSG_TYPE_slot_new:
    case MSG_TYPE_slot_want:
    case MSG_TYPE_segment_released:
    case MSG_TYPE_segment_end:
    case MSG_TYPE_ready:
    case MSG_TYPE_paused:
    case MSG_TYPE_pong:
    case MSG_TYPE_stats:
    case MSG_TYPE_collecting:
    case MSG_TYPE_drained:
    default:
        return err_set(err, -EPROTO, "the coordinator sent a %s message, which only a stage may send", msg_name(m->type));
    }
}

static void on_message(void *ctx, struct conn *c, const struct msg *m, int *fds, int n_fds)
{
    struct stage_io *io = ctx;
    struct err err = {0};
    (void)c;
    (void)n_fds;
    if (!io->finished && handle(io, m, fds, &err) < 0)
        stage_fail(io, &err);
}

static void on_closed(void *ctx, struct conn *c, const struct err *err)
{
    struct stage_io *io = ctx;
    if (err->code)
        log_error("stage", "control connection: %s", err->text);
    conn_close(c);
    io->conn = NULL;
    finish(io, err->code ? 1 : 0);
}

static void on_term(uv_signal_t *s, int signum)
{
    (void)signum;
    finish(s->data, 0);
}

static void close_handle(uv_handle_t *h, void *arg)
{
    (void)arg;
    if (!uv_is_closing(h))
        uv_close(h, NULL);
}

static void on_deadline(uv_timer_t *t)
{
    struct stage_io *io = t->data;
    _exit(io->status ? io->status : 1);
}

void stage_stop(struct stage_io *io)
{
    stage_data_stop(io);
    conn_close(io->conn);
    uv_close((uv_handle_t *)&io->term, NULL);
    uv_close((uv_handle_t *)&io->report, NULL);
    uv_close((uv_handle_t *)&io->again, NULL);
    uv_timer_start(&io->deadline, on_deadline, CLOSE_MS, 0);
    uv_unref((uv_handle_t *)&io->deadline);
    uv_run(&io->loop, UV_RUN_DEFAULT); /* a fill under way ends first, or the deadline comes */
    uv_walk(&io->loop, close_handle, NULL);
    uv_run(&io->loop, UV_RUN_DEFAULT);
    if (uv_loop_close(&io->loop) < 0)
        log_error("stage", "event loop still has handles");
}

void stage_free(struct stage_io *io)
{
    drop_rings(io);
    if (io->state)
        io->ops->close(io->state);
    shm_unmap(io->collected, io->collected_bytes);
    stage_weights_close(io);
    stage_stream_close(io);
    stage_fill_close(io);
    bell_unmap(io->bell);
    fault_close(io->faults);
    status_unmap(io->page);
    trace_unmap(io->trace);
    free(io);
}

static int say_hello(struct stage_io *io, const char *token, struct err *err)
{
    struct msg m = {.type = MSG_TYPE_hello, .hello = {.role = io->ops->role, .pid = (uint32_t)getpid()}};
    snprintf(m.hello.build, sizeof(m.hello.build), "%s", TANDEM_VERSION);
    snprintf(m.hello.backends, sizeof(m.hello.backends), "cpu");
    snprintf(m.hello.token, sizeof(m.hello.token), "%s", token ? token : "");
    return conn_send(io->conn, &m, NULL, 0, err);
}

/* False: the parent is gone already. */
static bool die_with_parent(void)
{
    pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    return getppid() == parent;
}

struct stage_io *stage_open(const struct stage_ops *ops, int fd, const char *token)
{
    static const struct conn_handlers handlers = {.message = on_message, .closed = on_closed};
    struct err err = {0};
    struct stage_io *io = calloc(1, sizeof(*io));
    if (!io)
        return NULL;
    io->ops = ops;
    io->control_fd = fd;
    memset(io->held_slots, 0xff, sizeof(io->held_slots)); /* -1 */
    io->segments_end = &io->segments;
    io->jobs_end = &io->jobs;
    if (uv_loop_init(&io->loop) < 0) {
        free(io);
        return NULL;
    }
    uv_signal_init(&io->loop, &io->term);
    uv_async_init(&io->loop, &io->report, on_report);
    uv_timer_init(&io->loop, &io->deadline);
    uv_timer_init(&io->loop, &io->again);
    io->term.data = io->report.data = io->deadline.data = io->again.data = io;
    uv_signal_start(&io->term, on_term, SIGTERM);
    int r = conn_open(&io->loop, fd, "coordinator", &handlers, io, &io->conn, &err);
    if (r < 0)
        close(fd);
    else
        r = ops->open(&io->state, &err);
    if (r == 0)
        r = say_hello(io, token, &err);
    if (r < 0)
        stage_fail(io, &err);
    return io;
}

int stage_run(const struct stage_ops *ops, int fd, const char *token)
{
    if (!token && !die_with_parent())
        return 1;
    sandbox_without_rings();
    struct stage_io *io = stage_open(ops, fd, token);
    if (!io)
        return 1;
    if (!io->finished)
        uv_run(&io->loop, UV_RUN_DEFAULT);
    int status = io->status;
    stage_stop(io);
    if (status)
        _exit(status); /* nothing is left to say; drivers of a lost device hang or crash when they are asked to tidy up */
    stage_free(io);
    return status;
}
