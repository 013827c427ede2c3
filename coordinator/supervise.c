/* SPDX-License-Identifier: MIT
 * Owns the three stages, the rings and a duplicate of every segment's fd. Called by engine.c on the loop's thread; events arrive as
 * libuv callbacks. It never touches weights or activations. What stages say is in handshake.c, what happens when one ends in
 * recovery.c, how a hang is noticed in liveness.c. */
#include "coordinator/supervise.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/cgroup.h"
#include "coordinator/child.h"
#include "coordinator/configure.h"
#include "coordinator/plan.h"
#include "coordinator/rings.h"
#include "coordinator/segments.h"
#include "coordinator/slots.h"
#include "coordinator/stage_socket.h"
#include "coordinator/supervise_impl.h"
#include "proto/log.h"
#include "proto/status.h"
#include "proto/util.h"

#define GRACE_MS 2000
#define MISSED_MS 1000 /* a stage that others start */

void supervise_fail(struct supervise *s, const struct err *err)
{
    if (s->failed || s->stopping)
        return;
    s->failed = true;
    s->o.failed(s->o.ctx, err);
}

static int on_message(void *ctx, const struct msg *m, int *fds, struct err *err)
{
    struct stage *st = ctx;
    return st->owner->failed ? 0 : handshake_message(st, m, fds, err);
}

static void on_ended(void *ctx, const struct err *why, int signal)
{
    recovery_lost(ctx, why, signal);
}

/* The worker itself keeps to gpu.memory; the driver takes some for commands and shaders. */
static uint64_t device_cap(uint64_t memory)
{
    return memory + memory / 10 + (UINT64_C(64) << 20);
}

static const char *group_name(enum msg_role role)
{
    static const char *const names[] = {[MSG_ROLE_LOADER] = "loader", [MSG_ROLE_NPU] = "npu", [MSG_ROLE_GPU] = "gpu"};
    return names[role];
}

static void on_missed(uv_timer_t *t)
{
    const struct stage *st = t->data;
    if (!child_running(st->child))
        log_warn("supervise", "waiting for %s to connect at '%s' ('%s.spawn' is false)", msg_role_name(st->role),
                 st->owner->o.stage_socket, group_name(st->role));
}

/* A stage that others start. */
static int on_hello(void *ctx, struct conn *conn, int pid, const struct msg *hello, struct err *err)
{
    struct supervise *s = ctx;
    struct stage *st = &s->stages[hello->hello.role];
    const char *name = msg_role_name(st->role);
    if (s->stopping || s->failed)
        return err_set(err, -ECANCELED, "this coordinator ends");
    if (!st->child || child_spawned(st->child))
        return err_set(err, -EPERM, "this coordinator starts its %s itself; '%s.spawn: false' is for others", name,
                       group_name(st->role));
    int before = st->pid;
    st->pid = pid;
    st->asked_ns = util_now_ns();
    st->pinged_ns = 0;
    int r = child_attach(st->child, conn, pid, hello, err);
    if (r < 0) {
        st->pid = before;
        return r;
    }
    uv_timer_stop(&st->delay);
    log_info("supervise", "%s (pid %d) has connected; its cap is for others to enforce", name, pid);
    return 0;
}

int supervise_start_stage(struct stage *st, struct err *err)
{
    const struct supervise *s = st->owner;
    const char *name = msg_role_name(st->role);
    cgroup_count(s->o.cgroup, NULL, name, &st->counts);
    int r = child_start(st->child, err);
    if (!child_spawned(st->child)) {
        log_info("supervise", "waiting for %s to connect at '%s'", name, s->o.stage_socket);
        return r < 0 ? r : uv_timer_start(&st->delay, on_missed, MISSED_MS, 0);
    }
    st->pid = child_pid(st->child);
    st->asked_ns = util_now_ns();
    st->pinged_ns = 0;
    if (r < 0 || !s->o.cgroup)
        return r;
    r = cgroup_add(s->o.cgroup, name, st->pid, s->o.plan->process[configure_process(st->role)].cap, err);
    if (r == 0 && st->role == MSG_ROLE_GPU && s->o.plan->gpu.vulkan && s->o.config->gpu.memory)
        cgroup_cap_device(s->o.cgroup, name, device_cap(s->o.config->gpu.memory));
    return r;
}

static int open_stage(struct supervise *s, enum msg_role role, struct err *err)
{
    static const struct child_handlers handlers = {.message = on_message, .ended = on_ended};
    struct stage *st = &s->stages[role];
    st->owner = s;
    st->role = role;
    bool spawn = s->o.config->spawn[configure_process(role)];
    int r = child_open(s->o.loop, role, s->o.stage_dir, spawn, &handlers, st, &st->child, err);
    if (r == 0 && uv_timer_init(s->o.loop, &st->delay) == 0) {
        st->delay.data = st;
        st->delay_open = true;
    }
    return r < 0 ? r : supervise_start_stage(st, err);
}

static bool awaits_any(const struct config *c)
{
    return !c->spawn[CONFIG_LOADER] || !c->spawn[CONFIG_NPU] || !c->spawn[CONFIG_GPU];
}

