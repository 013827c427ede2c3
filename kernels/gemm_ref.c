/* SPDX-License-Identifier: MIT
 * The integer types in plain C: what the SIMD variants must give, bit for bit. Owns nothing, allocates nothing; any thread. */
#include "kernels/lanes_ref.h"

#include "kernels/gemm_body.h"

static uint32_t word_at(const uint8_t *words, size_t w, int r)
{
    uint32_t u;
    memcpy(&u, words + w * WORD + 4 * (size_t)r, 4);
    return u;
}

static float f16_at(const uint8_t *words, int r, int half)
{
    return quant_f16_to_f32((uint16_t)(word_at(words, 0, r) >> 16 * half));
}

/* Element e of row r in a block of 32, as it is multiplied: signed but for the types with a minimum. */
static int weight(int type, const uint8_t *block, int r, int e)
{
    const uint8_t *high = high_at(type, block), *quants = quants_at(type, block);
    int j = e % 4, g = e / 4;
    if (type == QUANT_Q8_0)
        return (int8_t)(word_at(quants, (size_t)g, r) >> 8 * j);
    int q = (int)(word_at(quants, (size_t)(g % 4), r) >> (8 * j + (e < 16 ? 0 : 4)) & 15);
    if (HAS_FIFTH(type))
        q |= (int)(word_at(high, 0, r) >> (8 * j + g) & 1) << 4;
    if (type == QUANT_Q6_K)
        q |= (int)(word_at(high, (size_t)(g / 4), r) >> (8 * j + 2 * (g % 4)) & 3) << 4;
    return HAS_MIN(type) ? q : q - (type == QUANT_Q4_0 ? 8 : type == QUANT_Q5_0 ? 16 : 32);
}

/* 6-bit scale or minimum (from = 0 or 1) of sub-block s: words 1..3 of the head are bytes 0..11 of quant_k_put_scales. */
static float small_scale(const uint8_t *head, int r, size_t s, int from)
{
    uint32_t whole = word_at(head, 1 + (size_t)from, r) >> 8 * (s % 4), nibbles = word_at(head, 3, r) >> 8 * (s % 4);
    return (float)(s < 4 ? whole & 63 : (nibbles >> 4 * from & 15) | (whole >> 6 & 3) << 4);
}

/* One token x one tile: LANES_INTEGER_TOKENS and the tiles at once are 1 here. */
INLINE void integer_block(int type, int nt, int nw, const struct span *s)
{
    const uint8_t *tile = span_tiles(s);
    struct gemm_act a = gemm_act_at(s->act, s->m->n_cols);
    v16 acc = acc_load(s, nt - 1, nw - 1);
    for (size_t b = s->k0 / 32; b < s->k1 / 32; b++) {
        const uint8_t *block = block_at(type, tile, b), *head = head_at(type, tile, b);
        for (int r = 0; r < REPACK_ROWS; r++) {
            int32_t sum[2] = {0};
            for (int e = 0; e < 32; e++)
                sum[e / 16] += weight(type, block, r, e) * a.quants[32 * b + (size_t)e];
            float d, m = 0;
            if (type == QUANT_Q4_K || type == QUANT_Q5_K) {
                d = f16_at(head, r, 0) * small_scale(head, r, b % 8, 0);
                m = (0 - f16_at(head, r, 1)) * small_scale(head, r, b % 8, 1);
            } else if (HAS_MIN(type)) {
                d = f16_at(block, r, 0);
                m = f16_at(block, r, 1);
            } else {
                d = quant_f16_to_f32(tail_at(type, tile, s->m->n_cols, b)[r]);
            }
            if (type == QUANT_Q6_K) {
                uint32_t scales = word_at(head, b % 8 / 2, r) >> 16 * (b % 2);
                sum[0] *= (int8_t)scales;
                sum[1] *= (int8_t)(scales >> 8);
            }
            acc.v[r] = fmaf((float)(sum[0] + sum[1]), d * a.scales[b], acc.v[r]);
            if (HAS_MIN(type))
                acc.v[r] = fmaf(m, a.sums[b], acc.v[r]);
        }
    }
    acc_store(s, nt - 1, nw - 1, acc);
}
