/* SPDX-License-Identifier: MIT
 * Compares what shaders give with the CPU kernels of the same arithmetic. Sums of f32 are taken in another order, so that the bound
 * of a product is in units of the sum of magnitudes of its terms (computed in double from the dequantized values); quantized
 * results may differ by the half step that rounding leaves. Owns its buffers for one case at a time. */
#include "bench/vulkan/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/vulkan/data.h"
#include "bench/vulkan/device.h"
#include "gpu_worker/shaders.h"
#include "kernels/cpu.h"
#include "kernels/quant.h"
#include "kernels/repack.h"
#include "kernels/vec.h"
#include "proto/util.h"

/* |error| <= SUM_BOUND * (sum of |w x|): f32 sums over at most 700 terms in two orders differ by less than 4 roundings of the
 * running sum on random data, each 2^-24 of it. */
#define SUM_BOUND 3e-7
#define GELU_BOUND 4e-6 /* relative, and 1e-7 of |g u| for the tail of exp: as exact as Vulkan asks */
#define NORM_BOUND 2e-6 /* relative: another order of one sum, the device's square root and division */

static const int types[] = {QUANT_Q4_0, QUANT_Q8_0, QUANT_F16,  QUANT_BF16, QUANT_F32, QUANT_Q4_1,
                            QUANT_Q5_0, QUANT_Q5_1, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K};

struct shape {
    uint32_t rows, cols, tokens, slots, lanes, width; /* width: tiles, or 1 to quantize in gate_up */
    uint32_t parts;
};

static const struct shape shapes[] = {
    {48, 256, 1, 1, 8, 1, 1}, {100, 1280, 1, 2, 16, 2, 3}, {16, 768, 2, 1, 16, 1, 2},
    {70, 256, 3, 4, 4, 1, 1}, {160, 2304, 5, 2, 8, 2, 1},  {33, 512, 8, 1, 32, 1, 4},
};

/* A matrix, tokens, and the product by the CPU with the bound of each value. */
struct product {
    struct data_matrix w;
    uint32_t tokens;
    float *y, *bound;
};

static struct product product_make(int type, const struct shape *s, const float *x, const void *act, size_t act_bytes)
{
    struct product p = {.w = data_matrix_make(type, s->rows, s->cols, s->rows), .tokens = s->tokens};
    const struct cpu_kernels *k = cpu_select(NULL);
    p.y = data_alloc(sizeof(float) * s->rows * s->tokens);
    p.bound = data_alloc(sizeof(float) * s->rows * s->tokens);
    k->gemm->tiles(&p.w.m, 0, (uint32_t)repack_n_tiles(s->rows), act, s->tokens, p.y, s->rows);
    float *row = data_alloc(sizeof(float) * s->cols);
    (void)act_bytes;
    for (uint32_t r = 0; r < s->rows; r++) {
        quant_dequantize_row(type, p.w.rows + r * quant_row_bytes(type, s->cols), row, s->cols);
        for (uint32_t t = 0; t < s->tokens; t++) {
            double sum = 0;
            for (uint32_t c = 0; c < s->cols; c++)
                sum += fabs((double)row[c] * (double)x[t * s->cols + c]);
            p.bound[t * s->rows + r] = (float)(SUM_BOUND * sum);
        }
    }
    free(row);
    return p;
}

static void product_free(struct product *p)
{
    data_matrix_free(&p->w);
    free(p->y);
    free(p->bound);
}

struct worst {
    double ratio; /* of an error to its bound */
    int cases, bad;
};

static void compare(struct worst *w, double got, double want, double bound)
{
    double e = fabs(got - want) / bound;
    w->ratio = fmax(w->ratio, isnan(e) ? HUGE_VAL : e);
}

static int report(const char *name, const struct worst *w)
{
    int failed = !(w->ratio <= 1) || w->bad;
    printf("check %-20s %2d cases, worst error %.2f of its bound%s%s\n", name, w->cases, w->ratio, w->bad ? ", wrong sums" : "",
           failed ? "  FAILED" : "");
    fflush(stdout);
    return failed;
}

static float *random_row(size_t n)
{
    float *x = data_alloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        x[i] = data_random() * (i % 37 == 5 ? 8.0f : 1.0f);
    return x;
}

