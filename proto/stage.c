/* SPDX-License-Identifier: MIT
 * The skeleton of a stage process. Main thread: libuv loop, control connection, handshake, segments, statistics; it never
 * waits for compute. Data thread: takes chunks from the input rings in order of priority, calls process, passes failures on; it
 * never touches a socket, never allocates and never logs above debug. A third, libuv's worker thread, runs fill (loader only).
 *
 * The stage lives as long as its coordinator: parent-death signal, and the end of the control socket ends the process. SIGINT
 * is ignored because a terminal sends it to the whole group; the coordinator decides what it means. */
#include "proto/stage.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <uv.h>

#include "proto/budget.h"
#include "proto/chunk.h"
#include "proto/conn.h"
#include "proto/err.h"
#include "proto/fault.h"
#include "proto/log.h"
#include "proto/ring.h"
#include "proto/sandbox.h"
#include "proto/shm.h"
#include "proto/util.h"

#define RINGS_MAX 8
#define JOIN_MS 1000

struct segment {
    struct segment *next;
    uint32_t kind, layer;
    uint64_t bytes;
    int fd;     /* -1: not made yet, or given back */
    void *data; /* read-only mapping once it is filled */
    bool made;
};

struct fill_job {
    uv_work_t work;
    struct fill_job *next;
    struct stage_io *io;
    uint32_t kind, layer;
    uint64_t bytes;
    int fd, result;
    struct err err;
};

struct link {
    struct ring *ring;
    struct bell *peer;
};

struct stage_io {
    const struct stage_ops *ops;
    void *state;
    uv_loop_t loop;
    struct conn *conn;
    uv_signal_t term;
    uv_async_t report;   /* data thread: look at `drained` and `broken` */
    uv_timer_t deadline; /* of closing */
    struct budget budget;
    struct msg_configure config;
    struct sandbox sandbox;
    struct faults *faults; /* NULL: none */
    int control_fd;
    bool configured, finished;
    int status;
    struct bell *bell;
    struct link inputs[RINGS_MAX], outputs[RINGS_MAX];
    struct segment *segments, **segments_end;       /* in the order in which they are wanted */
    uint32_t n_segments, n_filled, n_coming, lease; /* n_coming: made, and not yet with the stage */
    bool all_announced;
    struct fill_job *jobs, **jobs_end;
    void *collected; /* mapping of COLLECT */
    uint64_t collected_bytes;

    pthread_t thread;
    bool running;
    _Atomic bool stop, done, draining, drained, broken;
    struct err data_err; /* the data thread's until `broken` is set, then the main thread's */
    size_t misfit;       /* bytes of a chunk that its output slot did not take */
    struct chunk_limits limits;
    struct chunk chunk;
    void *out_slot[RINGS_MAX];
    uint64_t process_start_ns, process_blocked_ns;
    _Atomic uint64_t chunks, tokens, busy_ns, idle_ns, blocked_ns;
};

static void finish(struct stage_io *io, int status)
{
    if (io->finished)
        return;
    io->finished = true;
    io->status = status;
    uv_stop(&io->loop);
}

