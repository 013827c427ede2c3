/* SPDX-License-Identifier: MIT
 * Splits products over a pool by row tiles. Who computes a tile never changes its value (gemm.h), so grains follow speed alone:
 * large enough to keep the memory streams long, small enough that a slow thread does not hold up the others. */
#include "kernels/linear.h"

#include "kernels/cpu.h"
#include "kernels/gemm.h"
#include "kernels/pool.h"
#include "kernels/repack.h"

#define PREPARE_GRAIN 4

struct job {
    const struct cpu_kernels *k;
    const struct gemm_matrix *m;
    int n;
    const float *x;
    uint8_t *act;
    float *const *y;
    uint32_t n_tokens;
    size_t act_bytes;
    uint32_t first[LINEAR_MAX + 1]; /* first tile of each matrix in the common numbering */
};

static void prepare(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    const struct job *j = ctx;
    (void)thread;
    for (uint32_t t = begin; t < end; t++)
        j->k->gemm->prepare(j->m->type, j->x + (size_t)t * j->m->n_cols, j->m->n_cols, j->act + t * j->act_bytes);
}

static void multiply(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    const struct job *j = ctx;
    (void)thread;
    for (int i = 0; i < j->n; i++) {
        uint32_t from = begin > j->first[i] ? begin : j->first[i], to = end < j->first[i + 1] ? end : j->first[i + 1];
        if (from < to)
            j->k->gemm->tiles(&j->m[i], from - j->first[i], to - j->first[i], j->act, j->n_tokens, j->y[i], j->m[i].n_rows);
    }
}

static uint32_t grain(const struct job *j, const struct pool *pool)
{
    uint32_t tiles = j->first[j->n], parts = (uint32_t)pool_threads(pool) * 4;
    uint32_t g = (tiles + parts - 1) / parts;
    return g < 4 ? 4 : g > 64 ? 64 : (g + 3) / 4 * 4;
}

void linear_run(struct pool *pool, const struct cpu_kernels *k, const struct gemm_matrix *m, int n, const float *x,
                uint32_t n_tokens, void *act, float *const *y)
{
    for (int from = 0, to; from < n; from = to) {
        for (to = from + 1; to < n && gemm_same_act(m[from].type, m[to].type); to++)
            ;
        struct job j = {.k = k,
                        .m = m + from,
                        .n = to - from,
                        .x = x,
                        .act = act,
                        .y = y + from,
                        .n_tokens = n_tokens,
                        .act_bytes = gemm_act_bytes(m[from].type, m[from].n_cols)};
        for (int i = 0; i < j.n; i++)
            j.first[i + 1] = j.first[i] + (uint32_t)repack_n_tiles(j.m[i].n_rows);
        pool_run(pool, n_tokens, PREPARE_GRAIN, prepare, &j);
        pool_run(pool, j.first[j.n], grain(&j, pool), multiply, &j);
    }
}
