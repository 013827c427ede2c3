/* SPDX-License-Identifier: MIT
 * Every kernel variant that this processor has against the plain C reference, bit for bit, and the reference against
 * double precision. Also: the value of an output does not depend on what is computed beside it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/attn.h"
#include "kernels/cpu.h"
#include "kernels/gemm.h"
#include "kernels/quant.h"
#include "kernels/quant_ops.h"
#include "kernels/repack.h"
#include "kernels/vec.h"

#define LEN(a) (sizeof(a) / sizeof((a)[0]))

static const int types[] = {QUANT_F32,  QUANT_F16,  QUANT_BF16, QUANT_Q8_0, QUANT_Q4_0, QUANT_Q4_1,
                            QUANT_Q5_0, QUANT_Q5_1, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K};
static const char *const names[] = {"avx2", "avx512"};

static uint64_t seed = 1;
static float rnd(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(seed >> 33) / 2147483648.0 * 2 - 1);
}

static void fill(float *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = rnd() * (rnd() > 0.95f ? 8.0f : 1.0f);
}

struct matrix {
    struct gemm_matrix m;
    uint8_t *rows;
    void *tiles;
};

static struct matrix matrix_new(int type, uint32_t n_rows, uint32_t n_cols)
{
    struct matrix x = {.m = {.type = type, .n_rows = n_rows, .n_cols = n_cols}};
    size_t row = quant_row_bytes(type, n_cols), tile = repack_tile_bytes(type, n_cols);
    float *f = malloc(n_cols * sizeof(float));
    x.rows = malloc(row * n_rows);
    x.tiles = aligned_alloc(64, repack_bytes(type, n_rows, n_cols) + 64);
    for (uint32_t i = 0; i < n_rows; i++) {
        fill(f, n_cols);
        quant_quantize_row(type, f, x.rows + i * row, n_cols);
    }
    for (uint32_t i = 0; i < n_rows; i += REPACK_ROWS)
        repack_tile(type, x.rows + i * row, n_rows - i < 16 ? n_rows - i : 16, n_cols, (uint8_t *)x.tiles + i / 16 * tile);
    x.m.tiles = x.tiles;
    free(f);
    return x;
}

static void matrix_free(struct matrix *x)
{
    free(x->rows);
    free(x->tiles);
}

static void test_repack_round_trip(void **state)
{
    (void)state;
    for (size_t a = 0; a < LEN(types); a++) {
        uint32_t cols = quant_block_elems(types[a]) == 256 ? 768 : 96;
        struct matrix x = matrix_new(types[a], 37, cols);
        size_t row = quant_row_bytes(types[a], cols), tile = repack_tile_bytes(types[a], cols);
        uint8_t *got = malloc(row);
        for (uint32_t i = 0; i < 37; i++) {
            repack_extract_row(types[a], (uint8_t *)x.tiles + i / 16 * tile, i % 16, cols, got);
            assert_memory_equal(got, x.rows + i * row, row);
        }
        free(got);
        matrix_free(&x);
    }
}

/* The whole product, or in pieces: tokens and tiles one at a time. */
static void product(const struct gemm_ops *g, const struct gemm_matrix *m, const float *x, uint32_t n, bool pieces, float *y)
{
    size_t bytes = gemm_act_bytes(m->type, m->n_cols);
    uint8_t *act = aligned_alloc(64, bytes * n);
    uint32_t n_tiles = (uint32_t)repack_n_tiles(m->n_rows);
    for (uint32_t t = 0; t < n; t++)
        g->prepare(m->type, x + (size_t)t * m->n_cols, m->n_cols, act + t * bytes);
    if (!pieces)
        g->tiles(m, 0, n_tiles, act, n, y, m->n_rows);
    for (uint32_t t = 0; pieces && t < n; t++) {
        for (uint32_t i = n_tiles; i-- > 0;)
            g->tiles(m, i, i + 1, act + t * bytes, 1, y + (size_t)t * m->n_rows, m->n_rows);
    }
    free(act);
}

/* Wide enough that the columns are walked in parts, and y wider than the matrix: the rest of it stays as it was. */
static void test_gemm_wide(void **state)
{
    (void)state;
    const uint32_t rows = 70, cols = 8192, tokens = 9, stride = 80;
    for (size_t a = 0; a < LEN(types); a++) {
        struct matrix x = matrix_new(types[a], rows, cols);
        size_t bytes = gemm_act_bytes(types[a], cols);
        float *in = malloc(cols * tokens * sizeof(float)), want[70 * 9], got[80 * 9];
        uint8_t *act = aligned_alloc(64, bytes * tokens), *act_ref = aligned_alloc(64, bytes * tokens);
        memset(act, 0, bytes * tokens);
        memset(act_ref, 0, bytes * tokens);
        fill(in, cols * tokens);
        product(&gemm_ref, &x.m, in, tokens, false, want);
        for (size_t v = 0; v < LEN(names); v++) {
            const struct cpu_kernels *k = cpu_select(names[v]);
            if (!k)
                continue;
            for (uint32_t i = 0; i < 80 * 9; i++)
                got[i] = -5;
            for (uint32_t t = 0; t < tokens; t++) {
                k->gemm->prepare(types[a], in + t * cols, cols, act + t * bytes);
                gemm_ref.prepare(types[a], in + t * cols, cols, act_ref + t * bytes);
            }
            assert_memory_equal(act, act_ref, bytes * tokens);
            k->gemm->tiles(&x.m, 0, 5, act, tokens, got, stride);
            for (uint32_t t = 0; t < tokens; t++) {
                assert_memory_equal(got + t * stride, want + t * rows, rows * sizeof(float));
                for (uint32_t r = rows; r < stride; r++)
                    assert_true(got[t * stride + r] == -5);
            }
        }
        free(in);
        free(act);
        free(act_ref);
        matrix_free(&x);
    }
}

