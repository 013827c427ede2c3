/* SPDX-License-Identifier: MIT
 * Rings of test_rings.c and test_liveness.c. */
#include "tests/engine/ring_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proto/err.h"

#define EPOCH 3

struct plan ring_world_plan = {
    .ring_slots = 2, .token_slots = 4, .logits_slots = 4, .worker_slot_bytes = 64, .token_slot_bytes = 64, .out_slot_bytes = 64};

struct rings *ring_world_open(struct side sides[MSG_ROLES])
{
    struct rings *r;
    struct err err = {0};
    assert_int_equal(rings_open(&ring_world_plan, &r, &err), 0);
    assert_int_equal(rings_make(r, EPOCH, &err), 0);
    for (int i = 0; i < MSG_ROLES; i++) {
        struct ring_end ends[RINGS_OF_STAGE_MAX];
        uint32_t n = rings_of(r, (enum msg_role)i, ends);
        for (uint32_t k = 0; k < n; k++) {
            struct ring **to = ends[k].direction ? &sides[i].output[ends[k].index] : &sides[i].input[ends[k].index];
            assert_int_equal(ring_attach(ends[k].fds[0], ends[k].direction ? RING_PRODUCER : RING_CONSUMER, EPOCH, rings_bell(r),
                                         rings_bell(r), to, &err),
                             0);
        }
    }
    return r;
}

void ring_world_close(struct rings *r, struct side sides[MSG_ROLES])
{
    for (int i = 0; i < MSG_ROLES; i++) {
        for (int k = 0; k < 2; k++) {
            ring_detach(sides[i].input[k]);
            ring_detach(sides[i].output[k]);
        }
    }
    rings_close(r);
}

void ring_put(struct ring *r)
{
    assert_non_null(ring_reserve(r));
    ring_commit(r);
}

void ring_take(struct ring *r)
{
    assert_non_null(ring_peek(r));
    ring_release(r);
}

void ring_pass(struct ring *from, struct ring *to)
{
    ring_put(to);
    ring_take(from);
}
