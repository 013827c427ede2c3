/* SPDX-License-Identifier: MIT
 * The search for scales: never worse than the reference in its own measure, which is computed here anew; better by what it is there
 * for; the same bytes from every variant and for a block alone; unharmed by what is not finite. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/quant.h"
#include "kernels/quant_ops.h"
#include "kernels/quant_search.h"
#include "tests/kernels/rows.h"

#define LEN(a) (sizeof(a) / sizeof((a)[0]))
enum { N = ROWS_N };

static const int types[] = {QUANT_Q4_0, QUANT_Q4_1, QUANT_Q5_0, QUANT_Q5_1, QUANT_Q8_0, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K};

static double error(int type, const float *x, const float *w, const void *q)
{
    float y[N];
    double sum = 0;
    quant_dequantize_row(type, q, y, N);
    for (int i = 0; i < N; i++)
        sum += (w ? (double)w[i] : 1) * ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    return sum;
}

/* Weights of activations: mostly small, some large, some zero. */
static void make_weights(uint64_t s, float *w)
{
    rows_seed = s + 99;
    for (int i = 0; i < N; i++) {
        float g = rows_normal();
        w[i] = s % 5 == 3 && i % 7 < 3 ? 0 : s % 5 == 4 ? 1e-12f * g * g : g * g * g * g + 1e-3f;
    }
}

static void test_never_worse(void **state)
{
    (void)state;
    for (size_t t = 0; t < LEN(types); t++) {
        for (uint64_t s = 0; s < 30; s++) {
            for (int kind = 0; kind < ROWS_KINDS; kind++) {
                float x[N], weights[N], *w = s % 3 ? weights : NULL;
                uint8_t reference[N * 2], found[N * 2];
                rows_make(kind, s, x);
                make_weights(s, weights);
                quant_quantize_row(types[t], x, reference, N);
                quant_search_row(types[t], x, w, found, N);
                double old = error(types[t], x, w, reference), now = error(types[t], x, w, found);
                if (now > old * (1 + 1e-12))
                    fail_msg("%s kind %d seed %d: error %g, reference %g", quant_name(types[t]), kind, (int)s, now, old);
                double sum = quant_search_error(types[t], x, w, found, N);
                assert_true(!isfinite(now) || fabs(sum - now) <= 1e-9 * now);
            }
        }
    }
}

/* Shares of the reference's squared error that are left on nearly normal rows. */
static void test_gain(void **state)
{
    (void)state;
    static const struct {
        int type;
        double plain, weighted;
    } most[] = {{QUANT_Q4_0, 0.90, 0.80}, {QUANT_Q5_0, 0.90, 0.80}, {QUANT_Q8_0, 0.90, 0.82},
                {QUANT_Q4_K, 0.96, 0.80}, {QUANT_Q5_K, 0.91, 0.76}, {QUANT_Q6_K, 0.90, 0.78}};
    for (size_t t = 0; t < LEN(most); t++) {
        double sums[2][2] = {{0}};
        for (uint64_t s = 0; s < 40; s++) {
            float x[N], w[N];
            uint8_t reference[N * 2], found[N * 2];
            rows_make(0, s, x);
            for (int i = 0; i < N; i++)
                w[i] = expf(rows_normal());
            quant_quantize_row(most[t].type, x, reference, N);
            for (int weighted = 0; weighted < 2; weighted++) {
                quant_search_row(most[t].type, x, weighted ? w : NULL, found, N);
                sums[weighted][0] += error(most[t].type, x, weighted ? w : NULL, reference);
                sums[weighted][1] += error(most[t].type, x, weighted ? w : NULL, found);
            }
        }
        double plain = sums[0][1] / sums[0][0], weighted = sums[1][1] / sums[1][0];
        print_message("%-4s %.4f, weighted %.4f of the reference's squared error\n", quant_name(most[t].type), plain, weighted);
        assert_true(plain <= most[t].plain && weighted <= most[t].weighted);
    }
}

static void test_variants(void **state)
{
    (void)state;
    static const char *const names[] = {"avx2", "avx512"};
    for (size_t t = 0; t < LEN(types); t++) {
        size_t row = quant_row_bytes(types[t], N), elems = quant_block_elems(types[t]), bytes = quant_block_bytes(types[t]);
        for (int kind = 0; kind < ROWS_KINDS; kind++) {
            float x[N], weights[N], *w = kind % 2 ? weights : NULL;
            uint8_t want[N * 2], got[N * 2];
            uint64_t s = (uint64_t)kind;
            rows_make(kind, s, x);
            make_weights(s, weights);
            quant_ops_ref.search(types[t], x, w, want, N);
            for (size_t v = 0; v < LEN(names); v++) {
                const struct cpu_kernels *k = cpu_select(names[v]);
                if (!k)
                    continue;
                k->quant->search(types[t], x, w, got, N);
                assert_memory_equal(got, want, row);
            }
            for (size_t i = 0; i < N / elems; i++) {
                quant_search_row(types[t], x + i * elems, w ? w + i * elems : NULL, got, elems);
                assert_memory_equal(got, want + i * bytes, bytes);
            }
        }
    }
}

/* A block with NaN or infinity, in values or weights, is the reference's; the others are as without it. */
static void test_not_finite(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t t = 0; t < LEN(types); t++) {
        size_t elems = quant_block_elems(types[t]), bytes = quant_block_bytes(types[t]);
        for (size_t i = 0; i < LEN(bad) * 2; i++) {
            float x[N], w[N];
            uint8_t clean[N * 2], reference[N * 2], got[N * 2];
            rows_make(0, i, x);
            make_weights(0, w);
            quant_search_row(types[t], x, w, clean, N);
            (i % 2 ? x : w)[300] = bad[i / 2];
            quant_quantize_row(types[t], x, reference, N);
            quant_search_row(types[t], x, w, got, N);
            for (size_t b = 0; b < N / elems; b++)
                assert_memory_equal(got + b * bytes, (b == 300 / elems ? reference : clean) + b * bytes, bytes);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_never_worse),
        cmocka_unit_test(test_gain),
        cmocka_unit_test(test_variants),
        cmocka_unit_test(test_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