/* Blocks of zeros, ties between two quants, magnitudes at both ends of f32, NaN and infinity: the same bytes from every variant,
 * and a value that is not finite reaches the output. */
static void test_prepare_extremes(void **state)
{
    (void)state;
    enum { COLS = 8 * 32 };
    float x[COLS];
    for (int i = 0; i < 32; i++) {
        x[i] = 0;
        x[32 + i] = i ? (float)i + 0.5f : -127;
        x[64 + i] = (float)(i - 16) * 1e-44f;
        x[96 + i] = (float)(i - 16) * 2e37f;
        x[128 + i] = i == 9 ? NAN : 1;
        x[160 + i] = i == 9 ? INFINITY : 1;
        x[192 + i] = i == 31 ? -0.0f : 0;
        x[224 + i] = (float)(i - 16) * 1e-38f;
    }
    size_t bytes = gemm_act_bytes(QUANT_Q8_0, COLS);
    uint8_t *want = aligned_alloc(64, bytes), *got = aligned_alloc(64, bytes);
    memset(want, 0, bytes);
    memset(got, 0, bytes);
    gemm_ref.prepare(QUANT_Q8_0, x, COLS, want);
    for (size_t v = 0; v < LEN(names); v++) {
        const struct cpu_kernels *k = cpu_select(names[v]);
        if (k) {
            k->gemm->prepare(QUANT_Q8_0, x, COLS, got);
            assert_memory_equal(got, want, bytes);
        }
    }
    struct matrix m = matrix_new(QUANT_Q8_0, 16, 32);
    for (int bad = 0; bad < 2; bad++) {
        float y[16];
        product(&gemm_ref, &m.m, x + (bad ? 160 : 128), 1, false, y);
        for (int r = 0; r < 16; r++)
            assert_false(isfinite(y[r]));
    }
    matrix_free(&m);
    free(want);
    free(got);
}

static void test_cpu(void **state)
{
    (void)state;
    const struct cpu_kernels *best = cpu_select(NULL);
    assert_ptr_equal(cpu_select("auto"), best);
    assert_non_null(strstr(cpu_available(), best->name));
    assert_string_equal(cpu_select("ref")->name, "ref");
    assert_null(cpu_select("avx1024"));
    assert_null(cpu_select(""));
    for (size_t v = 0; v < LEN(names); v++) {
        const struct cpu_kernels *k = cpu_select(names[v]);
        assert_int_equal(k != NULL, strstr(cpu_available(), names[v]) != NULL);
        assert_true(!k || (strcmp(k->gemm->name, names[v]) == 0 && strcmp(k->vec->name, names[v]) == 0 &&
                           strcmp(k->attn->name, names[v]) == 0 && strcmp(k->quant->name, names[v]) == 0));
    }
    assert_ptr_equal(quant_ops_best(), best->quant);
    assert_true(cpu_count() >= 1);
}

static void test_gemm(void **state)
{
    (void)state;
    static const uint32_t rows[] = {1, 15, 16, 17, 100}, cols[] = {32, 64, 160, 256, 1152, 768}, tokens[] = {1, 2, 3, 5, 7, 8, 33};
    for (size_t a = 0; a < LEN(types); a++) {
        for (size_t b = 0; b < LEN(rows); b++) {
            for (size_t c = 0; c < LEN(cols); c++) {
                if (quant_row_bytes(types[a], cols[c]) == 0)
                    continue;
                struct matrix x = matrix_new(types[a], rows[b], cols[c]);
                for (size_t d = 0; d < LEN(tokens); d++) {
                    size_t n = (size_t)tokens[d] * rows[b];
                    float *in = malloc(tokens[d] * cols[c] * sizeof(float)), *want = malloc(n * 4), *got = malloc(n * 4);
                    fill(in, tokens[d] * cols[c]);
                    product(&gemm_ref, &x.m, in, tokens[d], false, want);
                    product(&gemm_ref, &x.m, in, tokens[d], true, got);
                    assert_memory_equal(got, want, n * 4);
                    for (size_t v = 0; v < LEN(names); v++) {
                        const struct cpu_kernels *k = cpu_select(names[v]);
                        for (int pieces = 0; k && pieces < 2; pieces++) {
                            memset(got, 0xff, n * 4);
                            product(k->gemm, &x.m, in, tokens[d], pieces, got);
                            assert_memory_equal(got, want, n * 4);
                        }
                    }
                    free(in);
                    free(want);
                    free(got);
                }
                matrix_free(&x);
            }
        }
    }
}

