/* SPDX-License-Identifier: MIT
 * FFN and head on a Vulkan device against the CPU backend: every type of the demo model, several numbers of tokens, and devices
 * made poorer (no integer dot product, no import, no subgroup arithmetic, small buffers). The validation layer watches where it is
 * installed: its first complaint fails a run. Exit status 77 where there is no device. Also run by hand on real GPUs:
 *   test_vulkan_ffn auto FOLDER q8_0 q4_0 bf16      with FOLDER/demo-q8_0.gguf, ... */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_worker/ffn_backend.h"
#include "model/gguf.h"
#include "model/segment.h"
#include "model/work_plan.h"
#include "proto/budget.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

#define CHUNK 130u
#define LAYERS 2u

struct device_case {
    const char *name;
    struct ffn_device_options o;
};

#define NEVER 4096

/* Where shaders for many tokens begin is said, so that every run takes the same ones; that it can be measured is one case. */
static const struct device_case devices[] = {
    {"as it is", {.allow_cpu = true, .many = 16}},
    {"never many", {.allow_cpu = true, .many = NEVER}},
    {"without coopmat", {.allow_cpu = true, .many = 16, .without = "coopmat"}},
    {"without coopmat, always many", {.allow_cpu = true, .many = 1, .without = "coopmat"}},
    {"without int_dot", {.allow_cpu = true, .many = 16, .without = "int_dot"}},
    {"without import", {.allow_cpu = true, .many = 24, .without = "host_import"}},
    {"without anything", {.allow_cpu = true, .many = 16, .without = "all"}},
    {"buffers of 512 KiB", {.allow_cpu = true, .many = 16, .max_buffer = 512 << 10}},
    {"buffers of 512 KiB, no import", {.allow_cpu = true, .many = 16, .max_buffer = 512 << 10, .without = "host_import"}},
    {"measured", {.allow_cpu = true}},
    {"subgroup 8", {.allow_cpu = true, .many = 16, .subgroup = 8}},
    {"simulated matrices", {.allow_cpu = true, .many = 16}},
    {"simulated, buffers of 2 MiB", {.allow_cpu = true, .many = 16, .max_buffer = 2 << 20}},
};

enum { WITHOUT_ANYTHING = 6 }; /* types after the first see the device as it is, and without anything */

struct model {
    struct gguf *gguf;
    struct hparams hparams;
    uint8_t *types;
    struct segment_layout layouts[LAYERS + 1];
    void *segments[LAYERS + 1];
};

/* Cooperative matrices in plain arithmetic, on any device. */
static bool simulates(const struct device_case *d)
{
    return strncmp(d->name, "simulated", 9) == 0;
}

static void stop(const char *what, const struct err *err)
{
    fprintf(stderr, "test_vulkan_ffn: %s: %s\n", what, err->text);
    exit(1);
}

static void model_open(const char *path, struct model *m)
{
    struct err err = {0};
    uint32_t n_attn = segment_n_tensors(SEGMENT_ATTN);
    if (gguf_open(path, false, &m->gguf, &err) < 0 || gemma3_hparams(m->gguf, &m->hparams, &err) < 0)
        stop(path, &err);
    uint32_t n = m->hparams.n_layers;
    m->types = calloc((size_t)(n + 1) * GEMMA3_LAYER_TENSORS, 1);
    for (uint32_t l = 0; l < n; l++) {
        uint8_t *t = m->types + l * GEMMA3_LAYER_TENSORS;
        if (segment_types(m->gguf, SEGMENT_ATTN, l, t, &err) < 0 || segment_types(m->gguf, SEGMENT_FFN, l, t + n_attn, &err) < 0)
            stop(path, &err);
    }
    if (segment_types(m->gguf, SEGMENT_HEAD, 0, m->types + n * GEMMA3_LAYER_TENSORS, &err) < 0)
        stop(path, &err);
    for (uint32_t i = 0; i <= LAYERS; i++) {
        enum segment_kind kind = i == LAYERS ? SEGMENT_HEAD : SEGMENT_FFN;
        struct segment_layout *l = &m->layouts[i];
        const uint8_t *t = i == LAYERS ? m->types + n * GEMMA3_LAYER_TENSORS : m->types + i * GEMMA3_LAYER_TENSORS + n_attn;
        if (segment_layout_init(l, &m->hparams, kind, t, &err) < 0)
            stop(path, &err);
        size_t bounce_bytes = work_plan_bounce_bytes(segment_bounce_min(l));
        auto_free void *bounce = aligned_alloc(4096, bounce_bytes);
        m->segments[i] = aligned_alloc(4096, l->bytes);
        if (!bounce || !m->segments[i] ||
            segment_fill(m->gguf, i == LAYERS ? 0 : i, l, m->segments[i], bounce, bounce_bytes, &err) < 0)
            stop(path, &err);
    }
}

