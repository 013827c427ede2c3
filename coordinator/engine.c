/* SPDX-License-Identifier: MIT
 * Owns the event loop of a running pipeline: runtime folder, cgroup, supervisor, schedule, signals, and the thread that waits on
 * the coordinator's bell and wakes the loop. Everything but that thread runs on the caller's thread, inside engine_* calls.
 * When a stage ends, the supervisor says so before it takes the rings away and again when there are new ones; meanwhile no thread
 * waits and nothing is sent. A pipeline that cannot go on fails: every request gets the reason and the commands return it. */
#include "coordinator/engine.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <uv.h>

#include "coordinator/cgroup.h"
#include "coordinator/control.h"
#include "coordinator/fallback.h"
#include "coordinator/journal.h"
#include "coordinator/monitor.h"
#include "coordinator/process_memory.h"
#include "coordinator/runtime_dir.h"
#include "coordinator/schedule.h"
#include "coordinator/supervise.h"
#include "coordinator/tracer.h"
#include "coordinator/watch.h"
#include "model/collect.h"
#include "proto/err.h"
#include "proto/fault.h"
#include "proto/log.h"
#include "proto/ring.h"
#include "proto/shm.h"
#include "proto/trace.h"
#include "proto/util.h"

#define STATS_TRIES 10 /* of MONITOR_DEADLINE_MS, where a stage is slow to answer */

struct engine {
    uv_loop_t loop;
    const struct config *config;
    const struct gguf *gguf;
    uint64_t command_bytes;
    struct plan plan;
    struct runtime_dir *runtime;
    char stage_socket[4096];
    struct journal *journal; /* NULL: off */
    struct tracer *tracer;   /* likewise */
    uint64_t moved_ns;       /* since when the pipeline starts, or recovers */
    struct cgroup *cgroup;
    uint64_t outside; /* private bytes from before the cgroup */
    struct supervise *supervise;
    struct schedule *schedule;
    uv_async_t output;
    uv_signal_t signals[3];
    pthread_t waiter;
    bool waiter_runs, handles_open, ready;
    bool output_broken; /* what gpu_worker wrote made no sense: its end is to come */
    struct engine_recovery recovery;
    uint64_t ready_ns, progress; /* when the last recovery was over but for the work to be done again; progress then */
    _Atomic bool waiter_stop;
    int signal;
    struct watch *watch; /* of caps, without a cgroup */
    struct err failed;   /* code != 0: the pipeline is gone */
    struct monitor *monitor;
    struct control *control; /* may be NULL */
    bool was_ready;
    char lost[64]; /* which stage, in a sentence, while it is not ready again */
    void (*stopping)(void *ctx);
    void *stopping_ctx;
    uint32_t collect_pending; /* bit per role */
    double *collected[2];     /* npu_worker's, gpu_worker's */
};

/* The only other thread: turns rings of the bell into wake-ups of the loop. */
static void *waiter_main(void *arg)
{
    struct engine *e = arg;
    struct bell *bell = supervise_bell(e->supervise);
    struct ring *output = supervise_output_ring(e->supervise);
    for (;;) {
        uint32_t seen = bell_read(bell); /* before looking at anything: what comes later rings it */
        if (atomic_load(&e->waiter_stop))
            break;
        if (ring_fill(output) || ring_poisoned(output))
            uv_async_send(&e->output);
        bell_wait(bell, seen, 0, BELL_AGAIN_NS);
    }
    return NULL;
}

static void pipeline_failed(struct engine *e, const struct err *err)
{
    if (e->failed.code)
        return;
    e->failed = *err;
    if (e->monitor)
        monitor_set_state(e->monitor, MONITOR_FAILED);
    if (e->schedule)
        schedule_fail(e->schedule, &e->failed);
}

static int start_waiter(struct engine *e, struct err *err)
{
    sigset_t all, old;
    sigfillset(&all);
    atomic_store(&e->waiter_stop, false);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&e->waiter, NULL, waiter_main, e);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r)
        return err_set_errno(err, -r, "cannot start the ring waiter thread");
    e->waiter_runs = true;
    return 0;
}

static void stop_waiter(struct engine *e)
{
    if (!e->waiter_runs)
        return;
    atomic_store(&e->waiter_stop, true);
    bell_ring(supervise_bell(e->supervise));
    pthread_join(e->waiter, NULL);
    e->waiter_runs = false;
}