/* Formats of the block types against a second statement of them, in double, over random blocks: d of the stored f16, and every
 * quant within half a step of x (q4_0: plus what its clipped side loses). */
static void test_quant_round_trip(void **state)
{
    (void)state;
    for (int i = 0; i < 500; i++) {
        float x[32], y[32];
        uint8_t b[34];
        fill(x, 32);
        float amax = 0;
        for (int j = 0; j < 32; j++)
            amax = fmaxf(amax, fabsf(x[j]));
        quant_quantize_row(QUANT_Q8_0, x, b, 32);
        quant_dequantize_row(QUANT_Q8_0, b, y, 32);
        for (int j = 0; j < 32; j++)
            assert_true(fabs((double)(x[j] - y[j])) <= (double)amax / 127 * (0.5 + 127 * 0x1p-11 + 1e-5));
        quant_quantize_row(QUANT_Q4_0, x, b, 32);
        quant_dequantize_row(QUANT_Q4_0, b, y, 32);
        for (int j = 0; j < 32; j++)
            assert_true(fabs((double)(x[j] - y[j])) <= (double)amax / 8 * (1 + 8 * 0x1p-11 + 1e-5));
    }
    static const struct {
        float x;
        uint16_t bf16;
    } known[] = {{1.0f, 0x3f80},        {-2.5f, 0xc020},   {1.00390625f, 0x3f80},
                 {1.01171875f, 0x3f82}, {3.4e38f, 0x7f80}, {INFINITY, 0x7f80}};
    for (size_t i = 0; i < LEN(known); i++) {
        uint16_t h;
        quant_quantize_row(QUANT_BF16, &known[i].x, &h, 1);
        assert_int_equal(h, known[i].bf16);
    }
}

/* Every variant's conversions against quant.c, from unaligned memory; NaN and infinity among the elements; the sum, its bound and
 * NaN at every place of a row. */
static void test_quant_ops(void **state)
{
    (void)state;
    enum { N = 256 * 3 };
    float x[N + 1], want[N], got[N + 1];
    uint8_t rows[N * 4], bytes[N * 4 + 1];
    const char *const all[] = {"ref", "avx2", "avx512"};
    for (size_t v = 0; v < LEN(all); v++) {
        const struct cpu_kernels *k = cpu_select(all[v]);
        for (size_t a = 0; k && a < LEN(types); a++) {
            for (int round = 0; round < 20; round++) {
                fill(x + 1, N);
                if (round >= 15) { /* what is not finite, and subnormals */
                    x[1 + 37 * round % N] = round % 3 == 0 ? NAN : round % 3 == 1 ? -INFINITY : INFINITY;
                    for (int i = 64; i < 96; i++)
                        x[1 + i] *= 1e-40f;
                }
                size_t n = quant_row_bytes(types[a], N);
                quant_quantize_row(types[a], x + 1, rows, N);
                k->quant->from_f32(types[a], x + 1, bytes + 1, N);
                assert_memory_equal(bytes + 1, rows, n);
                quant_dequantize_row(types[a], rows, want, N);
                k->quant->to_f32(types[a], bytes + 1, got + 1, N);
                assert_memory_equal(got + 1, want, sizeof(want));
            }
        }
        for (size_t i = 0; k && i < N; i++) {
            for (size_t j = 0; j < N; j++)
                x[j] = want[j] = (float)j * 0.0625f - 30;
            assert_true(k->quant->add_finite(x, 1, N, 60));
            for (size_t j = 0; j < N; j++)
                assert_true(x[j] == want[j] + 1);
            x[i] = i % 2 ? NAN : i % 4 ? INFINITY : 59;
            assert_false(k->quant->add_finite(x, 1, N, 60));
            assert_int_equal(k->quant->add_finite(x, 0, N, INFINITY), i % 4 == 0);
        }
    }
}

static void test_quant_names(void **state)
{
    (void)state;
    for (size_t a = 0; a < LEN(types); a++) {
        assert_int_equal(quant_from_name(quant_name(types[a])), types[a]);
        assert_string_equal(quant_ggml_name(types[a]), quant_name(types[a]));
        assert_int_equal(quant_row_bytes(types[a], 512), 512 / quant_block_elems(types[a]) * quant_block_bytes(types[a]));
    }
    assert_int_equal(quant_from_name("Q4_0"), QUANT_Q4_0);
    assert_int_equal(quant_from_name("q4_k"), QUANT_Q4_K);
    assert_int_equal(quant_from_name("q3_k"), -1);
    assert_string_equal(quant_ggml_name(11), "q3_K");
    assert_null(quant_ggml_name(4)); /* removed from ggml */
    assert_null(quant_ggml_name(-1));
    assert_null(quant_ggml_name(1000));
    assert_null(quant_name(11));
    assert_int_equal(quant_row_bytes(QUANT_Q8_0, 33), 0);
    assert_int_equal(quant_row_bytes(11, 256), 0);
    assert_int_equal(quant_row_bytes(QUANT_Q4_K, 32), 0);
    assert_int_equal(repack_tile_bytes(QUANT_Q4_0, 48), 0);
    assert_int_equal(repack_tile_bytes(QUANT_Q4_0, 1152), 1152 / 32 * 18 * 16);
    assert_int_equal(repack_bytes(QUANT_BF16, 17, 3), 2 * 128); /* two tiles of 96 bytes, padded */
}

