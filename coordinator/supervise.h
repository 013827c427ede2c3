/* SPDX-License-Identifier: MIT
 * Starts the three stages, performs the handshake with each, hands segments from workers to the loader and back, and notices
 * when one ends. Owns bells, rings and the processes. Thread: the loop's. */
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

struct supervise_options {
    uv_loop_t *loop;
    const struct config *config; /* borrowed until close */
    const struct plan *plan;     /* likewise */
    struct cgroup *cgroup;       /* likewise; may be NULL: caps are not the kernel's */
    const char *stage_dir;       /* NULL: beside this program */
    /* Every stage runs. */
    void (*ready)(void *ctx);
    void (*stats)(void *ctx, enum msg_role role, const struct msg_stats *s);
    void (*collecting)(void *ctx, enum msg_role role);
    /* At most once; nothing else is called afterwards. A stage ended, or broke the protocol, or could not do its work. */
    void (*failed)(void *ctx, const struct err *err);
    void *ctx;
};

/* Starts everything; the rest happens in the loop. */
int supervise_open(const struct supervise_options *o, struct supervise **ret, struct err *err);
/* Our ends: producer of the token ring, consumer of the gpu's ring, our bell. Valid until supervise_close. */
struct ring *supervise_token_ring(struct supervise *s);
struct ring *supervise_output_ring(struct supervise *s);
struct bell *supervise_bell(struct supervise *s);
uint32_t supervise_epoch(const struct supervise *s);
int supervise_pid(const struct supervise *s, enum msg_role role); /* 0 when not running */
/* Path of a stage's program; stage_dir NULL: beside this program. */
int supervise_stage_path(const char *stage_dir, const char *name, char *buf, size_t size, struct err *err);
const char *supervise_backend(const struct supervise *s, enum msg_role role); /* "" until ready */
/* Borrows fd. `collecting` tells when the worker adds to it. */
int supervise_collect(struct supervise *s, enum msg_role role, int fd, uint64_t bytes, struct err *err);
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
