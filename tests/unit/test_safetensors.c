/* SPDX-License-Identifier: MIT
 * model/safetensors: real checkpoints, and headers and indexes that lie. One thread. */
#include "tests/unit/unit_test.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

#include "kernels/quant.h"
#include "model/safetensors.h"

static struct bytes make(const char *json, size_t data)
{
    struct bytes b = {0};
    unit_put_u64(&b, strlen(json));
    unit_put(&b, json, strlen(json));
    for (size_t i = 0; i < data; i++)
        unit_put(&b, &(uint8_t){(uint8_t)i}, 1);
    return b;
}

static void write_file(const char *name, const char *json, size_t data)
{
    struct bytes b = make(json, data);
    unit_write(unit_path(name), b.data, b.n);
    unit_free(&b);
}

#define GOOD                                                                                                 \
    "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[12,16]}," \
    "\"a\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]}}   "

static void reads(void **state)
{
    (void)state;
    struct safetensors *s;
    uint8_t buf[16];
    write_file("x.safetensors", GOOD, 16);
    assert_ok(safetensors_open_file(unit_path("x.safetensors"), &s, err));
    assert_int_equal(safetensors_n(s), 2);
    const struct safetensors_tensor *a = safetensors_at(s, 0), *b = safetensors_find(s, "b");
    assert_string_equal(a->name, "a");
    assert_string_equal(a->dtype, "BF16");
    assert_int_equal(a->type, QUANT_BF16);
    assert_int_equal(a->n_dims, 2);
    assert_int_equal(a->dims[1], 3);
    assert_int_equal(a->bytes, 12);
    assert_int_equal(b->n_dims, 0);
    assert_int_equal(b->bytes, 4);
    assert_ok(safetensors_read(s, b, 1, buf, 3, err));
    assert_memory_equal(buf, "\x0d\x0e\x0f", 3);
    assert_err(safetensors_read(s, a, 1, buf, 12, err), -EINVAL, "tensor 'a'");
    assert_null(safetensors_find(s, "c"));
    safetensors_close(s);
    safetensors_close(NULL);
}

static int open_bytes(const void *data, size_t n, struct err *e)
{
    struct safetensors *s;
    unit_write(unit_path("y.safetensors"), data, n);
    int r = safetensors_open_file(unit_path("y.safetensors"), &s, e);
    if (r == 0)
        safetensors_close(s);
    return r;
}

static void broken_bytes(void **state)
{
    (void)state;
    struct bytes b = make(GOOD, 16);
    unsigned refused = 0;
    for (size_t n = 0; n < b.n; n++) {
        struct err e = {0};
        if (open_bytes(b.data, n, &e) >= 0 || !strstr(e.text, "y.safetensors"))
            fail_msg("cut to %zu: '%s'", n, e.text);
    }
    for (size_t i = 0; i < b.n - 16; i++) {
        for (unsigned mask = 1; mask < 256; mask = mask * 16 + 15) {
            struct err e = {0};
            b.data[i] ^= (uint8_t)mask;
            int r = open_bytes(b.data, b.n, &e);
            b.data[i] ^= (uint8_t)mask;
            assert_true((r == 0) == (e.text[0] == '\0'));
            refused += r < 0;
        }
    }
    assert_true(refused > 150);
    unit_free(&b);
}

#define T(rest) "{\"t\":{" rest "}}"
static const struct {
    const char *json;
    size_t data;
    const char *part;
} lies[] = {
    {"", 0, "JSON"},
    {"[]", 0, "not an object"},
    {"{\"t\":1}", 0, "tensor 't': 'dtype' is '(missing)'"},
    {T("\"dtype\":\"Q4\",\"shape\":[1],\"data_offsets\":[0,4]"), 4, "'dtype' is 'Q4'"},
    {T("\"dtype\":\"F32\",\"data_offsets\":[0,4]"), 4, "'shape' is missing"},
    {T("\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]"), 4, "'shape'"},
    {T("\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]"), 4, "'shape', element 0"},
    {T("\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]"), 4, "'shape', element 1"},
    {T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]"), 4, "hold 4 bytes; dtype and shape need 8"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]"), 4, "'data_offsets'"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]"), 4, "'data_offsets'"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4.5]"), 8, "'data_offsets'"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[9223372036854775800,9223372036854775804]"), 4, "cut off"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]"), 2, "cut off"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]"), 5, "tensors end at offset"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[1,5]"), 5, "a hole"},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"u\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2,6]"
     "}}",
     6, "an overlap"},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]"
     "}}",
     8, "duplicate"},
    {"{\"__metadata__\":[]}", 0, "'__metadata__'"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "'__metadata__', key 'a'"},
};

