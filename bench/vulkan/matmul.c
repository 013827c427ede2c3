/* SPDX-License-Identifier: MIT
 * Matrix-matrix shaders against the CPU kernels, and their speed for 512 tokens in every sensible shape of workgroups. Those of
 * cooperative matrices round weights and activations to f16, so that the bound is one of these roundings, in units of the sum of
 * magnitudes; the tiled ones (families dot and fma) sum as the CPU does and have the bound of check.c.
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
#define SUM_BOUND 3e-7 /* of check.c */

static const int types[] = {QUANT_Q4_0, QUANT_Q8_0, QUANT_BF16, QUANT_F16,  QUANT_F32, QUANT_Q4_1,
                            QUANT_Q5_0, QUANT_Q5_1, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K};

struct shape {
    uint32_t threads, bm, bn, wm, wn, halves; /* halves: matmul_cm's steps of 16 columns */
};
static const struct shape shapes[] = {
    {256, 256, 128, 64, 64, 3}, {128, 128, 128, 64, 64, 2}, {128, 128, 128, 64, 64, 4}, {256, 128, 256, 64, 64, 2},
    {256, 256, 128, 64, 64, 2}, {128, 128, 64, 64, 32, 3},  {128, 64, 128, 32, 64, 3},  {128, 128, 128, 64, 64, 1},
};

/* Of the tiled family: wm and wn are fours of rows and of tokens of a thread. */
static const struct shape tiled_shapes[] = {
    {256, 64, 64, 1, 1, 0}, {128, 64, 64, 2, 1, 0}, {64, 64, 64, 2, 2, 0},    {256, 128, 64, 2, 1, 0},
    {128, 64, 32, 1, 1, 0}, {64, 64, 16, 1, 1, 0},  {256, 128, 128, 2, 2, 0}, {128, 32, 64, 1, 1, 0},
};

static bool is_tiled(const char *family)
{
    return strcmp(family, "cm") != 0 && strcmp(family, "nv") != 0 && strcmp(family, "plain") != 0;
}

static uint32_t round_up(uint32_t x, uint32_t n)
{
    return (x + n - 1) / n * n;
}

/* Bytes of shared memory as in matmul_cm.comp. */
static uint32_t shared_bytes(int type, const struct shape *s)
{
    uint32_t row = 2 * s->halves | 1, a = quant_is_integer(type) ? s->bm * row : 16 * s->halves * (s->bm / 8 + 1);
    return 16 * (a + s->bn * row);
}

static struct pipeline make(struct device *d, const char *family, int type, const struct shape *s)
{
    char name[64];
    bool tiled = is_tiled(family), plain = strcmp(family, "dot_plain") == 0;
    snprintf(name, sizeof(name), "matmul_%s_%s%s", plain ? "dot" : family, quant_name(type), plain ? "_plain" : "");
    return device_pipeline(d, name, 3, sizeof(struct shaders_matmul),
                           (uint32_t[]){s->threads, s->bm, s->bn, s->wm, s->wn, s->halves}, tiled ? 5 : 6);
}

/* Columns of activations as f16, of which the last are zero: whole steps of any shape. */
static uint32_t padded(uint32_t cols)
{
    return cols + 64;
}

