/* SPDX-License-Identifier: MIT
 * What slots keep of the KV cache and later requests find there, against a pipeline of one function (schedule_world.h): every text
 * is that of a request that found nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "proto/util.h"
#include "tests/engine/schedule_world.h"

#define ROOM 400u

struct talk { /* a conversation */
    uint32_t ids[WORLD_CONTEXT], n;
};

static uint32_t dice(uint32_t *state, uint32_t below)
{
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) % below;
}

static void say(struct talk *t, uint32_t seed, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        t->ids[t->n++] = dice(&seed, VOCAB);
}

static void hear(struct talk *t, const struct client *c)
{
    memcpy(t->ids + t->n, c->ids, c->n * sizeof(*t->ids));
    t->n += c->n;
}

static void ask(struct world *w, struct client *c, const struct talk *t, uint32_t max_tokens, struct request **ret)
{
    *c = (struct client){0};
    struct request_params p = client_params(c, t->ids, t->n, max_tokens);
    p.reuse = true;
    assert_int_equal(schedule_submit(w->s, &p, ret, NULL), 0);
}

static uint32_t prompt_tokens(const struct world *w)
{
    struct schedule_counts counts;
    schedule_count(w->s, &counts);
    return (uint32_t)counts.prompt_tokens;
}

static void check(const struct client *c, const struct talk *t)
{
    assert_true(c->finished);
    assert_int_equal(c->finish, ENGINE_FINISH_LENGTH);
    client_check(c, t->ids, t->n);
}

/* Two conversations in turns, on two slots: each turn sends what is new, and the last token of before. */
static void test_turns(void **state)
{
    (void)state;
    for (uint32_t chunk = 4; chunk <= 64; chunk *= 4) {
        struct world w;
        struct talk talks[2] = {0};
        struct client c;
        uint32_t expected = 0;
        world_open(&w, 2, chunk, WORLD_CONTEXT);
        for (uint32_t turn = 0; turn < 8; turn++) {
            struct talk *t = &talks[turn % 2];
            uint32_t before = prompt_tokens(&w), old = t->n;
            say(t, turn, 20 + turn);
            ask(&w, &c, t, 9, NULL);
            world_run(&w);
            check(&c, t);
            assert_int_equal(c.n_cached, turn < 2 ? 0 : old - 1);
            assert_int_equal(prompt_tokens(&w) - before, t->n - c.n_cached);
            expected += c.n_cached;
            hear(t, &c);
        }
        struct schedule_counts counts;
        schedule_count(w.s, &counts);
        assert_int_equal(counts.cached_tokens, expected);
        world_close(&w);
    }
}

static void test_who_may(void **state)
{
    (void)state;
    struct world w;
    struct talk t = {0};
    struct client c;
    world_open(&w, 1, 16, 256);
    say(&t, 1, 100);
    ask(&w, &c, &t, 5, NULL);
    world_run(&w);
    c = (struct client){0}; /* one that does not ask for it finds nothing, and leaves nothing */
    struct request_params p = client_params(&c, t.ids, t.n, 5);
    assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
    world_run(&w);
    check(&c, &t);
    assert_int_equal(c.n_cached, 0);
    for (int i = 0; i < 2; i++) { /* the same again: the last token is sent for its logits */
        ask(&w, &c, &t, 5, NULL);
        world_run(&w);
        check(&c, &t);
        assert_int_equal(c.n_cached, i == 0 ? 0 : t.n - 1);
    }
    c = (struct client){0}; /* all logits need all positions */
    p = client_params(&c, t.ids, t.n, 0);
    p.reuse = p.all_logits = true;
    assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
    world_run(&w);
    assert_int_equal(c.rows, t.n);
    t.ids[15] = (t.ids[15] + 1) % VOCAB; /* too little in common */
    ask(&w, &c, &t, 5, NULL);
    world_run(&w);
    check(&c, &t);
    assert_int_equal(c.n_cached, 0);
    t.ids[16] = (t.ids[16] + 1) % VOCAB;
    ask(&w, &c, &t, 5, NULL);
    world_run(&w);
    check(&c, &t);
    assert_int_equal(c.n_cached, 16);
    world_close(&w);
}

