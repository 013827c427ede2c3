/* SPDX-License-Identifier: MIT
 * model/npy: round trips, headers as other programs write them, and broken files. One thread. */
#include "tests/unit/unit_test.h"

#include <errno.h>
#include <stdio.h>

#include "model/npy.h"

static void round_trip(void **state)
{
    (void)state;
    float data[6] = {1, -2, 3.5f, 0, 1e30f, -1e-30f}, *back;
    size_t rows, cols;
    assert_ok(npy_write(unit_path("a.npy"), data, 2, 3, err));
    assert_ok(npy_read(unit_path("a.npy"), &back, &rows, &cols, err));
    assert_int_equal(rows, 2);
    assert_int_equal(cols, 3);
    assert_memory_equal(back, data, sizeof(data));
    free(back);
    struct bytes b = unit_read(unit_path("a.npy"));
    static const char header[] = "\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), } ";
    assert_memory_equal(b.data, header, sizeof(header) - 1);
    assert_int_equal(b.n, 128 + sizeof(data));
    assert_int_equal(b.data[127], '\n');
    unit_free(&b);
}

static void rows_in_any_order(void **state)
{
    (void)state;
    struct npy_writer *w;
    float row[2] = {5, 6}, *back;
    size_t rows, cols;
    assert_ok(npy_writer_open(unit_path("a.npy"), 9, 2, &w, err));
    for (size_t i = 9; i-- > 1;) {
        row[0] = (float)i;
        assert_ok(npy_writer_row(w, i, row, err));
        assert_ok(npy_writer_row(w, i, row, err)); /* twice is the same row */
    }
    assert_err(npy_writer_row(w, 9, row, err), -EINVAL, "row 9; expected 0 to 8");
    row[0] = 0;
    assert_ok(npy_writer_row(w, 0, row, err));
    assert_ok(npy_writer_finish(w, err));
    assert_ok(npy_read(unit_path("a.npy"), &back, &rows, &cols, err));
    for (size_t i = 0; i < 9; i++)
        assert_true(back[2 * i] == (float)i && back[2 * i + 1] == 6);
    free(back);
}

static void nothing_half_written(void **state)
{
    (void)state;
    struct npy_writer *w;
    float row[2] = {5, 6};
    assert_ok(npy_writer_open(unit_path("a.npy"), 2, 2, &w, err));
    assert_ok(npy_writer_row(w, 1, row, err));
    assert_err(npy_writer_finish(w, err), -EINVAL, "1 of 2 rows");
    assert_ok(npy_writer_open(unit_path("a.npy"), 2, 2, &w, err));
    npy_writer_abort(w);
    npy_writer_abort(NULL);
    assert_err(npy_writer_open(unit_path("a.npy"), 0, 2, &w, err), -EINVAL, "0 x 2");
    assert_err(npy_writer_open(unit_path("a.npy"), SIZE_MAX / 2, 3, &w, err), -EINVAL, "shape");
    assert_err(npy_writer_open(unit_path("no/a.npy"), 1, 1, &w, err), -ENOENT, "no/a.npy");
    assert_int_equal(unit_count_files(), 0);
}

static struct bytes make(const char *dictionary, size_t floats)
{
    struct bytes b = {0};
    uint8_t n[2] = {(uint8_t)strlen(dictionary), (uint8_t)(strlen(dictionary) >> 8)};
    unit_put(&b, "\x93NUMPY\x01", 8);
    unit_put(&b, n, 2);
    unit_put(&b, dictionary, strlen(dictionary));
    for (size_t i = 0; i < floats; i++)
        unit_put(&b, &(float){(float)i}, 4);
    return b;
}

static int read_bytes(const struct bytes *b, size_t *rows, size_t *cols, struct err *e)
{
    float *data;
    unit_write(unit_path("b.npy"), b->data, b->n);
    int r = npy_read(unit_path("b.npy"), &data, rows, cols, e);
    if (r == 0)
        free(data);
    return r;
}

static void headers_of_others(void **state)
{
    (void)state;
    static const struct {
        const char *dictionary;
        size_t floats, rows, cols;
    } cases[] = {
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n", 3, 1, 3},
        {"{'shape': (2, 3), 'fortran_order': False, 'descr': '<f4'}", 6, 2, 3},
        {"{'descr':'<f4','fortran_order':False,'shape':(1,1,)}   \n", 1, 1, 1},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bytes b = make(cases[i].dictionary, cases[i].floats);
        size_t rows, cols;
        assert_ok(read_bytes(&b, &rows, &cols, err));
        assert_int_equal(rows, cases[i].rows);
        assert_int_equal(cols, cases[i].cols);
        unit_free(&b);
    }
}

static void bad_headers(void **state)
{
    (void)state;
    static const struct {
        const char *dictionary;
        size_t floats;
        int code;
        const char *part;
    } cases[] = {
        {"{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }", 6, -ENOTSUP, "'descr' is not '<f4'"},
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (3,), }", 3, -ENOTSUP, "C order"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 3), }", 6, -ENOTSUP, "1 or 2 dimensions"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (), }", 1, -ENOTSUP, "1 or 2 dimensions"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", 1, -ENOTSUP, "'shape'"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }", 1, -EPROTO, "a size that fits"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3), }", 0, -EPROTO, "at least one element"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", 2, -EPROTO, "needs 12 bytes of data; the file has 8"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", 4, -EPROTO, "the file has 16"},
        {"{'descr': '<f4', 'fortran_order': False, }", 3, -EPROTO, "dictionary is broken"},
        {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", 3, -EPROTO, "dictionary is broken"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), 'x': 1}", 3, -EPROTO, "dictionary is broken"},
        {"{'descr': '<f4' 'fortran_order': False, 'shape': (3,), }", 3, -EPROTO, "dictionary is broken"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), } x", 3, -EPROTO, "dictionary is broken"},
        {"", 3, -EPROTO, "dictionary is broken"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bytes b = make(cases[i].dictionary, cases[i].floats);
        size_t rows, cols;
        assert_err(read_bytes(&b, &rows, &cols, err), cases[i].code, cases[i].part);
        unit_free(&b);
    }
}

static void broken_bytes(void **state)
{
    (void)state;
    struct bytes b = make("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n", 6);
    size_t rows, cols;
    for (size_t n = b.n; n-- > 0;) {
        struct bytes cut = {b.data, n};
        struct err e = {0};
        if (read_bytes(&cut, &rows, &cols, &e) >= 0 || !strstr(e.text, "b.npy"))
            fail_msg("cut to %zu: '%s'", n, e.text);
    }
    for (size_t i = 0; i < b.n - 24; i++) {
        for (unsigned mask = 1; mask < 256; mask = mask * 16 + 15) {
            struct err e = {0};
            b.data[i] ^= (uint8_t)mask;
            int r = read_bytes(&b, &rows, &cols, &e);
            b.data[i] ^= (uint8_t)mask;
            assert_true((r == 0) == (e.text[0] == '\0'));
            if (r == 0)
                assert_int_equal(rows * cols, 6);
        }
    }
    unit_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(round_trip),        UNIT_TEST(rows_in_any_order), UNIT_TEST(nothing_half_written),
                                       UNIT_TEST(headers_of_others), UNIT_TEST(bad_headers),       UNIT_TEST(broken_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
