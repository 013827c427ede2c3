/* SPDX-License-Identifier: MIT
 * Which request gets which slot, and what of the KV cache it finds there. Called by schedule.c on the loop's thread.
 *
 * A slot whose request ended keeps its KV, and the ids that are in it, until somebody needs slot or pages; the next turn of a
 * conversation then begins behind what it has in common with it. Reuse goes by whole tokens and is exact: K and V of a position
 * depend on the ids up to it alone. Pages of local layers may have been given back since: then nothing is reused (still_there).
 * What was computed on another backend, or by a chunk that failed, is not kept. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/schedule_impl.h"
#include "model/work_plan.h"
#include "proto/util.h"

#define REUSE_MIN 16u /* tokens; what any two prompts have in common is not worth a conversation's place */

uint64_t schedule_kv_pages(const struct schedule *s, uint32_t positions)
{
    return work_plan_kv_pages(&s->plan->hparams, positions, s->plan->chunk_tokens, s->plan->ring_slots);
}

void schedule_forget(struct slot *slot)
{
    free(slot->kept);
    slot->kept = NULL;
}

void schedule_keep(struct schedule *s, struct slot *slot, struct request *r)
{
    schedule_forget(slot);
    if (!r->p.reuse || r->result.numerics_changed || slot->n_sent == 0)
        return;
    slot->kept = r->ids;
    slot->kept_at = ++s->n_kept;
    r->ids = NULL;
}

static bool is_idle(const struct slot *slot)
{
    return !slot->req && !slot->in_flight;
}

/* Pages below the window of the furthest position that npu_worker knows to be complete were given back (npu_worker/kv.c). */
static bool still_there(const struct schedule *s, const struct slot *slot, uint32_t pos)
{
    const struct hparams *h = &s->plan->hparams;
    uint32_t lowest = pos + 1 <= h->window ? 0 : pos + 1 - h->window;
    uint32_t told = slot->told + 1 <= h->window ? 0 : slot->told + 1 - h->window;
    return h->global_every == 1 || lowest / WORK_PLAN_PAGE_POSITIONS >= told / WORK_PLAN_PAGE_POSITIONS;
}

/* Tokens that the request need not send if it gets this slot; the last of the prompt is always sent, for its logits. */
static uint32_t in_common(const struct schedule *s, const struct slot *slot, const struct request *r)
{
    uint32_t n = 0, most = MIN(slot->n_sent, r->result.n_prompt - 1);
    if (!slot->kept || !r->p.reuse || r->p.all_logits)
        return 0;
    while (n < most && slot->kept[n] == r->ids[n])
        n++;
    return n >= REUSE_MIN && still_there(s, slot, n) ? n : 0;
}

/* The one that has most in common with the request, if that is most of what the slot keeps or all of the prompt; an empty one; the
 * one that was used least recently. NULL: none is free, or the one with most in common waits for its last chunk to come back. */
static struct slot *choose(struct schedule *s, const struct request *r)
{
    struct slot *best = NULL, *empty = NULL, *oldest = NULL;
    uint32_t most = 0;
    for (uint32_t i = 0; i < s->n_slots; i++) {
        struct slot *slot = &s->slots[i];
        if (slot->req)
            continue;
        uint32_t n = in_common(s, slot, r);
        if (n > most && (n >= slot->n_sent / 2 || n == r->result.n_prompt - 1)) {
            best = slot;
            most = n;
        }
        if (slot->in_flight)
            continue;
        if (!slot->kept)
            empty = empty ? empty : slot;
        else if (!oldest || slot->kept_at < oldest->kept_at)
            oldest = slot;
    }
    if (best)
        return is_idle(best) ? best : NULL;
    return empty ? empty : oldest;
}

static uint64_t pages_held(const struct schedule *s, bool kept)
{
    uint64_t held = 0;
    for (uint32_t i = 0; i < s->n_slots; i++) {
        const struct slot *slot = &s->slots[i];
        if (!is_idle(slot))
            held += slot->pages;
        else if (kept && slot->kept)
            held += schedule_kv_pages(s, slot->extent);
    }
    return held;
}

/* What other idle slots keep goes, longest unused first, until so many pages are free beside this slot's own. */
static bool make_room(struct schedule *s, const struct slot *own, uint64_t pages)
{
    uint64_t own_pages = own->kept ? schedule_kv_pages(s, own->extent) : 0;
    while (pages > s->plan->kv_pages - (pages_held(s, true) - own_pages)) {
        struct slot *oldest = NULL;
        for (uint32_t i = 0; i < s->n_slots; i++) {
            struct slot *slot = &s->slots[i];
            if (slot != own && slot->kept && is_idle(slot) && (!oldest || slot->kept_at < oldest->kept_at))
                oldest = slot;
        }
        if (!oldest)
            return false;
        schedule_forget(oldest);
    }
    return true;
}

static void take_slot(struct schedule *s, struct slot *slot, struct request *r)
{
    uint32_t n = in_common(s, slot, r), extent = slot->extent, told = slot->told;
    uint64_t pages = n ? MAX(r->pages, schedule_kv_pages(s, extent)) : r->pages;
    if (n && !make_room(s, slot, pages)) {
        n = 0;
        pages = r->pages;
    }
    if (n == 0)
        make_room(s, slot, pages); /* there is: running requests leave so much */
    schedule_forget(slot);
    *slot = (struct slot){.req = r, .pages = pages, .stale = slot->stale, .n_sent = n, .committed = n};
    if (n) {
        slot->extent = extent;
        slot->told = told;
    }
    r->result.n_cached = n;
    r->started_ns = util_now_ns();
    s->n_asked += r->p.reuse ? r->result.n_prompt : 0;
    s->n_cached += n;
}

void schedule_admit(struct schedule *s)
{
    while (s->queue) {
        struct request *r = s->queue;
        struct slot *slot = choose(s, r);
        if (!slot || r->pages > s->plan->kv_pages - pages_held(s, false))
            return;
        s->queue = r->next;
        if (!s->queue)
            s->queue_end = &s->queue;
        r->next = NULL;
        take_slot(s, slot, r);
    }
}