/* After a recovery: the pause is over when a request is further than before, or none is there. */
static void note_progress(struct engine *e)
{
    struct engine_recovery *r = &e->recovery;
    if (!e->ready_ns || (schedule_active(e->schedule) && schedule_progress(e->schedule) == e->progress))
        return;
    r->reprefill_ns = schedule_progress(e->schedule) == e->progress ? 0 : util_now_ns() - e->ready_ns;
    r->pause_ns = r->restart_ns + r->remap_ns + r->reprefill_ns;
    e->ready_ns = 0;
    log_info("engine",
             "recovered from the end of %s: pause %.1f ms (detect %.1f before; restart %.1f, remap %.1f, re-prefill %.1f)",
             r->stage, (double)r->pause_ns / 1e6, (double)r->detect_ns / 1e6, (double)r->restart_ns / 1e6,
             (double)r->remap_ns / 1e6, (double)r->reprefill_ns / 1e6);
}

static void on_output(uv_async_t *a)
{
    struct engine *e = a->data;
    struct err err = {0};
    if (e->failed.code || e->output_broken || !e->ready)
        return;
    if (schedule_drain(e->schedule, &err) < 0) {
        e->output_broken = true;
        supervise_kill(e->supervise, MSG_ROLE_GPU, &err);
        return;
    }
    if (ring_fill(supervise_output_ring(e->supervise)))
        uv_async_send(a);
    note_progress(e);
}

static void on_signal(uv_signal_t *s, int signum)
{
    ((struct engine *)s->data)->signal = signum;
}

/* The pipeline was not ready since moved_ns, and is. */
static void trace_ready(struct engine *e, const struct supervise_recovery *r)
{
    trace_add(tracer_own(e->tracer), TRACE_CONTROL,
              &(struct trace_event){.kind = r->first ? TRACE_START : TRACE_RECOVERY,
                                    .start_ns = e->moved_ns,
                                    .end_ns = util_now_ns(),
                                    .seq = (uint8_t)r->role});
}

static void note_recovery(struct engine *e, const struct supervise_recovery *r)
{
    e->recovery = (struct engine_recovery){.n = e->recovery.n + 1,
                                           .stage = msg_role_name(r->role),
                                           .detect_ns = r->detect_ns,
                                           .restart_ns = r->restart_ns,
                                           .remap_ns = r->remap_ns};
    e->ready_ns = util_now_ns();
    e->progress = schedule_progress(e->schedule);
}

static void on_ready(void *ctx, const struct supervise_recovery *r)
{
    struct engine *e = ctx;
    struct ring *tokens = supervise_token_ring(e->supervise), *output = supervise_output_ring(e->supervise);
    struct err err = {0};
    trace_ready(e, r);
    if (r->backend_changed)
        schedule_mark_numerics(e->schedule);
    if (r->first)
        schedule_attach(e->schedule, tokens, output, supervise_epoch(e->supervise));
    else
        schedule_restart(e->schedule, tokens, output, supervise_epoch(e->supervise), r->kv_lost);
    e->ready = e->was_ready = true;
    if (start_waiter(e, &err) < 0) {
        pipeline_failed(e, &err);
        return;
    }
    if (!r->first)
        note_recovery(e, r);
    if (e->monitor)
        monitor_set_state(e->monitor, MONITOR_RUNNING);
    schedule_pump(e->schedule);
    note_progress(e);
}

static void on_lost(void *ctx, enum msg_role role)
{
    struct engine *e = ctx;
    stop_waiter(e);
    snprintf(e->lost, sizeof(e->lost), "%s ended and is started again", msg_role_name(role));
    e->moved_ns = util_now_ns();
    e->ready = e->output_broken = false;
    if (e->monitor) {
        monitor_set_state(e->monitor, MONITOR_RECOVERING);
        monitor_lost(e->monitor, role);
    }
    schedule_pause(e->schedule, true);
}

static uint64_t on_progress(void *ctx)
{
    return schedule_progress(((struct engine *)ctx)->schedule);
}

static uint32_t on_in_flight(void *ctx, uint32_t *ret_done)
{
    return schedule_in_flight(((struct engine *)ctx)->schedule, ret_done);
}

static bool on_fallback(void *ctx, enum msg_role role, const struct err *why)
{
    struct engine *e = ctx;
    struct err err = {0};
    int r = fallback_plan(e->config, e->gguf, role, e->command_bytes, &e->plan, &err);
    if (r == -ENOENT)
        return false;
    if (r < 0)
        log_warn("engine", "%s cannot go on with its next backend: %s", msg_role_name(role), err.text);
    else
        log_warn("engine", "%s; it goes on with the cpu backend", why->text);
    return r == 0;
}

