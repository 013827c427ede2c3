/* SPDX-License-Identifier: MIT
 * The schedule against a pipeline of one function: what it sends is read from the token ring and answered on the output ring.
 * The "model" is a hash of (token, position): the next token of a sequence is known without running the schedule, so lost,
 * doubled, reordered or mixed-up tokens are seen at once, whatever the chunk size, batch and order of requests. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "coordinator/schedule.h"
#include "model/work_plan.h"
#include "proto/err.h"
#include "proto/ring.h"
#include "proto/util.h"

#define VOCAB 97
#define HIDDEN 16

struct world {
    struct plan plan;
    struct schedule *s;
    struct bell *bell;
    int bell_fd, fds[2];
    struct ring *tokens[2], *output[2]; /* coordinator's end, pipeline's end */
    uint32_t n_seen[64];                /* positions seen per slot, for the check of order */
    uint32_t chunks, largest, decode_batch;
    struct err fail_next;
};

static uint32_t next_token(uint32_t id, uint32_t pos)
{
    return (id * 31 + pos * 17 + 5) % VOCAB;
}

static uint32_t pages_of(uint32_t positions)
{
    return (positions + WORK_PLAN_PAGE_POSITIONS - 1) / WORK_PLAN_PAGE_POSITIONS;
}

static void world_open(struct world *w, uint32_t sequences, uint32_t chunk, uint32_t context)
{
    struct err err = {0};
    memset(w, 0, sizeof(*w));
    struct plan *p = &w->plan;
    p->hparams.vocab = VOCAB;
    p->hparams.hidden = HIDDEN;
    p->hparams.n_layers = p->hparams.global_every = 1;
    p->context = context;
    p->sequences = sequences;
    p->chunk_tokens = chunk;
    p->ring_slots = p->logits_slots = 4;
    p->token_slots = 8;
    p->logits_rows = 3;
    p->kv_pages = sequences * pages_of(context);
    w->bell_fd = bell_make(&err);
    assert_true(w->bell_fd >= 0);
    assert_int_equal(bell_map(w->bell_fd, &w->bell, &err), 0);
    size_t slots[2] = {chunk_slot_bytes(chunk, sequences, chunk * 4), chunk_slot_bytes(chunk, sequences, 3 * VOCAB * 4)};
    for (int i = 0; i < 2; i++) {
        struct ring **r = i ? w->output : w->tokens;
        w->fds[i] = ring_make("test", i ? p->logits_slots : p->token_slots, slots[i], 7, &err);
        assert_true(w->fds[i] >= 0);
        assert_int_equal(ring_attach(w->fds[i], i ? RING_CONSUMER : RING_PRODUCER, 7, w->bell, w->bell, &r[0], &err), 0);
        assert_int_equal(ring_attach(w->fds[i], i ? RING_PRODUCER : RING_CONSUMER, 7, w->bell, w->bell, &r[1], &err), 0);
    }
    assert_int_equal(schedule_open(p, &w->s, &err), 0);
    schedule_attach(w->s, w->tokens[0], w->output[0], 7);
}

static void world_close(struct world *w)
{
    schedule_close(w->s);
    for (int i = 0; i < 2; i++) {
        ring_detach(w->tokens[i]);
        ring_detach(w->output[i]);
        close(w->fds[i]);
    }
    bell_unmap(w->bell);
    close(w->bell_fd);
}

static void drain(struct world *w)
{
    struct err err = {0};
    assert_int_equal(schedule_drain(w->s, &err), 0);
}

/* A slot of the output ring; the coordinator is given the chance to empty it first. */
static void *out(struct world *w, const struct chunk *c)
{
    void *slot = ring_reserve(w->output[1]);
    if (!slot) {
        drain(w);
        slot = ring_reserve(w->output[1]);
    }
    assert_non_null(slot);
    return chunk_write(slot, ring_slot_bytes(w->output[1]), c);
}

