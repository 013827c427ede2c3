/* SPDX-License-Identifier: MIT
 * Attention with its products on the simulated NPU, one layer without a pipeline: the shapes of the 27B with prompts of 256 to 8192
 * tokens on a device that has the planned bytes and not one more, products beside sums in double, every allocation refused once,
 * and which product runs where. Weights are synthetic.
 *
 * All of every product is computed for 256 tokens. Longer prompts are about buffers, calls and bytes: there the device computes one
 * corner of each product (NPU_SIM gemm_corner=1), so that they take seconds; `npu_attention 1024 2048 8192` runs them in full. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/quant.h"
#include "kernels/quant_ops.h"
#include "kernels/repack.h"
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
#include "tests/npu_sim/sim.h"
#include "tests/npu_sim/sim_files.h"
#include "tests/unit/unit_test.h"

#define TILES 13 /* different ones of a matrix; no tile of an operator's n rows begins with the same one as its neighbour */
#define OF_VALUE (1.0 / 256)
#define OF_SUM 1e-5
#define THREADS 2
#define POOL (UINT64_C(2) << 30)

static const struct hparams of_27b = {.n_layers = 1,
                                      .hidden = 5376,
                                      .ffn = 21504,
                                      .n_heads = 32,
                                      .n_kv_heads = 16,
                                      .head_dim = 128,
                                      .vocab = 262144,
                                      .window = 1024,
                                      .global_every = 6,
                                      .context_max = 131072,
                                      .eps = 1e-6f,
                                      .rope_base_global = 1e6f,
                                      .rope_base_local = 1e4f,
                                      .rope_factor_global = 8,
                                      .attn_scale = 0.0771517f};
static const char *const operators_27b[] = {"gemm:128x5376x512:nk", "gemm:128x4096x256"};

static const struct hparams small = {.n_layers = 1,
                                     .hidden = 64,
                                     .ffn = 128,
                                     .n_heads = 4,
                                     .n_kv_heads = 2,
                                     .head_dim = 32,
                                     .vocab = 256,
                                     .window = 100,
                                     .global_every = 6,
                                     .context_max = 1 << 20,
                                     .eps = 1e-6f,
                                     .rope_base_global = 1e6f,
                                     .rope_base_local = 1e4f,
                                     .rope_factor_global = 1,
                                     .attn_scale = 0.176f};
static const char *const operators_small[] = {"gemm:32x128x64"};

static const struct hparams middle = {.n_layers = 1,
                                      .hidden = 1024,
                                      .ffn = 2048,
                                      .n_heads = 8,
                                      .n_kv_heads = 4,
                                      .head_dim = 128,
                                      .vocab = 256,
                                      .window = 512,
                                      .global_every = 6,
                                      .context_max = 4096,
                                      .eps = 1e-6f,
                                      .rope_base_global = 1e6f,
                                      .rope_base_local = 1e4f,
                                      .rope_factor_global = 1,
                                      .attn_scale = 0.088f};
static const char *const operators_middle[] = {"gemm:128x1024x512:nk"};

static const struct shape {
    const struct hparams *h;
    const char *const *operators;
    size_t n_operators;
    int type; /* of the matrices */
} big = {&of_27b, operators_27b, ARRAY_LEN(operators_27b), QUANT_Q4_0}, little = {&small, operators_small, 1, QUANT_Q8_0},
  medium = {&middle, operators_middle, 1, QUANT_BF16};

struct layer {
    const struct shape *s;
    uint8_t types[2 * GEMMA3_LAYER_TENSORS];
    struct segment_layout layout;
    struct budget budget;
    struct arena *arena;
    struct kv *kv;
    void *attn, *data;
    float *x, *h;
    struct chunk chunk;
    char manifest[4096];
};

static uint32_t seed = 1;

static float random_value(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(seed >> 20) / 2048 - 1;
}

/* ---- weights ---- */

static void fill_matrix(const struct segment_tensor *t, uint8_t *at)
{
    size_t row = quant_row_bytes(t->type, t->n_cols), tile = repack_tile_bytes(t->type, t->n_cols), n = repack_n_tiles(t->n_rows);
    float *values = malloc(t->n_cols * sizeof(float));
    uint8_t *rows = malloc(REPACK_ROWS * row);
    for (size_t i = 0; i < n; i++) {
        if (i >= TILES) {
            memcpy(at + i * tile, at + i % TILES * tile, tile);
            continue;
        }
        for (size_t r = 0; r < REPACK_ROWS; r++) {
            for (uint32_t c = 0; c < t->n_cols; c++)
                values[c] = random_value();
            quant_ops_best()->from_f32(t->type, values, rows + r * row, t->n_cols);
        }
        repack_tile(t->type, rows, REPACK_ROWS, t->n_cols, at + i * tile);
    }
    free(values);
    free(rows);
}