/* Bound: float types round once per product, K * 2^-24 * sum |w x|; integer types also round the activations to 1/254 of
 * the block's largest, which adds at most 0.5/127 * max|x| * sum |w| per block. Where a minimum is subtracted, what is rounded is
 * larger than w: at most three times the block's largest. */
static void test_gemm_against_double(void **state)
{
    (void)state;
    for (size_t a = 0; a < LEN(types); a++) {
        const uint32_t n_rows = 33, n_cols = 256;
        struct matrix x = matrix_new(types[a], n_rows, n_cols);
        bool integer = quant_is_integer(types[a]);
        float in[256], y[33], w[256];
        fill(in, n_cols);
        product(&gemm_ref, &x.m, in, 1, false, y);
        for (uint32_t r = 0; r < n_rows; r++) {
            double sum = 0, bound = 0;
            quant_dequantize_row(types[a], x.rows + r * quant_row_bytes(types[a], n_cols), w, n_cols);
            for (uint32_t k = 0; k < n_cols; k++) {
                double amax = 0, largest = 0;
                for (uint32_t j = k / 32 * 32; j < k / 32 * 32 + 32; j++) {
                    amax = fmax(amax, fabs((double)in[j]));
                    largest = fmax(largest, fabs((double)w[j]));
                }
                sum += (double)w[k] * (double)in[k];
                bound += (integer ? 3 * largest : fabs((double)w[k])) * fabs((double)in[k]) * n_cols * 0x1p-24;
                bound += integer ? fabs((double)w[k]) * amax * 0.501 / 127 : 0;
            }
            assert_true(fabs((double)y[r] - sum) <= bound + 1e-6);
        }
        matrix_free(&x);
    }
}

/* Rows of extreme and of random quants and scales, as other writers may have them (-128 in q8_0, sums at the edge of what the
 * widths of the SIMD variants hold), times activations at both ends. */
static void test_gemm_extremes(void **state)
{
    (void)state;
    enum { COLS = 512 };
    for (size_t a = 0; a < LEN(types); a++) {
        if (!quant_is_integer(types[a]))
            continue;
        struct matrix x = matrix_new(types[a], 16, COLS);
        size_t row = quant_row_bytes(types[a], COLS), bytes = quant_block_bytes(types[a]);
        float in[COLS], want[16], got[16];
        for (int pattern = 0; pattern < 12; pattern++) {
            for (size_t i = 0; i < row * 16; i++) {
                rnd();
                x.rows[i] = (uint8_t)(pattern / 3 == 0 ? 0xff : pattern / 3 == 1 ? 0x80 : pattern / 3 == 2 ? 0x7f : seed >> 40);
            }
            for (size_t i = 0; i < row * 16; i += bytes) { /* f16 of 1 and of -2 where the scales are */
                size_t at = i + (types[a] == QUANT_Q6_K ? 208 : 0);
                memcpy(x.rows + at, "\x00\x3c", 2);
                if (bytes % 4 == 0)
                    memcpy(x.rows + at + 2, "\x00\xc0", 2);
            }
            for (int i = 0; i < COLS; i++)
                in[i] = pattern % 3 == 0 ? 1 : pattern % 3 == 1 ? -1 : i % 3 ? 1 : -1;
            repack_tile(types[a], x.rows, 16, COLS, x.tiles);
            product(&gemm_ref, &x.m, in, 1, false, want);
            for (size_t v = 0; v < LEN(names); v++) {
                const struct cpu_kernels *k = cpu_select(names[v]);
                if (k) {
                    product(k->gemm, &x.m, in, 1, false, got);
                    assert_memory_equal(got, want, sizeof(got));
                }
            }
        }
        matrix_free(&x);
    }
}

static void test_f16(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        float f = quant_f16_to_f32((uint16_t)i);
        uint32_t exp = i >> 10 & 31, man = i & 1023;
        if (exp == 31 && man) {
            assert_true(isnan(f));
            continue;
        }
        double want = exp == 31 ? (double)INFINITY : ldexp(exp ? 1024 + man : man, (int)(exp ? exp : 1) - 25);
        assert_true((double)f == (i & 0x8000 ? -want : want));
        assert_int_equal(quant_f32_to_f16(f), i);
        if (exp < 30) { /* halfway to the next rounds to even */
            float next = quant_f16_to_f32((uint16_t)(i + 1));
            assert_int_equal(quant_f32_to_f16((f + next) / 2), i + (i & 1));
        }
    }
}

