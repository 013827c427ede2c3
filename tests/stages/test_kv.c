/* SPDX-License-Identifier: MIT
 * The paged KV cache: how many pages are in use, that they come back, that a plan is never exceeded by what the plan allows, and
 * that everything else is refused. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/quant.h"
#include "model/work_plan.h"
#include "npu_worker/arena.h"
#include "npu_worker/kv.h"
#include "proto/budget.h"
#include "proto/err.h"
#include "proto/util.h"

#define PAGE 64

/* Layers 0..4 local with a window of 128, layer 5 global. */
static const struct hparams hp = {.n_layers = 6,
                                  .hidden = 64,
                                  .ffn = 64,
                                  .n_heads = 2,
                                  .n_kv_heads = 1,
                                  .head_dim = 16,
                                  .vocab = 32,
                                  .window = 128,
                                  .global_every = 6,
                                  .context_max = 8192,
                                  .eps = 1e-6f,
                                  .attn_scale = 1};

static struct budget budget;
static struct arena *arena;
static struct kv *kv;

static struct kv_options options(uint32_t context, uint32_t sequences, uint32_t chunk_tokens, uint32_t ring_slots)
{
    return (struct kv_options){.hparams = &hp,
                               .budget = &budget,
                               .context = context,
                               .sequences = sequences,
                               .chunk_tokens = chunk_tokens,
                               .ring_slots = ring_slots,
                               .kv_type = QUANT_F16};
}

