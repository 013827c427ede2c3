/* SPDX-License-Identifier: MIT
 * The manifest: what a good one means, every kind of bad one with file, line and key, the choice of an operator, instruction files.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "model/hparams.h"
#include "npu_worker/manifest.h"
#include "npu_worker/xrt_products.h"
#include "proto/util.h"
#include "tests/unit/unit_test.h"

static const char good[] =
    "version: 1\n"
    "operators:\n"
    "  - kind: gemm\n"
    "    xclbin: gemm/final.xclbin\n"
    "    instructions: gemm/insts.bin\n"
    "    arguments: [a, b, c]\n"
    "    dtypes: [bf16, bf16, f32]\n"
    "    shape: {m: 256, k: 640, n: 1024}\n"
    "    multiple_of: {m: 256, k: 64, n: 256}\n"
    "    b_layout: nk\n"
    "  - {kind: rms_norm, xclbin: /opt/n.xclbin, instructions: n.txt, kernel: DPU, epsilon: 1e-6,\n"
    "     arguments: [w, x, y], shape: {rows: 64, width: 640}}\n"
    "  - {kind: rope, xclbin: r, instructions: r.bin, format: hex, method: interleaved,\n"
    "     arguments: [x, angles, y], shape: {rows: 64, width: 256}}\n"
    "  - {kind: gemv, xclbin: v, instructions: v.bin, arguments: [a, x, y], shape: {m: 640, k: 1024}}\n"
    "  - {kind: attention, xclbin: a, instructions: a.bin, arguments: [q, k, v, positions, o], scale: 0.0625,\n"
    "     shape: {tokens: 16, keys: 512, heads: 4, kv_heads: 1, head_dim: 256, window: 0}}\n";

static const char *put(const char *text)
{
    const char *path = unit_path("manifest.yaml");
    unit_write(path, text, strlen(text));
    return path;
}

static struct manifest *open_text(const char *text)
{
    struct manifest *m = NULL;
    assert_ok(manifest_open(put(text), &m, err));
    return m;
}

static void test_good(void **state)
{
    (void)state;
    struct manifest *m = open_text(good);
    assert_int_equal(manifest_count(m), 5);
    const struct manifest_operator *o = manifest_get(m, 0);
    assert_int_equal(o->kind, MANIFEST_GEMM);
    assert_int_equal(o->line, 3);
    assert_string_equal(o->xclbin, unit_path("gemm/final.xclbin"));
    assert_string_equal(o->instructions, unit_path("gemm/insts.bin"));
    assert_string_equal(o->kernel, "MLIR_AIE");
    assert_true(o->b_nk && !o->hex);
    assert_int_equal(manifest_argument(o, MANIFEST_ARG_C), 2);
    assert_int_equal(manifest_argument(o, MANIFEST_ARG_X), -1);
    assert_int_equal(manifest_bytes(o, 0), 256 * 640 * 2);
    assert_int_equal(manifest_bytes(o, 1), 640 * 1024 * 2);
    assert_int_equal(manifest_bytes(o, 2), 256 * 1024 * 4);
    o = manifest_get(m, 1);
    assert_string_equal(o->xclbin, "/opt/n.xclbin");
    assert_string_equal(o->kernel, "DPU");
    assert_true(o->hex && o->epsilon > 9e-7f && o->epsilon < 1.1e-6f);
    assert_int_equal(o->arguments[0], MANIFEST_ARG_W);
    assert_int_equal(manifest_bytes(o, 0), 640 * 2);
    o = manifest_get(m, 2);
    assert_true(o->hex && o->interleaved);
    o = manifest_get(m, 4);
    assert_int_equal(o->dtypes[3], MANIFEST_I32);
    assert_int_equal(manifest_bytes(o, 3), 16);
    assert_int_equal(manifest_bytes(o, 0), 4 * 16 * 256 * 2);
    assert_int_equal(manifest_bytes(o, 2), 512 * 256 * 2);
    manifest_close(m);
    manifest_close(NULL);
}

static void test_print(void **state)
{
    (void)state;
    char *text = NULL;
    size_t n = 0;
    struct manifest *m = open_text(good);
    FILE *f = open_memstream(&text, &n);
    manifest_print(m, f);
    fclose(f);
    assert_non_null(strstr(text, "line 3     gemm       m 256 k 640 n 1024 (a bf16, b bf16, c f32)  b nk  "));
    assert_non_null(strstr(text, "cannot be used: operator of line 3 of the manifest: xclbin '")); /* none of these files exists */
    assert_non_null(strstr(text, "rms_norm   rows 64 width 640 (w bf16, x bf16, y bf16)  epsilon 1e-06"));
    assert_non_null(strstr(text, "rope       rows 64 width 256 (x bf16, angles bf16, y bf16)  interleaved"));
    free(text);
    manifest_close(m);
}

