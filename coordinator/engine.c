/* SPDX-License-Identifier: MIT
 * Owns the event loop of a running pipeline: runtime folder, cgroup, supervisor, schedule, signals, and the thread that waits on
 * the coordinator's bell and wakes the loop. Everything but that thread runs on the caller's thread, inside engine_* calls.
 * A stage that ends fails the pipeline: every request gets the reason and the commands return it. */
#include "coordinator/engine.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "coordinator/cgroup.h"
#include "coordinator/process_memory.h"
#include "coordinator/runtime_dir.h"
#include "coordinator/schedule.h"
#include "coordinator/supervise.h"
#include "coordinator/watch.h"
#include "model/collect.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/ring.h"
#include "proto/shm.h"
#include "proto/util.h"

struct engine {
    uv_loop_t loop;
    const struct config *config;
    struct plan plan;
    struct runtime_dir *runtime;
    struct cgroup *cgroup;
    struct supervise *supervise;
    struct schedule *schedule;
    uv_async_t output;
    uv_signal_t signals[3];
    pthread_t waiter;
    bool waiter_runs, handles_open, ready;
    _Atomic bool waiter_stop;
    int signal;
    struct watch *watch; /* of caps, without a cgroup */
    struct err failed;   /* code != 0: the pipeline is gone */
    uint64_t stats_serial;
    uint32_t stats_pending; /* bit per role */
    struct engine_process_stats *stats;
    void (*stats_done)(void *ctx, const struct err *failed); /* of engine_stats_ask */
    void *stats_ctx;
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
    while (!atomic_load(&e->waiter_stop)) {
        uint32_t seen = bell_read(bell);
        if (ring_fill(output) || ring_poisoned(output))
            uv_async_send(&e->output);
        bell_wait(bell, seen, 0, -1);
    }
    return NULL;
}

static void local_stats(struct engine *e, struct engine_process_stats *s);

static void stats_finish(struct engine *e, const struct err *failed)
{
    void (*done)(void *ctx, const struct err *failed) = e->stats_done;
    if (!done)
        return;
    if (!failed)
        local_stats(e, e->stats);
    e->stats_done = NULL;
    e->stats = NULL;
    done(e->stats_ctx, failed);
}

static void pipeline_failed(struct engine *e, const struct err *err)
{
    if (e->failed.code)
        return;
    e->failed = *err;
    stats_finish(e, &e->failed);
    if (e->schedule)
        schedule_fail(e->schedule, &e->failed);
}

static void on_output(uv_async_t *a)
{
    struct engine *e = a->data;
    struct err err = {0};
    if (!e->failed.code && schedule_drain(e->schedule, &err) < 0)
        pipeline_failed(e, &err);
}

static void on_signal(uv_signal_t *s, int signum)
{
    ((struct engine *)s->data)->signal = signum;
}

static void on_ready(void *ctx)
{
    ((struct engine *)ctx)->ready = true;
}

static void on_failed(void *ctx, const struct err *err)
{
    pipeline_failed(ctx, err);
}

static void on_stats(void *ctx, enum msg_role role, const struct msg_stats *m)
{
    struct engine *e = ctx;
    static const enum config_process process[] = {
        [MSG_ROLE_LOADER] = CONFIG_LOADER, [MSG_ROLE_NPU] = CONFIG_NPU, [MSG_ROLE_GPU] = CONFIG_GPU};
    if (!e->stats || m->serial != e->stats_serial)
        return;
    struct engine_process_stats *s = &e->stats[process[role]];
    s->budget[BUDGET_WEIGHTS] = m->weights;
    s->budget[BUDGET_KV] = m->kv;
    s->budget[BUDGET_SCRATCH] = m->scratch;
    s->budget[BUDGET_RING] = m->ring;
    s->budget[BUDGET_DEVICE] = m->device;
    s->total_peak = m->total_peak;
    s->busy_ns = m->busy_ns;
    s->idle_ns = m->idle_ns;
    s->blocked_ns = m->blocked_ns;
    s->chunks = m->chunks;
    s->bytes_read = m->bytes_read;
    s->products = m->products;
    s->offloaded = m->offloaded;
    e->stats_pending &= ~(1u << role);
    if (!e->stats_pending)
        stats_finish(e, NULL);
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
    return r < 0 ? r : cgroup_add(e->cgroup, "coordinator", (int)getpid(), e->plan.process[CONFIG_COORDINATOR].cap, err);
}

