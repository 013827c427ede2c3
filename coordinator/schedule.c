/* SPDX-License-Identifier: MIT
 * Owns the sequence slots, the queue of requests and the records of chunks in flight; called by engine.c on the loop's thread.
 * It never touches a socket or a process and never blocks: a chunk is sent only with a credit, so the token ring has room.
 *
 * Policy. One decode chunk at a time holds the next token of every sequence that has one (continuous batching): a sequence that
 * becomes ready while it is in flight joins the next one. Prompt chunks fill the other credits, in order of slots, and may hold
 * tokens of several sequences; chunks of one prompt follow each other without waiting, so both workers are busy.
 * A slot is reused when its request has ended and none of its chunks is in flight; its first chunk frees the old KV. */
#include "coordinator/schedule.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/work_plan.h"
#include "proto/err.h"
#include "proto/ring.h"
#include "proto/util.h"

struct request {
    struct request *next; /* in the queue */
    struct request_params p;
    uint32_t *ids; /* prompt and output, room for n_ids + max_tokens */
    uint32_t n_ids, n_output;
    uint64_t pages; /* of the KV cache, at most */
    uint64_t submitted_ns, started_ns, first_ns;
    struct request_result result;
    bool cancelled;
};

struct slot {
    struct request *req; /* NULL: free once in_flight is 0 */
    uint32_t n_sent;     /* positions issued */
    uint32_t committed;  /* positions whose chunk has come back */
    uint32_t in_flight;  /* chunks */
    uint64_t pages;      /* of the KV cache that its request may come to hold */
    bool stale;          /* the KV cache holds what an earlier request left: the next chunk of all frees it */
};

struct span { /* tokens of one slot in a chunk */
    uint32_t slot, pos, n;
};

struct flight {
    uint64_t id; /* 0: unused */
    bool decode;
    struct chunk chunk; /* as it was sent */
    uint32_t *ids;      /* [chunk_tokens], likewise */
    uint32_t n_spans, n_logits, next_row;
    struct span spans[CHUNK_MAX_SEQS];
    struct {
        uint32_t slot, pos;
    } rows[CHUNK_MAX_TOKENS]; /* tokens that want logits */
};

struct schedule {
    const struct plan *plan;
    struct ring *tokens, *output;
    uint32_t epoch;
    uint64_t next_id;
    uint32_t n_slots, n_flights, n_in_flight;
    bool decode_in_flight;
    struct slot *slots;
    struct flight *flights;
    uint32_t *flight_ids; /* memory of the flights' ids */
    struct request *queue, **queue_end;
    uint32_t n_active;
    struct sampler *sampler;
    struct chunk chunk; /* scratch, of what comes back */
};

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

static void request_free(struct request *r)
{
    if (!r)
        return;
    free(r->ids);
    free(r);
}

void schedule_close(struct schedule *s)
{
    if (!s)
        return;
    while (s->queue) {
        struct request *r = s->queue;
        s->queue = r->next;
        request_free(r);
    }
    for (uint32_t i = 0; s->slots && i < s->n_slots; i++)
        request_free(s->slots[i].req);
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
}

uint32_t schedule_active(const struct schedule *s)
{
    return s->n_active;
}

static uint64_t kv_pages(const struct schedule *s, uint32_t positions)
{
    return work_plan_kv_pages(&s->plan->hparams, positions, s->plan->chunk_tokens, s->plan->ring_slots);
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
    return p->max_tokens ? sample_params_check(&p->sample, err) : 0;
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
    q->p.ids = q->ids;
    q->n_ids = q->result.n_prompt = p->n_ids;
    q->submitted_ns = util_now_ns();
    q->pages = kv_pages(s, p->n_ids + room);
    *s->queue_end = q;
    s->queue_end = &q->next;
    s->n_active++;
    if (ret)
        *ret = q;
    return 0;
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
    if (r->p.finished)
        r->p.finished(r->p.ctx, &r->result);
    request_free(r);
}

static void slot_finish(struct schedule *s, struct slot *slot, enum engine_finish why, const struct err *err)
{
    struct request *r = slot->req;
    slot->req = NULL;
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
            slot_finish(s, &s->slots[i], ENGINE_FINISH_CANCELLED, NULL);
    }
}

void schedule_fail(struct schedule *s, const struct err *err)
{
    for (uint32_t i = 0; i < s->n_slots; i++) {
        if (s->slots[i].req)
            slot_finish(s, &s->slots[i], ENGINE_FINISH_ERROR, err);
    }
    while (s->queue) {
        struct request *r = s->queue;
        s->queue = r->next;
        if (!s->queue)
            s->queue_end = &s->queue;
        request_finish(s, r, ENGINE_FINISH_ERROR, err);
    }
}

