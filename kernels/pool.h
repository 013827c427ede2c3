/* SPDX-License-Identifier: MIT
 * Threads for one parallel loop at a time. The caller takes part; the others sleep (futex) when there is no loop, after a
 * short bounded spin while `pool_begin`..`pool_end` says that more loops follow at once, and a moment longer. Items are handed
 * out in pieces that shrink, from an atomic counter: who computes an item never changes its value. */
#ifndef TANDEM_KERNELS_POOL_H
#define TANDEM_KERNELS_POOL_H

#include <stddef.h>
#include <stdint.h>

struct pool;
typedef void (*pool_fn)(void *ctx, uint32_t begin, uint32_t end, int thread);

/* n_threads >= 1, the caller included. Negative errno when threads cannot be made. Signals are blocked in the threads. */
int pool_open(int n_threads, struct pool **ret);
void pool_close(struct pool *p); /* joins; NULL is fine */
/* Helper i stays on the i-th processor of cpu_order from now on; who calls pool_run belongs on the first. For pools that take turns
 * on the same processors: a processor that another pool has just left is awake. */
void pool_pin(struct pool *p);
int pool_threads(const struct pool *p);
/* Between begin and end idle threads may spin (bounded) between loops. One owner thread at a time. */
void pool_begin(struct pool *p);
void pool_end(struct pool *p);
/* fn over [0, n_items) in pieces that begin at multiples of `grain`: of 1 / (4 threads) of what is left, at least `grain`. Returns
 * when all are done and visible. */
void pool_run(struct pool *p, uint32_t n_items, uint32_t grain, pool_fn fn, void *ctx);

#endif