#define GEMM_HEAD "version: 1\noperators:\n  - kind: gemm\n    xclbin: x\n    instructions: i\n"
#define GEMM GEMM_HEAD "    arguments: [a, b, c]\n"
#define NORM "version: 1\noperators:\n  - {kind: rms_norm, xclbin: x, instructions: i, arguments: [x, w, y], "

static void test_bad(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words[3];
        int code;
    } cases[] = {
        {"", {"one mapping"}, 0},
        {"version: 1\noperators: [", {"line 3", "not valid YAML"}, 0},
        {"[1]", {"one mapping"}, 0},
        {"version: 1\n", {"'operators'", "at least one"}, 0},
        {"version: 1\noperators: []\n", {"'operators'", "at least one"}, 0},
        {"version: 2\noperators: []\n", {"line 1", "'version'", "found '2'"}, 0},
        {"operators: []\n", {"'version'", "nothing"}, 0},
        {"version: 1\nversion: 1\n", {"line 2", "'version' is given twice, first in line 1"}, 0},
        {"version: [1]\n", {"line 1", "'version: 1'"}, 0},
        {"version: 1\noperator: []\n", {"line 2", "did you mean 'operators'"}, 0},
        {"version: 1\noperators: gemm\n", {"line 2", "a list of operators"}, 0},
        {"version: 1\noperators: [gemm]\n", {"line 2", "a list of operators"}, 0},
        {"version: 1\noperators: [{}]\n", {"line 2", "'kind' is missing"}, 0},
        {"version: 1\noperators: [{kind: conv}]\n", {"line 2", "found 'conv'", "gemm, gemv"}, 0},
        {"version: 1\noperators: [{kind: gemm}]\n", {"'gemm'", "'xclbin' is missing"}, 0},
        {"version: 1\noperators: [{kind: gemm, xclbin: x}]\n", {"'instructions' is missing"}, 0},
        {"version: 1\noperators: [{kind: gemm, xclbin: [x]}]\n", {"line 2", "'xclbin'", "a single value"}, 0},
        {"version: 1\noperators: [{[a]: gemm}]\n", {"line 2", "name of a key"}, 0},
        {"version: 1\noperators: &a [{kind: gemm}]\n", {"line 2", "an anchor"}, 0},
        {"version: 1\noperators: *a\n", {"alias"}, 0},
        {"version: !!int 1\n", {"line 1", "a tag"}, 0},
        {"version: 1\n---\nversion: 1\n", {"second document"}, 0},
        {GEMM_HEAD "    shape: {m: 1, k: 1, n: 1}\n", {"'arguments' is missing"}, 0},
        {GEMM, {"line 3", "'m' is missing"}, 0},
        {GEMM "    shape: {m: 1, k: 1}\n", {"line 7", "'n' is missing"}, 0},
        {GEMM "    shape: {m: 1, k: 1, n: 0}\n", {"line 7", "'n' of key 'shape'", "found '0'"}, 0},
        {GEMM "    shape: {m: 1, k: -1, n: 1}\n", {"found '-1'", "from 1 to 1048576"}, 0},
        {GEMM "    shape: {m: 1, k: 1048577, n: 1}\n", {"found '1048577'"}, 0},
        {GEMM "    shape: {m: 1, k: 1, n: 1, width: 3}\n", {"'width' is no dimension of kind 'gemm'"}, 0},
        {GEMM "    shape: {m: 1, k: 1, n: 1, o: 3}\n", {"line 7", "unknown dimension 'o'"}, 0},
        {GEMM "    shape: {m: 1, k: 1, n: 1,\n      m: 3}\n", {"line 8", "'m' is given twice, first in line 7"}, 0},
        {GEMM "    shape: {m: [1], k: 1, n: 1}\n", {"line 7", "a mapping such as"}, 0},
        {GEMM "    shape: [1]\n", {"line 7", "a mapping such as"}, 0},
        {GEMM "    shape: {m: 65, k: 1, n: 1}\n    multiple_of: {m: 64}\n",
         {"line 7", "'m' of key 'shape' is 65", "multiple of 64"},
         0},
        {GEMM "    shape: {m: 64, k: 1, n: 1}\n    multiple_of: {m: 0}\n", {"line 8", "'multiple_of'"}, 0},
        {GEMM "    shape: {m: 1048576, k: 1048576, n: 1}\n", {"line 7", "'a' would be larger than 4 GiB"}, 0},
        {GEMM "    shape: {m: 1, k: 1, n: 1}\n    epsilon: 1\n", {"line 8", "'epsilon' belongs to kind 'rms_norm'"}, 0},
        {GEMM "    shape: {m: 1, k: 1, n: 1}\n    b_layout: mn\n", {"line 8", "'b_layout'", "kn or nk"}, 0},
        {GEMM "    shape: {m: 1, k: 1, n: 1}\n    format: json\n", {"line 8", "binary or hex"}, 0},
        {GEMM "    shape: {m: 1, k: 1, n: 1}\n    kernel: ''\n", {"line 8", "'kernel'"}, 0},
        {GEMM "    shape: {m: 1, k: 1, n: 1}\n    dtypes: [bf16]\n", {"line 8", "1 types for 3 arguments"}, 0},
        {GEMM "    shape: {m: 1, k: 1, n: 1}\n    dtypes: []\n", {"line 8", "0 types for 3 arguments"}, 0},
        {GEMM "    shape: {m: 1, k: 1, n: 1}\n    dtypes: [bf16, u4, f32]\n", {"line 8", "found 'u4'"}, 0},
        {GEMM "    shape: {m: 1, k: 1, n: 1}\n    kern: X\n", {"line 8", "did you mean 'kernel'"}, 0},
        {GEMM "    shape: {m: 1, k: 1, n: 1}\n    kind: gemm\n", {"line 8", "'kind' is given twice, first in line 3"}, 0},
        {GEMM_HEAD "    arguments: [a, b]\n    shape: {m: 1, k: 1, n: 1}\n", {"line 6", "'c' is missing"}, 0},
        {GEMM_HEAD "    arguments: [a, b, b]\n    shape: {m: 1, k: 1, n: 1}\n", {"line 6", "'b' is given twice"}, 0},
        {GEMM_HEAD "    arguments: [a, b, x]\n    shape: {m: 1, k: 1, n: 1}\n", {"line 6", "'x' is no argument of kind 'gemm'"}, 0},
        {GEMM_HEAD "    arguments: [a, b, c, c, c, c]\n", {"line 6", "more than 5"}, -E2BIG},
        {GEMM_HEAD "    arguments: {a: b}\n", {"line 6", "a list such as"}, 0},
        {GEMM_HEAD "    arguments: [[a]]\n", {"line 6", "a list such as"}, 0},
        {NORM "shape: {rows: 1, width: 1}}\n", {"'epsilon' is missing"}, 0},
        {NORM "shape: {rows: 1, width: 1}, epsilon: 0}\n", {"line 3", "found '0'", "above 0"}, 0},
        {NORM "shape: {rows: 1, width: 1}, epsilon: nan}\n", {"found 'nan'"}, 0},
        {NORM "shape: {rows: 1, width: 1}, epsilon: 1e-6x}\n", {"found '1e-6x'"}, 0},
        {NORM "shape: {rows: 1, width: 1}, epsilon: 1e999}\n", {"found '1e999'"}, 0},
        {"version: 1\noperators:\n  - {kind: attention, xclbin: x, instructions: i, arguments: [q, k, v, o], scale: 1,\n     "
         "shape: "
         "{tokens: 1, keys: 1, heads: 3, kv_heads: 2, head_dim: 1, window: 0}}\n",
         {"line 4", "'heads' is 3", "multiple of 'kv_heads', 2"},
         0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err err = {0};
        struct manifest *m = NULL;
        int want = cases[i].code ? cases[i].code : -EINVAL, r = manifest_open(put(cases[i].text), &m, &err);
        bool ok = r == want && err.code == r && !m && strstr(err.text, "manifest.yaml");
        for (size_t j = 0; j < ARRAY_LEN(cases[i].words) && cases[i].words[j]; j++)
            ok = ok && strstr(err.text, cases[i].words[j]);
        if (!ok)
            fail_msg("case %zu:\n%s\n%d '%s'", i, cases[i].text, r, err.text);
    }
}