static void answer(struct world *w, struct chunk *c, const uint32_t *ids)
{
    uint32_t want = 0;
    struct chunk o = *c;
    for (uint32_t i = 0; i < c->h.n_tokens; i++) {
        if (!(c->tokens[i].flags & CHUNK_WANT_LOGITS))
            continue;
        o.h.kind = CHUNK_LOGITS;
        o.h.first_row = want++;
        o.h.n_rows = 1;
        o.h.payload_bytes = VOCAB * 4;
        float *row = out(w, &o);
        for (uint32_t v = 0; v < VOCAB; v++)
            row[v] = v == next_token(ids[i], c->tokens[i].pos) ? 5.0f : 0.0f;
        ring_commit(w->output[1]);
    }
    o.h.kind = CHUNK_DONE;
    o.h.first_row = o.h.n_rows = o.h.payload_bytes = 0;
    if (w->fail_next.code) {
        o.h.kind = CHUNK_FAILED;
        o.h.status = w->fail_next.code;
        o.h.payload_bytes = (uint32_t)strlen(w->fail_next.text) + 1;
        memcpy(out(w, &o), w->fail_next.text, o.h.payload_bytes);
        w->fail_next.code = 0;
    } else {
        out(w, &o);
    }
    ring_commit(w->output[1]);
}

/* Take one chunk off the token ring and answer it; false when there is none. */
static bool pipeline_step(struct world *w)
{
    static struct chunk c;
    struct err err = {0};
    struct chunk_limits lim = {.epoch = 7,
                               .max_tokens = w->plan.chunk_tokens,
                               .max_seqs = w->plan.sequences,
                               .context = w->plan.context,
                               .n_layers = 1,
                               .vocab = VOCAB,
                               .hidden = HIDDEN};
    const void *payload;
    void *slot = ring_peek(w->tokens[1]);
    if (!slot)
        return false;
    assert_int_equal(chunk_read(slot, ring_slot_bytes(w->tokens[1]), &lim, &c, &payload, &err), 0);
    uint32_t ids[CHUNK_MAX_TOKENS];
    memcpy(ids, payload, c.h.payload_bytes);
    for (uint32_t i = 0; i < c.h.n_seqs; i++) {
        if (c.seqs[i].flags & CHUNK_SEQ_FREE)
            w->n_seen[c.seqs[i].seq] = 0;
        assert_true(c.seqs[i].committed_pos <= w->n_seen[c.seqs[i].seq]);
    }
    for (uint32_t i = 0; i < c.h.n_tokens; i++)
        assert_int_equal(c.tokens[i].pos, w->n_seen[c.tokens[i].seq]++);
    uint32_t pages = 0;
    for (uint32_t i = 0; i < w->plan.sequences; i++)
        pages += pages_of(w->n_seen[i]);
    assert_true(pages <= w->plan.kv_pages);
    w->chunks++;
    w->largest = MAX(w->largest, c.h.n_tokens);
    if (c.h.n_seqs > 1 && c.h.n_tokens == c.h.n_seqs)
        w->decode_batch = MAX(w->decode_batch, c.h.n_seqs);
    answer(w, &c, ids);
    drain(w); /* the answer is there, and perhaps the next chunk sent, before the loader gives the slot up */
    ring_release(w->tokens[1]);
    return true;
}

static void run(struct world *w)
{
    schedule_pump(w->s);
    while (schedule_active(w->s)) {
        assert_true(pipeline_step(w));
        drain(w);
    }
}

/* In streaming mode: whole passes, nothing new before the last of them is answered, and the same tokens. */
static void run_passes(struct world *w, uint32_t *ret_passes)
{
    schedule_pump(w->s);
    for (*ret_passes = 0; schedule_active(w->s); ++*ret_passes) {
        uint32_t n = 0, count = 0;
        do {
            const struct chunk_header *h = ring_peek(w->tokens[1]);
            assert_non_null(h);
            assert_int_equal(h->pass_index, n);
            assert_true(h->pass_count <= w->plan.ring_slots && (n == 0 || h->pass_count == count));
            count = h->pass_count;
            assert_int_equal(ring_fill(w->tokens[1]), count - n);
            assert_true(pipeline_step(w));
            drain(w);
        } while (++n < count);
    }
}

