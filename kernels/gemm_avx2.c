/* SPDX-License-Identifier: MIT
 * Integer types with AVX2. vpmaddubsw multiplies u8 x s8 and adds neighbours into s16. q4_0: nibbles are unsigned and small, so the
 * eight groups of a block are summed in s16 (at most 8 * 2 * 15 * 127 = 30480) before one widening; the sum of the
 * activations, times 8, is taken off afterwards. q8_0: |w| times the activation with w's sign (at most 2 * 128 * 127 = 32512),
 * widened per group. Owns nothing, allocates nothing; any thread. */
#include "kernels/lanes_avx2.h"

#include "kernels/gemm_body.h"

struct sums {
    __m256i a, b; /* rows 0-7, 8-15 */
};

INLINE __m256i broadcast4(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
}

INLINE __m256i load(const uint8_t *p)
{
    return _mm256_loadu_si256((const void *)p);
}

INLINE void block_q4_0(int nt, const uint8_t *w, const int8_t *const *q, const int32_t *act_sum, struct sums *sum)
{
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int t = 0; t < nt; t++)
        sum[t] = (struct sums){_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int g = 0; g < 4; g++) {
        __m256i a = load(w + 64 * g), b = load(w + 64 * g + 32);
        __m256i a0 = _mm256_and_si256(a, low), b0 = _mm256_and_si256(b, low);
        __m256i a1 = _mm256_and_si256(_mm256_srli_epi16(a, 4), low), b1 = _mm256_and_si256(_mm256_srli_epi16(b, 4), low);
        for (int t = 0; t < nt; t++) {
            __m256i lo = broadcast4(q[t] + 4 * g), hi = broadcast4(q[t] + 16 + 4 * g);
            sum[t].a = _mm256_add_epi16(sum[t].a, _mm256_add_epi16(_mm256_maddubs_epi16(a0, lo), _mm256_maddubs_epi16(a1, hi)));
            sum[t].b = _mm256_add_epi16(sum[t].b, _mm256_add_epi16(_mm256_maddubs_epi16(b0, lo), _mm256_maddubs_epi16(b1, hi)));
        }
    }
    for (int t = 0; t < nt; t++) {
        __m256i correct = _mm256_set1_epi32(8 * act_sum[t]);
        sum[t].a = _mm256_sub_epi32(_mm256_madd_epi16(sum[t].a, ones), correct);
        sum[t].b = _mm256_sub_epi32(_mm256_madd_epi16(sum[t].b, ones), correct);
    }
}

INLINE void block_q8_0(int nt, const uint8_t *w, const int8_t *const *q, struct sums *sum)
{
    const __m256i ones = _mm256_set1_epi16(1);
    for (int t = 0; t < nt; t++)
        sum[t] = (struct sums){_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int g = 0; g < 8; g++) {
        __m256i a = load(w + 64 * g), b = load(w + 64 * g + 32);
        __m256i abs_a = _mm256_abs_epi8(a), abs_b = _mm256_abs_epi8(b);
        for (int t = 0; t < nt; t++) {
            __m256i x = broadcast4(q[t] + 4 * g);
            __m256i pa = _mm256_maddubs_epi16(abs_a, _mm256_sign_epi8(x, a)), pb = _mm256_maddubs_epi16(abs_b, _mm256_sign_epi8(x, b));
            sum[t].a = _mm256_add_epi32(sum[t].a, _mm256_madd_epi16(pa, ones));
            sum[t].b = _mm256_add_epi32(sum[t].b, _mm256_madd_epi16(pb, ones));
        }
    }
}

#define NT_MAX 2

/* nt tokens x one tile, a constant at the call. */
INLINE void integer_block(int type, int nt, const struct gemm_matrix *m, uint32_t tile, const uint8_t *act, float *y, size_t y_stride)
{
    size_t blocks = m->n_cols / 32, act_bytes = gemm_act_bytes(type, m->n_cols), step = type == QUANT_Q8_0 ? 512 : 256;
    const uint8_t *w = (const uint8_t *)m->tiles + tile * repack_tile_bytes(type, m->n_cols);
    const uint16_t *scales = (const uint16_t *)(const void *)(w + blocks * step);
    struct gemm_act a[NT_MAX];
    v16 acc[NT_MAX];
    for (int t = 0; t < nt; t++) {
        a[t] = gemm_act_at(act + (size_t)t * act_bytes, m->n_cols);
        acc[t] = v16_set(0);
    }
    for (size_t b = 0; b < blocks; b++, w += step, scales += REPACK_ROWS) {
        const int8_t *q[NT_MAX];
        int32_t act_sum[NT_MAX];
        struct sums sum[NT_MAX];
        for (int t = 0; t < nt; t++) {
            q[t] = a[t].quants + 32 * b;
            act_sum[t] = a[t].sums[b];
        }
        if (type == QUANT_Q8_0)
            block_q8_0(nt, w, q, sum);
        else
            block_q4_0(nt, w, q, act_sum, sum);
        v16 d = v16_load_f16(scales);
        for (int t = 0; t < nt; t++) {
            v16 s = {_mm256_cvtepi32_ps(sum[t].a), _mm256_cvtepi32_ps(sum[t].b)};
            acc[t] = v16_fma(s, v16_mul(d, v16_set(a[t].scales[b])), acc[t]);
        }
    }
    for (int t = 0; t < nt; t++)
        put(m, tile, acc[t], y + (size_t)t * y_stride);
}

INLINE void integer_tiles(int type, const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const void *act, uint32_t n_tokens, float *y,
                          size_t y_stride)
{
    size_t act_bytes = gemm_act_bytes(type, m->n_cols);
    for (uint32_t i = tile0; i < tile1; i++) {
        uint32_t t = 0;
        for (; t + NT_MAX <= n_tokens; t += NT_MAX)
            integer_block(type, NT_MAX, m, i, (const uint8_t *)act + t * act_bytes, y + t * y_stride, y_stride);
        for (; t < n_tokens; t++)
            integer_block(type, 1, m, i, (const uint8_t *)act + t * act_bytes, y + t * y_stride, y_stride);
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
