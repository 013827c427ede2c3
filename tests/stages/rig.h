/* SPDX-License-Identifier: MIT
 * Test support: a whole model on the CPU backends in one process, without rings or sockets, and the golden values. Every failure
 * ends the test that called. */
#ifndef TANDEM_TESTS_STAGES_RIG_H
#define TANDEM_TESTS_STAGES_RIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/hparams.h"
#include "proto/budget.h"

struct chunk;
struct embed;
struct gguf;
struct kv;
struct rig_segment;

struct rig_options {
    const char *model;   /* "demo-f32": of the fixture's folder */
    const char *variant; /* NULL = auto */
    int kv_type;
    uint32_t n_threads, chunk_tokens, ring_slots, sequences, context;
};

struct rig {
    struct rig_options o;
    struct gguf *gguf;
    struct hparams hparams;
    uint8_t *types;
    struct budget budget;
    struct embed *embed;
    struct arena *arena;
    struct kv *kv;
    void *attn, *ffn;
    struct rig_segment *segments;
    uint32_t n_segments;
    float *x, *h; /* [chunk_tokens][hidden] */
};

#define RIG_LOGITS_ROWS 4

const char *rig_model_path(const char *name); /* one static buffer */
uint8_t *rig_types(const struct gguf *g, const struct hparams *h);
void rig_open(struct rig *r, const struct rig_options *o);
void rig_close(struct rig *r); /* also checks that the budget got everything back */
/* One chunk through embedding, all layers and the head; logits: [n_tokens][vocab]. */
void rig_run(struct rig *r, const struct chunk *c, const uint32_t *ids, float *logits);
/* Tokens pos .. pos + n - 1 of one sequence as a chunk of their own. */
void rig_chunk(struct chunk *c, uint32_t seq, uint32_t pos, uint32_t n, uint32_t committed_pos);
/* A whole sequence in pieces of chunk_tokens; logits: [n][vocab]. */
void rig_sequence(struct rig *r, uint32_t seq, const uint32_t *ids, uint32_t n, float *logits);
/* n ids below vocab, always the same ones for a seed; the first is 2. */
void rig_ids(uint32_t *ids, uint32_t n, uint32_t vocab, uint32_t seed);

struct golden;
struct golden *rig_golden(const char *name); /* file below tests/golden */
void rig_golden_close(struct golden *g);
bool rig_golden_has(const struct golden *g, const char *tensor);
/* All elements, malloc'ed; f32 or the raw bits of i32. */
float *rig_golden_read(const struct golden *g, const char *tensor, size_t *ret_n);
void rig_close_to(const char *what, const float *got, const float *want, size_t n, float bound);

#endif
