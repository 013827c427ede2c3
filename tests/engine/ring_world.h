/* SPDX-License-Identifier: MIT
 * All rings of a pipeline, with both ends in the test: what stages would do to them. */
#ifndef TANDEM_TESTS_ENGINE_RING_WORLD_H
#define TANDEM_TESTS_ENGINE_RING_WORLD_H

#include "coordinator/plan.h"
#include "coordinator/rings.h"
#include "proto/ring.h"

struct side { /* of a stage */
    struct ring *input[2], *output[2];
};

extern struct plan ring_world_plan; /* two slots in each ring of chunks */

struct rings *ring_world_open(struct side sides[MSG_ROLES]); /* fails the test where it cannot */
void ring_world_close(struct rings *r, struct side sides[MSG_ROLES]);
void ring_put(struct ring *r);
void ring_take(struct ring *r);
void ring_pass(struct ring *from, struct ring *to);

#endif