static void lying_headers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        struct bytes b = make(lies[i].json, lies[i].data);
        assert_err(open_bytes(b.data, b.n, err), -EPROTO, lies[i].part);
        unit_free(&b);
    }
    struct bytes huge = {0};
    unit_put_u64(&huge, UINT64_MAX);
    assert_err(open_bytes(huge.data, huge.n, err), -EPROTO, "header of 18446744073709551615 bytes");
    unit_free(&huge);
}

static void deep_nesting(void **state)
{
    (void)state;
    struct bytes b = {0};
    unit_put_u64(&b, 100000);
    for (int i = 0; i < 100000; i++)
        unit_put(&b, "[", 1);
    assert_err(open_bytes(b.data, b.n, err), -EPROTO, "JSON");
    unit_free(&b);
}

/* ---- folders ---- */

#define ONE(name) "{\"" name "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}"

static int open_folder(const char *index, struct err *e)
{
    struct safetensors *s;
    if (index)
        unit_write(unit_path("model.safetensors.index.json"), index, strlen(index));
    int r = safetensors_open(unit_path("."), &s, e);
    if (r == 0)
        safetensors_close(s);
    return r;
}

static void sharded(void **state)
{
    (void)state;
    assert_err(open_folder(NULL, err), -ENOENT, "neither 'model.safetensors' nor");
    write_file("m1.safetensors", ONE("a"), 4);
    write_file("m2.safetensors", ONE("b"), 4);
    assert_ok(open_folder("{\"weight_map\":{\"a\":\"m1.safetensors\",\"b\":\"m2.safetensors\"}}", err));
    assert_err(open_folder("{\"weight_map\":{\"a\":\"m2.safetensors\",\"b\":\"m1.safetensors\"}}", err), -EPROTO,
               "tensor 'a' is not in file 'm2.safetensors'");
    assert_err(open_folder("{\"weight_map\":{\"a\":\"m1.safetensors\",\"b\":\"m3.safetensors\"}}", err), -ENOENT, "m3.safetensors");
    assert_err(open_folder("{\"weight_map\":{\"a\":\"../m1.safetensors\"}}", err), -EPROTO, "in the same folder");
    assert_err(open_folder("{\"weight_map\":{\"a\":\"/etc/passwd\"}}", err), -EPROTO, "'/etc/passwd'");
    assert_err(open_folder("{\"weight_map\":{\"a\":7}}", err), -EPROTO, "(no string)");
    assert_err(open_folder("{\"weight_map\":[]}", err), -EPROTO, "'weight_map' is missing");
    assert_err(open_folder("{", err), -EPROTO, "JSON");
    write_file("m2.safetensors", ONE("a"), 4);
    assert_err(open_folder("{\"weight_map\":{\"a\":\"m1.safetensors\",\"b\":\"m2.safetensors\"}}", err), -EPROTO,
               "tensor 'a' is in both");
    write_file("m2.safetensors",
               "{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"c\":{\"dtype\":\"F32\",\"shape\":[0],"
               "\"data_offsets\":[4,4]}}",
               4);
    assert_err(open_folder("{\"weight_map\":{\"a\":\"m1.safetensors\",\"b\":\"m2.safetensors\"}}", err), -EPROTO,
               "tensor 'c' of file");
    write_file("model.safetensors", ONE("z"), 4); /* a single file comes first, as in transformers */
    assert_ok(open_folder(NULL, err));
}

static void real_checkpoints(void **state)
{
    (void)state;
    static const struct {
        const char *folder;
        uint32_t n;
    } cases[] = {{"models/demo", 158}, {"tests/golden/tiny-27b", 106}, {"tests/golden/tiny-27b-multimodal", 112}};
    for (size_t i = 0; i < 3; i++) {
        struct safetensors *s;
        assert_ok(safetensors_open(unit_source(cases[i].folder), &s, err));
        assert_int_equal(safetensors_n(s), cases[i].n);
        assert_int_equal(safetensors_n_files(s), 2);
        safetensors_close(s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(reads),        UNIT_TEST(broken_bytes), UNIT_TEST(lying_headers),
                                       UNIT_TEST(deep_nesting), UNIT_TEST(sharded),      UNIT_TEST(real_checkpoints)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
