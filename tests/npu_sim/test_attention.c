/* SPDX-License-Identifier: MIT
 * The XRT backend of attention on the simulated NPU: a layer of 27B shape beside the CPU backend, with what it may take of 2 GiB,
 * and ten thousand steps of decode, through which nothing may grow. npu_attention TOKENS...: instead, that many tokens of a prompt
 * through one window layer of 27B shape, with milliseconds a token of both backends; what the simulator takes is no figure of an
 * NPU. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "kernels/quant.h"
#include "kernels/quant_ops.h"
#include "kernels/repack.h"
#include "model/gemma3.h"
#include "model/hparams.h"
#include "model/segment.h"
#include "model/work_plan.h"
#include "npu_worker/arena.h"
#include "npu_worker/attn_backend.h"
#include "npu_worker/kv.h"
#include "npu_worker/xrt_products.h"
#include "proto/budget.h"
#include "proto/chunk.h"
#include "proto/util.h"
#include "tests/npu_sim/rig.h"
#include "tests/npu_sim/sim_files.h"
#include "tests/unit/unit_test.h"

#define POOL (UINT64_C(2) << 30)
#define CHUNK 128
#define STEPS 10000

static const struct hparams large = {.n_layers = 1,
                                     .hidden = 5376,
                                     .ffn = 21504,
                                     .n_heads = 32,
                                     .n_kv_heads = 16,
                                     .head_dim = 128,
                                     .vocab = 262208,
                                     .window = 1024,
                                     .global_every = 6,
                                     .context_max = 131072,
                                     .eps = 1e-6f,
                                     .rope_base_global = 1e6f,
                                     .rope_base_local = 1e4f,
                                     .rope_factor_global = 8,
                                     .attn_scale = 0.0772f};
static const struct hparams small = {.n_layers = 1,
                                     .hidden = 128,
                                     .ffn = 256,
                                     .n_heads = 2,
                                     .n_kv_heads = 1,
                                     .head_dim = 32,
                                     .vocab = 256,
                                     .window = 64,
                                     .global_every = 6,
                                     .context_max = 32768,
                                     .eps = 1e-6f,
                                     .rope_base_global = 1e6f,
                                     .rope_base_local = 1e4f,
                                     .rope_factor_global = 1,
                                     .attn_scale = 0.177f};

struct layer {
    struct hparams h;
    uint8_t types[GEMMA3_LAYER_TENSORS + 3];
    struct segment_layout l;
    uint8_t *data;
};

static uint32_t seed = 7;

static float random_value(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(seed >> 20) / 2048 - 1;
}

/* Matrices whose tiles of sixteen rows are all alike, which no product can notice; norms of one. */
static int make_layer(const struct hparams *h, int type, struct layer *x)
{
    *x = (struct layer){.h = *h};
    for (size_t i = 0; i < sizeof(x->types); i++)
        x->types[i] = (uint8_t)(gemma3_is_norm((enum gemma3_tensor)(i % GEMMA3_LAYER_TENSORS)) ? QUANT_F32 : type);
    CHECK_OK(segment_layout_init(&x->l, h, SEGMENT_ATTN, x->types, err));
    CHECK((x->data = aligned_alloc(4096, util_round_up(x->l.bytes, 4096))));
    memset(x->data, 0, x->l.bytes);
    static const enum gemma3_tensor matrices[] = {GEMMA3_ATTN_Q, GEMMA3_ATTN_K, GEMMA3_ATTN_V, GEMMA3_ATTN_OUTPUT},
                                    norms[] = {GEMMA3_ATTN_NORM, GEMMA3_ATTN_Q_NORM, GEMMA3_ATTN_K_NORM, GEMMA3_POST_ATTN_NORM};
    for (size_t i = 0; i < ARRAY_LEN(matrices); i++) {
        struct gemm_matrix m = segment_matrix(&x->l, x->data, matrices[i]);
        size_t row = quant_row_bytes(type, m.n_cols), tile = repack_tile_bytes(type, m.n_cols);
        uint8_t *rows = malloc(16 * row), *tiles = (uint8_t *)(uintptr_t)m.tiles;
        float *values = malloc(m.n_cols * sizeof(float));
        for (int j = 0; j < 16; j++) {
            for (uint32_t c = 0; c < m.n_cols; c++)
                values[c] = random_value() * 0.05f;
            quant_ops_best()->from_f32(type, values, rows + (size_t)j * row, m.n_cols);
        }
        repack_tile(type, rows, 16, m.n_cols, tiles);
        for (size_t t = 1; t < repack_n_tiles(m.n_rows); t++)
            memcpy(tiles + t * tile, tiles, tile);
        free(rows);
        free(values);
    }
    for (size_t i = 0; i < ARRAY_LEN(norms); i++) {
        float *w = (float *)(uintptr_t)segment_norm(&x->l, x->data, norms[i]);
        uint32_t n = norms[i] == GEMMA3_ATTN_Q_NORM || norms[i] == GEMMA3_ATTN_K_NORM ? h->head_dim : h->hidden;
        for (uint32_t c = 0; c < n; c++)
            w[c] = 1;
    }
    return 0;
}

