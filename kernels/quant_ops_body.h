/* SPDX-License-Identifier: MIT
 * The conversions of quant_ops.h on sixteen lanes: those that a checkpoint streams through; the rest go to quant.c. A SIMD variant
 * includes this after its lanes header. Same bytes as quant.c, for what is not finite too. */
#include <math.h>
#include <string.h>

#include "kernels/quant.h"
#include "kernels/quant_k_body.h"
#include "kernels/quant_ops.h"
#include "kernels/quant_search_body.h"

static void to_f32(int type, const void *src, float *dst, size_t n)
{
    const uint16_t *h = src;
    size_t i = 0;
    if (type == QUANT_F16 || type == QUANT_BF16) {
        for (; n - i >= 16; i += 16)
            v16_store(dst + i, type == QUANT_F16 ? v16_load_f16(h + i) : v16_load_bf16(h + i));
        quant_dequantize_row(type, h + i, dst + i, n - i);
        return;
    }
    quant_dequantize_row(type, src, dst, n);
}

static void halves_from_f32(int type, const float *src, uint16_t *dst, size_t n)
{
    size_t i = 0;
    for (; n - i >= 16; i += 16) {
        if (type == QUANT_F16)
            v16_store_f16(dst + i, v16_load(src + i));
        else
            v16_store_bf16(dst + i, v16_load(src + i));
    }
    quant_quantize_row(type, src + i, dst + i, n - i);
}

/* Largest magnitude; NaN does not count. */
static inline float magnitude32(v16 a, v16 b)
{
    return v16_largest(v16_max(v16_abs(b), v16_max(v16_abs(a), v16_set(0))));
}

/* Halfway cases away from zero, as roundf; 0 for what no quant can be. */
static inline v16 rounded_i8(v16 x)
{
    v16 r = v16_trunc(v16_add(x, v16_copysign(v16_set(0x1.fffffep-2f), x)));
    return v16_zero_unless_less(v16_abs(r), v16_set(128), r);
}

static inline void quantize_q8_0(const float *x, uint8_t *b)
{
    v16 lo = v16_load(x), hi = v16_load(x + 16);
    float d = magnitude32(lo, hi) / 127, id = d != 0 ? 1 / d : 0;
    int8_t q[32];
    v16_store_i8(q, rounded_i8(v16_mul(lo, v16_set(id))));
    v16_store_i8(q + 16, rounded_i8(v16_mul(hi, v16_set(id))));
    k_put_f16(b, d);
    memcpy(b + 2, q, 32);
}

/* Towards zero within 0..15; 0 for what is not finite. */
static inline v16 nibble(v16 x)
{
    x = v16_zero_unless_less(v16_abs(x), v16_set(128), x);
    return v16_trunc(v16_min(v16_max(x, v16_set(0)), v16_set(15)));
}

static inline void quantize_q4_0(const float *x, uint8_t *b)
{
    v16 lo = v16_load(x), hi = v16_load(x + 16), half = v16_set(8.5f);
    float amax = magnitude32(lo, hi), max = 0;
    if (amax > 0) {
        unsigned at = v16_mask_equal(v16_abs(lo), v16_set(amax)) | v16_mask_equal(v16_abs(hi), v16_set(amax)) << 16;
        max = x[__builtin_ctz(at)];
    }
    float d = max / -8, id = d != 0 ? 1 / d : 0;
    uint64_t l[2], h[2];
    v16_store_i8((int8_t *)l, nibble(v16_add(v16_mul(lo, v16_set(id)), half)));
    v16_store_i8((int8_t *)h, nibble(v16_add(v16_mul(hi, v16_set(id)), half)));
    l[0] |= h[0] << 4;
    l[1] |= h[1] << 4;
    k_put_f16(b, d);
    memcpy(b + 2, l, 16);
}

static void from_f32(int type, const float *src, void *dst, size_t n)
{
    uint8_t *out = dst;
    switch (type) {
    case QUANT_F16:
    case QUANT_BF16:
        halves_from_f32(type, src, dst, n);
        break;
    case QUANT_Q8_0:
        for (size_t i = 0; i < n / QUANT_BLOCK; i++)
            quantize_q8_0(src + i * QUANT_BLOCK, out + i * 34);
        break;
    case QUANT_Q4_0:
        for (size_t i = 0; i < n / QUANT_BLOCK; i++)
            quantize_q4_0(src + i * QUANT_BLOCK, out + i * 18);
        break;
    case QUANT_Q4_K:
    case QUANT_Q5_K:
    case QUANT_Q6_K:
        k_quantize_row(type, src, dst, n);
        break;
    default:
        quant_quantize_row(type, src, dst, n);
        break;
    }
}

static bool add_finite(float *x, float add, size_t n, float limit)
{
    v16 sum = v16_set(add), top = v16_set(limit), bad = v16_set(0), one = v16_set(1);
    size_t i = 0;
    for (; n - i >= 16; i += 16) {
        v16 v = v16_add(v16_load(x + i), sum);
        v16_store(x + i, v);
        bad = v16_select_less(v16_abs(v), top, bad, one);
    }
    bool ok = !(v16_largest(bad) > 0);
    for (; i < n; i++) {
        x[i] += add;
        ok &= fabsf(x[i]) < limit;
    }
    return ok;
}

const struct quant_ops LANES_VARIANT(quant_ops) = {
    .name = LANES_NAME, .to_f32 = to_f32, .from_f32 = from_f32, .add_finite = add_finite, .search = s_search};