static bool on_give_up(void *ctx, const char *limit, const struct err *why)
{
    return schedule_give_up(((struct engine *)ctx)->schedule, limit, why) > 0;
}

static void on_failed(void *ctx, const struct err *err)
{
    pipeline_failed(ctx, err);
}

static void on_stats(void *ctx, enum msg_role role, const struct msg_stats *m)
{
    struct engine *e = ctx;
    if (e->monitor)
        monitor_stats(e->monitor, role, m);
}

static void on_collecting(void *ctx, enum msg_role role)
{
    ((struct engine *)ctx)->collect_pending &= ~(1u << role);
}

static int open_handles(struct engine *e, struct err *err)
{
    int r = uv_loop_init(&e->loop);
    if (r < 0)
        return err_set(err, r, "event loop: %s", uv_strerror(r));
    e->handles_open = true;
    uv_async_init(&e->loop, &e->output, on_output);
    e->output.data = e;
    static const int which[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < ARRAY_LEN(which); i++) {
        uv_signal_init(&e->loop, &e->signals[i]);
        e->signals[i].data = e;
        r = uv_signal_start(&e->signals[i], on_signal, which[i]);
        if (r < 0)
            return err_set(err, r, "signal %d: %s", which[i], uv_strerror(r));
    }
    return 0;
}

static int open_caps(struct engine *e, struct err *err)
{
    struct err why = {0};
    int r = runtime_dir_open(&e->runtime, err);
    if (r < 0)
        return r;
    const char *asked = util_env(UTIL_ENV_CAPS);
    if (asked && strcmp(asked, "watched") != 0)
        return err_set(err, -EINVAL, "environment variable TANDEM_CAPS is '%.40s'; expected watched, or nothing", asked);
    r = asked ? err_set(&why, -ENOTSUP, "TANDEM_CAPS says so") : cgroup_open(NULL, &e->cgroup, &why);
    if (r < 0) {
        log_warn("memory", "caps are accounted by each process and watched, not enforced by the kernel: %s", why.text);
        return 0;
    }
    log_info("memory", "caps are enforced by the kernel (cgroup %s, '%s')", cgroup_version(e->cgroup), cgroup_path(e->cgroup));
    r = runtime_dir_note_cgroup(e->runtime, cgroup_path(e->cgroup), err);
    struct process_memory m;
    e->outside = process_memory_read((int)getpid(), false, &m) < 0 ? 0 : m.anon;
    return r < 0 ? r : cgroup_add(e->cgroup, "coordinator", (int)getpid(), e->plan.process[CONFIG_COORDINATOR].cap, err);
}

/* Nobody needs the control socket to compute: where it cannot be had, the run goes on. The config is noted last, so that whoever
 * finds us finds the socket. */
static void open_control(struct engine *e)
{
    struct err err = {0};
    if (control_open(&e->loop, runtime_dir_path(e->runtime), e->monitor, &e->control, &err) < 0 ||
        runtime_dir_note_config(e->runtime, e->config->path, &err) < 0)
        log_warn("control", "there are no 'stats' and 'top' of this run: %s", err.text);
}

static int open_pipeline(struct engine *e, const struct engine_options *o, struct err *err)
{
    const char *given = e->config->stage_socket;
    snprintf(e->stage_socket, sizeof(e->stage_socket), "%s%s", *given ? given : runtime_dir_path(e->runtime),
             *given ? "" : "/" RUNTIME_DIR_STAGES);
    struct supervise_options so = {.loop = &e->loop,
                                   .config = e->config,
                                   .plan = &e->plan,
                                   .cgroup = e->cgroup,
                                   .stage_dir = o ? o->stage_dir : NULL,
                                   .stage_socket = e->stage_socket,
                                   .tracer = e->tracer,
                                   .ready = on_ready,
                                   .lost = on_lost,
                                   .progress = on_progress,
                                   .in_flight = on_in_flight,
                                   .fallback = on_fallback,
                                   .give_up = on_give_up,
                                   .stats = on_stats,
                                   .collecting = on_collecting,
                                   .failed = on_failed,
                                   .ctx = e};
    int r = supervise_open(&so, &e->supervise, err);
    if (r == 0 && !e->cgroup)
        r = watch_open(&e->loop, &e->plan, e->supervise, on_failed, e, &e->watch, err);
    struct monitor_options mo = {.loop = &e->loop,
                                 .plan = &e->plan,
                                 .supervise = e->supervise,
                                 .schedule = e->schedule,
                                 .cgroup = e->cgroup,
                                 .watch = e->watch,
                                 .outside = e->outside};
    if (r == 0)
        r = monitor_open(&mo, &e->monitor, err);
    if (r < 0)
        return r;
    open_control(e);
    while (!e->ready && !e->failed.code && !e->signal)
        uv_run(&e->loop, UV_RUN_ONCE);
    if (e->failed.code)
        return err_set(err, e->failed.code, "%s", e->failed.text);
    if (e->signal)
        return err_set(err, -EINTR, "interrupted by signal %d while starting", e->signal);
    return 0;
}

