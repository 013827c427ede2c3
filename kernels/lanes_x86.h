/* SPDX-License-Identifier: MIT
 * What lanes_avx2.h and lanes_avx512.h end alike with: the fixed order of sums. */
#ifndef TANDEM_KERNELS_LANES_X86_H
#define TANDEM_KERNELS_LANES_X86_H

#include <immintrin.h>

/* Lanes added as a tree: i + (i + 8), then + 4, + 2, + 1. */
static inline float sum4(__m128 x)
{
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
static inline float max4(__m128 x)
{
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
static inline float sum8(__m256 x)
{
    return sum4(_mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}
static inline float max8(__m256 x)
{
    return max4(_mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}

#endif