static void fill(struct layer *l)
{
    l->data = aligned_alloc(4096, l->layout.bytes);
    memset(l->data, 0, l->layout.bytes);
    for (uint32_t i = 0; i < l->layout.n_tensors; i++) {
        const struct segment_tensor *t = &l->layout.tensors[i];
        uint8_t *at = (uint8_t *)l->data + t->offset;
        if (!gemma3_is_norm(t->role)) {
            fill_matrix(t, at);
            continue;
        }
        for (uint32_t c = 0; c < t->n_cols; c++)
            ((float *)(void *)at)[c] = 1 + random_value() / 4;
    }
}

/* ---- a layer that runs ---- */

static const char *variant = "auto";

static int open_backend(struct layer *l, uint32_t chunk_tokens, uint32_t many, struct err *err)
{
    const struct attn_backend_options o = {.hparams = l->s->h,
                                           .budget = &l->budget,
                                           .arena = l->arena,
                                           .kv = l->kv,
                                           .types = l->types,
                                           .n_threads = THREADS,
                                           .chunk_tokens = chunk_tokens,
                                           .ring_slots = 1,
                                           .kv_type = QUANT_F16,
                                           .variant = variant,
                                           .device = {.manifest = l->manifest, .many = many, .timeout_ms = 60000}};
    return attn_xrt.open(&o, &l->attn, err);
}

/* Everything but the backend, in a budget of 2 GiB. */
static int prepare(struct layer *l, const struct shape *s, const char *folder, uint32_t context, uint32_t chunk_tokens,
                   struct err *err)
{
    memset(l, 0, sizeof(*l));
    l->s = s;
    for (int i = 0; i < GEMMA3_LAYER_TENSORS; i++)
        l->types[i] = (uint8_t)(gemma3_is_norm((enum gemma3_tensor)i) ? QUANT_F32 : s->type);
    snprintf(l->manifest, sizeof(l->manifest), "%.4000s/manifest.yaml", folder);
    budget_init(&l->budget, "npu_worker", UINT64_C(2) << 30);
    struct kv_options k = {.hparams = s->h,
                           .budget = &l->budget,
                           .context = context,
                           .sequences = 1,
                           .chunk_tokens = chunk_tokens,
                           .ring_slots = 1,
                           .kv_type = QUANT_F16};
    int r = segment_layout_init(&l->layout, s->h, SEGMENT_ATTN, l->types, err);
    if (r == 0)
        r = budget_take(&l->budget, BUDGET_WEIGHTS, l->layout.bytes, err);
    if (r == 0)
        r = kv_make_arena(&k, POOL, &l->arena, err);
    k.arena = l->arena;
    if (r == 0)
        r = kv_open(&k, &l->kv, err);
    if (r < 0)
        return r;
    fill(l);
    l->x = calloc((size_t)chunk_tokens * s->h->hidden, sizeof(float));
    l->h = calloc((size_t)chunk_tokens * s->h->hidden, sizeof(float));
    for (size_t i = 0; i < (size_t)chunk_tokens * s->h->hidden; i++)
        l->x[i] = random_value();
    return 0;
}

static int open_layer(struct layer *l, const struct shape *s, const char *folder, uint32_t context, uint32_t chunk_tokens,
                      struct err *err)
{
    int r = prepare(l, s, folder, context, chunk_tokens, err);
    if (r == 0)
        r = open_backend(l, chunk_tokens, 1, err);
    return r < 0 ? r : attn_xrt.load_segment(l->attn, 0, &l->layout, l->data, err);
}

static int close_layer(struct layer *l)
{
    attn_xrt.close(l->attn);
    kv_close(l->kv);
    arena_close(l->arena);
    budget_give(&l->budget, BUDGET_WEIGHTS, l->layout.bytes);
    free(l->data);
    free(l->x);
    free(l->h);
    CHECK(l->budget.total == 0);
    return 0;
}

