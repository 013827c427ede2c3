/* SPDX-License-Identifier: MIT
 * Matrix-matrix shaders against the CPU kernels, and their speed for 512 tokens in every sensible shape of workgroups. Weights and
 * activations are rounded to f16 there, so that the bound is one of these roundings, in units of the sum of magnitudes.
 * Owns its buffers for one case at a time. */
#include "bench/vulkan/matmul.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/vulkan/data.h"
#include "bench/vulkan/device.h"
#include "bench/vulkan/speed.h"
#include "gpu_worker/shaders.h"
#include "kernels/cpu.h"
#include "kernels/quant.h"
#include "kernels/repack.h"
#include "proto/util.h"

/* Each term errs by up to 2^-10 of itself (two roundings to f16), at random. */
#define HALF_BOUND 2e-4

static const int types[] = {QUANT_Q4_0, QUANT_Q8_0, QUANT_BF16, QUANT_F16,  QUANT_F32, QUANT_Q4_1,
                            QUANT_Q5_0, QUANT_Q5_1, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K};

struct shape {
    uint32_t threads, bm, bn, wm, wn, blocks;
};
static const struct shape shapes[] = {
    {128, 128, 128, 64, 64, 2}, {128, 128, 128, 64, 64, 1}, {256, 128, 256, 64, 64, 1}, {256, 256, 128, 64, 64, 1},
    {256, 128, 128, 64, 32, 2}, {128, 128, 64, 64, 32, 2},  {128, 64, 128, 32, 64, 2},  {64, 64, 64, 32, 64, 2},
};

static uint32_t round_up(uint32_t x, uint32_t n)
{
    return (x + n - 1) / n * n;
}

/* Bytes of shared memory as in matmul_cm.comp. */
static uint32_t shared_bytes(int type, const struct shape *s)
{
    uint32_t row = 4 * s->blocks + 1, a = quant_is_integer(type) ? s->bm * row : 32 * s->blocks * (s->bm / 8 + 1);
    return 16 * (a + s->bn * row);
}

static struct pipeline make(struct device *d, const char *family, int type, const struct shape *s)
{
    char name[64];
    snprintf(name, sizeof(name), "matmul_%s_%s", family, quant_name(type));
    return device_pipeline(d, name, 3, sizeof(struct shaders_matmul),
                           (uint32_t[]){s->threads, s->bm, s->bn, s->wm, s->wn, s->blocks}, 6);
}

static void scales(struct device *d, int type, uint32_t cols, uint32_t tokens, const struct buffer *act, const struct buffer *out,
                   const struct buffer *halves)
{
    uint32_t constants[] = {256, !quant_is_integer(type)};
    struct pipeline p = device_pipeline(d, "scale", 3, sizeof(struct shaders_scale), constants, 2);
    struct shaders_scale args = {.n = cols, .act_stride = data_act_words(type, cols) / 4};
    device_reset_sets(d);
    VkDescriptorSet set = device_set(d, &p, (struct range[]){{act, 0, 0}, {out, 0, 0}, {halves, 0, 0}});
    device_begin(d);
    device_dispatch(d, &p, set, &args, tokens, 1);
    device_submit(d);
    device_free_pipeline(d, &p);
}

struct product {
    struct data_matrix w;
    float *x, *y;
    struct buffer weights, act, scales, halves;
};

static struct product product_make(struct device *d, int type, uint32_t rows, uint32_t cols, uint32_t tokens)
{
    const struct gemm_ops *g = cpu_select(NULL)->gemm;
    struct product p = {.w = data_matrix_make(type, rows, cols, rows),
                        .x = data_alloc(4 * (size_t)cols * tokens),
                        .y = data_alloc(4 * (size_t)rows * tokens)};
    size_t bytes = gemm_act_bytes(type, cols);
    uint32_t words = data_act_words(type, cols), *all = data_alloc(4 * (size_t)words * tokens);
    char *act = data_alloc(bytes * tokens);
    for (uint32_t t = 0; t < tokens; t++) {
        float *x = p.x + (size_t)t * cols, big = t % 3 == 2 ? 1e6f : t % 3 ? 1e-6f : 1.0f;
        for (uint32_t i = 0; i < cols; i++)
            x[i] = big * data_random();
        g->prepare(type, x, cols, act + t * bytes);
        data_act(type, act + t * bytes, cols, all + (size_t)t * words);
        data_act_floats(type, all + (size_t)t * words, cols, x);
    }
    g->tiles(&p.w.m, 0, (uint32_t)repack_n_tiles(rows), act, tokens, p.y, rows);
    p.weights = device_buffer(d, p.w.bytes, false);
    p.act = device_buffer(d, 4 * (size_t)words * tokens, false);
    p.scales = device_buffer(d, 4 * (size_t)tokens, false);
    device_upload(d, &p.weights, 0, p.w.tiles, p.w.bytes);
    device_upload(d, &p.act, 0, all, 4 * (size_t)words * tokens);
    p.halves = device_buffer(d, 2 * (size_t)tokens * cols, false);
    scales(d, type, cols, tokens, &p.act, &p.scales, &p.halves);
    free(act);
    free(all);
    return p;
}