struct run {
    struct budget budget;
    struct arena *arena;
    struct kv *kv;
    struct attn_open b;
};

static int open_run(const struct layer *x, const char *backend, const char *manifest, uint32_t context, uint32_t chunk,
                    struct run *r)
{
    *r = (struct run){0};
    budget_init(&r->budget, "test", POOL / 5 * 4);
    struct kv_options k = {.hparams = &x->h,
                           .budget = &r->budget,
                           .context = context,
                           .sequences = 1,
                           .chunk_tokens = chunk,
                           .ring_slots = 1,
                           .kv_type = QUANT_F16};
    CHECK_OK(kv_make_arena(&k, work_plan_attn_bytes(&x->h, x->types, chunk, 1, 2), &r->arena, err));
    k.arena = r->arena;
    CHECK_OK(kv_open(&k, &r->kv, err));
    const struct attn_backend_options o = {.hparams = &x->h,
                                           .budget = &r->budget,
                                           .arena = r->arena,
                                           .kv = r->kv,
                                           .types = x->types,
                                           .n_threads = 2,
                                           .chunk_tokens = chunk,
                                           .ring_slots = 1,
                                           .kv_type = QUANT_F16,
                                           .variant = "auto",
                                           .device = {.manifest = manifest, .many = 1, .timeout_ms = 600000}};
    CHECK_OK(attn_open(backend, &o, &r->b, err));
    CHECK_OK(r->b.backend->load_segment(r->b.device, 0, &x->l, x->data, err));
    return 0;
}

static void close_run(struct run *r)
{
    r->b.backend->close(r->b.device);
    kv_close(r->kv);
    arena_close(r->arena);
}

static int step(struct run *r, uint32_t pos, uint32_t n, const float *x, float *h)
{
    static struct chunk c;
    memset(&c.h, 0, sizeof(c.h));
    c.h.n_seqs = 1;
    c.h.n_tokens = n;
    c.seqs[0] = (struct chunk_seq){.committed_pos = pos};
    for (uint32_t i = 0; i < n; i++)
        c.tokens[i] = (struct chunk_token){.pos = pos + i};
    CHECK_OK(r->b.backend->run(r->b.device, 0, &c, x, h, NULL, NULL, err));
    return 0;
}

/* Root mean square of the difference over that of what attention adds to the residual. */
static double nearness(const float *got, const float *want, const float *x, size_t n)
{
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i], w = (double)want[i] - (double)x[i];
        difference += d * d;
        size += w * w;
    }
    double ret = sqrt(difference / size);
    return isnan(ret) ? (double)INFINITY : ret;
}

static int write_operators(const char *folder, const char *const *operators, size_t n, char *manifest, size_t bytes)
{
    CHECK_OK(sim_files_write(folder, operators, n, err));
    snprintf(manifest, bytes, "%s/manifest.yaml", folder);
    return 0;
}

/* Tokens of a prompt through both backends; ms a token of each. */
static int prompt(const char *manifest, const struct layer *x, uint32_t n_tokens, double ms[2], double *ret_error)
{
    size_t width = x->h.hidden;
    float *rows = malloc(CHUNK * width * sizeof(float)),
          *h[2] = {malloc(CHUNK * width * sizeof(float)), malloc(CHUNK * width * sizeof(float))};
    struct run r[2];
    *ret_error = 0;
    if (open_run(x, "cpu", "", n_tokens, CHUNK, &r[0]) || open_run(x, "xrt", manifest, n_tokens, CHUNK, &r[1]))
        return 1;
    ms[0] = ms[1] = 0;
    for (uint32_t pos = 0; pos < n_tokens; pos += CHUNK) {
        uint32_t n = MIN(n_tokens - pos, (uint32_t)CHUNK);
        for (size_t i = 0; i < n * width; i++)
            rows[i] = random_value();
        for (int b = 0; b < 2; b++) {
            uint64_t begin = util_now_ns();
            if (step(&r[b], pos, n, rows, h[b]))
                return 1;
            ms[b] += (double)(util_now_ns() - begin) / 1e6 / n_tokens;
        }
        *ret_error = fmax(*ret_error, nearness(h[1], h[0], rows, n * width));
    }
    CHECK(r[1].budget.total_peak <= POOL / 5 * 4);
    close_run(&r[0]);
    close_run(&r[1]);
    free(rows);
    free(h[0]);
    free(h[1]);
    return 0;
}

