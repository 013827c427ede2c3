/* SPDX-License-Identifier: MIT
 * What comes back from the pipeline: rows of logits are sampled or given out, completions free their credits. Called by engine.c on
 * the loop's thread. What lies in the ring is gpu_worker's word: nothing is believed unchecked. */
#include <errno.h>
#include <string.h>

#include "coordinator/journal.h"
#include "coordinator/schedule_impl.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/ring.h"
#include "proto/util.h"

static struct flight *flight_find(struct schedule *s, uint64_t id)
{
    for (uint32_t i = 0; id && i < s->n_flights; i++) {
        if (s->flights[i].id == id)
            return &s->flights[i];
    }
    return NULL;
}

void schedule_note(struct schedule *s, enum trace_kind kind, const struct flight *f, uint64_t start_ns, uint32_t fill)
{
    if (!s->trace)
        return;
    bool many = f->n_spans > 1;
    trace_put(s->trace, TRACE_DATA,
              &(struct trace_event){.kind = (uint8_t)kind,
                                    .start_ns = start_ns,
                                    .end_ns = util_now_ns(),
                                    .id = trace_flow(s->epoch, f->chunk.h.id),
                                    .tokens = (uint16_t)f->chunk.h.n_tokens,
                                    .flags = (uint8_t)((f->decode ? TRACE_DECODE : 0) | (many ? TRACE_MANY : 0)),
                                    .seq = (uint8_t)(many ? f->n_spans : f->spans[0].slot),
                                    .fill = (uint8_t)MIN(fill, 255u)});
}

/* A row of logits for the last known position of a request: sample, and decide whether it goes on. */
static void take_token(struct schedule *s, struct slot *slot, const float *row)
{
    struct request *r = slot->req;
    if (!r->first_ns)
        r->first_ns = util_now_ns();
    schedule_advanced(s, slot);
    meter_add(&s->output_meter, util_now_ns(), 1);
    uint64_t start = trace_now(s->trace);
    uint32_t id = sampler_pick(s->sampler, &r->p.sample, row, r->ids, r->n_ids, r->p.choice, r->n_output);
    trace_add(s->trace, TRACE_DATA,
              &(struct trace_event){.kind = TRACE_SAMPLE,
                                    .start_ns = start,
                                    .end_ns = trace_now(s->trace),
                                    .tokens = 1,
                                    .seq = (uint8_t)(slot - s->slots)});
    if (!r->p.ignore_end && r->p.is_end && r->p.is_end(r->p.ctx, id)) {
        schedule_slot_finish(s, slot, ENGINE_FINISH_STOP, NULL);
        return;
    }
    r->n_output++;
    if (r->p.scored)
        r->p.scored(r->p.ctx, s->sampler, id, row);
    if (r->journal && !journal_token(r->journal, id))
        log_warn("schedule", "the journal of a request cannot be written any more: --resume would begin from what it has; is the "
                             "runtime folder full?");
    if (r->p.token)
        r->p.token(r->p.ctx, id, r->n_output - 1);
    if (slot->req != r) /* the callback cancelled it */
        return;
    if (r->n_output >= r->p.max_tokens)
        schedule_slot_finish(s, slot, ENGINE_FINISH_LENGTH, NULL);
    else if (r->n_ids >= s->plan->context)
        schedule_slot_finish(s, slot, ENGINE_FINISH_CONTEXT, NULL);
    else
        r->ids[r->n_ids++] = id;
}

static int take_logits(struct schedule *s, const struct chunk *c, const float *rows, struct err *err)
{
    struct flight *f = flight_find(s, c->h.id);
    if (!f || c->h.first_row != f->next_row || c->h.n_rows == 0 || c->h.n_rows > f->n_logits - f->next_row)
        return err_set(
            err, -EPROTO, "gpu_worker: logits of chunk %llu, rows %u..%u; expected rows from %u of %u of a chunk in flight",
            (unsigned long long)c->h.id, c->h.first_row, c->h.first_row + c->h.n_rows, f ? f->next_row : 0, f ? f->n_logits : 0);
    uint32_t vocab = s->plan->hparams.vocab;
    uint64_t start = trace_now(s->trace);
    for (uint32_t i = 0; i < c->h.n_rows; i++, rows += vocab) {
        uint32_t pos = f->rows[f->next_row + i].pos;
        struct slot *slot = &s->slots[f->rows[f->next_row + i].slot];
        struct request *r = slot->req;
        if (!r || f->next_row + i < f->n_taken)
            continue; /* finished or cancelled meanwhile; taken before a restart */
        if (!sample_finite(rows, vocab)) {
            struct err e = {0};
            err_set(&e, -EDOM,
                    "the logits of position %u are not all finite numbers; expected a model whose weights are (a broken file?)",
                    pos);
            schedule_slot_finish(s, slot, ENGINE_FINISH_ERROR, &e);
            continue;
        }
        if (r->p.all_logits && pos < r->result.n_prompt) {
            r->n_rows = pos + 1;
            if (r->p.logits)
                r->p.logits(r->p.ctx, pos, rows, vocab);
        }
        if (slot->req == r && r->p.max_tokens && pos + 1 == r->n_ids)
            take_token(s, slot, rows);
    }
    f->next_row += c->h.n_rows;
    f->n_taken = MAX(f->n_taken, f->next_row);
    schedule_note(s, TRACE_LOGITS, f, start, ring_fill(s->output));
    return 0;
}