/* A client that goes in the middle of its prompt and comes again at once waits for the chunks under way, even with a place free. */
static void test_again_at_once(void **state)
{
    (void)state;
    struct world w;
    struct talk t = {0};
    struct client c, d;
    struct request *r;
    world_open(&w, 2, 16, 256);
    say(&t, 1, 100);
    ask(&w, &c, &t, 5, &r);
    schedule_pump(w.s);
    schedule_cancel(w.s, r);
    ask(&w, &d, &t, 5, NULL);
    world_run(&w);
    check(&d, &t);
    assert_int_equal(d.n_cached, 4 * 16);
    world_close(&w);
}

/* A short request does not take the place of a conversation while another is free. */
static void test_places(void **state)
{
    (void)state;
    struct world w;
    struct talk talk = {0}, other[4] = {0};
    struct client c;
    world_open(&w, 3, 32, 256);
    say(&talk, 1, 120);
    ask(&w, &c, &talk, 5, NULL);
    world_run(&w);
    for (uint32_t i = 0; i < 2; i++) { /* 20 tokens in common with 124: not worth it */
        memcpy(other[i].ids, talk.ids, 20 * sizeof(*talk.ids));
        other[i].n = 20;
        say(&other[i], 10 + i, 30);
        struct client d;
        ask(&w, &d, &other[i], 5, NULL);
        world_run(&w);
        check(&d, &other[i]);
        assert_int_equal(d.n_cached, 0);
    }
    hear(&talk, &c);
    say(&talk, 3, 10);
    ask(&w, &c, &talk, 5, NULL);
    world_run(&w);
    check(&c, &talk);
    assert_int_equal(c.n_cached, 124);
    say(&other[2], 20, 40); /* none is free: the one that was used least recently goes, that of other[0] */
    struct client d;
    ask(&w, &d, &other[2], 5, NULL);
    world_run(&w);
    check(&d, &other[2]);
    ask(&w, &d, &other[1], 5, NULL);
    world_run(&w);
    assert_int_equal(d.n_cached, other[1].n - 1);
    world_close(&w);
}

/* What is kept gives way to what needs the pages, and only then. The world checks that there are never more. */
static void test_pages(void **state)
{
    (void)state;
    struct world w;
    struct talk talks[3] = {0}, big = {0};
    struct client c;
    world_open(&w, 4, 32, WORLD_CONTEXT);
    w.plan.kv_pages = 6;
    for (uint32_t i = 0; i < 3; i++) {
        say(&talks[i], i, 60);
        ask(&w, &c, &talks[i], 4, NULL);
        world_run(&w);
        check(&c, &talks[i]);
    }
    say(&big, 9, 250); /* 4 pages: one of three has to go */
    ask(&w, &c, &big, 6, NULL);
    world_run(&w);
    check(&c, &big);
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t k = 2 - i; /* the youngest first, so that nothing that is there has to give way to what is not */
        ask(&w, &c, &talks[k], 4, NULL);
        world_run(&w);
        check(&c, &talks[k]);
        assert_int_equal(c.n_cached, k ? 59 : 0);
    }
    for (uint32_t n = 20; n <= 380; n += 40) { /* a prompt of all sizes, and a conversation of 6 pages at its side */
        struct talk t = {0};
        say(&t, n, n);
        ask(&w, &c, &t, 4, NULL);
        world_run(&w);
        check(&c, &t);
        ask(&w, &c, &t, (uint32_t)MIN(384 - n, 60), NULL);
        world_run(&w);
        check(&c, &t);
        assert_int_equal(c.n_cached, n - 1);
    }
    world_close(&w);
}

/* Pages below the window are gone: what would see them is sent from the beginning. */
static void test_window(void **state)
{
    (void)state;
    struct world w;
    struct talk t = {0}, cut;
    struct client c;
    world_open(&w, 1, 16, WORLD_CONTEXT);
    w.plan.hparams.n_layers = w.plan.hparams.global_every = 2;
    w.plan.hparams.window = 64;
    w.plan.kv_pages = 1000;
    say(&t, 1, 200);
    ask(&w, &c, &t, 50, NULL); /* to position 248 is committed: 185 and above are seen, so that pages from 128 on are there */
    world_run(&w);
    check(&c, &t);
    hear(&t, &c);
    static const uint32_t lengths[] = {250, 200, 193, 250, 150, 300};
    static const uint32_t cached[] = {249, 199, 192, 193, 0, 150};
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        cut = t;
        cut.n = MIN(lengths[i], t.n);
        say(&cut, 7, lengths[i] - cut.n);
        ask(&w, &c, &cut, 1, NULL);
        world_run(&w);
        check(&c, &cut);
        assert_int_equal(c.n_cached, cached[i]);
    }
    world_close(&w);
}