static void test_bounds(void **state)
{
    (void)state;
    struct manifest *m = NULL;
    struct bytes b = {0};
    assert_err(manifest_open("/nonexistent/manifest.yaml", &m, err), -ENOENT, "'/nonexistent/manifest.yaml'");
    static const char head[] = "version: 1\noperators:\n",
                      one[] = "  - {kind: gemv, xclbin: v, instructions: v, arguments: [a, x, y], shape: {m: 8, k: 16}}\n";
    unit_put(&b, head, strlen(head));
    for (unsigned i = 0; i < MANIFEST_OPERATORS_MAX; i++)
        unit_put(&b, one, strlen(one));
    unit_write(unit_path("m.yaml"), b.data, b.n);
    assert_ok(manifest_open(unit_path("m.yaml"), &m, err));
    assert_int_equal(manifest_count(m), MANIFEST_OPERATORS_MAX);
    manifest_close(m);
    unit_put(&b, one, strlen(one));
    unit_write(unit_path("m.yaml"), b.data, b.n);
    assert_err(manifest_open(unit_path("m.yaml"), &m, err), -E2BIG, "line 259: more than 256 operators");
    b.n = 0;
    while (b.n <= 256 << 10)
        unit_put(&b, "# nothing\n", 10);
    unit_write(unit_path("m.yaml"), b.data, b.n);
    assert_err(manifest_open(unit_path("m.yaml"), &m, err), -EFBIG, "more than 262144 bytes");
    unit_free(&b);
}

