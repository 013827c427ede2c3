/* SPDX-License-Identifier: MIT
 * Integer types with AVX2. vpmaddubsw multiplies u8 x s8 and adds neighbours into s16. Weights of 4 to 6 bits are unsigned and
 * small, so that several groups are summed in s16 before one widening (largest sum: eight groups of 4 bits 30480, four of 5 bits
 * 31496, two of 6 bits 32004); minus the zero point times the sum of the activations follows. q8_0: |w| times the activation with
 * w's sign (at most 2 * 128 * 127 = 32512), widened per group. Owns nothing, allocates nothing; any thread. */
#include "kernels/lanes_avx2.h"

#include "kernels/gemm_body.h"

#define ROWS8 2 /* half tiles */
#define MOST_TOKENS 4

INLINE __m256i broadcast4(const void *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
}

/* Half h of a word of 16 rows. */
INLINE __m256i load_words(const uint8_t *p, int h)
{
    return _mm256_loadu_si256((const void *)(p + 32 * h));
}

INLINE __m256i shifted(__m256i x, int right)
{
    return right > 0 ? _mm256_srli_epi32(x, right) : right < 0 ? _mm256_slli_epi32(x, -right) : x;
}

/* Group g = 0..7 of four columns of eight rows as u8. Not for q8_0. */
INLINE __m256i group(int type, const uint8_t *block, int h, int g)
{
    __m256i q = shifted(load_words(quants_at(type, block) + WORD * (size_t)(g % 4), h), g < 4 ? 0 : 4);
    q = _mm256_and_si256(q, _mm256_set1_epi8(15));
    if (HAS_FIFTH(type)) {
        __m256i high = shifted(load_words(high_at(type, block), h), g - 4);
        q = _mm256_or_si256(q, _mm256_and_si256(high, _mm256_set1_epi8(16)));
    }
    if (type == QUANT_Q6_K) {
        __m256i high = shifted(load_words(block + WORD * (size_t)(g / 4), h), 2 * (g % 4) - 4);
        q = _mm256_or_si256(q, _mm256_and_si256(high, _mm256_set1_epi8(48)));
    }
    return q;
}

