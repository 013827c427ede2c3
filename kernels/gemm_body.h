/* SPDX-License-Identifier: MIT
 * What the gemm variants share, on sixteen lanes: preparation of activations and the float types. Each accumulator belongs to
 * one (token, row) and walks k upwards; blocks of tokens and tiles only decide how many walk at once. */
#include <string.h>

#include "kernels/gemm.h"
#include "kernels/gemm_act.h"
#include "kernels/quant.h"
#include "kernels/repack.h"

#define INLINE static inline __attribute__((always_inline))

/* Round to nearest even, as the SIMD conversions do. */
static void prepare_block(const float *x, float *ret_scale, int32_t *ret_sum, int8_t *q)
{
    v16 zero = v16_set(0), a = v16_load(x), b = v16_load(x + 16);
    float t[32], amax = 0;
    v16_store(t, v16_max(v16_max(a, v16_sub(zero, a)), v16_max(b, v16_sub(zero, b))));
    for (int i = 0; i < 16; i++)
        amax = t[i] > amax ? t[i] : amax;
    float d = amax / 127.0f, id = d != 0 ? 1.0f / d : 0;
    v16_store(t, v16_round(v16_mul(a, v16_set(id))));
    v16_store(t + 16, v16_round(v16_mul(b, v16_set(id))));
    int32_t sum = 0;
    for (int i = 0; i < 32; i++) {
        q[i] = (int8_t)t[i];
        sum += q[i];
    }
    *ret_scale = d;
    *ret_sum = sum;
}

static void prepare(int type, const float *x, size_t n_cols, void *act)
{
    if (quant_block_elems(type) != QUANT_BLOCK) {
        memcpy(act, x, n_cols * sizeof(float));
        return;
    }
    struct gemm_act a = gemm_act_at(act, n_cols);
    for (size_t b = 0; b < n_cols / 32; b++)
        prepare_block(x + 32 * b, (float *)a.scales + b, (int32_t *)a.sums + b, (int8_t *)a.quants + 32 * b);
}

/* Lanes of a tile that are rows of the matrix. */
INLINE void put(const struct gemm_matrix *m, uint32_t tile, v16 x, float *y)
{
    uint32_t row = tile * REPACK_ROWS;
    if (m->n_rows - row >= REPACK_ROWS) {
        v16_store(y + row, x);
    } else {
        float t[16];
        v16_store(t, x);
        memcpy(y + row, t, (m->n_rows - row) * sizeof(float));
    }
}

INLINE v16 load_weights(int type, const uint8_t *p)
{
    return type == QUANT_F32   ? v16_load((const float *)(const void *)p)
           : type == QUANT_F16 ? v16_load_f16((const uint16_t *)(const void *)p)
                               : v16_load_bf16((const uint16_t *)(const void *)p);
}

/* nt tokens x nw tiles, all constants at the call. */
INLINE void float_block(int type, int nt, int nw, const struct gemm_matrix *m, uint32_t tile, const float *act, size_t act_floats, float *y,
                        size_t y_stride)
{
    size_t size = type == QUANT_F32 ? 64 : 32, tile_bytes = repack_tile_bytes(type, m->n_cols);
    const uint8_t *w = (const uint8_t *)m->tiles + tile * tile_bytes;
    v16 acc[LANES_TOKENS][LANES_GEMV_TILES];
    for (int t = 0; t < nt; t++) {
        for (int i = 0; i < nw; i++)
            acc[t][i] = v16_set(0);
    }
    for (size_t k = 0; k < m->n_cols; k++, w += size) {
        v16 x[LANES_TOKENS];
        for (int t = 0; t < nt; t++)
            x[t] = v16_set(act[(size_t)t * act_floats + k]);
        for (int i = 0; i < nw; i++) {
            v16 v = load_weights(type, w + (size_t)i * tile_bytes);
            for (int t = 0; t < nt; t++)
                acc[t][i] = v16_fma(v, x[t], acc[t][i]);
        }
    }
    for (int t = 0; t < nt; t++) {
        for (int i = 0; i < nw; i++)
            put(m, tile + (uint32_t)i, acc[t][i], y + (size_t)t * y_stride);
    }
}

INLINE void float_tiles(int type, const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const float *act, uint32_t n_tokens, float *y,
                        size_t y_stride)
{
    size_t stride = gemm_act_bytes(type, m->n_cols) / sizeof(float);
    uint32_t t = 0;
    for (; t + LANES_TOKENS <= n_tokens; t += LANES_TOKENS) {
        for (uint32_t i = tile0; i < tile1; i++)
            float_block(type, LANES_TOKENS, 1, m, i, act + t * stride, stride, y + t * y_stride, y_stride);
    }
    for (; t < n_tokens; t++) {
        uint32_t i = tile0;
        for (; i + LANES_GEMV_TILES <= tile1; i += LANES_GEMV_TILES)
            float_block(type, 1, LANES_GEMV_TILES, m, i, act + t * stride, stride, y + t * y_stride, y_stride);
        for (; i < tile1; i++)
            float_block(type, 1, 1, m, i, act + t * stride, stride, y + t * y_stride, y_stride);
    }
}

static void q8_0_tiles(const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const void *act, uint32_t n_tokens, float *y,
                       size_t y_stride);
static void q4_0_tiles(const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const void *act, uint32_t n_tokens, float *y,
                       size_t y_stride);

static void tiles(const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const void *act, uint32_t n_tokens, float *y, size_t y_stride)
{
    switch (m->type) {
    case QUANT_F32:
        float_tiles(QUANT_F32, m, tile0, tile1, act, n_tokens, y, y_stride);
        break;
    case QUANT_F16:
        float_tiles(QUANT_F16, m, tile0, tile1, act, n_tokens, y, y_stride);
        break;
    case QUANT_BF16:
        float_tiles(QUANT_BF16, m, tile0, tile1, act, n_tokens, y, y_stride);
        break;
    case QUANT_Q8_0:
        q8_0_tiles(m, tile0, tile1, act, n_tokens, y, y_stride);
        break;
    case QUANT_Q4_0:
        q4_0_tiles(m, tile0, tile1, act, n_tokens, y, y_stride);
        break;
    default:
        break;
    }
}

const struct gemm_ops LANES_VARIANT(gemm) = {.name = LANES_NAME, .prepare = prepare, .tiles = tiles};
