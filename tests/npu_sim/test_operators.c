/* SPDX-License-Identifier: MIT
 * Each operator of the simulated NPU beside a plain reference in double: results are rounded once to bf16 (8 significant bits, so
 * 2^-8 of the value at most) after f32 sums, whose error is far below that. Limits of the public designs are refused. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "proto/util.h"
#include "tests/npu_sim/rig.h"
#include "tests/npu_sim/sim.h"
#include "tests/npu_sim/sim_files.h"
#include "tests/npu_sim/sim_stream.h"
#include "tests/unit/unit_test.h"

#define OF_VALUE (1.0 / 256) /* one rounding to bf16 */
#define OF_SUM 1e-5          /* of the sum of magnitudes: f32 sums of up to 4096 terms */

static uint32_t seed = 1;

static double random_value(void) /* in [-1, 1), 12 bits */
{
    seed = seed * 1664525u + 1013904223u;
    return (double)(seed >> 20) / 2048 - 1;
}

static void fill(uint16_t *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = sim_bf16((float)random_value());
}

static double value(const uint16_t *x, size_t i)
{
    return (double)sim_float(x[i]);
}

static int near(double got, double want, double magnitude, size_t i)
{
    if (fabs(got - want) <= OF_VALUE * fabs(want) + OF_SUM * magnitude)
        return 1;
    fprintf(stderr, "value %zu: %.9g, the reference has %.9g\n", i, got, want);
    return 0;
}

static int check_gemm(struct rig *r, struct rig_operator *o)
{
    const uint16_t *a = rig_map(r, o, MANIFEST_ARG_A), *b = rig_map(r, o, MANIFEST_ARG_B), *c = rig_map(r, o, MANIFEST_ARG_C);
    size_t m = o->op->dims[MANIFEST_M], k = o->op->dims[MANIFEST_K], n = o->op->dims[MANIFEST_N];
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            double sum = 0, magnitude = 0;
            for (size_t l = 0; l < k; l++) {
                double product = value(a, i * k + l) * value(b, o->op->b_nk ? j * k + l : l * n + j);
                sum += product;
                magnitude += fabs(product);
            }
            CHECK(near(value(c, i * n + j), sum, magnitude, i * n + j));
        }
    }
    return 0;
}

static int check_gemv(struct rig *r, struct rig_operator *o)
{
    const uint16_t *a = rig_map(r, o, MANIFEST_ARG_A), *x = rig_map(r, o, MANIFEST_ARG_X), *y = rig_map(r, o, MANIFEST_ARG_Y);
    size_t m = o->op->dims[MANIFEST_M], k = o->op->dims[MANIFEST_K];
    for (size_t i = 0; i < m; i++) {
        double sum = 0, magnitude = 0;
        for (size_t l = 0; l < k; l++) {
            sum += value(a, i * k + l) * value(x, l);
            magnitude += fabs(value(a, i * k + l) * value(x, l));
        }
        CHECK(near(value(y, i), sum, magnitude, i));
    }
    return 0;
}

static int check_norm(struct rig *r, struct rig_operator *o)
{
    const uint16_t *x = rig_map(r, o, MANIFEST_ARG_X), *w = rig_map(r, o, MANIFEST_ARG_W), *y = rig_map(r, o, MANIFEST_ARG_Y);
    size_t rows = o->op->dims[MANIFEST_ROWS], width = o->op->dims[MANIFEST_WIDTH];
    for (size_t i = 0; i < rows; i++) {
        double sum = 0;
        for (size_t j = 0; j < width; j++)
            sum += value(x, i * width + j) * value(x, i * width + j);
        double scale = 1 / sqrt(sum / (double)width + (double)o->op->epsilon);
        for (size_t j = 0; j < width; j++) {
            double want = value(x, i * width + j) * scale * value(w, j); /* as it is, without 1 + w */
            CHECK(near(value(y, i * width + j), want, fabs(want), i * width + j));
        }
    }
    return 0;
}

static void fill_angles(uint16_t *angles, size_t rows, size_t width)
{
    for (size_t i = 0; i < rows; i++) {
        for (size_t j = 0; j < width / 2; j++) {
            double angle = (double)i * pow(10000, -2.0 * (double)j / (double)width);
            angles[i * width + 2 * j] = sim_bf16((float)cos(angle));
            angles[i * width + 2 * j + 1] = sim_bf16((float)sin(angle));
        }
    }
}

