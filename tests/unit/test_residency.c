/* SPDX-License-Identifier: MIT
 * model/residency: for every number of layers and slots, streamed layers are spread evenly, numbered in order, and found again. */
#include "tests/unit/unit_test.h"

#include "model/residency.h"

static void every_number(void **state)
{
    (void)state;
    for (uint32_t layers = 1; layers <= 70; layers++) {
        for (uint32_t slots = 2; slots <= 4; slots++) {
            for (uint32_t n = 0; n <= layers; n++) {
                uint32_t streamed = residency_round(layers, n, slots), seen = 0, gap = 0;
                struct residency r = {layers, streamed, streamed ? slots : 0};
                assert_true(residency_valid(&r));
                assert_true(streamed >= n || streamed + slots > layers || layers < 2 * slots);
                for (uint32_t l = 0; l < layers; l++) {
                    uint32_t index = residency_index(&r, l);
                    gap = index == RESIDENCY_PINNED ? gap + 1 : 0;
                    assert_true(streamed == 0 || gap <= (layers + streamed - 1) / streamed);
                    if (index == RESIDENCY_PINNED)
                        continue;
                    assert_int_equal(index, seen++);
                    assert_int_equal(residency_layer(&r, index), l);
                }
                assert_int_equal(seen, streamed);
            }
        }
    }
}

static void impossible_ones(void **state)
{
    (void)state;
    const struct residency bad[] = {{0, 0, 0}, {8, 4, 0}, {8, 2, 2}, {8, 5, 2}, {8, 10, 2}, {8, 8, 9}, {64, 18, 9}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(residency_valid(&bad[i]));
    assert_int_equal(residency_round(3, 3, 2), 0); /* two slots would hold two of three layers */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_number), cmocka_unit_test(impossible_ones)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