static void test_quant_known_blocks(void **state)
{
    (void)state;
    float x[32];
    uint8_t b[34];
    for (int i = 0; i < 32; i++)
        x[i] = (float)(i - 16);
    quant_quantize_row(QUANT_Q4_0, x, b, 32); /* largest magnitude -16: d = 2, q = x / 2 + 8.5 */
    assert_int_equal(b[0] | b[1] << 8, 0x4000);
    for (int i = 0; i < 16; i++)
        assert_int_equal(b[2 + i], (int)(x[i] / 2 + 8.5f) | (int)fminf(15, x[i + 16] / 2 + 8.5f) << 4);
    x[0] = -127;
    quant_quantize_row(QUANT_Q8_0, x, b, 32);
    assert_int_equal(b[0] | b[1] << 8, 0x3c00);
    assert_int_equal((int8_t)b[2], -127);
    for (int i = 1; i < 32; i++)
        assert_int_equal((int8_t)b[2 + i], i - 16);
    memset(x, 0, sizeof(x));
    quant_quantize_row(QUANT_Q4_0, x, b, 32);
    quant_dequantize_row(QUANT_Q4_0, b, x, 32);
    for (int i = 0; i < 32; i++)
        assert_true(x[i] == 0);
}

static void test_exp(void **state)
{
    (void)state;
    for (double x = -87; x < 88.7; x += 0.0137) {
        double want = exp((double)(float)x);
        assert_true(fabs((double)vec_expf((float)x) - want) <= 2e-7 * want);
    }
    assert_true(vec_expf(-100) == 0 && vec_expf(-INFINITY) == 0 && vec_expf(0) == 1);
    assert_true(isinf(vec_expf(88.8f)) && isinf(vec_expf(1e30f)) && isinf(vec_expf(INFINITY)));
}

static void test_vec(void **state)
{
    (void)state;
    static const size_t sizes[] = {16, 32, 40, 64, 160, 256, 1152};
    for (size_t a = 0; a < LEN(sizes); a++) {
        size_t n = sizes[a];
        float x[1152], w[1152], r[1152], c[1152], s[1152], want[4][1152], got[1152];
        fill(x, n);
        fill(w, n);
        fill(r, n);
        vec_rope_table(1234, n, 10000, 1, c, s);
        vec_ref.rmsnorm(x, w, n, 1e-6f, want[0]);
        vec_ref.rmsnorm_add(x, w, n, 1e-6f, r, want[1]);
        vec_ref.geglu(x, r, n, want[2]);
        memcpy(want[3], x, n * 4);
        vec_ref.rope(want[3], n, c, s);
        double ss = 0;
        for (size_t i = 0; i < n; i++)
            ss += (double)x[i] * (double)x[i];
        double inv = 1 / sqrt(ss / (double)n + 1e-6);
        for (size_t i = 0; i < n; i++) {
            double g = (double)x[i], gelu = 0.5 * g * (1 + tanh(sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)));
            assert_true(fabs((double)want[0][i] - g * inv * (double)w[i]) < 1e-5);
            assert_true(fabs((double)want[2][i] - gelu * (double)r[i]) < 1e-5);
        }
        for (size_t i = 0; i < n / 2; i++) {
            double angle = 1234 * pow(10000, -2.0 * (double)i / (double)n);
            double re = (double)x[i] * cos(angle) - (double)x[i + n / 2] * sin(angle);
            assert_true(fabs((double)want[3][i] - re) < 1e-5);
        }
        for (size_t v = 0; v < LEN(names); v++) {
            const struct cpu_kernels *k = cpu_select(names[v]);
            if (!k)
                continue;
            k->vec->rmsnorm(x, w, n, 1e-6f, got);
            assert_memory_equal(got, want[0], n * 4);
            k->vec->rmsnorm_add(x, w, n, 1e-6f, r, got);
            assert_memory_equal(got, want[1], n * 4);
            k->vec->geglu(x, r, n, got);
            assert_memory_equal(got, want[2], n * 4);
            memcpy(got, x, n * 4);
            k->vec->rope(got, n, c, s);
            assert_memory_equal(got, want[3], n * 4);
        }
    }
}

struct cache {
    struct attn_shape s;
    void *pages[8];
    float *q, *k, *v;           /* [n][heads * dim] */
    float *stored_k, *stored_v; /* what the cache holds of them */
    uint32_t n;
};

/* q8_0 here divides by the scale as f16 has it, and rounds halves to even, unlike ggml. */
static void round_q8_0(const float *x, float *y)
{
    float m = 0;
    for (int i = 0; i < 32; i++)
        m = fmaxf(m, fabsf(x[i]));
    float d = quant_f16_to_f32(quant_f32_to_f16(m / 127)), id = d > 0 ? 1 / d : 0;
    for (int i = 0; i < 32; i++)
        y[i] = fmaxf(fminf(rintf(x[i] * id), 127), -127) * d;
}

static float *round_trip(int type, const float *x, size_t n)
{
    void *q = malloc(quant_row_bytes(type, n));
    float *y = malloc(n * sizeof(float));
    quant_quantize_row(type, x, q, n);
    quant_dequantize_row(type, q, y, n);
    for (size_t i = 0; type == QUANT_Q8_0 && i < n; i += 32)
        round_q8_0(x + i, y + i);
    free(q);
    return y;
}

