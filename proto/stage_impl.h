/* SPDX-License-Identifier: MIT
 * What the files of the stage skeleton share: stage.c (control socket, handshake, life), stage_data.c (data thread),
 * stage_weights.c (segments of a worker), stage_fill.c (segments that the loader fills). Nobody else includes it.
 * Fields belong to the main thread unless they are atomic or said to be the data thread's. */
#ifndef TANDEM_PROTO_STAGE_IMPL_H
#define TANDEM_PROTO_STAGE_IMPL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <uv.h>

#include "proto/budget.h"
#include "proto/chunk.h"
#include "proto/err.h"
#include "proto/sandbox.h"
#include "proto/stage.h"
#include "proto/trace.h"

struct bell;
struct conn;
struct faults;
struct fill_job;
struct held;
struct ring;
struct segment;
struct status;
struct stream;

#define STAGE_RINGS_MAX 8
#define STAGE_SEGMENT_KINDS 3 /* as messages allow */
#define STAGE_WORK_KINDS 24   /* of chunks, by what they cost */

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
    uv_async_t report;   /* data thread: look at `drained`, `parked` and `broken` */
    uv_timer_t deadline; /* of closing */
    uv_timer_t again;    /* what was wanted in a slot and has not come is asked for again */
    struct budget budget;
    struct msg_configure config;
    struct sandbox sandbox;
    struct faults *faults; /* NULL: none */
    int control_fd;
    bool configured, finished;
    int status;
    uint32_t pausing; /* epoch to come, once the data thread is parked; 0: none */
    struct bell *bell;
    struct status *page;
    struct trace *trace; /* NULL: off */
    struct link inputs[STAGE_RINGS_MAX], outputs[STAGE_RINGS_MAX];
    struct segment *segments, **segments_end;       /* in the order in which they are wanted */
    uint32_t n_segments, n_filled, n_coming, lease; /* n_coming: made, and not yet with the stage */
    bool all_announced;
    struct held *held;               /* segments of a predecessor that are not taken yet */
    int held_slots[STAGE_SLOTS_MAX]; /* likewise; -1: none */
    struct stream *stream;           /* NULL: nothing is streamed */
    struct fill_job *jobs, **jobs_end;
    uint32_t n_filling;                                          /* jobs that worker threads have */
    uint64_t slots_filled[STAGE_SEGMENT_KINDS][STAGE_SLOTS_MAX]; /* serial of the last request for each that was done; 0: none */
    void *collected;                                             /* mapping of COLLECT */
    uint64_t collected_bytes;

    pthread_t thread;
    bool running; /* there is a data thread */
    /* hold: not 0: it shall keep away from rings, and says so by putting the same number into parked. */
    uint32_t n_holds;
    _Atomic uint32_t hold, parked;
    _Atomic bool stop, done, draining, drained, broken;
    uint32_t bad_input;  /* likewise: of an error in what its writer put into a ring, 1 + the number of that input */
    uint32_t bad_output; /* likewise: in what its reader says of a ring, 1 + the number of that output */
    struct err data_err; /* the data thread's until `broken` is set, then the main thread's */
    size_t misfit;       /* bytes of a chunk that its output slot did not take */
    struct chunk_limits limits;
    struct chunk chunk;
    bool pass_open; /* of a pass that begins, more is to come from the last input; the data thread's */
    void *out_slot[STAGE_RINGS_MAX];
    uint64_t process_start_ns, process_blocked_ns;
    uint64_t usual_ns[STAGE_WORK_KINDS]; /* running means; the data thread's */
    _Atomic uint64_t chunks, tokens, busy_ns, idle_ns, blocked_ns;
};

/* stage.c. What stage_run does, without what concerns the process. open: NULL: out of memory; takes fd. Then the loop is run until
 * `finished`. stop: the threads, the loop and its handles; gives up, and the process with it, when they do not end in time. */
struct stage_io *stage_open(const struct stage_ops *ops, int fd, const char *token);
void stage_stop(struct stage_io *io);
void stage_free(struct stage_io *io);
/* The stage cannot go on; tells the coordinator and ends with status 1. */
void stage_fail(struct stage_io *io, const struct err *err);

/* stage_weights.c */
int stage_weights_held(struct stage_io *io, const struct msg_segment_held *m, int *fd, struct err *err);
int stage_weights_make(struct stage_io *io, struct err *err);
int stage_weights_filled(struct stage_io *io, const struct msg_segment_filled *m, struct err *err);
void stage_weights_close(struct stage_io *io);

/* stage_stream.c. Main thread: */
int stage_stream_held(struct stage_io *io, const struct msg_slot_held *m, int *fd, struct err *err);
int stage_stream_make(struct stage_io *io, struct err *err); /* slots, and segment() for the layers */
void stage_stream_start(struct stage_io *io);                /* no data thread runs: slots shall hold the first layers */
int stage_stream_ask(struct stage_io *io, struct err *err);  /* for what the data thread wants */
void stage_stream_again(uv_timer_t *timer);                  /* io->again: for what has not come */
int stage_stream_filled(struct stage_io *io, const struct msg_slot_filled *m, struct err *err);
void stage_stream_stats(struct stage_io *io, struct msg_stats *ret);
void stage_stream_close(struct stage_io *io);
/* Data thread. enter: until the layer is there; 0, -ECANCELED (the stage stops) or what streamed() said. leave: after the chunk. */
int stage_stream_enter(struct stage_io *io, uint32_t layer, struct err *err);
void stage_stream_leave(struct stage_io *io, bool last_of_pass);

/* stage_fill.c */
struct stage_fill {
    uint32_t kind, layer, slot; /* slot: STAGE_NO_SLOT: a segment, sealed when it is filled */
    uint64_t bytes, serial;
};
int stage_fill_add(struct stage_io *io, const struct stage_fill *what, int *fd, struct err *err);
void stage_fill_close(struct stage_io *io);

/* stage_data.c: the thread. start: also lets a parked one go on. park: `report` tells when it keeps away from rings. stop gives up,
 * and the process with it, when a computation does not come back in time. */
int stage_data_start(struct stage_io *io, struct err *err);
void stage_data_park(struct stage_io *io);
bool stage_data_runs(struct stage_io *io); /* it may use the rings */
void stage_data_stop(struct stage_io *io);

#endif