static void scales(struct device *d, int type, uint32_t cols, uint32_t tokens, const struct buffer *act, const struct buffer *out,
                   const struct buffer *halves)
{
    uint32_t constants[] = {256, !quant_is_integer(type)};
    struct pipeline p = device_pipeline(d, "scale", 3, sizeof(struct shaders_scale), constants, 2);
    struct shaders_scale args = {.n = cols, .act_stride = data_act_words(type, cols) / 4, .n_padded = padded(cols)};
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
    uint32_t n_tokens;
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
    p.halves = device_buffer(d, 2 * (size_t)tokens * padded(cols), false);
    p.n_tokens = tokens;
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

/* Worst error in units of the bound. scale: NULL when y has none. */
static double compare(const struct product *p, const float *y, const float *scale, double bound, uint32_t tokens, uint32_t y_stride,
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
            got *= scale ? (double)scale[t] : 1.0;
            double e = fabs(got - (double)p->y[(size_t)t * rows + r]) / (bound * magnitudes(p, row, t));
            worst = fmax(worst, isnan(e) ? (double)INFINITY : e);
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
                                  .part_units = round_up((cols / 16 + parts - 1) / parts, s->halves),
                                  .act_stride = p->n_tokens,
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
    double worst = compare(p, y, scale, HALF_BOUND, tokens, y_stride, parts, y_part);
    free(y);
    free(scale);
    device_free_pipeline(d, &pipe);
    device_free(d, &out);
    return worst;
}

/* y has room after each row and after the last token, which must stay as it is: infinity where something was written. */
static double check_tiled(struct device *d, const char *family, int type, const struct shape *s, const struct product *p,
                          uint32_t tokens, uint32_t parts)
{
    uint32_t rows = p->w.m.n_rows, cols = p->w.m.n_cols, y_stride = rows + 5;
    size_t y_part = (size_t)y_stride * (tokens + 1), bytes = 4 * y_part * parts;
    const uint32_t untouched = 0x7fc12345;
    uint32_t *y = data_alloc(bytes);
    for (size_t i = 0; i < y_part * parts; i++)
        y[i] = untouched;
    struct buffer out = device_buffer(d, bytes, false);
    device_upload(d, &out, 0, y, bytes);
    struct pipeline pipe = make(d, family, type, s);
    struct shaders_matmul args = {.n_rows = rows,
                                  .n_units = cols / 32,
                                  .tile_vec4 = (uint32_t)(repack_tile_bytes(type, cols) / 16),
                                  .part_units = (cols / 32 + parts - 1) / parts,
                                  .act_stride = data_act_words(type, cols) / 4,
                                  .y_stride = y_stride,
                                  .y_part = (uint32_t)y_part,
                                  .n_tokens = tokens};
    device_reset_sets(d);
    VkDescriptorSet set = device_set(d, &pipe, (struct range[]){{&p->weights, 0, 0}, {&p->act, 0, 0}, {&out, 0, 0}});
    device_begin(d);
    device_dispatch3(d, &pipe, set, &args, (tokens + s->bn - 1) / s->bn, (rows + s->bm - 1) / s->bm, parts);
    device_submit(d);
    device_download(d, &out, 0, y, bytes);
    double worst = compare(p, (const float *)y, NULL, SUM_BOUND, tokens, y_stride, parts, y_part);
    for (size_t i = 0; i < y_part * parts; i++) {
        if ((i % y_part >= (size_t)tokens * y_stride || i % y_part % y_stride >= rows) && y[i] != untouched)
            worst = (double)INFINITY;
    }
    free(y);
    device_free_pipeline(d, &pipe);
    device_free(d, &out);
    return worst;
}

static int check_tiled_type(struct device *d, const char *family, int type)
{
    /* columns: an odd number of blocks too, where blocks are of 32 */
    static const struct {
        uint32_t rows, cols, tokens, shape, parts;
    } cases[] = {{200, 1280, 150, 0, 1}, {70, 256, 3, 0, 1}, {129, 768, 65, 1, 1},  {33, 512, 41, 2, 3}, {16, 256, 64, 3, 1},
                 {100, 1056, 33, 4, 3},  {48, 288, 9, 5, 1}, {130, 256, 129, 6, 1}, {31, 2304, 70, 7, 4}};
    double worst = 0;
    int n = 0;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        if (cases[i].cols % quant_block_elems(type) ||
            tiled_shapes[cases[i].shape].threads > d->properties.limits.maxComputeWorkGroupInvocations)
            continue;
        struct product p = product_make(d, type, cases[i].rows, cases[i].cols, cases[i].tokens);
        double e = check_tiled(d, family, type, &tiled_shapes[cases[i].shape], &p, cases[i].tokens, cases[i].parts);
        worst = fmax(worst, isnan(e) ? (double)INFINITY : e);
        product_free(d, &p);
        n++;
    }
    printf("check matmul_%s %-6s %d cases, worst error %.2f of its bound%s\n", family, quant_name(type), n, worst,
           worst <= 1 ? "" : "  FAILED");
    fflush(stdout);
    return !(worst <= 1);
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
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        bool integer = quant_is_integer(types[i]);
        if (type && strcmp(type, quant_name(types[i])) != 0)
            continue;
        if (!integer || d->int_dot)
            failed += check_tiled_type(d, integer ? "dot" : "fma", types[i]);
        if (integer)
            failed += check_tiled_type(d, "dot_plain", types[i]);
    }
    if (d->coopmat && d->memory_model && d->fp16)
        failed += check_family(d, "cm", type);
    if (d->coopmat_nv && d->memory_model && d->fp16)
        failed += check_family(d, "nv", type);
    if (d->fp16)
        failed += check_family(d, "plain", type);
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

