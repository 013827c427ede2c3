/* SPDX-License-Identifier: MIT
 * Caps where the kernel does not hold them: looks at every process of the pipeline and ends the one that passes its cap. What
 * counts is its private memory, the memory that it made for weights, and other shared pages that nobody gave it. A process that
 * takes memory faster than it is looked at is caught later than a cgroup would: docs/OPERATIONS.md says so. Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_WATCH_H
#define TANDEM_COORDINATOR_WATCH_H

#include <stdint.h>
#include <uv.h>

#include "proto/config.h"

struct err;
struct plan;
struct supervise;
struct watch;

#define WATCH_PERIOD_MS 250

/* plan, supervise: borrowed until close. over: this coordinator itself passed its cap. */
int watch_open(uv_loop_t *loop, const struct plan *plan, struct supervise *supervise,
               void (*over)(void *ctx, const struct err *err), void *ctx, struct watch **ret, struct err *err);
uint64_t watch_peak(const struct watch *w, enum config_process process); /* the most bytes against the cap, of the looks so far */
void watch_close(struct watch *w);                                       /* runs the loop until the timer is closed; NULL is fine */

#endif
