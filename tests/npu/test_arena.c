/* SPDX-License-Identifier: MIT
 * The pool of npu_worker: its uses are counted apart and share one space, what was promised to one is not the others', and what is
 * not given back is told at the end. */
#include "npu_worker/arena.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"
#include "tests/unit/unit_test.h"

#define PAGE ((uint64_t)ARENA_ALIGN)

static void test_uses(void **state)
{
    (void)state;
    struct arena *a;
    struct arena_stats s;
    uint32_t weights, tiles, page[2];
    uint8_t *memory[2];
    assert_ok(arena_open(16 * PAGE + 100, 8, &a, err));
    assert_ok(arena_reserve(a, ARENA_WEIGHTS, 3 * PAGE - 1, &weights, err));
    assert_ok(arena_take(a, ARENA_KV, PAGE, &page[0], (void **)&memory[0], err));
    assert_ok(arena_reserve(a, ARENA_TILES, 1, &tiles, err));
    assert_ok(arena_take(a, ARENA_KV, PAGE, &page[1], (void **)&memory[1], err));
    memset(memory[0], 1, PAGE);
    memset(memory[1], 2, PAGE);
    assert_int_equal(memory[0][PAGE - 1], 1);
    assert_true((memory[0] > memory[1] ? memory[0] - memory[1] : memory[1] - memory[0]) >= (long)PAGE);
    arena_published(a, &s);
    assert_int_equal(s.all.used, 0); /* not yet */
    arena_publish(a);
    arena_published(a, &s);
    assert_int_equal(s.all.bytes, 16 * PAGE);
    assert_int_equal(s.all.used, 6 * PAGE);
    assert_int_equal(s.all.largest, 10 * PAGE);
    assert_int_equal(s.used[ARENA_WEIGHTS], 3 * PAGE);
    assert_int_equal(s.used[ARENA_KV], 2 * PAGE);
    assert_int_equal(s.used[ARENA_TILES], PAGE);
    arena_give(a, ARENA_KV, page[0]);
    arena_give(a, ARENA_WEIGHTS, weights);
    arena_give(a, ARENA_WEIGHTS, OFFSETS_NONE);
    arena_stats(a, &s);
    assert_int_equal(s.all.used, 2 * PAGE);
    assert_int_equal(s.all.peak, 6 * PAGE);
    assert_int_equal(s.peak[ARENA_KV], 2 * PAGE);
    assert_int_equal(s.all.largest, 10 * PAGE);
    assert_true(offsets_fragmentation(&s.all) > 0.28 && offsets_fragmentation(&s.all) < 0.29); /* 4 of 14 pages lie apart */
    arena_give(a, ARENA_KV, page[1]);
    arena_give(a, ARENA_TILES, tiles);
    arena_stats(a, &s);
    assert_int_equal(s.all.blocks, 0);
    assert_int_equal(s.all.largest, 16 * PAGE);
    arena_close(a);
}

static void test_promises(void **state)
{
    (void)state;
    struct arena *a;
    uint32_t b[8], refused = OFFSETS_NONE;
    void *p;
    assert_ok(arena_open(8 * PAGE, 16, &a, err));
    assert_ok(arena_reserve(a, ARENA_WEIGHTS, 2 * PAGE, &b[0], err));
    assert_err(arena_promise(a, ARENA_KV, 7 * PAGE, err), -ENOMEM, "for KV pages do not fit");
    assert_ok(arena_promise(a, ARENA_KV, 5 * PAGE, err));
    assert_err(arena_reserve(a, ARENA_TILES, 2 * PAGE, &refused, err), -ENOMEM, "4096 are not promised to others");
    assert_int_equal(refused, OFFSETS_NONE);
    assert_ok(arena_reserve(a, ARENA_INSTRUCTIONS, 8, &b[1], err));
    for (int i = 2; i < 7; i++)
        assert_ok(arena_take(a, ARENA_KV, PAGE, &b[i], &p, err));
    assert_err(arena_take(a, ARENA_KV, PAGE, &b[7], &p, err), -ENOMEM, "raise 'npu.memory'");
    arena_give(a, ARENA_WEIGHTS, b[0]);
    assert_ok(arena_take(a, ARENA_KV, 2 * PAGE, &b[0], &p, err)); /* what nobody was promised is anybody's */
    arena_give(a, ARENA_KV, b[0]);
    arena_give(a, ARENA_INSTRUCTIONS, b[1]);
    for (int i = 2; i < 7; i++)
        arena_give(a, ARENA_KV, b[i]);
    arena_close(a);
}

/* A pool of more bytes than the machine has is a promise that costs nothing; none is limited to what it has. */
static void test_sizes(void **state)
{
    (void)state;
    struct arena *a;
    struct arena_stats s;
    assert_ok(arena_open(0, 1, &a, err));
    arena_stats(a, &s);
    assert_int_equal(s.all.bytes, (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE));
    arena_close(a);
    assert_err(arena_open(PAGE - 1, 1, &a, err), -EINVAL, "expected at least");
    assert_err(arena_open(UINT64_C(1) << 60, 1, &a, err), -ENOMEM, "lower 'npu.memory'");
}

static void test_leak(void **state)
{
    (void)state;
    char text[1024] = "";
    struct arena *a;
    uint32_t b;
    FILE *f = tmpfile();
    assert_non_null(f);
    assert_ok(arena_open(8 * PAGE, 4, &a, err));
    assert_ok(arena_reserve(a, ARENA_TILES, 2 * PAGE, &b, err));
    assert_ok(arena_reserve(a, ARENA_INSTRUCTIONS, PAGE, &b, err));
    arena_give(a, ARENA_INSTRUCTIONS, b);
    fflush(stderr);
    int saved = dup(2);
    assert_true(saved >= 0 && dup2(fileno(f), 2) == 2);
    arena_close(a);
    fflush(stderr);
    assert_int_equal(dup2(saved, 2), 2);
    close(saved);
    rewind(f);
    assert_true(fread(text, 1, sizeof(text) - 1, f) > 0);
    fclose(f);
    assert_non_null(strstr(text, "8192 bytes of NPU memory for NPU tiles were not given back"));
    assert_null(strstr(text, "instructions were not"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(test_uses), UNIT_TEST(test_promises), UNIT_TEST(test_sizes), UNIT_TEST(test_leak)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