INLINE __m256i widened(__m256i pairs)
{
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/* Four groups, first..first + 3, of a tile times those of nt tokens, added to the s32 sums. */
INLINE void multiply(int type, int nt, const uint8_t *block, const int8_t *q, size_t act_bytes, int first, __m256i (*sum)[ROWS8])
{
    const int run = type == QUANT_Q6_K ? 2 : 4; /* groups per widening */
    UNROLL(int g0 = first; g0 < first + 4; g0 += run)
    {
        __m256i pairs[MOST_TOKENS][ROWS8];
        UNROLL(int g = g0; g < g0 + run; g++)
        {
            __m256i v[ROWS8] = {group(type, block, 0, g), group(type, block, 1, g)};
            UNROLL(int t = 0; t < nt; t++)
            {
                __m256i x = broadcast4(q + 4 * g + (size_t)t * act_bytes);
                UNROLL(int h = 0; h < ROWS8; h++)
                {
                    __m256i p = _mm256_maddubs_epi16(v[h], x);
                    pairs[t][h] = g == g0 ? p : _mm256_add_epi16(pairs[t][h], p);
                }
            }
        }
        UNROLL(int t = 0; t < nt; t++)
        {
            UNROLL(int h = 0; h < ROWS8; h++)
            sum[t][h] = _mm256_add_epi32(sum[t][h], widened(pairs[t][h]));
        }
    }
}

/* All eight groups of 4 bits with one widening. */
INLINE void multiply_q4(int type, int nt, const uint8_t *block, const int8_t *q, size_t act_bytes, __m256i (*sum)[ROWS8])
{
    __m256i pairs[MOST_TOKENS][ROWS8];
    UNROLL(int t = 0; t < nt; t++)
    pairs[t][0] = pairs[t][1] = _mm256_setzero_si256();
    UNROLL(int g = 0; g < 4; g++)
    {
        __m256i lo[ROWS8] = {group(type, block, 0, g), group(type, block, 1, g)};
        __m256i hi[ROWS8] = {group(type, block, 0, g + 4), group(type, block, 1, g + 4)};
        UNROLL(int t = 0; t < nt; t++)
        {
            const int8_t *x = q + 4 * g + (size_t)t * act_bytes;
            __m256i x0 = broadcast4(x), x1 = broadcast4(x + 16);
            UNROLL(int h = 0; h < ROWS8; h++)
            {
                pairs[t][h] = _mm256_add_epi16(pairs[t][h], _mm256_maddubs_epi16(lo[h], x0));
                pairs[t][h] = _mm256_add_epi16(pairs[t][h], _mm256_maddubs_epi16(hi[h], x1));
            }
        }
    }
    UNROLL(int t = 0; t < nt; t++)
    {
        UNROLL(int h = 0; h < ROWS8; h++)
        sum[t][h] = _mm256_add_epi32(sum[t][h], widened(pairs[t][h]));
    }
}

INLINE void multiply_q8_0(int nt, const uint8_t *block, const int8_t *q, size_t act_bytes, __m256i (*sum)[ROWS8])
{
    for (size_t g = 0; g < 8; g++) {
        __m256i v[ROWS8], magnitude[ROWS8];
        UNROLL(int h = 0; h < ROWS8; h++)
        {
            v[h] = load_words(block + WORD * g, h);
            magnitude[h] = _mm256_abs_epi8(v[h]);
        }
        UNROLL(int t = 0; t < nt; t++)
        {
            __m256i x = broadcast4(q + 4 * g + (size_t)t * act_bytes);
            UNROLL(int h = 0; h < ROWS8; h++)
            sum[t][h] = _mm256_add_epi32(sum[t][h], widened(_mm256_maddubs_epi16(magnitude[h], _mm256_sign_epi8(x, v[h]))));
        }
    }
}

/* What the sums start at. */
INLINE __m256i zero_point(int type, const struct gemm_act *a, size_t b, size_t offset, int half)
{
    if (HAS_MIN(type) || type == QUANT_Q8_0)
        return _mm256_setzero_si256();
    if (type == QUANT_Q6_K)
        return broadcast4((const uint8_t *)(a->halves + 2 * b + half) + offset);
    __m256i bias = broadcast4((const uint8_t *)(a->biases + b) + offset);
    return type == QUANT_Q5_0 ? _mm256_slli_epi32(bias, 1) : bias;
}

/* f16 in the low or high halves of words. */
INLINE v16 f16_halves(const uint8_t *words, int high)
{
    __m256i a = load_words(words, 0), b = load_words(words, 1), low = _mm256_set1_epi32(0xffff);
    a = high ? _mm256_srli_epi32(a, 16) : _mm256_and_si256(a, low);
    b = high ? _mm256_srli_epi32(b, 16) : _mm256_and_si256(b, low);
    __m256i w = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
    return (v16){_mm256_cvtph_ps(_mm256_castsi256_si128(w)), _mm256_cvtph_ps(_mm256_extracti128_si256(w, 1))};
}

/* 6-bit scales or minima (from = 0 or 1) of sub-block s: words 1..3 of the head are bytes 0..11 of quant_k_put_scales. */
INLINE __m256 small_scales(const uint8_t *head, size_t s, int from, int h)
{
    __m256i whole = load_words(head + WORD * (size_t)(1 + from), h), x;
    if (s < 4) {
        x = _mm256_and_si256(whole, _mm256_set1_epi8(63));
    } else {
        __m256i nibbles = shifted(load_words(head + WORD * 3, h), 4 * from);
        x = _mm256_or_si256(_mm256_and_si256(nibbles, _mm256_set1_epi8(15)),
                            _mm256_and_si256(_mm256_srli_epi32(whole, 2), _mm256_set1_epi8(48)));
    }
    x = _mm256_srl_epi32(x, _mm_cvtsi32_si128((int)(8 * (s % 4))));
    return _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(255)));
}

/* d and minimum of block b of a tile. */
INLINE void scales(int type, const uint8_t *tile, size_t n_cols, size_t b, v16 *ret_d, v16 *ret_m)
{
    *ret_m = v16_set(0);
    if (type == QUANT_Q4_K || type == QUANT_Q5_K) {
        const uint8_t *head = head_at(type, tile, b);
        v16 sc = {small_scales(head, b % 8, 0, 0), small_scales(head, b % 8, 0, 1)};
        v16 mn = {small_scales(head, b % 8, 1, 0), small_scales(head, b % 8, 1, 1)};
        *ret_d = v16_mul(f16_halves(head, 0), sc);
        *ret_m = v16_mul(v16_sub(v16_set(0), f16_halves(head, 1)), mn);
    } else if (HAS_MIN(type)) {
        *ret_d = f16_halves(block_at(type, tile, b), 0);
        *ret_m = f16_halves(block_at(type, tile, b), 1);
    } else {
        *ret_d = v16_load_f16(tail_at(type, tile, n_cols, b));
    }
}

/* i8 scales of a half of block b. */
INLINE __m256i half_scales(const uint8_t *tile, size_t b, int half, int h)
{
    __m256i x = load_words(head_at(QUANT_Q6_K, tile, b) + WORD * (b % 8 / 2), h);
    x = _mm256_sll_epi32(x, _mm_cvtsi32_si128((int)(24 - 8 * half - 16 * (int)(b % 2))));
    return _mm256_srai_epi32(x, 24);
}