static struct buffer upload(struct device *d, const void *data, size_t bytes)
{
    struct buffer b = device_buffer(d, bytes, false);
    device_upload(d, &b, 0, data, bytes);
    return b;
}

static void run(struct device *d, const struct pipeline *p, const struct range *ranges, const void *push, uint32_t x, uint32_t y)
{
    device_reset_sets(d);
    VkDescriptorSet set = device_set(d, p, ranges);
    device_begin(d);
    device_dispatch(d, p, set, push, x, y);
    device_submit(d);
}

/* Tokens prepared by the CPU, for it and for the device. */
struct tokens {
    float *x;
    void *act;
    size_t act_bytes;
    struct buffer buffer;
    uint32_t words;
};

static struct tokens tokens_make(struct device *d, int type, uint32_t n, uint32_t n_tokens)
{
    const struct cpu_kernels *k = cpu_select(NULL);
    struct tokens a = {
        .x = random_row((size_t)n * n_tokens), .act_bytes = gemm_act_bytes(type, n), .words = data_act_words(type, n)};
    a.act = data_alloc(a.act_bytes * n_tokens);
    uint32_t *words = data_alloc(4 * (size_t)a.words * n_tokens);
    for (uint32_t t = 0; t < n_tokens; t++) {
        k->gemm->prepare(type, a.x + (size_t)t * n, n, (char *)a.act + t * a.act_bytes);
        data_act(type, (char *)a.act + t * a.act_bytes, n, words + (size_t)t * a.words);
        data_act_floats(type, words + (size_t)t * a.words, n, a.x + (size_t)t * n);
    }
    a.buffer = upload(d, words, 4 * (size_t)a.words * n_tokens);
    free(words);
    return a;
}

static void tokens_free(struct device *d, struct tokens *a)
{
    free(a->x);
    free(a->act);
    device_free(d, &a->buffer);
}

static uint32_t groups_of(int type)
{
    return type == QUANT_F16 || type == QUANT_BF16 ? 2 : 4;
}

static void check_matvec(struct device *d, int type, const char *shader, const struct shape *s, struct worst *w)
{
    struct tokens a = tokens_make(d, type, s->cols, s->tokens);
    struct product p = product_make(type, s, a.x, a.act, a.act_bytes);
    struct buffer weights = upload(d, p.w.tiles, p.w.bytes);
    size_t n = (size_t)s->rows * s->tokens;
    struct buffer out = device_buffer(d, 4 * n * s->parts, false);
    uint32_t constants[] = {s->slots * s->lanes * groups_of(type), s->tokens, s->slots, s->width};
    struct pipeline pipe = device_pipeline(d, shader, 3, sizeof(struct shaders_matvec), constants, 4);
    uint32_t units = s->cols / (quant_is_integer(type) ? 32 : 4), each = s->slots * s->width;
    struct shaders_matvec args = {.n_rows = s->rows,
                                  .n_units = units,
                                  .tile_vec4 = (uint32_t)(repack_tile_bytes(type, s->cols) / 16),
                                  .part_units = (units + s->parts - 1) / s->parts,
                                  .act_stride = a.words / 4,
                                  .y_stride = s->rows,
                                  .y_part = (uint32_t)n};
    run(d, &pipe, (struct range[]){{&weights, 0, 0}, {&a.buffer, 0, 0}, {&out, 0, 0}}, &args,
        ((uint32_t)repack_n_tiles(s->rows) + each - 1) / each, s->parts);
    float *y = data_alloc(4 * n * s->parts);
    device_download(d, &out, 0, y, 4 * n * s->parts);
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (uint32_t q = 0; q < s->parts; q++)
            sum += (double)y[q * n + i];
        compare(w, sum, (double)p.y[i], (double)p.bound[i]);
    }
    w->cases++;
    free(y);
    device_free_pipeline(d, &pipe);
    device_free(d, &out);
    device_free(d, &weights);
    product_free(&p);
    tokens_free(d, &a);
}

