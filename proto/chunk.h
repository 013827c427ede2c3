/* SPDX-License-Identifier: MIT
 * What lies in a ring slot: a fixed header, per-token and per-sequence tables, then the payload at a 64-byte offset.
 * A reader copies header and tables out once (chunk_read), validates the copy, and uses only the copy.
 * Little-endian, fixed-width. Threads: plain data. */
#ifndef TANDEM_PROTO_CHUNK_H
#define TANDEM_PROTO_CHUNK_H

#include <stddef.h>
#include <stdint.h>

struct err;

#define CHUNK_MAGIC 0x4b4e4843u /* "CHNK" */
#define CHUNK_MAX_TOKENS 1024
#define CHUNK_MAX_SEQS 64

enum chunk_kind {
    CHUNK_TOKENS = 1, /* coordinator -> loader: payload u32 ids[n_tokens] */
    CHUNK_HIDDEN = 2, /* payload f32 [n_tokens][hidden]; layer = the layer it goes into (npu) or just had attention of (gpu) */
    CHUNK_LOGITS = 3, /* gpu -> coordinator: payload f32 [n_rows][vocab]: rows first_row.. of those tokens that want logits */
    CHUNK_DONE = 4,   /* gpu -> coordinator: the chunk left the pipeline; comes after its logits */
    CHUNK_FAILED = 5, /* as DONE, but a stage could not do it: status holds the errno; payload: text, NUL-terminated, <= 256 */
};

#define CHUNK_WANT_LOGITS 1u /* token flag */
#define CHUNK_SEQ_FREE 1u    /* sequence flag: forget all KV of this slot before anything else in the chunk */

struct chunk_token {
    uint32_t seq; /* sequence slot */
    uint32_t pos;
    uint32_t flags;
};
struct chunk_seq {
    uint32_t seq;
    uint32_t flags;
    uint32_t committed_pos; /* positions below it are complete everywhere and will never be re-issued */
};
struct chunk_times {                    /* accumulated on the way; nanoseconds */
    uint64_t loader_ns, npu_ns, gpu_ns; /* computing */
    uint64_t npu_wait_ns, gpu_wait_ns;  /* lying in a ring before that stage took it */
    uint64_t committed_at_ns;           /* CLOCK_MONOTONIC when the last stage committed it */
    uint32_t hops;                      /* ring hops so far */
    uint32_t decode;                    /* no time: 1: its tokens were drawn, 0: they are a prompt's; for traces */
};
/* Header as it lies in a slot; sizes are static-asserted in chunk.c. */
struct chunk_header {
    uint32_t magic, epoch;
    uint64_t id;
    uint32_t kind, layer;
    uint32_t n_tokens, n_seqs; /* tokens of one sequence are consecutive and in order of position. n_tokens may be 0 (frees only) */
    uint32_t first_row, n_rows; /* CHUNK_LOGITS */
    int32_t status;
    uint32_t payload_bytes;
    /* Of the chunks that go through every layer one behind the other, when weights are streamed; both 0: on its own. */
    uint32_t pass_index, pass_count;
    struct chunk_times times;
};

/* A copy a stage works on. */
struct chunk {
    struct chunk_header h;
    struct chunk_token tokens[CHUNK_MAX_TOKENS];
    struct chunk_seq seqs[CHUNK_MAX_SEQS];
};

struct chunk_limits { /* what the reader checks against; 0 payload bytes per token = payload not checked */
    uint32_t epoch, max_tokens, max_seqs, context, n_layers, vocab, hidden;
};

/* Slot size needed for chunks of max_tokens tokens, max_seqs sequences and payload_bytes of payload. */
size_t chunk_slot_bytes(uint32_t max_tokens, uint32_t max_seqs, size_t payload_bytes);
/* Offset of the payload: depends on n_tokens and n_seqs only; 64-aligned. */
size_t chunk_payload_offset(uint32_t n_tokens, uint32_t n_seqs);
/* Copy out and check everything (counts, kinds, positions consecutive per sequence, seq < max_seqs, layer, sizes inside the
 * slot). *ret_payload points into the slot. 0 or -EPROTO (-ESTALE when only the epoch differs). */
int chunk_read(const void *slot, size_t slot_bytes, const struct chunk_limits *lim, struct chunk *ret, const void **ret_payload,
               struct err *err);
/* Write header and tables of c into the slot (payload_bytes must be set and fit) and return where the payload goes. */
void *chunk_write(void *slot, size_t slot_bytes, const struct chunk *c);
uint32_t chunk_n_logits(const struct chunk *c); /* tokens that want logits */

#endif