static void add_gemm(char *text, unsigned m, unsigned k, unsigned n)
{
    sprintf(text + strlen(text),
            "  - {kind: gemm, xclbin: x, instructions: i, arguments: [a, b, c], shape: {m: %u, k: %u, n: %u}}\n", m, k, n);
}

static void test_find(void **state)
{
    (void)state;
    char text[4096] = "version: 1\noperators:\n";
    static const struct {
        uint32_t want[3];
        int index; /* or an error */
        uint64_t calls;
    } cases[] = {
        {{1, 640, 1024}, 0, 1},   /* the smallest that holds it */
        {{33, 640, 1024}, 0, 2},  /* twice the smaller is less than the larger */
        {{225, 640, 1024}, 1, 1}, /* eight of it would be as much, in more calls */
        {{256, 640, 1024}, 1, 1}, /* as much work, fewer calls */
        {{256, 640, 2048}, 1, 2}, /* columns are cut as rows are */
        {{32, 600, 1000}, 0, 1},  /* k is padded */
        {{32, 641, 1024}, 2, 1},  /* but not cut */
        {{32, 4097, 1024}, -ENOTSUP, 0}, {{0, 0, 0}, 0, 1},
    };
    add_gemm(text, 32, 640, 1024);
    add_gemm(text, 256, 640, 1024);
    add_gemm(text, 64, 4096, 2048);
    strcat(text,
           "  - {kind: rms_norm, xclbin: x, instructions: i, epsilon: 1, arguments: [x, w, y], shape: {rows: 8, width: 640}}\n");
    struct manifest *m = open_text(text);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const struct manifest_operator *o = NULL;
        struct err err = {0};
        uint64_t calls = 0;
        uint32_t want[MANIFEST_DIMS] = {cases[i].want[0], cases[i].want[1], cases[i].want[2]};
        int r = manifest_find(m, MANIFEST_GEMM, want, NULL, &o, &calls, &err), index = o ? (int)(o - manifest_get(m, 0)) : r;
        if (index != cases[i].index || calls != cases[i].calls)
            fail_msg("case %zu: operator %d in %llu calls '%s'", i, index, (unsigned long long)calls, err.text);
    }
    const struct manifest_operator *o = NULL;
    uint32_t want[MANIFEST_DIMS] = {[MANIFEST_ROWS] = 20, [MANIFEST_WIDTH] = 640};
    uint64_t calls;
    assert_ok(manifest_find(m, MANIFEST_RMS_NORM, want, NULL, &o, &calls, err));
    assert_int_equal(calls, 3);
    want[MANIFEST_WIDTH] = 600; /* the mean is over the row: no padding */
    assert_err(manifest_find(m, MANIFEST_RMS_NORM, want, NULL, &o, NULL, err), -ENOTSUP, "it has: rows 8 width 640");
    assert_err(manifest_find(m, MANIFEST_ROPE, want, NULL, &o, NULL, err), -ENOTSUP,
               "no operator of kind 'rope' for rows 20 width 600, and none");
    manifest_close(m);
    m = open_text(good); /* its attention has no window */
    uint32_t attention[MANIFEST_DIMS] = {[MANIFEST_TOKENS] = 40, [MANIFEST_KEYS] = 300, [MANIFEST_HEAD_DIM] = 256};
    assert_ok(manifest_find(m, MANIFEST_ATTENTION, attention, NULL, &o, &calls, err));
    assert_int_equal(calls, 3);
    attention[MANIFEST_WINDOW] = 512;
    assert_err(manifest_find(m, MANIFEST_ATTENTION, attention, NULL, &o, &calls, err), -ENOTSUP, "window 512");
    manifest_close(m);
}