static const char *const large_operators[] = {"gemm:128x5376x512:nk", "gemm:128x4096x512:nk"};

static int large_layer(const char *folder)
{
    char manifest[4096];
    struct layer x;
    struct manifest *m = NULL;
    struct xrt_products p;
    uint64_t planned = 0;
    double ms[2], error = 0;
    if (write_operators(folder, large_operators, 2, manifest, sizeof(manifest)) || make_layer(&large, QUANT_Q4_0, &x))
        return 1;
    CHECK_OK(manifest_open(manifest, &m, err));
    CHECK_OK(xrt_products_choose(m, &large, &p, err));
    CHECK_OK(xrt_products_bytes(&p, CHUNK, &planned, err));
    CHECK(p.n_ops == 2 && planned < POOL / 5 * 4);
    if (prompt(manifest, &x, 256, ms, &error))
        return 1;
    fprintf(stderr, "27B layer, 256 tokens: difference %.4f of what attention adds\n", error);
    CHECK(error < 0.03);
    int64_t peak = rig_report(folder, "peak_bytes");
    CHECK(peak > 0 && (uint64_t)peak <= planned && planned - (uint64_t)peak < 16 * XRT_DEVICE_ALIGN);
    CHECK(rig_report(folder, "bytes") == 0);
    manifest_close(m);
    free(x.data);
    return 0;
}

static size_t resident(void)
{
    unsigned long total = 0, pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%lu %lu", &total, &pages) != 2)
        pages = 0;
    if (f)
        fclose(f);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static int long_decode(const char *folder)
{
    static const char *const operators[] = {"gemm:32x128x64:nk"};
    char manifest[4096];
    struct layer x;
    struct run r;
    float rows[128], h[128];
    size_t before = 0;
    uint64_t products = 0, offloaded = 0;
    if (write_operators(folder, operators, 1, manifest, sizeof(manifest)) || make_layer(&small, QUANT_Q8_0, &x) ||
        open_run(&x, "xrt", manifest, STEPS, 8, &r))
        return 1;
    for (int i = 0; i < 128; i++)
        rows[i] = random_value();
    for (uint32_t pos = 0; pos < STEPS; pos++) {
        if (step(&r, pos, 1, rows, h))
            return 1;
        if (pos == STEPS / 10)
            before = resident();
    }
    r.b.backend->count(r.b.device, &products, &offloaded);
    CHECK(products == 4 * STEPS && offloaded == products);
    CHECK(before > 0 && resident() <= before + (256 << 10));
    close_run(&r);
    CHECK(rig_report(folder, "bytes") == 0 && rig_report(folder, "runs") == rig_report(folder, "submits"));
    free(x.data);
    return 0;
}

static void test_large_layer(void **state)
{
    (void)state;
    rig_case(large_layer, "");
}

static void test_long_decode(void **state)
{
    (void)state;
    rig_case(long_decode, "");
}

static char **counts;

static int measure(const char *folder)
{
    char manifest[4096];
    struct layer x;
    if (write_operators(folder, large_operators, 2, manifest, sizeof(manifest)) || make_layer(&large, QUANT_Q4_0, &x))
        return 1;
    for (char **n = counts; *n; n++) {
        double ms[2], error;
        if (prompt(manifest, &x, (uint32_t)atoi(*n), ms, &error))
            return 1;
        printf("%s tokens: processor %.3f ms a token, simulated NPU %.3f, difference %.4f, NPU memory at most %lld bytes\n", *n,
               ms[0], ms[1], error, (long long)rig_report(folder, "peak_bytes"));
        fflush(stdout);
    }
    return 0;
}

static void measure_prompts(void **state)
{
    (void)state;
    rig_case(measure, "");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(test_large_layer), UNIT_TEST(test_long_decode)};
    const struct CMUnitTest figures[] = {UNIT_TEST(measure_prompts)};
    counts = argv + 1;
    return argc == 1 ? cmocka_run_group_tests(tests, NULL, NULL) : cmocka_run_group_tests(figures, NULL, NULL);
}