static int check_rope(struct rig *r, struct rig_operator *o)
{
    const uint16_t *x = rig_map(r, o, MANIFEST_ARG_X), *a = rig_map(r, o, MANIFEST_ARG_ANGLES), *y = rig_map(r, o, MANIFEST_ARG_Y);
    size_t rows = o->op->dims[MANIFEST_ROWS], width = o->op->dims[MANIFEST_WIDTH];
    for (size_t i = 0; i < rows; i++) {
        for (size_t j = 0; j < width / 2; j++) {
            size_t at = i * width, u = at + (o->op->interleaved ? 2 * j : j),
                   v = at + (o->op->interleaved ? 2 * j + 1 : j + width / 2);
            double cosine = value(a, at + 2 * j), sine = value(a, at + 2 * j + 1), size = fabs(value(x, u)) + fabs(value(x, v));
            CHECK(near(value(y, u), value(x, u) * cosine - value(x, v) * sine, size, u));
            CHECK(near(value(y, v), value(x, u) * sine + value(x, v) * cosine, size, v));
        }
    }
    return 0;
}

static int check_attention(struct rig *r, struct rig_operator *o)
{
    const uint16_t *q = rig_map(r, o, MANIFEST_ARG_Q), *k = rig_map(r, o, MANIFEST_ARG_K), *v = rig_map(r, o, MANIFEST_ARG_V);
    const uint16_t *out = rig_map(r, o, MANIFEST_ARG_O);
    const int32_t *at = rig_map(r, o, MANIFEST_ARG_POSITIONS);
    const uint32_t *dims = o->op->dims;
    size_t d = dims[MANIFEST_HEAD_DIM], keys = dims[MANIFEST_KEYS], group = dims[MANIFEST_HEADS] / dims[MANIFEST_KV_HEADS];
    for (size_t h = 0; h < dims[MANIFEST_HEADS]; h++) {
        for (int32_t t = 0; t < at[2]; t++) {
            const uint16_t *qt = q + (h * dims[MANIFEST_TOKENS] + (size_t)t) * d, *got = out + (qt - q);
            double weights[256], sum = 0;
            for (int32_t i = 0; i < at[3]; i++) {
                int32_t back = at[0] + t - (at[1] + i); /* causal, and within the window */
                double dot = 0;
                for (size_t j = 0; j < d; j++)
                    dot += value(qt, j) * value(k, (h / group * keys + (size_t)i) * d + j);
                weights[i] = back < 0 || (dims[MANIFEST_WINDOW] && back >= (int32_t)dims[MANIFEST_WINDOW])
                                 ? 0
                                 : exp(dot * (double)o->op->scale);
                sum += weights[i];
            }
            for (size_t j = 0; j < d; j++) {
                double want = 0, magnitude = 0;
                for (int32_t i = 0; i < at[3]; i++) {
                    double part = weights[i] / sum * value(v, (h / group * keys + (size_t)i) * d + j);
                    want += part;
                    magnitude += fabs(part);
                }
                CHECK(near(value(got, j), want, magnitude, j));
            }
        }
    }
    return 0;
}

static int all(const char *folder)
{
    static const char *const operators[] = {"gemm:32x64x8",
                                            "gemm:256x640x320",
                                            "gemm:256x640x320:nk",
                                            "gemm:64x72x264",
                                            "gemv:8x16",
                                            "gemv:640x1024",
                                            "rms_norm:1x32:1e-6",
                                            "rms_norm:5x4096:1e-6",
                                            "rms_norm:3x640:0.5",
                                            "rope:7x32",
                                            "rope:64x256",
                                            "rope:16x128:interleaved",
                                            "attention:16x128x4x2x32x0:0.125",
                                            "attention:16x128x4x1x32x24:0.125"};
    static int (*const checks[MANIFEST_KINDS])(struct rig *, struct rig_operator *) = {check_gemm, check_gemv, check_norm,
                                                                                       check_rope, check_attention};
    struct rig r;
    CHECK_OK(rig_open(&r, folder, operators, ARRAY_LEN(operators), err));
    CHECK(manifest_count(r.manifest) == ARRAY_LEN(operators));
    for (size_t i = 0; i < ARRAY_LEN(operators); i++) {
        struct rig_operator o;
        CHECK_OK(rig_operator_open(&r, i, &o, err));
        for (unsigned a = 0; a < o.op->n_arguments; a++) {
            if (o.op->dtypes[a] == MANIFEST_BF16)
                fill(r.ops->map(o.buffers[a]), manifest_bytes(o.op, a) / 2);
        }
        if (o.op->kind == MANIFEST_ROPE)
            fill_angles(rig_map(&r, &o, MANIFEST_ARG_ANGLES), o.op->dims[MANIFEST_ROWS], o.op->dims[MANIFEST_WIDTH]);
        if (o.op->kind == MANIFEST_ATTENTION) /* 13 of 16 queries from position 90, 70 of 128 keys from 33: the last key is 102 */
            memcpy(rig_map(&r, &o, MANIFEST_ARG_POSITIONS), (int32_t[]){90, 33, 13, 70}, 16);
        CHECK_OK(rig_operator_run(&r, &o, err));
        if (checks[o.op->kind](&r, &o)) {
            fprintf(stderr, "operator '%s'\n", operators[i]);
            return 1;
        }
        rig_operator_close(&r, &o);
    }
    rig_close(&r);
    return 0;
}