struct client {
    uint32_t ids[128], n, rows;
    bool finished;
    enum engine_finish finish;
    int code;
    char text[64];
};

static void on_token(void *ctx, uint32_t id, uint32_t index)
{
    struct client *c = ctx;
    assert_int_equal(index, c->n);
    c->ids[c->n++] = id;
}

static void on_logits(void *ctx, uint32_t pos, const float *row, uint32_t vocab)
{
    struct client *c = ctx;
    assert_int_equal(pos, c->rows++);
    assert_int_equal(vocab, VOCAB);
    assert_non_null(row);
}

static void on_finished(void *ctx, const struct request_result *r)
{
    struct client *c = ctx;
    assert_false(c->finished);
    c->finished = true;
    c->finish = r->finish;
    if (r->err) {
        c->code = r->err->code;
        snprintf(c->text, sizeof(c->text), "%.63s", r->err->text);
    }
}

static struct request_params params(struct client *c, const uint32_t *ids, uint32_t n, uint32_t max_tokens)
{
    struct request_params p = {.ids = ids,
                               .n_ids = n,
                               .max_tokens = max_tokens,
                               .token = on_token,
                               .logits = on_logits,
                               .finished = on_finished,
                               .ctx = c};
    sample_params_default(&p.sample);
    p.sample.temperature = 0;
    return p;
}

static void check_output(const struct client *c, const uint32_t *prompt, uint32_t n)
{
    uint32_t id = prompt[n - 1];
    for (uint32_t i = 0; i < c->n; i++) {
        id = next_token(id, n - 1 + i);
        assert_int_equal(c->ids[i], id);
    }
}

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
                struct request_params p = params(&clients[i], prompt[i], 3 + i * 4, 5 + i * 3);
                assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
            }
            run(&w);
            for (uint32_t i = 0; i < 9; i++) {
                assert_true(clients[i].finished);
                assert_int_equal(clients[i].finish, ENGINE_FINISH_LENGTH);
                assert_int_equal(clients[i].n, 5 + i * 3);
                check_output(&clients[i], prompt[i], 3 + i * 4);
            }
            struct schedule_counts counts;
            schedule_count(w.s, &counts);
            assert_int_equal(counts.prompt_tokens, 9 * 3 + 36 * 4);
            assert_int_equal(counts.output_tokens, 9 * 5 + 36 * 3);
            assert_int_equal(counts.finished, 9);
            assert_int_equal(counts.failed + counts.running + counts.queued + counts.in_flight, 0);
            assert_true(counts.prompt_per_second > 0 && counts.output_per_second > 0);
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
            struct request_params p = params(&clients[i], prompt[i], n, 50);
            assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
        }
        run(&w);
        for (uint32_t i = 0; i < 12; i++) {
            assert_int_equal(clients[i].finish, ENGINE_FINISH_LENGTH);
            assert_int_equal(clients[i].n, 50);
            check_output(&clients[i], prompt[i], i % 5 == 4 ? 200 : 20 + 9 * i);
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
    struct request_params p = params(&c, prompt, 50, 0);
    p.all_logits = true;
    assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
    run(&w);
    assert_true(c.finished);
    assert_int_equal(c.rows, 50);
    assert_int_equal(c.n, 0);
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
    struct request_params p = params(&c, prompt, 17, 4);
    assert_int_equal(schedule_submit(w.s, &p, NULL, &err), -E2BIG);
    assert_non_null(strstr(err.text, "17 tokens"));
    prompt[3] = VOCAB;
    p = params(&c, prompt, 10, 100);
    assert_int_equal(schedule_submit(w.s, &p, NULL, &err), -EINVAL);
    prompt[3] = 0;
    assert_int_equal(schedule_submit(w.s, &p, NULL, &err), 0);
    run(&w);
    assert_int_equal(c.finish, ENGINE_FINISH_CONTEXT);
    assert_int_equal(c.n, 7); /* positions 9..15 each give one token */
    check_output(&c, prompt, 10);
    world_close(&w);
}

