/* SPDX-License-Identifier: MIT
 * What goes in and comes out besides one checkpoint and one file: GGUF as input, models in parts, types by rule, by name and by
 * size, importance matrices, checksums, the memory budget. */
#include "tests/unit/unit_test.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/quant.h"
#include "kernels/quant_search.h"
#include "model/gguf.h"
#include "model/gguf_write.h"
#include "quantizer/compare.h"
#include "quantizer/convert.h"
#include "quantizer/info.h"
#include "quantizer/verify.h"
#include "tests/unit/checkpoint.h"

#define DEMO unit_source("models/demo")

static struct convert_options options(const char *in, const char *out, const char *type)
{
    return (struct convert_options){.in = in, .out = unit_path(out), .recipe = {.type = type}, .n_threads = 2, .alignment = 32};
}

static void convert(const char *in, const char *out, const char *type)
{
    struct convert_options o = options(in, out, type);
    struct convert_result res;
    assert_ok(convert_run(&o, &res, err));
}

static struct gguf *open_gguf(const char *name)
{
    struct gguf *g;
    assert_ok(gguf_open(unit_path(name), true, &g, err));
    return g;
}

static uint8_t *data_of(const struct gguf *g, const struct gguf_tensor *t)
{
    uint8_t *data = malloc(t->bytes);
    assert_ok(gguf_read(g, t, 0, data, t->bytes, err));
    return data;
}

/* Same tensors, types and data; the order of keys and the files may differ. */
static void assert_same_tensors(const char *a, const char *b)
{
    struct gguf *x = open_gguf(a), *y = open_gguf(b);
    assert_int_equal(gguf_n_tensors(x), gguf_n_tensors(y));
    for (uint32_t i = 0; i < gguf_n_tensors(x); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(x, i), *u = gguf_find(y, t->name);
        assert_non_null(u);
        assert_int_equal(t->type, u->type);
        assert_int_equal(t->bytes, u->bytes);
        uint8_t *p = data_of(x, t), *q = data_of(y, u);
        assert_memory_equal(p, q, t->bytes);
        free(p);
        free(q);
    }
    gguf_close(x);
    gguf_close(y);
}

static void assert_same_file(const char *a, const char *b)
{
    struct bytes x = unit_read(unit_path(a)), y = unit_read(unit_path(b));
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.data, y.data, x.n);
    unit_free(&x);
    unit_free(&y);
}

static int type_of(const struct gguf *g, const char *name)
{
    const struct gguf_tensor *t = gguf_find(g, name);
    assert_non_null(t);
    return t->type;
}

/* ---- input ---- */

static void from_gguf(void **state)
{
    (void)state;
    struct convert_result res;
    convert(DEMO, "direct.gguf", "q8_0");
    convert(DEMO, "bf16.gguf", "bf16");
    convert(DEMO, "f32.gguf", "f32");
    convert(unit_path("bf16.gguf"), "a.gguf", "q8_0");
    convert(unit_path("f32.gguf"), "b.gguf", "q8_0");
    assert_same_tensors("direct.gguf", "a.gguf");
    assert_same_file("a.gguf", "b.gguf");
    struct gguf *g = open_gguf("a.gguf"), *d = open_gguf("direct.gguf");
    assert_int_equal(gguf_n_keys(g), gguf_n_keys(d));
    uint32_t type;
    assert_ok(gguf_get_u32(g, "general.file_type", &type, err));
    assert_int_equal(type, 7);
    gguf_close(g);
    gguf_close(d);
    struct convert_options o = options(unit_path("direct.gguf"), "c.gguf", "q4_0");
    assert_err(convert_run(&o, &res, err), -EINVAL, "is q8_0 already, and its errors would add to those of q4_0");
    o.allow_requantize = true;
    assert_ok(convert_run(&o, &res, err));
    convert(unit_path("direct.gguf"), "d.gguf", "q8_0"); /* the same type: bytes go over */
    assert_same_tensors("direct.gguf", "d.gguf");
    o = options(unit_path("a.gguf"), "a.gguf", "q8_0");
    assert_err(convert_run(&o, &res, err), -EINVAL, "is the input");
    o = options(unit_path("a.gguf"), "c.gguf", "q8_0");
    o.imatrix = unit_path("c.gguf");
    assert_err(convert_run(&o, &res, err), -EINVAL, "is the importance matrix");
}