/* Rows of n values, as floats or prepared, against what they should be. */
static void compare_rows(struct worst *w, int quantized, const uint32_t *words, uint32_t words_per_row, uint32_t n, uint32_t rows,
                         const float *want, const float *bound)
{
    float *got = data_alloc(n * sizeof(float));
    for (uint32_t t = 0; t < rows; t++) {
        const uint32_t *row = words + (size_t)t * words_per_row;
        w->bad += !data_act_floats(quantized ? QUANT_Q8_0 : QUANT_F32, row, n, got);
        for (uint32_t i = 0; i < n; i++) {
            float step = 0;
            if (quantized)
                memcpy(&step, row + n / 4 + i / 32 * 2, 4);
            compare(w, (double)got[i], (double)want[t * n + i], (double)bound[t * n + i] + 0.5001 * (double)step);
        }
    }
    free(got);
}

/* Bound of gelu(g) * u, from those of g and u; the slope of gelu is at most 1.13. */
static double geglu_bound(double g, double u, double y, double dg, double du)
{
    return 1.13 * dg * fabs(u) + fabs(g) * du + GELU_BOUND * fabs(y) + 1e-7 * fabs(g * u) + 1e-30;
}

static void check_gate_up(struct device *d, int type, const char *shader, struct shape s, uint32_t quantize, struct worst *w)
{
    if (quantize) {
        s.rows = (s.rows + 31) / 32 * 32;
        s.slots = (s.slots + 1) / 2 * 2;
    }
    struct tokens a = tokens_make(d, type, s.cols, s.tokens);
    struct product g = product_make(type, &s, a.x, a.act, a.act_bytes), u = product_make(type, &s, a.x, a.act, a.act_bytes);
    struct buffer gate = upload(d, g.w.tiles, g.w.bytes), up = upload(d, u.w.tiles, u.w.bytes);
    uint32_t words = quantize ? shaders_act_words(s.rows) : s.rows;
    size_t n = (size_t)s.rows * s.tokens, bytes = 4 * (size_t)words * s.tokens;
    struct buffer out = device_buffer(d, bytes, false);
    uint32_t constants[] = {s.slots * s.lanes * groups_of(type), s.tokens, s.slots, quantize};
    struct pipeline pipe = device_pipeline(d, shader, 4, sizeof(struct shaders_matvec), constants, 4);
    uint32_t units = s.cols / (quant_is_integer(type) ? 32 : 4);
    struct shaders_matvec args = {.n_rows = s.rows,
                                  .n_units = units,
                                  .tile_vec4 = (uint32_t)(repack_tile_bytes(type, s.cols) / 16),
                                  .part_units = units,
                                  .act_stride = a.words / 4,
                                  .y_stride = words,
                                  .pairs_at = s.rows / 8};
    run(d, &pipe, (struct range[]){{&gate, 0, 0}, {&a.buffer, 0, 0}, {&out, 0, 0}, {&up, 0, 0}}, &args,
        ((uint32_t)repack_n_tiles(s.rows) + s.slots - 1) / s.slots, 1);
    uint32_t *y = data_alloc(bytes);
    device_download(d, &out, 0, y, bytes);
    float *want = data_alloc(4 * n), *bound = data_alloc(4 * n);
    cpu_select(NULL)->vec->geglu(g.y, u.y, n, want);
    for (size_t i = 0; i < n; i++)
        bound[i] = (float)geglu_bound((double)g.y[i], (double)u.y[i], (double)want[i], (double)g.bound[i], (double)u.bound[i]);
    compare_rows(w, (int)quantize, y, words, s.rows, s.tokens, want, bound);
    w->cases++;
    free(y);
    free(want);
    free(bound);
    device_free_pipeline(d, &pipe);
    device_free(d, &out);
    device_free(d, &gate);
    device_free(d, &up);
    product_free(&g);
    product_free(&u);
    tokens_free(d, &a);
}

static int check_type(struct device *d, int type, const char *suffix)
{
    char name[64];
    int failed = 0;
    struct worst w = {0};
    snprintf(name, sizeof(name), "matvec_%s%s", quant_name(type), suffix);
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
        check_matvec(d, type, name, &shapes[i], &w);
    failed += report(name, &w);
    w = (struct worst){0};
    snprintf(name, sizeof(name), "gate_up_%s%s", quant_name(type), suffix);
    for (size_t i = 0; i < ARRAY_LEN(shapes); i += 2)
        check_gate_up(d, type, name, shapes[i], i % 4 == 0, &w);
    return failed + report(name, &w);
}

