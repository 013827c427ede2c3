/* SPDX-License-Identifier: MIT
 * Memory bandwidth, cost of a submission, and matrix-vector products in every variant of the specialization constants. Matrices
 * repeat until they exceed the caches; times are GPU time stamps around all of them, best of several passes, with a barrier after
 * each product as in a layer. Owns its buffers for one measurement at a time. */
#include "bench/vulkan/speed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/vulkan/data.h"
#include "gpu_worker/shaders.h"
#include "kernels/cpu.h"
#include "kernels/quant.h"
#include "kernels/repack.h"
#include "proto/util.h"

#define DISTINCT_ROWS 64
#define MAX_TOKENS 8

struct speed_weights speed_weights_make(struct device *d, int type, uint32_t rows, uint32_t cols, size_t total)
{
    struct speed_weights w = {.type = type, .rows = rows, .cols = cols, .bytes = repack_bytes(type, rows, cols)};
    struct data_matrix m = data_matrix_make(type, DISTINCT_ROWS, cols, DISTINCT_ROWS);
    size_t limit = d->properties.limits.maxStorageBufferRange;
    w.n = (uint32_t)(total / w.bytes) + 1;
    if (w.bytes > limit)
        fprintf(stderr, "bench_vulkan: %zu bytes of a matrix exceed maxStorageBufferRange\n", w.bytes);
    w.tile_vec4 = (uint32_t)(repack_tile_bytes(type, cols) / 16);
    w.units = cols / (quant_is_integer(type) ? 32 : 4);
    w.buffer = device_buffer(d, w.bytes * w.n, false);
    device_upload(d, &w.buffer, 0, m.tiles, m.bytes);
    device_repeat(d, &w.buffer, m.bytes);
    data_matrix_free(&m);
    return w;
}

struct buffer speed_floats(struct device *d, size_t n)
{
    float *x = data_alloc(4 * n);
    for (size_t i = 0; i < n; i++)
        x[i] = data_random();
    struct buffer b = device_buffer(d, 4 * n, false);
    device_upload(d, &b, 0, x, 4 * n);
    free(x);
    return b;
}

struct buffer speed_tokens(struct device *d, int type, uint32_t cols, uint32_t n)
{
    uint32_t words = data_act_words(type, cols), *all = data_alloc(4 * (size_t)words * n);
    float *x = data_alloc(4 * (size_t)cols);
    void *act = data_alloc(gemm_act_bytes(type, cols));
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t i = 0; i < cols; i++)
            x[i] = data_random();
        cpu_select(NULL)->gemm->prepare(type, x, cols, act);
        data_act(type, act, cols, all + (size_t)t * words);
    }
    struct buffer b = device_buffer(d, 4 * (size_t)words * n, false);
    device_upload(d, &b, 0, all, 4 * (size_t)words * n);
    free(all);
    free(x);
    free(act);
    return b;
}

double speed_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

bool speed_more(const struct speed_options *o, double begin, uint32_t done)
{
    static double first; /* a device at rest takes seconds to reach its clock */
    first = first > 0 ? first : begin;
    double settle = begin == first ? 10 * o->settle : o->settle;
    return done <= o->repeats || speed_now() - begin < settle;
}

/* ---- memory and submission ---- */

/* Bytes per second read and written by vkCmdCopyBuffer and by a shader. */
static void copy_rates(struct device *d, const struct speed_options *o, const struct buffer *a, const struct buffer *b,
                       size_t bytes, double *ret)
{
    uint32_t threads = 256;
    struct pipeline p = device_pipeline(d, "copy", 2, 0, &threads, 1);
    VkDescriptorSet set = device_set(d, &p, (struct range[]){{a, 0, bytes}, {b, 0, bytes}});
    for (int way = 0; way < 2; way++) {
        double best = 1e9, begin = speed_now();
        for (uint32_t i = 0; speed_more(o, begin, i); i++) {
            VkBufferCopy c = {0, 0, bytes};
            device_begin(d);
            uint32_t from = device_stamp(d);
            for (int k = 0; k < 4; k++) {
                if (way == 0)
                    vkCmdCopyBuffer(d->cmd, a->buffer, b->buffer, 1, &c);
                else
                    device_dispatch(d, &p, set, NULL, (uint32_t)(bytes / 64 / threads), 1);
            }
            uint32_t to = device_stamp(d);
            device_submit(d);
            best = MIN(best, device_seconds(d, from, to));
        }
        ret[way] = 8 * (double)bytes / best;
    }
    device_free_pipeline(d, &p);
}