/* Loaders that are started later must find the same file. */
static void note_model(struct plan *p, const char *path)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return; /* the first loader says why */
    p->model.bytes = (uint64_t)st.st_size;
    p->model.time_ns = (uint64_t)st.st_mtim.tv_sec * 1000000000 + (uint64_t)st.st_mtim.tv_nsec;
    p->model.inode = st.st_ino;
}

/* What would never happen is a mistake. */
static int check_faults(const struct config *c, uint32_t n_layers, struct err *err)
{
    int r = 0;
    for (int i = 0; r == 0 && i < c->n_faults; i++)
        r = fault_check_layer(c->faults[i], n_layers, err);
    return r;
}

/* Not refused: what others hold may be given back in time. */
static void warn_of_memory(const struct plan *p)
{
    char have[32], need[32];
    if (plan_lacks_memory(p))
        log_warn("memory", "%s of memory free; the processes need %s: close other programs first, or set 'memory.total' to less",
                 util_format_bytes(have, sizeof(have), p->machine.available), util_format_bytes(need, sizeof(need), plan_bytes(p)));
}

int engine_open(const struct config *c, const struct gguf *g, const struct engine_options *o, struct engine **ret, struct err *err)
{
    struct engine *e = calloc(1, sizeof(*e));
    if (!e)
        return err_set(err, -ENOMEM, "engine: out of memory");
    e->config = c;
    e->gguf = g;
    e->command_bytes = (o ? o->command_bytes : 0) + (o && o->trace ? tracer_bytes() : 0);
    e->moved_ns = util_now_ns();
    struct gpu_device gpu;
    struct npu_device npu;
    struct plan_machine machine = {.gpu = &gpu, .npu = &npu};
    machine_memory(&machine.memory);
    int r = gpu_device_find(c, o ? o->stage_dir : NULL, &gpu, err);
    if (r == 0)
        r = npu_device_find(c, o ? o->stage_dir : NULL, &npu, err);
    if (r == 0)
        r = plan_make(c, g, &machine, e->command_bytes, &e->plan, err);
    if (r == 0)
        r = check_faults(c, e->plan.hparams.n_layers, err);
    note_model(&e->plan, c->model);
    if (r == 0)
        warn_of_memory(&e->plan);
    if (r == 0 && e->plan.npu.reason[0]) /* the config names a manifest: somebody wants the NPU */
        log_warn("engine", "npu_worker computes on the processor: %s", e->plan.npu.reason);
    if (r == 0 && e->plan.gpu.reason[0]) /* that there is none is no news; that one cannot be used is worth a warning */
        log_line(gpu.vulkan || gpu.surprise ? LOG_WARN : LOG_INFO, "engine", "gpu_worker computes on the processor: %s",
                 e->plan.gpu.reason);
    if (r == 0 && o && o->trace)
        r = tracer_open(o->trace, &e->tracer, err);
    if (r == 0)
        r = open_handles(e, err);
    if (r == 0)
        r = open_caps(e, err);
    if (r == 0)
        r = schedule_open(&e->plan, &e->schedule, err);
    if (r == 0)
        schedule_set_trace(e->schedule, tracer_own(e->tracer));
    if (r == 0 && c->journal) {
        const struct journal_options jo = {
            .folder = runtime_dir_path(e->runtime), .model = c->model, .context = e->plan.context, .vocab = e->plan.hparams.vocab};
        r = journal_open(&jo, &e->journal, err);
        schedule_set_journal(e->schedule, e->journal);
    }
    if (r == 0 && o && o->started) {
        e->stopping = o->stopping;
        e->stopping_ctx = o->ctx;
        r = o->started(o->ctx, e, err);
    }
    if (r == 0)
        r = open_pipeline(e, o, err);
    if (r < 0) {
        if (o && o->ret_signal)
            *o->ret_signal = e->signal;
        engine_close(e);
        return r;
    }
    *ret = e;
    return 0;
}

