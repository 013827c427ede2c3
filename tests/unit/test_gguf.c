/* SPDX-License-Identifier: MIT
 * model/gguf and model/gguf_write: what is written is read back, and broken files give one clear error each. One thread. */
#include "tests/unit/unit_test.h"

#include <errno.h>
#include <stdio.h>

#include "kernels/quant.h"
#include "model/gguf.h"
#include "model/gguf_write.h"

static const float values[64] = {1, 2, 3, 0.5f, -7};

static void add_tensor(struct gguf_write *w, const char *name, int type, uint32_t n_dims, const uint64_t *dims)
{
    assert_ok(gguf_write_tensor(w, name, type, n_dims, dims, err));
}

static void write_good(const char *path, uint32_t alignment)
{
    struct gguf_write *w;
    uint64_t size;
    const int32_t types[] = {3, 2, 1};
    uint8_t q[68];
    assert_ok(gguf_write_open(path, alignment, &w, err));
    gguf_write_string(w, "general.architecture", "gemma3", 6);
    gguf_write_u32(w, "n", 7);
    gguf_write_f32(w, "f", 0.25f);
    gguf_write_bool(w, "yes", true);
    gguf_write_strings_begin(w, "words", 3);
    gguf_write_strings_add(w, "ab", 2);
    gguf_write_strings_add(w, "", 0);
    gguf_write_strings_add(w, "c\0d", 3);
    gguf_write_array(w, "types", GGUF_I32, types, 3);
    add_tensor(w, "a", QUANT_F32, 1, (const uint64_t[]){3});
    add_tensor(w, "b", QUANT_Q8_0, 2, (const uint64_t[]){32, 2});
    assert_ok(gguf_write_begin(w, err));
    quant_quantize_row(QUANT_Q8_0, values, q, 64);
    assert_ok(gguf_write_data(w, 1, 34, q + 34, 34, err));
    assert_ok(gguf_write_data(w, 1, 0, q, 34, err));
    assert_ok(gguf_write_data(w, 0, 0, values, 12, err));
    assert_ok(gguf_write_finish(w, &size, err));
    struct bytes b = unit_read(path);
    assert_int_equal(b.n, size);
    unit_free(&b);
}

static void check_good(const char *path, uint32_t alignment)
{
    struct gguf *g;
    const char *s;
    size_t n;
    uint32_t u;
    float f;
    bool yes;
    const void *array;
    uint64_t count;
    assert_ok(gguf_open(path, false, &g, err));
    assert_string_equal(gguf_path(g), path);
    assert_int_equal(gguf_n_tensors(g), 2);
    assert_ok(gguf_get_u32(g, "n", &u, err));
    assert_int_equal(u, 7);
    assert_ok(gguf_get_f32(g, "f", &f, err));
    assert_true(f == 0.25f);
    assert_ok(gguf_get_bool(g, "yes", &yes, err));
    assert_true(yes);
    assert_ok(gguf_get_string(g, "general.architecture", &s, &n, err));
    assert_string_equal(s, "gemma3");
    assert_int_equal(n, 6);
    assert_ok(gguf_get_string_at(g, "words", 2, &s, &n, err));
    assert_int_equal(n, 3);
    assert_memory_equal(s, "c\0d", 4);
    assert_ok(gguf_get_string_at(g, "words", 1, &s, &n, err));
    assert_int_equal(n, 0);
    assert_ok(gguf_get_array(g, "types", GGUF_I32, &array, &count, err));
    assert_int_equal(count, 3);
    assert_int_equal(((const int32_t *)array)[1], 2);
    assert_int_equal(gguf_get_u32(g, "absent", &u, NULL), -ENOENT);
    assert_err(gguf_get_u32(g, "f", &u, err), -EINVAL, "key 'f' is of type f32; expected an integer");
    assert_err(gguf_get_f32(g, "n", &f, err), -EINVAL, "expected a float");
    assert_err(gguf_get_bool(g, "n", &yes, err), -EINVAL, "expected a bool");
    assert_err(gguf_get_string(g, "n", &s, &n, err), -EINVAL, "expected a string");
    assert_err(gguf_get_array(g, "types", GGUF_F32, &array, &count, err), -EINVAL, "array");
    assert_err(gguf_get_string_at(g, "types", 0, &s, &n, err), -EINVAL, "array of strings");
    assert_err(gguf_get_string_at(g, "words", 3, &s, &n, err), -EINVAL, "has 3 elements");
    const struct gguf_tensor *b = gguf_find(g, "b");
    assert_non_null(b);
    assert_null(gguf_find(g, "c"));
    assert_int_equal(b->dims[0], 32);
    assert_int_equal(b->dims[1], 2);
    assert_int_equal(b->dims[2], 1);
    assert_int_equal(b->bytes, 68);
    assert_int_equal(b->offset % alignment, 0);
    uint8_t q[68], want[68];
    quant_quantize_row(QUANT_Q8_0, values, want, 64);
    assert_ok(gguf_read(g, b, 10, q, 58, err));
    assert_memory_equal(q, want + 10, 58);
    assert_err(gguf_read(g, b, 10, q, 59, err), -EINVAL, "tensor 'b'");
    gguf_close(g);
}