/* ---- element-wise ---- */

#define EPS 1e-6f

static int check_norm(struct device *d, const char *shader, uint32_t n, uint32_t tokens, uint32_t threads)
{
    float *x = random_row((size_t)n * tokens), *nw = random_row(n), *want = data_alloc(4 * (size_t)n * tokens);
    float *bound = data_alloc(4 * (size_t)n * tokens);
    uint32_t words = shaders_act_words(n), constants[] = {threads, 1, 1, (n / 4 + threads - 1) / threads};
    for (uint32_t t = 0; t < tokens; t++)
        cpu_select(NULL)->vec->rmsnorm(x + t * n, nw, n, EPS, want + t * n);
    for (size_t i = 0; i < (size_t)n * tokens; i++)
        bound[i] = (float)(NORM_BOUND * fabs((double)want[i]) + 1e-30);
    struct buffer bx = upload(d, x, 4 * (size_t)n * tokens), bw = upload(d, nw, 4 * (size_t)n);
    struct buffer by = device_buffer(d, 4 * (size_t)n * tokens, false), ba = device_buffer(d, 4 * (size_t)words * tokens, false);
    struct pipeline p = device_pipeline(d, shader, 4, sizeof(struct shaders_norm), constants, 4);
    struct shaders_norm args = {.n = n, .eps = EPS, .act_stride = words / 4};
    run(d, &p, (struct range[]){{&bx, 0, 0}, {&bw, 0, 0}, {&by, 0, 0}, {&ba, 0, 0}}, &args, tokens, 1);
    uint32_t *y = data_alloc(4 * (size_t)n * tokens), *act = data_alloc(4 * (size_t)words * tokens);
    device_download(d, &by, 0, y, 4 * (size_t)n * tokens);
    device_download(d, &ba, 0, act, 4 * (size_t)words * tokens);
    struct worst w = {.cases = 2};
    compare_rows(&w, 0, y, n, n, tokens, want, bound);
    compare_rows(&w, 1, act, words, n, tokens, want, bound);
    device_free_pipeline(d, &p);
    device_free(d, &bx);
    device_free(d, &bw);
    device_free(d, &by);
    device_free(d, &ba);
    free(x);
    free(nw);
    free(want);
    free(bound);
    free(y);
    free(act);
    return report(shader, &w);
}

/* Sums of parts in the order of the shader. */
static float *add_parts(const float *x, uint32_t n_parts, size_t n)
{
    float *sum = data_alloc(4 * n);
    for (uint32_t p = 0; p < n_parts; p++) {
        for (size_t i = 0; i < n; i++)
            sum[i] += x[p * n + i];
    }
    return sum;
}

static int check_post(struct device *d, const char *shader, uint32_t n, uint32_t tokens, uint32_t threads, uint32_t parts)
{
    size_t all = (size_t)n * tokens;
    float *x = random_row(all * parts), *nw = random_row(n), *r = random_row(all), *want = data_alloc(4 * all);
    float *bound = data_alloc(4 * all), *sum = add_parts(x, parts, all);
    float scale[8] = {0};
    for (uint32_t t = 0; t < tokens; t++) {
        scale[t] = t ? 0x1p-3f : 4.0f;
        for (uint32_t i = 0; i < n; i++)
            sum[t * n + i] *= scale[t];
    }
    for (uint32_t t = 0; t < tokens; t++)
        cpu_select(NULL)->vec->rmsnorm_add(sum + t * n, nw, n, EPS, r + t * n, want + t * n);
    for (size_t i = 0; i < all; i++)
        bound[i] = (float)(NORM_BOUND * (fabs((double)want[i]) + fabs((double)r[i])) + 1e-30);
    struct buffer bx = upload(d, x, 4 * all * parts), bw = upload(d, nw, 4 * (size_t)n), br = upload(d, r, 4 * all);
    struct buffer bs = upload(d, scale, 4 * (size_t)tokens);
    struct pipeline p =
        device_pipeline(d, shader, 5, sizeof(struct shaders_post), (uint32_t[]){threads, (n / 4 + threads - 1) / threads, 1}, 3);
    struct shaders_post args = {.n = n, .eps = EPS, .n_parts = parts, .x_part = (uint32_t)(all / 4), .x_stride = n / 4};
    run(d, &p, (struct range[]){{&bx, 0, 0}, {&bw, 0, 0}, {&br, 0, 0}, {&br, 0, 0}, {&bs, 0, 0}}, &args, tokens, 1);
    uint32_t *y = data_alloc(4 * all);
    device_download(d, &br, 0, y, 4 * all);
    struct worst w = {.cases = 1};
    compare_rows(&w, 0, y, n, n, tokens, want, bound);
    device_free_pipeline(d, &p);
    device_free(d, &bx);
    device_free(d, &bw);
    device_free(d, &br);
    device_free(d, &bs);
    free(x);
    free(nw);
    free(r);
    free(want);
    free(bound);
    free(sum);
    free(y);
    return report(shader, &w);
}

