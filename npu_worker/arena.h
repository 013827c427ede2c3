/* SPDX-License-Identifier: MIT
 * The pool of npu_worker, of the size that npu.memory allows: one space of offsets (offsets.h) in which everything has a block that
 * counts under npu.memory, by purpose. KV pages and scratch lie in it: a block of theirs is memory at that offset of one range,
 * which costs nothing until it is touched. What others allocate, because it cannot lie there, has a block without memory
 * (arena_reserve): weights are segments, which the loader fills; tiles and instructions are buffers of XRT. So what is used of
 * npu.memory, what is free, and in how large parts, is one sum, and none of them can take what another was promised. Threads: one
 * at a time, but for arena_published. */
#ifndef TANDEM_NPU_WORKER_ARENA_H
#define TANDEM_NPU_WORKER_ARENA_H

#include <stdint.h>

#include "npu_worker/offsets.h"

struct arena;
struct err;

#define ARENA_ALIGN 4096 /* of blocks; sizes are rounded up to it */

enum arena_use { ARENA_WEIGHTS, ARENA_KV, ARENA_SCRATCH, ARENA_TILES, ARENA_INSTRUCTIONS, ARENA_USES };

struct arena_stats {
    struct offsets_stats all;
    uint64_t used[ARENA_USES], peak[ARENA_USES];
};

/* bytes: of the pool, 0: as many as the machine has; max_blocks: taken at once. */
int arena_open(uint64_t bytes, uint32_t max_blocks, struct arena **ret, struct err *err);
/* Says in the log what was used at most, and warns of what was never given back. NULL is fine. */
void arena_close(struct arena *a);
/* So many bytes are for this use from now on, taken or not; replaces what was promised to it before. -ENOMEM. */
int arena_promise(struct arena *a, enum arena_use use, uint64_t bytes, struct err *err);
/* -ENOMEM names what is used and the largest part that is free. Zeroed only where it was never taken before. */
int arena_take(struct arena *a, enum arena_use use, uint64_t bytes, uint32_t *ret_block, void **ret, struct err *err);
/* A block for what lies elsewhere. */
int arena_reserve(struct arena *a, enum arena_use use, uint64_t bytes, uint32_t *ret_block, struct err *err);
void arena_give(struct arena *a, enum arena_use use, uint32_t block); /* use as taken; OFFSETS_NONE is fine */
void arena_stats(const struct arena *a, struct arena_stats *ret);
/* For other threads: the statistics as they were when the owner published them last; peaks and sums may be of two moments. */
void arena_publish(struct arena *a);
void arena_published(const struct arena *a, struct arena_stats *ret);
const char *arena_use_name(enum arena_use use); /* "KV pages" */

#endif
