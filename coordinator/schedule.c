/* SPDX-License-Identifier: MIT
 * Owns the sequence slots, the queue of requests and the records of chunks in flight; called by engine.c on the loop's thread.
 * It never touches a socket or a process and never blocks: a chunk is sent only with a credit, so the token ring has room.
 *
 * Policy. One decode chunk at a time holds the next token of every sequence that has one (continuous batching): a sequence that
 * becomes ready while it is in flight joins the next one. Prompt chunks fill the other credits, in order of slots, and may hold
 * tokens of several sequences; chunks of one prompt follow each other without waiting, so both workers are busy.
 * Where weights are streamed, chunks travel in passes instead (send_pass).
 * A slot is reused when its request has ended and none of its chunks is in flight; its first chunk frees the old KV, or goes on
 * behind the part of it that it shares (schedule_admit.c). */
#include "coordinator/schedule.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/journal.h"
#include "coordinator/schedule_impl.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/ring.h"
#include "proto/util.h"

#define PASS_MAX 64u /* chunks; more than a plan has slots of rings */

int schedule_open(const struct plan *plan, struct schedule **ret, struct err *err)
{
    struct schedule *s = calloc(1, sizeof(*s));
    if (!s)
        return err_set(err, -ENOMEM, "scheduler: out of memory");
    s->plan = plan;
    s->next_id = 1;
    s->n_slots = plan->sequences;
    s->n_flights = plan->ring_slots;
    s->queue_end = &s->queue;
    s->suspect = SCHEDULE_NOBODY;
    s->slots = calloc(s->n_slots, sizeof(*s->slots));
    s->flights = calloc(s->n_flights, sizeof(*s->flights));
    s->flight_ids = calloc((size_t)s->n_flights * plan->chunk_tokens, sizeof(*s->flight_ids));
    if (!s->slots || !s->flights || !s->flight_ids || sampler_open(plan->hparams.vocab, &s->sampler) < 0) {
        schedule_close(s);
        return err_set(err, -ENOMEM, "scheduler: out of memory for %u sequences", plan->sequences);
    }
    for (uint32_t i = 0; i < s->n_flights; i++)
        s->flights[i].ids = s->flight_ids + (size_t)i * plan->chunk_tokens;
    *ret = s;
    return 0;
}

void schedule_set_journal(struct schedule *s, struct journal *j)
{
    s->journal = j;
}

void schedule_set_trace(struct schedule *s, struct trace *t)
{
    s->trace = t;
}

static void request_free(struct request *r)
{
    if (!r)
        return;
    journal_end(r->journal);
    free(r->ids);
    free(r);
}

void schedule_close(struct schedule *s)
{
    if (!s)
        return;
    schedule_note_dropped(s);
    while (s->queue) {
        struct request *r = s->queue;
        s->queue = r->next;
        request_free(r);
    }
    for (uint32_t i = 0; s->slots && i < s->n_slots; i++) {
        request_free(s->slots[i].req);
        schedule_forget(&s->slots[i]);
    }
    sampler_close(s->sampler);
    free(s->slots);
    free(s->flights);
    free(s->flight_ids);
    free(s);
}

void schedule_attach(struct schedule *s, struct ring *tokens, struct ring *output, uint32_t epoch)
{
    s->tokens = tokens;
    s->output = output;
    s->epoch = epoch;
    s->n_done = 0;
}

uint32_t schedule_in_flight(const struct schedule *s, uint32_t *ret_done)
{
    *ret_done = s->n_done;
    return s->n_in_flight;
}

uint32_t schedule_active(const struct schedule *s)
{
    return s->n_active;
}

void schedule_count(const struct schedule *s, struct schedule_counts *ret)
{
    uint64_t now = util_now_ns();
    *ret = (struct schedule_counts){.in_flight = s->n_in_flight,
                                    .in_flight_most = s->n_flights,
                                    .sequences = s->n_slots,
                                    .finished = s->n_finished,
                                    .failed = s->n_failed,
                                    .prompt_tokens = s->prompt_meter.total,
                                    .output_tokens = s->output_meter.total,
                                    .asked_tokens = s->n_asked,
                                    .cached_tokens = s->n_cached,
                                    .prompt_per_second = meter_rate(&s->prompt_meter, now, s->n_in_flight > s->decode_in_flight),
                                    .output_per_second = meter_rate(&s->output_meter, now, s->n_active > 0)};
    for (uint32_t i = 0; i < s->n_slots; i++)
        ret->running += s->slots[i].req != NULL;
    ret->queued = s->n_active - ret->running;
}

