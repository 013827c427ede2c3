/* SPDX-License-Identifier: MIT
 * What the gemm variants share, on sixteen lanes: preparation of activations, blocking, and the float types. Each accumulator
 * belongs to one (token, row) and walks k upwards; blocks of tokens, tiles and columns only decide how many walk at once. A variant
 * includes this after its lanes header and defines integer_block. */
#include <stdbool.h>
#include <string.h>

#include "kernels/gemm.h"
#include "kernels/gemm_act.h"
#include "kernels/quant.h"
#include "kernels/repack.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16") for

#define CACHED_BYTES ((size_t)512 << 10) /* weights that stay in the second-level cache while tokens pass */
#define FETCH_STREAM 2048                /* bytes ahead in each tile when weights are read only once */
#define FETCH_ONE 8192                   /* the same for one token, which walks one tile of an integer type after the other */

/* Largest magnitude, compared as integers: a NaN is the largest of all, so that it reaches the output through the scale. */
static float magnitude(const float *x)
{
    uint32_t u[QUANT_BLOCK], max = 0;
    float f;
    memcpy(u, x, sizeof(u));
    for (int i = 0; i < QUANT_BLOCK; i++)
        max = (u[i] & 0x7fffffff) > max ? u[i] & 0x7fffffff : max;
    memcpy(&f, &max, sizeof(f));
    return f;
}

static void prepare_block(const float *x, struct gemm_act *a, size_t b)
{
    int8_t *q = (int8_t *)a->quants + 32 * b;
    float t[QUANT_BLOCK], d = magnitude(x) / 127.0f, id = d != 0 ? 1.0f / d : 0;
    v16_store(t, v16_round(v16_mul(v16_load(x), v16_set(id))));
    v16_store(t + 16, v16_round(v16_mul(v16_load(x + 16), v16_set(id))));
    int32_t sum[2] = {0};
    for (int i = 0; i < QUANT_BLOCK; i++)
        q[i] = t[i] >= -127 && t[i] <= 127 ? (int8_t)t[i] : 0; /* out of range: not finite, or 1 / d overflowed */
    for (int i = 0; i < QUANT_BLOCK / 2; i++) {
        sum[0] += q[i];
        sum[1] += q[i + 16];
    }
    ((float *)a->scales)[b] = d;
    ((int32_t *)a->biases)[b] = -8 * (sum[0] + sum[1]);
    ((float *)a->sums)[b] = d * (float)(sum[0] + sum[1]);
    ((int32_t *)a->halves)[2 * b] = -32 * sum[0];
    ((int32_t *)a->halves)[2 * b + 1] = -32 * sum[1];
}

static void prepare(int type, const float *x, size_t n_cols, void *act)
{
    if (!quant_is_integer(type)) {
        memcpy(act, x, n_cols * sizeof(float));
        return;
    }
    struct gemm_act a = gemm_act_at(act, n_cols);
    for (size_t b = 0; b < n_cols / 32; b++)
        prepare_block(x + 32 * b, &a, b);
}

/* Part of a product: columns k0..k1 of some tiles for some tokens. */
struct span {
    const struct gemm_matrix *m;
    size_t tile_bytes, act_bytes; /* of one tile, of one token */
    uint32_t tile;
    size_t k0, k1;
    const uint8_t *act;
    float *y;
    size_t y_stride;
    size_t fetch; /* distance of the weights to prefetch; 0: none */
};

INLINE const uint8_t *span_tiles(const struct span *s)
{
    return (const uint8_t *)s->m->tiles + s->tile * s->tile_bytes;
}

/* Lanes that are rows of the matrix. */
INLINE void acc_store(const struct span *s, int t, int i, v16 x)
{
    uint32_t row = (s->tile + (uint32_t)i) * REPACK_ROWS;
    float *y = s->y + (size_t)t * s->y_stride + row;
    if (s->m->n_rows - row >= REPACK_ROWS) {
        v16_store(y, x);
    } else {
        float f[16];
        v16_store(f, x);
        memcpy(y, f, (s->m->n_rows - row) * sizeof(float));
    }
}

/* Zero, or what the columns before k0 gave. */
INLINE v16 acc_load(const struct span *s, int t, int i)
{
    uint32_t row = (s->tile + (uint32_t)i) * REPACK_ROWS;
    const float *y = s->y + (size_t)t * s->y_stride + row;
    float f[16] = {0};
    if (s->k0 == 0)
        return v16_set(0);
    if (s->m->n_rows - row >= REPACK_ROWS)
        return v16_load(y);
    memcpy(f, y, (s->m->n_rows - row) * sizeof(float));
    return v16_load(f);
}

INLINE v16 load_weights(int type, const uint8_t *p)
{
    return type == QUANT_F32   ? v16_load((const float *)(const void *)p)
           : type == QUANT_F16 ? v16_load_f16((const uint16_t *)(const void *)p)
                               : v16_load_bf16((const uint16_t *)(const void *)p);
}

