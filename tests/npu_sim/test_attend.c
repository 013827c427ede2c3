/* SPDX-License-Identifier: MIT
 * Attention over a paged cache by operators of the manifest, on the simulated NPU, beside sums in double over the same values
 * rounded to bf16: all types of cache, windows and none, queries that fill no group, begin anywhere and see all that there is room
 * for. Operators that cannot be driven are told; a device that fails does so in the middle. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/pool.h"
#include "kernels/quant.h"
#include "npu_worker/arena.h"
#include "npu_worker/attn_backend.h"
#include "npu_worker/xrt_attend.h"
#include "proto/util.h"
#include "tests/npu_sim/rig.h"
#include "tests/unit/unit_test.h"

#define END 300u /* positions of the sequence */
#define PAGES ((END + ATTN_PAGE - 1) / ATTN_PAGE)
#define POOL (UINT64_C(8) << 20)
#define THREADS 2
#define OF_VALUE (1.0 / 256)
#define OF_SUM 1e-5

struct bench {
    struct rig rig;
    struct pool *pool;
    struct arena *arena;
    struct xrt_attend *a;
    const struct manifest_operator *op;
    struct attn_shape shape;
    void *scratch, *pages[PAGES];
    float *q, *out, *k, *v; /* q, out: [END][n_heads][head_dim]; as stored: [n_kv_heads][END][head_dim] */
};

static float *randoms(size_t n)
{
    float *x = malloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        x[i] = rig_random();
    return x;
}

/* What the cache holds, by position; of positions that were never stored it holds no numbers. */
static void fill_cache(struct bench *b)
{
    uint32_t d = b->shape.head_dim, kv = b->shape.n_kv_heads;
    float *k = randoms((size_t)kv * d), *v = randoms((size_t)kv * d), *wide = malloc((size_t)2 * ATTN_PAGE * d * sizeof(float));
    b->k = malloc((size_t)kv * END * d * sizeof(float));
    b->v = malloc((size_t)kv * END * d * sizeof(float));
    for (uint32_t p = 0; p < PAGES; p++) {
        b->pages[p] = aligned_alloc(64, util_round_up(attn_page_bytes(&b->shape), 64));
        memset(b->pages[p], 0xff, attn_page_bytes(&b->shape));
    }
    for (uint32_t i = 0; i < END; i++) {
        for (uint32_t x = 0; x < kv * d; x++) {
            k[x] = rig_random();
            v[x] = rig_random();
        }
        attn_ref.store(&b->shape, b->pages[i / ATTN_PAGE], i % ATTN_PAGE, k, v);
    }
    for (uint32_t h = 0; h < kv; h++) {
        for (uint32_t i = 0; i < END; i++) {
            attn_ref.load(&b->shape, b->pages[i / ATTN_PAGE], h, wide);
            for (uint32_t x = 0; x < d; x++) {
                b->k[(h * END + i) * d + x] = wide[x * ATTN_PAGE + i % ATTN_PAGE];
                b->v[(h * END + i) * d + x] = wide[(ATTN_PAGE + i % ATTN_PAGE) * d + x];
            }
        }
    }
    free(k);
    free(v);
    free(wide);
}

