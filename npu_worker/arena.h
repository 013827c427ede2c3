/* SPDX-License-Identifier: MIT
 * The memory of npu_worker's device: one range, from which everything that attention needs is taken by offset (offsets.h), and
 * whose use is counted by purpose. On the CPU backend it is ordinary memory, which costs nothing until it is touched. Threads: one
 * at a time. */
#ifndef TANDEM_NPU_WORKER_ARENA_H
#define TANDEM_NPU_WORKER_ARENA_H

#include <stdint.h>

#include "npu_worker/offsets.h"

struct arena;
struct err;

#define ARENA_PAGE_ALIGN 4096

enum arena_use { ARENA_KV, ARENA_SCRATCH, ARENA_USES };

struct arena_stats {
    struct offsets_stats all;
    uint64_t used[ARENA_USES], peak[ARENA_USES];
};

/* bytes: of the range; max_blocks: taken at once. Budgets are its users' affair. */
int arena_open(uint64_t bytes, uint32_t max_blocks, struct arena **ret, struct err *err);
/* Says in the log what was used at most, and warns of what was never given back. NULL is fine. */
void arena_close(struct arena *a);
/* -ENOMEM names what is used and the largest part that is free. Zeroed only where it was never taken before. */
int arena_take(struct arena *a, enum arena_use use, uint64_t bytes, uint64_t align, uint32_t *ret_block, void **ret,
               struct err *err);
void arena_give(struct arena *a, enum arena_use use, uint64_t bytes, uint32_t block); /* use and bytes as taken */
void arena_stats(const struct arena *a, struct arena_stats *ret);

#endif