/* Requests in order, as long as there is a slot, and pages for all that each may store. */
static void admit(struct schedule *s)
{
    uint64_t held = 0;
    for (uint32_t i = 0; i < s->n_slots; i++)
        held += s->slots[i].req || s->slots[i].in_flight ? s->slots[i].pages : 0;
    for (uint32_t i = 0; i < s->n_slots && s->queue; i++) {
        struct slot *slot = &s->slots[i];
        if (slot->req || slot->in_flight)
            continue;
        if (s->queue->pages > s->plan->kv_pages - held)
            return;
        struct request *r = s->queue;
        s->queue = r->next;
        if (!s->queue)
            s->queue_end = &s->queue;
        r->next = NULL;
        r->started_ns = util_now_ns();
        held += r->pages;
        *slot = (struct slot){.req = r, .pages = r->pages, .stale = slot->stale};
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
    bool is_decode = slot->n_sent >= r->result.n_prompt;
    return is_decode == decode ? r->n_ids - slot->n_sent : 0;
}

static bool wants_logits(const struct request *r, uint32_t pos)
{
    return (pos < r->result.n_prompt && r->p.all_logits) || (r->p.max_tokens && pos + 1 == r->n_ids);
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
    slot->n_sent += n;
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
        bool ended = !slot->in_flight && (!slot->req || slot->n_sent == 0);
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
    f->n_spans = f->n_logits = f->next_row = 0;
    for (uint32_t i = 0; i < s->n_slots && h->n_tokens < s->plan->chunk_tokens; i++) {
        uint32_t n = MIN(slot_ready(&s->slots[i], decode), s->plan->chunk_tokens - h->n_tokens);
        if (n)
            chunk_add(s, f, i, n);
    }
    if (!h->n_tokens)
        return NULL;
    add_stale(s, &f->chunk);
    h->id = f->id = s->next_id++;
    f->decode = decode;
    s->n_in_flight++;
    if (decode)
        s->decode_in_flight = true;
    return f;
}

/* Writes a flight's chunk into the ring to the loader, which has room for all flights. */
static void issue(struct schedule *s, struct flight *f)
{
    struct chunk_header *h = &f->chunk.h;
    h->magic = CHUNK_MAGIC;
    h->epoch = s->epoch;
    h->kind = CHUNK_TOKENS;
    h->payload_bytes = h->n_tokens * (uint32_t)sizeof(uint32_t);
    h->times.committed_at_ns = util_now_ns();
    void *mem = ring_reserve(s->tokens);
    void *ids = mem ? chunk_write(mem, ring_slot_bytes(s->tokens), &f->chunk) : NULL;
    if (!ids)
        return; /* poisoned: the end of the pipeline is told elsewhere */
    memcpy(ids, f->ids, h->payload_bytes);
    ring_commit(s->tokens);
}

static bool send_chunk(struct schedule *s, bool decode)
{
    struct flight *f = compose(s, decode);
    if (f)
        issue(s, f);
    return f != NULL;
}

void schedule_pump(struct schedule *s)
{
    if (!s->tokens)
        return;
    admit(s);
    if (!s->decode_in_flight && s->n_in_flight < s->n_flights)
        send_chunk(s, true);
    while (s->n_in_flight < s->n_flights && send_chunk(s, false))
        ;
}

static struct flight *flight_find(struct schedule *s, uint64_t id)
{
    for (uint32_t i = 0; id && i < s->n_flights; i++) {
        if (s->flights[i].id == id)
            return &s->flights[i];
    }
    return NULL;
}

/* A row of logits for the last known position of a request: sample, and decide whether it goes on. */
static void take_token(struct schedule *s, struct slot *slot, const float *row)
{
    struct request *r = slot->req;
    if (!r->first_ns)
        r->first_ns = util_now_ns();
    uint32_t id = sampler_pick(s->sampler, &r->p.sample, row, r->ids, r->n_ids, r->p.choice, r->n_output);
    if (!r->p.ignore_end && r->p.is_end && r->p.is_end(r->p.ctx, id)) {
        slot_finish(s, slot, ENGINE_FINISH_STOP, NULL);
        return;
    }
    r->n_output++;
    if (r->p.scored)
        r->p.scored(r->p.ctx, s->sampler, id, row);
    if (r->p.token)
        r->p.token(r->p.ctx, id, r->n_output - 1);
    if (slot->req != r) /* the callback cancelled it */
        return;
    if (r->n_output >= r->p.max_tokens)
        slot_finish(s, slot, ENGINE_FINISH_LENGTH, NULL);
    else if (r->n_ids >= s->plan->context)
        slot_finish(s, slot, ENGINE_FINISH_CONTEXT, NULL);
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
    for (uint32_t i = 0; i < c->h.n_rows; i++, rows += vocab) {
        uint32_t pos = f->rows[f->next_row + i].pos;
        struct slot *slot = &s->slots[f->rows[f->next_row + i].slot];
        struct request *r = slot->req;
        if (!r)
            continue; /* finished or cancelled meanwhile */
        if (!sample_finite(rows, vocab)) {
            struct err e = {0};
            err_set(&e, -EDOM,
                    "the logits of position %u are not all finite numbers; expected a model whose weights are (a broken file?)",
                    pos);
            slot_finish(s, slot, ENGINE_FINISH_ERROR, &e);
            continue;
        }
        if (r->p.all_logits && pos < r->result.n_prompt && r->p.logits)
            r->p.logits(r->p.ctx, pos, rows, vocab);
        if (slot->req == r && r->p.max_tokens && pos + 1 == r->n_ids)
            take_token(s, slot, rows);
    }
    f->next_row += c->h.n_rows;
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
    for (uint32_t i = 0; i < f->n_spans; i++) {
        struct slot *slot = &s->slots[f->spans[i].slot];
        struct request *r = slot->req;
        slot->in_flight--;
        slot->committed = MAX(slot->committed, f->spans[i].pos + f->spans[i].n);
        if (!r)
            continue;
        add_times(f->decode ? &r->result.decode_times : &r->result.prefill_times, &c->h.times);
        ++*(f->decode ? &r->result.decode_chunks : &r->result.prefill_chunks);
        if (failed)
            slot_finish(s, slot, ENGINE_FINISH_ERROR, failed);
        else if (!r->p.max_tokens && slot->committed >= r->result.n_prompt)
            slot_finish(s, slot, ENGINE_FINISH_LENGTH, NULL);
    }
    if (f->decode)
        s->decode_in_flight = false;
    f->id = 0;
    s->n_in_flight--;
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
    while (s->output && (mem = ring_peek(s->output))) {
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
