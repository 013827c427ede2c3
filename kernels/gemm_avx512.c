/* SPDX-License-Identifier: MIT
 * Integer types with AVX-512 VNNI: vpdpbusd adds four u8 x s8 products to each of 16 rows; the four activation bytes are broadcast
 * from memory. Weights are made unsigned (q4_0 nibbles are, q8_0 by flipping the sign bit) and the accumulator starts at -8 or
 * -128 times the sum of the block's activations, so that no correction follows. Owns nothing, allocates nothing; any thread. */
#include "kernels/lanes_avx512.h"

#include "kernels/gemm_body.h"

#define PREFETCH 1024 /* bytes ahead in each tile's stream; measured with bench/kernels */

INLINE __m512i broadcast4(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}

/* One block of 32 columns of one tile: 8 (q8_0) or 4 (q4_0) vectors of weights onto nt sums. */
INLINE void block_q8_0(int nt, const uint8_t *w, const int8_t *const *q, __m512i *sum)
{
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    for (int g = 0; g < 8; g++) {
        __m512i v = _mm512_xor_si512(_mm512_loadu_si512(w + 64 * g), flip);
        for (int t = 0; t < nt; t++)
            sum[t] = _mm512_dpbusd_epi32(sum[t], v, broadcast4(q[t] + 4 * g));
    }
}

INLINE void block_q4_0(int nt, const uint8_t *w, const int8_t *const *q, __m512i *sum)
{
    const __m512i low = _mm512_set1_epi8(15);
    for (int g = 0; g < 4; g++) {
        __m512i v = _mm512_loadu_si512(w + 64 * g);
        __m512i lo = _mm512_and_si512(v, low), hi = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
        for (int t = 0; t < nt; t++) {
            sum[t] = _mm512_dpbusd_epi32(sum[t], lo, broadcast4(q[t] + 4 * g));
            sum[t] = _mm512_dpbusd_epi32(sum[t], hi, broadcast4(q[t] + 16 + 4 * g));
        }
    }
}

#define NT_MAX 8
#define NW_MAX 4

/* nt tokens x nw tiles, constants at the call; nt * nw <= 8 accumulators of each kind. */
INLINE void integer_block(int type, int nt, int nw, const struct gemm_matrix *m, uint32_t tile, const uint8_t *act, float *y, size_t y_stride)
{
    size_t blocks = m->n_cols / 32, tile_bytes = repack_tile_bytes(type, m->n_cols), act_bytes = gemm_act_bytes(type, m->n_cols);
    size_t step = type == QUANT_Q8_0 ? 512 : 256;
    int offset = type == QUANT_Q8_0 ? -128 : -8;
    const uint8_t *w = (const uint8_t *)m->tiles + tile * tile_bytes;
    const uint8_t *scales = w + blocks * step;
    struct gemm_act a[NT_MAX];
    v16 acc[NW_MAX][NT_MAX];
    for (int t = 0; t < nt; t++) {
        a[t] = gemm_act_at(act + (size_t)t * act_bytes, m->n_cols);
        for (int i = 0; i < nw; i++)
            acc[i][t] = v16_set(0);
    }
    for (size_t b = 0; b < blocks; b++, w += step, scales += 32) {
        const int8_t *q[NT_MAX];
        for (int t = 0; t < nt; t++)
            q[t] = a[t].quants + 32 * b;
        for (int i = 0; i < nw; i++) {
            __m512i sum[NT_MAX];
            const uint8_t *wi = w + (size_t)i * tile_bytes;
            for (int t = 0; t < nt; t++)
                sum[t] = _mm512_set1_epi32(offset * a[t].sums[b]);
            if (nt == 1) {
                for (size_t l = 0; l < step; l += 64)
                    _mm_prefetch((const char *)wi + PREFETCH + l, _MM_HINT_T0);
            }
            if (type == QUANT_Q8_0)
                block_q8_0(nt, wi, q, sum);
            else
                block_q4_0(nt, wi, q, sum);
            v16 d = v16_load_f16((const uint16_t *)(const void *)(scales + (size_t)i * tile_bytes));
            for (int t = 0; t < nt; t++)
                acc[i][t] = v16_fma(_mm512_cvtepi32_ps(sum[t]), v16_mul(d, v16_set(a[t].scales[b])), acc[i][t]);
        }
    }
    for (int t = 0; t < nt; t++) {
        for (int i = 0; i < nw; i++)
            put(m, tile + (uint32_t)i, acc[i][t], y + (size_t)t * y_stride);
    }
}

INLINE void integer_tiles(int type, const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const void *act, uint32_t n_tokens, float *y,
                          size_t y_stride)
{
    size_t act_bytes = gemm_act_bytes(type, m->n_cols);
    for (uint32_t t = 0; t < n_tokens;) {
        const uint8_t *a = (const uint8_t *)act + t * act_bytes;
        float *out = y + t * y_stride;
        uint32_t i = tile0;
        if (n_tokens - t >= 8) {
            for (; i < tile1; i++)
                integer_block(type, 8, 1, m, i, a, out, y_stride);
            t += 8;
        } else if (n_tokens - t >= 4) {
            for (; i < tile1; i++)
                integer_block(type, 4, 1, m, i, a, out, y_stride);
            t += 4;
        } else {
            for (; i + NW_MAX <= tile1; i += NW_MAX)
                integer_block(type, 1, NW_MAX, m, i, a, out, y_stride);
            for (; i < tile1; i++)
                integer_block(type, 1, 1, m, i, a, out, y_stride);
            t++;
        }
    }
}

static void q8_0_tiles(const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const void *act, uint32_t n_tokens, float *y,
                       size_t y_stride)
{
    integer_tiles(QUANT_Q8_0, m, tile0, tile1, act, n_tokens, y, y_stride);
}

static void q4_0_tiles(const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const void *act, uint32_t n_tokens, float *y,
                       size_t y_stride)
{
    integer_tiles(QUANT_Q4_0, m, tile0, tile1, act, n_tokens, y, y_stride);
}
