/* SPDX-License-Identifier: MIT
 * One layer's attention without a pipeline, on the simulated NPU or on the processor: synthetic weights, a pool of 2 GiB of which
 * 80% may be used, a KV cache for one sequence. Called in children of rig.h, whose checks its functions' results are for; one
 * thread. */
#ifndef TANDEM_TESTS_NPU_SIM_LAYER_H
#define TANDEM_TESTS_NPU_SIM_LAYER_H

#include <stddef.h>
#include <stdint.h>

#include "model/gemma3.h"
#include "model/hparams.h"
#include "model/segment.h"
#include "npu_worker/arena.h"
#include "npu_worker/attn_backend.h"
#include "proto/budget.h"
#include "proto/chunk.h"

struct kv;

#define LAYER_POOL ((UINT64_C(2) << 30) / 5 * 4)
#define LAYER_CHUNK_27B 128

struct layer_shape {
    const struct hparams *h;
    const char *const *operators; /* as sim_make takes them */
    size_t n_operators;
    int type; /* of the matrices */
};
/* 27B: q4_0. medium: bf16, products that take long. little: q8_0; its operator's k is larger than any of its rows. attends: with an
 * operator for attention itself. */
extern const struct layer_shape layer_27b, layer_27b_attends, layer_medium, layer_medium_attends, layer_little,
    layer_little_attends;

struct layer {
    const struct layer_shape *s;
    const char *variant; /* of the processor's kernels */
    uint8_t types[2 * GEMMA3_LAYER_TENSORS];
    struct segment_layout layout;
    struct budget budget;
    struct arena *arena;
    struct kv *kv;
    const struct attn_backend *backend;
    void *attn, *data;
    uint32_t context, weights; /* weights: block of the pool */
    float *x, *h;              /* [chunk_tokens][hidden] */
    struct chunk chunk;
    char manifest[4096];
};

/* Everything but the backend. The operators lie in folder. */
int layer_prepare(struct layer *l, const struct layer_shape *s, const char *folder, uint32_t context, uint32_t chunk_tokens,
                  struct err *err);
/* many: tokens from which on the NPU is used; 0: measured. Weights are not loaded. */
int layer_open_backend(struct layer *l, const struct attn_backend *backend, uint32_t chunk_tokens, uint32_t many, struct err *err);
int layer_load(struct layer *l, struct err *err);
void layer_close_backend(struct layer *l);
/* All three, on the NPU from one token on. */
int layer_open(struct layer *l, const struct layer_shape *s, const char *folder, uint32_t context, uint32_t chunk_tokens,
               struct err *err);
int layer_close(struct layer *l); /* 1: something is still taken from budget or pool */

/* l->x at positions pos .. pos + n - 1; results in l->h. */
int layer_chunk(struct layer *l, uint32_t pos, uint32_t n, attn_dump_fn dump, struct err *err);
/* A sequence from its beginning, every chunk of it l->x. */
int layer_prompt(struct layer *l, uint32_t n, uint32_t chunk_tokens, attn_dump_fn dump, struct err *err);

#endif
