/* SPDX-License-Identifier: MIT
 * What the pipeline is doing, in one struct: what the reports, JSON, `stats`, `top` and the control socket show. Asking costs a
 * message to each stage and a few small files of /proc and of the cgroups; nothing is sampled while nobody asks.
 * Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_MONITOR_H
#define TANDEM_COORDINATOR_MONITOR_H

#include <uv.h>

#include "coordinator/engine.h"
#include "coordinator/schedule.h"
#include "coordinator/supervise.h"

struct monitor;

enum monitor_state { MONITOR_STARTING, MONITOR_RUNNING, MONITOR_RECOVERING, MONITOR_FAILED, MONITOR_STATES };
const char *monitor_state_name(enum monitor_state s); /* "starting", "running", "recovering", "failed" */

struct monitor_ring {
    char name[16];
    uint32_t fill, slots;
};

struct monitor_snapshot {
    enum monitor_state state;
    uint64_t uptime_ms; /* of the coordinator's pipeline */
    uint32_t context;
    struct schedule_counts counts;
    uint64_t kv_pages, kv_pages_used; /* npu_worker's KV cache */
    struct monitor_ring rings[SUPERVISE_RINGS];
    struct engine_process_stats process[CONFIG_PROCESSES];
};

struct monitor_options { /* all borrowed until close */
    uv_loop_t *loop;
    const struct plan *plan;
    struct supervise *supervise;
    const struct schedule *schedule;
    const struct cgroup *cgroup; /* may be NULL: then */
    const struct watch *watch;   /* looks at what processes hold; NULL likewise */
    uint64_t outside;            /* bytes that the coordinator took before it came into its group, which counts them not */
};

/* Who waits for a snapshot; the caller's storage until `done` was called or the wait was cancelled. */
struct monitor_wait {
    bool pss; /* with the proportional share of each process, which costs milliseconds */
    void (*done)(void *ctx, const struct monitor_snapshot *s); /* s: borrowed for the call; may ask again */
    void *ctx;
    struct monitor_wait *next;
};

#define MONITOR_DEADLINE_MS 2000 /* a stage that has not answered by then is shown as it last was */

/* Bytes that a process holds against its cap: its cgroup's, or else private pages and the segments that it made. */
uint64_t monitor_used(const struct monitor_snapshot *s, enum config_process p);

/* Bytes of the pool that are in use; how far what is free is from being one part: 0 to 1. */
uint64_t monitor_pool_used(const struct engine_pool *p);
double monitor_pool_fragmentation(const struct engine_pool *p);

int monitor_open(const struct monitor_options *o, struct monitor **ret, struct err *err);
void monitor_close(struct monitor *m); /* forgets who waits; runs the loop until its timer is closed; NULL is fine */
void monitor_set_state(struct monitor *m, enum monitor_state state);
/* An answer to supervise_request_stats. */
/* A stage has ended: its answer is not waited for. */
void monitor_lost(struct monitor *m, enum msg_role role);
void monitor_stats(struct monitor *m, enum msg_role role, const struct msg_stats *s);
/* `done` comes later, from the loop, once. Those who ask while others wait get the same snapshot. */
void monitor_ask(struct monitor *m, struct monitor_wait *w);
void monitor_cancel(struct monitor *m, struct monitor_wait *w); /* one that does not wait is fine */

#endif
