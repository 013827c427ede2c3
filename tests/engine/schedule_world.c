/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "model/work_plan.h"
#include "proto/ring.h"
#include "proto/util.h"
#include "tests/engine/schedule_world.h"

static uint32_t store(uint32_t before, uint32_t id, uint32_t pos)
{
    return before * 31 + id * 17 + pos + 5;
}

static uint32_t pages_of(uint32_t positions)
{
    return (positions + WORK_PLAN_PAGE_POSITIONS - 1) / WORK_PLAN_PAGE_POSITIONS;
}

static void open_rings(struct world *w)
{
    struct err err = {0};
    size_t slots[2] = {chunk_slot_bytes(w->plan.chunk_tokens, w->plan.sequences, w->plan.chunk_tokens * 4),
                       chunk_slot_bytes(w->plan.chunk_tokens, w->plan.sequences, 3 * VOCAB * 4)};
    for (int i = 0; i < 2; i++) {
        struct ring **r = i ? w->output : w->tokens;
        w->fds[i] = ring_make("test", i ? w->plan.logits_slots : w->plan.token_slots, slots[i], w->epoch, &err);
        assert_true(w->fds[i] >= 0);
        assert_int_equal(ring_attach(w->fds[i], i ? RING_CONSUMER : RING_PRODUCER, w->epoch, w->bell, w->bell, &r[0], &err), 0);
        assert_int_equal(ring_attach(w->fds[i], i ? RING_PRODUCER : RING_CONSUMER, w->epoch, w->bell, w->bell, &r[1], &err), 0);
    }
}

static void close_rings(struct world *w)
{
    for (int i = 0; i < 2; i++) {
        ring_detach(w->tokens[i]);
        ring_detach(w->output[i]);
        close(w->fds[i]);
    }
}

void world_open(struct world *w, uint32_t sequences, uint32_t chunk, uint32_t context)
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
    w->epoch = 7;
    w->die_after = w->deadly_pos = UINT32_MAX;
    assert_true(context <= WORLD_CONTEXT);
    w->bell_fd = bell_make(&err);
    assert_true(w->bell_fd >= 0);
    assert_int_equal(bell_map(w->bell_fd, &w->bell, &err), 0);
    open_rings(w);
    assert_int_equal(schedule_open(p, &w->s, &err), 0);
    schedule_attach(w->s, w->tokens[0], w->output[0], w->epoch);
}

void world_close(struct world *w)
{
    schedule_close(w->s);
    close_rings(w);
    bell_unmap(w->bell);
    close(w->bell_fd);
}

void world_restart(struct world *w, bool died, bool kv_lost)
{
    schedule_pause(w->s, died);
    schedule_pump(w->s);
    close_rings(w);
    w->epoch++;
    w->dead = false;
    if (kv_lost)
        memset(w->n_seen, 0, sizeof(w->n_seen));
    if (kv_lost)
        memset(w->first, 0, sizeof(w->first));
    open_rings(w);
    schedule_restart(w->s, w->tokens[0], w->output[0], w->epoch, kv_lost);
    schedule_pump(w->s);
}

void world_drain(struct world *w)
{
    struct err err = {0};
    assert_int_equal(schedule_drain(w->s, &err), 0);
}

void *world_out(struct world *w, const struct chunk *c)
{
    void *slot = ring_reserve(w->output[1]);
    if (!slot) {
        world_drain(w);
        slot = ring_reserve(w->output[1]);
    }
    assert_non_null(slot);
    return chunk_write(slot, ring_slot_bytes(w->output[1]), c);
}

void world_commit(struct world *w)
{
    if (w->die_after == 0) {
        w->dead = true;
        return;
    }
    w->die_after -= w->die_after != UINT32_MAX;
    ring_commit(w->output[1]);
}

static void answer(struct world *w, struct chunk *c)
{
    uint32_t want = 0;
    struct chunk o = *c;
    for (uint32_t i = 0; i < c->h.n_tokens && !w->dead; i++) {
        if (!(c->tokens[i].flags & CHUNK_WANT_LOGITS))
            continue;
        o.h.kind = CHUNK_LOGITS;
        o.h.first_row = want++;
        o.h.n_rows = 1;
        o.h.payload_bytes = VOCAB * 4;
        float *row = world_out(w, &o);
        uint32_t next = w->hashes[c->tokens[i].seq][c->tokens[i].pos] % VOCAB;
        for (uint32_t v = 0; v < VOCAB; v++)
            row[v] = v == next ? 5.0f : 0.0f;
        world_commit(w);
    }
    if (w->dead)
        return;
    o.h.kind = CHUNK_DONE;
    o.h.first_row = o.h.n_rows = o.h.payload_bytes = 0;
    if (w->fail_next.code) {
        o.h.kind = CHUNK_FAILED;
        o.h.status = w->fail_next.code;
        o.h.payload_bytes = (uint32_t)strlen(w->fail_next.text) + 1;
        memcpy(world_out(w, &o), w->fail_next.text, o.h.payload_bytes);
        w->fail_next.code = 0;
    } else {
        world_out(w, &o);
    }
    world_commit(w);
}

