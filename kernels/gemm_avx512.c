/* SPDX-License-Identifier: MIT
 * Integer types with AVX-512 VNNI: vpdpbusd adds four u8 x s8 products to each of 16 rows; four activation bytes are broadcast.
 * Weights are made unsigned (q4_0 nibbles are, q8_0 by flipping the sign bit) and the sums start at -8 or -128 times the sum of
 * the block's activations, so that no correction follows. The integer sums of a block of tokens and tiles fill the registers;
 * its f32 accumulators wait in the first-level cache. Owns nothing, allocates nothing; any thread. */
#include "kernels/lanes_avx512.h"

#include "kernels/gemm_body.h"

INLINE __m512i broadcast4(const void *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}

INLINE __m512i load_quants(const uint8_t *p)
{
    return _mm512_loadu_si512((const void *)p);
}

/* Four columns of nw tiles, unsigned, times those of nt tokens. */
INLINE void multiply(int nt, int nw, const __m512i *v, const int8_t *q, size_t act_bytes, __m512i (*sum)[LANES_TILES])
{
    UNROLL(int t = 0; t < nt; t++)
    {
        __m512i x = broadcast4(q + (size_t)t * act_bytes);
        UNROLL(int i = 0; i < nw; i++)
        sum[t][i] = _mm512_dpbusd_epi32(sum[t][i], v[i], x);
    }
}

INLINE void sum_q8_0(int nt, int nw, const uint8_t *w, size_t tile_bytes, const int8_t *q, size_t act_bytes,
                     __m512i (*sum)[LANES_TILES])
{
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    UNROLL(size_t g = 0; g < 8; g++)
    {
        __m512i v[LANES_TILES];
        UNROLL(int i = 0; i < nw; i++)
        v[i] = _mm512_xor_si512(load_quants(w + 64 * g + (size_t)i * tile_bytes), flip);
        multiply(nt, nw, v, q + 4 * g, act_bytes, sum);
    }
}

INLINE void sum_q4_0(int nt, int nw, const uint8_t *w, size_t tile_bytes, const int8_t *q, size_t act_bytes,
                     __m512i (*sum)[LANES_TILES])
{
    const __m512i low = _mm512_set1_epi8(15);
    UNROLL(size_t g = 0; g < 4; g++)
    {
        __m512i v[LANES_TILES];
        UNROLL(int i = 0; i < nw; i++)
        v[i] = _mm512_and_si512(load_quants(w + 64 * g + (size_t)i * tile_bytes), low);
        multiply(nt, nw, v, q + 4 * g, act_bytes, sum);
        UNROLL(int i = 0; i < nw; i++)
        v[i] = _mm512_and_si512(_mm512_srli_epi16(load_quants(w + 64 * g + (size_t)i * tile_bytes), 4), low);
        multiply(nt, nw, v, q + 16 + 4 * g, act_bytes, sum);
    }
}

/* nt tokens x nw tiles, constants at the call. */
INLINE void integer_block(int type, int nt, int nw, const struct span *s)
{
    size_t step = type == QUANT_Q8_0 ? 512 : 256, tile_bytes = s->tile_bytes, act_bytes = s->act_bytes, fetch = s->fetch;
    const uint8_t *w = span_tiles(s), *d = w + s->m->n_cols / 32 * step;
    struct gemm_act a = gemm_act_at(s->act, s->m->n_cols);
    _Alignas(64) float acc[LANES_INTEGER_TOKENS][LANES_TILES][16];
    for (int t = 0; t < nt; t++) {
        for (int i = 0; i < nw; i++)
            v16_store(acc[t][i], acc_load(s, t, i));
    }
    for (size_t b = s->k0 / 32; b < s->k1 / 32; b++) {
        __m512i sum[LANES_INTEGER_TOKENS][LANES_TILES];
        UNROLL(int t = 0; t < nt; t++)
        {
            __m512i bias = broadcast4((const uint8_t *)(a.biases + b) + (size_t)t * act_bytes);
            UNROLL(int i = 0; i < nw; i++)
            sum[t][i] = type == QUANT_Q8_0 ? _mm512_slli_epi32(bias, 4) : bias;
        }
        const uint8_t *wb = w + b * step;
        if (fetch) {
            for (int i = 0; i < nw; i++) {
                for (size_t l = 0; l < step; l += 64)
                    __builtin_prefetch(wb + (size_t)i * tile_bytes + fetch + l);
                __builtin_prefetch(d + b * 32 + (size_t)i * tile_bytes + fetch);
            }
        }
        if (type == QUANT_Q8_0)
            sum_q8_0(nt, nw, wb, tile_bytes, a.quants + 32 * b, act_bytes, sum);
        else
            sum_q4_0(nt, nw, wb, tile_bytes, a.quants + 32 * b, act_bytes, sum);
        v16 dw[LANES_TILES];
        UNROLL(int i = 0; i < nw; i++)
        dw[i] = v16_load_f16((const uint16_t *)(const void *)(d + b * 32 + (size_t)i * tile_bytes));
        UNROLL(int t = 0; t < nt; t++)
        {
            v16 dx = _mm512_castsi512_ps(broadcast4((const uint8_t *)(a.scales + b) + (size_t)t * act_bytes));
            UNROLL(int i = 0; i < nw; i++)
            v16_store(acc[t][i], v16_fma(_mm512_cvtepi32_ps(sum[t][i]), v16_mul(dw[i], dx), v16_load(acc[t][i])));
        }
        if (nt * nw > 8) /* keep the accumulators out of the registers */
            __asm__ volatile("" ::"r"(acc) : "memory");
    }
    for (int t = 0; t < nt; t++) {
        for (int i = 0; i < nw; i++)
            acc_store(s, t, i, v16_load(acc[t][i]));
    }
}
