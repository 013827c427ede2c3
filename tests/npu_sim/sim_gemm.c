/* SPDX-License-Identifier: MIT
 * The matrix product of the simulated NPU: bf16 in and out, f32 sums over k in order, so the result does not depend on the
 * processor. In blocks and with a copy for AVX2, because whole models run through it. Device's thread. */
#include "tests/npu_sim/sim.h"

#include <stdlib.h>
#include <string.h>

#define K_BLOCK 64u
#define N_BLOCK SIM_GEMM_BLOCK

struct product {
    const uint16_t *a, *b;
    uint16_t *c;
    size_t k, n;
    size_t rows, columns; /* of c that are computed */
    bool b_nk;
    float *sums; /* [m][N_BLOCK] */
    float block[K_BLOCK][N_BLOCK];
};

static inline __attribute__((always_inline)) void load_block(struct product *p, size_t k0, size_t nk, size_t n0, size_t nn)
{
    for (size_t k = 0; k < nk; k++) {
        if (p->b_nk) {
            for (size_t j = 0; j < nn; j++)
                p->block[k][j] = sim_float(p->b[(n0 + j) * p->k + k0 + k]);
        } else {
            const uint16_t *b = p->b + (k0 + k) * p->n + n0;
            for (size_t j = 0; j < nn; j++)
                p->block[k][j] = sim_float(b[j]);
        }
    }
}

static inline __attribute__((always_inline)) void add_row(const struct product *p, const uint16_t *restrict a, float *restrict sum,
                                                          size_t nk)
{
    size_t k = 0;
    for (; k + 4 <= nk; k += 4) { /* four at a time, still added one after the other */
        float a0 = sim_float(a[k]), a1 = sim_float(a[k + 1]), a2 = sim_float(a[k + 2]), a3 = sim_float(a[k + 3]);
        const float *restrict b0 = p->block[k], *restrict b1 = p->block[k + 1], *restrict b2 = p->block[k + 2],
                              *restrict b3 = p->block[k + 3];
        for (size_t j = 0; j < N_BLOCK; j++)
            sum[j] = (((sum[j] + a0 * b0[j]) + a1 * b1[j]) + a2 * b2[j]) + a3 * b3[j];
    }
    for (; k < nk; k++) {
        float a0 = sim_float(a[k]);
        for (size_t j = 0; j < N_BLOCK; j++)
            sum[j] += a0 * p->block[k][j];
    }
}

static inline __attribute__((always_inline)) void multiply(struct product *p)
{
    for (size_t n0 = 0; n0 < p->columns; n0 += N_BLOCK) {
        size_t nn = p->columns - n0 < N_BLOCK ? p->columns - n0 : N_BLOCK;
        memset(p->sums, 0, p->rows * N_BLOCK * sizeof(float));
        for (size_t k0 = 0; k0 < p->k; k0 += K_BLOCK) {
            size_t nk = p->k - k0 < K_BLOCK ? p->k - k0 : K_BLOCK;
            load_block(p, k0, nk, n0, nn);
            for (size_t i = 0; i < p->rows; i++)
                add_row(p, p->a + i * p->k + k0, p->sums + i * N_BLOCK, nk);
        }
        for (size_t i = 0; i < p->rows; i++) {
            for (size_t j = 0; j < nn; j++)
                p->c[i * p->n + n0 + j] = sim_bf16(p->sums[i * N_BLOCK + j]);
        }
    }
}

static void multiply_any(struct product *p)
{
    multiply(p);
}

#ifdef __x86_64__
__attribute__((target("avx2"))) static void multiply_avx2(struct product *p)
{
    multiply(p);
}
#endif

bool sim_gemm(const uint16_t *a, const uint16_t *b, uint16_t *c, size_t m, size_t k, size_t n, bool b_nk, bool corner)
{
    struct product *p = calloc(1, sizeof(*p));
    float *sums = aligned_alloc(64, m * N_BLOCK * sizeof(float));
    bool ok = p && sums;
    if (ok) {
        *p = (struct product){.a = a,
                              .b = b,
                              .c = c,
                              .k = k,
                              .n = n,
                              .rows = corner ? 1 : m,
                              .columns = corner && n > N_BLOCK ? N_BLOCK : n,
                              .b_nk = b_nk,
                              .sums = sums};
#ifdef __x86_64__
        if (__builtin_cpu_supports("avx2"))
            multiply_avx2(p);
        else
#endif
            multiply_any(p);
    }
    free(sums);
    free(p);
    return ok;
}
