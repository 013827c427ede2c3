/* SPDX-License-Identifier: MIT
 * The schedule when the pipeline dies and runs again, at every possible moment: no token is drawn twice, no row given out twice,
 * none is missing, and texts are those of an undisturbed run. */
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

#define REQUESTS 6

static uint32_t random_next(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static uint32_t prompt_of(uint32_t i, uint32_t *ids)
{
    uint32_t n = 3 + i * 37 % 150;
    for (uint32_t j = 0; j < n; j++)
        ids[j] = (i * 41 + j * 7) % VOCAB;
    return n;
}

/* Odd requests draw at random, every third asks for the logits of its prompt. */
static struct request_params request(struct client *c, uint32_t i, uint32_t *ids)
{
    uint32_t n = prompt_of(i, ids);
    struct request_params p = client_params(c, ids, n, i == 5 ? 0 : 20 + i);
    p.sample.temperature = i % 2 ? 4.0f : 0.0f;
    p.sample.seed = i;
    p.all_logits = i % 3 == 2;
    return p;
}

/* kv_lost: never, always, or now and then; a death after each number of output slots between 0 and `every`. */
static uint32_t run_with_deaths(struct client *clients, uint32_t sequences, uint32_t chunk, uint32_t every, int kv_lost,
                                uint32_t seed)
{
    static struct world w;
    uint32_t ids[200], deaths = 0;
    world_open(&w, sequences, chunk, 256);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        struct request_params p = request(&clients[i], i, ids);
        assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
    }
    schedule_pump(w.s);
    w.die_after = every ? random_next(&seed) % every : UINT32_MAX;
    while (schedule_active(w.s)) {
        bool stepped = world_step(&w);
        if (random_next(&seed) % 4)
            world_drain(&w); /* otherwise what is there is lost with the ring */
        if (w.dead) {
            world_restart(&w, false, kv_lost == 2 ? (random_next(&seed) & 1) != 0 : kv_lost != 0);
            w.die_after = 1 + random_next(&seed) % every;
            deaths++;
        } else if (!stepped) {
            world_drain(&w);
            schedule_pump(w.s);
        }
    }
    world_close(&w);
    return deaths;
}

static void test_text_is_that_of_an_undisturbed_run(void **state)
{
    (void)state;
    static const struct {
        uint32_t sequences, chunk;
    } shapes[] = {{1, 4}, {2, 16}, {3, 64}, {4, 5}, {4, 64}};
    for (size_t a = 0; a < ARRAY_LEN(shapes); a++) {
        static struct client want[REQUESTS];
        memset(want, 0, sizeof(want));
        run_with_deaths(want, shapes[a].sequences, shapes[a].chunk, 0, 0, 1);
        for (uint32_t i = 0; i < REQUESTS; i += 2) {
            uint32_t ids[200], n = prompt_of(i, ids);
            client_check(&want[i], ids, n);
        }
        for (int kv_lost = 0; kv_lost < 3; kv_lost++) {
            uint32_t deaths = 0;
            for (uint32_t seed = 0; seed < 40; seed++) {
                static struct client got[REQUESTS];
                memset(got, 0, sizeof(got));
                /* A chunk, or all prompts where the cache is lost, must fit between two deaths, or nobody ever gets further. */
                uint32_t every = kv_lost ? 100 + 2000 / shapes[a].chunk : 2 * shapes[a].chunk + seed;
                deaths += run_with_deaths(got, shapes[a].sequences, shapes[a].chunk, every, kv_lost, seed);
                for (uint32_t i = 0; i < REQUESTS; i++) {
                    assert_int_equal(got[i].finish, want[i].finish);
                    assert_int_equal(got[i].rows, want[i].rows);
                    assert_int_equal(got[i].n, want[i].n);
                    assert_memory_equal(got[i].ids, want[i].ids, want[i].n * sizeof(want[i].ids[0]));
                }
            }
            assert_true(deaths > 30);
        }
    }
}

struct seen {
    uint64_t id;
    struct chunk_token first;
    uint32_t n_tokens, n_seqs, ids;
};

static uint32_t look(struct world *w, struct seen *ret)
{
    uint32_t n = 0;
    const struct chunk_limits lim = {
        .epoch = w->epoch, .max_tokens = 64, .max_seqs = 4, .context = 256, .n_layers = 1, .vocab = VOCAB};
    static struct chunk c;
    const void *payload;
    void *slot;
    while ((slot = ring_peek(w->tokens[1]))) {
        assert_int_equal(chunk_read(slot, ring_slot_bytes(w->tokens[1]), &lim, &c, &payload, NULL), 0);
        ret[n] = (struct seen){.id = c.h.id, .first = c.tokens[0], .n_tokens = c.h.n_tokens, .n_seqs = c.h.n_seqs};
        for (uint32_t i = 0; i < c.h.n_tokens; i++)
            ret[n].ids = ret[n].ids * 31 + ((const uint32_t *)payload)[i];
        n++;
        ring_release(w->tokens[1]);
    }
    return n;
}