static int request_check(const struct schedule *s, const struct request_params *p, struct err *err)
{
    if (p->n_ids == 0)
        return err_set(err, -EINVAL, "prompt is empty; expected at least one token id");
    if (p->n_ids > s->plan->context)
        return err_set(err, -E2BIG, "prompt has %u tokens; 'context' allows %u: raise it in the config or shorten the prompt",
                       p->n_ids, s->plan->context);
    for (uint32_t i = 0; i < p->n_ids; i++) {
        if (p->ids[i] >= s->plan->hparams.vocab)
            return err_set(err, -EINVAL, "token id %u at position %u; expected less than the vocabulary's %u", p->ids[i], i,
                           s->plan->hparams.vocab);
    }
    for (uint32_t i = 0; i < p->n_done; i++) {
        if (p->done[i] >= s->plan->hparams.vocab)
            return err_set(err, -EINVAL, "generated token id %u; expected less than the vocabulary's %u", p->done[i],
                           s->plan->hparams.vocab);
    }
    if (p->n_done && (p->n_done >= p->max_tokens || p->n_done > s->plan->context - p->n_ids))
        return err_set(err, -EINVAL,
                       "%u tokens are generated already; expected fewer than 'max_tokens' (%u) and room in the context", p->n_done,
                       p->max_tokens);
    return p->max_tokens ? sample_params_check(&p->sample, err) : 0;
}

/* What the journal's file has no place for would be another request when it is resumed. */
static bool may_be_noted(const struct request_params *p)
{
    const struct sample_params *q = &p->sample;
    return p->max_tokens && !p->ignore_end && !p->no_journal && !q->mask && q->n_bias == 0 && q->presence_penalty == 0 &&
           q->frequency_penalty == 0;
}

/* A request that cannot be noted goes on without. */
static void note(struct schedule *s, struct request *q)
{
    struct err err = {0};
    const struct request_params *p = &q->p;
    const struct journal_request j = {
        .ids = p->ids, .n_prompt = p->n_ids, .max_tokens = p->max_tokens, .choice = p->choice, .sample = p->sample};
    q->journal = p->journal;
    if (!q->journal && s->journal && may_be_noted(p) && journal_begin(s->journal, &j, &q->journal, &err) < 0)
        log_warn("schedule", "%s; this request cannot be resumed", err.text);
}

int schedule_submit(struct schedule *s, const struct request_params *p, struct request **ret, struct err *err)
{
    int r = request_check(s, p, err);
    if (r < 0)
        return r;
    struct request *q = calloc(1, sizeof(*q));
    uint32_t room = MIN(p->max_tokens, s->plan->context - p->n_ids);
    if (q)
        q->ids = malloc(((size_t)p->n_ids + room + 1) * sizeof(*q->ids));
    if (!q || !q->ids) {
        request_free(q);
        return err_set(err, -ENOMEM, "request: out of memory for %u tokens", p->n_ids);
    }
    q->p = *p;
    memcpy(q->ids, p->ids, p->n_ids * sizeof(*q->ids));
    if (p->n_done)
        memcpy(q->ids + p->n_ids, p->done, p->n_done * sizeof(*q->ids));
    q->p.ids = q->ids;
    q->result.n_prompt = p->n_ids;
    q->n_ids = p->n_ids + p->n_done;
    q->n_output = p->n_done;
    note(s, q);
    q->submitted_ns = util_now_ns();
    q->pages = schedule_kv_pages(s, p->n_ids + room);
    *s->queue_end = q;
    s->queue_end = &q->next;
    s->n_active++;
    if (ret)
        *ret = q;
    return 0;
}

/* What was generated is not yet with whom it is for, so its file stays, and says that nothing more will come. That of one that
 * failed or was cancelled does not: whether it is tried again is not ours to say. */
static struct journal_file *hand_on_journal(struct request *r, enum engine_finish why)
{
    if (!r->journal || !r->p.keep_journal || !r->p.finished)
        return NULL;
    if (why != ENGINE_FINISH_ERROR && why != ENGINE_FINISH_CANCELLED && !journal_finish(r->journal, why))
        log_warn("schedule", "the journal of a request cannot be written any more: --resume would begin from what it has; is the "
                             "runtime folder full?");
    return take_ptr(&r->journal);
}