static void fail(struct stage_io *io, const struct err *err)
{
    struct msg m = {.type = MSG_TYPE_error, .error = {.code = err->code}};
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

static int make_segment(struct stage_io *io, struct segment *s, struct err *err)
{
    int r = budget_take(&io->budget, BUDGET_WEIGHTS, s->bytes, err);
    if (r < 0)
        return err_wrap(err, r, "weights of layer %u", s->layer);
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
static int make_segments(struct stage_io *io, struct err *err)
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
    struct msg m = {.type = MSG_TYPE_segment_end, .segment_end = {.count = io->n_segments}};
    return conn_send(io->conn, &m, NULL, 0, err);
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

/* ---- data thread ---- */

static uint64_t *wait_counter(struct stage_io *io)
{
    struct chunk_times *t = &io->chunk.h.times;
    return io->ops->role == MSG_ROLE_NPU ? &t->npu_wait_ns : io->ops->role == MSG_ROLE_GPU ? &t->gpu_wait_ns : NULL;
}

static uint64_t *busy_counter(struct chunk_times *t, enum msg_role role)
{
    return role == MSG_ROLE_NPU ? &t->npu_ns : role == MSG_ROLE_GPU ? &t->gpu_ns : &t->loader_ns;
}

void *stage_reserve(struct stage_io *io, uint32_t output, struct chunk *c)
{
    struct ring *ring = io->outputs[output].ring;
    void *slot;
    uint64_t start = 0;
    for (;;) {
        uint32_t seen = bell_read(io->bell);
        if (atomic_load_explicit(&io->stop, memory_order_acquire) || ring_poisoned(ring))
            return NULL;
        slot = ring_reserve(ring);
        if (slot)
            break;
        if (!start)
            start = util_now_ns();
        bell_wait(io->bell, seen, 0, -1);
    }
    if (start) {
        uint64_t waited = util_now_ns() - start;
        io->process_blocked_ns += waited;
        atomic_fetch_add_explicit(&io->blocked_ns, waited, memory_order_relaxed);
    }
    c->h.epoch = io->limits.epoch;
    c->h.magic = CHUNK_MAGIC;
    void *payload = chunk_write(slot, ring_slot_bytes(ring), c);
    io->out_slot[output] = slot;
    if (!payload)
        io->misfit = chunk_payload_offset(c->h.n_tokens, c->h.n_seqs) + c->h.payload_bytes;
    return payload;
}

void stage_commit(struct stage_io *io, uint32_t output)
{
    struct chunk_header *h = io->out_slot[output];
    if (io->faults && fault_slot(io->faults))
        h->magic = ~CHUNK_MAGIC;
    uint64_t now = util_now_ns();
    *busy_counter(&h->times, io->ops->role) += now - io->process_start_ns - io->process_blocked_ns;
    h->times.committed_at_ns = now;
    ring_commit(io->outputs[output].ring);
}

/* Tell the coordinator, through the pipeline, that a chunk could not be done. */
static int forward_failure(struct stage_io *io, const struct err *err)
{
    struct chunk *c = &io->chunk;
    uint32_t output = io->ops->role == MSG_ROLE_GPU ? 1 : 0;
    c->h.kind = CHUNK_FAILED;
    c->h.status = err->code;
    c->h.payload_bytes = (uint32_t)MIN(strlen(err->text) + 1, 256);
    char *p = stage_reserve(io, output, c);
    if (!p)
        return -ECANCELED;
    memcpy(p, err->text, c->h.payload_bytes);
    p[c->h.payload_bytes - 1] = '\0';
    stage_commit(io, output);
    return 0;
}

static int pass_on(struct stage_io *io, const void *payload)
{
    struct err e = {.code = io->chunk.h.status < 0 ? io->chunk.h.status : -EIO};
    snprintf(e.text, sizeof(e.text), "%.*s", (int)io->chunk.h.payload_bytes, (const char *)payload);
    return forward_failure(io, &e);
}

static int take_chunk(struct stage_io *io, uint32_t input, const void *slot, struct err *err)
{
    const void *payload;
    struct chunk *c = &io->chunk;
    struct err why = {0};
    io->process_start_ns = util_now_ns();
    io->process_blocked_ns = 0;
    int r = chunk_read(slot, ring_slot_bytes(io->inputs[input].ring), &io->limits, c, &payload, err);
    if (r == -ESTALE)
        return 0;
    if (r < 0)
        return r;
    c->h.times.hops++;
    uint64_t *waited = wait_counter(io);
    if (waited && io->process_start_ns > c->h.times.committed_at_ns)
        *waited += io->process_start_ns - c->h.times.committed_at_ns;
    uint32_t n = c->h.n_tokens;
    if (io->faults && (r = fault_chunk(io->faults, c->h.layer, err)) < 0)
        return r;
    r = c->h.kind == CHUNK_FAILED ? pass_on(io, payload) : io->ops->process(io->state, io, input, c, payload, &why);
    if (r == -ENODEV)
        return err_set(err, why.code ? why.code : r, "%s", why.text[0] ? why.text : "the device is gone");
    if (r < 0 && r != -ECANCELED) {
        if (!why.code)
            err_set(&why, r, "%s could not process a chunk (code %d)", msg_role_name(io->ops->role), r);
        r = forward_failure(io, &why);
    }
    if (io->misfit)
        return err_set(err, -EMSGSIZE, "chunk %" PRIu64 " of %u tokens needs a slot of %zu bytes in an output ring; it has less",
                       c->h.id, n, io->misfit);
    atomic_fetch_add_explicit(&io->chunks, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&io->tokens, n, memory_order_relaxed);
    atomic_fetch_add_explicit(&io->busy_ns, util_now_ns() - io->process_start_ns - io->process_blocked_ns, memory_order_relaxed);
    return 0;
}

/* One chunk from the input of highest priority that has one. 1: done; 0: nothing there; negative: protocol broken. */
static int step(struct stage_io *io, struct err *err)
{
    for (uint32_t i = 0; i < io->ops->n_inputs; i++) {
        struct ring *ring = io->inputs[i].ring;
        void *slot = ring_peek(ring);
        if (!slot && ring_poisoned(ring))
            return err_set(err, -EPROTO, "input ring %u is poisoned", i);
        if (!slot)
            continue;
        int r = take_chunk(io, i, slot, err);
        ring_release(ring);
        return r < 0 ? err_wrap(err, r, "input ring %u", i) : 1;
    }
    return 0;
}

static void *data_main(void *arg)
{
    struct stage_io *io = arg;
    pthread_setname_np(pthread_self(), "data");
    while (!atomic_load_explicit(&io->stop, memory_order_acquire)) {
        uint32_t seen = bell_read(io->bell);
        bool draining = atomic_load(&io->draining);
        int r = step(io, &io->data_err);
        if (r < 0) {
            atomic_store(&io->broken, true);
            uv_async_send(&io->report);
            break;
        }
        if (r > 0)
            continue;
        if (draining) {
            atomic_store(&io->draining, false);
            atomic_store(&io->drained, true);
            uv_async_send(&io->report);
        }
        uint64_t start = util_now_ns();
        bell_wait(io->bell, seen, 0, -1);
        atomic_fetch_add_explicit(&io->idle_ns, util_now_ns() - start, memory_order_relaxed);
    }
    atomic_store(&io->done, true);
    return NULL;
}

/* ---- main thread ---- */

static void on_report(uv_async_t *a)
{
    struct stage_io *io = a->data;
    if (io->finished)
        return;
    if (atomic_exchange(&io->drained, false))
        conn_send(io->conn, &(struct msg){.type = MSG_TYPE_drained}, NULL, 0, NULL);
    if (atomic_load(&io->broken))
        fail(io, &io->data_err);
}

static int on_configure(struct stage_io *io, const struct msg_configure *c, int bell_fd, struct err *err)
{
    if (io->configured)
        return err_set(err, -EPROTO, "CONFIGURE came twice");
    io->configured = true;
    io->config = *c;
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
    int r = bell_map(bell_fd, &io->bell, err);
    if (r == 0)
        r = fault_open(c->faults, io->control_fd, &io->faults, err);
    if (r == 0 && io->faults) {
        conn_set_filter(io->conn, fault_message, io->faults);
        r = fault_start(io->faults, err);
    }
    if (r == 0)
        r = io->ops->configure(io->state, io, &io->config, err);
    if (loader)
        sandbox_begin(&io->sandbox, "");
    return r < 0 ? r : make_segments(io, err);
}

static int on_attach(struct stage_io *io, const struct msg_attach_ring *m, const int *fds, struct err *err)
{
    uint32_t n = m->direction ? io->ops->n_outputs : io->ops->n_inputs;
    struct link *l = m->direction ? &io->outputs[m->index] : &io->inputs[m->index];
    if (!io->configured || io->running || m->index >= n || m->index >= RINGS_MAX || l->ring)
        return err_set(err, -EPROTO, "unexpected ATTACH_RING (direction %u, index %u of %u)", m->direction, m->index, n);
    if (m->epoch != io->config.epoch)
        return err_set(err, -ESTALE, "ATTACH_RING of epoch %u; CONFIGURE said %u", m->epoch, io->config.epoch);
    int r = bell_map(fds[1], &l->peer, err);
    if (r == 0)
        r = ring_attach(fds[0], m->direction ? RING_PRODUCER : RING_CONSUMER, m->epoch, io->bell, l->peer, &l->ring, err);
    return r;
}

static int on_filled(struct stage_io *io, const struct msg_segment_filled *m, struct err *err)
{
    for (struct segment *s = io->segments; s; s = s->next) {
        if (s->kind != m->kind || s->layer != m->layer || s->data || s->fd < 0)
            continue;
        int seals = fcntl(s->fd, F_GET_SEALS);
        if (seals < 0 || !(seals & F_SEAL_WRITE))
            return err_set(err, -EPROTO, "segment kind %u layer %u is not sealed against writing", m->kind, m->layer);
        int r = shm_map(s->fd, s->bytes, false, &s->data, err);
        io->n_filled++;
        io->n_coming--;
        if (r == 0 && io->ops->segment)
            r = io->ops->segment(io->state, s->kind, s->layer, s->data, s->bytes, err);
        if (r == STAGE_SEGMENT_COPIED)
            r = release_segment(io, s, err);
        return r < 0 ? r : make_segments(io, err);
    }
    return err_set(err, -EPROTO, "unexpected SEGMENT_FILLED (kind %u, layer %u)", m->kind, m->layer);
}

static void fill_work(uv_work_t *w)
{
    struct fill_job *j = w->data;
    j->result = j->io->ops->fill(j->io->state, j->kind, j->layer, j->fd, j->bytes, &j->err);
    if (j->result == 0)
        j->result = shm_seal_write(j->fd, &j->err);
}

static void fill_next(struct stage_io *io);

static void fill_after(uv_work_t *w, int status)
{
    struct fill_job *j = w->data;
    struct stage_io *io = j->io;
    io->jobs = j->next;
    if (!io->jobs)
        io->jobs_end = &io->jobs;
    struct msg m = {.type = MSG_TYPE_segment_filled, .segment_filled = {.kind = j->kind, .layer = j->layer}};
    struct err err = {0};
    int r = status < 0 ? err_set(&err, status, "fill: %s", uv_strerror(status)) : j->result;
    if (status == 0 && r < 0)
        err = j->err;
    if (r == 0 && !io->finished)
        r = conn_send(io->conn, &m, NULL, 0, &err);
    close(j->fd);
    free(j);
    if (io->finished)
        return;
    if (r < 0)
        fail(io, &err);
    else
        fill_next(io);
}

static void fill_next(struct stage_io *io)
{
    if (io->jobs)
        uv_queue_work(&io->loop, &io->jobs->work, fill_work, fill_after);
}

static int on_fill(struct stage_io *io, const struct msg_segment_fill *m, int *fd, struct err *err)
{
    if (!io->configured || !io->ops->fill)
        return err_set(err, -EPROTO, "unexpected SEGMENT_FILL");
    struct fill_job *j = calloc(1, sizeof(*j));
    if (!j)
        return err_set(err, -ENOMEM, "SEGMENT_FILL: out of memory");
    j->io = io;
    j->kind = m->kind;
    j->layer = m->layer;
    j->bytes = m->bytes;
    j->fd = take_fd(fd);
    j->work.data = j;
    bool idle = io->jobs == NULL;
    *io->jobs_end = j;
    io->jobs_end = &j->next;
    if (idle)
        fill_next(io);
    return 0;
}

/* The first processor that this process may use: where the other worker's data thread is, too (kernels/cpu.h, cpu_order). */
static void pin_to_first(pthread_t thread)
{
    cpu_set_t may, one;
    if (sched_getaffinity(0, sizeof(may), &may) < 0)
        return;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &may))
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(thread, sizeof(one), &one);
        return;
    }
}

