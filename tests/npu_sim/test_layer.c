/* SPDX-License-Identifier: MIT
 * Attention with its products on the simulated NPU, one layer without a pipeline: the shapes of the 27B with prompts of 256 to 8192
 * tokens on a device that has the planned bytes and not one more, products beside sums in double and a layer beside the
 * processor's, ten thousand steps of decode through which nothing grows, every allocation refused once, and which product runs
 * where.
 *
 * All of every product is computed for 256 tokens. Longer prompts are about buffers, calls and bytes: there the device computes one
 * corner of each product (NPU_SIM corner=1), so that they take seconds. npu_xrt_layer TOKENS...: instead, that many tokens of
 * a prompt through one window layer of 27B shape, computed in full, with milliseconds a token on the processor and on the
 * simulator; what the simulator takes is no figure of an NPU. npu_xrt_layer decode: ten thousand steps of decode in that shape. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "kernels/quant.h"
#include "kernels/quant_ops.h"
#include "kernels/repack.h"
#include "model/work_plan.h"
#include "npu_worker/kv.h"
#include "npu_worker/xrt_products.h"
#include "proto/util.h"
#include "tests/npu_sim/layer.h"
#include "tests/npu_sim/rig.h"
#include "tests/npu_sim/sim_files.h"
#include "tests/unit/unit_test.h"

#define OF_VALUE (1.0 / 256)
#define OF_SUM 1e-5
#define STEPS 10000

/* ---- products beside sums in double ---- */

struct sample { /* every so many tokens and rows */
    uint32_t tokens, rows;
};
static struct sample sampled = {1, 1};
static float *inputs; /* of the product to come */
static unsigned n_checked, n_wrong;

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
                double product = rig_bf16(row[c]) * rig_bf16(inputs[(size_t)t * m.n_cols + c]);
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
static uint64_t planned(const struct layer_shape *s, uint32_t chunk_tokens)
{
    struct manifest *m;
    struct xrt_products p;
    uint64_t bytes = 0;
    assert_ok(sim_files_write(unit_path(""), s->operators, s->n_operators, err));
    assert_ok(manifest_open(unit_path("manifest.yaml"), &m, err));
    assert_ok(xrt_products_choose(m, s->h, 1, &p, err));
    assert_ok(xrt_products_bytes(&p, chunk_tokens, &bytes, err));
    manifest_close(m);
    return bytes;
}

static const struct layer_shape *shape_27b;

static uint64_t attends(const struct layer_shape *s) /* 1: on the NPU as well */
{
    return strncmp(s->operators[s->n_operators - 1], "attention", 9) == 0;
}

/* Runs of a chunk: every product in tiles of its operator's rows, and attention; the operators take a whole chunk. */
static uint64_t runs_27b(void)
{
    return 4096 / 512 + 2 * (2048 / 512) + 5376 / 256 + attends(shape_27b);
}

/* Root mean square of the difference between other and l->h, over that of what attention adds to the residual. */
static double difference(const struct layer *l, const float *other, uint32_t n_tokens)
{
    double apart = 0, size = 0;
    for (size_t i = 0; i < (size_t)n_tokens * l->s->h->hidden; i++) {
        double d = (double)other[i] - (double)l->h[i], w = (double)l->h[i] - (double)l->x[i];
        apart += d * d;
        size += w * w;
    }
    double ret = sqrt(apart / size);
    return isnan(ret) ? (double)INFINITY : ret;
}

static int exact_27b(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    uint64_t products, offloaded;
    sampled = (struct sample){23, 29};
    CHECK_OK(layer_open(l, shape_27b, folder, 256, LAYER_CHUNK_27B, err));
    CHECK_OK(layer_prompt(l, 256, LAYER_CHUNK_27B, check_dump, err));
    CHECK(n_wrong == 0 && n_checked > 4000);
    attn_xrt.count(l->attn, &products, &offloaded);
    CHECK(products == 2 * (ATTN_PRODUCTS + attends(shape_27b)) && offloaded == products);
    float *device = l->h;
    l->h = calloc((size_t)LAYER_CHUNK_27B * l->s->h->hidden, sizeof(float));
    layer_close_backend(l);
    CHECK_OK(layer_open_backend(l, &attn_cpu, LAYER_CHUNK_27B, 0, err));
    CHECK_OK(layer_load(l, err));
    CHECK_OK(layer_prompt(l, 256, LAYER_CHUNK_27B, NULL, err));
    double error = difference(l, device, LAYER_CHUNK_27B);
    fprintf(stderr, "27B layer, 256 tokens%s: difference %.4f of what attention adds\n",
            attends(shape_27b) ? ", attention there, too" : "", error);
    CHECK(error > 0 && error < 0.03);
    free(device);
    if (layer_close(l))
        return 1;
    CHECK(rig_report(folder, "runs") == (int64_t)(2 * runs_27b()));
    free(inputs);
    free(l);
    return 0;
}

