/* SPDX-License-Identifier: MIT
 * The schedule against a pipeline of one function (schedule_world.h): batching, pages, limits, failures of chunks, lies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "proto/ring.h"
#include "proto/util.h"
#include "tests/engine/schedule_world.h"

static void test_text_is_independent_of_batching(void **state)
{
    (void)state;
    static const uint32_t chunks[] = {4, 5, 16, 64}, sequences[] = {1, 2, 3, 4};
    for (size_t a = 0; a < ARRAY_LEN(chunks); a++) {
        for (size_t b = 0; b < ARRAY_LEN(sequences); b++) {
            struct world w;
            struct client clients[9] = {0};
            uint32_t prompt[9][40];
            world_open(&w, sequences[b], chunks[a], 128);
            for (uint32_t i = 0; i < 9; i++) {
                for (uint32_t j = 0; j < 40; j++)
                    prompt[i][j] = (i * 41 + j * 7) % VOCAB;
                struct request_params p = client_params(&clients[i], prompt[i], 3 + i * 4, 5 + i * 3);
                assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
            }
            world_run(&w);
            for (uint32_t i = 0; i < 9; i++) {
                assert_true(clients[i].finished);
                assert_int_equal(clients[i].finish, ENGINE_FINISH_LENGTH);
                assert_int_equal(clients[i].n, 5 + i * 3);
                client_check(&clients[i], prompt[i], 3 + i * 4);
            }
            assert_true(w.largest <= chunks[a]);
            assert_true(sequences[b] == 1 || w.decode_batch > 1);
            world_close(&w);
        }
    }
}

/* Four slots, and pages for two or three requests of the lengths below: each waits until what it may store has room. */
static void test_pages_are_shared(void **state)
{
    (void)state;
    for (uint32_t chunk = 4; chunk <= 128; chunk *= 2) {
        struct world w;
        struct client clients[12] = {0};
        uint32_t prompt[12][200];
        world_open(&w, 4, chunk, 256);
        w.plan.kv_pages = 6;
        for (uint32_t i = 0; i < 12; i++) {
            uint32_t n = i % 5 == 4 ? 200 : 20 + 9 * i;
            for (uint32_t j = 0; j < n; j++)
                prompt[i][j] = (i * 13 + j * 5) % VOCAB;
            struct request_params p = client_params(&clients[i], prompt[i], n, 50);
            assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
        }
        world_run(&w);
        for (uint32_t i = 0; i < 12; i++) {
            assert_int_equal(clients[i].finish, ENGINE_FINISH_LENGTH);
            assert_int_equal(clients[i].n, 50);
            client_check(&clients[i], prompt[i], i % 5 == 4 ? 200 : 20 + 9 * i);
        }
        assert_in_range(w.decode_batch, 2, 4);
        world_close(&w);
    }
}

static void test_all_logits(void **state)
{
    (void)state;
    struct world w;
    struct client c = {0};
    uint32_t prompt[50] = {1, 2, 3};
    world_open(&w, 2, 8, 64);
    struct request_params p = client_params(&c, prompt, 50, 0);
    p.all_logits = true;
    assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
    world_run(&w);
    assert_true(c.finished);
    assert_int_equal(c.rows, 50);
    assert_int_equal(c.n, 0);
    world_close(&w);
}