static void other_gguf(void **state)
{
    (void)state;
    struct gguf_write *w;
    struct convert_result res;
    assert_ok(gguf_write_open(unit_path("llama.gguf"), 32, &w, err));
    gguf_write_string(w, "general.architecture", "llama", 5);
    assert_ok(gguf_write_begin(w, err));
    assert_ok(gguf_write_finish(w, NULL, err));
    struct convert_options o = options(unit_path("llama.gguf"), "o.gguf", "q8_0");
    assert_err(convert_run(&o, &res, err), -ENOTSUP, "architecture is 'llama'; expected 'gemma3'");
    assert_int_equal(unit_count_files(), 1);
}

/* ---- parts ---- */

static void in_parts(void **state)
{
    (void)state;
    struct convert_result res;
    convert(DEMO, "whole.gguf", "q8_0");
    struct convert_options o = options(DEMO, "s.gguf", "q8_0");
    o.split_bytes = 4 << 20;
    assert_ok(convert_run(&o, &res, err));
    assert_int_equal(res.n_files, 4);
    for (unsigned i = 1; i <= 4; i++) {
        char name[64];
        struct stat st;
        snprintf(name, sizeof(name), "s-%05u-of-00004.gguf", i);
        assert_int_equal(stat(unit_path(name), &st), 0);
        assert_true(st.st_size <= 4 << 20);
        assert_same_tensors("whole.gguf", name);
    }
    struct gguf *g = open_gguf("s-00003-of-00004.gguf");
    assert_int_equal(gguf_n_files(g), 4);
    assert_string_equal(gguf_path(g), unit_path("s-00001-of-00004.gguf"));
    uint32_t n;
    assert_ok(gguf_get_u32(g, "split.tensors.count", &n, err));
    assert_int_equal(n, 158);
    gguf_close(g);
    convert(unit_path("s-00002-of-00004.gguf"), "joined.gguf", "q8_0");
    assert_same_tensors("whole.gguf", "joined.gguf");
    g = open_gguf("joined.gguf");
    assert_int_equal(gguf_get_u32(g, "split.count", &n, NULL), -ENOENT);
    gguf_close(g);
}

static void layer_by_layer(void **state)
{
    (void)state;
    struct convert_result res;
    convert(DEMO, "whole.gguf", "q4_0");
    struct convert_options o = options(DEMO, "l.gguf", "q4_0");
    o.split_layers = true;
    assert_ok(convert_run(&o, &res, err));
    assert_int_equal(res.n_files, 13);
    assert_same_tensors("whole.gguf", "l-00007-of-00013.gguf");
    struct gguf *g = open_gguf("l-00001-of-00013.gguf");
    for (uint32_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        unsigned layer = 0;
        bool in_layer = sscanf(t->name, "blk.%u.", &layer) == 1;
        assert_int_equal(t->file, in_layer ? layer + 1 : 0);
    }
    gguf_close(g);
}

