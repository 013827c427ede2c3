/* SPDX-License-Identifier: MIT
 * The books of the rings (rings_books): whose they are, what a chunk on its way does to them, and that they show who lost one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "coordinator/plan.h"
#include "coordinator/rings.h"
#include "proto/err.h"
#include "proto/ring.h"

#define EPOCH 3

struct side {
    struct ring *input[2], *output[2];
};

static const struct plan plan = {
    .ring_slots = 2, .token_slots = 4, .logits_slots = 4, .worker_slot_bytes = 64, .token_slot_bytes = 64, .out_slot_bytes = 64};

static struct rings *open_all(struct side sides[MSG_ROLES])
{
    struct rings *r;
    struct err err = {0};
    assert_int_equal(rings_open(&plan, &r, &err), 0);
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

static void close_all(struct rings *r, struct side sides[MSG_ROLES])
{
    for (int i = 0; i < MSG_ROLES; i++) {
        for (int k = 0; k < 2; k++) {
            ring_detach(sides[i].input[k]);
            ring_detach(sides[i].output[k]);
        }
    }
    rings_close(r);
}

static void put(struct ring *r)
{
    assert_non_null(ring_reserve(r));
    ring_commit(r);
}

static void take(struct ring *r)
{
    assert_non_null(ring_peek(r));
    ring_release(r);
}

static void pass(struct ring *from, struct ring *to)
{
    put(to);
    take(from);
}

static void check(const struct rings *r, uint32_t done, enum msg_role role, uint32_t taken, uint32_t given, int full)
{
    struct ring_books books[MSG_ROLES];
    struct err err = {0};
    assert_int_equal(rings_books(r, done, books, &err), full);
    assert_int_equal(books[role].taken, taken);
    assert_int_equal(books[role].given, given);
}

/* Two layers: a chunk goes twice through both workers, then comes back with one row of logits. */
static void test_way_of_a_chunk(void **state)
{
    (void)state;
    struct side s[MSG_ROLES] = {0};
    struct rings *r = open_all(s);
    struct side *loader = &s[MSG_ROLE_LOADER], *npu = &s[MSG_ROLE_NPU], *gpu = &s[MSG_ROLE_GPU];
    struct ring_books books[MSG_ROLES];
    put(rings_tokens(r));
    check(r, 0, MSG_ROLE_LOADER, 0, 0, 1);
    pass(loader->input[0], loader->output[0]);
    check(r, 0, MSG_ROLE_LOADER, 1, 1, 1);
    for (uint32_t layer = 0; layer < 2; layer++) {
        pass(npu->input[layer ? 0 : 1], npu->output[0]);
        check(r, 0, MSG_ROLE_NPU, 1 + layer, 1 + layer, 1);
        if (layer == 0)
            pass(gpu->input[0], gpu->output[0]);
    }
    put(gpu->output[1]); /* logits */
    check(r, 0, MSG_ROLE_GPU, 1, 2, 2);
    pass(gpu->input[0], gpu->output[1]);
    check(r, 0, MSG_ROLE_GPU, 2, 3, 2); /* what lies there may be logits: more than it owes */
    take(rings_output(r));
    take(rings_output(r));
    check(r, 1, MSG_ROLE_GPU, 2, 2, 0);
    assert_int_equal(rings_books(r, 1, books, NULL), 0);
    for (int i = 0; i < MSG_ROLES; i++) {
        assert_int_equal(books[i].taken, books[i].given);
        assert_false(books[i].has_input);
        assert_false(books[i].output_full);
    }
    close_all(r, s);
}

static void test_who_lost_it(void **state)
{
    (void)state;
    struct side s[MSG_ROLES] = {0};
    struct rings *r = open_all(s);
    struct side *loader = &s[MSG_ROLE_LOADER], *npu = &s[MSG_ROLE_NPU], *gpu = &s[MSG_ROLE_GPU];
    for (int i = 0; i < 3; i++)
        put(rings_tokens(r));
    take(loader->input[0]);
    check(r, 0, MSG_ROLE_LOADER, 1, 0, 2);
    pass(loader->input[0], loader->output[0]);
    take(npu->input[1]);
    check(r, 0, MSG_ROLE_NPU, 1, 0, 1);
    pass(loader->input[0], loader->output[0]);
    pass(npu->input[1], npu->output[0]);
    take(gpu->input[0]);
    check(r, 0, MSG_ROLE_GPU, 1, 0, 0);
    check(r, 0, MSG_ROLE_LOADER, 3, 2, 0);
    check(r, 0, MSG_ROLE_NPU, 2, 1, 0);
    close_all(r, s);
}

static void test_what_lies_there(void **state)
{
    (void)state;
    struct side s[MSG_ROLES] = {0};
    struct rings *r = open_all(s);
    struct ring_books books[MSG_ROLES];
    put(s[MSG_ROLE_LOADER].output[0]);
    put(s[MSG_ROLE_LOADER].output[0]);
    assert_int_equal(rings_books(r, 0, books, NULL), 2);
    assert_true(books[MSG_ROLE_LOADER].output_full && books[MSG_ROLE_NPU].has_input);
    assert_false(books[MSG_ROLE_NPU].output_full || books[MSG_ROLE_GPU].has_input || books[MSG_ROLE_LOADER].has_input);
    close_all(r, s);
}

/* Each ring of two stages is named alike from both its ends; the coordinator is nobody to be ended. */
static void test_neighbours(void **state)
{
    (void)state;
    assert_int_equal(rings_writer(MSG_ROLE_LOADER, 0), -1);
    assert_int_equal(rings_writer(MSG_ROLE_NPU, 0), MSG_ROLE_GPU);
    assert_int_equal(rings_writer(MSG_ROLE_NPU, 1), MSG_ROLE_LOADER);
    assert_int_equal(rings_writer(MSG_ROLE_GPU, 0), MSG_ROLE_NPU);
    assert_int_equal(rings_writer(MSG_ROLE_GPU, 1), -1);
    assert_int_equal(rings_reader(MSG_ROLE_LOADER, 0), MSG_ROLE_NPU);
    assert_int_equal(rings_reader(MSG_ROLE_NPU, 0), MSG_ROLE_GPU);
    assert_int_equal(rings_reader(MSG_ROLE_GPU, 0), MSG_ROLE_NPU);
    assert_int_equal(rings_reader(MSG_ROLE_GPU, 1), -1);
    assert_int_equal(rings_reader(MSG_ROLE_GPU, 7), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_way_of_a_chunk),
        cmocka_unit_test(test_who_lost_it),
        cmocka_unit_test(test_what_lies_there),
        cmocka_unit_test(test_neighbours),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