/* Two products of wide matrices at a time, as gate and up are. */
static double measure(struct device *d, const struct speed_options *o, const struct speed_weights *w, const struct pipeline *p,
                      const struct shape *s, uint32_t parts, const struct buffer *halves, const struct buffer *out)
{
    uint32_t units = w->cols / 32, y_stride = round_up(w->rows, s->bm);
    struct shaders_matmul args = {.n_rows = w->rows,
                                  .n_units = units,
                                  .tile_vec4 = w->tile_vec4,
                                  .part_units = round_up((2 * units + parts - 1) / parts, s->halves),
                                  .act_stride = TOKENS,
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
            if (w->rows < w->cols || i % 2)
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
                  halves = device_buffer(d, (size_t)2 * TOKENS * padded(cols), false);
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
    printf("matmul_%s %s %ux%u, %d tokens, TFLOP/s (threads/BM/BN/WM/WN/halves/parts):", family, quant_name(type), rows, cols,
           TOKENS);
    for (size_t i = 0; i < MIN(n, 6); i++)
        printf(" %.0f (%u/%u/%u/%u/%u/%u/%u)", r[i].rate * 1e-12, r[i].shape->threads, r[i].shape->bm, r[i].shape->bn,
               r[i].shape->wm, r[i].shape->wn, r[i].shape->halves, r[i].parts);
    printf("; worst %.0f\n", n ? r[n - 1].rate * 1e-12 : 0);
    fflush(stdout);
    device_free(d, &w.buffer);
    device_free(d, &act);
    device_free(d, &scale);
    device_free(d, &halves);
    device_free(d, &out);
}

/* Seconds of eight tokens at a time by matvec_T, the dispatch of ffn_vulkan.c. */
static double groups_seconds(struct device *d, const struct speed_options *o, const struct speed_weights *w,
                             const struct buffer *act, const struct buffer *out, uint32_t tokens)
{
    char name[64];
    bool integer = quant_is_integer(w->type);
    uint32_t stride = data_act_words(w->type, w->cols) / 4,
             threads = MIN(256u, d->properties.limits.maxComputeWorkGroupInvocations);
    snprintf(name, sizeof(name), "matvec_%s%s", quant_name(w->type), integer && !d->int_dot ? "_plain" : "");
    struct pipeline p = device_pipeline(d, name, 3, sizeof(struct shaders_matvec), (uint32_t[]){threads, 8, 1, 1}, 4);
    double best = 1e9, begin = speed_now();
    device_reset_sets(d);
    VkDescriptorSet set = device_set(d, &p, (struct range[]){{&w->buffer, 0, w->bytes}, {act, 0, 0}, {out, 0, 0}});
    for (uint32_t r = 0; speed_more(o, begin, r); r++) {
        device_begin(d);
        uint32_t from = device_stamp(d);
        for (uint32_t t = 0; t < tokens; t += 8) {
            struct shaders_matvec args = {.n_rows = w->rows,
                                          .n_units = w->units,
                                          .tile_vec4 = w->tile_vec4,
                                          .part_units = w->units,
                                          .act_at = t * stride,
                                          .act_stride = stride,
                                          .y_at = t * w->rows,
                                          .y_stride = w->rows};
            device_dispatch(d, &p, set, &args, (w->rows + 15) / 16, 1);
        }
        uint32_t to = device_stamp(d);
        device_submit(d);
        best = MIN(best, device_seconds(d, from, to));
    }
    device_free_pipeline(d, &p);
    return best;
}

static double tiled_seconds(struct device *d, const struct speed_options *o, const struct speed_weights *w, const struct shape *s,
                            const struct buffer *act, const struct buffer *out, uint32_t tokens)
{
    bool integer = quant_is_integer(w->type);
    struct pipeline p = make(d, !integer ? "fma" : d->int_dot ? "dot" : "dot_plain", w->type, s);
    struct shaders_matmul args = {.n_rows = w->rows,
                                  .n_units = w->cols / 32,
                                  .tile_vec4 = w->tile_vec4,
                                  .part_units = w->cols / 32,
                                  .act_stride = data_act_words(w->type, w->cols) / 4,
                                  .y_stride = w->rows,
                                  .n_tokens = tokens};
    double best = 1e9, begin = speed_now();
    device_reset_sets(d);
    VkDescriptorSet set = device_set(d, &p, (struct range[]){{&w->buffer, 0, w->bytes}, {act, 0, 0}, {out, 0, 0}});
    for (uint32_t r = 0; speed_more(o, begin, r); r++) {
        device_begin(d);
        uint32_t from = device_stamp(d);
        device_dispatch3(d, &p, set, &args, (tokens + s->bn - 1) / s->bn, (w->rows + s->bm - 1) / s->bm, 1);
        uint32_t to = device_stamp(d);
        device_submit(d);
        best = MIN(best, device_seconds(d, from, to));
    }
    device_free_pipeline(d, &p);
    return best;
}

/* For each number of tokens: groups of eight, and how many times as fast the tiled shapes are. */
static void tiled_speed(struct device *d, const struct speed_options *o, int type, uint32_t rows, uint32_t cols)
{
    static const uint32_t counts[] = {8, 16, 32, 64, 128, 512};
    struct speed_weights w = speed_weights_make(d, type, rows, cols, repack_bytes(type, rows, cols));
    struct buffer act = speed_tokens(d, type, cols, TOKENS), out = device_buffer(d, (size_t)4 * rows * TOKENS, false);
    for (size_t c = 0; c < ARRAY_LEN(counts); c++) {
        double base = groups_seconds(d, o, &w, &act, &out, counts[c]), ops = 2.0 * rows * cols * counts[c];
        printf("tiled %s %ux%u, %3u tokens: by eight %.3f ms (%.3f T/s); times as fast (threads/BM/BN/TM/TN):", quant_name(type),
               rows, cols, counts[c], base * 1e3, ops / base * 1e-12);
        for (size_t i = 0; i < ARRAY_LEN(tiled_shapes); i++) {
            const struct shape *s = &tiled_shapes[i];
            if (s->threads <= d->properties.limits.maxComputeWorkGroupInvocations && speed_now() < o->deadline)
                printf(" %.2f (%u/%u/%u/%u/%u)", base / tiled_seconds(d, o, &w, s, &act, &out, counts[c]), s->threads, s->bm, s->bn,
                       s->wm, s->wn);
        }
        printf("\n");
        fflush(stdout);
    }
    device_free(d, &w.buffer);
    device_free(d, &act);
    device_free(d, &out);
}

void matmul_speed(struct device *d, const struct speed_options *o)
{
    static const int some[] = {QUANT_Q4_0, QUANT_Q8_0, QUANT_BF16, QUANT_Q4_K};
    const char *family = d->coopmat ? "cm" : "nv";
    for (size_t i = 0; i < ARRAY_LEN(some); i++) {
        if (!o->type || strcmp(o->type, quant_name(some[i])) == 0)
            tiled_speed(d, o, some[i], o->ffn, o->hidden);
    }
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