static void test_failed_chunk_fails_its_requests_only(void **state)
{
    (void)state;
    struct world w;
    struct client a = {0}, b = {0};
    uint32_t prompt[6] = {3, 1, 4, 1, 5, 9};
    world_open(&w, 1, 8, 64);
    struct request_params p = params(&a, prompt, 6, 4);
    assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
    p.ctx = &b;
    assert_int_equal(schedule_submit(w.s, &p, NULL, NULL), 0);
    err_set(&w.fail_next, -ENOMEM, "no page left");
    run(&w);
    assert_int_equal(a.finish, ENGINE_FINISH_ERROR);
    assert_int_equal(a.code, -ENOMEM);
    assert_string_equal(a.text, "no page left");
    struct schedule_counts counts;
    schedule_count(w.s, &counts);
    assert_int_equal(counts.failed, 1);
    assert_int_equal(counts.finished, 2);
    assert_int_equal(b.finish, ENGINE_FINISH_LENGTH);
    check_output(&b, prompt, 6);
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
        struct request_params p = params(&c[i], prompt, 30, 5);
        assert_int_equal(schedule_submit(w.s, &p, &r[i], NULL), 0);
    }
    schedule_pump(w.s);
    struct schedule_counts counts;
    schedule_count(w.s, &counts);
    assert_int_equal(counts.running, 1);
    assert_int_equal(counts.queued, 2);
    assert_int_equal(counts.in_flight, counts.in_flight_most);
    schedule_cancel(w.s, r[0]); /* chunks in flight */
    schedule_cancel(w.s, r[2]); /* queued */
    assert_int_equal(c[0].finish, ENGINE_FINISH_CANCELLED);
    assert_int_equal(c[2].finish, ENGINE_FINISH_CANCELLED);
    run(&w);
    assert_int_equal(c[1].finish, ENGINE_FINISH_LENGTH);
    check_output(&c[1], prompt, 30);
    struct request_params p = params(&c[0], prompt, 30, 5);
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
        struct request_params p = params(&c, prompt, 4, 5);
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
        out(&w, &o); /* lie 1: done without its logits */
        ring_commit(w.output[1]);
        assert_int_equal(schedule_drain(w.s, &err), -EPROTO);
        assert_non_null(strstr(err.text, "gpu_worker"));
        world_close(&w);
    }
}

static void test_passes(void **state)
{
    (void)state;
    uint32_t prompt[60], passes;
    struct world w;
    world_open(&w, 3, 5, 100);
    w.plan.residency[CONFIG_GPU] = (struct residency){.n_layers = 4, .n_streamed = 4, .n_slots = 2};
    static struct client c[3];
    for (uint32_t i = 0; i < 60; i++)
        prompt[i] = (i * 7 + 1) % VOCAB;
    for (uint32_t i = 0; i < 3; i++) {
        struct request_params p = params(&c[i], prompt, 20 + 20 * i, 9);
        struct err err = {0};
        assert_int_equal(schedule_submit(w.s, &p, NULL, &err), 0);
    }
    run_passes(&w, &passes);
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t id = prompt[20 + 20 * i - 1];
        assert_int_equal(c[i].n, 9);
        for (uint32_t k = 0; k < 9; k++)
            assert_int_equal(c[i].ids[k], id = next_token(id, 20 + 20 * i - 1 + k));
    }
    /* 120 prompt tokens in chunks of 5, four a pass; decode chunks take a place in passes that are there anyway */
    assert_in_range(passes, 6 + 8, 6 + 8 + 4);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_is_independent_of_batching),
        cmocka_unit_test(test_pages_are_shared),
        cmocka_unit_test(test_all_logits),
        cmocka_unit_test(test_context_is_a_limit),
        cmocka_unit_test(test_failed_chunk_fails_its_requests_only),
        cmocka_unit_test(test_cancel_and_fail),
        cmocka_unit_test(test_lies_are_refused),
        cmocka_unit_test(test_passes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
