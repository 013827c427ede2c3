/* SPDX-License-Identifier: MIT
 * Integer types with AVX-512 VNNI: vpdpbusd adds four u8 x s8 products to each of 16 rows; four activation bytes are broadcast.
 * Weights are made unsigned (nibbles and their high bits are, q8_0 by flipping the sign bit) and the sums start at minus their
 * zero point times the sum of the block's activations, so that no correction follows. The integer sums of a block of tokens and
 * tiles fill the registers; its f32 accumulators wait in the first-level cache. Owns nothing, allocates nothing; any thread. */
#include "kernels/lanes_avx512.h"

#include "kernels/gemm_body.h"

#define MOST_TOKENS 6
#define MOST_TILES 4

INLINE __m512i broadcast4(const void *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}

INLINE __m512i load_words(const uint8_t *p)
{
    return _mm512_loadu_si512((const void *)p);
}

INLINE __m512i shifted(__m512i x, int right)
{
    return right > 0 ? _mm512_srli_epi32(x, (unsigned)right) : right < 0 ? _mm512_slli_epi32(x, (unsigned)-right) : x;
}

/* Group g = 0..7 of four columns of one tile as u8; for q8_0 with flipped sign. */
INLINE __m512i group(int type, const uint8_t *block, int g)
{
    if (type == QUANT_Q8_0)
        return _mm512_xor_si512(load_words(block + WORD * (size_t)g), _mm512_set1_epi8((char)0x80));
    __m512i q = shifted(load_words(quants_at(type, block) + WORD * (size_t)(g % 4)), g < 4 ? 0 : 4);
    q = _mm512_and_si512(q, _mm512_set1_epi8(15));
    if (HAS_FIFTH(type)) /* q | (high bits over the nibbles & mask) */
        q = _mm512_ternarylogic_epi32(q, shifted(load_words(high_at(type, block)), g - 4), _mm512_set1_epi8(16), 0xf8);
    if (type == QUANT_Q6_K)
        q = _mm512_ternarylogic_epi32(q, shifted(load_words(block + WORD * (size_t)(g / 4)), 2 * (g % 4) - 4), _mm512_set1_epi8(48),
                                      0xf8);
    return q;
}

/* Four groups, first..first + 3, of nw tiles times those of nt tokens. */
INLINE void multiply(int type, int nt, int nw, const uint8_t *block, size_t tile_bytes, const int8_t *q, size_t act_bytes,
                     int first, __m512i (*sum)[MOST_TILES])
{
    UNROLL(int g = first; g < first + 4; g++)
    {
        __asm__ volatile("" : "+r"(block)); /* read the words again for high nibbles: kept, they push sums to the stack */
        __m512i v[MOST_TILES];
        UNROLL(int i = 0; i < nw; i++)
        v[i] = group(type, block + (size_t)i * tile_bytes, g);
        UNROLL(int t = 0; t < nt; t++)
        {
            __m512i x = broadcast4(q + 4 * g + (size_t)t * act_bytes);
            UNROLL(int i = 0; i < nw; i++)
            sum[t][i] = _mm512_dpbusd_epi32(sum[t][i], v[i], x);
        }
    }
}

/* What the sums of tokens t start at. */
INLINE __m512i zero_point(int type, const struct gemm_act *a, size_t b, size_t offset, int half)
{
    if (HAS_MIN(type))
        return _mm512_setzero_si512();
    if (type == QUANT_Q6_K)
        return broadcast4((const uint8_t *)(a->halves + 2 * b + half) + offset);
    __m512i bias = broadcast4((const uint8_t *)(a->biases + b) + offset);
    return type == QUANT_Q8_0 ? _mm512_slli_epi32(bias, 4) : type == QUANT_Q5_0 ? _mm512_slli_epi32(bias, 1) : bias;
}

INLINE v16 f16_halves(__m512i x, int high)
{
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(high ? _mm512_srli_epi32(x, 16) : x));
}

/* 6-bit scales or minima (from = 0 or 1) of sub-block s: words 1..3 of the head are bytes 0..11 of quant_k_put_scales. */
INLINE v16 small_scales(const uint8_t *head, size_t s, int from)
{
    __m512i whole = load_words(head + WORD * (size_t)(1 + from)), x;
    if (s < 4) {
        x = _mm512_and_si512(whole, _mm512_set1_epi8(63));
    } else {
        __m512i nibbles = shifted(load_words(head + WORD * 3), 4 * from);
        x = _mm512_ternarylogic_epi32(_mm512_and_si512(nibbles, _mm512_set1_epi8(15)), _mm512_srli_epi32(whole, 2),
                                      _mm512_set1_epi8(48), 0xf8);
    }
    x = _mm512_srl_epi32(x, _mm_cvtsi32_si128((int)(8 * (s % 4))));
    return _mm512_cvtepi32_ps(_mm512_and_si512(x, _mm512_set1_epi32(255)));
}