static void product_free(struct device *d, struct product *p)
{
    data_matrix_free(&p->w);
    free(p->x);
    free(p->y);
    device_free(d, &p->weights);
    device_free(d, &p->act);
    device_free(d, &p->scales);
    device_free(d, &p->halves);
}

static double magnitudes(const struct product *p, const float *row, uint32_t t)
{
    double sum = 0;
    for (uint32_t c = 0; c < p->w.m.n_cols; c++)
        sum += fabs((double)row[c] * (double)p->x[(size_t)t * p->w.m.n_cols + c]);
    return sum;
}

/* Worst error in units of the bound. */
static double compare(const struct product *p, const float *y, const float *scale, uint32_t tokens, uint32_t y_stride,
                      uint32_t parts, size_t y_part)
{
    int type = p->w.m.type;
    uint32_t rows = p->w.m.n_rows, cols = p->w.m.n_cols;
    float *row = data_alloc(4 * (size_t)cols);
    double worst = 0;
    for (uint32_t r = 0; r < rows; r++) {
        quant_dequantize_row(type, p->w.rows + r * quant_row_bytes(type, cols), row, cols);
        for (uint32_t t = 0; t < tokens; t++) {
            double got = 0;
            for (uint32_t q = 0; q < parts; q++)
                got += (double)y[q * y_part + (size_t)t * y_stride + r];
            double e = fabs(got * (double)scale[t] - (double)p->y[(size_t)t * rows + r]) / (HALF_BOUND * magnitudes(p, row, t));
            if (!(e <= worst))
                worst = e;
        }
    }
    free(row);
    return worst;
}

static double check_one(struct device *d, const char *family, int type, const struct shape *s, const struct product *p,
                        uint32_t tokens, uint32_t parts)
{
    uint32_t rows = p->w.m.n_rows, cols = p->w.m.n_cols, y_stride = round_up(rows, s->bm), y_tokens = round_up(tokens, s->bn);
    size_t y_part = (size_t)y_stride * y_tokens;
    struct buffer out = device_buffer(d, 4 * y_part * parts, false);
    struct pipeline pipe = make(d, family, type, s);
    struct shaders_matmul args = {.n_rows = rows,
                                  .n_units = cols / 32,
                                  .tile_vec4 = (uint32_t)(repack_tile_bytes(type, cols) / 16),
                                  .part_units = round_up((cols / 32 + parts - 1) / parts, s->blocks),
                                  .y_stride = y_stride,
                                  .y_part = (uint32_t)y_part,
                                  .n_tokens = tokens};
    device_reset_sets(d);
    VkDescriptorSet set = device_set(d, &pipe, (struct range[]){{&p->weights, 0, 0}, {&p->halves, 0, 0}, {&out, 0, 0}});
    device_begin(d);
    device_dispatch3(d, &pipe, set, &args, y_tokens / s->bn, y_stride / s->bm, parts);
    device_submit(d);
    float *y = data_alloc(4 * y_part * parts), *scale = data_alloc(4 * (size_t)tokens);
    device_download(d, &out, 0, y, 4 * y_part * parts);
    device_download(d, &p->scales, 0, scale, 4 * (size_t)tokens);
    double worst = compare(p, y, scale, tokens, y_stride, parts, y_part);
    free(y);
    free(scale);
    device_free_pipeline(d, &pipe);
    device_free(d, &out);
    return worst;
}

static int check_family(struct device *d, const char *family, const char *type)
{
    int failed = 0;
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        if (type && strcmp(type, quant_name(types[i])) != 0)
            continue;
        uint32_t tokens = 150;
        struct product p = product_make(d, types[i], 200, 1280, tokens);
        double worst = check_one(d, family, types[i], &shapes[0], &p, tokens, 1);
        double other = check_one(d, family, types[i], &shapes[1], &p, tokens - 100, 3);
        int bad = !(worst <= 1 && other <= 1);
        printf("check matmul_%s_%-8s worst error %.2f, %.2f of its bound%s\n", family, quant_name(types[i]), worst, other,
               bad ? "  FAILED" : "");
        fflush(stdout);
        failed += bad;
        product_free(d, &p);
    }
    return failed;
}

int matmul_check(struct device *d, const char *type)
{
    int failed = 0;
    if (d->coopmat && d->memory_model && d->fp16)
        failed += check_family(d, "cm", type);
    if (d->coopmat_nv && d->memory_model && d->fp16)
        failed += check_family(d, "nv", type);
    return failed;
}

/* ---- speed ---- */

#define TOKENS 512
#define MAX_PARTS 4

struct result {
    const struct shape *shape;
    uint32_t parts;
    double rate;
};