static struct cache cache_new(uint32_t heads, uint32_t kv, uint32_t dim, uint32_t window, int kv_type, uint32_t n,
                              const struct attn_ops *ops)
{
    struct cache c = {.s = {heads, kv, dim, window, 0.11f, kv_type}, .n = n};
    c.q = malloc(n * heads * dim * 4);
    c.k = malloc(n * kv * dim * 4);
    c.v = malloc(n * kv * dim * 4);
    seed = 77;
    fill(c.q, n * heads * dim);
    fill(c.k, n * kv * dim);
    fill(c.v, n * kv * dim);
    c.stored_k = round_trip(kv_type, c.k, (size_t)n * kv * dim);
    c.stored_v = round_trip(kv_type, c.v, (size_t)n * kv * dim);
    for (uint32_t p = 0; p < (n + 63) / 64; p++) {
        c.pages[p] = aligned_alloc(64, (attn_page_bytes(&c.s) + 63) / 64 * 64);
        memset(c.pages[p], 0xff, attn_page_bytes(&c.s)); /* NaN: what is not visible must not matter */
    }
    for (uint32_t i = 0; i < n; i++)
        ops->store(&c.s, c.pages[i / 64], i % 64, c.k + i * kv * dim, c.v + i * kv * dim);
    return c;
}

static void cache_free(struct cache *c)
{
    for (int i = 0; i < 8; i++)
        free(c->pages[i]);
    free(c->q);
    free(c->k);
    free(c->v);
    free(c->stored_k);
    free(c->stored_v);
}

static void attend(const struct cache *c, const struct attn_ops *ops, uint32_t step, float *out)
{
    size_t stride = (size_t)c->s.n_heads * c->s.head_dim;
    void *scratch = aligned_alloc(64, (attn_scratch_bytes(&c->s, step) + 63) / 64 * 64);
    for (uint32_t i = 0; i < c->n; i += step) {
        uint32_t n = c->n - i < step ? c->n - i : step, from = c->s.window && i + 1 > c->s.window ? i + 1 - c->s.window : 0;
        void *pages[8] = {0}; /* those wholly below every window stay NULL */
        for (uint32_t p = from / 64; p < 8; p++)
            pages[p] = c->pages[p];
        for (uint32_t h = 0; h < c->s.n_kv_heads; h++)
            ops->run(&c->s, h, c->q + i * stride, stride, i, n, pages, out + i * stride, scratch);
    }
    free(scratch);
}

/* In double, over these K and V. Beside `want`, ret_weight (may be NULL) gets the sum of weight times |V|. */
static void softmax_head(const struct cache *c, const float *k, const float *v, uint32_t i, uint32_t h, double *want,
                         double *ret_weight)
{
    const struct attn_shape *s = &c->s;
    uint32_t group = s->n_heads / s->n_kv_heads, d = s->head_dim, from = s->window && i + 1 > s->window ? i + 1 - s->window : 0;
    double p[512], sum = 0, top = -1e300;
    for (uint32_t t = from; t <= i; t++) {
        p[t] = 0;
        for (uint32_t x = 0; x < d; x++)
            p[t] += (double)c->q[(i * s->n_heads + h) * d + x] * (double)k[(t * s->n_kv_heads + h / group) * d + x];
        p[t] *= (double)s->scale;
        top = fmax(top, p[t]);
    }
    for (uint32_t t = from; t <= i; t++)
        sum += p[t] = exp(p[t] - top);
    for (uint32_t x = 0; x < d; x++) {
        want[x] = 0;
        for (uint32_t t = from; t <= i; t++)
            want[x] += p[t] / sum * (double)v[(t * s->n_kv_heads + h / group) * d + x];
        if (ret_weight) {
            ret_weight[x] = 0;
            for (uint32_t t = from; t <= i; t++)
                ret_weight[x] += p[t] / sum * fabs((double)v[(t * s->n_kv_heads + h / group) * d + x]);
        }
    }
}

#define F32_ERROR (2e-5 * 8) /* of sums and exp in f32 */

static void check_softmax(const struct cache *c, const float *out)
{
    uint32_t d = c->s.head_dim;
    double want[256];
    for (uint32_t i = 0; i < c->n; i++) {
        for (uint32_t h = 0; h < c->s.n_heads; h++) {
            softmax_head(c, c->stored_k, c->stored_v, i, h, want, NULL);
            for (uint32_t x = 0; x < d; x++)
                assert_true(fabs((double)out[(i * c->s.n_heads + h) * d + x] - want[x]) < F32_ERROR);
        }
    }
}

/* What load gives is what was stored, as its type keeps it. */
static void check_load(const struct cache *c, const struct attn_ops *ops)
{
    uint32_t d = c->s.head_dim, kv = c->s.n_kv_heads;
    float *got = malloc((size_t)2 * 64 * d * sizeof(float));
    for (uint32_t h = 0; h < kv; h++) {
        for (uint32_t i = 0; i < c->n; i++) {
            if (i % 64 == 0)
                ops->load(&c->s, c->pages[i / 64], h, got);
            for (uint32_t x = 0; x < d; x++) {
                assert_true(got[x * 64 + i % 64] == c->stored_k[(i * kv + h) * d + x]);
                assert_true(got[(64 + i % 64) * d + x] == c->stored_v[(i * kv + h) * d + x]);
            }
        }
    }
    free(got);
}

