/* SPDX-License-Identifier: MIT
 * Reads and writes the contents of a ring slot. Owns nothing. The slot is shared with a process that may lie or change it while
 * it is read: header and tables are copied out once, only the copy is checked and used. Data threads and the coordinator. */
#include "proto/chunk.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "proto/err.h"
#include "proto/util.h"

_Static_assert(sizeof(struct chunk_token) == 12, "layout");
_Static_assert(sizeof(struct chunk_seq) == 12, "layout");
_Static_assert(sizeof(struct chunk_times) == 56, "layout");
_Static_assert(sizeof(struct chunk_header) == 112 && offsetof(struct chunk_header, times) == 56, "layout");

#define PAYLOAD_ALIGN 64

size_t chunk_payload_offset(uint32_t n_tokens, uint32_t n_seqs)
{
    size_t n =
        sizeof(struct chunk_header) + (size_t)n_tokens * sizeof(struct chunk_token) + (size_t)n_seqs * sizeof(struct chunk_seq);
    return util_round_up(n, PAYLOAD_ALIGN);
}

size_t chunk_slot_bytes(uint32_t max_tokens, uint32_t max_seqs, size_t payload_bytes)
{
    return chunk_payload_offset(max_tokens, max_seqs) + util_round_up(MAX(payload_bytes, 256), PAYLOAD_ALIGN);
}

static size_t expected_payload(const struct chunk_header *h, const struct chunk_limits *lim)
{
    switch ((enum chunk_kind)h->kind) {
    case CHUNK_TOKENS:
        return (size_t)h->n_tokens * sizeof(uint32_t);
    case CHUNK_HIDDEN:
        return (size_t)h->n_tokens * lim->hidden * sizeof(float);
    case CHUNK_LOGITS:
        return (size_t)h->n_rows * lim->vocab * sizeof(float);
    case CHUNK_DONE:
    case CHUNK_FAILED:
    default:
        return 0;
    }
}

static int check_header(const struct chunk_header *h, size_t slot_bytes, const struct chunk_limits *lim, struct err *err)
{
    if (h->magic != CHUNK_MAGIC)
        return err_set(err, -EPROTO, "chunk: magic 0x%x; expected 0x%x", h->magic, CHUNK_MAGIC);
    if (h->epoch != lim->epoch)
        return err_set(err, -ESTALE, "chunk %" PRIu64 ": epoch %u; expected %u", h->id, h->epoch, lim->epoch);
    if (h->kind < CHUNK_TOKENS || h->kind > CHUNK_FAILED)
        return err_set(err, -EPROTO, "chunk %" PRIu64 ": kind %u; expected 1 to %d", h->id, h->kind, CHUNK_FAILED);
    uint32_t max_tokens = MIN(lim->max_tokens, CHUNK_MAX_TOKENS), max_seqs = MIN(lim->max_seqs, CHUNK_MAX_SEQS);
    if (h->n_tokens > max_tokens || h->n_seqs > max_seqs)
        return err_set(err, -EPROTO, "chunk %" PRIu64 ": %u tokens of %u sequences; expected at most %u of %u", h->id, h->n_tokens,
                       h->n_seqs, max_tokens, max_seqs);
    if (h->layer >= lim->n_layers)
        return err_set(err, -EPROTO, "chunk %" PRIu64 ": layer %u; the model has %u", h->id, h->layer, lim->n_layers);
    if (h->pass_count ? h->pass_index >= h->pass_count : h->pass_index)
        return err_set(err, -EPROTO, "chunk %" PRIu64 ": number %u of a pass of %u", h->id, h->pass_index, h->pass_count);
    size_t offset = chunk_payload_offset(h->n_tokens, h->n_seqs);
    if (offset > slot_bytes || h->payload_bytes > slot_bytes - offset)
        return err_set(err, -EPROTO, "chunk %" PRIu64 ": payload of %u bytes at %zu; the slot has %zu", h->id, h->payload_bytes,
                       offset, slot_bytes);
    size_t want = expected_payload(h, lim);
    if (h->kind == CHUNK_HIDDEN && lim->hidden == 0)
        return 0;
    if (h->kind == CHUNK_FAILED ? h->payload_bytes > 256 : h->payload_bytes != want)
        return err_set(err, -EPROTO, "chunk %" PRIu64 ": payload of %u bytes; expected %zu", h->id, h->payload_bytes, want);
    return 0;
}