static double read_rate(struct device *d, const struct speed_options *o, const struct buffer *a, const struct buffer *b,
                        size_t bytes)
{
    double best = 1e9;
    for (uint32_t threads = 256; threads <= 1024; threads *= 2) {
        struct pipeline p = device_pipeline(d, "read", 2, sizeof(struct shaders_read), &threads, 1);
        VkDescriptorSet set = device_set(d, &p, (struct range[]){{a, 0, bytes}, {b, 0, 256}});
        for (uint32_t each = 4; each <= 64; each *= 4) {
            size_t n = bytes / 16 / threads / each;
            struct shaders_read args = {each};
            double begin = speed_now();
            for (uint32_t i = 0; speed_more(o, begin, i) && n > 0 && n < 65536 * 16; i++) {
                device_begin(d);
                uint32_t from = device_stamp(d);
                for (int k = 0; k < 4; k++)
                    device_dispatch(d, &p, set, &args, (uint32_t)n, 1);
                uint32_t to = device_stamp(d);
                device_submit(d);
                best = MIN(best, device_seconds(d, from, to) / ((double)n * threads * each * 16 * 4));
            }
        }
        device_free_pipeline(d, &p);
    }
    return 1 / best;
}

double speed_memory(struct device *d, const struct speed_options *o)
{
    size_t bytes = MIN(o->bytes, d->properties.limits.maxStorageBufferRange) >> 20 << 20;
    struct buffer a = device_buffer(d, bytes, false), b = device_buffer(d, bytes, false);
    double copy[2];
    device_reset_sets(d);
    copy_rates(d, o, &a, &b, bytes, copy);
    double read = read_rate(d, o, &a, &b, bytes), best = MAX(copy[0], copy[1]);
    device_free(d, &a);
    device_free(d, &b);
    printf("copy (read + written): vkCmdCopyBuffer %.0f GB/s, shader %.0f GB/s; read alone %.0f GB/s\n", copy[0] * 1e-9,
           copy[1] * 1e-9, read * 1e-9);
    return best;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

#define LATENCY_RUNS 201
enum wait { WAIT_FENCE, WAIT_POLL, WAIT_TIMELINE };

/* Median of wall time from before the submission to after the wait, less the device's own time. */
static double latency(struct device *d, VkSemaphore timeline, uint64_t *value, enum wait how)
{
    double t[LATENCY_RUNS];
    for (int i = 0; i < LATENCY_RUNS; i++) {
        uint64_t next = ++*value;
        VkTimelineSemaphoreSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
                                              .signalSemaphoreValueCount = 1,
                                              .pSignalSemaphoreValues = &next};
        VkSubmitInfo submit = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                               .pNext = &info,
                               .commandBufferCount = 1,
                               .pCommandBuffers = &d->cmd,
                               .signalSemaphoreCount = 1,
                               .pSignalSemaphores = &timeline};
        VkSemaphoreWaitInfo wait = {
            .sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO, .semaphoreCount = 1, .pSemaphores = &timeline, .pValues = &next};
        double begin = speed_now();
        device_require(vkQueueSubmit(d->queue, 1, &submit, how == WAIT_TIMELINE ? VK_NULL_HANDLE : d->fence), "vkQueueSubmit");
        if (how == WAIT_TIMELINE)
            device_require(vkWaitSemaphores(d->device, &wait, 1000000000), "vkWaitSemaphores");
        else if (how == WAIT_FENCE)
            device_require(vkWaitForFences(d->device, 1, &d->fence, VK_TRUE, 1000000000), "vkWaitForFences");
        else
            while (vkGetFenceStatus(d->device, d->fence) == VK_NOT_READY && speed_now() - begin < 1)
                ;
        t[i] = speed_now() - begin - device_seconds(d, 0, 1);
        if (how != WAIT_TIMELINE)
            device_require(vkResetFences(d->device, 1, &d->fence), "vkResetFences");
    }
    qsort(t, LATENCY_RUNS, sizeof(*t), by_value);
    return t[LATENCY_RUNS / 2];
}

