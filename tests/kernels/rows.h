/* SPDX-License-Identifier: MIT
 * Rows that quantizers stumble over, the same on every machine. For tests of kernels. */
#ifndef TANDEM_TESTS_KERNELS_ROWS_H
#define TANDEM_TESTS_KERNELS_ROWS_H

#include <math.h>
#include <stdint.h>

enum { ROWS_N = 768, ROWS_KINDS = 14 };

static uint64_t rows_seed;
static float rows_uniform(void)
{
    rows_seed = rows_seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(rows_seed >> 33) / 2147483648.0 * 2 - 1);
}

/* Nearly normal: variance 1. */
static float rows_normal(void)
{
    float s = 0;
    for (int i = 0; i < 12; i++)
        s += rows_uniform();
    return s * 0.5f;
}

/* Kinds 0 and 1 are plain; the others constant, of one sign, tiny, huge, with outliers, holes or mixed magnitudes. */
static void rows_make(int kind, uint64_t s, float *x)
{
    static const float magnitudes[] = {1e-41f, 1e-38f, 1e-30f, 1e-20f, 1e-14f, 1e-7f, 1e5f, 1e18f, 1e30f, 3e38f};
    rows_seed = s * 977 + (uint64_t)kind + 1;
    float scale = magnitudes[s % 10], level = rows_normal();
    for (int i = 0; i < ROWS_N; i++) {
        float g = rows_normal(), u = rows_uniform();
        x[i] = kind == 0    ? g * 0.02f
               : kind == 1  ? u
               : kind == 2  ? 0
               : kind == 3  ? level
               : kind == 4  ? u * scale
               : kind == 5  ? (i % 61 == 7 ? g * 50 : g)
               : kind == 6  ? fabsf(g) + 0.5f
               : kind == 7  ? -fabsf(g) * 0.1f
               : kind == 8  ? rintf(g * 4) * 0.5f
               : kind == 9  ? (i / 16 % 3 ? 0 : g)
               : kind == 10 ? g * ldexpf(1, i / 32 % 7 * 9 - 30)
               : kind == 11 ? g * g * g
               : kind == 12 ? (i % 32 == 5 ? scale : -0.0f)
                            : 3 + 0.01f * g;
    }
}

#endif
