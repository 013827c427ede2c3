/* SPDX-License-Identifier: MIT
 * The offset allocator beside a model that cannot be wrong: a byte for every granule. A million random operations; after each, both
 * must agree on whether there was room, and no two blocks may share a granule. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "npu_worker/offsets.h"
#include "proto/err.h"
#include "proto/util.h"

#define G OFFSETS_GRANULE
#define GRANULES 1500 /* no power of two */
#define BLOCKS 200

struct held {
    uint32_t block;
    uint64_t at, n; /* granules */
};

struct world {
    struct offsets *o;
    uint8_t taken[GRANULES];
    struct held held[BLOCKS];
    uint32_t n_held;
    uint64_t used, peak, random;
};

static uint32_t any(struct world *w, uint32_t below)
{
    w->random = w->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((w->random >> 33) % below);
}

static uint64_t largest(const struct world *w)
{
    uint64_t best = 0, run = 0;
    for (uint32_t i = 0; i < GRANULES; i++) {
        run = w->taken[i] ? 0 : run + 1;
        best = MAX(best, run);
    }
    return best;
}

static bool has_room(const struct world *w, uint64_t n, uint64_t align)
{
    uint64_t free_after = 0; /* granules free from i on */
    bool room = false;
    for (uint32_t i = GRANULES; i-- > 0;) {
        free_after = w->taken[i] ? 0 : free_after + 1;
        room |= free_after >= n && i % align == 0;
    }
    return room;
}

static void take(struct world *w)
{
    uint64_t bytes = 1 + any(w, any(w, 8) ? 12 * G : 400 * G), align = UINT64_C(1) << any(w, 12), at = 0;
    uint64_t n = (bytes + G - 1) / G, granules = MAX(align / G, 1u);
    uint32_t b = offsets_take(w->o, bytes, align, &at);
    assert_int_equal(b != OFFSETS_NONE, w->n_held < BLOCKS && has_room(w, n, granules));
    if (b == OFFSETS_NONE)
        return;
    assert_int_equal(at % MAX(align, (uint64_t)G), 0);
    assert_int_equal(offsets_at(w->o, b), at);
    at /= G;
    assert_true(at + n <= GRANULES);
    for (uint64_t i = at; i < at + n; i++) {
        assert_false(w->taken[i]);
        w->taken[i] = 1;
    }
    w->held[w->n_held++] = (struct held){b, at, n};
    w->used += n;
    w->peak = MAX(w->peak, w->used);
}

static void give(struct world *w)
{
    uint32_t i = any(w, w->n_held);
    struct held h = w->held[i];
    offsets_give(w->o, h.block);
    memset(w->taken + h.at, 0, h.n);
    w->held[i] = w->held[--w->n_held];
    w->used -= h.n;
}

static void compare(const struct world *w)
{
    struct offsets_stats s;
    offsets_stats(w->o, &s);
    assert_int_equal(s.bytes, GRANULES * G);
    assert_int_equal(s.used, w->used * G);
    assert_int_equal(s.peak, w->peak * G);
    assert_int_equal(s.blocks, w->n_held);
    assert_int_equal(s.largest, largest(w) * G);
    assert_null(offsets_check(w->o));
}

static void a_million_operations(void **state)
{
    (void)state;
    struct world w = {.random = 42};
    assert_int_equal(offsets_open(GRANULES * G + 7, BLOCKS, &w.o, NULL), 0);
    uint32_t refused = 0;
    for (uint32_t i = 0; i < 1000000; i++) {
        bool filling = i / 5000 % 2 == 0; /* full and nearly empty in turns */
        uint32_t before = w.n_held;
        if (w.n_held == 0 || any(&w, 10) < (filling ? 7u : 3u))
            take(&w);
        else
            give(&w);
        refused += w.n_held == before;
        if (i % 97 == 0)
            compare(&w);
    }
    assert_in_range(refused, 1000, 900000); /* both answers were seen */
    while (w.n_held)
        give(&w);
    compare(&w);
    uint64_t at;
    assert_int_not_equal(offsets_take(w.o, GRANULES * G, G, &at), OFFSETS_NONE); /* all is one part again */
    offsets_close(w.o);
}

static void edges(void **state)
{
    (void)state;
    struct offsets *o;
    struct offsets_stats s;
    uint64_t at = 1;
    struct err err;
    assert_int_equal(offsets_open(G - 1, 4, &o, &err), -EINVAL);
    assert_int_equal(offsets_open(4 * G, 2, &o, NULL), 0);
    assert_int_equal(offsets_take(o, 0, 1, &at), OFFSETS_NONE);
    assert_int_equal(offsets_take(o, UINT64_MAX, 1, &at), OFFSETS_NONE);
    assert_int_equal(offsets_take(o, 4 * G + 1, 1, &at), OFFSETS_NONE);
    uint32_t a = offsets_take(o, 1, UINT64_C(1) << 40, &at);
    assert_int_not_equal(a, OFFSETS_NONE);
    assert_int_equal(at, 0);
    assert_int_equal(offsets_take(o, 1, UINT64_C(1) << 40, &at), OFFSETS_NONE);
    uint32_t b = offsets_take(o, G, 2 * G, &at);
    assert_int_equal(at, 2 * G);
    assert_int_equal(offsets_take(o, 1, 1, &at), OFFSETS_NONE); /* room, but no third block */
    offsets_stats(o, &s);
    assert_true(offsets_fragmentation(&s) == 0.5);
    offsets_give(o, a);
    offsets_give(o, b);
    offsets_stats(o, &s);
    assert_int_equal(s.largest, 4 * G);
    assert_true(offsets_fragmentation(&s) == 0.0);
    offsets_close(o);
    offsets_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_million_operations), cmocka_unit_test(edges)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