/* nt tokens x nw tiles, all constants at the call. */
INLINE void float_block(int type, int nt, int nw, const struct span *s)
{
    size_t size = type == QUANT_F32 ? 64 : 32, tile_bytes = s->tile_bytes, fetch = s->fetch,
           x_stride = s->act_bytes / sizeof(float);
    const uint8_t *w = span_tiles(s) + s->k0 * size;
    const float *x = (const float *)(const void *)s->act;
    v16 acc[LANES_TOKENS][4];
    UNROLL(int t = 0; t < nt; t++)
    {
        UNROLL(int i = 0; i < nw; i++)
        acc[t][i] = acc_load(s, t, i);
    }
    for (size_t k = s->k0; k < s->k1; k++, w += size) {
        v16 v[4];
        UNROLL(int i = 0; i < nw; i++)
        v[i] = load_weights(type, w + (size_t)i * tile_bytes);
        if (fetch) {
            UNROLL(int i = 0; i < nw; i++)
            __builtin_prefetch(w + (size_t)i * tile_bytes + fetch, 0, 3);
        }
        UNROLL(int t = 0; t < nt; t++)
        {
            v16 b = v16_set(x[(size_t)t * x_stride + k]);
            UNROLL(int i = 0; i < nw; i++)
            acc[t][i] = v16_fma(v[i], b, acc[t][i]);
        }
    }
    UNROLL(int t = 0; t < nt; t++)
    {
        UNROLL(int i = 0; i < nw; i++)
        acc_store(s, t, i, acc[t][i]);
    }
}

/* What the layouts of the integer types have in common (repack.h); all constants where `type` is one. */
#define HAS_MIN(type) ((type) == QUANT_Q4_1 || (type) == QUANT_Q5_1 || (type) == QUANT_Q4_K || (type) == QUANT_Q5_K)
#define HAS_FIFTH(type) ((type) == QUANT_Q5_0 || (type) == QUANT_Q5_1 || (type) == QUANT_Q5_K)
#define IS_SUPER(type) ((type) == QUANT_Q4_K || (type) == QUANT_Q5_K || (type) == QUANT_Q6_K)
#define WORD 64u /* bytes of a word of 16 rows */

/* Bytes of the words of 32 elements with what lies between them and the next, of the quants and highest bits alone, and where
 * these start. */
INLINE size_t step_bytes(int type)
{
    return WORD * (IS_SUPER(type) ? (repack_block_words(type) - 4) / 8 : repack_block_words(type));
}
INLINE const uint8_t *block_at(int type, const uint8_t *tile, size_t b)
{
    return IS_SUPER(type) ? tile + repack_block_offset(type, b / 8) + 4 * WORD + b % 8 * step_bytes(type)
                          : tile + repack_block_offset(type, b);
}
/* d and minimum, or d and integer scales, of the super-block that holds block b. */
INLINE const uint8_t *head_at(int type, const uint8_t *tile, size_t b)
{
    return tile + repack_block_offset(type, b / 8);
}
/* The f16 d of block b's 16 rows. */
INLINE const uint16_t *tail_at(int type, const uint8_t *tile, size_t n_cols, size_t b)
{
    size_t at = IS_SUPER(type) ? repack_tail_offset(type, n_cols / 256, b / 8) : repack_tail_offset(type, n_cols / 32, b);
    return (const uint16_t *)(const void *)(tile + at);
}
INLINE const uint8_t *high_at(int type, const uint8_t *block)
{
    return type == QUANT_Q5_1 ? block + WORD : block;
}
INLINE const uint8_t *quants_at(int type, const uint8_t *block)
{
    return block + WORD * (type == QUANT_Q4_1 || type == QUANT_Q5_0 || type == QUANT_Q5_K ? 1
                           : type == QUANT_Q5_1 || type == QUANT_Q6_K                     ? 2
                                                                                          : 0);
}

INLINE void integer_block(int type, int nt, int nw, const struct span *s);

#define MAX_TOKENS(type) (quant_is_integer(type) ? LANES_INTEGER_TOKENS(type) : LANES_TOKENS)

INLINE void block(int type, int nt, int nw, const struct span *s)
{
    if (nt > MAX_TOKENS(type))
        return;
    if (quant_is_integer(type))
        integer_block(type, nt, nw, s);
    else
        float_block(type, nt, nw, s);
}

/* Tokens left over after the largest blocks go by four, two and one. */
INLINE uint32_t token_block(int type, int nw, const struct span *s, uint32_t left)
{
    uint32_t max = MAX_TOKENS(type), n = left >= 6 && max >= 6 ? 6 : left >= 4 && max >= 4 ? 4 : left >= 2 && max >= 2 ? 2 : 1;
    if (n == 6)
        block(type, 6, nw, s);
    else if (n == 4)
        block(type, 4, nw, s);
    else if (n == 2)
        block(type, 2, nw, s);
    else
        block(type, 1, nw, s);
    return n;
}