static void test_backend_and_death(void **state)
{
    (void)state;
    struct world w;
    struct talk t = {0};
    struct client c;
    world_open(&w, 2, 16, 256);
    say(&t, 1, 50);
    for (int i = 0; i < 4; i++) { /* nothing; another stage died; npu_worker died; the backend is another */
        ask(&w, &c, &t, 20, NULL);
        world_run(&w);
        check(&c, &t);
        assert_int_equal(c.n_cached, i == 1 ? 49 : 0);
        if (i == 2)
            schedule_mark_numerics(w.s);
        world_restart(&w, false, i == 1);
    }
    ask(&w, &c, &t, 20, NULL); /* what ran meanwhile leaves nothing either */
    schedule_pump(w.s);
    for (int i = 0; i < 6; i++)
        world_step(&w);
    schedule_mark_numerics(w.s);
    world_run(&w);
    check(&c, &t);
    ask(&w, &c, &t, 20, NULL);
    world_run(&w);
    assert_int_equal(c.n_cached, 0);
    w.fail_next = (struct err){.code = -EIO, .text = "no"};
    ask(&w, &c, &t, 20, NULL);
    world_run(&w);
    assert_int_equal(c.finish, ENGINE_FINISH_ERROR);
    ask(&w, &c, &t, 20, NULL);
    world_run(&w);
    check(&c, &t);
    assert_int_equal(c.n_cached, 0);
    world_close(&w);
}

/* Conversations that branch anywhere, are cancelled anywhere, on few pages, with deaths of stages in between. */
static void test_anything(void **state)
{
    (void)state;
    uint64_t cached = 0;
    for (uint32_t seed = 0; seed < 60; seed++) {
        struct world w;
        struct talk talks[5] = {0};
        struct client c[3];
        struct request *r[3];
        uint32_t rnd = seed, sequences = 1 + seed % 4;
        world_open(&w, sequences, 4u << seed % 4, WORLD_CONTEXT);
        if (seed % 3 == 0) {
            w.plan.hparams.n_layers = w.plan.hparams.global_every = 2;
            w.plan.hparams.window = 64;
            w.plan.kv_pages = 1000;
        } else {
            w.plan.kv_pages = 8 + dice(&rnd, 4);
        }
        for (uint32_t round = 0; round < 40; round++) {
            struct talk *mine[3];
            bool cancelled[3] = {false};
            uint32_t n = 1 + dice(&rnd, 3);
            for (uint32_t i = 0; i < n; i++) {
                struct talk *t = mine[i] = &talks[(round + i) % 5];
                t->n = dice(&rnd, 3) ? t->n : t->n - dice(&rnd, t->n + 1);
                if (t->n > ROOM)
                    t->n = dice(&rnd, 30);
                say(t, dice(&rnd, 1000), 1 + dice(&rnd, 40));
                ask(&w, &c[i], t, 1 + dice(&rnd, 60), &r[i]);
            }
            schedule_pump(w.s);
            for (uint32_t steps = dice(&rnd, 60); steps && schedule_active(w.s); steps--) {
                uint32_t i = dice(&rnd, n);
                if (dice(&rnd, 40) == 0 && !c[i].finished) {
                    schedule_cancel(w.s, r[i]);
                    cancelled[i] = true;
                }
                if (dice(&rnd, 60) == 0)
                    world_restart(&w, dice(&rnd, 2), dice(&rnd, 2));
                world_step(&w);
                schedule_pump(w.s);
            }
            world_run(&w);
            for (uint32_t i = 0; i < n; i++) {
                assert_true(c[i].finished);
                assert_int_equal(c[i].finish, cancelled[i] ? ENGINE_FINISH_CANCELLED : ENGINE_FINISH_LENGTH);
                client_check(&c[i], mine[i]->ids, mine[i]->n);
                cached += c[i].n_cached;
                hear(mine[i], &c[i]);
            }
        }
        world_close(&w);
    }
    assert_true(cached > 100000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_turns),
        cmocka_unit_test(test_who_may),
        cmocka_unit_test(test_again_at_once),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_pages),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_backend_and_death),
        cmocka_unit_test(test_anything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
