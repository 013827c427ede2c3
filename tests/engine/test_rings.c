/* SPDX-License-Identifier: MIT
 * The books of the rings (rings_books): whose they are, what a chunk on its way does to them, and that they show who lost one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proto/err.h"
#include "tests/engine/ring_world.h"

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
    struct rings *r = ring_world_open(s);
    struct side *loader = &s[MSG_ROLE_LOADER], *npu = &s[MSG_ROLE_NPU], *gpu = &s[MSG_ROLE_GPU];
    struct ring_books books[MSG_ROLES];
    ring_put(rings_tokens(r));
    check(r, 0, MSG_ROLE_LOADER, 0, 0, 1);
    ring_pass(loader->input[0], loader->output[0]);
    check(r, 0, MSG_ROLE_LOADER, 1, 1, 1);
    for (uint32_t layer = 0; layer < 2; layer++) {
        ring_pass(npu->input[layer ? 0 : 1], npu->output[0]);
        check(r, 0, MSG_ROLE_NPU, 1 + layer, 1 + layer, 1);
        if (layer == 0)
            ring_pass(gpu->input[0], gpu->output[0]);
    }
    ring_put(gpu->output[1]); /* logits */
    check(r, 0, MSG_ROLE_GPU, 1, 2, 2);
    ring_pass(gpu->input[0], gpu->output[1]);
    check(r, 0, MSG_ROLE_GPU, 2, 3, 2); /* what lies there may be logits: more than it owes */
    ring_take(rings_output(r));
    ring_take(rings_output(r));
    check(r, 1, MSG_ROLE_GPU, 2, 2, 0);
    assert_int_equal(rings_books(r, 1, books, NULL), 0);
    for (int i = 0; i < MSG_ROLES; i++) {
        assert_int_equal(books[i].taken, books[i].given);
        assert_false(books[i].has_input);
        assert_false(books[i].output_full);
    }
    ring_world_close(r, s);
}

static void test_who_lost_it(void **state)
{
    (void)state;
    struct side s[MSG_ROLES] = {0};
    struct rings *r = ring_world_open(s);
    struct side *loader = &s[MSG_ROLE_LOADER], *npu = &s[MSG_ROLE_NPU], *gpu = &s[MSG_ROLE_GPU];
    for (int i = 0; i < 3; i++)
        ring_put(rings_tokens(r));
    ring_take(loader->input[0]);
    check(r, 0, MSG_ROLE_LOADER, 1, 0, 2);
    ring_pass(loader->input[0], loader->output[0]);
    ring_take(npu->input[1]);
    check(r, 0, MSG_ROLE_NPU, 1, 0, 1);
    ring_pass(loader->input[0], loader->output[0]);
    ring_pass(npu->input[1], npu->output[0]);
    ring_take(gpu->input[0]);
    check(r, 0, MSG_ROLE_GPU, 1, 0, 0);
    check(r, 0, MSG_ROLE_LOADER, 3, 2, 0);
    check(r, 0, MSG_ROLE_NPU, 2, 1, 0);
    ring_world_close(r, s);
}

static void test_what_lies_there(void **state)
{
    (void)state;
    struct side s[MSG_ROLES] = {0};
    struct rings *r = ring_world_open(s);
    struct ring_books books[MSG_ROLES];
    ring_put(s[MSG_ROLE_LOADER].output[0]);
    ring_put(s[MSG_ROLE_LOADER].output[0]);
    assert_int_equal(rings_books(r, 0, books, NULL), 2);
    assert_true(books[MSG_ROLE_LOADER].output_full && books[MSG_ROLE_NPU].has_input);
    assert_false(books[MSG_ROLE_NPU].output_full || books[MSG_ROLE_GPU].has_input || books[MSG_ROLE_LOADER].has_input);
    ring_world_close(r, s);
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
