/* SPDX-License-Identifier: MIT
 * Integer types with AVX2. vpmaddubsw multiplies u8 x s8 and adds neighbours into s16. q4_0: nibbles are unsigned and small, so the
 * eight groups of a block are summed in s16 (at most 8 * 2 * 15 * 127 = 30480) before one widening; the bias, -8
 * times the sum of the activations, follows. q8_0: |w| times the activation with w's sign (at most 2 * 128 * 127 = 32512),
 * widened per group. Owns nothing, allocates nothing; any thread. */
#include "kernels/lanes_avx2.h"

#include "kernels/gemm_body.h"

INLINE __m256i broadcast4(const void *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
}

INLINE __m256i load_quants(const uint8_t *p)
{
    return _mm256_loadu_si256((const void *)p);
}

#define ROWS8 2 /* half tiles */

/* s16 sums of a block; each half of the rows has two partial sums per row. */
INLINE void sum_q4_0(int nt, const uint8_t *w, const int8_t *q, size_t act_bytes, __m256i (*sum)[ROWS8])
{
    const __m256i low = _mm256_set1_epi8(15);
    UNROLL(size_t g = 0; g < 4; g++)
    {
        __m256i lo[ROWS8], hi[ROWS8];
        UNROLL(int h = 0; h < ROWS8; h++)
        {
            __m256i v = load_quants(w + 64 * g + 32 * (size_t)h);
            lo[h] = _mm256_and_si256(v, low);
            hi[h] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
        }
        UNROLL(int t = 0; t < nt; t++)
        {
            const int8_t *x = q + 4 * g + (size_t)t * act_bytes;
            __m256i x0 = broadcast4(x), x1 = broadcast4(x + 16);
            UNROLL(int h = 0; h < ROWS8; h++)
            {
                sum[t][h] = _mm256_add_epi16(sum[t][h], _mm256_maddubs_epi16(lo[h], x0));
                sum[t][h] = _mm256_add_epi16(sum[t][h], _mm256_maddubs_epi16(hi[h], x1));
            }
        }
    }
}

INLINE void sum_q8_0(int nt, const uint8_t *w, const int8_t *q, size_t act_bytes, __m256i (*sum)[ROWS8])
{
    const __m256i ones = _mm256_set1_epi16(1);
    for (size_t g = 0; g < 8; g++) {
        __m256i v[ROWS8], magnitude[ROWS8];
        UNROLL(int h = 0; h < ROWS8; h++)
        {
            v[h] = load_quants(w + 64 * g + 32 * (size_t)h);
            magnitude[h] = _mm256_abs_epi8(v[h]);
        }
        UNROLL(int t = 0; t < nt; t++)
        {
            __m256i x = broadcast4(q + 4 * g + (size_t)t * act_bytes);
            UNROLL(int h = 0; h < ROWS8; h++)
            {
                __m256i pairs = _mm256_maddubs_epi16(magnitude[h], _mm256_sign_epi8(x, v[h]));
                sum[t][h] = _mm256_add_epi32(sum[t][h], _mm256_madd_epi16(pairs, ones));
            }
        }
    }
}

/* nt tokens x nw tiles, constants at the call; tiles in turn within a block of columns, so that nw streams are read at once. */
INLINE void integer_block(int type, int nt, int nw, const struct span *s)
{
    size_t step = type == QUANT_Q8_0 ? 512 : 256, tile_bytes = s->tile_bytes, act_bytes = s->act_bytes, fetch = s->fetch;
    const uint8_t *w = span_tiles(s), *d = w + s->m->n_cols / 32 * step;
    struct gemm_act a = gemm_act_at(s->act, s->m->n_cols);
    _Alignas(64) float acc[LANES_INTEGER_TOKENS][2][16];
    for (int t = 0; t < nt; t++) {
        for (int i = 0; i < nw; i++)
            v16_store(acc[t][i], acc_load(s, t, i));
    }
    for (size_t b = s->k0 / 32; b < s->k1 / 32; b++) {
        for (int i = 0; i < nw; i++) {
            const uint8_t *wb = w + b * step + (size_t)i * tile_bytes;
            __m256i sum[LANES_INTEGER_TOKENS][ROWS8];
            UNROLL(int t = 0; t < nt; t++)
            sum[t][0] = sum[t][1] = _mm256_setzero_si256();
            if (fetch) {
                for (size_t l = 0; l < step; l += 64)
                    __builtin_prefetch(wb + fetch + l);
                __builtin_prefetch(d + b * 32 + (size_t)i * tile_bytes + fetch);
            }
            if (type == QUANT_Q8_0)
                sum_q8_0(nt, wb, a.quants + 32 * b, act_bytes, sum);
            else
                sum_q4_0(nt, wb, a.quants + 32 * b, act_bytes, sum);
            v16 dw = v16_load_f16((const uint16_t *)(const void *)(d + b * 32 + (size_t)i * tile_bytes));
            UNROLL(int t = 0; t < nt; t++)
            {
                if (type == QUANT_Q4_0) {
                    __m256i bias = broadcast4((const uint8_t *)(a.biases + b) + (size_t)t * act_bytes), ones = _mm256_set1_epi16(1);
                    sum[t][0] = _mm256_add_epi32(_mm256_madd_epi16(sum[t][0], ones), bias);
                    sum[t][1] = _mm256_add_epi32(_mm256_madd_epi16(sum[t][1], ones), bias);
                }
                float dx;
                memcpy(&dx, (const uint8_t *)(a.scales + b) + (size_t)t * act_bytes, 4);
                v16 f = {_mm256_cvtepi32_ps(sum[t][0]), _mm256_cvtepi32_ps(sum[t][1])};
                v16_store(acc[t][i], v16_fma(f, v16_mul(dw, v16_set(dx)), v16_load(acc[t][i])));
            }
        }
        __asm__ volatile("" ::"r"(acc) : "memory"); /* keep the accumulators out of the registers */
    }
    for (int t = 0; t < nt; t++) {
        for (int i = 0; i < nw; i++)
            acc_store(s, t, i, v16_load(acc[t][i]));
    }
}