/* d and minimum of block b of a tile. */
INLINE void scales(int type, const uint8_t *tile, size_t n_cols, size_t b, v16 *ret_d, v16 *ret_m)
{
    *ret_m = _mm512_setzero_ps();
    if (type == QUANT_Q4_K || type == QUANT_Q5_K) {
        const uint8_t *head = head_at(type, tile, b);
        __m512i dm = load_words(head);
        *ret_d = v16_mul(f16_halves(dm, 0), small_scales(head, b % 8, 0));
        *ret_m = v16_mul(v16_sub(v16_set(0), f16_halves(dm, 1)), small_scales(head, b % 8, 1));
    } else if (HAS_MIN(type)) {
        __m512i dm = load_words(block_at(type, tile, b));
        *ret_d = f16_halves(dm, 0);
        *ret_m = f16_halves(dm, 1);
    } else {
        *ret_d = v16_load_f16(tail_at(type, tile, n_cols, b));
    }
}

/* i8 scales of both halves of block b. */
INLINE __m512i half_scales(const uint8_t *tile, size_t b, int half)
{
    __m512i x = load_words(head_at(QUANT_Q6_K, tile, b) + WORD * (b % 8 / 2));
    x = _mm512_sll_epi32(x, _mm_cvtsi32_si128((int)(24 - 8 * half - 16 * (int)(b % 2))));
    return _mm512_srai_epi32(x, 24);
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

/* nt tokens x nw tiles, constants at the call. */
INLINE void integer_block(int type, int nt, int nw, const struct span *s)
{
    size_t n_cols = s->m->n_cols, tile_bytes = s->tile_bytes, act_bytes = s->act_bytes, fetch = s->fetch;
    const uint8_t *tile = span_tiles(s);
    struct gemm_act a = gemm_act_at(s->act, n_cols);
    _Alignas(64) float acc[MOST_TOKENS][MOST_TILES][16];
    for (int t = 0; t < nt; t++) {
        for (int i = 0; i < nw; i++)
            v16_store(acc[t][i], acc_load(s, t, i));
    }
    for (size_t b = s->k0 / 32; b < s->k1 / 32; b++) {
        __m512i sum[2][MOST_TOKENS][MOST_TILES];
        const uint8_t *block = block_at(type, tile, b);
        const int8_t *q = a.quants + 32 * b;
        int n_sums = type == QUANT_Q6_K ? 2 : 1;
        UNROLL(int t = 0; t < nt; t++)
        {
            UNROLL(int i = 0; i < nw; i++)
            {
                sum[0][t][i] = zero_point(type, &a, b, (size_t)t * act_bytes, 0);
                if (n_sums == 2)
                    sum[1][t][i] = zero_point(type, &a, b, (size_t)t * act_bytes, 1);
            }
        }
        if (fetch) {
            for (int i = 0; i < nw; i++)
                fetch_block(type, tile + (size_t)i * tile_bytes, n_cols, b, fetch);
        }
        multiply(type, nt, nw, block, tile_bytes, q, act_bytes, 0, sum[0]);
        multiply(type, nt, nw, block, tile_bytes, q, act_bytes, 4, sum[n_sums - 1]);
        v16 d[MOST_TILES], m[MOST_TILES];
        UNROLL(int i = 0; i < nw; i++)
        {
            const uint8_t *w = tile + (size_t)i * tile_bytes;
            scales(type, w, n_cols, b, &d[i], &m[i]);
            if (n_sums == 2) {
                __m512i s0 = half_scales(w, b, 0), s1 = half_scales(w, b, 1);
                UNROLL(int t = 0; t < nt; t++)
                sum[0][t][i] = _mm512_add_epi32(_mm512_mullo_epi32(sum[0][t][i], s0), _mm512_mullo_epi32(sum[1][t][i], s1));
            }
        }
        UNROLL(int t = 0; t < nt; t++)
        {
            v16 dx = _mm512_castsi512_ps(broadcast4((const uint8_t *)(a.scales + b) + (size_t)t * act_bytes));
            v16 sx = _mm512_castsi512_ps(broadcast4((const uint8_t *)(a.sums + b) + (size_t)t * act_bytes));
            UNROLL(int i = 0; i < nw; i++)
            {
                v16 r = v16_fma(_mm512_cvtepi32_ps(sum[0][t][i]), v16_mul(d[i], dx), v16_load(acc[t][i]));
                v16_store(acc[t][i], HAS_MIN(type) ? v16_fma(m[i], sx, r) : r);
            }
        }
        if (nt * nw > 8) /* keep the accumulators out of the registers */
            __asm__ volatile("" ::"r"(acc) : "memory");
    }
    for (int t = 0; t < nt; t++) {
        for (int i = 0; i < nw; i++)
            acc_store(s, t, i, v16_load(acc[t][i]));
    }
}