static int by_rate(const void *a, const void *b)
{
    const struct result *x = a, *y = b;
    return (x->rate < y->rate) - (x->rate > y->rate);
}

static double measure(struct device *d, const struct speed_options *o, const struct speed_weights *w, const struct pipeline *p,
                      const struct shape *s, uint32_t parts, const struct buffer *halves, const struct buffer *out)
{
    uint32_t units = w->cols / 32, y_stride = round_up(w->rows, s->bm);
    struct shaders_matmul args = {.n_rows = w->rows,
                                  .n_units = units,
                                  .tile_vec4 = w->tile_vec4,
                                  .part_units = round_up((units + parts - 1) / parts, s->blocks),
                                  .y_stride = y_stride,
                                  .y_part = y_stride * TOKENS,
                                  .n_tokens = TOKENS};
    VkDescriptorSet sets[8];
    uint32_t n = MIN(w->n, ARRAY_LEN(sets));
    double best = 1e9;
    device_reset_sets(d);
    for (uint32_t i = 0; i < n; i++)
        sets[i] = device_set(d, p, (struct range[]){{&w->buffer, i * w->bytes, w->bytes}, {halves, 0, 0}, {out, 0, 0}});
    double begin = speed_now();
    for (uint32_t r = 0; speed_more(o, begin, r); r++) {
        device_begin(d);
        uint32_t from = device_stamp(d);
        for (uint32_t i = 0; i < n; i++) {
            device_dispatch3(d, p, sets[i], &args, TOKENS / s->bn, y_stride / s->bm, parts);
            device_barrier(d);
        }
        uint32_t to = device_stamp(d);
        device_submit(d);
        best = MIN(best, device_seconds(d, from, to) / n);
    }
    return 2.0 * w->rows * w->cols * TOKENS / best;
}

static void shape_speed(struct device *d, const struct speed_options *o, const char *family, int type, uint32_t rows, uint32_t cols,
                        size_t n_shapes)
{
    struct result r[ARRAY_LEN(shapes) * MAX_PARTS];
    size_t n = 0;
    struct speed_weights w = speed_weights_make(d, type, rows, cols, 3 * repack_bytes(type, rows, cols));
    struct buffer act = speed_tokens(d, type, cols, TOKENS), scale = device_buffer(d, 4 * TOKENS, false),
                  halves = device_buffer(d, (size_t)2 * TOKENS * cols, false);
    struct buffer out = device_buffer(d, (size_t)4 * (rows + 256) * TOKENS * MAX_PARTS, false);
    scales(d, type, cols, TOKENS, &act, &scale, &halves);
    for (size_t i = 0; i < n_shapes; i++) {
        if (shared_bytes(type, &shapes[i]) > d->properties.limits.maxComputeSharedMemorySize)
            continue;
        struct pipeline p = make(d, family, type, &shapes[i]);
        for (uint32_t parts = 1; parts <= (rows < cols ? MAX_PARTS : 1u); parts++)
            r[n++] = (struct result){&shapes[i], parts, measure(d, o, &w, &p, &shapes[i], parts, &halves, &out)};
        device_free_pipeline(d, &p);
    }
    qsort(r, n, sizeof(*r), by_rate);
    printf("matmul_%s %s %ux%u, %d tokens, TFLOP/s (threads/BM/BN/WM/WN/blocks/parts):", family, quant_name(type), rows, cols,
           TOKENS);
    for (size_t i = 0; i < MIN(n, 6); i++)
        printf(" %.0f (%u/%u/%u/%u/%u/%u/%u)", r[i].rate * 1e-12, r[i].shape->threads, r[i].shape->bm, r[i].shape->bn,
               r[i].shape->wm, r[i].shape->wn, r[i].shape->blocks, r[i].parts);
    printf("; worst %.0f\n", n ? r[n - 1].rate * 1e-12 : 0);
    fflush(stdout);
    device_free(d, &w.buffer);
    device_free(d, &act);
    device_free(d, &scale);
    device_free(d, &halves);
    device_free(d, &out);
}

void matmul_speed(struct device *d, const struct speed_options *o)
{
    static const int some[] = {QUANT_Q4_0, QUANT_Q8_0, QUANT_BF16, QUANT_Q4_K};
    const char *family = d->coopmat ? "cm" : "nv";
    if (!(d->coopmat || d->coopmat_nv) || !d->memory_model || !d->fp16)
        return;
    for (size_t i = 0; i < ARRAY_LEN(some); i++) {
        if (o->type && strcmp(o->type, quant_name(some[i])) != 0)
            continue;
        shape_speed(d, o, family, some[i], o->ffn, o->hidden, i < 2 ? ARRAY_LEN(shapes) : 4);
        if (i == 0) {
            shape_speed(d, o, family, some[i], o->hidden, o->ffn, ARRAY_LEN(shapes));
            if (d->coopmat_nv && d->coopmat)
                shape_speed(d, o, "nv", some[i], o->ffn, o->hidden, 4);
        }
    }
}
