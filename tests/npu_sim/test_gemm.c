/* SPDX-License-Identifier: MIT
 * Products of whole matrices by operators of another shape, on the simulated NPU, beside sums in double over the same values
 * rounded to bf16: float and integer types, both layouts of b, rows, columns and tokens that fill no tile. A device that fails or
 * is told to wait does so in the middle. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/pool.h"
#include "kernels/quant.h"
#include "kernels/quant_ops.h"
#include "kernels/repack.h"
#include "npu_worker/arena.h"
#include "npu_worker/xrt_gemm.h"
#include "proto/util.h"
#include "tests/npu_sim/rig.h"
#include "tests/unit/unit_test.h"

#define ROWS 200
#define COLS 96
#define TOKENS 75
#define POOL (UINT64_C(8) << 20)
#define OF_VALUE (1.0 / 256)
#define OF_SUM 1e-5

struct matrix {
    struct gemm_matrix m;
    float *values; /* [ROWS][COLS], as the type keeps them */
};

static struct matrix make(int type)
{
    size_t row = quant_row_bytes(type, COLS);
    struct matrix x = {.m = {type, ROWS, COLS, aligned_alloc(64, repack_bytes(type, ROWS, COLS))},
                       .values = malloc(ROWS * COLS * sizeof(float))};
    uint8_t *packed = malloc(16 * row);
    float values[COLS];
    for (uint32_t i = 0; i < ROWS; i++) {
        for (int j = 0; j < COLS; j++)
            values[j] = rig_random();
        quant_ops_best()->from_f32(type, values, packed + i % 16 * row, COLS);
        quant_ops_best()->to_f32(type, packed + i % 16 * row, x.values + i * COLS, COLS);
        if (i % 16 == 15 || i + 1 == ROWS)
            repack_tile(type, packed, i % 16 + 1, COLS, (uint8_t *)(uintptr_t)x.m.tiles + i / 16 * repack_tile_bytes(type, COLS));
    }
    free(packed);
    return x;
}

static int check(const struct matrix *w, const float *x, const float *y, uint32_t n_tokens)
{
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (uint32_t r = 0; r < ROWS; r++) {
            double sum = 0, magnitude = 0, got = (double)y[t * ROWS + r];
            for (uint32_t c = 0; c < COLS; c++) {
                double product = rig_bf16(w->values[r * COLS + c]) * rig_bf16(x[t * COLS + c]);
                sum += product;
                magnitude += fabs(product);
            }
            if (!(fabs(got - sum) <= OF_VALUE * fabs(sum) + OF_SUM * magnitude)) {
                fprintf(stderr, "token %u, row %u: %.9g, the reference has %.9g\n", t, r, got, sum);
                return 1;
            }
        }
    }
    return 0;
}

struct bench {
    struct rig rig;
    struct pool *pool;
    struct arena *arena;
    struct xrt_gemm *g;
    const struct manifest_operator *op;
    void *scratch;
    float *x, *y;
};

static const uint32_t wish[MANIFEST_DIMS] = {[MANIFEST_M] = TOKENS, [MANIFEST_K] = COLS, [MANIFEST_N] = ROWS};

static int open_bench(struct bench *b, const char *folder, const char *const *operators, size_t n, unsigned timeout_ms)
{
    *b = (struct bench){.x = malloc(TOKENS * COLS * sizeof(float)), .y = malloc(TOKENS * ROWS * sizeof(float))};
    CHECK_OK(rig_open(&b->rig, folder, operators, n, err));
    CHECK(pool_open(2, &b->pool) == 0);
    CHECK_OK(arena_open(POOL, 8, &b->arena, err));
    const struct manifest_operator *op = NULL;
    CHECK_OK(manifest_find(b->rig.manifest, MANIFEST_GEMM, wish, xrt_gemm_usable, &op, NULL, err));
    b->op = op;
    b->scratch = aligned_alloc(REPACK_ALIGN, xrt_gemm_scratch_bytes(op, 2));
    const struct xrt_operator_options o = {.ops = b->rig.ops,
                                           .device = b->rig.device,
                                           .op = op,
                                           .pool = b->pool,
                                           .arena = b->arena,
                                           .scratch = b->scratch,
                                           .n_tokens = TOKENS,
                                           .timeout_ms = timeout_ms};
    struct xrt_device_stats s;
    uint64_t bytes = 0;
    CHECK_OK(xrt_gemm_bytes(op, TOKENS, &bytes, err));
    CHECK_OK(xrt_gemm_open(&o, &b->g, err));
    b->rig.ops->stats(b->rig.device, &s);
    CHECK(s.bytes <= bytes && bytes - s.bytes <= 16 * XRT_DEVICE_ALIGN);
    struct arena_stats in_pool;
    arena_stats(b->arena, &in_pool);
    CHECK(in_pool.used[ARENA_INSTRUCTIONS] > 0 && in_pool.used[ARENA_TILES] + in_pool.used[ARENA_INSTRUCTIONS] == bytes);
    for (int i = 0; i < TOKENS * COLS; i++)
        b->x[i] = rig_random();
    return 0;
}

static int close_bench(struct bench *b)
{
    struct xrt_device_stats s;
    xrt_gemm_close(b->g);
    b->rig.ops->stats(b->rig.device, &s);
    CHECK(s.bytes == 0); /* nothing leaked on the device */
    struct arena_stats in_pool;
    arena_stats(b->arena, &in_pool);
    CHECK(in_pool.all.used == 0);
    arena_close(b->arena);
    pool_close(b->pool);
    rig_close(&b->rig);
    free(b->scratch);
    free(b->x);
    free(b->y);
    return 0;
}

