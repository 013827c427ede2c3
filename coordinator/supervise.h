/* SPDX-License-Identifier: MIT
 * Starts the three stages, or waits for those that others start, performs the handshake with each, hands segments from workers to
 * the loader and back, notices when one ends or hangs, and starts it again under a new epoch. Owns bells, rings and the processes.
 * Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_SUPERVISE_H
#define TANDEM_COORDINATOR_SUPERVISE_H

#include <stdbool.h>
#include <uv.h>

#include "coordinator/plan.h"
#include "proto/msg.h"

struct bell;
struct cgroup;
struct err;
struct ring;
struct supervise;
struct tracer;

struct supervise_recovery {
    enum msg_role role; /* the stage that ended first; the numbers are meaningless at the first start */
    bool first;         /* not a recovery: the pipeline's first start */
    bool kv_lost;       /* npu_worker is a new one */
    bool backend_changed;
    /* How long it took to notice (0: at once), until the last stage was started and configured again, and until all were ready. */
    uint64_t detect_ns, restart_ns, remap_ns;
};

struct supervise_stage_stats {
    uint32_t restarts;
    char reason[256]; /* of the last one */
};

struct supervise_options {
    uv_loop_t *loop;
    const struct config *config; /* borrowed until close */
    struct plan *plan;           /* likewise; `fallback` may change it */
    struct cgroup *cgroup;       /* likewise; may be NULL: caps are not the kernel's */
    const char *stage_dir;       /* NULL: see proto/place.h */
    struct tracer *tracer;       /* of what happens when; borrowed likewise; NULL: nothing is traced */
    const char *stage_socket;    /* where stages that others start connect; borrowed likewise */
    /* Every stage runs, for the first time or again: rings of the present epoch may be used. */
    void (*ready)(void *ctx, const struct supervise_recovery *r);
    /* A stage ended and is to be started again: nobody may use the rings from now on. `ready` follows, or `failed`. Others that end
     * before that are not told. */
    void (*lost)(void *ctx, enum msg_role role);
    /* How far requests got: a number that rises. */
    uint64_t (*progress)(void *ctx);
    /* Chunks that are on their way, and how many came back since `ready`. */
    uint32_t (*in_flight)(void *ctx, uint32_t *ret_done);
    /* A stage reached its limit of restarts. fallback: plan it for its next backend; false: there is none, or it does not fit.
     * give_up: end the requests that may be the cause; false: there are none. limit: its number and key, in words. Optional. */
    bool (*fallback)(void *ctx, enum msg_role role, const struct err *why);
    bool (*give_up)(void *ctx, const char *limit, const struct err *why);
    void (*stats)(void *ctx, enum msg_role role, const struct msg_stats *s);
    void (*collecting)(void *ctx, enum msg_role role);
    /* At most once; nothing else is called afterwards. A stage ended and is not started again. */
    void (*failed)(void *ctx, const struct err *err);
    void *ctx;
};

/* Starts everything; the rest happens in the loop. */
int supervise_open(const struct supervise_options *o, struct supervise **ret, struct err *err);
/* Our ends: producer of the token ring, consumer of the gpu's ring; between `ready` and `lost`. Our bell: until supervise_close. */
struct ring *supervise_token_ring(struct supervise *s);
struct ring *supervise_output_ring(struct supervise *s);
struct bell *supervise_bell(struct supervise *s);
uint32_t supervise_epoch(const struct supervise *s);
int supervise_pid(const struct supervise *s, enum msg_role role);             /* 0 when not running */
bool supervise_spawned(const struct supervise *s, enum msg_role role);        /* false: others start it, and cap it */
const char *supervise_backend(const struct supervise *s, enum msg_role role); /* "" until ready */
/* Whether its data thread works on a chunk, and at which layer. */
bool supervise_working(const struct supervise *s, enum msg_role role, uint32_t *ret_layer);
const struct supervise_stage_stats *supervise_stage_stats(const struct supervise *s, enum msg_role role);
/* Borrows fd. `collecting` tells when the worker adds to it. */
int supervise_collect(struct supervise *s, enum msg_role role, int fd, uint64_t bytes, struct err *err);
/* From now on the death of a stage is the end: what it held beside the KV cache cannot be made again. */
void supervise_no_restarts(struct supervise *s);
/* SIGKILL to a stage; its end is told with this reason. */
void supervise_kill(struct supervise *s, enum msg_role role, const struct err *why);
/* Asks every stage that is there: a bit per role, or a negative errno. */
int supervise_request_stats(struct supervise *s, uint64_t serial, struct err *err);
#define SUPERVISE_RINGS 5
/* Of a ring between any two: its name, how many slots are full, of how many. */
int supervise_look(const struct supervise *s, int ring, const char **ret_name, uint32_t *ret_fill, uint32_t *ret_slots,
                   struct err *err);
/* Ask all stages to end; SIGKILL after a grace period. Then run the loop until supervise_stopped. */
void supervise_stop(struct supervise *s);
bool supervise_stopped(const struct supervise *s); /* no process and no handle is left */
void supervise_close(struct supervise *s);         /* after supervise_stopped; NULL is fine */

#endif
