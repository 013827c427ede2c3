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

enum attn_product { ATTN_Q, ATTN_K, ATTN_V, ATTN_O, ATTN_PRODUCTS };

struct gemm_matrix;
struct pool;
struct trace;

/* Queries of one sequence at positions pos .. pos + n - 1, whose K and V the pages hold already (kernels/attn.h). q, out:
 * [n][n_heads * head_dim] f32. */
struct attn_queries {
    uint32_t pos, n;
    void *const *pages;
    const float *q;
    float *out;
};

/* Somebody else who computes a part, for the CPU backend. All on the data thread; multiply and attend allocate nothing. */
struct attn_offload {
    void *ctx;
    bool (*wants)(void *ctx, uint32_t layer, enum attn_product which, uint32_t n_tokens);
    /* y[t] = W x[t]; x: [n_tokens][m->n_cols], y: [n_tokens][m->n_rows] f32. ATTN_DECLINED: from now on it wants nothing, and this
     * product is the processor's too. */
    int (*multiply)(void *ctx, uint32_t layer, enum attn_product which, const struct gemm_matrix *m, const float *x,
                    uint32_t n_tokens, float *y, struct err *err);
    bool (*wants_attention)(void *ctx, uint32_t layer, uint32_t pos, uint32_t n);
    int (*attend)(void *ctx, uint32_t layer, const struct attn_queries *x, struct err *err); /* ATTN_DECLINED, likewise */
};
#define ATTN_DECLINED 1

/* Of a backend that has a device. */
struct attn_device_options {
    const char *manifest; /* path */
    unsigned index;
    uint32_t many;       /* tokens from which on the device is used; 0: measured */
    uint32_t timeout_ms; /* of a run; 0: ATTN_TIMEOUT_MS */
    uint32_t resident;   /* layers, from the first on, whose weights stay on the device */
    bool keep_going;     /* a device that fails while it computes leaves the rest to the processor */
};
#define ATTN_TIMEOUT_MS 10000

struct attn_backend_options {
    const struct hparams *hparams;
    struct budget *budget; /* borrowed */
    struct arena *arena;   /* borrowed, as the cache, whose pages come from it */
    struct kv *kv;
    const uint8_t *types; /* as CONFIGURE carries them; borrowed until open returns */
    uint32_t context;     /* tokens of a sequence, at most */
    uint32_t n_threads, chunk_tokens, ring_slots;
    int kv_type;
    bool pin;            /* compute threads stay where they are (pool_pin) */
    const char *variant; /* CPU kernels: "auto", "ref", ... */
    struct attn_device_options device;
    struct trace *trace;                /* where a device's runs are recorded; NULL: nowhere; borrowed */
    const struct attn_offload *offload; /* of the CPU backend; NULL: nobody; borrowed, as the pool */
    struct pool *pool;                  /* of compute threads; NULL: its own */
};

/* Names: in_norm, q, k, v, q_norm, k_norm (before RoPE; heads x tokens rows of head_dim), heads, o, post_attn_norm.
 * Named intermediate rows for the golden comparisons of single-stage mode; NULL in the pipeline. rows: [n_tokens][width]. */
typedef void (*attn_dump_fn)(void *ctx, const char *name, const float *rows, uint32_t n_tokens, uint32_t width);

struct attn_backend {
    const char *name;
    int (*open)(const struct attn_backend_options *o, void **ret, struct err *err);
    /* What runs: "cpu avx2"; lives as long as the backend. */
    const char *(*describe)(void *b);
    /* data: the segment, 4096-aligned; borrowed until close. */
    int (*load_segment)(void *b, uint32_t layer, const struct segment_layout *l, const void *data, struct err *err);
    /* x, h: [c->h.n_tokens][hidden] f32, not overlapping. */
    int (*run)(void *b, uint32_t layer, const struct chunk *c, const float *x, float *h, attn_dump_fn dump, void *dump_ctx,
               struct err *err);
    void (*close)(void *b); /* NULL is fine */
    /* Operations so far: products, and attentions of a sequence's part of a chunk that the device has an operator for; and how many
     * of them it computed. Any thread. NULL: none by a device. */
    void (*count)(void *b, uint64_t *ret_products, uint64_t *ret_offloaded);
};

extern const struct attn_backend attn_cpu, attn_xrt;

struct attn_open {
    const struct attn_backend *backend;
    void *device;
};
/* wanted: cpu; xrt; auto: xrt where a manifest is named and it opens, else cpu, and says why in the log. Only with auto does a
 * device that fails later leave the rest to the processor. */
int attn_open(const char *wanted, const struct attn_backend_options *o, struct attn_open *ret, struct err *err);

/* Of attn_cpu, for who offloads: ns of one product of a loaded layer with so many tokens of no meaning, by the processor or by the
 * offload. Before run is first called; main thread. */
int attn_cpu_time(void *b, uint32_t layer, enum attn_product which, uint32_t n_tokens, bool offload, uint64_t *ret_ns,
                  struct err *err);
/* The same of attention at positions pos .. pos + n_tokens - 1 over a cache of no meaning; the layer's weights are not needed.
 * Takes pages of sequence 0, which must be empty, and gives them back. ATTN_DECLINED also where the cache has no room for so many.
 */
int attn_cpu_time_attention(void *b, uint32_t layer, uint32_t pos, uint32_t n_tokens, bool offload, uint64_t *ret_ns,
                            struct err *err);

#endif