static int check_tables(const struct chunk *c, const struct chunk_limits *lim, struct err *err)
{
    uint64_t listed = 0, started = 0;
    for (uint32_t i = 0; i < c->h.n_seqs; i++) {
        const struct chunk_seq *s = &c->seqs[i];
        if (s->seq >= lim->max_seqs || s->seq >= CHUNK_MAX_SEQS || (listed >> s->seq & 1) || s->committed_pos > lim->context)
            return err_set(err, -EPROTO,
                           "chunk %" PRIu64 ": sequence entry %u names slot %u, committed %u; expected each slot below %u once",
                           c->h.id, i, s->seq, s->committed_pos, lim->max_seqs);
        listed |= 1ull << s->seq;
    }
    for (uint32_t i = 0; i < c->h.n_tokens; i++) {
        const struct chunk_token *t = &c->tokens[i], *prev = i ? t - 1 : NULL;
        if (t->seq >= CHUNK_MAX_SEQS || !(listed >> t->seq & 1) || t->pos >= lim->context)
            return err_set(err, -EPROTO,
                           "chunk %" PRIu64 ": token %u has slot %u, position %u; expected a listed slot and less than %u", c->h.id,
                           i, t->seq, t->pos, lim->context);
        if (prev && prev->seq == t->seq) {
            if (t->pos != prev->pos + 1)
                return err_set(err, -EPROTO, "chunk %" PRIu64 ": token %u has position %u after %u; expected the next one", c->h.id,
                               i, t->pos, prev->pos);
        } else if (started >> t->seq & 1) {
            return err_set(err, -EPROTO, "chunk %" PRIu64 ": tokens of slot %u are not together", c->h.id, t->seq);
        }
        started |= 1ull << t->seq;
    }
    return 0;
}

int chunk_read(const void *slot, size_t slot_bytes, const struct chunk_limits *lim, struct chunk *ret, const void **ret_payload,
               struct err *err)
{
    if (slot_bytes < sizeof(ret->h))
        return err_set(err, -EPROTO, "chunk: slot of %zu bytes is smaller than a header", slot_bytes);
    memcpy(&ret->h, slot, sizeof(ret->h));
    int r = check_header(&ret->h, slot_bytes, lim, err);
    if (r < 0)
        return r;
    const uint8_t *p = (const uint8_t *)slot + sizeof(ret->h);
    memcpy(ret->tokens, p, ret->h.n_tokens * sizeof(ret->tokens[0]));
    p += ret->h.n_tokens * sizeof(ret->tokens[0]);
    memcpy(ret->seqs, p, ret->h.n_seqs * sizeof(ret->seqs[0]));
    if ((r = check_tables(ret, lim, err)) < 0)
        return r;
    uint32_t rows = chunk_n_logits(ret);
    if (ret->h.kind == CHUNK_LOGITS && (ret->h.first_row > rows || ret->h.n_rows > rows - ret->h.first_row))
        return err_set(err, -EPROTO, "chunk %" PRIu64 ": logits rows %u + %u; %u tokens want logits", ret->h.id, ret->h.first_row,
                       ret->h.n_rows, rows);
    *ret_payload = (const uint8_t *)slot + chunk_payload_offset(ret->h.n_tokens, ret->h.n_seqs);
    return 0;
}

void *chunk_write(void *slot, size_t slot_bytes, const struct chunk *c)
{
    size_t offset = chunk_payload_offset(c->h.n_tokens, c->h.n_seqs);
    if (c->h.n_tokens > CHUNK_MAX_TOKENS || c->h.n_seqs > CHUNK_MAX_SEQS || offset > slot_bytes ||
        c->h.payload_bytes > slot_bytes - offset)
        return NULL;
    uint8_t *p = slot;
    memcpy(p, &c->h, sizeof(c->h));
    p += sizeof(c->h);
    memcpy(p, c->tokens, c->h.n_tokens * sizeof(c->tokens[0]));
    p += c->h.n_tokens * sizeof(c->tokens[0]);
    memcpy(p, c->seqs, c->h.n_seqs * sizeof(c->seqs[0]));
    return (uint8_t *)slot + offset;
}

uint32_t chunk_n_logits(const struct chunk *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->h.n_tokens; i++)
        n += c->tokens[i].flags & CHUNK_WANT_LOGITS;
    return n;
}