static void round_trip(void **state)
{
    (void)state;
    static const uint32_t alignments[] = {8, 32, 4096};
    for (size_t i = 0; i < 3; i++) {
        write_good(unit_path("x.gguf"), alignments[i]);
        check_good(unit_path("x.gguf"), alignments[i]);
    }
    assert_int_equal(unit_count_files(), 1);
}

static void writer_errors(void **state)
{
    (void)state;
    struct gguf_write *w;
    const uint64_t dims[] = {32, 2, 0}, odd[] = {33}, huge[] = {32, UINT64_MAX / 8};
    assert_err(gguf_write_open(unit_path("x"), 48, &w, err), -EINVAL, "alignment 48");
    assert_ok(gguf_write_open(unit_path("x"), 32, &w, err));
    gguf_write_u32(w, "k", 1);
    gguf_write_u32(w, "k", 1);
    add_tensor(w, "t", QUANT_F32, 2, dims);
    assert_err(gguf_write_tensor(w, "t", QUANT_F32, 1, dims, err), -EINVAL, "'t' was given twice");
    assert_err(gguf_write_tensor(w, "u", QUANT_Q4_0, 1, odd, err), -EINVAL, "rows of 33 elements do not fit type q4_0");
    assert_err(gguf_write_tensor(w, "u", QUANT_F32, 2, huge, err), -EINVAL, "dimension 1");
    assert_err(gguf_write_tensor(w, "u", QUANT_F32, 3, dims, err), -EINVAL, "dimension 2 is 0");
    assert_err(gguf_write_tensor(w, "u", 11, 1, dims, err), -EINVAL, "unknown");
    assert_err(gguf_write_begin(w, err), -EINVAL, "key 'k' was given twice");
    gguf_write_abort(w);
    assert_ok(gguf_write_open(unit_path("x"), 32, &w, err));
    gguf_write_strings_begin(w, "s", 2);
    gguf_write_strings_add(w, "a", 1);
    assert_err(gguf_write_begin(w, err), -EINVAL, "string array");
    gguf_write_abort(w);
    assert_ok(gguf_write_open(unit_path("x"), 32, &w, err));
    add_tensor(w, "t", QUANT_F32, 2, dims);
    assert_ok(gguf_write_begin(w, err));
    assert_ok(gguf_write_data(w, 0, 0, values, 128, err));
    assert_err(gguf_write_data(w, 0, 128, values, 129, err), -EINVAL, "more than it has");
    assert_err(gguf_write_data(w, 1, 0, values, 1, err), -EINVAL, "tensor 1");
    assert_err(gguf_write_finish(w, NULL, err), -EINVAL, "tensor 't' got 128 of 256 bytes");
    assert_int_equal(unit_count_files(), 0);
    gguf_write_abort(NULL);
}

static int open_bytes(const uint8_t *data, size_t n, struct err *e)
{
    struct gguf *g;
    unit_write(unit_path("b.gguf"), data, n);
    int r = gguf_open(unit_path("b.gguf"), false, &g, e);
    if (r == 0) {
        uint8_t buf[256];
        for (uint32_t i = 0; i < gguf_n_tensors(g); i++) {
            const struct gguf_tensor *t = gguf_tensor_at(g, i);
            if (t->bytes)
                assert_ok(gguf_read(g, t, 0, buf, t->bytes < sizeof(buf) ? t->bytes : sizeof(buf), err));
        }
        gguf_close(g);
    }
    return r;
}