/* The loader may be slow to give a slot back: no chunk is lost for want of one. */
static void test_slots_come_back_late(void **state)
{
    (void)state;
    struct world w;
    struct client c = {0};
    uint32_t prompt[100] = {1, 2, 3};
    world_open(&w, 1, 1, 128);
    w.late = true;
    struct request_params p = client_params(&c, prompt, 100, 20);
    assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
    world_run(&w);
    assert_int_equal(c.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(c.n, 20);
    client_check(&c, prompt, 100);
    world_close(&w);
}

static void test_context_is_a_limit(void **state)
{
    (void)state;
    struct world w;
    struct client c = {0};
    uint32_t prompt[17] = {9};
    struct err err = {0};
    world_open(&w, 1, 8, 16);
    struct request_params p = client_params(&c, prompt, 17, 4);
    assert_int_equal(schedule_submit(w.s, &p, NULL, &err), -E2BIG);
    assert_non_null(strstr(err.text, "17 tokens"));
    prompt[3] = VOCAB;
    p = client_params(&c, prompt, 10, 100);
    assert_int_equal(schedule_submit(w.s, &p, NULL, &err), -EINVAL);
    prompt[3] = 0;
    assert_int_equal(schedule_submit(w.s, &p, NULL, &err), 0);
    world_run(&w);
    assert_int_equal(c.finish, ENGINE_FINISH_CONTEXT);
    assert_int_equal(c.n, 7); /* positions 9..15 each give one token */
    client_check(&c, prompt, 10);
    world_close(&w);
}

static void test_failed_chunk_fails_its_requests_only(void **state)
{
    (void)state;
    struct world w;
    struct client a = {0}, b = {0};
    uint32_t prompt[6] = {3, 1, 4, 1, 5, 9};
    world_open(&w, 1, 8, 64);
    struct request_params p = client_params(&a, prompt, 6, 4);
    assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
    p.ctx = &b;
    assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
    err_set(&w.fail_next, -ENOMEM, "no page left");
    world_run(&w);
    assert_int_equal(a.finish, ENGINE_FINISH_ERROR);
    assert_int_equal(a.code, -ENOMEM);
    assert_string_equal(a.text, "no page left");
    assert_int_equal(b.finish, ENGINE_FINISH_LENGTH);
    client_check(&b, prompt, 6);
    world_close(&w);
}

static void test_cancel_and_fail(void **state)
{
    (void)state;
    struct world w;
    struct client c[3] = {0};
    struct request *r[3];
    uint32_t prompt[30] = {2};
    struct err err = {.code = -ECHILD, .text = "gone"};
    world_open(&w, 1, 4, 64);
    for (int i = 0; i < 3; i++) {
        struct request_params p = client_params(&c[i], prompt, 30, 5);
        assert_int_equal(schedule_submit(w.s, &p, &r[i], NULL), 0);
    }
    schedule_pump(w.s);
    schedule_cancel(w.s, r[0]); /* chunks in flight */
    schedule_cancel(w.s, r[2]); /* queued */
    assert_int_equal(c[0].finish, ENGINE_FINISH_CANCELLED);
    assert_int_equal(c[2].finish, ENGINE_FINISH_CANCELLED);
    world_run(&w);
    assert_int_equal(c[1].finish, ENGINE_FINISH_LENGTH);
    client_check(&c[1], prompt, 30);
    struct request_params p = client_params(&c[0], prompt, 30, 5);
    memset(&c[0], 0, sizeof(c[0]));
    assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
    schedule_pump(w.s);
    schedule_fail(w.s, &err);
    assert_int_equal(c[0].finish, ENGINE_FINISH_ERROR);
    assert_int_equal(schedule_active(w.s), 0);
    world_close(&w);
}

static void test_lies_are_refused(void **state)
{
    (void)state;
    for (int lie = 0; lie < 4; lie++) {
        struct world w;
        struct client c = {0};
        struct err err = {0};
        uint32_t prompt[4] = {1, 2, 3, 4};
        static struct chunk o;
        world_open(&w, 1, 8, 64);
        struct request_params p = client_params(&c, prompt, 4, 5);
        assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
        schedule_pump(w.s);
        memset(&o, 0, sizeof(o));
        o.h = (struct chunk_header){.magic = CHUNK_MAGIC, .epoch = 7, .id = 1, .kind = CHUNK_DONE, .n_tokens = 1, .n_seqs = 1};
        if (lie == 0)
            o.h.id = 99; /* a chunk that is not in flight */
        if (lie == 2) {  /* logits of a chunk that is not in flight */
            o.h.kind = CHUNK_LOGITS;
            o.h.id = 50;
            o.h.n_rows = 1;
            o.h.payload_bytes = VOCAB * 4;
        }
        if (lie == 3)
            o.h.magic = 1;
        world_out(&w, &o); /* lie 1: done without its logits */
        ring_commit(w.output[1]);
        assert_int_equal(schedule_drain(w.s, &err), -EPROTO);
        assert_non_null(strstr(err.text, "gpu_worker"));
        world_close(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_is_independent_of_batching),
        cmocka_unit_test(test_pages_are_shared),
        cmocka_unit_test(test_all_logits),
        cmocka_unit_test(test_slots_come_back_late),
        cmocka_unit_test(test_context_is_a_limit),
        cmocka_unit_test(test_failed_chunk_fails_its_requests_only),
        cmocka_unit_test(test_cancel_and_fail),
        cmocka_unit_test(test_lies_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