static void test_attention(void **state)
{
    (void)state;
    static const int kv_types[] = {QUANT_F32, QUANT_F16, QUANT_Q8_0};
    static const struct {
        uint32_t heads, kv, dim, window, n;
    } cases[] = {{4, 2, 32, 0, 200},  {4, 1, 64, 33, 200}, {2, 2, 16, 64, 150}, {4, 2, 80, 1, 70},  {8, 2, 128, 100, 300},
                 {6, 2, 64, 70, 200}, {4, 1, 256, 0, 130}, {7, 1, 48, 5, 140},  {6, 1, 96, 40, 140}};
    for (size_t a = 0; a < LEN(cases); a++) {
        for (size_t t = 0; t < LEN(kv_types); t++) {
            if (cases[a].dim % quant_block_elems(kv_types[t]))
                continue;
            struct cache c =
                cache_new(cases[a].heads, cases[a].kv, cases[a].dim, cases[a].window, kv_types[t], cases[a].n, &attn_ref);
            size_t bytes = (size_t)c.n * c.s.n_heads * c.s.head_dim * 4;
            float *want = malloc(bytes), *got = malloc(bytes);
            attend(&c, &attn_ref, 1, want);
            check_softmax(&c, want);
            check_load(&c, &attn_ref);
            attend(&c, &attn_ref, 13, got);
            assert_memory_equal(got, want, bytes);
            for (size_t v = 0; v < LEN(names); v++) {
                const struct cpu_kernels *k = cpu_select(names[v]);
                for (uint32_t step = 1; k && step <= 70; step += 23) {
                    struct cache other =
                        cache_new(cases[a].heads, cases[a].kv, cases[a].dim, cases[a].window, kv_types[t], cases[a].n, k->attn);
                    check_load(&other, k->attn);
                    attend(&other, k->attn, step, got);
                    assert_memory_equal(got, want, bytes);
                    cache_free(&other);
                }
            }
            free(want);
            free(got);
            cache_free(&c);
        }
    }
}

/* How far q8_0 may be from f32. An entry of a block with largest magnitude m is off by at most e(m): half a step of m / 127, and
 * 127 times the error of the scale in f16, 2^-11 of itself or 2^-25. A score is then off by at most eps = scale * sum over blocks
 * of |q|_1 e(m of K), weights change by a factor between exp(-2 eps) and exp(2 eps) with the largest eps in sight, and an output by
 * at most e(m of V) + (exp(2 eps) - 1) * sum of weight |V|. */
static double q8_0_error(const float *x)
{
    float m = 0;
    for (int i = 0; i < 32; i++)
        m = fmaxf(m, fabsf(x[i]));
    return (double)m * (0.5 / 127 + 0x1p-11 + 1e-6) + 127 * 0x1p-25;
}

/* Every variant writes the same page, also of what is not finite, of zeros, and where the scale is subnormal or too large for f16;
 * as the lanes of attn.h, and no entry further off than its block allows. */
static void test_attention_q8_0_page(void **state)
{
    (void)state;
    enum { KV = 2, D = 96, BLOCKS = D / 32 };
    static const float sizes[] = {0, 1, 1e-3f, 1e-6f, 1e-30f, 1e-44f, 6e4f, 1e6f, 1e7f, 3e38f, INFINITY, NAN};
    const struct attn_shape s = {4, KV, D, 0, 1, QUANT_Q8_0};
    size_t bytes = attn_page_bytes(&s), head = bytes / KV;
    assert_int_equal(bytes, (size_t)KV * 2 * 64 * BLOCKS * 34);
    float row[2][64][KV * D];
    uint8_t *page[2];
    seed = 5;
    for (int i = 0; i < 2; i++) {
        page[i] = aligned_alloc(64, (bytes + 63) / 64 * 64);
        for (uint32_t slot = 0; slot < 64; slot++) {
            fill(row[i][slot], KV * D);
            for (uint32_t x = 0; x < KV * D; x++)
                row[i][slot][x] *= sizes[(slot + x / 16) % LEN(sizes)];
        }
    }
    for (size_t v = 0; v < LEN(names); v++) {
        const struct cpu_kernels *k = cpu_select(names[v]);
        for (uint32_t slot = 0; k && slot < 64; slot++)
            k->attn->store(&s, page[v > 0], slot, row[0][slot], row[1][slot]);
        assert_memory_equal(page[v > 0], page[0], v && !k ? 0 : bytes);
    }
    for (uint32_t slot = 0; slot < 64; slot++) {
        for (uint32_t x = 0; x < KV * D; x++) {
            uint32_t d = x % D, b = d / 32;
            const uint8_t *at = page[0] + x / D * head;
            const int8_t *entries = (const int8_t *)at + 2 * 64 * BLOCKS * 2;
            uint16_t scale[2];
            memcpy(&scale[0], at + (b * 64 + slot) * 2, 2);
            memcpy(&scale[1], at + (64 * BLOCKS + slot * BLOCKS + b) * 2, 2);
            for (int i = 0; i < 2; i++) {
                const float *block = row[i][slot] + x / 32 * 32;
                bool finite = true, fits = true;
                for (int j = 0; j < 32; j++) {
                    finite &= isfinite(block[j]);
                    fits &= fabsf(block[j]) < 127 * 65504.0f;
                }
                float got = quant_f16_to_f32(scale[i]) * (float)entries[i ? 64 * D + slot * D + d : d * 64 + slot];
                assert_true(finite ? !fits || fabs((double)got - (double)row[i][slot][x]) <= q8_0_error(block) : isnan(got));
            }
        }
    }
    free(page[0]);
    free(page[1]);
}