void speed_latency(struct device *d, const struct speed_options *o)
{
    uint32_t n = 5376, constants[] = {512, 0, 1, (n / 4 + 511) / 512};
    struct buffer x = speed_floats(d, n), y = device_buffer(d, 4 * n, false);
    struct pipeline p = device_pipeline(d, "norm", 4, sizeof(struct shaders_norm), constants, 4);
    device_reset_sets(d);
    VkDescriptorSet set = device_set(d, &p, (struct range[]){{&x, 0, 0}, {&x, 0, 0}, {&y, 0, 0}, {&y, 0, 0}});
    struct shaders_norm args = {.n = n, .eps = 1e-6f, .act_stride = n};
    VkSemaphoreTypeCreateInfo type = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                      .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    VkSemaphoreCreateInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &type};
    VkSemaphore timeline;
    uint64_t value = 0;
    device_require(vkCreateSemaphore(d->device, &info, NULL, &timeline), "vkCreateSemaphore");
    device_begin(d);
    device_stamp(d);
    device_dispatch(d, &p, set, &args, 1, 1);
    device_stamp(d);
    device_require(vkEndCommandBuffer(d->cmd), "vkEndCommandBuffer");
    for (double start = speed_now(); speed_now() - start < o->settle;)
        latency(d, timeline, &value, WAIT_FENCE);
    double fence = latency(d, timeline, &value, WAIT_FENCE), poll = latency(d, timeline, &value, WAIT_POLL);
    double sem = latency(d, timeline, &value, WAIT_TIMELINE);
    double best[2] = {1, 1};
    double start = speed_now();
    for (uint32_t i = 0; i < 10 || speed_more(o, start, i); i++) {
        device_begin(d);
        uint32_t from = device_stamp(d);
        for (int k = 0; k < 64; k++) {
            device_dispatch(d, &p, set, &args, 1, 1);
            if (i % 2)
                device_barrier(d);
        }
        uint32_t to = device_stamp(d);
        device_submit(d);
        best[i % 2] = MIN(best[i % 2], device_seconds(d, from, to) / 64);
    }
    printf("submit to wake, us beyond device time: fence %.1f, polled fence %.1f, timeline semaphore %.1f\n", fence * 1e6,
           poll * 1e6, sem * 1e6);
    printf("norm of %u columns: %.2f us each with barriers, %.2f us without\n", n, best[1] * 1e6, best[0] * 1e6);
    vkDestroySemaphore(d->device, timeline, NULL);
    device_free_pipeline(d, &p);
    device_free(d, &x);
    device_free(d, &y);
}

/* ---- matrix-vector ---- */

struct variant {
    uint32_t threads, slots, tiles, parts;
    double rate;
};

static uint32_t groups_of(int type)
{
    return type == QUANT_F16 || type == QUANT_BF16 ? 2 : 4;
}

/* Best bytes per second of weights of one product after the other. */
static double measure(struct device *d, const struct speed_options *o, const struct speed_weights *w, const struct pipeline *p,
                      const struct variant *v, uint32_t tokens, const struct buffer *act, const struct buffer *out)
{
    uint32_t each = v->slots * v->tiles, n_tiles = (uint32_t)repack_n_tiles(w->rows);
    struct shaders_matvec args = {.n_rows = w->rows,
                                  .n_units = w->units,
                                  .tile_vec4 = w->tile_vec4,
                                  .part_units = (w->units + v->parts - 1) / v->parts,
                                  .act_stride = data_act_words(w->type, w->cols) / 4,
                                  .y_stride = w->rows,
                                  .y_part = w->rows * tokens};
    double best = 1e9;
    VkDescriptorSet sets[256];
    uint32_t n = MIN(w->n, ARRAY_LEN(sets));
    device_reset_sets(d);
    for (uint32_t i = 0; i < n; i++)
        sets[i] = device_set(d, p, (struct range[]){{&w->buffer, i * w->bytes, w->bytes}, {act, 0, 0}, {out, 0, 0}});
    double begin = speed_now();
    for (uint32_t r = 0; speed_more(o, begin, r); r++) {
        device_begin(d);
        uint32_t from = device_stamp(d);
        for (uint32_t i = 0; i < n; i++) {
            device_dispatch(d, p, sets[i], &args, (n_tiles + each - 1) / each, v->parts);
            device_barrier(d);
        }
        uint32_t to = device_stamp(d);
        device_submit(d);
        best = MIN(best, device_seconds(d, from, to));
    }
    return (double)w->bytes * n / best;
}

static struct pipeline make_pipeline(struct device *d, int type, const struct variant *v, uint32_t tokens)
{
    char name[64];
    uint32_t constants[] = {v->threads, tokens, v->slots, v->tiles};
    snprintf(name, sizeof(name), "matvec_%s%s", quant_name(type), quant_is_integer(type) && !d->int_dot ? "_plain" : "");
    return device_pipeline(d, name, 3, sizeof(struct shaders_matvec), constants, 4);
}