static void close_handle(uv_handle_t *h, void *arg)
{
    (void)arg;
    if (!uv_is_closing(h))
        uv_close(h, NULL);
}

void engine_close(struct engine *e)
{
    if (!e)
        return;
    if (e->stopping)
        e->stopping(e->stopping_ctx);
    control_close(e->control);
    monitor_close(e->monitor);
    e->monitor = NULL;
    watch_close(e->watch);
    if (e->supervise)
        supervise_stop(e->supervise);
    while (e->supervise && !supervise_stopped(e->supervise))
        uv_run(&e->loop, UV_RUN_ONCE);
    stop_waiter(e);
    schedule_close(e->schedule);
    journal_close(e->journal);
    supervise_close(e->supervise);
    tracer_close(e->tracer);
    if (e->handles_open) {
        uv_run(&e->loop, UV_RUN_NOWAIT); /* connections close themselves */
        uv_walk(&e->loop, close_handle, NULL);
        uv_run(&e->loop, UV_RUN_DEFAULT);
        int r = uv_loop_close(&e->loop);
        if (r < 0)
            log_error("engine", "event loop still has handles: %s", uv_strerror(r));
    }
    for (int i = 0; i < 2; i++)
        shm_unmap(e->collected[i], collect_bytes(&e->plan.hparams, i ? SEGMENT_FFN : SEGMENT_ATTN));
    cgroup_close(e->cgroup);
    runtime_dir_close(e->runtime);
    free(e);
}

const struct plan *engine_plan(const struct engine *e)
{
    return &e->plan;
}

struct uv_loop_s *engine_loop(struct engine *e)
{
    return &e->loop;
}

const char *engine_state_name(enum engine_state s)
{
    static const char *const names[] = {"loading", "ready", "recovering", "failed"};
    return (unsigned)s < ARRAY_LEN(names) ? names[s] : "?";
}

/* A stage that somebody else has to start. */
static const char *waits_for_others(const struct engine *e)
{
    static const char *const sentences[] = {
        [MSG_ROLE_LOADER] = "loader has not connected; 'loader.spawn' is false: it is started by others",
        [MSG_ROLE_NPU] = "npu_worker has not connected; 'npu.spawn' is false: it is started by others",
        [MSG_ROLE_GPU] = "gpu_worker has not connected; 'gpu.spawn' is false: it is started by others"};
    for (enum msg_role role = MSG_ROLE_LOADER; e->supervise && role <= MSG_ROLE_GPU; role++) {
        if (!supervise_spawned(e->supervise, role) && supervise_pid(e->supervise, role) == 0)
            return sentences[role];
    }
    return NULL;
}

enum engine_state engine_state(const struct engine *e, const char **ret_reason)
{
    if (e->failed.code || e->ready) {
        *ret_reason = e->failed.code ? e->failed.text : "ready";
        return e->failed.code ? ENGINE_FAILED : ENGINE_READY;
    }
    *ret_reason = waits_for_others(e);
    if (!*ret_reason)
        *ret_reason = e->was_ready ? e->lost : "the stages start and load the model";
    return e->was_ready ? ENGINE_RECOVERING : ENGINE_LOADING;
}

struct monitor *engine_monitor(const struct engine *e)
{
    return e->monitor;
}

const char *engine_finish_name(enum engine_finish f)
{
    static const char *const names[] = {"stop", "length", "context", "cancelled", "error"};
    return (unsigned)f < ARRAY_LEN(names) ? names[f] : "?";
}

int engine_signal(const struct engine *e)
{
    return e->signal;
}

void engine_forget_signal(struct engine *e)
{
    e->signal = 0;
}

int engine_submit(struct engine *e, const struct request_params *p, struct request **ret, struct err *err)
{
    if (e->failed.code)
        return err_set(err, e->failed.code, "%s", e->failed.text);
    return schedule_submit(e->schedule, p, ret, err);
}

void engine_cancel(struct engine *e, struct request *r)
{
    schedule_cancel(e->schedule, r);
}

int engine_left_request(struct engine *e, struct journal_request *ret, struct journal_file **ret_file, uint32_t *ret_others,
                        struct err *err)
{
    if (!e->journal)
        return err_set(err, -EINVAL, "'journal' is off: requests are not noted, and not resumed");
    return journal_claim(e->journal, runtime_dir_base(e->runtime), ret, ret_file, ret_others, err);
}