static void every_truncation(void **state)
{
    (void)state;
    write_good(unit_path("x.gguf"), 32);
    struct bytes b = unit_read(unit_path("x.gguf"));
    for (size_t n = 0; n < b.n - 28; n++) { /* the last 28 bytes are padding, which no reader needs */
        struct err err = {0};
        int r = open_bytes(b.data, n, &err);
        if (r >= 0 || !strstr(err.text, "b.gguf"))
            fail_msg("cut to %zu of %zu bytes: %d '%s'", n, b.n, r, err.text);
    }
    assert_int_equal(open_bytes(b.data, b.n - 28, NULL), 0);
    unit_free(&b);
}

static void every_byte_changed(void **state)
{
    (void)state;
    static const uint8_t masks[] = {0x01, 0x80, 0xff};
    unsigned refused = 0;
    write_good(unit_path("x.gguf"), 32);
    struct bytes b = unit_read(unit_path("x.gguf"));
    for (size_t i = 0; i < b.n; i++) {
        for (size_t m = 0; m < sizeof(masks); m++) {
            struct err err = {0};
            b.data[i] ^= masks[m];
            int r = open_bytes(b.data, b.n, &err);
            b.data[i] ^= masks[m];
            assert_true((r == 0) == (err.text[0] == '\0'));
            refused += r < 0;
        }
    }
    assert_true(refused > 300);
    unit_free(&b);
}

/* ---- files made by hand ---- */

static struct bytes begin(uint32_t version, uint64_t n_tensors, uint64_t n_keys)
{
    struct bytes b = {0};
    unit_put(&b, "GGUF", 4);
    unit_put_u32(&b, version);
    unit_put_u64(&b, n_tensors);
    unit_put_u64(&b, n_keys);
    return b;
}

static void put_key(struct bytes *b, const char *key, uint32_t type)
{
    unit_put_string(b, key);
    unit_put_u32(b, type);
}

static void put_tensor(struct bytes *b, const char *name, uint32_t n_dims, uint64_t d0, uint64_t d1, uint32_t type, uint64_t offset)
{
    unit_put_string(b, name);
    unit_put_u32(b, n_dims);
    for (uint32_t i = 0; i < n_dims && i < 8; i++)
        unit_put_u64(b, i == 0 ? d0 : d1);
    unit_put_u32(b, type);
    unit_put_u64(b, offset);
}

static void refused(struct bytes b, const char *part)
{
    static const uint8_t zeros[4096];
    struct err e = {0};
    unit_put(&b, zeros, sizeof(zeros)); /* so that the file is long enough */
    int r = open_bytes(b.data, b.n, &e);
    if (r >= 0 || !strstr(e.text, part) || !strstr(e.text, "b.gguf'"))
        fail_msg("%d '%s'; expected '%s'", r, e.text, part);
    unit_free(&b);
}

static void bad_headers(void **state)
{
    (void)state;
    struct bytes b = begin(1, 0, 0);
    assert_err(open_bytes(NULL, 0, err), -EPROTO, "is empty");
    assert_err(open_bytes((const uint8_t *)"PK\3\4whatever", 12, err), -EPROTO, "50 4b 03 04");
    refused(b, "version 1");
    refused(begin(0x03000000, 0, 0), "little-endian");
    refused(begin(3, UINT64_MAX, 0), "18446744073709551615 tensors");
    refused(begin(3, 0, 1u << 20), "1048576 keys");
    struct bytes s = {0};
    unit_put_u64(&s, 50);
    unit_put(&s, "{\"t\":", 5);
    refused(s, "is a safetensors file");
}