static void request_finish(struct schedule *s, struct request *r, enum engine_finish why, const struct err *err)
{
    uint64_t now = util_now_ns();
    r->result.finish = why;
    r->result.err = err;
    r->result.n_output = r->n_output;
    r->result.queue_ns = (r->started_ns ? r->started_ns : now) - r->submitted_ns;
    if (r->started_ns) {
        r->result.prefill_ns = (r->first_ns ? r->first_ns : now) - r->started_ns;
        r->result.decode_ns = r->first_ns ? now - r->first_ns : 0;
    }
    s->n_active--;
    s->n_finished++;
    s->n_failed += why == ENGINE_FINISH_ERROR;
    r->result.journal = hand_on_journal(r, why);
    if (r->p.finished)
        r->p.finished(r->p.ctx, &r->result);
    request_free(r);
}

void schedule_slot_finish(struct schedule *s, struct slot *slot, enum engine_finish why, const struct err *err)
{
    struct request *r = slot->req;
    slot->req = NULL;
    if (why != ENGINE_FINISH_ERROR)
        schedule_keep(s, slot, r);
    if (s->suspect == (uint32_t)(slot - s->slots))
        schedule_next_suspect(s);
    request_finish(s, r, why, err);
}

void schedule_cancel(struct schedule *s, struct request *r)
{
    for (struct request **p = &s->queue; *p; p = &(*p)->next) {
        if (*p != r)
            continue;
        *p = r->next;
        if (!*p)
            s->queue_end = p;
        request_finish(s, r, ENGINE_FINISH_CANCELLED, NULL);
        return;
    }
    for (uint32_t i = 0; i < s->n_slots; i++) {
        if (s->slots[i].req == r)
            schedule_slot_finish(s, &s->slots[i], ENGINE_FINISH_CANCELLED, NULL);
    }
}

void schedule_fail(struct schedule *s, const struct err *err)
{
    for (uint32_t i = 0; i < s->n_slots; i++) {
        if (s->slots[i].req)
            schedule_slot_finish(s, &s->slots[i], ENGINE_FINISH_ERROR, err);
    }
    while (s->queue) {
        struct request *r = s->queue;
        s->queue = r->next;
        if (!s->queue)
            s->queue_end = &s->queue;
        request_finish(s, r, ENGINE_FINISH_ERROR, err);
    }
}

static struct flight *flight_new(struct schedule *s)
{
    for (uint32_t i = 0; i < s->n_flights; i++) {
        if (!s->flights[i].id)
            return &s->flights[i];
    }
    return NULL;
}

/* Positions that may be sent now: prompt tokens, or the one token sampled last. */
static uint32_t slot_ready(const struct slot *slot, bool decode)
{
    const struct request *r = slot->req;
    if (!r || slot->n_sent >= r->n_ids)
        return 0;
    bool is_decode = slot->n_sent >= r->result.n_prompt && slot->n_sent + 1 == r->n_ids; /* more: after a restart */
    return is_decode == decode ? r->n_ids - slot->n_sent : 0;
}

static bool wants_logits(const struct request *r, uint32_t pos)
{
    return (pos < r->result.n_prompt && pos >= r->n_rows && r->p.all_logits) || (r->p.max_tokens && pos + 1 == r->n_ids);
}

static void chunk_add(struct schedule *s, struct flight *f, uint32_t slot_index, uint32_t n)
{
    struct slot *slot = &s->slots[slot_index];
    struct chunk *c = &f->chunk;
    memcpy(f->ids + c->h.n_tokens, slot->req->ids + slot->n_sent, n * sizeof(*f->ids));
    c->seqs[c->h.n_seqs++] =
        (struct chunk_seq){.seq = slot_index, .flags = slot->n_sent == 0 ? CHUNK_SEQ_FREE : 0, .committed_pos = slot->committed};
    slot->stale = true;
    f->spans[f->n_spans++] = (struct span){.slot = slot_index, .pos = slot->n_sent, .n = n};
    for (uint32_t i = 0; i < n; i++) {
        uint32_t pos = slot->n_sent + i;
        bool want = wants_logits(slot->req, pos);
        c->tokens[c->h.n_tokens++] = (struct chunk_token){.seq = slot_index, .pos = pos, .flags = want ? CHUNK_WANT_LOGITS : 0};
        if (want) {
            f->rows[f->n_logits].slot = slot_index;
            f->rows[f->n_logits++].pos = pos;
        }
    }
    slot->told = slot->n_sent == 0 ? 0 : MAX(slot->told, slot->committed);
    slot->n_sent += n;
    slot->extent = MAX(slot->extent, slot->n_sent);
    slot->in_flight++;
}