/* As npu_worker/kv.c: a page goes when no position from the committed one on sees it. */
static uint32_t lowest_page(const struct world *w, uint32_t pos)
{
    uint32_t window = w->plan.hparams.window;
    return window && pos + 1 > window ? (pos + 1 - window) / WORK_PLAN_PAGE_POSITIONS : 0;
}

static void store_all(struct world *w, const struct chunk *c, const uint32_t *ids)
{
    for (uint32_t i = 0; i < c->h.n_seqs; i++) {
        if (c->seqs[i].flags & CHUNK_SEQ_FREE)
            w->n_seen[c->seqs[i].seq] = w->first[c->seqs[i].seq] = 0;
        assert_true(c->seqs[i].committed_pos <= w->n_seen[c->seqs[i].seq]);
        w->first[c->seqs[i].seq] = MAX(w->first[c->seqs[i].seq], lowest_page(w, c->seqs[i].committed_pos));
    }
    for (uint32_t i = 0; i < c->h.n_tokens; i++) {
        uint32_t seq = c->tokens[i].seq, pos = c->tokens[i].pos;
        assert_true(pos <= w->n_seen[seq]); /* no gap */
        assert_true(lowest_page(w, pos) >= w->first[seq]);
        w->n_seen[seq] = MAX(w->n_seen[seq], pos + 1);
        w->dead |= seq == w->deadly_seq && pos == w->deadly_pos;
        w->hashes[seq][pos] = store(pos ? w->hashes[seq][pos - 1] : 0, ids[i], pos);
    }
    uint32_t pages = 0;
    for (uint32_t i = 0; i < w->plan.sequences; i++)
        pages += pages_of(w->n_seen[i]);
    assert_true(pages <= w->plan.kv_pages);
}

bool world_step(struct world *w)
{
    static struct chunk c;
    struct err err = {0};
    struct chunk_limits lim = {.epoch = w->epoch,
                               .max_tokens = w->plan.chunk_tokens,
                               .max_seqs = w->plan.sequences,
                               .context = w->plan.context,
                               .n_layers = 1,
                               .vocab = VOCAB,
                               .hidden = HIDDEN};
    const void *payload;
    void *slot = w->dead ? NULL : ring_peek(w->tokens[1]);
    if (!slot)
        return false;
    assert_int_equal(chunk_read(slot, ring_slot_bytes(w->tokens[1]), &lim, &c, &payload, &err), 0);
    uint32_t ids[CHUNK_MAX_TOKENS];
    memcpy(ids, payload, c.h.payload_bytes);
    store_all(w, &c, ids);
    w->chunks++;
    w->largest = MAX(w->largest, c.h.n_tokens);
    if (c.h.n_seqs > 1 && c.h.n_tokens == c.h.n_seqs)
        w->decode_batch = MAX(w->decode_batch, c.h.n_seqs);
    if (!w->dead)
        answer(w, &c);
    if (!w->dead)
        world_drain(w); /* the answer is there, and perhaps the next chunk sent, before the loader gives the slot up */
    ring_release(w->tokens[1]);
    return true;
}

void world_run(struct world *w)
{
    schedule_pump(w->s);
    while (schedule_active(w->s)) {
        assert_true(world_step(w));
        world_drain(w);
    }
}

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
    c->numerics_changed = r->numerics_changed;
    c->n_cached = r->n_cached;
    if (r->err) {
        c->code = r->err->code;
        snprintf(c->text, sizeof(c->text), "%.159s", r->err->text);
    }
}

struct request_params client_params(struct client *c, const uint32_t *ids, uint32_t n, uint32_t max_tokens)
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

void client_check(const struct client *c, const uint32_t *prompt, uint32_t n)
{
    uint32_t hash = 0;
    for (uint32_t i = 0; i < n; i++)
        hash = store(hash, prompt[i], i);
    for (uint32_t i = 0; i < c->n; i++) {
        assert_int_equal(c->ids[i], hash % VOCAB);
        hash = store(hash, c->ids[i], n + i);
    }
}
