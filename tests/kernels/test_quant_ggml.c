/* SPDX-License-Identifier: MIT
 * Quantization and dequantization of every type against ggml, as digests (FNV-1a, 64 bits) of the bytes over rows of many kinds.
 * The expected digests came from ggml 0.25.1: the npm package @node-llama-cpp/linux-x64 3.22.1, whose libggml-base.so exports
 * quantize_row_*_ref and dequantize_row_*. Given that file's path as argument, this program compares with the library byte by byte
 * on more rows and prints its digests:  test_quant_ggml node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libggml-base.so */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/quant.h"
#include "kernels/quant_ops.h"
#include "tests/kernels/rows.h"

#define LEN(a) (sizeof(a) / sizeof((a)[0]))
enum { N = ROWS_N };

static const struct {
    int type;
    uint64_t quantized, dequantized;
} expected[] = {
    {QUANT_Q4_0, 0xaa4bfee1c3c79c3cu, 0x64732526e7db7338u}, {QUANT_Q4_1, 0xeaabaa27b73f359fu, 0x1b90e909f3731133u},
    {QUANT_Q5_0, 0x4956e905a3e03859u, 0x4bc96ca48b3cb716u}, {QUANT_Q5_1, 0x91b75b3cd3e9837fu, 0x38c913c0a4552a4eu},
    {QUANT_Q8_0, 0x9b1bce4b0df9a779u, 0x851e133adb6513e9u}, {QUANT_Q4_K, 0x7aad6a81921d73f1u, 0xabce470649ca24b4u},
    {QUANT_Q5_K, 0x396c870aa3e3b242u, 0x7265d271a45c94b2u}, {QUANT_Q6_K, 0xb29060e063f28600u, 0xb7c133c150e2e0a9u},
};

static uint64_t fnv(uint64_t h, const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)p)[i]) * 0x100000001b3u;
    return h;
}

typedef void quantize_fn(const float *, void *, int64_t);
typedef void dequantize_fn(const void *, float *, int64_t);

/* Both functions of a type in the library; names as ggml-quants.h has them. */
static void functions(void *lib, int type, quantize_fn **ret_q, dequantize_fn **ret_d)
{
    char name[64];
    snprintf(name, sizeof(name), "quantize_row_%s_ref", quant_name(type));
    *(void **)ret_q = dlsym(lib, name);
    snprintf(name, sizeof(name), "dequantize_row_%s", quant_name(type));
    *(void **)ret_d = dlsym(lib, name);
    if (!*ret_q || !*ret_d) {
        fprintf(stderr, "'%s' is not in the library\n", name);
        exit(1);
    }
}

static int compare(const char *path)
{
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    int bad = 0;
    if (!lib) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    for (size_t t = 0; t < LEN(expected); t++) {
        int type = expected[t].type;
        quantize_fn *quantize;
        dequantize_fn *dequantize;
        functions(lib, type, &quantize, &dequantize);
        size_t bytes = quant_row_bytes(type, N), differ = 0, rows = 0;
        uint64_t hq = 0xcbf29ce484222325u, hd = hq;
        for (uint64_t s = 0; s < 200; s++) {
            for (int kind = 0; kind < ROWS_KINDS; kind++, rows++) {
                float x[N], y[N], y2[N];
                uint8_t a[N * 2] = {0}, b[N * 2] = {0};
                rows_make(kind, s, x);
                quantize(x, a, N);
                dequantize(a, y, N);
                quant_quantize_row(type, x, b, N);
                quant_dequantize_row(type, a, y2, N);
                int d = memcmp(a, b, bytes) != 0 || memcmp(y, y2, sizeof(y)) != 0;
                if (d && !differ)
                    printf("%s: kind %d seed %d: quantized %s, dequantized %s\n", quant_name(type), kind, (int)s,
                           memcmp(a, b, bytes) ? "differs" : "equal", memcmp(y, y2, sizeof(y)) ? "differs" : "equal");
                differ += (size_t)d;
                if (s < 20) {
                    hq = fnv(hq, a, bytes);
                    hd = fnv(hd, y, sizeof(y));
                }
            }
        }
        printf("%-4s %zu rows, %zu differ; {QUANT_%s, 0x%016llx, 0x%016llx}\n", quant_name(type), rows, differ, quant_name(type),
               (unsigned long long)hq, (unsigned long long)hd);
        bad += differ > 0;
    }
    return bad;
}

/* Rows in which a NaN comes up carry its sign, which compilers choose; none of ours has one. */
static void test_digests(void **state)
{
    (void)state;
    static const char *const variants[] = {NULL, "ref", "avx2", "avx512"};
    for (size_t v = 0; v < LEN(variants); v++) {
        const struct cpu_kernels *k = variants[v] ? cpu_select(variants[v]) : NULL;
        for (size_t t = 0; t < LEN(expected) && (k || !variants[v]); t++) {
            int type = expected[t].type;
            uint64_t hq = 0xcbf29ce484222325u, hd = hq;
            for (uint64_t s = 0; s < 20; s++) {
                for (int kind = 0; kind < ROWS_KINDS; kind++) {
                    float x[N], y[N];
                    uint8_t b[N * 2];
                    rows_make(kind, s, x);
                    if (k) {
                        k->quant->from_f32(type, x, b, N);
                        k->quant->to_f32(type, b, y, N);
                    } else {
                        quant_quantize_row(type, x, b, N);
                        quant_dequantize_row(type, b, y, N);
                    }
                    hq = fnv(hq, b, quant_row_bytes(type, N));
                    hd = fnv(hd, y, sizeof(y));
                }
            }
            if (hq != expected[t].quantized || hd != expected[t].dequantized)
                fail_msg("%s %s: 0x%016llx, 0x%016llx", variants[v] ? variants[v] : "rows", quant_name(type),
                         (unsigned long long)hq, (unsigned long long)hd);
        }
    }
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return compare(argv[1]);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_digests)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