static int open_pipeline(struct engine *e, const struct engine_options *o, struct err *err)
{
    struct supervise_options so = {.loop = &e->loop,
                                   .config = e->config,
                                   .plan = &e->plan,
                                   .cgroup = e->cgroup,
                                   .stage_dir = o ? o->stage_dir : NULL,
                                   .ready = on_ready,
                                   .stats = on_stats,
                                   .collecting = on_collecting,
                                   .failed = on_failed,
                                   .ctx = e};
    int r = supervise_open(&so, &e->supervise, err);
    if (r == 0 && !e->cgroup)
        r = watch_open(&e->loop, &e->plan, e->supervise, on_failed, e, &e->watch, err);
    if (r < 0)
        return r;
    while (!e->ready && !e->failed.code && !e->signal)
        uv_run(&e->loop, UV_RUN_ONCE);
    if (e->failed.code)
        return err_set(err, e->failed.code, "%s", e->failed.text);
    if (e->signal)
        return err_set(err, -EINTR, "interrupted by signal %d while starting", e->signal);
    schedule_attach(e->schedule, supervise_token_ring(e->supervise), supervise_output_ring(e->supervise),
                    supervise_epoch(e->supervise));
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = pthread_create(&e->waiter, NULL, waiter_main, e);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r)
        return err_set_errno(err, -r, "cannot start the ring waiter thread");
    e->waiter_runs = true;
    return 0;
}

