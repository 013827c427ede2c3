/* SPDX-License-Identifier: MIT
 * Owns the file, the memory of every process that is traced, and the thread that moves events from there to the file: every few
 * milliseconds it takes what is there, and writes it in pieces, each of whole objects. The file is one JSON array, whose end is
 * written by tracer_close; viewers do without it.
 * Lock: `mutex`, of what both threads touch, never held while anything is written. */
#include "coordinator/tracer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "coordinator/trace_json.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

#define PERIOD_NS 20000000
#define RATE_NS UINT64_C(250000000) /* of the counter of tokens */
#define FLUSH_NS UINT64_C(500000000)
#define OUT_BYTES ((size_t)64 << 10)
#define STACK_BYTES ((uint64_t)64 << 10)
#define SOURCES_MAX 16
#define EVENTS_MAX 8192 /* of a lane in one go, so that one that is filled without end keeps nobody waiting */

struct source {
    struct trace *trace; /* the reader's side */
    struct trace_json_process process;
    bool named;           /* the process; */
    uint32_t lanes_named; /* a bit for each thread */
    bool ended;           /* nothing follows */
};

struct tracer {
    char *path;
    int fd;
    struct trace *own; /* the writer's side */
    pthread_t thread;
    bool thread_runs;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool stop;
    struct source *sources[SOURCES_MAX]; /* [0] is the coordinator; NULL: free */
    /* the thread's, or tracer_close's after its end */
    bool broken;
    off_t written;
    char *out;
    size_t n_out;
    uint64_t flushed_ns, rate_ns, lost;
    uint32_t n_tokens; /* drawn since rate_ns */
};

uint64_t tracer_bytes(void)
{
    return (MSG_ROLES + 1) * (uint64_t)trace_bytes() + OUT_BYTES + STACK_BYTES;
}

/* What was written stays an array with its end, as far as the disk allows. */
static void give_up(struct tracer *t, int error)
{
    struct err err = {0};
    t->broken = true;
    err_set_errno(&err, error, "trace '%s': cannot be written; it ends here, the run goes on", t->path);
    log_warn("trace", "%s", err.text);
    if (ftruncate(t->fd, t->written) == 0 && lseek(t->fd, t->written, SEEK_SET) >= 0)
        (void)util_write_all(t->fd, "\n]\n", 3);
}

static void flush(struct tracer *t)
{
    int r = t->n_out && !t->broken ? util_write_all(t->fd, t->out, t->n_out) : 0;
    t->written += (off_t)t->n_out;
    if (r < 0) {
        t->written -= (off_t)t->n_out;
        give_up(t, r);
    }
    t->n_out = 0;
    t->flushed_ns = util_now_ns();
}

/* Room for one more piece. */
static char *room(struct tracer *t)
{
    if (OUT_BYTES - t->n_out < TRACE_JSON_MAX)
        flush(t);
    return t->out + t->n_out;
}

static void write_events(struct tracer *t, struct source *s, enum trace_lane lane)
{
    struct trace_event e;
    for (uint32_t n = 0; n < EVENTS_MAX && trace_take(s->trace, lane, &e); n++) {
        if (!(s->lanes_named & 1u << lane))
            t->n_out += trace_json_thread(room(t), &s->process, lane);
        s->lanes_named |= 1u << lane;
        t->n_out += trace_json_event(room(t), &s->process, lane, &e);
        t->n_tokens += e.kind == TRACE_SAMPLE && s == t->sources[0];
    }
    uint32_t lost = trace_lost(s->trace, lane);
    if (lost)
        t->n_out += trace_json_lost(room(t), &s->process, lane, lost, util_now_ns());
    t->lost += lost;
}

static void write_rate(struct tracer *t, const struct source *own, uint64_t least_ns)
{
    uint64_t now = util_now_ns(), passed = now - t->rate_ns;
    if (passed < least_ns)
        return;
    t->n_out += trace_json_counter(room(t), &own->process, "tokens/s", t->n_tokens * UINT64_C(1000000000) / passed, now);
    t->n_tokens = 0;
    t->rate_ns = now;
}

static void source_free(struct source *s)
{
    if (s)
        trace_unmap(s->trace);
    free(s);
}

/* A source that had ended before has nothing left afterwards, and goes. */
static void collect(struct tracer *t)
{
    struct source *now[SOURCES_MAX];
    bool ended[SOURCES_MAX] = {false};
    pthread_mutex_lock(&t->mutex);
    bool last = t->stop;
    memcpy(now, t->sources, sizeof(now));
    for (int i = 0; i < SOURCES_MAX; i++)
        ended[i] = now[i] && now[i]->ended;
    pthread_mutex_unlock(&t->mutex);
    for (int i = 0; i < SOURCES_MAX; i++) {
        if (now[i] && !now[i]->named)
            t->n_out += trace_json_process(room(t), &now[i]->process);
        if (now[i])
            now[i]->named = true;
        for (int lane = 0; now[i] && !t->broken && lane < TRACE_LANES; lane++)
            write_events(t, now[i], (enum trace_lane)lane);
    }
    write_rate(t, now[0], last ? 1 : RATE_NS);
    if (util_now_ns() - t->flushed_ns > FLUSH_NS)
        flush(t);
    pthread_mutex_lock(&t->mutex);
    for (int i = 0; i < SOURCES_MAX; i++) {
        if (ended[i])
            t->sources[i] = NULL;
    }
    pthread_mutex_unlock(&t->mutex);
    for (int i = 0; i < SOURCES_MAX; i++) {
        if (ended[i])
            source_free(now[i]);
    }
}

