/* SPDX-License-Identifier: MIT
 * When a stage is started again: back-off, its limits, and what makes them start anew. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "coordinator/restart.h"

#define SECOND UINT64_C(1000000000)

static void test_back_off(void **state)
{
    (void)state;
    const struct restart_limits l = {.in_a_row = 12, .per_minute = 1000};
    static const uint64_t want[] = {0, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000, 5000};
    for (uint32_t random = 0; random < 10000; random += 37) {
        struct restart r = {0};
        for (uint32_t i = 0; i < 12; i++) {
            uint64_t ms;
            assert_true(restart_decide(&r, &l, SECOND, 5, random, &ms));
            assert_in_range(ms, want[i] - want[i] / 4, want[i] + want[i] / 4);
        }
        uint64_t ms = 77;
        assert_false(restart_decide(&r, &l, SECOND, 5, random, &ms));
        assert_int_equal(ms, 77);
    }
}

static void test_jitter(void **state)
{
    (void)state;
    const struct restart_limits l = {.in_a_row = 2, .per_minute = 1000};
    uint64_t least = UINT64_MAX, most = 0, ms;
    for (uint32_t random = 0; random < 1000; random++) {
        struct restart r = {0};
        assert_true(restart_decide(&r, &l, SECOND, 0, random, &ms));
        assert_true(restart_decide(&r, &l, SECOND, 0, random, &ms));
        least = ms < least ? ms : least;
        most = ms > most ? ms : most;
    }
    assert_int_equal(least, 75);
    assert_int_equal(most, 124);
}

static void test_progress_starts_anew(void **state)
{
    (void)state;
    const struct restart_limits l = {.in_a_row = 2, .per_minute = 1000};
    struct restart r = {0};
    uint64_t ms;
    for (uint64_t progress = 0; progress < 100; progress++) {
        assert_true(restart_decide(&r, &l, SECOND, progress, 0, &ms));
        assert_int_equal(ms, 0);
        assert_true(restart_decide(&r, &l, SECOND, progress, 0, &ms));
        assert_int_equal(ms, 75);
        if (progress % 2)
            assert_false(restart_decide(&r, &l, SECOND, progress, 0, &ms));
    }
    assert_false(restart_decide(&r, &l, SECOND, 99, 0, &ms));
    restart_forget(&r);
    assert_true(restart_decide(&r, &l, SECOND, 99, 0, &ms));
    assert_int_equal(ms, 0);
}

/* With progress, too, no more than so many in any minute. */
static void test_window(void **state)
{
    (void)state;
    const struct restart_limits l = {.in_a_row = 5, .per_minute = 20};
    struct restart r = {0};
    uint64_t ms, progress = 0, starts[2000];
    uint32_t n = 0;
    for (uint64_t ds = 1000; ds < 1000 + 10 * 600; ds += 7) { /* tenths of a second: ten minutes */
        if (restart_decide(&r, &l, ds * SECOND / 10, ++progress, 0, &ms))
            starts[n++] = ds;
    }
    assert_in_range(n, 180, 210);
    for (uint32_t i = 20; i < n; i++)
        assert_true(starts[i] - starts[i - 20] >= 590);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_back_off),
        cmocka_unit_test(test_jitter),
        cmocka_unit_test(test_progress_starts_anew),
        cmocka_unit_test(test_window),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
