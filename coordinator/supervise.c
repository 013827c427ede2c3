/* SPDX-License-Identifier: MIT
 * Owns the three stage processes, their control connections, the bells, the rings and a duplicate of every segment's fd.
 * Called by engine.c on the loop's thread; events arrive as libuv callbacks. It never touches weights or activations.
 *
 * Life of a stage: spawned -> HELLO -> (all three said hello) CONFIGURE + ATTACH_RING -> SEGMENT_NEW* + SEGMENT_END ->
 * SEGMENT_FILLED* -> START -> READY. The loader is configured first, because it answers SEGMENT_FILL for the others.
 * The first thing that goes wrong is reported once and everything is stopped by the owner. */
#include "coordinator/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "coordinator/cgroup.h"
#include "coordinator/segments.h"
#include "coordinator/slots.h"
#include "model/hparams.h"
#include "model/segment.h"
#include "proto/conn.h"
#include "proto/err.h"
#include "proto/fault.h"
#include "proto/log.h"
#include "proto/ring.h"
#include "proto/util.h"

#define GRACE_MS 2000

enum ring_name { RING_TOKENS, RING_X0, RING_H, RING_X, RING_OUTPUT, RINGS };
enum { BELL_COORDINATOR = MSG_ROLES, BELLS };

/* Who produces and consumes a ring, and the index of the ring among that stage's outputs and inputs (proto/stage.h). */
static const struct {
    const char *name;
    int producer, output_index, consumer, input_index;
} ring_table[RINGS] = {
    [RING_TOKENS] = {"tandem-tokens", BELL_COORDINATOR, 0, MSG_ROLE_LOADER, 0},
    [RING_X0] = {"tandem-x0", MSG_ROLE_LOADER, 0, MSG_ROLE_NPU, 1},
    [RING_H] = {"tandem-h", MSG_ROLE_NPU, 0, MSG_ROLE_GPU, 0},
    [RING_X] = {"tandem-x", MSG_ROLE_GPU, 0, MSG_ROLE_NPU, 0},
    [RING_OUTPUT] = {"tandem-output", MSG_ROLE_GPU, 1, BELL_COORDINATOR, 0},
};

struct stage {
    struct supervise *owner;
    enum msg_role role;
    uv_process_t process;
    bool handle_open, running, hello, started, ready;
    struct conn *conn;
    char backend[64];
    struct err error; /* what the stage said before it ended */
    uint32_t n_segments, n_filled;
    bool segments_known;
};

struct supervise {
    struct supervise_options o;
    struct stage stages[MSG_ROLES];
    uint32_t epoch;
    int bell_fds[BELLS], ring_fds[RINGS];
    struct bell *bell, *peers[2]; /* ours; those of the loader and of gpu_worker */
    struct ring *tokens, *output;
    struct segments *segments;
    struct slots *slots;
    uv_timer_t grace;
    bool grace_open, stopping, failed;
};

static void fail(struct supervise *s, const struct err *err)
{
    if (s->failed || s->stopping)
        return;
    s->failed = true;
    s->o.failed(s->o.ctx, err);
}

static int send_to(struct stage *st, const struct msg *m, const int *fds, int n_fds, struct err *err)
{
    if (!st->conn)
        return 0; /* it ends: on_stage_exit tells how */
    int r = conn_send(st->conn, m, fds, n_fds, err);
    return r < 0 ? err_wrap(err, r, "%s", msg_role_name(st->role)) : 0;
}

static enum config_process process_of(enum msg_role role)
{
    static const enum config_process process[] = {
        [MSG_ROLE_LOADER] = CONFIG_LOADER, [MSG_ROLE_NPU] = CONFIG_NPU, [MSG_ROLE_GPU] = CONFIG_GPU};
    return process[role];
}