/* With the cache intact the same chunks come again, in the same order; with it lost, new ones from the first position. */
static void test_composition(void **state)
{
    (void)state;
    struct world w;
    struct client c[2] = {0};
    struct seen before[4], after[4];
    uint32_t ids[200];
    for (int kv_lost = 0; kv_lost < 2; kv_lost++) {
        world_open(&w, 2, 16, 256);
        memset(c, 0, sizeof(c));
        for (uint32_t i = 0; i < 2; i++) {
            struct request_params p = client_params(&c[i], ids, prompt_of(2, ids), 5);
            assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
        }
        schedule_pump(w.s);
        assert_true(world_step(&w)); /* the first leaves, and a later one takes its place in the table of flights */
        world_drain(&w);
        assert_int_equal(look(&w, before), 4);
        world_restart(&w, true, kv_lost);
        assert_int_equal(look(&w, after), 4);
        for (int i = 0; i < 4; i++) {
            assert_int_equal(after[i].id, before[i].id + (kv_lost ? 4 : 0));
            assert_int_equal(after[i].first.pos, kv_lost ? 16 * (uint32_t)i : before[i].first.pos);
            if (!kv_lost)
                assert_memory_equal(&after[i], &before[i], sizeof(after[i]));
        }
        world_close(&w);
    }
}

static void test_cancelled_in_flight(void **state)
{
    (void)state;
    for (int kv_lost = 0; kv_lost < 2; kv_lost++) {
        struct world w;
        struct client c[3] = {0};
        struct request *r[3];
        uint32_t ids[200], n = prompt_of(3, ids);
        world_open(&w, 2, 16, 256);
        for (int i = 0; i < 3; i++) {
            struct request_params p = client_params(&c[i], ids, n, 10);
            assert_int_equal(schedule_submit(w.s, &p, &r[i], NULL), 0);
        }
        schedule_pump(w.s);
        assert_true(world_step(&w));
        schedule_cancel(w.s, r[0]);
        world_restart(&w, true, kv_lost);
        schedule_cancel(w.s, r[1]); /* on its way again */
        world_restart(&w, true, kv_lost);
        world_run(&w);
        assert_int_equal(c[0].finish, ENGINE_FINISH_CANCELLED);
        assert_int_equal(c[1].finish, ENGINE_FINISH_CANCELLED);
        assert_int_equal(c[2].finish, ENGINE_FINISH_LENGTH);
        assert_int_equal(c[2].n, 10);
        client_check(&c[2], ids, n);
        world_close(&w);
    }
}

/* Pages of ended requests are freed though the chunk that would have done it never arrived. */
static void test_pages_are_freed(void **state)
{
    (void)state;
    for (int kv_lost = 0; kv_lost < 2; kv_lost++) {
        static struct world w;
        static struct client c[12];
        uint32_t ids[200], seed = 5;
        memset(c, 0, sizeof(c));
        world_open(&w, 4, 32, 256);
        w.plan.kv_pages = 6;
        for (uint32_t i = 0; i < 12; i++) {
            struct request_params p = client_params(&c[i], ids, prompt_of(i, ids), 30);
            assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
        }
        schedule_pump(w.s);
        while (schedule_active(w.s)) {
            world_step(&w);
            world_drain(&w);
            if (random_next(&seed) % 12 == 0) { /* died, and twice while suspected: with flights dropped, too */
                world_restart(&w, true, kv_lost);
                world_restart(&w, true, false);
            }
        }
        for (uint32_t i = 0; i < 12; i++) {
            uint32_t len = prompt_of(i, ids);
            assert_int_equal(c[i].finish, ENGINE_FINISH_LENGTH);
            assert_int_equal(c[i].n, 30);
            client_check(&c[i], ids, len);
        }
        world_close(&w);
    }
}