/* Prompts one after the other: none takes more than the first, of the budget or of the device. */
static int long_27b(const char *folder)
{
    static const uint32_t prompts[] = {256, 1024, 2048, TANDEM_LONGEST};
    struct layer *l = calloc(1, sizeof(*l));
    CHECK_OK(layer_open(l, shape_27b, folder, 8192, LAYER_CHUNK_27B, err));
    uint64_t opened = l->budget.total, tokens = 0;
    for (size_t i = 0; i < ARRAY_LEN(prompts); i++) {
        CHECK_OK(layer_prompt(l, prompts[i], LAYER_CHUNK_27B, NULL, err));
        for (uint32_t j = 0; j < l->s->h->hidden; j++)
            CHECK(isfinite(l->h[j]));
        CHECK(kv_pages_used(l->kv) <= (1024 + LAYER_CHUNK_27B) / WORK_PLAN_PAGE_POSITIONS + 1); /* the window's, not the prompt's */
        tokens += prompts[i];
    }
    CHECK(l->budget.total_peak == opened && opened <= (UINT64_C(2) << 30) / 5 * 4);
    uint64_t device = l->budget.peak[BUDGET_DEVICE];
    if (layer_close(l))
        return 1;
    int64_t peak = rig_report(folder, "peak_bytes");
    CHECK(peak > 0 && (uint64_t)peak <= device && device - (uint64_t)peak <= 16 * XRT_DEVICE_ALIGN);
    CHECK(rig_report(folder, "bytes") == 0);
    CHECK(rig_report(folder, "runs") == (int64_t)(tokens / LAYER_CHUNK_27B * runs_27b()));
    /* of each product's operator: instructions, a, two b, two c, a dummy; of attention's: instructions, two of each argument */
    CHECK(rig_report(folder, "buffers") == 2 * (1 + 1 + 2 + 2 + 1) + (attends(shape_27b) ? 1 + 2 * 5 : 0));
    free(l);
    return 0;
}

static void test_27b(void **state)
{
    (void)state;
    static const struct layer_shape *const shapes[] = {&layer_27b, &layer_27b_attends};
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
        char faults[96];
        shape_27b = shapes[i];
        uint64_t bytes = planned(shape_27b, LAYER_CHUNK_27B);
        snprintf(faults, sizeof(faults), "memory=%llu", (unsigned long long)bytes);
        rig_case(exact_27b, faults);
        snprintf(faults, sizeof(faults), "memory=%llu,corner=1", (unsigned long long)bytes);
        rig_case(long_27b, faults);
    }
}

/* ---- decode ---- */

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

/* Nothing grows once the window is full: neither the process, nor the pool, nor what the device holds. */
static const struct layer_shape *decoded;

static int long_decode(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    uint64_t products = 0, offloaded = 0, peak = 0;
    size_t before = 0;
    struct arena_stats s;
    CHECK_OK(layer_open(l, decoded, folder, STEPS, 8, err));
    for (uint32_t pos = 0; pos < STEPS; pos++) {
        CHECK_OK(layer_chunk(l, pos, 1, NULL, err));
        if (pos != STEPS / 10)
            continue;
        before = resident();
        arena_stats(l->arena, &s);
        peak = s.all.peak;
    }
    arena_stats(l->arena, &s);
    CHECK(peak > 0 && s.all.peak == peak);
    CHECK(before > 0 && resident() <= before + (256 << 10));
    attn_xrt.count(l->attn, &products, &offloaded);
    CHECK(products == (ATTN_PRODUCTS + attends(decoded)) * STEPS && offloaded == products);
    if (layer_close(l))
        return 1;
    CHECK(rig_report(folder, "bytes") == 0 && rig_report(folder, "runs") == rig_report(folder, "submits"));
    free(l);
    return 0;
}

static void test_decode(void **state)
{
    (void)state;
    static const struct layer_shape *const shapes[] = {&layer_little, &layer_little_attends};
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
        decoded = shapes[i];
        planned(decoded, 8);
        rig_case(long_decode, "");
    }
}

/* ---- refusals ---- */