/* All tokens for nw tiles, by as many columns as stay cached. The first block of tokens streams the tiles in; while the second
 * passes, the next tiles are fetched. */
INLINE void tile_group(int type, int nw, struct span s, uint32_t n_tokens)
{
    size_t n_cols = s.m->n_cols, chunk = CACHED_BYTES / (s.tile_bytes * (size_t)nw / n_cols + 1) / 32 * 32;
    for (size_t k = 0; k < n_cols; k += chunk) {
        struct span c = s;
        c.k0 = k;
        c.k1 = n_cols - k < chunk ? n_cols : k + chunk;
        for (uint32_t done = 0, n; done < n_tokens; done += n) {
            c.fetch = done == 0 ? s.fetch : done == (uint32_t)MAX_TOKENS(type) && chunk >= n_cols ? (size_t)nw * s.tile_bytes : 0;
            n = token_block(type, nw, &c, n_tokens - done);
            c.act += n * s.act_bytes;
            c.y += n * s.y_stride;
        }
    }
}

INLINE void type_tiles(int type, const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const void *act, uint32_t n_tokens,
                       float *y, size_t y_stride)
{
    struct span s = {.m = m,
                     .tile_bytes = repack_tile_bytes(type, m->n_cols),
                     .act_bytes = gemm_act_bytes(type, m->n_cols),
                     .tile = tile0,
                     .k1 = m->n_cols,
                     .act = act,
                     .y = y,
                     .y_stride = y_stride,
                     .fetch = FETCH_STREAM};
    if (n_tokens == 1) {
        if (quant_is_integer(type))
            s.fetch = FETCH_ONE;
        else
            for (; tile1 - s.tile >= LANES_FLOAT_TILES; s.tile += LANES_FLOAT_TILES)
                block(type, 1, LANES_FLOAT_TILES, &s);
        for (; s.tile < tile1; s.tile++)
            block(type, 1, 1, &s);
    } else {
        for (; tile1 - s.tile >= LANES_TILES(type); s.tile += LANES_TILES(type))
            tile_group(type, LANES_TILES(type), s, n_tokens);
        for (; s.tile < tile1; s.tile++)
            tile_group(type, 1, s, n_tokens);
    }
}

#define TYPE_TILES(name, type)                                                                                           \
    static void name(const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const void *act, uint32_t n, float *y, \
                     size_t y_stride)                                                                                    \
    {                                                                                                                    \
        type_tiles(type, m, tile0, tile1, act, n, y, y_stride);                                                          \
    }
TYPE_TILES(f32_tiles, QUANT_F32)
TYPE_TILES(f16_tiles, QUANT_F16)
TYPE_TILES(bf16_tiles, QUANT_BF16)
TYPE_TILES(q8_0_tiles, QUANT_Q8_0)
TYPE_TILES(q4_0_tiles, QUANT_Q4_0)
TYPE_TILES(q4_1_tiles, QUANT_Q4_1)
TYPE_TILES(q5_0_tiles, QUANT_Q5_0)
TYPE_TILES(q5_1_tiles, QUANT_Q5_1)
TYPE_TILES(q4_k_tiles, QUANT_Q4_K)
TYPE_TILES(q5_k_tiles, QUANT_Q5_K)
TYPE_TILES(q6_k_tiles, QUANT_Q6_K)

static void tiles(const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const void *act, uint32_t n_tokens, float *y,
                  size_t y_stride)
{
    static const struct {
        int type;
        void (*run)(const struct gemm_matrix *, uint32_t, uint32_t, const void *, uint32_t, float *, size_t);
    } of[] = {
        {QUANT_F32, f32_tiles},   {QUANT_F16, f16_tiles},   {QUANT_BF16, bf16_tiles}, {QUANT_Q8_0, q8_0_tiles},
        {QUANT_Q4_0, q4_0_tiles}, {QUANT_Q4_1, q4_1_tiles}, {QUANT_Q5_0, q5_0_tiles}, {QUANT_Q5_1, q5_1_tiles},
        {QUANT_Q4_K, q4_k_tiles}, {QUANT_Q5_K, q5_k_tiles}, {QUANT_Q6_K, q6_k_tiles},
    };
    for (size_t i = 0; n_tokens && i < sizeof(of) / sizeof(of[0]); i++) {
        if (of[i].type == m->type)
            of[i].run(m, tile0, tile1, act, n_tokens, y, y_stride);
    }
}

const struct gemm_ops LANES_VARIANT(gemm) = {.name = LANES_NAME, .prepare = prepare, .tiles = tiles};