/* A request that kills the pipeline whenever it comes to a position is given up alone; those that travelled with it go on. */
static void test_who_kills_is_given_up(void **state)
{
    (void)state;
    const struct err why = {.code = -ECHILD, .text = "gpu_worker (pid 7) was killed"};
    for (uint32_t poison = 0; poison < 4; poison++) {
        for (int kv_lost = 0; kv_lost < 2; kv_lost++) {
            static struct world w;
            static struct client c[6];
            uint32_t ids[200], deaths = 0, n = prompt_of(2, ids), in_a_row = 0;
            uint64_t progress = 0;
            memset(c, 0, sizeof(c));
            world_open(&w, 4, 64, 256);
            for (uint32_t i = 0; i < 6; i++) {
                struct request_params p = client_params(&c[i], ids, n, 20);
                assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
            }
            w.deadly_seq = poison;
            w.deadly_pos = n + 6;
            schedule_pump(w.s);
            while (schedule_active(w.s)) {
                assert_true(world_step(&w));
                if (w.dead) { /* requests 0 to 3 are in the slots of their numbers */
                    in_a_row = schedule_progress(w.s) == progress ? in_a_row + 1 : 1;
                    progress = schedule_progress(w.s);
                    assert_in_range(++deaths, 1, 20);
                    schedule_pause(w.s, true);
                    if (in_a_row == 4) {
                        assert_int_equal(schedule_give_up(w.s, "4 restarts without progress ('restarts')", &why), 1);
                        w.deadly_pos = UINT32_MAX;
                    }
                    world_restart(&w, false, kv_lost);
                    continue;
                }
                world_drain(&w);
            }
            for (uint32_t i = 0; i < 6; i++) {
                assert_int_equal(c[i].finish, i == poison ? ENGINE_FINISH_ERROR : ENGINE_FINISH_LENGTH);
                assert_int_equal(c[i].n, i == poison ? 7 : 20);
                client_check(&c[i], ids, n);
            }
            assert_int_equal(c[poison].code, -ECHILD);
            assert_non_null(strstr(c[poison].text,
                                   "times in a row a stage died while it was under way; the last: gpu_worker (pid 7) was killed"));
            assert_non_null(strstr(c[poison].text, "given up after 4 restarts without progress ('restarts'): "));
            assert_int_equal(schedule_give_up(w.s, "", &why), 0);
            world_close(&w);
        }
    }
}

/* What killed the pipeline is not sent once more when its request has been given up. */
static void test_nothing_of_it_is_sent_again(void **state)
{
    (void)state;
    const struct err why = {.code = -ECHILD, .text = "gpu_worker (pid 7) was killed"};
    for (int kv_lost = 0; kv_lost < 2; kv_lost++) {
        struct world w;
        struct client c = {0};
        uint32_t ids[200], n = prompt_of(2, ids), done;
        world_open(&w, 4, 64, 256);
        struct request_params p = client_params(&c, ids, n, 20);
        assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
        w.deadly_seq = 0;
        w.deadly_pos = n + 6;
        schedule_pump(w.s);
        for (int deaths = 0; deaths < 2;) {
            assert_true(world_step(&w));
            if (!w.dead) {
                world_drain(&w);
                continue;
            }
            schedule_pause(w.s, true);
            if (++deaths == 2)
                assert_int_equal(schedule_give_up(w.s, "1 restart", &why), 1);
            world_restart(&w, false, kv_lost);
        }
        assert_int_equal(c.finish, ENGINE_FINISH_ERROR);
        assert_int_equal(schedule_in_flight(w.s, &done), 0);
        assert_false(schedule_active(w.s));
        struct client next = {0}; /* and the slot is good for another */
        w.deadly_pos = UINT32_MAX;
        p = client_params(&next, ids, n, 20);
        assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
        schedule_pump(w.s);
        while (schedule_active(w.s)) {
            assert_true(world_step(&w));
            world_drain(&w);
        }
        client_check(&next, ids, n);
        assert_int_equal(next.n, 20);
        world_close(&w);
    }
}

static void test_numerics_are_marked(void **state)
{
    (void)state;
    struct world w;
    struct client c[3] = {0};
    uint32_t ids[200], n = prompt_of(1, ids);
    world_open(&w, 2, 64, 256);
    for (int i = 0; i < 3; i++) {
        struct request_params p = client_params(&c[i], ids, n, 5);
        assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
    }
    schedule_pump(w.s);
    schedule_mark_numerics(w.s);
    world_restart(&w, true, false);
    world_run(&w);
    assert_true(c[0].numerics_changed && c[1].numerics_changed);
    assert_false(c[2].numerics_changed); /* it waited */
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_is_that_of_an_undisturbed_run),
        cmocka_unit_test(test_composition),
        cmocka_unit_test(test_cancelled_in_flight),
        cmocka_unit_test(test_pages_are_freed),
        cmocka_unit_test(test_who_kills_is_given_up),
        cmocka_unit_test(test_nothing_of_it_is_sent_again),
        cmocka_unit_test(test_numerics_are_marked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
