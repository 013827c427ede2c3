/* SPDX-License-Identifier: MIT
 * The skeleton of a stage process: libuv control loop (main thread) + one data thread. A stage supplies five functions and is
 * arithmetic and nothing else. Handshake: HELLO -> CONFIGURE -> SEGMENT* / ATTACH_RING* -> START -> READY; then STATS, DRAIN,
 * SHUTDOWN. The data thread never touches a socket, never allocates and never logs above debug, but for one line when it
 * gives up a device. */
#ifndef TANDEM_PROTO_STAGE_H
#define TANDEM_PROTO_STAGE_H

#include <stdint.h>

#include "proto/msg.h"

struct err;
struct chunk;
struct stage_io;

/* Segments: a stage that consumes weights lists, in configure, what it wants through stage_want_segment; the skeleton makes the
 * memfds (charged here), sends SEGMENT_NEW, and calls segment() with a read-only mapping when the loader has filled it. A stage
 * that copies them gives each back, and says through stage_lease how many may be on their way. A stage that fills segments (the
 * loader) implements fill(). */
struct stage_ops {
    enum msg_role role;
    uint32_t n_inputs; /* input rings, in order of priority: a lower index is drained first */
    uint32_t n_outputs;
    /* open: allocate state; no devices yet. Never fails but for memory. */
    int (*open)(void **ret_state, struct err *err);
    /* configure: main thread, once. Fails with a clear error when the backend or the budget does not allow it. */
    int (*configure)(void *state, struct stage_io *io, const struct msg_configure *c, struct err *err);
    /* segment: main thread, before START. Returns 0: [bytes] stay mapped and unchanged until close; STAGE_SEGMENT_COPIED: they are
     * needed no longer, and go at once. A streamed layer: before anything is in it, and it stays whatever is returned. Optional. */
    int (*segment)(void *state, uint32_t kind, uint32_t layer, const void *data, uint64_t bytes, struct err *err);
    /* fill: a worker thread; two calls at a time, begun in the order of the requests. fd is borrowed. slot: which one of this kind,
     * and the same memfd most times; or STAGE_NO_SLOT. Optional, loader only. */
    int (*fill)(void *state, uint32_t kind, uint32_t layer, uint32_t slot, int fd, uint64_t bytes, struct err *err);
    /* process: data thread. One chunk from input `input`, already validated; payload lies in the slot and stays until return.
     * The slot is released by the skeleton afterwards. Output through stage_reserve/stage_commit. A negative return with a
     * message in err fails this chunk (CHUNK_FAILED travels to the coordinator), not the process; but -ENODEV, whatever err->code
     * says: the device that computes is of no more use, and the process ends with that message. */
    int (*process)(void *state, struct stage_io *io, uint32_t input, struct chunk *c, const void *payload, struct err *err);
    /* stats: main thread, while process may run: fill what this stage knows (atomics or approximate values only). */
    void (*stats)(void *state, struct msg_stats *ret);
    /* backend: what runs, for READY: "cpu avx2". Main thread, after configure. */
    const char *(*backend)(void *state);
    void (*close)(void *state); /* NULL and half-built are fine */
    /* collect: main thread, while process may run: add to area from the next chunk on (model/collect.h); it stays mapped until
     * close. Optional. */
    int (*collect)(void *state, double *area, uint64_t bytes, struct err *err);
    /* streamed: data thread, when a streamed layer is whole, before the first chunk of a pass there. 0: it is used in the slot
     * until the pass has left the layer; STAGE_SEGMENT_COPIED: the slot is needed no longer. Optional. */
    int (*streamed)(void *state, uint32_t kind, uint32_t layer, struct err *err);
};

#define STAGE_SEGMENT_COPIED 1
#define STAGE_NO_SLOT UINT32_MAX
#define STAGE_SLOTS_MAX 8u

/* Main thread, in configure and in segment: what is wanted comes in this order, and may come more than once. */
int stage_want_segment(struct stage_io *io, uint32_t kind, uint32_t layer, uint64_t bytes, struct err *err);
/* Main thread, in configure: this layer passes through slot number `slot`; in the order in which a pass meets them. segment() is
 * called for it with a mapping of the slot, always the same, that holds the layer only while chunks are processed there. */
int stage_stream_segment(struct stage_io *io, uint32_t kind, uint32_t layer, uint32_t slot, uint64_t bytes, struct err *err);
/* At most n segments exist at once, so that the loader fills one while another is copied; 0 (default): all. Main thread, likewise.
 */
void stage_lease(struct stage_io *io, uint32_t n);
struct budget *stage_budget(struct stage_io *io);
/* Where to record what happens (proto/trace.h); NULL: nowhere. From configure on, until close. */
struct trace *stage_trace(struct stage_io *io);

/* Data thread. Wait for a free slot of output ring `output`; returns where the payload goes after writing c's header and tables
 * (c->h.payload_bytes set by the caller), or NULL when the pipeline is closing or poisoned (then return -ECANCELED). */
void *stage_reserve(struct stage_io *io, uint32_t output, struct chunk *c);
void stage_commit(struct stage_io *io, uint32_t output);

/* Runs until SHUTDOWN, EOF or a signal. fd: the control socket (takes). token: NULL: the coordinator is our parent; otherwise
 * what it wants to hear from those that others started. Returns the process's exit status. */
int stage_run(const struct stage_ops *ops, int fd, const char *token);

#endif
