/* SPDX-License-Identifier: MIT
 * An offset allocator: hands out parts of a range of numbers and never touches what they stand for, so that one serves ordinary
 * memory and a device's alike. Free parts are kept in lists by size (two levels, as TLSF: Masmano, Ripoll, Crespo and Real, "TLSF:
 * a new dynamic memory allocator for real-time systems", ECRTS 2004) and merged with free neighbours at once. It fails only when no
 * free part is large enough. Threads: one at a time. */
#ifndef TANDEM_NPU_WORKER_OFFSETS_H
#define TANDEM_NPU_WORKER_OFFSETS_H

#include <stdint.h>

#define OFFSETS_GRANULE 64      /* bytes: every offset and size is a multiple */
#define OFFSETS_NONE UINT32_MAX /* no block */

struct err;
struct offsets;

struct offsets_stats {
    uint64_t bytes, used, peak; /* peak: the most that was used at once */
    uint64_t largest;           /* free part */
    uint32_t blocks;            /* in use */
};

/* bytes: of the range, rounded down to granules; max_blocks: in use at once, at most 2^30. */
int offsets_open(uint64_t bytes, uint32_t max_blocks, struct offsets **ret, struct err *err);
void offsets_close(struct offsets *o); /* NULL is fine */
/* A block of `bytes` > 0, rounded up to granules, whose offset is a multiple of `align` (a power of two). OFFSETS_NONE: no free
 * part is large enough, or max_blocks are in use. Allocates nothing. */
uint32_t offsets_take(struct offsets *o, uint64_t bytes, uint64_t align, uint64_t *ret_offset);
void offsets_give(struct offsets *o, uint32_t block);
uint64_t offsets_at(const struct offsets *o, uint32_t block);
uint64_t offsets_size(const struct offsets *o, uint32_t block); /* bytes, as rounded up */
void offsets_stats(const struct offsets *o, struct offsets_stats *ret);
/* How far free memory is from being one part: 0 (or nothing is free) to 1. */
double offsets_fragmentation(const struct offsets_stats *s);
/* Whether lists, neighbours and counters agree; walks everything. NULL, or what is wrong. */
const char *offsets_check(const struct offsets *o);

#endif
