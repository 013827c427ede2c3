/* SPDX-License-Identifier: MIT
 * Causal, optionally windowed, grouped-query attention over a paged KV cache, with online softmax on absolute
 * tiles of ATTN_PAGE positions (Dao et al. 2022, FlashAttention; Milakov and Gimelshein 2018).
 *
 * A page holds ATTN_PAGE positions of one layer: per KV head, K as [head_dim][64] then V as [64][head_dim], entries f32, f16
 * or, as q8_0, int8, and before them f16 scales of blocks of 32 dimensions, [head_dim / 32][64] for K and [64][head_dim / 32] for
 * V. Lanes are positions for K and dimensions for V, each walked in order, so that a query's result depends only on its position
 * and the cache, not on how queries are grouped. All variants agree bit for bit. */
#ifndef TANDEM_KERNELS_ATTN_H
#define TANDEM_KERNELS_ATTN_H

#include <stddef.h>
#include <stdint.h>

#define ATTN_PAGE 64
#define ATTN_ROWS 64 /* (query, head) pairs that share one pass over the pages; more are split */

struct attn_shape {
    uint32_t n_heads, n_kv_heads, head_dim; /* n_heads % n_kv_heads == 0; head_dim % 16 == 0 */
    uint32_t window;                        /* positions seen, itself included; 0 = all */
    float scale;                            /* multiplies q . k */
    int kv_type;                            /* QUANT_F32, QUANT_F16, or QUANT_Q8_0 where head_dim % 32 == 0 */
};

size_t attn_page_bytes(const struct attn_shape *s);
/* Bytes of scratch for one call of `run` with up to n_queries queries (64-aligned buffer). */
size_t attn_scratch_bytes(const struct attn_shape *s, uint32_t n_queries);

struct attn_ops {
    const char *name;
    /* Store k, v ([n_kv_heads][head_dim] f32) at `slot` (0..63) of a page. */
    void (*store)(const struct attn_shape *s, void *page, uint32_t slot, const float *k, const float *v);
    /* K and V of one head of a page as f32, in the page's order: [head_dim][64], [64][head_dim]. What was never stored is no value.
     */
    void (*load)(const struct attn_shape *s, const void *page, uint32_t kv_head, float *ret);
    /* n_queries queries of one sequence at consecutive positions pos0, pos0+1, ... for the one KV head `kv_head`
     * and the n_heads/n_kv_heads query heads that share it.
     * q, out: query i, head h at [i * stride + h * head_dim]. pages[p] covers positions 64p..64p+63 (pages wholly below
     * every window may be NULL). K and V of the queries' own positions are already stored. scratch: attn_scratch_bytes. */
    void (*run)(const struct attn_shape *s, uint32_t kv_head, const float *q, size_t stride, uint32_t pos0, uint32_t n_queries,
                void *const *pages, float *out, void *scratch);
};

extern const struct attn_ops attn_ref, attn_avx2, attn_avx512;

#endif