int engine_open(const struct config *c, const struct gguf *g, const struct engine_options *o, struct engine **ret, struct err *err)
{
    struct engine *e = calloc(1, sizeof(*e));
    if (!e)
        return err_set(err, -ENOMEM, "engine: out of memory");
    e->config = c;
    struct gpu_device gpu;
    struct npu_device npu;
    struct plan_machine machine = {.gpu = &gpu, .npu = &npu};
    machine_memory(&machine.memory);
    int r = gpu_device_find(c, o ? o->stage_dir : NULL, &gpu, err);
    if (r == 0)
        r = npu_device_find(c, o ? o->stage_dir : NULL, &npu, err);
    if (r == 0)
        r = plan_make(c, g, &machine, o ? o->command_bytes : 0, &e->plan, err);
    if (r == 0 && e->plan.npu.reason[0]) /* the config names a manifest: somebody wants the NPU */
        log_warn("engine", "npu_worker computes on the processor: %s", e->plan.npu.reason);
    if (r == 0 && e->plan.gpu.reason[0]) /* that there is none is no news; that one cannot be used is worth a warning */
        log_line(gpu.vulkan || gpu.surprise ? LOG_WARN : LOG_INFO, "engine", "gpu_worker computes on the processor: %s",
                 e->plan.gpu.reason);
    if (r == 0)
        r = open_handles(e, err);
    if (r == 0)
        r = open_caps(e, err);
    if (r == 0)
        r = schedule_open(&e->plan, &e->schedule, err);
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
    e->stats_done = NULL; /* whom it would tell is gone */
    e->stats = NULL;
    watch_close(e->watch);
    if (e->supervise)
        supervise_stop(e->supervise);
    while (e->supervise && !supervise_stopped(e->supervise))
        uv_run(&e->loop, UV_RUN_ONCE);
    if (e->waiter_runs) {
        atomic_store(&e->waiter_stop, true);
        bell_ring(supervise_bell(e->supervise));
        pthread_join(e->waiter, NULL);
    }
    schedule_close(e->schedule);
    supervise_close(e->supervise);
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

enum engine_state engine_state(const struct engine *e, const char **ret_reason)
{
    *ret_reason = e->failed.code ? e->failed.text : e->waiter_runs ? "ready" : "the stages start and load the model";
    return e->failed.code ? ENGINE_FAILED : e->waiter_runs ? ENGINE_READY : ENGINE_LOADING;
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
    while (r == 0 && e->collect_pending && (r = interrupted(e, err)) == 0)
        uv_run(&e->loop, UV_RUN_ONCE);
    memcpy(ret_area, e->collected, sizeof(e->collected));
    return r;
}

static void local_stats(struct engine *e, struct engine_process_stats *s)
{
    s[CONFIG_COORDINATOR].budget[BUDGET_RING] = e->plan.process[CONFIG_COORDINATOR].bytes[BUDGET_RING];
    s[CONFIG_COORDINATOR].total_peak = s[CONFIG_COORDINATOR].budget[BUDGET_RING];
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        static const int role[] = {
            [CONFIG_COORDINATOR] = -1, [CONFIG_LOADER] = MSG_ROLE_LOADER, [CONFIG_NPU] = MSG_ROLE_NPU, [CONFIG_GPU] = MSG_ROLE_GPU};
        bool self = role[i] < 0;
        s[i].name = plan_process_name((enum config_process)i);
        s[i].pid = self ? (int)getpid() : supervise_pid(e->supervise, (enum msg_role)role[i]);
        snprintf(s[i].backend, sizeof(s[i].backend), "%s", self ? "-" : supervise_backend(e->supervise, (enum msg_role)role[i]));
        s[i].cap = e->plan.process[i].cap;
        s[i].cap_enforced = e->cgroup != NULL;
        struct process_memory m;
        if (process_memory_read(s[i].pid, &m) == 0) {
            s[i].rss = m.rss;
            s[i].pss = m.pss;
            s[i].peak_bytes = m.peak_private + s[i].budget[self ? BUDGET_RING : BUDGET_WEIGHTS]; /* memfds of its own making */
        }
        uint64_t peak = e->cgroup ? cgroup_peak(e->cgroup, s[i].name) : 0;
        if (peak) /* the tokenizer was there before the coordinator's group */
            s[i].peak_bytes = self ? MAX(peak, s[i].peak_bytes) : peak;
    }
}

int engine_stats(struct engine *e, struct engine_process_stats *ret, struct err *err)
{
    memset(ret, 0, CONFIG_PROCESSES * sizeof(*ret));
    int r = interrupted(e, err);
    if (r < 0)
        return r;
    e->stats = ret;
    e->stats_serial++;
    e->stats_pending = (1u << MSG_ROLES) - 1;
    r = supervise_request_stats(e->supervise, e->stats_serial, err);
    while (r == 0 && e->stats_pending && (r = interrupted(e, err)) == 0)
        uv_run(&e->loop, UV_RUN_ONCE);
    e->stats = NULL;
    local_stats(e, ret);
    return r;
}

int engine_stats_ask(struct engine *e, struct engine_process_stats *ret, void (*done)(void *ctx, const struct err *failed),
                     void *ctx, struct err *err)
{
    if (e->stats)
        return err_set(err, -EBUSY, "statistics: asked for already");
    int r = interrupted(e, err);
    if (r < 0)
        return r;
    if (!e->waiter_runs)
        return err_set(err, -EAGAIN, "statistics: the stages are starting");
    memset(ret, 0, CONFIG_PROCESSES * sizeof(*ret));
    e->stats_serial++;
    e->stats_pending = (1u << MSG_ROLES) - 1;
    r = supervise_request_stats(e->supervise, e->stats_serial, err);
    if (r < 0)
        return r;
    e->stats = ret;
    e->stats_done = done;
    e->stats_ctx = ctx;
    return 0;
}
