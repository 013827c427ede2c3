/* SPDX-License-Identifier: MIT
 * What the threads of a process did and when, as events of 32 bytes in shared memory: for each thread that records a lane, a ring
 * with one writer and one reader (the coordinator, which also makes the memfd, so that what a killed process recorded is there when
 * it is gone). A lane that is full drops what comes and counts it; nothing waits for the reader. Recording reads the clock and
 * stores: no allocation, lock or system call.
 * Memory: header | two cache lines for each lane (the writer's, the reader's) | events. The reader believes nothing: it copies an
 * event out and checks the copy; a lane with an impossible index is not read any more.
 * NULL is fine wherever a struct trace is taken: tracing is off, which costs one branch.
 * Threads: one writer for each lane, one reader for all. */
#ifndef TANDEM_PROTO_TRACE_H
#define TANDEM_PROTO_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/util.h"

struct err;
struct trace;

/* In the coordinator: TRACE_DATA is its loop, TRACE_CONTROL what becomes of the pipeline; it has no others. */
enum trace_lane {
    TRACE_DATA,    /* the data thread */
    TRACE_DEVICE,  /* what the data thread (or, before it runs, the main thread) asked of a GPU or NPU */
    TRACE_CONTROL, /* the main thread */
    TRACE_FILL,    /* the first of the loader's threads that fill segments */
    TRACE_LANES = TRACE_FILL + 4
};

enum trace_kind {
    TRACE_NONE,
    /* stages, data thread */
    TRACE_WAIT_INPUT,
    TRACE_WAIT_SPACE,
    TRACE_WAIT_WEIGHTS, /* of a streamed layer */
    TRACE_PARKED,       /* kept from the rings after the end of a neighbour */
    TRACE_CHUNK,        /* a chunk at one layer, from taking it to passing it on */
    TRACE_HEAD,         /* within it: final norm and output matrix of a block of rows */
    TRACE_DEVICE_RUN,   /* from the submission of work to a device until it was seen to be done */
    /* stages, main thread: id is bytes */
    TRACE_CONFIGURE,
    TRACE_LOAD, /* a segment is there: the backend takes or copies it */
    /* loader, threads that fill: id is bytes, seq the kind of segment */
    TRACE_READ,
    TRACE_VERIFY,
    TRACE_PLACE,
    /* coordinator */
    TRACE_SEND,    /* a chunk goes to the loader */
    TRACE_LOGITS,  /* rows came back */
    TRACE_SAMPLE,  /* within it: one token is drawn; seq: for this sequence */
    TRACE_DONE,    /* a chunk left the pipeline */
    TRACE_DROPPED, /* it does not come back: a stage ended, or all do; it may be sent again in another epoch */
    TRACE_START,   /* until all stages are ready for the first time */
    TRACE_RECOVERY,
    TRACE_ENDED,   /* a moment: the stage `seq` (enum msg_role) ended */
    TRACE_RUNNING, /* a moment: it is configured; tokens: how often it was started again */
    TRACE_KINDS
};

#define TRACE_DECODE 1u /* flags: tokens that were drawn, not a prompt's */
#define TRACE_FAILED 2u
#define TRACE_MANY 4u   /* seq is a number of sequences, not one */
#define TRACE_SECOND 8u /* from input ring 1, not 0 */

struct trace_event {
    uint64_t start_ns, end_ns; /* CLOCK_MONOTONIC */
    uint64_t id;               /* trace_flow of a chunk, or bytes */
    uint16_t layer, tokens;
    uint8_t kind;             /* enum trace_kind */
    uint8_t flags, seq, fill; /* fill: slots of the ring that were full when the chunk was taken, its own included; at most 255 */
};

/* What a chunk is called in all processes: its number, and the epoch, as it may be sent again in another. */
static inline uint64_t trace_flow(uint32_t epoch, uint64_t chunk)
{
    return (uint64_t)epoch << 32 | (uint32_t)chunk;
}

size_t trace_bytes(void);                                   /* of the memfd */
int trace_make(struct err *err);                            /* returns an owned fd */
int trace_map(int fd, struct trace **ret, struct err *err); /* borrows fd; for one side, writer or reader */
void trace_unmap(struct trace *t);

/* ---- writer ---- */

/* The chunk at hand: what trace_span says of it. The thread of lanes TRACE_DATA and TRACE_DEVICE. */
void trace_set_chunk(struct trace *t, const struct trace_event *e);
void trace_put(struct trace *t, enum trace_lane lane, const struct trace_event *e);
void trace_put_span(struct trace *t, enum trace_lane lane, enum trace_kind kind, uint64_t start_ns, uint64_t end_ns);

static inline uint64_t trace_now(const struct trace *t)
{
    return t ? util_now_ns() : 0;
}
static inline void trace_add(struct trace *t, enum trace_lane lane, const struct trace_event *e)
{
    if (t)
        trace_put(t, lane, e);
}
/* Of the chunk at hand. */
static inline void trace_span(struct trace *t, enum trace_lane lane, enum trace_kind kind, uint64_t start_ns, uint64_t end_ns)
{
    if (t)
        trace_put_span(t, lane, kind, start_ns, end_ns);
}

/* ---- reader ---- */

/* The oldest event of a lane, checked: kind, and that it does not end before it began. False: there is none. */
bool trace_take(struct trace *t, enum trace_lane lane, struct trace_event *ret);
/* Events of this lane that were dropped since the last call: there was no room, or what lay there was none. */
uint32_t trace_lost(struct trace *t, enum trace_lane lane);

#endif
