/* SPDX-License-Identifier: MIT
 * Sixteen f32 lanes in plain C: the definition of what the SIMD variants must compute, bit for bit. fmaf rounds once. */
#ifndef TANDEM_KERNELS_LANES_REF_H
#define TANDEM_KERNELS_LANES_REF_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/quant.h"

#define LANES_VARIANT(name) name##_ref
#define LANES_NAME "ref"
#define LANES_ROWS 1
#define LANES_VECTORS(n) 1
#define LANES_TOKENS 1
#define LANES_INTEGER_TOKENS(type) 1
#define LANES_TILES(type) 1
#define LANES_FLOAT_TILES 1 /* of a float type, for one token */

/* Inlined everywhere, sixteen checked accesses per operation take a sanitizer's compiler minutes. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LANE static __attribute__((noinline, unused))
#else
#define LANE static inline
#endif

typedef struct {
    float v[16];
} v16;

#define EACH for (int i = 0; i < 16; i++)
LANE v16 v16_set(float x)
{
    v16 r;
    EACH r.v[i] = x;
    return r;
}
LANE v16 v16_load(const float *p)
{
    v16 r;
    memcpy(r.v, p, sizeof(r.v));
    return r;
}
LANE void v16_store(float *p, v16 a)
{
    memcpy(p, a.v, sizeof(a.v));
}
LANE v16 v16_load_f16(const uint16_t *p)
{
    v16 r;
    EACH r.v[i] = quant_f16_to_f32(p[i]);
    return r;
}
LANE v16 v16_load_bf16(const uint16_t *p)
{
    v16 r;
    EACH r.v[i] = quant_bf16_to_f32(p[i]);
    return r;
}
LANE void v16_store_f16(uint16_t *p, v16 a)
{
    EACH p[i] = quant_f32_to_f16(a.v[i]);
}
/* rounds to nearest even; a NaN stays one */
LANE void v16_store_bf16(uint16_t *p, v16 a)
{
    EACH p[i] = quant_f32_to_bf16(a.v[i]);
}
LANE v16 v16_load_i8(const int8_t *p)
{
    v16 r;
    EACH r.v[i] = (float)p[i];
    return r;
}
/* integral values within int8 */
LANE void v16_store_i8(int8_t *p, v16 a)
{
    EACH p[i] = (int8_t)a.v[i];
}
LANE v16 v16_add(v16 a, v16 b)
{
    EACH a.v[i] += b.v[i];
    return a;
}
LANE v16 v16_sub(v16 a, v16 b)
{
    EACH a.v[i] -= b.v[i];
    return a;
}
LANE v16 v16_mul(v16 a, v16 b)
{
    EACH a.v[i] *= b.v[i];
    return a;
}
LANE v16 v16_div(v16 a, v16 b)
{
    EACH a.v[i] /= b.v[i];
    return a;
}
/* a * b + c, rounded once */
LANE v16 v16_fma(v16 a, v16 b, v16 c)
{
    EACH a.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
    return a;
}
/* a > b ? a : b, as the x86 instruction: b when either is NaN */
LANE v16 v16_max(v16 a, v16 b)
{
    EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
LANE v16 v16_min(v16 a, v16 b)
{
    EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
}
LANE v16 v16_round(v16 a)
{
    EACH a.v[i] = rintf(a.v[i]);
    return a;
}
LANE v16 v16_trunc(v16 a)
{
    EACH a.v[i] = truncf(a.v[i]);
    return a;
}
LANE v16 v16_abs(v16 a)
{
    EACH a.v[i] = fabsf(a.v[i]);
    return a;
}
LANE v16 v16_sqrt(v16 a)
{
    EACH a.v[i] = sqrtf(a.v[i]);
    return a;
}
/* x with the sign of s */
LANE v16 v16_copysign(v16 x, v16 s)
{
    EACH x.v[i] = copysignf(x.v[i], s.v[i]);
    return x;
}
/* 2^a for integral a in [-126, 127] */
LANE v16 v16_exp2i(v16 a)
{
    EACH
    {
        uint32_t u = (uint32_t)((int32_t)a.v[i] + 127) << 23;
        memcpy(&a.v[i], &u, 4);
    }
    return a;
}
/* x where a < b, else 0 */
LANE v16 v16_zero_unless_less(v16 a, v16 b, v16 x)
{
    EACH x.v[i] = a.v[i] < b.v[i] ? x.v[i] : 0;
    return x;
}
/* x where a < b, else y */
LANE v16 v16_select_less(v16 a, v16 b, v16 x, v16 y)
{
    EACH x.v[i] = a.v[i] < b.v[i] ? x.v[i] : y.v[i];
    return x;
}
/* bit i: a == b in lane i */
LANE unsigned v16_mask_equal(v16 a, v16 b)
{
    unsigned m = 0;
    EACH m |= (unsigned)(a.v[i] == b.v[i]) << i;
    return m;
}
/* the largest lane; no NaN among them */
LANE float v16_largest(v16 a)
{
    float m = a.v[0];
    EACH m = a.v[i] > m ? a.v[i] : m;
    return m;
}
/* lanes lo <= i < hi of a, the others b */
LANE v16 v16_select_range(v16 a, v16 b, int lo, int hi)
{
    EACH a.v[i] = i >= lo && i < hi ? a.v[i] : b.v[i];
    return a;
}
#undef EACH
#undef LANE

/* Lanes added as a tree: i + (i + 8), then + 4, + 2, + 1. */
static inline float sum16(v16 x)
{
    float t[16];
    v16_store(t, x);
    for (int w = 8; w; w /= 2) {
        for (int i = 0; i < w; i++)
            t[i] += t[i + w];
    }
    return t[0];
}

static inline float max16(v16 x)
{
    float t[16];
    v16_store(t, x);
    for (int w = 8; w; w /= 2) {
        for (int i = 0; i < w; i++)
            t[i] = t[i] > t[i + w] ? t[i] : t[i + w];
    }
    return t[0];
}

#endif