/* The n-th allocation from the budget is refused, for every n; nothing is left of any attempt, and the last one computes. */
static int refused(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    int attempts = 0, r = -ENOMEM;
    CHECK_OK(layer_prepare(l, &layer_little_attends, folder, 256, 32, err));
    uint64_t before = l->budget.total;
    while (r < 0) {
        struct err err = {0};
        l->budget.fail_after = attempts++;
        r = layer_open_backend(l, &attn_xrt, 32, 1, &err);
        l->budget.fail_after = -1;
        CHECK(r == 0 || (r == -ENOMEM && err.text[0] && l->budget.total == before));
    }
    CHECK(attempts >= 4); /* device, working memory of the products, scratch of the rest; none */
    CHECK_OK(layer_load(l, err));
    CHECK_OK(layer_prompt(l, 100, 32, check_dump, err));
    CHECK(n_wrong == 0 && n_checked > 10000);
    free(inputs);
    return layer_close(l);
}

/* A device with less memory than planned. */
static int narrow(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    CHECK_OK(layer_prepare(l, &layer_little_attends, folder, 256, 32, err));
    CHECK_ERR(layer_open_backend(l, &attn_xrt, 32, 1, err), -ENOMEM, "out of NPU memory");
    CHECK(!l->attn);
    if (layer_close(l))
        return 1;
    CHECK(rig_report(folder, "bytes") == 0);
    return 0;
}