static int run_chunk(struct layer *l, uint32_t pos, uint32_t n, attn_dump_fn dump, struct err *err)
{
    struct chunk *c = &l->chunk;
    memset(&c->h, 0, sizeof(c->h));
    c->h.n_tokens = n;
    c->h.n_seqs = 1;
    c->seqs[0] = (struct chunk_seq){.committed_pos = pos};
    for (uint32_t i = 0; i < n; i++)
        c->tokens[i] = (struct chunk_token){.pos = pos + i};
    return attn_xrt.run(l->attn, 0, c, l->x, l->h, dump, l, err);
}

/* A sequence from its beginning. */
static int run_prompt(struct layer *l, uint32_t n, uint32_t chunk_tokens, attn_dump_fn dump, struct err *err)
{
    int r = 0;
    kv_free(l->kv, 0);
    for (uint32_t at = 0; r == 0 && at < n; at += chunk_tokens)
        r = run_chunk(l, at, MIN(chunk_tokens, n - at), dump, err);
    return r;
}

/* ---- products beside sums in double ---- */

struct sample { /* every so many tokens and rows */
    uint32_t tokens, rows;
};
static struct sample sampled = {1, 1};
static float *inputs; /* of the product to come */
static unsigned n_checked, n_wrong;

static double bf16(float x)
{
    return (double)sim_float(sim_bf16(x));
}

static void check_product(const struct layer *l, enum gemma3_tensor role, const float *y, uint32_t n_tokens)
{
    struct gemm_matrix m = segment_matrix(&l->layout, l->data, role);
    float *row = malloc(m.n_cols * sizeof(float));
    uint8_t *packed = malloc(quant_row_bytes(m.type, m.n_cols));
    for (uint32_t r = 0; r < m.n_rows; r += sampled.rows) {
        size_t tile = r / REPACK_ROWS * repack_tile_bytes(m.type, m.n_cols);
        repack_extract_row(m.type, (const uint8_t *)m.tiles + tile, r % REPACK_ROWS, m.n_cols, packed);
        quant_ops_best()->to_f32(m.type, packed, row, m.n_cols);
        for (uint32_t t = r % sampled.tokens; t < n_tokens; t += sampled.tokens) {
            double sum = 0, magnitude = 0, got = (double)y[(size_t)t * m.n_rows + r];
            for (uint32_t c = 0; c < m.n_cols; c++) {
                double product = bf16(row[c]) * bf16(inputs[(size_t)t * m.n_cols + c]);
                sum += product;
                magnitude += fabs(product);
            }
            n_checked++;
            if (fabs(got - sum) <= OF_VALUE * fabs(sum) + OF_SUM * magnitude)
                continue;
            if (n_wrong++ < 5)
                fprintf(stderr, "tensor %d, token %u, row %u: %.9g, the reference has %.9g\n", (int)role, t, r, got, sum);
        }
    }
    free(row);
    free(packed);
}

static void check_dump(void *ctx, const char *name, const float *rows, uint32_t n_tokens, uint32_t width)
{
    static const struct {
        const char *name;
        enum gemma3_tensor role;
    } products[] = {{"q", GEMMA3_ATTN_Q}, {"k", GEMMA3_ATTN_K}, {"v", GEMMA3_ATTN_V}, {"o", GEMMA3_ATTN_OUTPUT}};
    if (strcmp(name, "in_norm") == 0 || strcmp(name, "heads") == 0) {
        inputs = realloc(inputs, (size_t)n_tokens * width * sizeof(float));
        memcpy(inputs, rows, (size_t)n_tokens * width * sizeof(float));
    }
    for (size_t i = 0; i < ARRAY_LEN(products); i++) {
        if (strcmp(name, products[i].name) == 0)
            check_product(ctx, products[i].role, rows, n_tokens);
    }
}

/* ---- the device's memory ---- */

/* What the plan says for chunks of so many tokens; writes the operators into the test's folder. */
static uint64_t planned(const struct shape *s, uint32_t chunk_tokens)
{
    struct manifest *m;
    struct xrt_products p;
    uint64_t bytes = 0;
    assert_ok(sim_files_write(unit_path(""), s->operators, s->n_operators, err));
    assert_ok(manifest_open(unit_path("manifest.yaml"), &m, err));
    assert_ok(xrt_products_choose(m, s->h, &p, err));
    assert_ok(xrt_products_bytes(&p, chunk_tokens, &bytes, err));
    manifest_close(m);
    return bytes;
}

/* Runs of a chunk: every product in tiles of its operator's rows, every tile for groups of its tokens. */
static uint64_t runs_27b(uint32_t groups)
{
    return (4096 / 512 + 2 * (2048 / 512) + 5376 / 256) * (uint64_t)groups;
}