int supervise_open(const struct supervise_options *o, struct supervise **ret, struct err *err)
{
    struct supervise *s = calloc(1, sizeof(*s));
    if (!s)
        return err_set(err, -ENOMEM, "supervisor: out of memory");
    s->o = *o;
    s->epoch = 1;
    s->recovering = true;
    s->random = (uint32_t)util_now_ns();
    s->segments = segments_open();
    s->slots = slots_open();
    int r = s->segments && s->slots ? rings_open(o->plan, &s->rings, err) : err_set(err, -ENOMEM, "supervisor: out of memory");
    *ret = s; /* also on failure: the owner stops and closes it */
    if (r == 0)
        r = rings_make(s->rings, s->epoch, err);
    if (r == 0 && awaits_any(o->config))
        r = stage_socket_open(o->loop, o->stage_socket, on_hello, s, &s->socket, err);
    for (int i = 0; r == 0 && i < MSG_ROLES; i++) /* MSG_ROLE_LOADER is the first */
        r = open_stage(s, (enum msg_role)i, err);
    return r < 0 ? r : liveness_open(s, err);
}

struct ring *supervise_token_ring(struct supervise *s)
{
    return rings_tokens(s->rings);
}

struct ring *supervise_output_ring(struct supervise *s)
{
    return rings_output(s->rings);
}

struct bell *supervise_bell(struct supervise *s)
{
    return rings_bell(s->rings);
}

uint32_t supervise_epoch(const struct supervise *s)
{
    return s->epoch;
}

int supervise_pid(const struct supervise *s, enum msg_role role)
{
    const struct child *c = s->stages[role].child;
    return c ? child_pid(c) : 0;
}

bool supervise_spawned(const struct supervise *s, enum msg_role role)
{
    return s->o.config->spawn[configure_process(role)];
}

const char *supervise_backend(const struct supervise *s, enum msg_role role)
{
    return s->stages[role].backend;
}

bool supervise_working(const struct supervise *s, enum msg_role role, uint32_t *ret_layer)
{
    struct status_work w = {0};
    if (s->stages[role].page && s->stages[role].ready)
        status_read(s->stages[role].page, &w);
    *ret_layer = w.since_ns ? w.layer : 0;
    return w.since_ns != 0;
}

const struct supervise_stage_stats *supervise_stage_stats(const struct supervise *s, enum msg_role role)
{
    return &s->stages[role].stats;
}

int supervise_collect(struct supervise *s, enum msg_role role, int fd, uint64_t bytes, struct err *err)
{
    struct msg m = {.type = MSG_TYPE_collect, .collect = {.bytes = bytes}};
    return child_send(s->stages[role].child, &m, &fd, 1, err);
}

void supervise_no_restarts(struct supervise *s)
{
    s->no_restarts = true;
}

void supervise_kill(struct supervise *s, enum msg_role role, const struct err *why)
{
    child_kill(s->stages[role].child, why);
}

int supervise_request_stats(struct supervise *s, uint64_t serial, struct err *err)
{
    int asked = 0;
    for (int i = 0; i < MSG_ROLES; i++) {
        struct msg m = {.type = MSG_TYPE_stats_request, .stats_request = {.serial = serial}};
        if (!s->stages[i].configured)
            continue;
        int r = child_send(s->stages[i].child, &m, NULL, 0, err);
        if (r < 0)
            return r;
        asked |= child_connected(s->stages[i].child) ? 1 << i : 0;
    }
    return asked;
}

int supervise_look(const struct supervise *s, int ring, const char **ret_name, uint32_t *ret_fill, uint32_t *ret_slots,
                   struct err *err)
{
    return rings_look(s->rings, ring, ret_name, ret_fill, ret_slots, err);
}

static void on_grace(uv_timer_t *t)
{
    struct supervise *s = t->data;
    struct err why = {0};
    for (int i = 0; i < MSG_ROLES; i++) {
        const struct stage *st = &s->stages[i];
        if (supervise_pid(s, st->role) == 0)
            continue;
        err_set(&why, -ETIMEDOUT, "%s (pid %d) did not end within %d ms; killing it", msg_role_name(st->role), st->pid, GRACE_MS);
        log_warn("supervise", "%s", why.text);
        child_kill(st->child, &why);
    }
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
        struct stage *st = &s->stages[i];
        if (st->delay_open)
            uv_timer_stop(&st->delay);
        if (supervise_pid(s, (enum msg_role)i))
            child_send(st->child, &(struct msg){.type = MSG_TYPE_shutdown}, NULL, 0, NULL);
    }
}

bool supervise_stopped(const struct supervise *s)
{
    for (int i = 0; i < MSG_ROLES; i++) {
        if (s->stages[i].child && child_running(s->stages[i].child))
            return false;
    }
    return true;
}

static void on_timer_closed(uv_handle_t *h)
{
    (*(uint32_t *)h->data)--;
}

static void close_timer(uv_timer_t *t, bool open, uint32_t *n)
{
    if (!open)
        return;
    t->data = n;
    ++*n;
    uv_close((uv_handle_t *)t, on_timer_closed);
}

void supervise_close(struct supervise *s)
{
    uint32_t n_open = 0;
    if (!s)
        return;
    stage_socket_close(s->socket);
    close_timer(&s->grace, s->grace_open, &n_open);
    close_timer(&s->watch, s->watch_open, &n_open);
    for (int i = 0; i < MSG_ROLES; i++)
        close_timer(&s->stages[i].delay, s->stages[i].delay_open, &n_open);
    while (n_open)
        uv_run(s->o.loop, UV_RUN_ONCE);
    for (int i = 0; i < MSG_ROLES; i++) {
        child_close(s->stages[i].child);
        status_unmap(s->stages[i].page);
    }
    rings_close(s->rings);
    segments_close(s->segments);
    slots_close(s->slots);
    free(s);
}