static const struct limit {
    const char *operator_text;
    unsigned parameter;
    uint32_t value;
} limits[] = {{"gemm:64x64x64", 0, 63}, {"gemm:64x64x64", 1, 63},          {"gemm:64x64x64", 2, 63},     {"gemm:64x64x64", 0, 0},
              {"gemm:64x64x64", 4, 32}, {"gemm:64x64x64", 7, 3},           {"gemm:64x64x64", 3, 2},      {"gemv:64x64", 1, 40},
              {"gemv:64x64", 0, 60},    {"rms_norm:1x64:1e-6", 1, 4097},   {"rms_norm:1x64:1e-6", 2, 0}, {"rope:4x64", 1, 48},
              {"rope:4x64", 2, 2},      {"attention:8x8x4x2x32x0:1", 3, 3}};
static const struct limit *limit; /* of the child */

static int run_words(struct rig *r, const uint32_t *words, size_t n, struct err *err)
{
    struct xrt_buffer *instructions = NULL, *buffers[XRT_DEVICE_ARGUMENTS];
    struct xrt_run *run = NULL;
    int e = r->ops->make_instructions(r->kernel, words, n, &instructions, err);
    for (unsigned i = 0; e == 0 && i < XRT_DEVICE_ARGUMENTS; i++)
        e = r->ops->make_buffer(r->kernel, i, 1 << 20, &buffers[i], err);
    if (e == 0)
        e = r->ops->make_run(r->kernel, instructions, buffers, XRT_DEVICE_ARGUMENTS, &run, err);
    if (e == 0)
        e = r->ops->start(run, err);
    return e < 0 ? e : r->ops->wait(run, 60000, err);
}

/* One parameter makes the difference between a run and an error. */
static int limit_case(const char *folder)
{
    uint32_t words[SIM_STREAM_WORDS_MAX];
    size_t n = 0;
    struct rig r;
    CHECK_OK(rig_open(&r, folder, &limit->operator_text, 1, err));
    CHECK_OK(sim_files_words(limit->operator_text, words, &n, err));
    CHECK_OK(run_words(&r, words, n, err));
    words[SIM_STREAM_HEADER + limit->parameter] = limit->value;
    CHECK_ERR(run_words(&r, words, n, err), -EIO, "ERT_CMD_STATE_ERROR");
    return 0;
}

static void test_numbers(void **state)
{
    (void)state;
    rig_case(all, "");
}

static void test_limits(void **state)
{
    (void)state;
    for (limit = limits; limit < limits + ARRAY_LEN(limits); limit++)
        rig_case(limit_case, "");
}

static void test_texts(void **state)
{
    (void)state;
    uint32_t words[SIM_STREAM_WORDS_MAX];
    size_t n;
    static const char *const bad[] = {"",
                                      "gemm",
                                      "gemm:",
                                      "gemm:1x2",
                                      "gemm:64x64x64x64",
                                      "conv:1x2",
                                      "gemm:33x8x8",
                                      "gemv:8x17",
                                      "rms_norm:1x64",
                                      "rms_norm:1x64:0",
                                      "attention:1x2x3x4x5:1"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_err(sim_files_words(bad[i], words, &n, err), -EINVAL, "operator '");
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(test_numbers), UNIT_TEST(test_limits), UNIT_TEST(test_texts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