/* Two gemms of one shape, of which only the second can be driven: the first does not hide it. Alone it is refused with its reason.
 */
static void test_unusable(void **state)
{
    (void)state;
    static const struct hparams h = {.n_layers = 1, .hidden = 64, .n_heads = 1, .n_kv_heads = 1, .head_dim = 64};
    struct xrt_products p;
    char text[4096] = "version: 1\noperators:\n"
                      "  - {kind: gemm, xclbin: x, instructions: i, arguments: [a, b, c], dtypes: [i8, i8, i32],\n"
                      "     shape: {m: 32, k: 64, n: 64}}\n";
    struct manifest *m = open_text(text);
    assert_err(xrt_products_choose(m, &h, 1, &p, err), -ENOTSUP, "line 3 of the manifest: expected bf16 for a and b");
    manifest_close(m);
    add_gemm(text, 32, 64, 64);
    m = open_text(text);
    assert_ok(xrt_products_choose(m, &h, 1, &p, err));
    for (int i = 0; i < ATTN_PRODUCTS; i++)
        assert_ptr_equal(p.op[i], manifest_get(m, 1));
    manifest_close(m);
}

/* Attention of layers of 8 heads of 64, with a window of 100 and without, in a context of 1000. */
static const struct manifest_operator *chosen_attention(const char *more, bool global, const char **ret_why)
{
    static const struct hparams h = {.n_layers = 2,
                                     .global_every = 2,
                                     .hidden = 64,
                                     .n_heads = 8,
                                     .n_kv_heads = 4,
                                     .head_dim = 64,
                                     .window = 100,
                                     .attn_scale = 0.125f};
    static struct manifest *m;
    static struct xrt_products p;
    char text[4096] = "version: 1\noperators:\n";
    manifest_close(m);
    add_gemm(text, 32, 512, 64);
    strcat(text, more);
    m = open_text(text);
    assert_ok(xrt_products_choose(m, &h, 1000, &p, err));
    *ret_why = p.why_attend[global];
    return p.attend[global];
}

#define ATTENTION(tokens, keys, heads, window, scale)                                                                   \
    "  - {kind: attention, xclbin: a, instructions: a.bin, arguments: [q, k, v, positions, o], scale: " #scale          \
    ",\n     dtypes: [bf16, bf16, bf16, i32, bf16],\n     shape: {tokens: " #tokens ", keys: " #keys ", heads: " #heads \
    ", kv_heads: 4, head_dim: 64, window: " #window "}}\n"

/* What does not fit hides nothing that does. */
static void test_attention(void **state)
{
    (void)state;
    static const struct {
        const char *more;
        bool global;
        uint32_t tokens, keys; /* of the one that is taken; 0: none, because of */
        const char *why;
    } cases[] = {
        {"", false, 0, 0, "the manifest has no attention"},
        {ATTENTION(16, 115, 8, 100, 0.125), false, 16, 115, NULL},
        {ATTENTION(16, 115, 8, 100, 0.125), true, 0, 0, "window is 100; expected 0"},
        {ATTENTION(16, 114, 8, 100, 0.125), false, 0, 0, "see 115 keys; it has room for 114"},
        {ATTENTION(16, 115, 8, 100, 0.25), false, 0, 0, "scale is 0.25; expected 0.125"},
        {ATTENTION(16, 115, 16, 100, 0.125), false, 0, 0, "heads is 16; expected 8"},
        {ATTENTION(16, 115, 8, 100, 0.25) ATTENTION(16, 116, 8, 100, 0.125), false, 16, 116, NULL}, /* less work, wrong scale */
        {ATTENTION(64, 300, 8, 100, 0.125) ATTENTION(16, 115, 8, 100, 0.1251), false, 16, 115, NULL},
        {ATTENTION(16, 115, 8, 100, 0.125) ATTENTION(32, 131, 8, 100, 0.125), false, 16, 115, NULL},
        {ATTENTION(16, 512, 8, 0, 0.125) ATTENTION(16, 4096, 16, 0, 0.125), true, 16, 512, NULL},  /* most keys, other heads */
        {ATTENTION(16, 512, 8, 0, 0.125) ATTENTION(16, 768, 8, 0, 0.125), true, 16, 768, NULL},    /* more of the context */
        {ATTENTION(16, 4096, 8, 0, 0.125) ATTENTION(16, 1024, 8, 0, 0.125), true, 16, 1024, NULL}, /* room enough, less work */
        {ATTENTION(16, 1000, 8, 0, 0.125) ATTENTION(32, 1000, 8, 0, 0.125), true, 16, 1000, NULL}, /* equal: the first */
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const char *why = NULL;
        const struct manifest_operator *op = chosen_attention(cases[i].more, cases[i].global, &why);
        assert_int_equal(op != NULL, cases[i].why == NULL);
        if (op) {
            assert_int_equal(op->dims[MANIFEST_TOKENS], cases[i].tokens);
            assert_int_equal(op->dims[MANIFEST_KEYS], cases[i].keys);
        } else {
            assert_non_null(strstr(why, cases[i].why));
        }
    }
}