static int send_configure(struct stage *st, struct err *err)
{
    const struct supervise *s = st->owner;
    const struct plan *p = s->o.plan;
    const struct config *c = s->o.config;
    struct msg m = {.type = MSG_TYPE_configure};
    struct msg_configure *q = &m.configure;
    enum config_process process = process_of(st->role);

    hparams_to_msg(&p->hparams, q);
    q->budget = p->process[process].cap - p->process[process].fixed;
    q->epoch = s->epoch;
    q->context = p->context;
    q->kv_pages = p->kv_pages;
    q->pool = st->role == MSG_ROLE_NPU ? p->npu_pool : 0;
    q->sequences = p->sequences;
    q->chunk_tokens = p->chunk_tokens;
    q->ring_slots = p->ring_slots;
    q->kv_type = (uint32_t)p->kv_type;
    q->logits_rows = p->logits_rows;
    q->threads = st->role == MSG_ROLE_NPU ? p->npu_threads : st->role == MSG_ROLE_GPU ? p->gpu_threads : 1;
    if (st->role != MSG_ROLE_LOADER) {
        q->streamed = p->residency[process].n_streamed;
        q->stream_slots = p->residency[process].n_slots;
    }
    q->sandbox = c->sandbox;
    q->pin = p->pin_threads && st->role != MSG_ROLE_LOADER;
    const char *gpu = p->gpu.vulkan ? c->gpu.backend : "cpu";
    const char *npu = p->npu.xrt ? c->npu.backend : "cpu";
    const char *backend = st->role == MSG_ROLE_NPU ? npu : st->role == MSG_ROLE_GPU ? gpu : "cpu";
    snprintf(q->backend, sizeof(q->backend), "%s", backend);
    if (st->role == MSG_ROLE_NPU && p->npu.xrt) {
        memcpy(q->manifest, c->xrt.manifest, sizeof(q->manifest));
        q->device_index = c->xrt.index;
        q->device_many = c->xrt.many;
        q->device_timeout_ms = c->xrt.timeout_ms;
        q->device_resident = p->npu_resident;
    }
    if (st->role == MSG_ROLE_GPU) {
        memcpy(q->device, c->device.name, sizeof(q->device));
        memcpy(q->device_without, c->device.without, sizeof(q->device_without));
        q->device_flags = (c->device.allow_cpu ? 1u : 0) | (c->device.validate ? 2u : 0) | (c->device.profile ? 4u : 0);
        q->device_subgroup = c->device.subgroup;
        q->device_many = c->device.many;
        q->device_max_buffer = c->device.max_buffer;
        q->device_memory = c->gpu.memory;
    }
    const char *variant = util_env(UTIL_ENV_CPU);
    snprintf(q->variant, sizeof(q->variant), "%s", variant ? variant : "auto");
    if (st->role == MSG_ROLE_LOADER) {
        if (strlen(c->model) >= sizeof(q->model))
            return err_set(err, -ENAMETOOLONG, "model path has %zu bytes; expected fewer than %zu", strlen(c->model),
                           sizeof(q->model));
        memcpy(q->model, c->model, strlen(c->model) + 1);
        q->checksums = c->checksums;
    }
    int r = fault_list(c->faults, c->n_faults, msg_role_name(st->role), true, q->faults, err);
    if (r < 0)
        return r;
    memcpy(q->types, p->types, p->n_types);
    q->types_len = p->n_types;
    return send_to(st, &m, &s->bell_fds[st->role], 1, err);
}