static void broken_parts(void **state)
{
    (void)state;
    struct convert_result res;
    struct gguf *g;
    checkpoint_make(unit_path("in"), &(struct checkpoint){0});
    struct convert_options o = options(unit_path("in"), "s.gguf", "f32");
    o.split_layers = true;
    assert_ok(convert_run(&o, &res, err));
    unit_copy(unit_path("s-00002-of-00002.gguf"), unit_path("odd.gguf"));
    assert_err(gguf_open(unit_path("odd.gguf"), false, &g, err), -EPROTO,
               "is part 2 of 2 of a split model; expected a name that ends");
    unit_copy(unit_path("s-00001-of-00002.gguf"), unit_path("x-00001-of-00002.gguf"));
    assert_err(gguf_open(unit_path("x-00001-of-00002.gguf"), false, &g, err), -ENOENT, "part 2 of 2 of a split model is missing");
    unit_copy(unit_path("s-00001-of-00002.gguf"), unit_path("x-00002-of-00002.gguf"));
    assert_err(gguf_open(unit_path("x-00001-of-00002.gguf"), false, &g, err), -EPROTO,
               "says that it is part 1 of 2; expected part 2");
    struct bytes b = unit_read(unit_path("s-00002-of-00002.gguf"));
    unit_write(unit_path("x-00002-of-00002.gguf"), b.data, b.n - 100);
    assert_err(gguf_open(unit_path("x-00001-of-00002.gguf"), false, &g, err), -EPROTO, "is it cut off?");
    unit_free(&b);
}

/* A file system in memory takes no O_DIRECT on older kernels: then everything goes through the page cache. */
static void other_file_system(void **state)
{
    (void)state;
    char path[64];
    struct convert_result res;
    snprintf(path, sizeof(path), "/dev/shm/tandem-forms-%d.gguf", (int)getpid());
    convert(DEMO, "disk.gguf", "q4_0");
    struct convert_options o = options(DEMO, "unused", "q4_0");
    o.out = path;
    o.group_bytes = 1 << 20;
    assert_ok(convert_run(&o, &res, err));
    unit_copy(path, unit_path("memory.gguf"));
    o = options(path, "again.gguf", "q4_0"); /* and as input */
    assert_ok(convert_run(&o, &res, err));
    unlink(path);
    assert_same_file("disk.gguf", "memory.gguf");
    assert_same_tensors("disk.gguf", "again.gguf");
}

/* ---- types ---- */

/* llama-quantize's rule for 12 layers, written out: an eighth is 1, so the first and last are in, and 3, 6, 9 between. */
static bool gets_more(unsigned layer)
{
    return layer == 0 || layer == 3 || layer == 6 || layer == 9 || layer >= 10;
}

static void mixes(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int type;
        uint32_t file_type;
    } cases[] = {{"q4_k_m", QUANT_Q4_K, 15}, {"Q5_K_M", QUANT_Q5_K, 17}};
    for (size_t c = 0; c < 2; c++) {
        uint32_t file_type;
        convert(DEMO, "m.gguf", cases[c].name);
        struct gguf *g = open_gguf("m.gguf");
        assert_ok(gguf_get_u32(g, "general.file_type", &file_type, err));
        assert_int_equal(file_type, cases[c].file_type);
        assert_int_equal(type_of(g, "token_embd.weight"), QUANT_Q6_K);
        for (unsigned i = 0; i < 12; i++) {
            char name[64];
            int more = gets_more(i) ? QUANT_Q6_K : cases[c].type;
            snprintf(name, sizeof(name), "blk.%u.attn_v.weight", i);
            assert_int_equal(type_of(g, name), more);
            snprintf(name, sizeof(name), "blk.%u.ffn_down.weight", i);
            assert_int_equal(type_of(g, name), more);
            snprintf(name, sizeof(name), "blk.%u.attn_k.weight", i);
            assert_int_equal(type_of(g, name), cases[c].type);
        }
        gguf_close(g);
    }
}

static void rows_that_do_not_fit(void **state)
{
    (void)state;
    convert(unit_source("tests/golden/tiny-27b"), "t.gguf", "q4_k_m"); /* rows of 160 */
    struct gguf *g = open_gguf("t.gguf");
    assert_int_equal(type_of(g, "blk.1.attn_q.weight"), QUANT_Q5_0);
    assert_int_equal(type_of(g, "token_embd.weight"), QUANT_Q8_0);
    assert_int_equal(type_of(g, "blk.0.attn_v.weight"), QUANT_Q8_0);
    gguf_close(g);
}