static void test_refusals(void **state)
{
    (void)state;
    uint64_t bytes = planned(&layer_little_attends, 32);
    rig_case(refused, "");
    for (uint64_t room = 1; room < bytes - 16 * XRT_DEVICE_ALIGN; room += bytes / 12) {
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
    int r = layer_chunk(l, 0, n, NULL, err);
    attn_xrt.count(l->attn, &products, ret_offloaded);
    *ret_offloaded -= before;
    return r;
}

/* Below npu.many the processor computes what it computes without a device, bit for bit. */
static int few(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    float other[5 * 64];
    uint64_t n = 0;
    CHECK_OK(layer_prepare(l, &layer_little_attends, folder, 256, 32, err));
    CHECK_OK(layer_open_backend(l, &attn_xrt, 32, 6, err));
    CHECK_OK(layer_load(l, err));
    CHECK_OK(counts(l, 6, &n, err));
    CHECK(n == ATTN_PRODUCTS + 1);
    CHECK_OK(counts(l, 5, &n, err));
    CHECK(n == 0);
    memcpy(other, l->h, sizeof(other));
    layer_close_backend(l);
    CHECK_OK(layer_open_backend(l, &attn_cpu, 32, 0, err));
    CHECK_OK(layer_load(l, err));
    CHECK_OK(layer_prompt(l, 5, 32, NULL, err));
    CHECK(memcmp(other, l->h, sizeof(other)) == 0);
    return layer_close(l);
}

/* An operator whose k is too small for o: q, k and v on the device, o on the processor. */
static int some(const char *folder)
{
    static const char *const operators[] = {"gemm:32x64x64"};
    struct layer *l = calloc(1, sizeof(*l));
    uint64_t n = 0;
    CHECK_OK(sim_files_write(folder, operators, 1, err));
    CHECK_OK(layer_open(l, &layer_little, folder, 256, 32, err));
    CHECK_OK(counts(l, 32, &n, err));
    CHECK(n == 3);
    return layer_close(l);
}

/* Measured: a device that takes 20 ms for a run never pays, and what was tried for it is not counted. */
static int slow(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    uint64_t products = 1, n = 1;
    CHECK_OK(layer_prepare(l, &layer_little_attends, folder, 256, 32, err));
    CHECK_OK(layer_open_backend(l, &attn_xrt, 32, 0, err));
    CHECK(kv_pages_used(l->kv) == 0); /* what attention was measured over */
    CHECK_OK(layer_load(l, err));
    attn_xrt.count(l->attn, &products, &n);
    CHECK(products == 0 && n == 0);
    CHECK_OK(counts(l, 32, &n, err));
    CHECK(n == 0);
    if (layer_close(l))
        return 1;
    CHECK(rig_report(folder, "runs") > 0); /* it was asked */
    return 0;
}

/* Measured: a device that computes next to nothing, beside the plainest kernels of the processor. The margin is some thirtyfold. */
static int fast(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    uint64_t n = 0;
    CHECK_OK(layer_prepare(l, &layer_medium_attends, folder, 256, LAYER_CHUNK_27B, err));
    l->variant = "ref";
    CHECK_OK(layer_open_backend(l, &attn_xrt, LAYER_CHUNK_27B, 0, err));
    CHECK_OK(layer_load(l, err));
    CHECK_OK(counts(l, LAYER_CHUNK_27B, &n, err));
    CHECK(n == ATTN_PRODUCTS + 1);
    return layer_close(l);
}

static void test_where(void **state)
{
    (void)state;
    planned(&layer_little_attends, 32);
    rig_case(few, "");
    rig_case(some, "");
    planned(&layer_little_attends, 32);
    rig_case(slow, "delay_us=20000");
    planned(&layer_medium_attends, LAYER_CHUNK_27B);
    rig_case(fast, "corner=1");
}

/* ---- figures ---- */

static char **words;

static int time_prompt(struct layer *l, const struct attn_backend *backend, uint32_t n, double *ret_ms, struct err *err)
{
    int r = layer_open_backend(l, backend, LAYER_CHUNK_27B, 1, err);
    if (r == 0)
        r = layer_load(l, err);
    if (r == 0)
        r = layer_prompt(l, LAYER_CHUNK_27B, LAYER_CHUNK_27B, NULL, err); /* pages that were never touched */
    uint64_t begin = util_now_ns();
    if (r == 0)
        r = layer_prompt(l, n, LAYER_CHUNK_27B, NULL, err);
    *ret_ms = (double)(util_now_ns() - begin) / 1e6 / n;
    layer_close_backend(l);
    return r;
}

/* The rows of the last chunk beside the processor's. */
static int time_simulator(struct layer *l, const char *folder, uint32_t n, struct err *err)
{
    float *other = l->h;
    double ms;
    l->h = calloc((size_t)LAYER_CHUNK_27B * l->s->h->hidden, sizeof(float));
    int r = time_prompt(l, &attn_xrt, n, &ms, err);
    printf(", simulated NPU %.3f, difference %.4f, NPU memory at most %lld bytes", ms,
           difference(l, other, (n - 1) % LAYER_CHUNK_27B + 1), (long long)rig_report(folder, "peak_bytes"));
    free(other);
    return r;
}

static int measure(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    bool alone = strcmp(words[0], "processor") == 0;
    CHECK_OK(layer_prepare(l, &layer_27b, folder, 1 << 17, LAYER_CHUNK_27B, err));
    for (char **word = words + alone; *word; word++) {
        double ms;
        uint32_t n = (uint32_t)atoi(*word);
        CHECK(n > 0 && n <= 1 << 17);
        CHECK_OK(time_prompt(l, &attn_cpu, n, &ms, err));
        printf("%u tokens: processor %.3f ms a token", n, ms);
        if (!alone)
            CHECK_OK(time_simulator(l, folder, n, err));
        putchar('\n');
        fflush(stdout);
    }
    return layer_close(l);
}

/* As long_decode, in the shape of 27B: a chunk of a prompt through the NPU, then tokens one by one on the processor. */
static int decode_27b(const char *folder)
{
    struct layer *l = calloc(1, sizeof(*l));
    size_t before = 0;
    struct arena_stats s;
    uint64_t peak = 0;
    CHECK_OK(layer_prepare(l, &layer_27b, folder, STEPS + 8, 8, err));
    CHECK_OK(layer_open_backend(l, &attn_xrt, 8, 8, err));
    CHECK_OK(layer_load(l, err));
    CHECK_OK(layer_chunk(l, 0, 8, NULL, err));
    uint64_t products = 0, offloaded = 0;
    attn_xrt.count(l->attn, &products, &offloaded);
    CHECK(products == ATTN_PRODUCTS && offloaded == products);
    for (uint32_t pos = 8; pos < STEPS + 8; pos++) {
        CHECK_OK(layer_chunk(l, pos, 1, NULL, err));
        if (pos % (STEPS / 10) == 8) {
            arena_stats(l->arena, &s);
            printf("position %u: resident %.2f MiB, pool at most %.2f\n", pos, (double)resident() / 0x1p20,
                   (double)s.all.peak / 0x1p20);
            fflush(stdout);
        }
        if (pos == STEPS / 5 + 8) { /* the window of 1024 is full */
            before = resident();
            peak = s.all.peak;
        }
    }
    arena_stats(l->arena, &s);
    CHECK(s.all.peak == peak && resident() <= before + (1 << 20));
    if (layer_close(l))
        return 1;
    CHECK(rig_report(folder, "bytes") == 0 && rig_report(folder, "runs") > 0);
    free(l);
    return 0;
}

static void measure_prompts(void **state)
{
    (void)state;
    bool decode = strcmp(words[0], "decode") == 0;
    planned(&layer_27b, decode ? 8 : LAYER_CHUNK_27B);
    rig_case(decode ? decode_27b : measure, "");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(test_27b), UNIT_TEST(test_decode), UNIT_TEST(test_refusals),
                                       UNIT_TEST(test_where)};
    const struct CMUnitTest figures[] = {UNIT_TEST(measure_prompts)};
    words = argv + 1;
    return argc == 1 ? cmocka_run_group_tests(tests, NULL, NULL) : cmocka_run_group_tests(figures, NULL, NULL);
}