INLINE void fetch_block(int type, const uint8_t *tile, size_t n_cols, size_t b, size_t fetch)
{
    size_t step = step_bytes(type);
    const uint8_t *p = block_at(type, tile, b) + fetch;
    for (size_t l = 0; l < step; l += 64)
        __builtin_prefetch(p + l);
    if (repack_has_tail(type) && b % (IS_SUPER(type) ? 8 : 2) == 0)
        __builtin_prefetch((const uint8_t *)tail_at(type, tile, n_cols, b) + fetch);
    if (IS_SUPER(type) && b % 2 == 0)
        __builtin_prefetch(head_at(type, tile, b) + WORD * (b % 8 / 2) + fetch);
}

/* Exact sums of block b of one tile. */
INLINE void block_sums(int type, int nt, const uint8_t *tile, const struct gemm_act *a, size_t b, size_t act_bytes,
                       __m256i (*sum)[ROWS8])
{
    const uint8_t *block = block_at(type, tile, b);
    const int8_t *q = a->quants + 32 * b;
    UNROLL(int t = 0; t < nt; t++)
    sum[t][0] = sum[t][1] = zero_point(type, a, b, (size_t)t * act_bytes, 0);
    if (type == QUANT_Q8_0) {
        multiply_q8_0(nt, block, q, act_bytes, sum);
    } else if (HAS_FIFTH(type)) {
        multiply(type, nt, block, q, act_bytes, 0, sum);
        multiply(type, nt, block, q, act_bytes, 4, sum);
    } else if (type == QUANT_Q6_K) {
        __m256i second[MOST_TOKENS][ROWS8];
        UNROLL(int t = 0; t < nt; t++)
        second[t][0] = second[t][1] = zero_point(type, a, b, (size_t)t * act_bytes, 1);
        multiply(type, nt, block, q, act_bytes, 0, sum);
        multiply(type, nt, block, q, act_bytes, 4, second);
        UNROLL(int h = 0; h < ROWS8; h++)
        {
            __m256i s0 = half_scales(tile, b, 0, h), s1 = half_scales(tile, b, 1, h);
            UNROLL(int t = 0; t < nt; t++)
            sum[t][h] = _mm256_add_epi32(_mm256_mullo_epi32(sum[t][h], s0), _mm256_mullo_epi32(second[t][h], s1));
        }
    } else {
        multiply_q4(type, nt, block, q, act_bytes, sum);
    }
}

/* nt tokens x nw tiles, constants at the call; tiles in turn within a block of columns, so that nw streams are read at once. */
INLINE void integer_block(int type, int nt, int nw, const struct span *s)
{
    size_t n_cols = s->m->n_cols, act_bytes = s->act_bytes;
    struct gemm_act a = gemm_act_at(s->act, n_cols);
    _Alignas(64) float acc[MOST_TOKENS][2][16];
    for (int t = 0; t < nt; t++) {
        for (int i = 0; i < nw; i++)
            v16_store(acc[t][i], acc_load(s, t, i));
    }
    for (size_t b = s->k0 / 32; b < s->k1 / 32; b++) {
        for (int i = 0; i < nw; i++) {
            const uint8_t *tile = span_tiles(s) + (size_t)i * s->tile_bytes;
            __m256i sum[MOST_TOKENS][ROWS8];
            v16 d, m;
            if (s->fetch)
                fetch_block(type, tile, n_cols, b, s->fetch);
            block_sums(type, nt, tile, &a, b, act_bytes, sum);
            scales(type, tile, n_cols, b, &d, &m);
            UNROLL(int t = 0; t < nt; t++)
            {
                float dx, sx;
                memcpy(&dx, (const uint8_t *)(a.scales + b) + (size_t)t * act_bytes, 4);
                memcpy(&sx, (const uint8_t *)(a.sums + b) + (size_t)t * act_bytes, 4);
                v16 f = {_mm256_cvtepi32_ps(sum[t][0]), _mm256_cvtepi32_ps(sum[t][1])};
                v16 r = v16_fma(f, v16_mul(d, v16_set(dx)), v16_load(acc[t][i]));
                v16_store(acc[t][i], HAS_MIN(type) ? v16_fma(m, v16_set(sx), r) : r);
            }
        }
        __asm__ volatile("" ::"r"(acc) : "memory"); /* keep the accumulators out of the registers */
    }
    for (int t = 0; t < nt; t++) {
        for (int i = 0; i < nw; i++)
            acc_store(s, t, i, v16_load(acc[t][i]));
    }
}