/* False: the end. */
static bool sleep_a_while(struct tracer *t)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += PERIOD_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&t->mutex);
    while (!t->stop && pthread_cond_timedwait(&t->wake, &t->mutex, &until) == 0)
        ;
    bool go = !t->stop;
    pthread_mutex_unlock(&t->mutex);
    return go;
}

static void *tracer_main(void *arg)
{
    struct tracer *t = arg;
    pthread_setname_np(pthread_self(), "trace");
    while (sleep_a_while(t))
        collect(t);
    return NULL;
}

static int add_source(struct tracer *t, int fd, const struct trace_json_process *p, struct err *err)
{
    struct source *s = calloc(1, sizeof(*s));
    if (!s)
        return err_set(err, -ENOMEM, "trace: out of memory");
    s->process = *p;
    s->named = p->process == TRACE_JSON_COORDINATOR; /* by tracer_open */
    memset(s->process.fill, 0xff, sizeof(s->process.fill));
    int r = trace_map(fd, &s->trace, err), i = 0;
    pthread_mutex_lock(&t->mutex);
    while (i < SOURCES_MAX && t->sources[i])
        i++;
    if (r == 0 && i == SOURCES_MAX)
        r = err_set(err, -EAGAIN, "trace: stages end faster than their events are written");
    if (r == 0)
        t->sources[i] = s;
    pthread_mutex_unlock(&t->mutex);
    if (r < 0)
        source_free(s);
    return r;
}

static int start_thread(struct tracer *t, struct err *err)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&t->thread, NULL, tracer_main, t);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    t->thread_runs = r == 0;
    return r ? err_set_errno(err, -r, "cannot start the trace's thread") : 0;
}

static int open_file(struct tracer *t, const char *path, struct err *err)
{
    t->path = strdup(path);
    t->out = malloc(OUT_BYTES);
    if (!t->path || !t->out)
        return err_set(err, -ENOMEM, "trace: out of memory");
    t->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (t->fd < 0 && errno == EEXIST)
        return err_set(err, -EEXIST, "trace '%s' exists already; expected the name of a new file: remove it, or take another",
                       path);
    return t->fd < 0 ? err_set_errno(err, -errno, "trace '%s': cannot be made", path) : 0;
}

static void init_wake(struct tracer *t)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&t->wake, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&t->mutex, NULL);
}

int tracer_open(const char *path, struct tracer **ret, struct err *err)
{
    const struct trace_json_process self = {.pid = (int)getpid(), .process = TRACE_JSON_COORDINATOR};
    struct tracer *t = calloc(1, sizeof(*t));
    if (!t)
        return err_set(err, -ENOMEM, "trace: out of memory");
    t->fd = -1;
    init_wake(t);
    int r = open_file(t, path, err);
    auto_fd fd = r < 0 ? r : trace_make(err);
    if (r == 0)
        r = fd < 0 ? fd : trace_map(fd, &t->own, err);
    if (r == 0)
        r = add_source(t, fd, &self, err);
    if (r == 0) {
        t->n_out = trace_json_process(t->out, &self);
        t->out[0] = '['; /* in place of the comma after what was before */
        t->rate_ns = util_now_ns();
        flush(t);
        r = t->broken ? err_set(err, -EIO, "trace '%s': cannot be written", path) : start_thread(t, err);
    }
    if (r < 0) {
        tracer_close(t);
        return r;
    }
    *ret = t;
    return 0;
}

static void finish(struct tracer *t)
{
    pthread_mutex_lock(&t->mutex);
    t->stop = true;
    pthread_cond_signal(&t->wake);
    pthread_mutex_unlock(&t->mutex);
    pthread_join(t->thread, NULL);
    collect(t);
    flush(t);
    if (!t->broken && util_write_all(t->fd, "\n]\n", 3) < 0)
        give_up(t, -errno);
    if (t->lost)
        log_warn("trace", "trace '%s' lacks %" PRIu64 " events, which came faster than they were written; it says where", t->path,
                 t->lost);
}

void tracer_close(struct tracer *t)
{
    if (!t)
        return;
    if (t->thread_runs)
        finish(t);
    for (int i = 0; i < SOURCES_MAX; i++)
        source_free(t->sources[i]);
    trace_unmap(t->own);
    if (t->fd >= 0 && close(t->fd) < 0 && !t->broken)
        log_warn("trace", "trace '%s': not all of it may be on the disk: %s", t->path, strerror(errno));
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->mutex);
    free(t->out);
    free(t->path);
    free(t);
}

struct trace *tracer_own(struct tracer *t)
{
    return t ? t->own : NULL;
}

int tracer_stage(struct tracer *t, enum msg_role role, int pid, uint32_t restarts, struct err *err)
{
    const struct trace_json_process p = {.pid = pid, .process = role, .restarts = restarts};
    auto_fd fd = trace_make(err);
    int r = fd < 0 ? fd : add_source(t, fd, &p, err);
    return r < 0 ? r : take_fd(&fd);
}

void tracer_stage_ended(struct tracer *t, enum msg_role role)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->mutex);
    for (int i = 1; i < SOURCES_MAX; i++) {
        if (t->sources[i] && t->sources[i]->process.process == (uint32_t)role)
            t->sources[i]->ended = true;
    }
    pthread_mutex_unlock(&t->mutex);
}