static int open_bench(struct bench *b, const char *folder, const char *operator, int kv_type, unsigned timeout_ms)
{
    struct xrt_device_stats s;
    struct arena_stats in_pool;
    uint64_t bytes = 0;
    memset(b, 0, sizeof(*b));
    CHECK_OK(rig_open(&b->rig, folder, &operator, 1, err));
    CHECK(pool_open(THREADS, &b->pool) == 0);
    CHECK_OK(arena_open(POOL, 8, &b->arena, err));
    const struct manifest_operator *op = b->op = manifest_get(b->rig.manifest, 0);
    b->shape = (struct attn_shape){.n_heads = op->dims[MANIFEST_HEADS],
                                   .n_kv_heads = op->dims[MANIFEST_KV_HEADS],
                                   .head_dim = op->dims[MANIFEST_HEAD_DIM],
                                   .window = op->dims[MANIFEST_WINDOW],
                                   .scale = op->scale,
                                   .kv_type = kv_type};
    b->scratch = aligned_alloc(64, util_round_up(xrt_attend_scratch_bytes(op, THREADS), 64));
    const struct xrt_operator_options o = {.ops = b->rig.ops,
                                           .device = b->rig.device,
                                           .op = op,
                                           .pool = b->pool,
                                           .arena = b->arena,
                                           .scratch = b->scratch,
                                           .timeout_ms = timeout_ms};
    CHECK_OK(xrt_attend_bytes(op, &bytes, err));
    CHECK_OK(xrt_attend_open(&o, &b->shape, &attn_ref, &b->a, err));
    b->rig.ops->stats(b->rig.device, &s);
    CHECK(s.bytes <= bytes && bytes - s.bytes <= 16 * XRT_DEVICE_ALIGN);
    arena_stats(b->arena, &in_pool);
    CHECK(in_pool.used[ARENA_INSTRUCTIONS] > 0 && in_pool.used[ARENA_TILES] + in_pool.used[ARENA_INSTRUCTIONS] == bytes);
    fill_cache(b);
    b->q = randoms((size_t)END * b->shape.n_heads * b->shape.head_dim);
    b->out = malloc((size_t)END * b->shape.n_heads * b->shape.head_dim * sizeof(float));
    return 0;
}

static int close_bench(struct bench *b)
{
    struct xrt_device_stats s;
    struct arena_stats in_pool;
    xrt_attend_close(b->a);
    b->rig.ops->stats(b->rig.device, &s);
    CHECK(s.bytes == 0); /* nothing leaked on the device */
    arena_stats(b->arena, &in_pool);
    CHECK(in_pool.all.used == 0);
    arena_close(b->arena);
    pool_close(b->pool);
    rig_close(&b->rig);
    for (uint32_t p = 0; p < PAGES; p++)
        free(b->pages[p]);
    free(b->scratch);
    free(b->q);
    free(b->out);
    free(b->k);
    free(b->v);
    return 0;
}

/* One query's head, in double. */
static int check_head(const struct bench *b, uint32_t pos, uint32_t h, const float *q, const float *out)
{
    const struct attn_shape *s = &b->shape;
    uint32_t d = s->head_dim, kv = h / (s->n_heads / s->n_kv_heads);
    uint32_t from = s->window && pos + 1 > s->window ? pos + 1 - s->window : 0;
    double p[END], sum = 0, top = -INFINITY;
    for (uint32_t i = from; i <= pos; i++) {
        p[i] = 0;
        for (uint32_t x = 0; x < d; x++)
            p[i] += rig_bf16(q[x]) * rig_bf16(b->k[(kv * END + i) * d + x]);
        p[i] *= (double)s->scale;
        top = fmax(top, p[i]);
    }
    for (uint32_t i = from; i <= pos; i++)
        sum += p[i] = exp(p[i] - top);
    for (uint32_t x = 0; x < d; x++) {
        double want = 0, magnitude = 0, got = (double)out[x];
        for (uint32_t i = from; i <= pos; i++) {
            double part = p[i] / sum * rig_bf16(b->v[(kv * END + i) * d + x]);
            want += part;
            magnitude += fabs(part);
        }
        if (!(fabs(got - want) <= OF_VALUE * fabs(want) + OF_SUM * magnitude)) {
            fprintf(stderr, "position %u, head %u, value %u: %.9g, the reference has %.9g\n", pos, h, x, got, want);
            return 1;
        }
    }
    return 0;
}