static void add_times(struct chunk_times *to, const struct chunk_times *t)
{
    to->loader_ns += t->loader_ns;
    to->npu_ns += t->npu_ns;
    to->gpu_ns += t->gpu_ns;
    to->npu_wait_ns += t->npu_wait_ns;
    to->gpu_wait_ns += t->gpu_wait_ns;
    to->hops += t->hops + 1; /* ours */
}

/* A chunk left the pipeline. failed: why, or NULL. */
static int take_done(struct schedule *s, const struct chunk *c, const struct err *failed, struct err *err)
{
    struct flight *f = flight_find(s, c->h.id);
    if (!f || (!failed && f->next_row != f->n_logits))
        return err_set(err, -EPROTO,
                       "gpu_worker: completion of chunk %llu after %u of %u logits rows; expected a chunk in flight with all rows",
                       (unsigned long long)c->h.id, f ? f->next_row : 0, f ? f->n_logits : 0);
    uint64_t start = trace_now(s->trace);
    for (uint32_t i = 0; i < f->n_spans; i++) {
        struct slot *slot = &s->slots[f->spans[i].slot];
        struct request *r = slot->req;
        slot->in_flight--;
        slot->committed = MAX(slot->committed, f->spans[i].pos + f->spans[i].n);
        if (failed)
            schedule_forget(slot);
        if (!r)
            continue;
        add_times(f->decode ? &r->result.decode_times : &r->result.prefill_times, &c->h.times);
        ++*(f->decode ? &r->result.decode_chunks : &r->result.prefill_chunks);
        if (slot->committed > r->furthest) {
            r->furthest = slot->committed;
            schedule_advanced(s, slot);
        }
        if (failed)
            schedule_slot_finish(s, slot, ENGINE_FINISH_ERROR, failed);
        else if (!r->p.max_tokens && slot->committed >= r->result.n_prompt)
            schedule_slot_finish(s, slot, ENGINE_FINISH_LENGTH, NULL);
    }
    if (f->decode)
        s->decode_in_flight = false;
    else
        meter_add(&s->prompt_meter, util_now_ns(), f->chunk.h.n_tokens);
    schedule_note(s, TRACE_DONE, f, start, ring_fill(s->output));
    f->id = 0;
    s->n_in_flight--;
    s->n_done++;
    return 0;
}

static int take_slot(struct schedule *s, const void *mem, struct err *err)
{
    const struct plan *p = s->plan;
    struct chunk_limits lim = {.epoch = s->epoch,
                               .max_tokens = p->chunk_tokens,
                               .max_seqs = p->sequences,
                               .context = p->context,
                               .n_layers = p->hparams.n_layers,
                               .vocab = p->hparams.vocab,
                               .hidden = p->hparams.hidden};
    const void *payload;
    struct err failed = {0};
    struct chunk *c = &s->chunk;
    int r = chunk_read(mem, ring_slot_bytes(s->output), &lim, c, &payload, err);
    if (r == -ESTALE)
        return 0;
    if (r < 0)
        return err_wrap(err, r, "gpu_worker");
    switch ((enum chunk_kind)c->h.kind) {
    case CHUNK_LOGITS:
        return take_logits(s, c, payload, err);
    case CHUNK_DONE:
        return take_done(s, c, NULL, err);
    case CHUNK_FAILED:
        err_set(&failed, c->h.status < 0 ? c->h.status : -EIO, "%.*s", (int)strnlen(payload, c->h.payload_bytes),
                (const char *)payload);
        return take_done(s, c, &failed, err);
    case CHUNK_TOKENS:
    case CHUNK_HIDDEN:
    default:
        return err_set(err, -EPROTO, "gpu_worker: chunk kind %u on the output ring; expected logits or a completion", c->h.kind);
    }
}

int schedule_drain(struct schedule *s, struct err *err)
{
    void *mem;
    /* No more at once than the ring holds: one that is filled without end would keep the loop from everything else. */
    for (uint32_t n = s->output ? ring_n_slots(s->output) : 0; n && s->output && (mem = ring_peek(s->output)); n--) {
        int r = take_slot(s, mem, err);
        ring_release(s->output);
        if (r < 0)
            return r;
        schedule_pump(s);
    }
    if (s->output && ring_poisoned(s->output))
        return err_set(err, -EPROTO, "gpu_worker: its output ring was poisoned; it wrote an impossible index or closed it");
    return 0;
}