static int products(const char *folder, const char *const *operators, size_t n)
{
    static const int types[] = {QUANT_F32, QUANT_BF16, QUANT_Q8_0, QUANT_Q4_0};
    static const uint32_t counts[] = {TOKENS, 1, 32, 33};
    struct bench b;
    if (open_bench(&b, folder, operators, n, 60000))
        return 1;
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        struct matrix w = make(types[i]);
        for (size_t c = 0; c < ARRAY_LEN(counts); c++) {
            memset(b.y, 0xff, TOKENS * ROWS * sizeof(float));
            CHECK_OK(xrt_gemm_multiply(b.g, &w.m, b.x, counts[c], b.y, err));
            if (check(&w, b.x, b.y, counts[c]))
                return 1;
            struct xrt_weights *kept = NULL;
            float *again = malloc(TOKENS * ROWS * sizeof(float));
            struct arena_stats before, with;
            arena_stats(b.arena, &before);
            CHECK_OK(xrt_gemm_keep(b.g, &w.m, &kept, err));
            arena_stats(b.arena, &with);
            CHECK(with.used[ARENA_TILES] - before.used[ARENA_TILES] == xrt_gemm_kept_bytes(b.op, ROWS));
            for (int times = 0; times < 2; times++) {
                memset(again, 0xff, TOKENS * ROWS * sizeof(float));
                CHECK_OK(xrt_gemm_multiply_kept(b.g, kept, b.x, counts[c], again, err));
                CHECK(memcmp(again, b.y, counts[c] * ROWS * sizeof(float)) == 0);
            }
            xrt_gemm_free_kept(b.g, kept);
            free(again);
        }
        free((void *)(uintptr_t)w.m.tiles);
        free(w.values);
    }
    struct xrt_device_stats s;
    b.rig.ops->stats(b.rig.device, &s);
    CHECK(s.starts == s.waits && s.starts > 0);
    return close_bench(&b);
}

static int columns_first(const char *folder)
{
    static const char *const operators[] = {"gemm:32x128x64"};
    return products(folder, operators, 1);
}

static int rows_first(const char *folder)
{
    static const char *const operators[] = {"gemm:32x128x64:nk"};
    return products(folder, operators, 1);
}

/* The best of several; one tile holds all rows, and one group all tokens. */
static int one_call(const char *folder)
{
    static const char *const operators[] = {"gemm:32x64x64", "gemm:96x96x208:nk", "gemm:256x128x512"};
    return products(folder, operators, 3);
}

static int none_fits(const char *folder)
{
    static const char *const operators[] = {"gemm:32x64x64", "gemv:64x96"};
    const struct manifest_operator *op = NULL;
    struct rig r;
    CHECK_OK(rig_open(&r, folder, operators, 2, err));
    CHECK_ERR(manifest_find(r.manifest, MANIFEST_GEMM, wish, xrt_gemm_usable, &op, NULL, err), -ENOTSUP, "gemm");
    CHECK_ERR(xrt_gemm_usable(manifest_get(r.manifest, 1), err), -ENOTSUP, "expected a gemm");
    rig_close(&r);
    return 0;
}

static int fails(const char *folder, int code, const char *part)
{
    static const char *const operators[] = {"gemm:32x128x64"};
    struct bench b;
    struct matrix w = make(QUANT_Q8_0);
    if (open_bench(&b, folder, operators, 1, 300))
        return 1;
    CHECK_ERR(xrt_gemm_multiply(b.g, &w.m, b.x, TOKENS, b.y, err), code, part);
    CHECK(b.rig.ops->lost(b.rig.device));
    CHECK_ERR(xrt_gemm_multiply(b.g, &w.m, b.x, TOKENS, b.y, err), -ENODEV, "");
    xrt_gemm_close(b.g); /* keeps what the device may still use */
    return 0;
}

static int hangs(const char *folder)
{
    return fails(folder, -ETIMEDOUT, "not done within 300 ms");
}

static int breaks(const char *folder)
{
    return fails(folder, -EIO, "ended it with an error");
}

static int no_memory(const char *folder)
{
    static const char *const operators[] = {"gemm:32x128x64"};
    struct rig r;
    struct pool *pool;
    struct arena *arena, *small;
    struct arena_stats s;
    struct xrt_gemm *g = NULL;
    CHECK_OK(rig_open(&r, folder, operators, 1, err));
    CHECK(pool_open(1, &pool) == 0);
    CHECK_OK(arena_open(POOL, 8, &arena, err));
    CHECK_OK(arena_open(40000, 8, &small, err));
    struct xrt_operator_options o = {.ops = r.ops,
                                     .device = r.device,
                                     .op = manifest_get(r.manifest, 0),
                                     .pool = pool,
                                     .arena = arena,
                                     .n_tokens = TOKENS,
                                     .timeout_ms = 1000};
    CHECK_ERR(xrt_gemm_open(&o, &g, err), -ENOMEM, "out of NPU memory");
    o.arena = small; /* refused before the device is asked */
    CHECK_ERR(xrt_gemm_open(&o, &g, err), -ENOMEM, "bytes for NPU tiles do not fit");
    arena_stats(arena, &s);
    CHECK(s.all.used == 0);
    arena_stats(small, &s);
    CHECK(s.all.used == 0);
    arena_close(arena);
    arena_close(small);
    pool_close(pool);
    rig_close(&r);
    return 0;
}

static void test_products(void **state)
{
    (void)state;
    rig_case(columns_first, "");
    rig_case(rows_first, "");
    rig_case(one_call, "");
    rig_case(columns_first, "delay_us=2000");
}

static void test_refusals(void **state)
{
    (void)state;
    rig_case(none_fits, "");
    rig_case(no_memory, "memory=40000");
}

static void test_faults(void **state)
{
    (void)state;
    rig_faults(hangs, breaks);
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(test_products), UNIT_TEST(test_refusals), UNIT_TEST(test_faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