static int check(struct bench *b, uint32_t pos, uint32_t n)
{
    size_t width = (size_t)b->shape.n_heads * b->shape.head_dim;
    void *seen[PAGES] = {NULL}; /* pages below every window are gone */
    uint32_t from = b->shape.window && pos + 1 > b->shape.window ? pos + 1 - b->shape.window : 0;
    for (uint32_t p = from / ATTN_PAGE; p <= (pos + n - 1) / ATTN_PAGE; p++)
        seen[p] = b->pages[p];
    memset(b->out, 0xff, END * width * sizeof(float));
    const struct attn_queries x = {.pos = pos, .n = n, .pages = seen, .q = b->q, .out = b->out};
    CHECK(xrt_attend_fits(b->op, pos, n));
    CHECK_OK(xrt_attend_run(b->a, &x, err));
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t h = 0; h < b->shape.n_heads; h++) {
            size_t at = i * width + (size_t)h * b->shape.head_dim;
            if (check_head(b, pos + i, h, b->q + at, b->out + at))
                return 1;
        }
    }
    CHECK(n == END || isnan(b->out[n * width])); /* nothing behind the last query */
    return 0;
}

static int attends(const char *folder, const char *operator, int kv_type)
{
    struct bench b;
    if (open_bench(&b, folder, operator, kv_type, 60000))
        return 1;
    uint32_t tokens = b.op->dims[MANIFEST_TOKENS], most = b.shape.window ? END : MIN(END, b.op->dims[MANIFEST_KEYS]);
    const uint32_t counts[] = {1, tokens - 1, tokens, tokens + 1, 3 * tokens - 1};
    for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
        const uint32_t positions[] = {0, 1, 63, 64, 65, most / 2, most - counts[i]};
        for (size_t j = 0; j < ARRAY_LEN(positions); j++) {
            if (counts[i] && positions[j] + counts[i] <= most && check(&b, positions[j], counts[i]))
                return 1;
        }
    }
    if (check(&b, 0, most))
        return 1;
    if (!b.shape.window) {
        const struct attn_queries x = {.pos = most, .n = 1, .pages = b.pages, .q = b.q, .out = b.out};
        CHECK(!xrt_attend_fits(b.op, most, 1) && !xrt_attend_fits(b.op, UINT32_MAX, 2));
        CHECK_ERR(xrt_attend_run(b.a, &x, err), -EINVAL, "has room for");
    }
    struct xrt_device_stats s;
    b.rig.ops->stats(b.rig.device, &s);
    CHECK(s.starts == s.waits && s.starts > 0);
    return close_bench(&b);
}

static const char windowed[] = "attention:16x48x4x2x32x33:0.125", wide[] = "attention:32x256x6x2x64x100:0.1",
                  global[] = "attention:16x256x4x1x32x0:0.125";
static const int kv_types[] = {QUANT_F32, QUANT_F16, QUANT_Q8_0};

static int with_window(const char *folder)
{
    for (size_t i = 0; i < ARRAY_LEN(kv_types); i++) {
        if (attends(folder, windowed, kv_types[i]) || attends(folder, wide, kv_types[i]))
            return 1;
    }
    return 0;
}

static int without(const char *folder)
{
    for (size_t i = 0; i < ARRAY_LEN(kv_types); i++) {
        if (attends(folder, global, kv_types[i]))
            return 1;
    }
    return 0;
}

static int cannot_be_driven(const char *folder)
{
    static const char *const operators[] = {windowed, "gemm:32x64x64", "attention:16x47x4x2x32x33:0.125"};
    struct rig r;
    CHECK_OK(rig_open(&r, folder, operators, 3, err));
    const struct manifest_operator *good = manifest_get(r.manifest, 0);
    struct manifest_operator x = *good;
    CHECK_OK(xrt_attend_usable(good, err));
    CHECK_ERR(xrt_attend_usable(manifest_get(r.manifest, 1), err), -ENOTSUP, "expected an attention");
    CHECK_ERR(xrt_attend_usable(manifest_get(r.manifest, 2), err), -ENOTSUP, "see 48 keys; it has room for 47");
    x.dtypes[manifest_argument(&x, MANIFEST_ARG_K)] = MANIFEST_F16;
    CHECK_ERR(xrt_attend_usable(&x, err), -ENOTSUP, "expected bf16 for q, k, v and o");
    x = *good;
    x.arguments[manifest_argument(&x, MANIFEST_ARG_POSITIONS)] = MANIFEST_ARG_X;
    CHECK_ERR(xrt_attend_usable(&x, err), -ENOTSUP, "takes no positions");
    rig_close(&r);
    return 0;
}

