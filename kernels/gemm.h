/* SPDX-License-Identifier: MIT
 * Matrix times activations: y[t][row] = sum_k W[row][k] * x[t][k].
 * W: repacked tiles (repack.h). x: prepared once per token by `prepare`: f32 as it is for the float types; for all others blocks
 * of 32 int8 with an f32 scale dx (max|x|/127, round to nearest even) and sx = dx * (sum of the block's int8), rounded once.
 *
 * Contract of every variant: output (t, row) is computed by one lane that walks k upwards with one accumulator:
 *   float types:            acc = fmaf(w_k, x_k, acc)
 *   integer types, per 32:  acc = fmaf((float)isum, d * dx, acc), isum exact; then, where the type has a minimum,
 *                           acc = fmaf(m, sx, acc)
 *   q4_0, q5_0, q8_0: isum of the signed weights, d of the block.   q4_1, q5_1: isum of the unsigned ones; d, m of the block.
 *   q4_K, q5_K: isum of the unsigned ones, d = d256 * sc (exact in f32), m = (0 - dmin256) * mn (exact).
 *   q6_K: isum = sc0 * isum0 + sc1 * isum1 over the halves of 16 (below 2^24, so exact in f32), d = d256.
 * So the value depends neither on n_tokens, tile range, thread count nor variant: all variants agree bit for bit.
 * No allocation, no globals. Threads: any number at once on disjoint tile ranges. */
#ifndef TANDEM_KERNELS_GEMM_H
#define TANDEM_KERNELS_GEMM_H

#include <stddef.h>
#include <stdint.h>

struct gemm_matrix {
    int type; /* enum quant_type */
    uint32_t n_rows, n_cols;
    const void *tiles; /* 64-aligned, repack_bytes(type, n_rows, n_cols) bytes; borrowed */
};

struct gemm_ops {
    const char *name; /* "ref", "avx2", "avx512" */
    /* One token: x [n_cols] f32 -> act [gemm_act_bytes]. */
    void (*prepare)(int type, const float *x, size_t n_cols, void *act);
    /* Tiles tile0 <= i < tile1 for n_tokens tokens. act: token t at act + t * gemm_act_bytes(type, n_cols).
     * y: token t's row r at y[t * y_stride + r]; rows >= m->n_rows are not written. */
    void (*tiles)(const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const void *act, uint32_t n_tokens, float *y,
                  size_t y_stride);
};

/* Bytes of one prepared token (multiple of 64; act must be 64-aligned). */
size_t gemm_act_bytes(int type, size_t n_cols);
/* f32/f16/bf16 share one activation form and all other types another: true when one `prepare` serves both. */
int gemm_same_act(int type_a, int type_b);

extern const struct gemm_ops gemm_ref, gemm_avx2, gemm_avx512;

#endif