static int by_rate(const void *a, const void *b)
{
    const struct variant *x = a, *y = b;
    return (x->rate < y->rate) - (x->rate > y->rate);
}

#define MAX_VARIANTS 256

static size_t make_variants(const struct device *d, int type, bool all, struct variant *ret)
{
    size_t n = 0;
    for (uint32_t threads = 32; threads <= MIN(512, d->properties.limits.maxComputeWorkGroupInvocations); threads *= 2)
        for (uint32_t slots = 1; slots <= 4; slots *= 2)
            for (uint32_t tiles = 1; tiles <= (all ? 4 : 2); tiles *= 2)
                if (threads / (slots * groups_of(type)) >= 4 && (all || (threads >= 64 && threads <= 256 && slots <= 2)))
                    ret[n++] = (struct variant){threads, slots, tiles, 1, 0};
    return n;
}

/* One shape: all variants, the best few printed. Returns the best. */
static struct variant sweep(struct device *d, const struct speed_options *o, int type, uint32_t rows, uint32_t cols, bool all,
                            double copy)
{
    struct variant v[MAX_VARIANTS], r[MAX_VARIANTS * 3];
    size_t n = make_variants(d, type, all, v), m = 0;
    struct speed_weights w = speed_weights_make(d, type, rows, cols, o->bytes);
    struct buffer act = speed_tokens(d, type, cols, MAX_TOKENS), out = device_buffer(d, 4 * (size_t)rows * MAX_TOKENS * 4, false);
    for (size_t i = 0; i < n; i++) {
        struct pipeline p = make_pipeline(d, type, &v[i], 1);
        for (uint32_t parts = 1; parts <= (rows < cols ? 4u : 1u); parts *= 2) {
            r[m] = v[i];
            r[m].parts = parts;
            r[m].rate = measure(d, o, &w, &p, &r[m], 1, &act, &out);
            m++;
        }
        device_free_pipeline(d, &p);
    }
    qsort(r, m, sizeof(*r), by_rate);
    printf("%s %ux%u (threads/slots/tiles/parts):", quant_name(type), rows, cols);
    for (size_t i = 0; i < MIN(m, 5); i++)
        printf(" %u/%u/%u/%u %.0f GB/s %.0f%%%s", r[i].threads, r[i].slots, r[i].tiles, r[i].parts, r[i].rate * 1e-9,
               100 * r[i].rate / copy, i + 1 < MIN(m, 5) ? "," : "");
    printf("; worst %.0f%%\n", 100 * r[m - 1].rate / copy);
    printf("  tokens:");
    for (uint32_t t = 1; t <= MAX_TOKENS; t *= 2) {
        struct variant best = {0};
        for (size_t i = 0; i < MIN(m, all ? 3 : 1); i++) {
            struct pipeline p = make_pipeline(d, type, &r[i], t);
            struct variant x = r[i];
            x.rate = measure(d, o, &w, &p, &x, t, &act, &out);
            best = x.rate > best.rate ? x : best;
            device_free_pipeline(d, &p);
        }
        printf(" %u: %.0f%% (%u/%u/%u/%u)", t, 100 * best.rate / copy, best.threads, best.slots, best.tiles, best.parts);
    }
    printf("\n");
    fflush(stdout);
    device_free(d, &w.buffer);
    device_free(d, &act);
    device_free(d, &out);
    return r[0];
}

void speed_matvec(struct device *d, const struct speed_options *o, double copy)
{
    static const int types[] = {QUANT_Q4_0, QUANT_Q8_0, QUANT_BF16, QUANT_F16,  QUANT_F32, QUANT_Q4_K,
                                QUANT_Q5_K, QUANT_Q6_K, QUANT_Q4_1, QUANT_Q5_0, QUANT_Q5_1};
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        if (o->type && strcmp(o->type, quant_name(types[i])) != 0)
            continue;
        if (speed_now() > o->deadline) {
            printf("matvec %s: left out, no time\n", quant_name(types[i]));
            continue;
        }
        sweep(d, o, types[i], o->ffn, o->hidden, i < 2, copy);
        if (i < 2) {
            sweep(d, o, types[i], o->hidden, o->ffn, true, copy);
            sweep(d, o, types[i], o->vocab, o->hidden, false, copy);
        }
    }
}