static int fails(const char *folder, int code, const char *part)
{
    struct bench b;
    if (open_bench(&b, folder, windowed, QUANT_F16, 300))
        return 1;
    const struct attn_queries x = {.pos = 40, .n = 100, .pages = b.pages, .q = b.q, .out = b.out};
    CHECK_ERR(xrt_attend_run(b.a, &x, err), code, part);
    CHECK(b.rig.ops->lost(b.rig.device));
    CHECK_ERR(xrt_attend_run(b.a, &x, err), -ENODEV, "");
    xrt_attend_close(b.a); /* keeps what the device may still use */
    return 0;
}

static int hangs(const char *folder)
{
    return fails(folder, -ETIMEDOUT, "not done within 300 ms");
}

static int breaks(const char *folder)
{
    return fails(folder, -EIO, "ended it with an error");
}

/* What the next group cannot be sent for leaves no run under way. */
static int settles(const char *folder)
{
    struct bench b;
    struct xrt_device_stats s;
    if (open_bench(&b, folder, windowed, QUANT_F16, 60000))
        return 1;
    const struct attn_queries x = {.pos = 40, .n = 100, .pages = b.pages, .q = b.q, .out = b.out};
    CHECK_ERR(xrt_attend_run(b.a, &x, err), -EIO, "attention of line 3 of the manifest: ");
    b.rig.ops->stats(b.rig.device, &s);
    CHECK(s.starts == 1 && s.waits == 1 && !b.rig.ops->lost(b.rig.device));
    return close_bench(&b);
}

static int no_memory(const char *folder)
{
    static const char *const operators[] = {windowed};
    struct rig r;
    struct pool *pool;
    struct arena *arena;
    struct arena_stats s;
    struct xrt_attend *a = NULL;
    CHECK_OK(rig_open(&r, folder, operators, 1, err));
    CHECK(pool_open(1, &pool) == 0);
    CHECK_OK(arena_open(POOL, 8, &arena, err));
    const struct xrt_operator_options o = {
        .ops = r.ops, .device = r.device, .op = manifest_get(r.manifest, 0), .pool = pool, .arena = arena, .timeout_ms = 1000};
    const struct attn_shape shape = {4, 2, 32, 33, 0.125f, QUANT_F16};
    CHECK_ERR(xrt_attend_open(&o, &shape, &attn_ref, &a, err), -ENOMEM, "out of NPU memory");
    arena_stats(arena, &s);
    CHECK(s.all.used == 0);
    arena_close(arena);
    pool_close(pool);
    rig_close(&r);
    return 0;
}

static void test_attention(void **state)
{
    (void)state;
    rig_case(with_window, "");
    rig_case(without, "");
    rig_case(without, "delay_us=300");
}

static void test_refusals(void **state)
{
    (void)state;
    rig_case(cannot_be_driven, "");
    for (int bytes = 10000; bytes <= 40000; bytes += 6000) {
        char text[32];
        snprintf(text, sizeof(text), "memory=%d", bytes);
        rig_case(no_memory, text);
    }
}

static void test_faults(void **state)
{
    (void)state;
    rig_faults(hangs, breaks);
    rig_case(settles, "sync_fail=7,delay_us=2000");
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(test_attention), UNIT_TEST(test_refusals), UNIT_TEST(test_faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