static void by_name(void **state)
{
    (void)state;
    struct convert_result res;
    const struct recipe_override good[] = {{"ffn_", "q4_0"}, {"blk\\.(0|11)\\.ffn_down", "bf16"}};
    struct convert_options o = options(DEMO, "m.gguf", "q8_0");
    o.recipe.overrides = good;
    o.recipe.n_overrides = 2;
    assert_ok(convert_run(&o, &res, err));
    struct gguf *g = open_gguf("m.gguf");
    assert_int_equal(type_of(g, "blk.0.ffn_down.weight"), QUANT_BF16);
    assert_int_equal(type_of(g, "blk.1.ffn_down.weight"), QUANT_Q4_0);
    assert_int_equal(type_of(g, "blk.0.ffn_norm.weight"), QUANT_F32);
    assert_int_equal(type_of(g, "blk.0.attn_q.weight"), QUANT_Q8_0);
    gguf_close(g);
    static const struct {
        struct recipe_override o;
        const char *part;
    } bad[] = {{{"nothing", "q8_0"}, "'nothing=q8_0' matches no matrix"},
               {{"ffn", "q9"}, "type 'q9' is not known"},
               {{"ffn(", "q8_0"}, "not a regular expression"}};
    for (size_t i = 0; i < 3; i++) {
        o.recipe.overrides = &bad[i].o;
        o.recipe.n_overrides = 1;
        assert_err(convert_run(&o, &res, err), -EINVAL, bad[i].part);
    }
}

static void by_size(void **state)
{
    (void)state;
    struct convert_result res;
    struct convert_options o = options(DEMO, "m.gguf", NULL);
    double last = INFINITY;
    o.no_search = true;
    for (uint64_t size = 7500000; size < 30000000; size = size * 5 / 4) {
        struct stat st;
        struct compare_sum sum;
        o.fit = size;
        assert_ok(convert_run(&o, &res, err));
        assert_int_equal(stat(unit_path("m.gguf"), &st), 0);
        assert_true((uint64_t)st.st_size <= size);
        assert_true((uint64_t)st.st_size > size - size / 8 || size > 26000000);
        assert_ok(compare_run(DEMO, unit_path("m.gguf"), NULL, &sum, err));
        assert_true(compare_rmse(&sum) < last || last == 0);
        last = compare_rmse(&sum);
    }
    assert_true(last == 0); /* at the end everything is bf16, as in the checkpoint */
    o.fit = 5 << 20;
    assert_err(convert_run(&o, &res, err), -ENOSPC, "its smallest form needs");
}

/* ---- importance ---- */

static void write_imatrix(const char *name, const char *type, uint64_t cols, float first)
{
    struct gguf_write *w;
    float sums[256], count = 4;
    const uint64_t dims[] = {cols, 1}, one[] = {1, 1};
    for (int i = 0; i < 256; i++)
        sums[i] = i < 128 ? 400.0f : 4.0f;
    sums[0] = first;
    assert_ok(gguf_write_open(unit_path(name), 32, &w, err));
    gguf_write_string(w, "general.type", type, strlen(type));
    gguf_write_strings_begin(w, "imatrix.datasets", 1);
    gguf_write_strings_add(w, "text.txt", 8);
    gguf_write_u32(w, "imatrix.chunk_count", 7);
    assert_true(gguf_write_tensor(w, "blk.0.attn_q.weight.in_sum2", QUANT_F32, 2, dims, NULL) == 0);
    assert_true(gguf_write_tensor(w, "blk.0.attn_q.weight.counts", QUANT_F32, 2, one, NULL) == 1);
    assert_ok(gguf_write_begin(w, err));
    assert_ok(gguf_write_data(w, 0, 0, sums, cols * 4, err));
    assert_ok(gguf_write_data(w, 1, 0, &count, 4, err));
    assert_ok(gguf_write_finish(w, NULL, err));
}

