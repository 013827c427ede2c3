/* SPDX-License-Identifier: MIT
 * The schedule when the pipeline stops and runs again. Called by engine.c on the loop's thread. Tokens that were drawn and rows
 * that were given out are never drawn or given out again: what comes twice is skipped.
 *
 * What slots keep for reuse (schedule_admit.c) outlives the death of another stage than npu_worker, but no change of backend.
 *
 * With the KV cache intact, chunks in flight are sent again as they were: K and V are stored by position, so that repeating them
 * changes nothing. Where it is lost, every sequence is sent from its first position, generated tokens included, and asks for
 * logits only where none were taken yet.
 *
 * A request that was in flight at several deaths in a row is suspected to be their cause, and so are those that were in flight
 * with it. Suspects then run one at a time: who gets further is cleared, and the one that does not can be given up alone. */
#include <errno.h>

#include "coordinator/schedule_impl.h"
#include "proto/err.h"
#include "proto/util.h"

#define SUSPECT_DEATHS 2

void schedule_pause(struct schedule *s, bool died)
{
    s->tokens = s->output = NULL;
    for (uint32_t i = 0; died && i < s->n_slots; i++) {
        if (s->slots[i].req && s->slots[i].in_flight)
            s->slots[i].req->n_deaths++;
    }
}

static uint32_t most_deaths(const struct schedule *s, uint32_t *ret_slot)
{
    uint32_t most = 0;
    *ret_slot = SCHEDULE_NOBODY;
    for (uint32_t i = 0; i < s->n_slots; i++) {
        if (s->slots[i].req && s->slots[i].req->n_deaths > most) {
            most = s->slots[i].req->n_deaths;
            *ret_slot = i;
        }
    }
    return most;
}

void schedule_next_suspect(struct schedule *s)
{
    if (most_deaths(s, &s->suspect) < SUSPECT_DEATHS)
        s->suspect = SCHEDULE_NOBODY;
}

void schedule_advanced(struct schedule *s, struct slot *slot)
{
    s->progress++;
    slot->req->n_deaths = 0;
    if (s->suspect == (uint32_t)(slot - s->slots))
        schedule_next_suspect(s);
}

uint64_t schedule_progress(const struct schedule *s)
{
    return s->progress;
}

uint32_t schedule_give_up(struct schedule *s, const char *limit, const struct err *why)
{
    uint32_t slot, n = 0, most = most_deaths(s, &slot);
    struct err err = {0};
    err_set(&err, why->code, "given up after %s: %u time%s in a row a stage died while it was under way; the last: %s", limit, most,
            most == 1 ? "" : "s", why->text);
    for (uint32_t i = 0; most && i < s->n_slots; i++) {
        if (!s->slots[i].req || s->slots[i].req->n_deaths != most)
            continue;
        schedule_slot_finish(s, &s->slots[i], ENGINE_FINISH_ERROR, &err);
        n++;
    }
    s->gave_up = s->gave_up || n > 0;
    return n;
}

void schedule_mark_numerics(struct schedule *s)
{
    for (uint32_t i = 0; i < s->n_slots; i++) {
        if (s->slots[i].req)
            s->slots[i].req->result.numerics_changed = true;
        schedule_forget(&s->slots[i]);
    }
}

/* A chunk that will not come back takes its promises with it: slots that it would have freed are still to be freed. */
static void drop_flight(struct schedule *s, struct flight *f)
{
    const struct chunk *c = &f->chunk;
    for (uint32_t i = 0; i < c->h.n_seqs; i++) {
        if (c->seqs[i].flags & CHUNK_SEQ_FREE)
            s->slots[c->seqs[i].seq].stale = true;
    }
    f->id = 0;
}

static void drop_all(struct schedule *s, bool kv_lost)
{
    for (uint32_t i = 0; i < s->n_flights; i++) {
        if (s->flights[i].id)
            drop_flight(s, &s->flights[i]);
    }
    s->n_in_flight = 0;
    s->decode_in_flight = false;
    for (uint32_t i = 0; i < s->n_slots; i++) {
        struct slot *slot = &s->slots[i];
        if (kv_lost) {
            slot->committed = slot->told = slot->extent = 0;
            slot->stale = false;
        }
        if (slot->committed == 0)
            schedule_forget(slot);
        slot->n_sent = slot->committed;
        slot->in_flight = 0;
    }
}

static void issue_again(struct schedule *s)
{
    uint64_t last = 0;
    for (uint32_t n = 0; n < s->n_in_flight; n++) {
        struct flight *next = NULL;
        for (uint32_t i = 0; i < s->n_flights; i++) {
            struct flight *f = &s->flights[i];
            if (f->id > last && (!next || f->id < next->id))
                next = f;
        }
        next->next_row = 0;
        last = next->id;
        schedule_issue(s, next);
    }
}

void schedule_note_dropped(struct schedule *s)
{
    for (uint32_t i = 0; s->flights && i < s->n_flights; i++) {
        struct flight *f = &s->flights[i];
        if (f->id && f->traced)
            schedule_note(s, TRACE_DROPPED, f, trace_now(s->trace), 0);
        f->traced = false;
    }
}

void schedule_restart(struct schedule *s, struct ring *tokens, struct ring *output, uint32_t epoch, bool kv_lost)
{
    schedule_note_dropped(s); /* of the epoch that ends: every stage is paused or gone by now, and has said all it will */
    schedule_attach(s, tokens, output, epoch);
    schedule_next_suspect(s);
    if (kv_lost || s->suspect != SCHEDULE_NOBODY || s->gave_up) /* what was given up is not sent once more */
        drop_all(s, kv_lost);
    else
        issue_again(s);
    s->gave_up = false;
}