static void open_kv(uint32_t context, uint32_t sequences, uint32_t chunk_tokens, uint32_t ring_slots)
{
    struct err err = {0};
    budget_init(&budget, "npu_worker", 0);
    struct kv_options o = options(context, sequences, chunk_tokens, ring_slots);
    assert_int_equal(kv_make_arena(&o, 0, &arena, &err), 0);
    o.arena = arena;
    if (kv_open(&o, &kv, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(budget.used[BUDGET_KV], work_plan_kv_bytes(&hp, context, sequences, chunk_tokens, ring_slots, QUANT_F16, 0));
}

static void close_kv(void)
{
    kv_close(kv);
    kv = NULL;
    struct arena_stats s;
    arena_stats(arena, &s);
    assert_int_equal(s.all.blocks, 0); /* nothing leaked */
    assert_int_equal(s.used[ARENA_KV], 0);
    arena_close(arena);
    assert_int_equal(budget.total, 0);
}

/* One chunk through all layers; every page it needs is there and is filled with the sequence's mark. */
static void put(uint32_t seq, uint32_t committed, uint32_t pos, uint32_t n)
{
    struct err err = {0};
    for (uint32_t layer = 0; layer < hp.n_layers; layer++) {
        void *const *pages;
        if (kv_prepare(kv, layer, seq, committed, pos, n, &pages, &err) < 0)
            fail_msg("%s", err.text);
        uint32_t from = hparams_is_global(&hp, layer) || pos < hp.window ? 0 : pos + 1 - hp.window;
        for (uint32_t p = from / PAGE; p <= (pos + n - 1) / PAGE; p++)
            assert_non_null(pages[p]);
        for (uint32_t i = pos; i < pos + n; i++)
            ((uint32_t *)pages[i / PAGE])[i % PAGE] = seq * 1000000 + layer * 100000 + i;
        for (uint32_t i = from; i < pos + n; i++) /* nobody else wrote there */
            assert_int_equal(((const uint32_t *)pages[i / PAGE])[i % PAGE], seq * 1000000 + layer * 100000 + i);
    }
}

static void refused(int code, const char *word, uint32_t layer, uint32_t seq, uint32_t committed, uint32_t pos, uint32_t n)
{
    struct err err = {0};
    void *const *pages;
    assert_int_equal(kv_prepare(kv, layer, seq, committed, pos, n, &pages, &err), code);
    assert_non_null(strstr(err.text, word));
}

static void test_pages_follow_the_window(void **state)
{
    (void)state;
    open_kv(4096, 1, 1, 1);
    uint64_t most = 0;
    for (uint32_t pos = 0; pos < 4096; pos++) {
        put(0, pos, pos, 1);
        uint64_t global = pos / PAGE + 1, local = kv_pages_used(kv) - global;
        most = MAX(most, local);
        assert_true(local <= 5 * 3); /* 128 positions touch at most three pages */
        if (pos >= 128)
            assert_true(local >= 5 * 2);
    }
    assert_int_equal(most, 15);
    kv_free(kv, 0);
    assert_int_equal(kv_pages_used(kv), 0);
    close_kv();
}

/* The most that may be in flight: ring_slots chunks beyond the committed position, and the one being computed. */
static void test_plan_covers_what_is_in_flight(void **state)
{
    (void)state;
    static const uint32_t chunks[] = {1, 7, 64, 100};
    for (size_t i = 0; i < ARRAY_LEN(chunks); i++) {
        uint32_t c = chunks[i];
        open_kv(2000, 2, c, 4);
        for (uint32_t at = 0; at + c <= 2000; at += c) {
            for (uint32_t seq = 0; seq < 2; seq++)
                put(seq, at > 4 * c ? at - 4 * c : 0, at, c);
        }
        assert_true(kv_pages_used(kv) <= kv_pages_total(kv));
        close_kv();
    }
}

static void test_reissue(void **state)
{
    (void)state;
    open_kv(1024, 1, 64, 4);
    for (uint32_t at = 0; at < 512; at += 64)
        put(0, at > 256 ? at - 256 : 0, at, 64);
    uint64_t used = kv_pages_used(kv);
    for (uint32_t at = 192; at < 512; at += 64) /* everything from the committed position on */
        put(0, 192, at, 64);
    assert_int_equal(kv_pages_used(kv), used);
    close_kv();
}

static void test_refusals(void **state)
{
    (void)state;
    open_kv(1024, 2, 64, 1);
    put(0, 0, 0, 64);
    refused(-EINVAL, "missing", 0, 0, 0, 65, 1);
    refused(-EINVAL, "missing", 5, 1, 0, 1, 1);
    refused(-EINVAL, "do not fit a context of 1024", 0, 0, 0, 1024, 1);
    refused(-EINVAL, "do not fit a context of 1024", 0, 0, 0, 64, 961);
    refused(-EINVAL, "do not fit a context of 1024", 0, 0, 0, UINT32_MAX, 2);
    refused(-EINVAL, "expected less than 6 and 2", 6, 0, 0, 0, 1);
    refused(-EINVAL, "expected less than 6 and 2", 0, 2, 0, 0, 1);
    for (uint32_t at = 64; at < 512; at += 64)
        put(0, at, at, 64);
    refused(-EINVAL, "given back", 0, 0, 448, 64, 64);
    put(0, 448, 448, 64);
    kv_free(kv, 7); /* no such sequence: nothing happens */
    kv_free(kv, 0);
    assert_int_equal(kv_pages_used(kv), 0);
    refused(-EINVAL, "missing", 0, 0, 0, 1, 1);
    close_kv();
}

/* A coordinator that never commits: the pool ends, with an error that says so, and is whole again after a free. */
static void test_exhaustion(void **state)
{
    (void)state;
    struct err err = {0};
    open_kv(8192, 1, 64, 1);
    int r = 0;
    uint32_t at = 0;
    for (; r == 0 && at < 8192; at += 64) {
        for (uint32_t layer = 0; r == 0 && layer < hp.n_layers; layer++) {
            void *const *pages;
            r = kv_prepare(kv, layer, 0, 0, at, 64, &pages, &err);
        }
    }
    assert_int_equal(r, -ENOSPC);
    assert_non_null(strstr(err.text, "pages are in use"));
    assert_int_equal(kv_pages_used(kv), kv_pages_total(kv));
    kv_free(kv, 0);
    assert_int_equal(kv_pages_used(kv), 0);
    put(0, 0, 0, 64);
    close_kv();
}

static void test_budget(void **state)
{
    (void)state;
    struct err err = {0};
    struct kv_options o = options(1024, 4, 64, 4);
    assert_int_equal(kv_make_arena(&o, 0, &arena, &err), 0);
    o.arena = arena;
    uint64_t need = work_plan_kv_bytes(&hp, 1024, 4, 64, 4, QUANT_F16, 0);
    budget_init(&budget, "npu_worker", need - 1);
    assert_int_equal(kv_open(&o, &kv, &err), -ENOMEM);
    assert_non_null(strstr(err.text, "npu_worker"));
    assert_non_null(strstr(err.text, "for kv"));
    assert_non_null(strstr(err.text, "lower 'context'"));
    assert_int_equal(budget.total, 0);
    budget_init(&budget, "npu_worker", need);
    assert_int_equal(kv_open(&o, &kv, &err), 0);
    close_kv();
    assert_int_equal(kv_make_arena(&o, 0, &arena, &err), 0);
    o.arena = arena;
    for (int n = 0;; n++) {
        budget_init(&budget, "npu_worker", 0);
        budget.fail_after = n;
        int r = kv_open(&o, &kv, &err);
        if (r == 0)
            break;
        assert_int_equal(r, -ENOMEM);
        assert_int_equal(budget.total, 0);
        assert_true(n < 100);
    }
    close_kv();
}

/* Heads that blocks of 32 do not divide; and what is no type of a cache. */
static void test_types(void **state)
{
    (void)state;
    static const struct {
        uint32_t head_dim;
        int kv_type, result;
    } cases[] = {{64, QUANT_Q8_0, 0}, {80, QUANT_F16, 0}, {80, QUANT_Q8_0, -ENOTSUP}, {64, QUANT_Q4_0, -ENOTSUP}};
    budget_init(&budget, "npu_worker", 0);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct hparams h = hp;
        struct err err = {0};
        struct kv *k = NULL;
        struct kv_options o = options(128, 1, 16, 1);
        h.head_dim = cases[i].head_dim;
        assert_int_equal(kv_make_arena(&o, 0, &arena, &err), 0);
        o.arena = arena;
        o.hparams = &h;
        o.kv_type = cases[i].kv_type;
        assert_int_equal(kv_open(&o, &k, &err), cases[i].result);
        assert_true(cases[i].result == 0 || strstr(err.text, "expected f32, f16, or q8_0 with a multiple of 32"));
        kv_close(k);
        arena_close(arena);
        assert_int_equal(budget.used[BUDGET_KV], 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages_follow_the_window),
        cmocka_unit_test(test_plan_covers_what_is_in_flight),
        cmocka_unit_test(test_reissue),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_exhaustion),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
