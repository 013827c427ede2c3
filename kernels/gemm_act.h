/* SPDX-License-Identifier: MIT
 * How a prepared token lies in memory for the integer types; private to the gemm files.
 * Per block of 32: f32 scale d | i32 -8 times the sum of its quants | f32 d times that sum, rounded once (for types with a
 * minimum) | 2 x i32 -32 times the sum of each half | [n_cols] i8 quants; each part padded to 64 bytes. */
#ifndef TANDEM_KERNELS_GEMM_ACT_H
#define TANDEM_KERNELS_GEMM_ACT_H

#include <stddef.h>
#include <stdint.h>

static inline size_t gemm_act_part(size_t n_cols)
{
    return (n_cols / 32 * 4 + 63) / 64 * 64;
}

struct gemm_act {
    const float *scales;
    const int32_t *biases;
    const float *sums;
    const int32_t *halves;
    const int8_t *quants;
};

static inline struct gemm_act gemm_act_at(const void *act, size_t n_cols)
{
    const uint8_t *p = act;
    size_t part = gemm_act_part(n_cols);
    return (struct gemm_act){(const float *)(const void *)p, (const int32_t *)(const void *)(p + part),
                             (const float *)(const void *)(p + 2 * part), (const int32_t *)(const void *)(p + 3 * part),
                             (const int8_t *)p + 5 * part};
}

#endif
