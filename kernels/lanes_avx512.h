/* SPDX-License-Identifier: MIT
 * Sixteen f32 lanes as one AVX-512 register. Same operations as lanes_ref.h, same bits. */
#ifndef TANDEM_KERNELS_LANES_AVX512_H
#define TANDEM_KERNELS_LANES_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#include "kernels/lanes_x86.h"

#define LANES_VARIANT(name) name##_avx512
#define LANES_NAME "avx512"
#define LANES_ROWS 6
#define LANES_VECTORS(n) 4
#define LANES_TOKENS 6
#define LANES_INTEGER_TOKENS(type) 6
#define LANES_TILES(type) ((type) == QUANT_Q6_K ? 2 : 4)
#define LANES_FLOAT_TILES 4 /* of a float type, for one token */

typedef __m512 v16;

static inline v16 v16_set(float x)
{
    return _mm512_set1_ps(x);
}
static inline v16 v16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline void v16_store(float *p, v16 x)
{
    _mm512_storeu_ps(p, x);
}
static inline v16 v16_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}
static inline v16 v16_load_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}
static inline void v16_store_f16(uint16_t *p, v16 x)
{
    _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
static inline void v16_store_bf16(uint16_t *p, v16 x)
{
    __m512i u = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), u, _mm512_set1_epi32(64 << 16));
    _mm256_storeu_si256((void *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
}
static inline v16 v16_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
static inline void v16_store_i8(int8_t *p, v16 x)
{
    _mm_storeu_si128((void *)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}
static inline v16 v16_add(v16 x, v16 y)
{
    return _mm512_add_ps(x, y);
}
static inline v16 v16_sub(v16 x, v16 y)
{
    return _mm512_sub_ps(x, y);
}
static inline v16 v16_mul(v16 x, v16 y)
{
    return _mm512_mul_ps(x, y);
}
static inline v16 v16_div(v16 x, v16 y)
{
    return _mm512_div_ps(x, y);
}
static inline v16 v16_fma(v16 x, v16 y, v16 z)
{
    return _mm512_fmadd_ps(x, y, z);
}
static inline v16 v16_max(v16 x, v16 y)
{
    return _mm512_max_ps(x, y);
}
static inline v16 v16_min(v16 x, v16 y)
{
    return _mm512_min_ps(x, y);
}
static inline v16 v16_round(v16 x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline v16 v16_trunc(v16 x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}
static inline v16 v16_abs(v16 x)
{
    return _mm512_abs_ps(x);
}
static inline v16 v16_sqrt(v16 x)
{
    return _mm512_sqrt_ps(x);
}
static inline v16 v16_copysign(v16 x, v16 s)
{
    return _mm512_or_ps(_mm512_abs_ps(x), _mm512_and_ps(s, _mm512_set1_ps(-0.0f)));
}
static inline v16 v16_exp2i(v16 x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(127)), 23));
}
static inline v16 v16_zero_unless_less(v16 x, v16 y, v16 z)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), z);
}
static inline v16 v16_select_less(v16 a, v16 b, v16 x, v16 y)
{
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}
static inline unsigned v16_mask_equal(v16 x, v16 y)
{
    return _mm512_cmp_ps_mask(x, y, _CMP_EQ_OQ);
}
static inline float v16_largest(v16 x)
{
    return _mm512_reduce_max_ps(x);
}
static inline v16 v16_select_range(v16 x, v16 y, int lo, int hi)
{
    unsigned from = lo <= 0 ? 0 : lo > 16 ? 16u : (unsigned)lo, to = hi <= 0 ? 0 : hi > 16 ? 16u : (unsigned)hi;
    unsigned mask = ((1u << to) - 1) & ~((1u << from) - 1);
    return _mm512_mask_mov_ps(y, (__mmask16)mask, x);
}

static inline float sum16(v16 x)
{
    return sum8(_mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)));
}
static inline float max16(v16 x)
{
    return max8(_mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)));
}

#endif