static int on_start(struct stage_io *io, struct err *err)
{
    if (io->running || io->n_filled != io->n_segments)
        return err_set(err, -EPROTO, "START with %u of %u segments", io->n_filled, io->n_segments);
    for (uint32_t i = 0; i < io->ops->n_inputs + io->ops->n_outputs; i++) {
        const struct link *l = i < io->ops->n_inputs ? &io->inputs[i] : &io->outputs[i - io->ops->n_inputs];
        if (!l->ring)
            return err_set(err, -EPROTO, "START before ring %u was attached", i);
    }
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&io->thread, NULL, data_main, io);
    if (r == 0 && io->config.pin)
        pin_to_first(io->thread);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r)
        return err_set_errno(err, -r, "data thread");
    io->running = true;
    sandbox_seal(&io->sandbox);
    struct msg m = {.type = MSG_TYPE_ready};
    sandbox_describe(&io->sandbox, m.ready.sandbox);
    const char *backend = io->ops->backend ? io->ops->backend(io->state) : "cpu";
    snprintf(m.ready.backend, sizeof(m.ready.backend), "%s", backend);
    return conn_send(io->conn, &m, NULL, 0, err);
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

static int handle(struct stage_io *io, const struct msg *m, int *fds, struct err *err)
{
    switch (m->type) {
    case MSG_TYPE_configure:
        return on_configure(io, &m->configure, fds[0], err);
    case MSG_TYPE_attach_ring:
        return on_attach(io, &m->attach_ring, fds, err);
    case MSG_TYPE_segment_fill:
        return on_fill(io, &m->segment_fill, &fds[0], err);
    case MSG_TYPE_segment_filled:
        return on_filled(io, &m->segment_filled, err);
    case MSG_TYPE_start:
        return on_start(io, err);
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
        log_debug("stage", "coordinator: %s", m->error.text);
        return 0;
    case MSG_NONE:
    case MSG_TYPE_hello:
    case MSG_TYPE_segment_new:
    case MSG_TYPE_segment_released:
    case MSG_TYPE_segment_end:
    case MSG_TYPE_ready:
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
        fail(io, &err);
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

/* Ends the data thread; gives up (and the process with it) when a computation does not come back in time. */
static void stop_data_thread(struct stage_io *io)
{
    if (!io->running)
        return;
    atomic_store(&io->stop, true);
    for (int ms = 0; ms < JOIN_MS && !atomic_load(&io->done); ms++) {
        bell_ring(io->bell);
        uv_sleep(1);
    }
    if (!atomic_load(&io->done))
        _exit(io->status ? io->status : 1);
    pthread_join(io->thread, NULL);
    io->running = false;
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

static void stage_close(struct stage_io *io)
{
    stop_data_thread(io);
    conn_close(io->conn);
    uv_close((uv_handle_t *)&io->term, NULL);
    uv_close((uv_handle_t *)&io->report, NULL);
    uv_timer_start(&io->deadline, on_deadline, JOIN_MS, 0);
    uv_unref((uv_handle_t *)&io->deadline);
    uv_run(&io->loop, UV_RUN_DEFAULT); /* a fill under way ends first, or the deadline comes */
    uv_walk(&io->loop, close_handle, NULL);
    uv_run(&io->loop, UV_RUN_DEFAULT);
    if (uv_loop_close(&io->loop) < 0)
        log_error("stage", "event loop still has handles");
    if (io->status)
        _exit(io->status); /* nothing is left to say; drivers of a lost device hang or crash when they are asked to tidy up */
    for (int i = 0; i < RINGS_MAX; i++) {
        ring_detach(io->inputs[i].ring);
        ring_detach(io->outputs[i].ring);
        bell_unmap(io->inputs[i].peer);
        bell_unmap(io->outputs[i].peer);
    }
    if (io->state)
        io->ops->close(io->state);
    shm_unmap(io->collected, io->collected_bytes);
    while (io->segments) {
        struct segment *s = io->segments;
        io->segments = s->next;
        shm_unmap(s->data, s->bytes);
        util_close_fd(&s->fd);
        free(s);
    }
    while (io->jobs) {
        struct fill_job *j = io->jobs;
        io->jobs = j->next;
        close(j->fd);
        free(j);
    }
    bell_unmap(io->bell);
    fault_close(io->faults);
    free(io);
}

static int say_hello(struct stage_io *io, struct err *err)
{
    struct msg m = {.type = MSG_TYPE_hello, .hello = {.role = io->ops->role, .pid = (uint32_t)getpid()}};
    snprintf(m.hello.build, sizeof(m.hello.build), "%s", TANDEM_VERSION);
    snprintf(m.hello.backends, sizeof(m.hello.backends), "cpu");
    return conn_send(io->conn, &m, NULL, 0, err);
}

/* Unless a service manager or a debugger started it: then the end of the control socket has to do. */
static bool dies_with_parent(int fd)
{
    struct ucred cred;
    socklen_t n = sizeof(cred);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) < 0 || cred.pid == getppid();
}

int stage_run(const struct stage_ops *ops, int fd)
{
    static const struct conn_handlers handlers = {.message = on_message, .closed = on_closed};
    struct err err = {0};
    if (dies_with_parent(fd)) {
        pid_t parent = getppid();
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            return 1;
    }
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    struct stage_io *io = calloc(1, sizeof(*io));
    if (!io)
        return 1;
    io->ops = ops;
    io->control_fd = fd;
    io->segments_end = &io->segments;
    io->jobs_end = &io->jobs;
    setenv("UV_USE_IO_URING", "0", 0); /* some versions of libuv would; seccomp cannot see what a ring is asked for */
    if (uv_loop_init(&io->loop) < 0) {
        free(io);
        return 1;
    }
    uv_signal_init(&io->loop, &io->term);
    uv_async_init(&io->loop, &io->report, on_report);
    uv_timer_init(&io->loop, &io->deadline);
    io->term.data = io->report.data = io->deadline.data = io;
    uv_signal_start(&io->term, on_term, SIGTERM);
    int r = conn_open(&io->loop, fd, "coordinator", &handlers, io, &io->conn, &err);
    if (r < 0)
        close(fd);
    else
        r = ops->open(&io->state, &err);
    if (r == 0)
        r = say_hello(io, &err);
    if (r < 0)
        fail(io, &err);
    else
        uv_run(&io->loop, UV_RUN_DEFAULT);
    int status = io->status;
    stage_close(io);
    return status;
}
