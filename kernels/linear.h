/* SPDX-License-Identifier: MIT
 * One or more matrices times the same activations, on a pool: prepare once per activation form, then all row tiles.
 * Threads: the pool's owner. No allocation. */
#ifndef TANDEM_KERNELS_LINEAR_H
#define TANDEM_KERNELS_LINEAR_H

#include <stddef.h>
#include <stdint.h>

struct cpu_kernels;
struct gemm_matrix;
struct pool;

#define LINEAR_MAX 3

/* x: [n_tokens][n_cols] f32; y[i]: [n_tokens][m[i].n_rows] f32; all m[i] have the same n_cols. act: scratch for n_tokens prepared
 * tokens of the largest form in use, 64-aligned. */
void linear_run(struct pool *pool, const struct cpu_kernels *k, const struct gemm_matrix *m, int n, const float *x,
                uint32_t n_tokens, void *act, float *const *y);

#endif