static double weighted_error(const char *name, const float *weights)
{
    struct gguf *exact = open_gguf("exact.gguf"), *g = open_gguf(name);
    const struct gguf_tensor *t = gguf_find(exact, "blk.0.attn_q.weight"), *u = gguf_find(g, t->name);
    uint8_t *x = data_of(exact, t), *q = data_of(g, u);
    double sum = 0;
    for (uint64_t r = 0; r < t->dims[1]; r++)
        sum += quant_search_error(u->type, (const float *)(const void *)x + r * 256, weights, q + r * quant_row_bytes(u->type, 256),
                                  256);
    free(x);
    free(q);
    gguf_close(exact);
    gguf_close(g);
    return sum;
}

static void importance(void **state)
{
    (void)state;
    struct convert_result res;
    float weights[256];
    for (int i = 0; i < 256; i++)
        weights[i] = i < 128 ? 100 : 1;
    convert(DEMO, "exact.gguf", "f32");
    convert(DEMO, "plain.gguf", "q4_k_m");
    write_imatrix("i.gguf", "imatrix", 256, 400);
    struct convert_options o = options(DEMO, "weighted.gguf", "q4_k_m");
    o.imatrix = unit_path("i.gguf");
    assert_ok(convert_run(&o, &res, err));
    assert_true(weighted_error("weighted.gguf", weights) < weighted_error("plain.gguf", weights));
    assert_true(weighted_error("weighted.gguf", NULL) >= weighted_error("plain.gguf", NULL));
    struct gguf *g = open_gguf("weighted.gguf");
    uint32_t n;
    const char *text;
    assert_ok(gguf_get_u32(g, "quantize.imatrix.entries_count", &n, err));
    assert_int_equal(n, 1);
    assert_ok(gguf_get_u32(g, "quantize.imatrix.chunks_count", &n, err));
    assert_int_equal(n, 7);
    assert_ok(gguf_get_string(g, "quantize.imatrix.dataset", &text, NULL, err));
    assert_string_equal(text, "text.txt");
    gguf_close(g);
    write_imatrix("i.gguf", "imatrix", 128, 1);
    assert_err(convert_run(&o, &res, err), -EINVAL, "has 128 x 1 elements of type f32; expected 256");
    write_imatrix("i.gguf", "imatrix", 256, -1);
    assert_err(convert_run(&o, &res, err), -EINVAL, "element 0 is -1; expected a finite number");
    write_imatrix("i.gguf", "model", 256, 1);
    assert_err(convert_run(&o, &res, err), -EINVAL, "key 'general.type' is 'model'; expected 'imatrix'");
}

/* ---- reading back ---- */

static void checksums(void **state)
{
    (void)state;
    struct verify_result res;
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    checkpoint_make(unit_path("in"), &(struct checkpoint){0});
    convert(unit_path("in"), "m.gguf", "q8_0");
    assert_ok(verify_run(unit_path("m.gguf"), f, &res, err));
    assert_int_equal(res.n_tensors, 15);
    assert_int_equal(res.n_bad, 0);
    struct gguf *g = open_gguf("m.gguf");
    uint64_t at = gguf_find(g, "blk.0.ffn_up.weight")->offset;
    assert_int_equal(gguf_find(g, "blk.0.ffn_up.weight")->offset % 32, 0);
    gguf_close(g);
    struct bytes b = unit_read(unit_path("m.gguf"));
    b.data[at] ^= 1;
    unit_write(unit_path("m.gguf"), b.data, b.n);
    assert_ok(verify_run(unit_path("m.gguf"), f, &res, err));
    fflush(f);
    assert_int_equal(res.n_bad, 1);
    assert_non_null(strstr(text, "tensor 'blk.0.ffn_up.weight' has changed"));
    fclose(f);
    free(text);
    b.data = realloc(b.data, b.n + 1);
    b.data[b.n] = 0;
    unit_write(unit_path("m.gguf"), b.data, b.n + 1);
    assert_err(verify_run(unit_path("m.gguf"), stdout, &res, err), -EBADMSG, "it was cut or added to");
    unit_free(&b);
    struct gguf_write *w;
    assert_ok(gguf_write_open(unit_path("none.gguf"), 32, &w, err));
    assert_ok(gguf_write_begin(w, err));
    assert_ok(gguf_write_finish(w, NULL, err));
    assert_err(verify_run(unit_path("none.gguf"), stdout, &res, err), -ENOENT, "has no key 'tandem.tensor_xxh3_64'");
}

