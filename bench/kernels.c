/* SPDX-License-Identifier: MIT
 * Speed of the arithmetic kernels. First the machine's read bandwidth, then per type GB/s of weights for one token and GFLOP/s for
 * many, then attention. Matrices are copied until they exceed the caches, as a model's layers do. What is compared (bandwidth and
 * kernel, one variant and the next) runs in turns, round after round, and the best round of each counts: other load
 * on the machine then hits all of them. One process, one pool; never run by ctest. */
#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels/attn.h"
#include "kernels/cpu.h"
#include "kernels/gemm.h"
#include "kernels/pool.h"
#include "kernels/quant.h"
#include "kernels/quant_ops.h"
#include "kernels/repack.h"
#include "kernels/vec.h"
#include "model/work_plan.h"

#define VARIANTS 3
#define COLD_BYTES ((size_t)192 << 20)

static const char *const names[VARIANTS] = {"ref", "avx2", "avx512"};
static const int types[] = {QUANT_Q4_0, QUANT_Q4_K, QUANT_Q4_1, QUANT_Q5_0, QUANT_Q5_1, QUANT_Q5_K,
                            QUANT_Q6_K, QUANT_Q8_0, QUANT_BF16, QUANT_F16,  QUANT_F32};

struct options {
    int threads, rounds;
    const char *part, *type, *variant;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *must(void *p)
{
    if (!p || p == MAP_FAILED) {
        fputs("bench: out of memory; free some or run a part (--help)\n", stderr);
        exit(1);
    }
    return p;
}

/* Page-backed, huge pages asked for; lives as long as the process unless unmapped. */
static void *map(size_t bytes)
{
    void *p = must(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static float rnd(void)
{
    static uint64_t s = 88172645463325252u;
    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return (float)(int32_t)(s >> 32) * 0x1p-31f;
}

static float *random_floats(size_t n)
{
    float *p = map(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        p[i] = rnd();
    return p;
}

struct stream {
    const uint64_t *p;
    _Atomic uint64_t sum;
};

static void read_part(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct stream *s = ctx;
    size_t half = (size_t)(end - begin) << 16; /* two streams: one alone does not reach the memory's rate */
    const uint64_t *p = s->p + ((size_t)begin << 17), *q = p + half;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    (void)thread;
    for (size_t i = 0; i < half; i += 8) {
        a ^= p[i] ^ p[i + 1] ^ p[i + 2] ^ p[i + 3];
        b ^= p[i + 4] ^ p[i + 5] ^ p[i + 6] ^ p[i + 7];
        c ^= q[i] ^ q[i + 1] ^ q[i + 2] ^ q[i + 3];
        d ^= q[i + 4] ^ q[i + 5] ^ q[i + 6] ^ q[i + 7];
    }
    s->sum += a ^ b ^ c ^ d;
}

/* Bytes per second of reading n MiB once. */
static double read_bandwidth(struct pool *pool, const void *p, size_t bytes)
{
    struct stream s = {.p = p};
    uint32_t n = (uint32_t)(bytes >> 20);
    double t = now();
    pool_run(pool, n, n / (uint32_t)pool_threads(pool) / 4 + 1, read_part, &s);
    return (double)n * 0x1p20 / (now() - t);
}

struct matrices {
    struct gemm_matrix m[64];
    int n;
    void *memory;
    size_t bytes; /* of all copies */
};

/* Copies of one matrix of random weights; every tile of a copy repeats the same rows, which no kernel can notice. */
static struct matrices make_matrices(int type, uint32_t rows, uint32_t cols, size_t at_least)
{
    size_t row = quant_row_bytes(type, cols), tile = repack_tile_bytes(type, cols), one = repack_bytes(type, rows, cols);
    struct matrices r = {.n = (int)(at_least / one) + 1};
    r.n = r.n > 64 ? 64 : r.n;
    r.bytes = one * (size_t)r.n;
    r.memory = map((r.bytes + 0xfffff) & ~(size_t)0xfffff);
    float *f = must(malloc(cols * sizeof(float)));
    uint8_t *src = must(malloc(row * 16)), *first = r.memory;
    for (int i = 0; i < 16; i++) {
        for (uint32_t k = 0; k < cols; k++)
            f[k] = rnd();
        quant_quantize_row(type, f, src + (size_t)i * row, cols);
    }
    repack_tile(type, src, 16, cols, first);
    for (size_t at = tile; at < r.bytes; at += tile)
        memcpy(first + at, first, tile);
    for (int i = 0; i < r.n; i++)
        r.m[i] = (struct gemm_matrix){type, rows, cols, first + (size_t)i * one};
    free(f);
    free(src);
    return r;
}

struct product {
    const struct cpu_kernels *k;
    const struct gemm_matrix *m;
    const float *x;
    uint8_t *act;
    float *y;
    uint32_t n_tokens;
};

static void prepare(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    const struct product *p = ctx;
    (void)thread;
    for (uint32_t t = begin; t < end; t++)
        p->k->gemm->prepare(p->m->type, p->x + (size_t)t * p->m->n_cols, p->m->n_cols,
                            p->act + t * gemm_act_bytes(p->m->type, p->m->n_cols));
}

static void multiply(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    const struct product *p = ctx;
    (void)thread;
    p->k->gemm->tiles(p->m, begin, end, p->act, p->n_tokens, p->y, p->m->n_rows);
}

/* Seconds for one pass over all copies with n_tokens tokens, divided among threads as a stage does. */
static double pass(struct pool *pool, const struct cpu_kernels *k, const struct matrices *w, const float *x, uint32_t n_tokens,
                   void *act, float *y)
{
    double t = now();
    pool_begin(pool);
    for (int i = 0; i < w->n; i++) {
        const struct gemm_matrix *m = &w->m[i];
        struct product p = {k, m, x, act, y, n_tokens};
        uint32_t tiles = (uint32_t)repack_n_tiles(m->n_rows);
        size_t bytes = repack_tile_bytes(m->type, m->n_cols);
        pool_run(pool, n_tokens, work_plan_token_grain(m->n_cols), prepare, &p);
        pool_run(pool, tiles, work_plan_tile_grain(bytes, tiles, n_tokens, (uint32_t)pool_threads(pool)), multiply, &p);
    }
    pool_end(pool);
    return now() - t;
}

/* Columns that the type can have: 1152 becomes 1280 for the K types. */
static uint32_t fit(int type, uint32_t cols)
{
    uint32_t e = (uint32_t)quant_block_elems(type);
    return (cols + e - 1) / e * e;
}

static bool wanted(const char *want, const char *name)
{
    return !want || strcmp(want, name) == 0;
}

static void bench_gemv(struct pool *pool, const struct options *o)
{
    static const uint32_t shapes[][2] = {{6912, 1152}, {1152, 6912}, {262144, 1152}};
    printf("\none token: weights read, GB/s, and share of the read bandwidth measured in the same rounds\n");
    for (size_t a = 0; a < sizeof(types) / sizeof(types[0]); a++) {
        for (size_t b = 0; wanted(o->type, quant_name(types[a])) && b < 3; b++) {
            uint32_t rows = shapes[b][0], cols = fit(types[a], shapes[b][1]);
            struct matrices w = make_matrices(types[a], rows, cols, COLD_BYTES);
            float *x = random_floats(cols), *y = map(rows * sizeof(float));
            void *act = map(gemm_act_bytes(types[a], cols));
            double bandwidth = 0, best[VARIANTS] = {0};
            for (int r = 0; r < o->rounds; r++) {
                double g = read_bandwidth(pool, w.memory, w.bytes & ~(size_t)0xfffff);
                bandwidth = g > bandwidth ? g : bandwidth;
                for (int v = 1; v < VARIANTS; v++) {
                    const struct cpu_kernels *k = wanted(o->variant, names[v]) ? cpu_select(names[v]) : NULL;
                    double s = k ? (double)w.bytes / pass(pool, k, &w, x, 1, act, y) : 0;
                    best[v] = s > best[v] ? s : best[v];
                }
            }
            printf("  %-5s %6u x %-5u read %6.2f", quant_name(types[a]), rows, cols, bandwidth / 1e9);
            for (int v = 1; v < VARIANTS; v++) {
                if (best[v] > 0)
                    printf("   %s %6.2f (%3.0f%%)", names[v], best[v] / 1e9, 100 * best[v] / bandwidth);
            }
            printf("\n");
            fflush(stdout);
            munmap(w.memory, w.bytes);
        }
    }
}

static void bench_gemm(struct pool *pool, const struct options *o)
{
    static const uint32_t shapes[][3] = {{6912, 1152, 64},  {6912, 1152, 512}, {1152, 6912, 512},
                                         {1152, 1024, 512}, {6912, 1152, 2},   {6912, 1152, 4}};
    printf("\nmany tokens: GFLOP/s (2 x rows x cols x tokens, activations prepared each time)\n");
    for (size_t a = 0; a < sizeof(types) / sizeof(types[0]); a++) {
        for (size_t b = 0; wanted(o->type, quant_name(types[a])) && b < sizeof(shapes) / sizeof(shapes[0]); b++) {
            uint32_t rows = shapes[b][0], cols = fit(types[a], shapes[b][1]), n = shapes[b][2];
            struct matrices w = make_matrices(types[a], rows, cols, n < 8 ? COLD_BYTES : (size_t)40 << 20);
            float *x = random_floats((size_t)cols * n), *y = map((size_t)rows * n * sizeof(float));
            void *act = map(gemm_act_bytes(types[a], cols) * n);
            double best[VARIANTS] = {0}, flops = 2.0 * rows * cols * n * w.n;
            for (int r = 0; r < o->rounds; r++) {
                for (int v = 1; v < VARIANTS; v++) {
                    const struct cpu_kernels *k = wanted(o->variant, names[v]) ? cpu_select(names[v]) : NULL;
                    double s = k ? flops / pass(pool, k, &w, x, n, act, y) : 0;
                    best[v] = s > best[v] ? s : best[v];
                }
            }
            printf("  %-5s %6u x %-5u tokens %4u", quant_name(types[a]), rows, cols, n);
            for (int v = 1; v < VARIANTS; v++) {
                if (best[v] > 0)
                    printf("   %s %7.1f", names[v], best[v] / 1e9);
            }
            printf("\n");
            fflush(stdout);
            munmap(w.memory, w.bytes);
            munmap(x, (size_t)cols * n * sizeof(float));
            munmap(y, (size_t)rows * n * sizeof(float));
        }
    }
}

struct attend {
    const struct cpu_kernels *k;
    const struct attn_shape *s;
    const float *q;
    float *out;
    void **pages;
    uint8_t *scratch;
    size_t scratch_bytes, stride;
    uint32_t pos0, n, step, n_pages;
};

/* Item: one KV head and `step` queries. */
static void attend(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    const struct attend *a = ctx;
    for (uint32_t i = begin; i < end; i++) {
        uint32_t part = i / a->s->n_kv_heads, q0 = part * a->step, n = a->n - q0 < a->step ? a->n - q0 : a->step;
        a->k->attn->run(a->s, i % a->s->n_kv_heads, a->q + q0 * a->stride, a->stride, a->pos0 + q0, n, a->pages,
                        a->out + q0 * a->stride, a->scratch + (size_t)thread * a->scratch_bytes);
    }
}

/* Pages of one type for all layers of a case. */
struct pages {
    struct attn_shape s;
    size_t page, bytes;
    uint8_t *memory;
    void **all; /* [layers][n_pages] */
};

static struct pages make_pages(struct attn_shape s, int kv_type, uint32_t n_pages, uint32_t layers)
{
    s.kv_type = kv_type;
    struct pages p = {.s = s, .page = attn_page_bytes(&s)};
    size_t width = (size_t)s.n_kv_heads * s.head_dim;
    p.bytes = p.page * n_pages * layers;
    p.memory = map(p.bytes);
    p.all = must(malloc(sizeof(*p.all) * n_pages * layers));
    float *rows = random_floats(width + ATTN_PAGE);
    for (size_t i = 0; i < (size_t)n_pages * layers; i++) {
        p.all[i] = p.memory + i * p.page;
        for (uint32_t slot = 0; slot < ATTN_PAGE; slot++)
            cpu_select(NULL)->attn->store(&p.s, p.all[i], slot, rows + slot, rows + slot);
    }
    munmap(rows, (width + ATTN_PAGE) * sizeof(float));
    return p;
}

/* The types take turns, as the variants do. */
static void bench_attn(struct pool *pool, const struct options *o)
{
    static const int kv_types[] = {QUANT_F16, QUANT_Q8_0};
    enum { KV_TYPES = sizeof(kv_types) / sizeof(kv_types[0]) };
    static const struct {
        const char *name;
        struct attn_shape s;
        uint32_t pos0, n, layers;
    } cases[] = {
        {"1b  prefill 512 at 0", {.n_heads = 4, .n_kv_heads = 1, .head_dim = 256, .scale = 0.0625f}, 0, 512, 1},
        {"27b prefill 512 at 0", {.n_heads = 32, .n_kv_heads = 16, .head_dim = 128, .scale = 0.08f}, 0, 512, 1},
        {"1b  prefill 64 at 2048", {.n_heads = 4, .n_kv_heads = 1, .head_dim = 256, .scale = 0.0625f}, 2048, 64, 1},
        {"1b  decode at 4096", {.n_heads = 4, .n_kv_heads = 1, .head_dim = 256, .scale = 0.0625f}, 4096, 1, 64},
        {"27b decode at 4096", {.n_heads = 32, .n_kv_heads = 16, .head_dim = 128, .scale = 0.08f}, 4096, 1, 8},
    };
    printf("\nattention by type of K and V: us a layer, GFLOP/s (4 x head_dim x visible positions x heads), GB/s of cache\n");
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        const struct attn_shape *s = &cases[c].s;
        uint32_t n = cases[c].n, last = cases[c].pos0 + n, n_pages = (last + 63) / 64, layers = cases[c].layers;
        size_t stride = (size_t)s->n_heads * s->head_dim;
        struct pages p[KV_TYPES];
        for (int t = 0; t < KV_TYPES; t++)
            p[t] = make_pages(*s, kv_types[t], n_pages, layers);
        struct attend a = {.q = random_floats(n * stride),
                           .out = map(n * stride * sizeof(float)),
                           .stride = stride,
                           .pos0 = cases[c].pos0,
                           .n = n,
                           .step = 16};
        a.scratch_bytes = (attn_scratch_bytes(s, a.step) + 63) / 64 * 64;
        a.scratch = map(a.scratch_bytes * (size_t)o->threads);
        double best[KV_TYPES][VARIANTS] = {0}, visible = ((double)cases[c].pos0 + (n + 1) / 2.0) * n;
        for (int r = 0; r < o->rounds * KV_TYPES * VARIANTS; r++) {
            int t = r % KV_TYPES, v = r / KV_TYPES % VARIANTS;
            a.k = v > 0 && wanted(o->variant, names[v]) ? cpu_select(names[v]) : NULL;
            if (!a.k || !wanted(o->type, quant_name(kv_types[t])))
                continue;
            a.s = &p[t].s;
            double start = now();
            pool_begin(pool);
            for (uint32_t l = 0; l < layers; l++) {
                a.pages = p[t].all + (size_t)l * n_pages;
                pool_run(pool, (n + a.step - 1) / a.step * s->n_kv_heads, 1, attend, &a);
            }
            pool_end(pool);
            double rate = layers / (now() - start);
            best[t][v] = rate > best[t][v] ? rate : best[t][v];
        }
        for (int t = 0; t < KV_TYPES; t++) {
            if (wanted(o->type, quant_name(kv_types[t])))
                printf("  %-22s %-4s", cases[c].name, quant_name(kv_types[t]));
            for (int v = 1; v < VARIANTS; v++) {
                if (best[t][v] > 0)
                    printf("   %s %8.1f us %7.1f GFLOP/s %6.2f GB/s", names[v], 1e6 / best[t][v],
                           best[t][v] * 4 * s->head_dim * visible * s->n_heads / 1e9,
                           best[t][v] * (double)(p[t].page * n_pages) / 1e9);
            }
            if (wanted(o->type, quant_name(kv_types[t])))
                printf("\n");
            free(p[t].all);
            munmap(p[t].memory, p[t].bytes);
        }
        fflush(stdout);
    }
}

static void bench_vec(const struct options *o)
{
    enum { N = 6912, ROWS = 64, HEAD = 128 };
    float *x = random_floats(N * ROWS), *u = random_floats(N * ROWS), *y = map(N * ROWS * sizeof(float));
    void *act = map(gemm_act_bytes(QUANT_Q8_0, N));
    printf("\nelement-wise, one thread: G elements/s\n");
    for (int v = 1; v < VARIANTS; v++) {
        const struct cpu_kernels *k = wanted(o->variant, names[v]) ? cpu_select(names[v]) : NULL;
        double best[4] = {0};
        for (int r = 0; k && r < o->rounds; r++) {
            double t[5] = {now()};
            for (size_t i = 0; i < ROWS; i++)
                k->vec->rmsnorm(x + i * N, u, N, 1e-6f, y + i * N);
            t[1] = now();
            for (size_t i = 0; i < ROWS; i++)
                k->vec->geglu(x + i * N, u + i * N, N, y + i * N);
            t[2] = now();
            for (size_t i = 0; i < ROWS; i++)
                k->gemm->prepare(QUANT_Q8_0, x + i * N, N, act);
            t[3] = now();
            for (size_t i = 0; i + HEAD <= N * ROWS; i += HEAD)
                k->vec->rope(y + i, HEAD, u, u + HEAD / 2);
            t[4] = now();
            for (int i = 0; i < 4; i++) {
                double g = (double)N * ROWS / (t[i + 1] - t[i]) / 1e9;
                best[i] = g > best[i] ? g : best[i];
            }
        }
        if (k)
            printf("  %-6s rmsnorm %6.2f   geglu %6.2f   quantize activations %6.2f   rope %6.2f\n", names[v], best[0], best[1],
                   best[2], best[3]);
    }
}

static void bench_rows(const struct options *o)
{
    enum { N = 6912, ROWS = 16 };
    float *x = random_floats(N * ROWS), *y = map(N * ROWS * sizeof(float));
    uint8_t *q = map(N * ROWS * sizeof(float));
    printf("\nrows, one thread, in cache: G elements/s\n");
    for (size_t a = 0; a < sizeof(types) / sizeof(types[0]); a++) {
        for (int v = 0; wanted(o->type, quant_name(types[a])) && v < VARIANTS; v++) {
            const struct cpu_kernels *k = wanted(o->variant, names[v]) ? cpu_select(names[v]) : NULL;
            double best[2] = {0};
            for (int r = 0; k && r < o->rounds; r++) {
                double t[3] = {now()};
                k->quant->from_f32(types[a], x, q, N * ROWS);
                t[1] = now();
                k->quant->to_f32(types[a], q, y, N * ROWS);
                t[2] = now();
                for (int i = 0; i < 2; i++) {
                    double g = (double)N * ROWS / (t[i + 1] - t[i]) / 1e9;
                    best[i] = g > best[i] ? g : best[i];
                }
            }
            if (k)
                printf("  %-5s %-6s from f32 %7.3f   to f32 %7.3f\n", quant_name(types[a]), names[v], best[0], best[1]);
        }
    }
}

static int usage(int status)
{
    FILE *f = status ? stderr : stdout;
    fputs("usage: bench_kernels [--threads N] [--rounds N] [--part gemv|gemm|attn|vec|rows] [--variant avx2|avx512]\n"
          "                     [--type ",
          f);
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        fprintf(f, "%s%s", i ? "|" : "", quant_name(types[i]));
    fputs("]\n", f);
    return status;
}

int main(int argc, char **argv)
{
    static const struct option longs[] = {{"threads", 1, NULL, 't'},
                                          {"rounds", 1, NULL, 'r'},
                                          {"part", 1, NULL, 'p'},
                                          {"type", 1, NULL, 'y'},
                                          {"variant", 1, NULL, 'v'},
                                          {"help", 0, NULL, 'h'},
                                          {0}};
    struct options o = {.threads = cpu_count(), .rounds = 5};
    for (int c; (c = getopt_long(argc, argv, "h", longs, NULL)) != -1;) {
        switch (c) {
        case 't':
            o.threads = atoi(optarg);
            break;
        case 'r':
            o.rounds = atoi(optarg);
            break;
        case 'p':
            o.part = optarg;
            break;
        case 'y':
            o.type = optarg;
            break;
        case 'v':
            o.variant = optarg;
            break;
        default:
            return usage(c == 'h' ? 0 : 2);
        }
    }
    struct pool *pool;
    if (o.threads < 1 || o.rounds < 1 || (o.type && quant_from_name(o.type) < 0) || pool_open(o.threads, &pool) < 0)
        return usage(2);
    size_t bytes = (size_t)512 << 20;
    void *p = map(bytes);
    memset(p, 1, bytes);
    double bandwidth = 0;
    for (int r = 0; r < o.rounds; r++) {
        double g = read_bandwidth(pool, p, bytes);
        bandwidth = g > bandwidth ? g : bandwidth;
    }
    munmap(p, bytes);
    printf("variants: %s; %d threads, %d processors; best of %d rounds\nread bandwidth: %.2f GB/s\n", cpu_available(), o.threads,
           cpu_count(), o.rounds, bandwidth / 1e9);
    if (wanted(o.part, "gemv"))
        bench_gemv(pool, &o);
    if (wanted(o.part, "gemm"))
        bench_gemm(pool, &o);
    if (wanted(o.part, "attn"))
        bench_attn(pool, &o);
    if (wanted(o.part, "vec"))
        bench_vec(&o);
    if (wanted(o.part, "rows"))
        bench_rows(&o);
    pool_close(pool);
    return 0;
}