static int interrupted(struct engine *e, struct err *err)
{
    if (e->failed.code)
        return err_set(err, e->failed.code, "%s", e->failed.text);
    if (e->signal)
        return err_set(err, -EINTR, "interrupted by signal %d (%s)", e->signal, strsignal(e->signal));
    return 0;
}

int engine_run(struct engine *e, struct err *err)
{
    int r;
    if (!e->failed.code)
        schedule_pump(e->schedule);
    while ((r = interrupted(e, err)) == 0 && schedule_active(e->schedule))
        uv_run(&e->loop, UV_RUN_ONCE);
    return r;
}

int engine_serve(struct engine *e, struct err *err)
{
    int r;
    engine_pump(e);
    while ((r = interrupted(e, err)) == 0)
        uv_run(&e->loop, UV_RUN_ONCE);
    return r;
}

void engine_pump(struct engine *e)
{
    if (!e->failed.code)
        schedule_pump(e->schedule);
}

static void on_readable(uv_poll_t *p, int status, int events)
{
    (void)status;
    (void)events;
    *(bool *)p->data = true;
}

static void on_poll_closed(uv_handle_t *h)
{
    *(bool *)h->data = true;
}

int engine_wait_readable(struct engine *e, int fd, struct err *err)
{
    bool readable = false;
    uv_poll_t poll;
    int r = uv_poll_init(&e->loop, &poll, fd);
    if (r < 0)
        return interrupted(e, err); /* a regular file: always readable */
    poll.data = &readable;
    uv_poll_start(&poll, UV_READABLE | UV_DISCONNECT, on_readable);
    while ((r = interrupted(e, err)) == 0 && !readable)
        uv_run(&e->loop, UV_RUN_ONCE);
    bool closed = false;
    poll.data = &closed;
    uv_close((uv_handle_t *)&poll, on_poll_closed);
    while (!closed)
        uv_run(&e->loop, UV_RUN_NOWAIT);
    return r;
}

int engine_collect(struct engine *e, double *ret_area[2], struct err *err)
{
    static const enum msg_role roles[] = {MSG_ROLE_NPU, MSG_ROLE_GPU};
    int r = interrupted(e, err);
    for (int i = 0; i < 2 && r == 0; i++) {
        size_t bytes = collect_bytes(&e->plan.hparams, i ? SEGMENT_FFN : SEGMENT_ATTN);
        auto_fd fd = shm_make("tandem-collect", bytes, false, err);
        r = fd < 0 ? fd : shm_map(fd, bytes, true, (void **)&e->collected[i], err);
        if (r == 0)
            r = supervise_collect(e->supervise, roles[i], fd, bytes, err);
        e->collect_pending |= 1u << roles[i];
    }
    supervise_no_restarts(e->supervise); /* its sums would lack what the stage had added */
    while (r == 0 && e->collect_pending && (r = interrupted(e, err)) == 0)
        uv_run(&e->loop, UV_RUN_ONCE);
    memcpy(ret_area, e->collected, sizeof(e->collected));
    return r;
}

const struct engine_recovery *engine_last_recovery(const struct engine *e)
{
    return &e->recovery;
}

struct stats_wait {
    struct monitor_wait wait;
    struct monitor_snapshot *ret;
    bool done;
};

static void on_snapshot(void *ctx, const struct monitor_snapshot *s)
{
    struct stats_wait *w = ctx;
    *w->ret = *s;
    w->done = true;
}

static bool all_answered(const struct monitor_snapshot *s)
{
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        if (!s->process[i].answered)
            return false;
    }
    return true;
}

int engine_stats(struct engine *e, struct monitor_snapshot *ret, struct err *err)
{
    struct stats_wait w = {.ret = ret};
    w.wait = (struct monitor_wait){.pss = true, .done = on_snapshot, .ctx = &w};
    int r = interrupted(e, err);
    while (r == 0 && !e->ready && (r = interrupted(e, err)) == 0)
        uv_run(&e->loop, UV_RUN_ONCE);
    for (int i = 0; r == 0 && i < STATS_TRIES && !(w.done && all_answered(ret)); i++) {
        w.done = false;
        monitor_ask(e->monitor, &w.wait);
        while (!w.done && (r = interrupted(e, err)) == 0)
            uv_run(&e->loop, UV_RUN_ONCE);
    }
    monitor_cancel(e->monitor, &w.wait);
    return r;
}
