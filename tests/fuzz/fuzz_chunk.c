/* SPDX-License-Identifier: MIT
 * Contents of a ring slot: what chunk_read accepts lies inside the slot and within the limits. The first byte chooses how much
 * larger than the input the slot is. */
#include <stdlib.h>
#include <string.h>

#include "proto/chunk.h"
#include "proto/err.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct chunk_limits limits = {
    .epoch = 3, .max_tokens = 64, .max_seqs = 8, .context = 1000, .n_layers = 6, .vocab = 50, .hidden = 16};

static void check(const struct chunk *c, const uint8_t *slot, size_t slot_bytes, const uint8_t *payload)
{
    size_t offset = (size_t)(payload - slot);
    if (payload < slot || offset > slot_bytes || c->h.payload_bytes > slot_bytes - offset || c->h.layer >= limits.n_layers ||
        c->h.n_tokens > limits.max_tokens || c->h.n_seqs > limits.max_seqs)
        abort();
    if (c->h.pass_count ? c->h.pass_index >= c->h.pass_count : c->h.pass_index)
        abort();
    for (uint32_t i = 0; i < c->h.n_tokens; i++) {
        if (c->tokens[i].seq >= limits.max_seqs || c->tokens[i].pos >= limits.context)
            abort();
    }
    if (c->h.kind == CHUNK_LOGITS && c->h.first_row + c->h.n_rows > chunk_n_logits(c))
        abort();
    volatile uint8_t sum = 0;
    for (uint32_t i = 0; i < c->h.payload_bytes; i++)
        sum = (uint8_t)(sum + payload[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct chunk c;
    struct err err = {0};
    const void *payload = NULL;
    if (size == 0)
        return 0;
    size_t slot_bytes = size - 1 + (size_t)data[0] * 32;
    uint8_t *slot = calloc(1, slot_bytes ? slot_bytes : 1);
    if (!slot)
        return 0;
    memcpy(slot, data + 1, size - 1);
    int r = chunk_read(slot, slot_bytes, &limits, &c, &payload, &err);
    if (r == 0)
        check(&c, slot, slot_bytes, payload);
    else if (err.code != r || !err.text[0])
        abort();
    free(slot);
    return 0;
}
