/* SPDX-License-Identifier: MIT
 * What the files of the supervisor share: supervise.c (life, public interface), handshake.c (messages), recovery.c (a stage ended),
 * liveness.c (a stage hangs). Nobody else includes it. Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_SUPERVISE_IMPL_H
#define TANDEM_COORDINATOR_SUPERVISE_IMPL_H

#include <stdbool.h>
#include <uv.h>

#include "coordinator/cgroup.h"
#include "coordinator/restart.h"
#include "coordinator/supervise.h"
#include "proto/err.h"

struct child;
struct held_segment;
struct rings;
struct segments;
struct slots;
struct status;

/* One stage. Its states in order: down (no process, perhaps waiting for its time or for others to start it), started, configured,
 * attached (it has the rings of this epoch), started its data thread, ready. A pause takes a configured one back to configured. */
struct stage {
    struct supervise *owner;
    enum msg_role role;
    struct child *child;
    bool configured, attached, started, ready;
    bool pausing; /* PAUSED of this epoch is to come */
    bool lived;   /* it was ready once */
    int pid;      /* of the process that runs, or ran last */
    uint32_t n_segments, n_filled;
    bool segments_known;
    char backend[64];
    struct status *page;
    uint64_t pinged_ns;          /* the oldest ping after which nothing was heard; 0: none */
    uint64_t moved_ns;           /* when it was configured, or announced or was given a segment last */
    uint64_t asked_ns;           /* its last PAUSE or START, or the start of the process */
    struct cgroup_counts counts; /* of kills and limits, when it was started */
    uint64_t silent_ns;          /* it hung: how long already when that was noticed */
    uint64_t owes_ns;            /* since when it has taken more chunks than it passed on; 0: it has not */
    uint32_t bad_input;          /* what it said of its last error: 1 + the number of an input that makes no sense; 0: another */
    uint32_t bad_output;         /* likewise: of an output of which its reader says what cannot be */
    uint64_t idle_ns;            /* since when it waits for what is there; 0: it does not */
    uint32_t taken, given;       /* by its books when they were looked at last */
    uv_timer_t delay;            /* until it is started again, or missed */
    bool delay_open;
    struct restart restart;
    struct supervise_stage_stats stats;
};

struct supervise {
    struct supervise_options o;
    struct stage stages[MSG_ROLES];
    uint32_t epoch;
    struct rings *rings;
    struct segments *segments;
    struct slots *slots;
    struct stage_socket *socket; /* NULL: we start all stages */
    uint32_t n_stale_fills;      /* answers to come from the loader about segments that are gone */
    bool recovering;             /* not all stages are ready */
    bool was_ready;              /* once they were */
    bool no_restarts;
    struct supervise_recovery recovery;
    uint64_t lost_ns, configured_ns;
    uint32_t random;
    uv_timer_t grace, watch;
    bool grace_open, watch_open, stopping, failed;
    uint64_t watched_ns, resumed_ns, ping_serial;
    uint64_t lost_since_ns; /* chunks are on their way, and nowhere; 0: they are not */
    uint64_t filling_ns;    /* since when the loader owes weights and has filled nothing; 0: it owes none, or did just now */
};

/* supervise.c */
void supervise_fail(struct supervise *s, const struct err *err);
int supervise_start_stage(struct stage *st, struct err *err);

/* handshake.c: a message of a stage; negative ends the stage. */
int handshake_message(struct stage *st, const struct msg *m, int *fds, struct err *err);
/* Rings of this epoch, once they are there, and START when nothing is missing. */
int handshake_attach(struct stage *st, struct err *err);

bool handshake_is_sealed(const struct held_segment *g);
int handshake_filled(struct supervise *s, struct held_segment *g, struct err *err); /* it is, and its worker may have it */

/* recovery.c */
void recovery_lost(struct stage *st, const struct err *why, int signal);
void recovery_step(struct supervise *s);  /* a stage has let go of its rings, or is gone */
void recovery_ready(struct supervise *s); /* a stage became ready */

/* liveness.c */
int liveness_open(struct supervise *s, struct err *err);
void liveness_look(struct supervise *s, uint64_t now); /* what its timer does */

#endif