static void model_close(struct model *m)
{
    for (uint32_t i = 0; i <= LAYERS; i++)
        free(m->segments[i]);
    free(m->types);
    gguf_close(m->gguf);
}

static int backend_open(const struct ffn_backend *b, const struct model *m, const struct ffn_device_options *device,
                        struct budget *budget, void **ret, struct err *err)
{
    const struct ffn_backend_options o = {.hparams = &m->hparams,
                                          .budget = budget,
                                          .types = m->types,
                                          .n_threads = 1,
                                          .chunk_tokens = CHUNK,
                                          .logits_rows = 4,
                                          .variant = "auto",
                                          .device = *device};
    int r = b->open(&o, ret, err);
    for (uint32_t i = 0; r == 0 && i <= LAYERS; i++)
        r = MIN(b->load_segment(*ret, i == LAYERS ? 0 : i, &m->layouts[i], m->segments[i], err), 0);
    return r;
}

static float number(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(int32_t)*state / 2147483648.0f;
}

/* Largest difference over the size of the reference's rows. */
static double difference(const float *a, const float *b, size_t rows, size_t width)
{
    double worst = 0;
    for (size_t r = 0; r < rows; r++) {
        double top = 0, size = 0;
        for (size_t i = 0; i < width; i++) {
            double d = fabs((double)a[r * width + i] - (double)b[r * width + i]);
            top = fmax(top, isnan(d) ? HUGE_VAL : d);
            size += (double)b[r * width + i] * (double)b[r * width + i];
        }
        double e = top / sqrt(size / (double)width);
        worst = fmax(worst, isnan(e) ? HUGE_VAL : e);
    }
    return worst;
}

struct seen {
    float *rows[8];
    size_t n;
};

static void keep(void *ctx, const char *name, const float *rows, uint32_t n_tokens, uint32_t width)
{
    struct seen *s = ctx;
    float *copy = malloc((size_t)n_tokens * width * sizeof(float));
    (void)name;
    if (!copy || s->n == ARRAY_LEN(s->rows))
        abort();
    s->rows[s->n++] = memcpy(copy, rows, (size_t)n_tokens * width * sizeof(float));
}

static double compare_dumps(const struct model *m, void *cpu, void *gpu, const float *h, float *x, uint32_t n)
{
    struct seen a = {0}, b = {0};
    struct err err = {0};
    double worst = 0;
    const uint32_t widths[] = {m->hparams.hidden, m->hparams.ffn,    m->hparams.ffn,
                               m->hparams.ffn,    m->hparams.hidden, m->hparams.hidden};
    if (ffn_cpu.run(cpu, 0, n, h, x, keep, &a, &err) < 0 || ffn_vulkan.run(gpu, 0, n, h, x, keep, &b, &err) < 0)
        stop("dump", &err);
    if (a.n != ARRAY_LEN(widths) || b.n != a.n)
        worst = HUGE_VAL;
    for (size_t i = 0; i < a.n && i < b.n; i++)
        worst = fmax(worst, difference(b.rows[i], a.rows[i], n, widths[i]));
    for (size_t i = 0; i < a.n; i++)
        free(a.rows[i]);
    for (size_t i = 0; i < b.n; i++)
        free(b.rows[i]);
    return worst;
}