/* Pages of requests that ended go back with the first chunk after them; what it stores comes later. */
static void add_stale(struct schedule *s, struct chunk *c)
{
    uint64_t listed = 0;
    for (uint32_t i = 0; i < c->h.n_seqs; i++)
        listed |= UINT64_C(1) << c->seqs[i].seq;
    for (uint32_t i = 0; i < s->n_slots; i++) {
        struct slot *slot = &s->slots[i];
        bool ended = !slot->in_flight && (slot->req ? slot->n_sent == 0 : !slot->kept);
        if (!slot->stale || !ended || (listed >> i & 1))
            continue;
        c->seqs[c->h.n_seqs++] = (struct chunk_seq){.seq = i, .flags = CHUNK_SEQ_FREE};
        slot->stale = false;
    }
}

/* Fills a flight with what may be sent now; NULL when there is nothing of that kind, or no credit. */
static struct flight *compose(struct schedule *s, bool decode)
{
    struct flight *f = flight_new(s);
    if (!f)
        return NULL;
    struct chunk_header *h = &f->chunk.h;
    memset(h, 0, sizeof(*h));
    f->n_spans = f->n_logits = f->next_row = f->n_taken = 0;
    f->traced = false;
    for (uint32_t i = 0; i < s->n_slots && h->n_tokens < s->plan->chunk_tokens; i++) {
        if (s->suspect != SCHEDULE_NOBODY && s->suspect != i)
            continue;
        uint32_t n = MIN(slot_ready(&s->slots[i], decode), s->plan->chunk_tokens - h->n_tokens);
        if (n)
            chunk_add(s, f, i, n);
    }
    if (!h->n_tokens)
        return NULL;
    add_stale(s, &f->chunk);
    h->id = f->id = s->next_id++;
    f->decode = decode;
    uint32_t prompts = s->n_in_flight - s->decode_in_flight;
    if (s->n_in_flight == 0)
        meter_begin(&s->output_meter, util_now_ns());
    if (!decode && prompts == 0)
        meter_begin(&s->prompt_meter, util_now_ns());
    s->n_in_flight++;
    if (decode)
        s->decode_in_flight = true;
    return f;
}

/* Writes a flight's chunk into the ring to the loader, which has room for all flights and for the one that came back while the
 * loader still held its slot. */
void schedule_issue(struct schedule *s, struct flight *f)
{
    struct chunk_header *h = &f->chunk.h;
    uint64_t start = trace_now(s->trace);
    h->magic = CHUNK_MAGIC;
    h->epoch = s->epoch;
    h->kind = CHUNK_TOKENS;
    h->payload_bytes = h->n_tokens * (uint32_t)sizeof(uint32_t);
    h->times.committed_at_ns = util_now_ns();
    h->times.decode = f->decode;
    void *mem = ring_reserve(s->tokens);
    if (!mem)
        ring_poison(s->tokens); /* it keeps more slots than it can be working on: its end, after which all is sent again */
    void *ids = mem ? chunk_write(mem, ring_slot_bytes(s->tokens), &f->chunk) : NULL;
    if (!ids)
        return; /* poisoned: the end of the pipeline is told elsewhere */
    memcpy(ids, f->ids, h->payload_bytes);
    schedule_note(s, TRACE_SEND, f, start, 0); /* before the loader can have anything to say of it */
    f->traced = s->trace != NULL;
    ring_commit(s->tokens);
}

/* Weights are streamed: what can go together is closed off, and goes through every layer before anything else begins, so that each
 * layer is read once for all of it. */
static void send_pass(struct schedule *s)
{
    struct flight *pass[PASS_MAX], *f = compose(s, true);
    uint32_t n = 0;
    if (f)
        pass[n++] = f;
    while (n < MIN(s->n_flights, PASS_MAX) && (f = compose(s, false)))
        pass[n++] = f;
    for (uint32_t i = 0; i < n; i++) {
        pass[i]->chunk.h.pass_index = i;
        pass[i]->chunk.h.pass_count = n;
        schedule_issue(s, pass[i]);
    }
}

static bool send_chunk(struct schedule *s, bool decode)
{
    struct flight *f = compose(s, decode);
    if (f)
        schedule_issue(s, f);
    return f != NULL;
}

void schedule_pump(struct schedule *s)
{
    if (!s->tokens)
        return;
    schedule_admit(s);
    if (plan_streams(s->plan)) {
        if (s->n_in_flight == 0)
            send_pass(s);
        return;
    }
    if (!s->decode_in_flight && s->n_in_flight < s->n_flights)
        send_chunk(s, true);
    while (s->n_in_flight < s->n_flights && send_chunk(s, false))
        ;
}
