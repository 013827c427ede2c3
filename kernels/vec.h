/* SPDX-License-Identifier: MIT
 * Element-wise kernels of Gemma 3 on f32 rows. Every variant gives the same bits: sums run in 16 interleaved partial sums
 * (lane i adds elements i, i+16, ...) reduced as a fixed tree; exp is one polynomial with explicit fma.
 * No allocation, no globals. x and y may be the same array. */
#ifndef TANDEM_KERNELS_VEC_H
#define TANDEM_KERNELS_VEC_H

#include <stddef.h>
#include <stdint.h>

struct vec_ops {
    const char *name;
    /* y[i] = x[i] / sqrt(mean(x^2) + eps) * w[i]; w as GGUF stores it (1 + w of the checkpoint). */
    void (*rmsnorm)(const float *x, const float *w, size_t n, float eps, float *y);
    /* y[i] = r[i] + x[i] / sqrt(mean(x^2) + eps) * w[i]; the post norms with their residual. */
    void (*rmsnorm_add)(const float *x, const float *w, size_t n, float eps, const float *r, float *y);
    /* Rotates halves (i, i + n/2) of one head in place. cos, sin: [n/2]. */
    void (*rope)(float *head, size_t n, const float *cos, const float *sin);
    /* y = gelu_tanh(gate) * up; gelu_tanh(g) = g / (1 + exp(-2 sqrt(2/pi) (g + 0.044715 g^3))). */
    void (*geglu)(const float *gate, const float *up, size_t n, float *y);
    void (*scale)(const float *x, float s, size_t n, float *y);
};

extern const struct vec_ops vec_ref, vec_avx2, vec_avx512;

/* The shared exp (scalar form): relative error below 2e-7 for |x| < 87; 0 below -87.33; inf above 88.7. */
float vec_expf(float x);
/* cos/sin of pos * theta^(-2i/head_dim) / factor for i < head_dim/2, computed in double and rounded once. */
void vec_rope_table(uint32_t pos, size_t head_dim, double theta, double factor, float *ret_cos, float *ret_sin);

#endif