static void put_operator(const char *file, const char *format, struct manifest **ret)
{
    char text[512];
    snprintf(text, sizeof(text),
             "version: 1\noperators: [{kind: gemv, xclbin: v, instructions: %s, arguments: [a, x, y], shape: {m: 8, k: 16}, "
             "format: %s}]\n",
             file, format);
    *ret = open_text(text);
}

/* A FIFO has nobody at its other end: it is refused, not waited for. */
static void test_no_regular_file(void **state)
{
    (void)state;
    struct manifest *m = NULL;
    uint32_t *words = NULL;
    size_t n;
    assert_int_equal(mkfifo(unit_path("fifo"), 0600), 0);
    assert_err(manifest_open(unit_path("fifo"), &m, err), -EINVAL, "is a FIFO; expected a regular file");
    assert_err(manifest_open(unit_path(""), &m, err), -EINVAL, "is a folder; expected a regular file");
    put_operator("fifo", "binary", &m);
    assert_err(manifest_instructions(manifest_get(m, 0), &words, &n, err), -EINVAL, "fifo': is a FIFO");
    manifest_close(m);
}

static void test_instructions(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t n;
        const char *format;
        int want; /* words, or an error */
        const char *part;
    } cases[] = {
        {"\x01\x02\x03\x04\xff\xff\xff\xff", 8, "binary", 2, ""},
        {"04030201\r\n\nFFFFffff", 19, "hex", 2, ""},
        {"\x01\x02\x03\x04\xff", 5, "binary", -EINVAL, "5 bytes; expected whole words"},
        {"", 0, "binary", -EINVAL, "it is empty"},
        {"\n\n", 2, "hex", -EINVAL, "it is empty"},
        {"04030201\n4030201\n", 17, "hex", -EINVAL, "line 2"},
        {"040302011\n", 10, "hex", -EINVAL, "line 1"},
        {"0403020x\n", 9, "hex", -EINVAL, "line 1"},
        {"04030201\n\n04030201 ;\n", 21, "hex", -EINVAL, "line 3"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct manifest *m = NULL;
        struct err err = {0};
        uint32_t *words = NULL;
        size_t n = 0;
        unit_write(unit_path("words"), cases[i].text, cases[i].n);
        put_operator("words", cases[i].format, &m);
        int r = manifest_instructions(manifest_get(m, 0), &words, &n, &err);
        bool ok = cases[i].want > 0 ? r == 0 && n == 2 && words[0] == 0x04030201 && words[1] == 0xffffffff
                                    : r == cases[i].want && !words && strstr(err.text, cases[i].part) && strstr(err.text, "/words");
        if (!ok)
            fail_msg("case %zu: %d '%s'", i, r, err.text);
        free(words);
        manifest_close(m);
    }
    struct manifest *m = NULL;
    uint32_t *words = NULL;
    size_t n;
    put_operator("absent", "hex", &m);
    assert_err(manifest_instructions(manifest_get(m, 0), &words, &n, err), -ENOENT, "/absent'");
    manifest_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(test_good),        UNIT_TEST(test_print),    UNIT_TEST(test_bad),       UNIT_TEST(test_bounds),
        UNIT_TEST(test_find),        UNIT_TEST(test_unusable), UNIT_TEST(test_attention), UNIT_TEST(test_no_regular_file),
        UNIT_TEST(test_instructions)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