/* The results over q8_0 are those over f32 pages of its products, to the bit. */
static void test_attention_q8_0_is_exact(void **state)
{
    (void)state;
    struct cache q8 = cache_new(8, 2, 64, 70, QUANT_Q8_0, 200, &attn_ref), f32 = cache_new(8, 2, 64, 70, QUANT_F32, 200, &attn_ref);
    size_t width = 2 * 64, bytes = (size_t)200 * 8 * 64 * sizeof(float);
    float *want = malloc(bytes), *got = malloc(bytes);
    for (uint32_t i = 0; i < 200; i++)
        attn_ref.store(&f32.s, f32.pages[i / 64], i % 64, q8.stored_k + i * width, q8.stored_v + i * width);
    for (size_t v = 0; v < LEN(names); v++) {
        const struct cpu_kernels *k = cpu_select(names[v]);
        for (uint32_t step = 1; k && step <= 33; step += 16) {
            attend(&f32, k->attn, step, want);
            attend(&q8, k->attn, step, got);
            assert_memory_equal(got, want, bytes);
        }
    }
    free(want);
    free(got);
    cache_free(&q8);
    cache_free(&f32);
}

static double score_error(const struct cache *c, uint32_t i, uint32_t h)
{
    const struct attn_shape *s = &c->s;
    uint32_t d = s->head_dim, kv = h / (s->n_heads / s->n_kv_heads), from = s->window && i + 1 > s->window ? i + 1 - s->window : 0;
    double worst = 0;
    for (uint32_t t = from; t <= i; t++) {
        double e = 0;
        for (uint32_t x = 0; x < d; x++)
            e += fabs((double)c->q[(i * s->n_heads + h) * d + x]) * q8_0_error(c->k + (t * s->n_kv_heads + kv) * d + x / 32 * 32);
        worst = fmax(worst, e * (double)s->scale);
    }
    return worst;
}

static void test_attention_q8_0_error(void **state)
{
    (void)state;
    struct cache c = cache_new(4, 2, 64, 50, QUANT_Q8_0, 150, &attn_ref);
    uint32_t d = 64, width = 2 * d;
    double want[64], weight[64], worst = 0, tightest = 0, sum = 0;
    float *out = malloc((size_t)150 * 4 * d * sizeof(float));
    for (uint32_t x = 0; x < 150 * width; x++)
        assert_true(fabs((double)c.stored_k[x] - (double)c.k[x]) <= q8_0_error(c.k + x / 32 * 32));
    attend(&c, &attn_ref, 1, out);
    for (uint32_t i = 0; i < 150; i++) {
        for (uint32_t h = 0; h < 4; h++) {
            double grow = exp(2 * score_error(&c, i, h)) - 1;
            softmax_head(&c, c.k, c.v, i, h, want, weight);
            for (uint32_t x = 0; x < d; x++) {
                double e = 0, got = fabs((double)out[(i * 4 + h) * d + x] - want[x]);
                for (uint32_t t = i + 1 > 50 ? i + 1 - 50 : 0; t <= i; t++)
                    e = fmax(e, q8_0_error(c.v + t * width + h / 2 * d + x / 32 * 32));
                double bound = e + grow * weight[x] + F32_ERROR;
                assert_true(got <= bound);
                worst = fmax(worst, got);
                tightest = fmax(tightest, got / bound);
                sum += got;
            }
        }
    }
    print_message("  q8_0 beside f32: worst %.2g, mean %.2g, %.0f%% of its bound at most\n", worst, sum / (150 * 4 * d),
                  100 * tightest);
    assert_true(worst > 1e-4); /* it was q8_0 indeed */
    free(out);
    cache_free(&c);
}

int main(void)
{
    print_message("kernel variants here: %s\n", cpu_available());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_repack_round_trip),
        cmocka_unit_test(test_gemm_wide),
        cmocka_unit_test(test_prepare_extremes),
        cmocka_unit_test(test_cpu),
        cmocka_unit_test(test_gemm),
        cmocka_unit_test(test_quant_round_trip),
        cmocka_unit_test(test_quant_ops),
        cmocka_unit_test(test_quant_names),
        cmocka_unit_test(test_gemm_against_double),
        cmocka_unit_test(test_gemm_extremes),
        cmocka_unit_test(test_f16),
        cmocka_unit_test(test_quant_known_blocks),
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_vec),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_q8_0_page),
        cmocka_unit_test(test_attention_q8_0_is_exact),
        cmocka_unit_test(test_attention_q8_0_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