static void printed(void **state)
{
    (void)state;
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    convert(DEMO, "m.gguf", "q4_0");
    assert_ok(info_run(unit_path("m.gguf"), f, err));
    fflush(f);
    static const char *const parts[] = {"gemma3.block_count                           u32          12\n",
                                        "'<pad>', '<eos>', '<bos>'",
                                        "(4096)",
                                        "1024 x 256               q4_0",
                                        "q4_0: 85 tensors",
                                        "f32: 73 tensors"};
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        if (!strstr(text, parts[i]))
            fail_msg("'%s' is not in:\n%s", parts[i], text);
    }
    fclose(f);
    free(text);
}

static void compared(void **state)
{
    (void)state;
    struct compare_sum sum;
    convert(DEMO, "f32.gguf", "f32");
    convert(DEMO, "q8.gguf", "q8_0");
    assert_ok(compare_run(DEMO, unit_path("f32.gguf"), NULL, &sum, err));
    assert_true(compare_rmse(&sum) == 0 && sum.max == 0 && fabs(compare_cosine(&sum) - 1) < 1e-12);
    assert_int_equal(sum.n, 4096 * 256 + 12 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 1024 * 256));
    assert_ok(compare_run(unit_path("q8.gguf"), unit_path("f32.gguf"), NULL, &sum, err));
    assert_true(compare_rmse(&sum) > 1e-5 && compare_rmse(&sum) < 1e-3);
    assert_true(compare_cosine(&sum) > 0.9999 && compare_cosine(&sum) < 1);
    assert_true(sum.max >= compare_rmse(&sum));
    assert_err(compare_run(DEMO, unit_source("tests/golden/tiny-27b"), NULL, &sum, err), -EINVAL, "two forms of the same model");
}

/* ---- memory ---- */

static void budget(void **state)
{
    (void)state;
    struct convert_result res;
    convert(DEMO, "a.gguf", "q4_k_m");
    struct convert_options o = options(DEMO, "b.gguf", "q4_k_m");
    o.memory = 1 << 20;
    struct err e = {0};
    assert_int_equal(convert_run(&o, &res, &e), -ENOSPC);
    const char *at = strstr(e.text, "expected at least ");
    assert_non_null(at);
    o.memory = strtoull(at + strlen("expected at least "), NULL, 10) << 20;
    assert_int_equal(unit_count_files(), 1);
    assert_ok(convert_run(&o, &res, err)); /* what it asks for is enough */
    assert_same_file("a.gguf", "b.gguf");
    o.n_threads = 7;
    o.memory = 0;
    assert_ok(convert_run(&o, &res, err));
    assert_same_file("a.gguf", "b.gguf");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(from_gguf),    UNIT_TEST(other_gguf),        UNIT_TEST(in_parts),   UNIT_TEST(layer_by_layer),
        UNIT_TEST(broken_parts), UNIT_TEST(other_file_system), UNIT_TEST(mixes),      UNIT_TEST(rows_that_do_not_fit),
        UNIT_TEST(by_name),      UNIT_TEST(by_size),           UNIT_TEST(importance), UNIT_TEST(checksums),
        UNIT_TEST(printed),      UNIT_TEST(compared),          UNIT_TEST(budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
