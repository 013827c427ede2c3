/* SPDX-License-Identifier: MIT
 * What npu_worker asks of a device: h = x + post_attention_norm(Attention(input_norm(x))) for one layer.
 * All functions return 0 or a negative errno with a message; a lost device is a return value, never an abort.
 * Threads: run on the data thread; all others on the main thread before it starts or after it ended. */
#ifndef TANDEM_NPU_WORKER_ATTN_BACKEND_H
#define TANDEM_NPU_WORKER_ATTN_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

#include "model/segment.h"

struct arena;
struct budget;
struct chunk;
struct err;
struct kv;

struct attn_backend_options {
    const struct hparams *hparams;
    struct budget *budget; /* borrowed */
    struct arena *arena;   /* borrowed, as the cache, whose pages come from it */
    struct kv *kv;
    const uint8_t *types; /* as CONFIGURE carries them; borrowed until open returns */
    uint32_t n_threads, chunk_tokens, ring_slots;
    int kv_type;
    bool pin;            /* compute threads stay where they are (pool_pin) */
    const char *variant; /* CPU kernels: "auto", "ref", ... */
};

/* Names: in_norm, q, k, v, q_norm, k_norm (before RoPE; heads x tokens rows of head_dim), heads, o, post_attn_norm.
 * Named intermediate rows for the golden comparisons of single-stage mode; NULL in the pipeline. rows: [n_tokens][width]. */
typedef void (*attn_dump_fn)(void *ctx, const char *name, const float *rows, uint32_t n_tokens, uint32_t width);

struct attn_backend {
    const char *name;
    bool (*probe)(const char **ret_reason); /* can it run here? Cannot kill the process. */
    int (*open)(const struct attn_backend_options *o, void **ret, struct err *err);
    /* What runs: "cpu avx2"; lives as long as the backend. */
    const char *(*describe)(void *b);
    /* data: the segment, 4096-aligned; borrowed until close. */
    int (*load_segment)(void *b, uint32_t layer, const struct segment_layout *l, const void *data, struct err *err);
    /* x, h: [c->h.n_tokens][hidden] f32, not overlapping. */
    int (*run)(void *b, uint32_t layer, const struct chunk *c, const float *x, float *h, attn_dump_fn dump, void *dump_ctx,
               struct err *err);
    void (*close)(void *b); /* NULL is fine */
};

extern const struct attn_backend attn_cpu;

#endif