#define CHUNK_27B 128

static int exact_27b(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    uint64_t products, offloaded;
    sampled = (struct sample){23, 29};
    CHECK_OK(open_layer(l, &big, folder, 256, CHUNK_27B, err));
    CHECK_OK(run_prompt(l, 256, CHUNK_27B, check_dump, err));
    CHECK(n_wrong == 0 && n_checked > 4000);
    attn_xrt.count(l->attn, &products, &offloaded);
    CHECK(products == 8 && offloaded == 8);
    if (close_layer(l))
        return 1;
    CHECK(rig_report(folder, "runs") == (int64_t)(2 * runs_27b(1)));
    free(inputs);
    free(l);
    return 0;
}

/* Prompts one after the other: none takes more than the first, of the budget or of the device. */
static int long_27b(const char *folder)
{
    static const uint32_t lengths[] = {256, 1024, 2048, TANDEM_LONGEST};
    struct layer *l = calloc(1, sizeof(*l));
    CHECK_OK(open_layer(l, &big, folder, 8192, CHUNK_27B, err));
    uint64_t opened = l->budget.total, tokens = 0;
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        CHECK_OK(run_prompt(l, lengths[i], CHUNK_27B, NULL, err));
        for (uint32_t j = 0; j < l->s->h->hidden; j++)
            CHECK(isfinite(l->h[j]));
        CHECK(kv_pages_used(l->kv) <= (1024 + CHUNK_27B) / WORK_PLAN_PAGE_POSITIONS + 1); /* the window's, not the prompt's */
        tokens += lengths[i];
    }
    CHECK(l->budget.total_peak == opened && opened <= (UINT64_C(2) << 30) / 5 * 4);
    uint64_t device = l->budget.peak[BUDGET_DEVICE];
    if (close_layer(l))
        return 1;
    int64_t peak = rig_report(folder, "peak_bytes");
    CHECK(peak > 0 && (uint64_t)peak <= device && device - (uint64_t)peak <= 16 * XRT_DEVICE_ALIGN);
    CHECK(rig_report(folder, "bytes") == 0);
    CHECK(rig_report(folder, "runs") == (int64_t)(tokens / CHUNK_27B * runs_27b(1)));
    CHECK(rig_report(folder, "buffers") == 2 * (1 + 1 + 2 + 2 + 1)); /* of each operator: instructions, a, two b, two c, a dummy */
    free(l);
    return 0;
}

static void test_27b(void **state)
{
    (void)state;
    char faults[96];
    uint64_t bytes = planned(&big, CHUNK_27B);
    snprintf(faults, sizeof(faults), "memory=%llu", (unsigned long long)bytes);
    rig_case(exact_27b, faults);
    snprintf(faults, sizeof(faults), "memory=%llu,gemm_corner=1", (unsigned long long)bytes);
    rig_case(long_27b, faults);
}

/* ---- refusals ---- */

/* The n-th allocation from the budget is refused, for every n; nothing is left of any attempt, and the last one computes. */
static int refused(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    int attempts = 0, r = -ENOMEM;
    CHECK_OK(prepare(l, &little, folder, 256, 32, err));
    uint64_t before = l->budget.total;
    while (r < 0) {
        struct err err = {0};
        l->budget.fail_after = attempts++;
        r = open_backend(l, 32, 1, &err);
        l->budget.fail_after = -1;
        CHECK(r == 0 || (r == -ENOMEM && err.text[0] && l->budget.total == before));
    }
    CHECK(attempts >= 4); /* device, working memory of the products, scratch of the rest; none */
    CHECK_OK(attn_xrt.load_segment(l->attn, 0, &l->layout, l->data, err));
    CHECK_OK(run_prompt(l, 100, 32, check_dump, err));
    CHECK(n_wrong == 0 && n_checked > 10000);
    free(inputs);
    return close_layer(l);
}

/* A device with less memory than planned. */
static int narrow(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    CHECK_OK(prepare(l, &little, folder, 256, 32, err));
    CHECK_ERR(open_backend(l, 32, 1, err), -ENOMEM, "out of NPU memory");
    CHECK(!l->attn);
    if (close_layer(l))
        return 1;
    CHECK(rig_report(folder, "bytes") == 0);
    return 0;
}

static void test_refusals(void **state)
{
    (void)state;
    uint64_t bytes = planned(&little, 32);
    rig_case(refused, "");
    for (uint64_t room = 1; room < bytes / 2; room += bytes / 8) {
        char faults[64];
        snprintf(faults, sizeof(faults), "memory=%llu", (unsigned long long)room);
        rig_case(narrow, faults);
    }
}