static int send_rings(struct stage *st, struct err *err)
{
    const struct supervise *s = st->owner;
    for (int i = 0; i < RINGS; i++) {
        bool produces = ring_table[i].producer == (int)st->role, consumes = ring_table[i].consumer == (int)st->role;
        if (!produces && !consumes)
            continue;
        struct msg m = {.type = MSG_TYPE_attach_ring};
        m.attach_ring.direction = produces;
        m.attach_ring.index = (uint32_t)(produces ? ring_table[i].output_index : ring_table[i].input_index);
        m.attach_ring.epoch = s->epoch;
        int peer = produces ? ring_table[i].consumer : ring_table[i].producer;
        int r = send_to(st, &m, (int[]){s->ring_fds[i], s->bell_fds[peer]}, 2, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int start_if_complete(struct stage *st, struct err *err)
{
    if (st->started || !st->segments_known || st->n_filled < st->n_segments)
        return 0;
    st->started = true;
    return send_to(st, &(struct msg){.type = MSG_TYPE_start}, NULL, 0, err);
}

static int on_hello(struct stage *st, const struct msg_hello *h, struct err *err)
{
    struct supervise *s = st->owner;
    if (st->hello || h->role != (uint32_t)st->role)
        return err_set(err, -EPROTO, "%s: HELLO with role %u%s; expected role %u once", msg_role_name(st->role), h->role,
                       st->hello ? " again" : "", st->role);
    if (strcmp(h->build, TANDEM_VERSION) != 0)
        return err_set(err, -EPROTO, "%s is version '%s', the coordinator '%s'; install both from one build",
                       msg_role_name(st->role), h->build, TANDEM_VERSION);
    st->hello = true;
    for (int i = 0; i < MSG_ROLES; i++) {
        if (!s->stages[i].hello)
            return 0;
    }
    for (int i = 0; i < MSG_ROLES; i++) { /* MSG_ROLE_LOADER is the first */
        int r = send_configure(&s->stages[i], err);
        if (r >= 0)
            r = send_rings(&s->stages[i], err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int on_segment_new(struct stage *st, const struct msg_segment_new *m, int *fd, struct err *err)
{
    struct supervise *s = st->owner;
    struct held_segment h = {.role = st->role, .kind = m->kind, .layer = m->layer, .bytes = m->bytes, .fd = *fd};
    if (st->role == MSG_ROLE_LOADER || st->segments_known || !segments_add(s->segments, &h))
        return err_set(err, -EPROTO, "%s: unexpected SEGMENT_NEW (kind %u, layer %u)", msg_role_name(st->role), m->kind, m->layer);
    take_fd(fd);
    struct msg fill = {.type = MSG_TYPE_segment_fill, .segment_fill = {.kind = m->kind, .layer = m->layer, .bytes = m->bytes}};
    st->n_segments++;
    return send_to(&s->stages[MSG_ROLE_LOADER], &fill, &h.fd, 1, err);
}

static int on_segment_released(struct stage *st, const struct msg_segment_released *m, struct err *err)
{
    struct supervise *s = st->owner;
    struct held_segment *g = segments_find(s->segments, m->kind, m->layer);
    if (!g || g->role != st->role)
        return err_set(err, -EPROTO, "%s: SEGMENT_RELEASED for kind %u layer %u, which it does not hold", msg_role_name(st->role),
                       m->kind, m->layer);
    segments_remove(s->segments, g);
    return 0;
}

static int on_segment_filled(struct stage *st, const struct msg_segment_filled *m, struct err *err)
{
    struct supervise *s = st->owner;
    if (st->role != MSG_ROLE_LOADER)
        return err_set(err, -EPROTO, "%s: unexpected SEGMENT_FILLED", msg_role_name(st->role));
    struct held_segment *g = segments_find(s->segments, m->kind, m->layer);
    if (g) {
        struct stage *to = &s->stages[g->role];
        g->filled = true;
        to->n_filled++;
        int r = send_to(to, &(struct msg){.type = MSG_TYPE_segment_filled, .segment_filled = *m}, NULL, 0, err);
        return r < 0 ? r : start_if_complete(to, err);
    }
    return err_set(err, -EPROTO, "loader: SEGMENT_FILLED for kind %u layer %u, which nobody asked for", m->kind, m->layer);
}

static int on_slot_new(struct stage *st, const struct msg_slot_new *m, int *fd, struct err *err)
{
    struct supervise *s = st->owner;
    struct held_slot h = {.role = st->role, .kind = m->kind, .slot = m->slot, .bytes = m->bytes, .fd = *fd};
    if (st->role == MSG_ROLE_LOADER || st->segments_known || !slots_add(s->slots, &h))
        return err_set(err, -EPROTO, "%s: unexpected SLOT_NEW (kind %u, slot %u)", msg_role_name(st->role), m->kind, m->slot);
    take_fd(fd);
    return 0;
}

static int on_slot_want(struct stage *st, const struct msg_slot_want *m, struct err *err)
{
    struct supervise *s = st->owner;
    struct held_slot *h = slots_find(s->slots, m->kind, m->slot);
    if (!h || h->role != st->role || m->bytes > h->bytes)
        return err_set(err, -EPROTO, "%s: SLOT_WANT (kind %u, slot %u, layer %u) of a slot that it does not have",
                       msg_role_name(st->role), m->kind, m->slot, m->layer);
    h->layer = m->layer;
    h->bytes_wanted = m->bytes;
    h->worker_serial = m->serial;
    h->serial = slots_serial(s->slots);
    struct msg fill = {.type = MSG_TYPE_slot_fill,
                       .slot_fill = {.kind = m->kind, .slot = m->slot, .layer = m->layer, .bytes = m->bytes, .serial = h->serial}};
    return send_to(&s->stages[MSG_ROLE_LOADER], &fill, &h->fd, 1, err);
}

static int on_slot_filled(struct stage *st, const struct msg_slot_filled *m, struct err *err)
{
    struct supervise *s = st->owner;
    struct held_slot *h = st->role == MSG_ROLE_LOADER ? slots_find(s->slots, m->kind, m->slot) : NULL;
    if (!h)
        return err_set(err, -EPROTO, "%s: unexpected SLOT_FILLED (kind %u, slot %u)", msg_role_name(st->role), m->kind, m->slot);
    if (m->serial != h->serial)
        return 0; /* something else has been wanted there since */
    h->serial = 0;
    struct msg filled = {.type = MSG_TYPE_slot_filled, .slot_filled = *m};
    filled.slot_filled.serial = h->worker_serial;
    return send_to(&s->stages[h->role], &filled, NULL, 0, err);
}

static int on_ready(struct stage *st, const struct msg_ready *m, struct err *err)
{
    struct supervise *s = st->owner;
    if (!st->started || st->ready)
        return err_set(err, -EPROTO, "%s: unexpected READY", msg_role_name(st->role));
    st->ready = true;
    snprintf(st->backend, sizeof(st->backend), "%s", m->backend);
    log_info("supervise", "%s (pid %d) is ready: backend %s; sandbox %s", msg_role_name(st->role), st->process.pid, st->backend,
             m->sandbox);
    for (int i = 0; i < MSG_ROLES; i++) {
        if (!s->stages[i].ready)
            return 0;
    }
    s->o.ready(s->o.ctx);
    return 0;
}

static int handle(struct stage *st, const struct msg *m, int *fds, struct err *err)
{
    struct supervise *s = st->owner;
    switch (m->type) {
    case MSG_TYPE_hello:
        return on_hello(st, &m->hello, err);
    case MSG_TYPE_segment_new:
        return on_segment_new(st, &m->segment_new, &fds[0], err);
    case MSG_TYPE_segment_end:
        if (m->segment_end.count != st->n_segments)
            return err_set(err, -EPROTO, "%s: SEGMENT_END with count %u; %u were announced", msg_role_name(st->role),
                           m->segment_end.count, st->n_segments);
        st->segments_known = true;
        return start_if_complete(st, err);
    case MSG_TYPE_segment_released:
        return on_segment_released(st, &m->segment_released, err);
    case MSG_TYPE_segment_filled:
        return on_segment_filled(st, &m->segment_filled, err);
    case MSG_TYPE_slot_new:
        return on_slot_new(st, &m->slot_new, &fds[0], err);
    case MSG_TYPE_slot_want:
        return on_slot_want(st, &m->slot_want, err);
    case MSG_TYPE_slot_filled:
        return on_slot_filled(st, &m->slot_filled, err);
    case MSG_TYPE_ready:
        return on_ready(st, &m->ready, err);
    case MSG_TYPE_stats:
        if (s->o.stats)
            s->o.stats(s->o.ctx, st->role, &m->stats);
        return 0;
    case MSG_TYPE_error:
        err_set(&st->error, m->error.code < 0 ? m->error.code : -EIO, "%s (pid %d): %s", msg_role_name(st->role), st->process.pid,
                m->error.text);
        return err_set(err, st->error.code, "%s", st->error.text);
    case MSG_TYPE_collecting:
        if (s->o.collecting)
            s->o.collecting(s->o.ctx, st->role);
        return 0;
    case MSG_TYPE_drained:
        return 0;
    case MSG_NONE:
    case MSG_TYPE_configure:
    case MSG_TYPE_attach_ring:
    case MSG_TYPE_segment_fill:
    case MSG_TYPE_slot_fill:
    case MSG_TYPE_start:
    case MSG_TYPE_stats_request:
    case MSG_TYPE_collect:
    case MSG_TYPE_drain:
    case MSG_TYPE_shutdown:
    default:
        return err_set(err, -EPROTO, "%s: sent a %s message, which only the coordinator may send", msg_role_name(st->role),
                       msg_name(m->type));
    }
}

static void on_message(void *ctx, struct conn *c, const struct msg *m, int *fds, int n_fds)
{
    struct stage *st = ctx;
    struct err err = {0};
    (void)c;
    (void)n_fds;
    if (!st->owner->failed && handle(st, m, fds, &err) < 0)
        fail(st->owner, &err);
}

static void on_closed(void *ctx, struct conn *c, const struct err *err)
{
    struct stage *st = ctx;
    st->conn = NULL;
    conn_close(c);
    if (err->code == 0)
        return; /* it ends: on_stage_exit tells how */
    struct err e = *err;
    err_wrap(&e, e.code, "%s (pid %d)", msg_role_name(st->role), st->process.pid);
    fail(st->owner, &e);
}

static void on_process_closed(uv_handle_t *h)
{
    struct stage *st = h->data;
    st->handle_open = false;
}

static void on_stage_exit(uv_process_t *p, int64_t status, int term_signal)
{
    struct stage *st = p->data;
    struct err err = {0};
    st->running = false;
    uv_close((uv_handle_t *)p, on_process_closed);
    conn_read(st->conn);
    const struct supervise *s = st->owner;
    const char *name = msg_role_name(st->role);
    char cap[32];
    if (term_signal == SIGKILL && s->o.cgroup && cgroup_kills(s->o.cgroup, name))
        err_set(&err, -ECHILD, "%s (pid %d) was killed by the kernel: it needed more than its cap of %s; raise 'memory.%s'", name,
                p->pid, util_format_bytes(cap, sizeof(cap), s->o.plan->process[process_of(st->role)].cap), name);
    else if (term_signal == SIGSYS)
        err_set(&err, -ECHILD,
                "%s (pid %d) was ended by its seccomp filter (SIGSYS): it made a system call that it never needs, which "
                "the kernel's log names (dmesg); 'sandbox: off' runs without filters",
                name, p->pid);
    else if (term_signal)
        err_set(&err, -ECHILD, "%s (pid %d) was killed by signal %d (%s)", msg_role_name(st->role), p->pid, term_signal,
                strsignal(term_signal));
    else
        err_set(&err, -ECHILD, "%s (pid %d) ended with status %d", msg_role_name(st->role), p->pid, (int)status);
    fail(st->owner, st->error.code ? &st->error : &err);
}

int supervise_stage_path(const char *stage_dir, const char *name, char *buf, size_t size, struct err *err)
{
    char dir[PATH_MAX];
    if (!stage_dir) {
        ssize_t n = readlink("/proc/self/exe", dir, sizeof(dir) - 1);
        if (n < 0)
            return err_set_errno(err, -errno, "cannot find this program's folder");
        dir[n] = '\0';
        char *slash = strrchr(dir, '/');
        if (slash)
            *slash = '\0';
        stage_dir = dir;
    }
    if ((size_t)snprintf(buf, size, "%s/%s", stage_dir, name) >= size)
        return err_set(err, -ENAMETOOLONG, "path of '%s' is too long", name);
    return 0;
}

/* The worker itself keeps to gpu.memory; the driver takes some for commands and shaders. */
static uint64_t device_cap(uint64_t memory)
{
    return memory + memory / 10 + (UINT64_C(64) << 20);
}

static int spawn(struct supervise *s, enum msg_role role, struct err *err)
{
    struct stage *st = &s->stages[role];
    const char *name = msg_role_name(role);
    static const struct conn_handlers handlers = {.message = on_message, .closed = on_closed};
    char path[PATH_MAX];
    int pair[2], r = supervise_stage_path(s->o.stage_dir, name, path, sizeof(path), err);
    if (r < 0)
        return r;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return err_set_errno(err, -errno, "%s: socketpair", name);
    auto_fd ours = pair[0], theirs = pair[1];

    char *argv[] = {path, (char[]){"--stage-fd"}, (char[]){"3"}, NULL};
    uv_stdio_container_t stdio[] = {
        {.flags = UV_IGNORE},
        {.flags = UV_INHERIT_FD, .data.fd = 2},
        {.flags = UV_INHERIT_FD, .data.fd = 2},
        {.flags = UV_INHERIT_FD, .data.fd = theirs},
    };
    uv_process_options_t po = {.exit_cb = on_stage_exit, .file = path, .args = argv, .stdio_count = 4, .stdio = stdio};
    r = uv_spawn(s->o.loop, &st->process, &po);
    st->process.data = st;
    st->handle_open = true;
    if (r < 0) {
        uv_close((uv_handle_t *)&st->process, on_process_closed);
        return err_set(err, r, "cannot start '%s': %s%s", path, uv_strerror(r),
                       r == UV_ENOENT ? "; build or install it beside the coordinator" : "");
    }
    st->running = true;
    if (s->o.cgroup) {
        r = cgroup_add(s->o.cgroup, name, st->process.pid, s->o.plan->process[process_of(st->role)].cap, err);
        if (r < 0)
            return r;
        if (role == MSG_ROLE_GPU && s->o.plan->gpu.vulkan && s->o.config->gpu.memory)
            cgroup_cap_device(s->o.cgroup, name, device_cap(s->o.config->gpu.memory));
    }
    r = conn_open(s->o.loop, ours, name, &handlers, st, &st->conn, err);
    if (r == 0)
        take_fd(&ours);
    return r;
}

static int make_rings(struct supervise *s, struct err *err)
{
    const struct plan *p = s->o.plan;
    int r;
    for (int i = 0; i < BELLS; i++) {
        if ((s->bell_fds[i] = bell_make(err)) < 0)
            return s->bell_fds[i];
    }
    for (int i = 0; i < RINGS; i++) {
        size_t slot = i == RING_TOKENS ? p->token_slot_bytes : i == RING_OUTPUT ? p->out_slot_bytes : p->worker_slot_bytes;
        uint32_t n = i == RING_OUTPUT ? p->logits_slots : i == RING_TOKENS ? p->token_slots : p->ring_slots;
        if ((s->ring_fds[i] = ring_make(ring_table[i].name, n, slot, s->epoch, err)) < 0)
            return s->ring_fds[i];
    }
    if ((r = bell_map(s->bell_fds[BELL_COORDINATOR], &s->bell, err)) < 0 ||
        (r = bell_map(s->bell_fds[MSG_ROLE_LOADER], &s->peers[0], err)) < 0 ||
        (r = bell_map(s->bell_fds[MSG_ROLE_GPU], &s->peers[1], err)) < 0 ||
        (r = ring_attach(s->ring_fds[RING_TOKENS], RING_PRODUCER, s->epoch, s->bell, s->peers[0], &s->tokens, err)) < 0 ||
        (r = ring_attach(s->ring_fds[RING_OUTPUT], RING_CONSUMER, s->epoch, s->bell, s->peers[1], &s->output, err)) < 0)
        return r;
    return 0;
}

int supervise_open(const struct supervise_options *o, struct supervise **ret, struct err *err)
{
    struct supervise *s = calloc(1, sizeof(*s));
    if (!s)
        return err_set(err, -ENOMEM, "supervisor: out of memory");
    s->o = *o;
    s->epoch = 1;
    for (int i = 0; i < BELLS; i++)
        s->bell_fds[i] = -1;
    for (int i = 0; i < RINGS; i++)
        s->ring_fds[i] = -1;
    s->segments = segments_open();
    s->slots = slots_open();
    int r = s->segments && s->slots ? make_rings(s, err) : err_set(err, -ENOMEM, "supervisor: out of memory");
    *ret = s; /* also on failure: the owner stops and closes it */
    for (int i = 0; r == 0 && i < MSG_ROLES; i++) {
        s->stages[i].owner = s;
        s->stages[i].role = (enum msg_role)i;
        r = spawn(s, (enum msg_role)i, err);
    }
    return r;
}

struct ring *supervise_token_ring(struct supervise *s)
{
    return s->tokens;
}

struct ring *supervise_output_ring(struct supervise *s)
{
    return s->output;
}

struct bell *supervise_bell(struct supervise *s)
{
    return s->bell;
}

uint32_t supervise_epoch(const struct supervise *s)
{
    return s->epoch;
}

int supervise_pid(const struct supervise *s, enum msg_role role)
{
    return s->stages[role].running ? s->stages[role].process.pid : 0;
}

const char *supervise_backend(const struct supervise *s, enum msg_role role)
{
    return s->stages[role].backend;
}

int supervise_collect(struct supervise *s, enum msg_role role, int fd, uint64_t bytes, struct err *err)
{
    struct msg m = {.type = MSG_TYPE_collect, .collect = {.bytes = bytes}};
    return send_to(&s->stages[role], &m, &fd, 1, err);
}

void supervise_kill(struct supervise *s, enum msg_role role, const struct err *why)
{
    struct stage *st = &s->stages[role];
    if (!st->running)
        return;
    st->error = *why;
    uv_process_kill(&st->process, SIGKILL);
}

int supervise_request_stats(struct supervise *s, uint64_t serial, struct err *err)
{
    int asked = 0;
    for (int i = 0; i < MSG_ROLES; i++) {
        struct msg m = {.type = MSG_TYPE_stats_request, .stats_request = {.serial = serial}};
        int r = send_to(&s->stages[i], &m, NULL, 0, err);
        if (r < 0)
            return r;
        asked |= s->stages[i].conn ? 1 << i : 0;
    }
    return asked;
}

_Static_assert(RINGS == SUPERVISE_RINGS, "one number");
int supervise_look(const struct supervise *s, int ring, const char **ret_name, uint32_t *ret_fill, uint32_t *ret_slots,
                   struct err *err)
{
    *ret_name = ring_table[ring].name + strlen("tandem-");
    return ring_look(s->ring_fds[ring], ret_fill, ret_slots, err);
}

static void on_grace(uv_timer_t *t)
{
    struct supervise *s = t->data;
    for (int i = 0; i < MSG_ROLES; i++) {
        if (!s->stages[i].running)
            continue;
        log_warn("supervise", "%s (pid %d) did not end within %d ms; killing it", msg_role_name((enum msg_role)i),
                 s->stages[i].process.pid, GRACE_MS);
        uv_process_kill(&s->stages[i].process, SIGKILL);
    }
}

static void on_grace_closed(uv_handle_t *h)
{
    ((struct supervise *)h->data)->grace_open = false;
}

void supervise_stop(struct supervise *s)
{
    if (s->stopping)
        return;
    s->stopping = true;
    if (uv_timer_init(s->o.loop, &s->grace) == 0) {
        s->grace.data = s;
        s->grace_open = true;
        uv_timer_start(&s->grace, on_grace, GRACE_MS, 0);
    }
    for (int i = 0; i < MSG_ROLES; i++) {
        if (s->stages[i].running)
            send_to(&s->stages[i], &(struct msg){.type = MSG_TYPE_shutdown}, NULL, 0, NULL);
    }
}

bool supervise_stopped(const struct supervise *s)
{
    for (int i = 0; i < MSG_ROLES; i++) {
        if (s->stages[i].handle_open)
            return false;
    }
    return true;
}

void supervise_close(struct supervise *s)
{
    if (!s)
        return;
    for (int i = 0; i < MSG_ROLES; i++)
        conn_close(s->stages[i].conn);
    if (s->grace_open)
        uv_close((uv_handle_t *)&s->grace, on_grace_closed);
    while (s->grace_open)
        uv_run(s->o.loop, UV_RUN_ONCE);
    ring_detach(s->tokens);
    ring_detach(s->output);
    for (int i = 0; i < BELLS; i++)
        util_close_fd(&s->bell_fds[i]);
    for (int i = 0; i < RINGS; i++)
        util_close_fd(&s->ring_fds[i]);
    segments_close(s->segments);
    slots_close(s->slots);
    bell_unmap(s->bell);
    bell_unmap(s->peers[0]);
    bell_unmap(s->peers[1]);
    free(s);
}