static void bad_keys(void **state)
{
    (void)state;
    struct bytes b = begin(3, 0, 1);
    unit_put_u64(&b, UINT64_MAX);
    refused(b, "string at offset 24");
    b = begin(3, 0, 1);
    put_key(&b, "k", 13);
    refused(b, "key 'k': type 13");
    b = begin(3, 0, 2);
    for (int i = 0; i < 2; i++) {
        put_key(&b, "k", GGUF_U32);
        unit_put_u32(&b, 1);
    }
    refused(b, "key 'k' appears twice");
    b = begin(3, 0, 1);
    put_key(&b, "k", GGUF_ARRAY);
    unit_put_u32(&b, GGUF_ARRAY);
    unit_put_u64(&b, 1);
    refused(b, "no nested arrays");
    b = begin(3, 0, 1);
    put_key(&b, "k", GGUF_ARRAY);
    unit_put_u32(&b, GGUF_F64);
    unit_put_u64(&b, UINT64_MAX / 4);
    refused(b, "key 'k': array");
    b = begin(3, 0, 1);
    put_key(&b, "k", GGUF_ARRAY);
    unit_put_u32(&b, GGUF_STRING);
    unit_put_u64(&b, 2);
    unit_put_string(&b, "fine");
    unit_put_u64(&b, 1u << 30);
    refused(b, "string 1 at offset");
    b = begin(3, 0, 1);
    put_key(&b, "general.alignment", GGUF_U32);
    unit_put_u32(&b, 48);
    refused(b, "'general.alignment' is 48");
    b = begin(3, 0, 1);
    put_key(&b, "general.alignment", GGUF_STRING);
    unit_put_string(&b, "32");
    refused(b, "key 'general.alignment' is of type string");
    b = begin(3, 0, 1);
    put_key(&b, "split.count", GGUF_U16);
    unit_put(&b, "\3\0", 2);
    refused(b, "is part 1 of 3 of a split model; expected a name that ends in '-00001-of-00003.gguf'");
}

static void bad_tensors(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_dims;
        uint64_t d0, d1;
        uint32_t type;
        uint64_t offset;
        const char *part;
    } cases[] = {
        {0, 0, 0, 0, 0, "'t': has 0 dimensions"},
        {5, 1, 1, 0, 0, "'t': has 5 dimensions"},
        {2, 4, 0, 0, 0, "'t': dimension 1 is 0"},
        {2, UINT64_MAX, 1, 0, 0, "'t': dimension 0"},
        {2, 1ull << 40, 1ull << 40, 0, 0, "'t': dimension 1"},
        {2, 33, 2, QUANT_Q8_0, 0, "'t': rows of 33 elements; type q8_0"},
        {1, 4, 0, 4, 0, "'t': type 4 does not exist"},
        {1, 4, 0, 0xffffffff, 0, "does not exist"},
        {1, 4, 0, 0, 4, "tensor 't' is at data offset 4"},
        {1, 4, 0, 0, 1u << 20, "ends after the file's"},
        {1, 4, 0, 0, UINT64_MAX - 31, "ends after the file's"},
        {2, 4096, 4096, 0, 0, "ends after the file's"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bytes b = begin(3, 1, 0);
        put_tensor(&b, "t", cases[i].n_dims, cases[i].d0, cases[i].d1, cases[i].type, cases[i].offset);
        refused(b, cases[i].part);
    }
    struct bytes b = begin(3, 2, 0);
    put_tensor(&b, "t", 1, 4, 0, 0, 0);
    put_tensor(&b, "t", 1, 4, 0, 0, 32);
    refused(b, "tensor 't' appears twice");
    b = begin(3, 2, 0);
    put_tensor(&b, "t", 1, 16, 0, 0, 0);
    put_tensor(&b, "u", 1, 4, 0, 0, 32);
    refused(b, "tensor 'u' overlaps");
}

/* A type that exists but that we cannot read is an error only for who needs the tensor. */
static void unsupported_type_opens(void **state)
{
    (void)state;
    struct bytes b = begin(2, 1, 0);
    struct gguf *g;
    put_tensor(&b, "t", 2, 256, 2, 11, 0);
    unit_put(&b, values, sizeof(values));
    unit_put(&b, values, sizeof(values));
    unit_write(unit_path("q3_K.gguf"), b.data, b.n);
    assert_ok(gguf_open(unit_path("q3_K.gguf"), true, &g, err));
    assert_int_equal(gguf_find(g, "t")->type, 11);
    assert_int_equal(gguf_find(g, "t")->bytes, 0);
    assert_err(gguf_read(g, gguf_find(g, "t"), 0, b.data, 1, err), -EINVAL, "tensor 't'");
    gguf_close(g);
    gguf_close(NULL);
    unit_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(round_trip),         UNIT_TEST(writer_errors),         UNIT_TEST(every_truncation),
                                       UNIT_TEST(every_byte_changed), UNIT_TEST(bad_headers),           UNIT_TEST(bad_keys),
                                       UNIT_TEST(bad_tensors),        UNIT_TEST(unsupported_type_opens)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