/* ---- where a product runs ---- */

static int counts(struct layer *l, uint32_t n, uint64_t *ret_offloaded, struct err *err)
{
    uint64_t before, products;
    attn_xrt.count(l->attn, &products, &before);
    kv_free(l->kv, 0);
    int r = run_chunk(l, 0, n, NULL, err);
    attn_xrt.count(l->attn, &products, ret_offloaded);
    *ret_offloaded -= before;
    return r;
}

/* Below npu.many the processor computes what it computes without a device, bit for bit. */
static int few(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    void *cpu = NULL;
    float other[5 * 64];
    uint64_t n = 0;
    CHECK_OK(prepare(l, &little, folder, 256, 32, err));
    CHECK_OK(open_backend(l, 32, 6, err));
    CHECK_OK(attn_xrt.load_segment(l->attn, 0, &l->layout, l->data, err));
    CHECK_OK(counts(l, 6, &n, err));
    CHECK(n == ATTN_PRODUCTS);
    CHECK_OK(counts(l, 5, &n, err));
    CHECK(n == 0);
    memcpy(other, l->h, sizeof(other));
    attn_xrt.close(l->attn);
    l->attn = NULL;
    const struct attn_backend_options o = {.hparams = l->s->h,
                                           .budget = &l->budget,
                                           .arena = l->arena,
                                           .kv = l->kv,
                                           .types = l->types,
                                           .n_threads = 1,
                                           .chunk_tokens = 32,
                                           .ring_slots = 1,
                                           .kv_type = QUANT_F16,
                                           .variant = "auto"};
    CHECK_OK(attn_cpu.open(&o, &cpu, err));
    CHECK_OK(attn_cpu.load_segment(cpu, 0, &l->layout, l->data, err));
    kv_free(l->kv, 0);
    struct chunk *c = &l->chunk; /* as `counts` left it */
    CHECK_OK(attn_cpu.run(cpu, 0, c, l->x, l->h, NULL, NULL, err));
    CHECK(memcmp(other, l->h, sizeof(other)) == 0);
    attn_cpu.close(cpu);
    return close_layer(l);
}

/* An operator whose k is too small for o: q, k and v on the device, o on the processor. */
static int some(const char *folder)
{
    static const char *const operators[] = {"gemm:32x64x64"};
    struct layer *l = calloc(1, sizeof(*l));
    uint64_t n = 0;
    CHECK_OK(sim_files_write(folder, operators, 1, err));
    CHECK_OK(open_layer(l, &little, folder, 256, 32, err));
    CHECK_OK(counts(l, 32, &n, err));
    CHECK(n == 3);
    return close_layer(l);
}

/* Measured: a device that takes 20 ms for a run never pays, and what was tried for it is not counted. */
static int slow(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    uint64_t products = 1, n = 1;
    CHECK_OK(prepare(l, &little, folder, 256, 32, err));
    CHECK_OK(open_backend(l, 32, 0, err));
    CHECK_OK(attn_xrt.load_segment(l->attn, 0, &l->layout, l->data, err));
    attn_xrt.count(l->attn, &products, &n);
    CHECK(products == 0 && n == 0);
    CHECK_OK(counts(l, 32, &n, err));
    CHECK(n == 0);
    if (close_layer(l))
        return 1;
    CHECK(rig_report(folder, "runs") > 0); /* it was asked */
    return 0;
}

/* Measured: a device that computes next to nothing, beside the plainest kernels of the processor. The margin is some thirtyfold. */
static int fast(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    uint64_t n = 0;
    variant = "ref";
    CHECK_OK(prepare(l, &medium, folder, 256, CHUNK_27B, err));
    CHECK_OK(open_backend(l, CHUNK_27B, 0, err));
    CHECK_OK(attn_xrt.load_segment(l->attn, 0, &l->layout, l->data, err));
    CHECK_OK(counts(l, CHUNK_27B, &n, err));
    CHECK(n == ATTN_PRODUCTS);
    return close_layer(l);
}

static void test_where(void **state)
{
    (void)state;
    planned(&little, 32);
    rig_case(few, "");
    rig_case(some, "");
    planned(&little, 32);
    rig_case(slow, "delay_us=20000");
    planned(&medium, CHUNK_27B);
    rig_case(fast, "gemm_corner=1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(test_27b), UNIT_TEST(test_refusals), UNIT_TEST(test_where)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