static int check_geglu(struct device *d, uint32_t n, uint32_t tokens, uint32_t threads, uint32_t parts)
{
    size_t all = (size_t)n * tokens;
    float *g = random_row(all * parts), *u = random_row(all * parts), *want = data_alloc(4 * all), *bound = data_alloc(4 * all);
    float *gs = add_parts(g, parts, all), *us = add_parts(u, parts, all);
    uint32_t words = shaders_act_words(n), constants[] = {threads, 1, 1, 0};
    cpu_select(NULL)->vec->geglu(gs, us, all, want);
    for (size_t i = 0; i < all; i++)
        bound[i] = (float)geglu_bound((double)gs[i], (double)us[i], (double)want[i], 0, 0);
    struct buffer bg = upload(d, g, 4 * all * parts), bu = upload(d, u, 4 * all * parts);
    struct buffer by = device_buffer(d, 4 * all, false), ba = device_buffer(d, 4 * (size_t)words * tokens, false);
    struct pipeline p = device_pipeline(d, "geglu", 5, sizeof(struct shaders_geglu), constants, 4);
    struct shaders_geglu args = {.n = n, .n_parts = parts, .part = (uint32_t)(all / 4), .stride = n / 4, .act_stride = words / 4};
    run(d, &p, (struct range[]){{&bg, 0, 0}, {&bu, 0, 0}, {&by, 0, 0}, {&ba, 0, 0}, {&bg, 0, 0}}, &args,
        (n / 32 + threads - 1) / threads, tokens);
    uint32_t *y = data_alloc(4 * all), *act = data_alloc(4 * (size_t)words * tokens);
    device_download(d, &by, 0, y, 4 * all);
    device_download(d, &ba, 0, act, 4 * (size_t)words * tokens);
    struct worst w = {.cases = 2};
    compare_rows(&w, 0, y, n, n, tokens, want, bound);
    compare_rows(&w, 1, act, words, n, tokens, want, bound);
    device_free_pipeline(d, &p);
    device_free(d, &bg);
    device_free(d, &bu);
    device_free(d, &by);
    device_free(d, &ba);
    free(g);
    free(u);
    free(want);
    free(bound);
    free(gs);
    free(us);
    free(y);
    free(act);
    return report("geglu", &w);
}

int check_run(struct device *d, const char *type)
{
    int failed = 0;
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        if (type && strcmp(type, quant_name(types[i])) != 0)
            continue;
        if (d->int_dot || !quant_is_integer(types[i]))
            failed += check_type(d, types[i], "");
        if (quant_is_integer(types[i]))
            failed += check_type(d, types[i], "_plain");
    }
    if (!type || strcmp(type, "ops") == 0) {
        failed += check_norm(d, "norm", 1152, 3, 32) + check_norm(d, "norm", 5376, 1, 512);
        failed += check_norm(d, "norm_plain", 1152, 3, 128) + check_norm(d, "norm_plain", 256, 1, 96);
        failed += check_post(d, "post", 1152, 3, 64, 3) + check_post(d, "post", 5376, 1, 512, 1);
        failed += check_post(d, "post_plain", 1152, 3, 64, 3) + check_post(d, "post_plain", 260, 1, 1000, 1);
        failed += check_geglu(d, 2080, 3, 64, 2);
    }
    return failed;
}