/* Worst relative difference of all: layers for several numbers of tokens, intermediates, logits. */
static double compare(const struct model *m, void *cpu, void *gpu, const char *what)
{
    static const uint32_t counts[] = {1, 3, 8, 13, 21, 33, 70, CHUNK, 50, 90, 1, 21}; /* more than commands are kept for */
    size_t width = m->hparams.hidden, vocab = m->hparams.vocab;
    auto_free float *h = malloc(CHUNK * width * sizeof(float)), *x = malloc(CHUNK * width * sizeof(float)),
                    *y = malloc(CHUNK * width * sizeof(float)), *p = malloc(4 * vocab * sizeof(float)),
                    *q = malloc(4 * vocab * sizeof(float));
    struct err err = {0};
    uint32_t state = 1;
    double worst = 0;
    for (size_t i = 0; i < CHUNK * width; i++)
        h[i] = number(&state) * (1.0f + 20.0f * (float)(i % 97 == 0));
    for (uint32_t c = 0; c < ARRAY_LEN(counts); c++) {
        for (uint32_t l = 0; l < LAYERS; l++) {
            if (ffn_cpu.run(cpu, l, counts[c], h, x, NULL, NULL, &err) < 0 ||
                ffn_vulkan.run(gpu, l, counts[c], h, y, NULL, NULL, &err) < 0)
                stop(what, &err);
            worst = fmax(worst, difference(y, x, counts[c], width));
        }
    }
    worst = fmax(worst, fmax(compare_dumps(m, cpu, gpu, h, x, 5), compare_dumps(m, cpu, gpu, h, x, 20)));
    for (uint32_t n = 1; n <= 4; n++) {
        if (ffn_cpu.head(cpu, n, h, p, NULL, NULL, &err) < 0 || ffn_vulkan.head(gpu, n, h, q, NULL, NULL, &err) < 0)
            stop(what, &err);
        worst = fmax(worst, difference(q, p, n, vocab));
    }
    return worst;
}

/* Integer types: the products are exact and only f32 sums differ, but an activation at the border of two int8 values may fall to
 * the other side, which moves a row by a part of a step. Float types: the order of sums. Cooperative matrices, which
 * a device uses or simulates wherever it may, round weights and activations to f16. */
static double bound_of(const char *type, const struct device_case *d)
{
    const char *without = d->o.without ? d->o.without : "";
    bool matrices = d->o.many != NEVER && strcmp(without, "coopmat") != 0 && strcmp(without, "all") != 0;
    return type[0] == 'q' ? 2e-2 : matrices ? 5e-3 : 2e-5;
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: %s DEVICE MODELS TYPE...\n", argv[0]);
        return 2;
    }
    log_init("test", util_env(UTIL_ENV_LOG));
    int failed = 0;
    bool validate = true;
    for (int t = 3; t < argc; t++) {
        char path[4096];
        struct model m = {0};
        struct budget budget;
        struct err err = {0};
        void *cpu = NULL;
        const struct ffn_device_options none = {0};
        snprintf(path, sizeof(path), "%s/demo-%s.gguf", argv[2], argv[t]);
        model_open(path, &m);
        budget_init(&budget, "test", 0);
        if (backend_open(&ffn_cpu, &m, &none, &budget, &cpu, &err) < 0)
            stop("cpu", &err);
        for (size_t d = 0; d < ARRAY_LEN(devices); d++) {
            struct ffn_device_options o = devices[d].o;
            if (t > 3 && d % WITHOUT_ANYTHING != 0 && !simulates(&devices[d]))
                continue;
            if (simulates(&devices[d]))
                setenv("TANDEM_VULKAN_COOPMAT", "plain", 1);
            else
                unsetenv("TANDEM_VULKAN_COOPMAT");
            void *gpu = NULL;
            o.name = argv[1];
            o.validate = validate;
            int r = backend_open(&ffn_vulkan, &m, &o, &budget, &gpu, &err);
            if (r == -ENODEV && validate && strstr(err.text, "VK_LAYER")) {
                puts("the validation layer is not installed: not used");
                validate = o.validate = false;
                r = backend_open(&ffn_vulkan, &m, &o, &budget, &gpu, &err);
            }
            if (r == -ENODEV && d == 0 && t == 3) {
                printf("left out: %s\n", err.text);
                return 77;
            }
            if (r == -EINVAL && o.subgroup && strstr(err.text, "'gpu.subgroup'")) {
                printf("%-8s %-32s refused: %s\n", argv[t], devices[d].name, err.text);
                continue;
            }
            if (r < 0)
                stop(devices[d].name, &err);
            double e = compare(&m, cpu, gpu, devices[d].name);
            bool good = e <= bound_of(argv[t], &devices[d]);
            printf("%-8s %-32s %-10.3g of %.3g%s\n", argv[t], devices[d].name, e, bound_of(argv[t], &devices[d]),
                   good ? "" : "  FAILED");
            fflush(stdout);
            failed += !good;
            ffn_vulkan.close(gpu);
        }
        ffn_cpu.close(cpu);
        model_close(&m);
    }
    return failed ? 1 : 0;
}
