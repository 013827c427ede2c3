/* SPDX-License-Identifier: MIT
 * proto/io: exact reads at any offset, buffered and direct, and output that is whole or absent. One thread. */
#include "tests/unit/unit_test.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/io.h"

#define SIZE 3000001u

static uint8_t pattern(size_t i)
{
    return (uint8_t)(i * 31 + i / 257);
}

static void make_file(const char *path)
{
    uint8_t *data = malloc(SIZE);
    for (size_t i = 0; i < SIZE; i++)
        data[i] = pattern(i);
    unit_write(path, data, SIZE);
    free(data);
}

static void check_read(struct io_file *f, uint64_t offset, size_t n, size_t shift)
{
    uint8_t *block = aligned_alloc(4096, (n + shift + 8192) / 4096 * 4096), *buf = block + shift;
    memset(block, 0xee, n + shift + 1);
    assert_ok(io_read(f, offset, buf, n, err));
    for (size_t i = 0; i < n; i++) {
        if (buf[i] != pattern(offset + i))
            fail_msg("byte %zu of %zu at %zu differs", i, n, (size_t)offset);
    }
    assert_int_equal(buf[n], 0xee);
    free(block);
}

static void reads(void **state)
{
    (void)state;
    static const struct {
        uint64_t offset;
        size_t n, shift;
    } cases[] = {{0, 0, 0},    {0, 1, 0},        {5, 100, 3},         {0, 4096, 0},           {4096, 8192, 0},
                 {1, 4096, 0}, {4095, 70001, 1}, {1000, 2900000, 16}, {SIZE - 4097, 4097, 0}, {SIZE - 1, 1, 0},
                 {0, SIZE, 0}, {SIZE, 0, 0}};
    make_file(unit_path("f"));
    for (int direct = 0; direct < 2; direct++) {
        struct io_file *f;
        assert_ok(io_open(unit_path("f"), direct, &f, err));
        assert_int_equal(io_size(f), SIZE);
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
            check_read(f, cases[i].offset, cases[i].n, cases[i].shift);
        uint8_t b[16];
        assert_err(io_read(f, SIZE - 3, b, 4, err), -EIO, "3000001");
        assert_err(io_read(f, UINT64_MAX - 1, b, 4, err), -EIO, "cut off");
        io_close(f);
    }
}

static void shrunk_while_open(void **state)
{
    (void)state;
    struct io_file *f;
    uint8_t *b = malloc(SIZE);
    make_file(unit_path("f"));
    assert_ok(io_open(unit_path("f"), false, &f, err));
    assert_int_equal(truncate(unit_path("f"), 5000), 0);
    assert_err(io_read(f, 0, b, SIZE, err), -EIO, "5000 of 3000001");
    io_close(f);
    free(b);
}

static void bad_paths(void **state)
{
    (void)state;
    struct io_file *f;
    struct io_out *o;
    assert_err(io_open(unit_path("absent"), false, &f, err), -ENOENT, "absent'");
    assert_err(io_open(unit_path("."), false, &f, err), -EISDIR, "folder");
    assert_err(io_open("/dev/null", false, &f, err), -EINVAL, "'/dev/null' is not a regular file");
    assert_err(io_out_open(unit_path("no/folder"), &o, err), -ENOENT, "no/folder");
    io_close(NULL);
    io_out_abort(NULL);
}

static void output(void **state)
{
    (void)state;
    struct io_out *o;
    unit_write(unit_path("out"), "old", 3);
    assert_ok(io_out_open(unit_path("out"), &o, err));
    assert_ok(io_out_write(o, "abc", 3, err));
    assert_ok(io_out_pwrite(o, 10, "z", 1, err));
    assert_ok(io_out_write(o, "!", 1, err));
    struct bytes b = unit_read(unit_path("out"));
    assert_int_equal(b.n, 3); /* the old one until commit */
    unit_free(&b);
    assert_ok(io_out_commit(o, err));
    b = unit_read(unit_path("out"));
    assert_int_equal(b.n, 12);
    assert_memory_equal(b.data, "abc\0\0\0\0\0\0\0z!", 12);
    unit_free(&b);
    assert_int_equal(unit_count_files(), 1);
}

static void aborted_output(void **state)
{
    (void)state;
    struct io_out *o;
    assert_ok(io_out_open(unit_path("out"), &o, err));
    assert_int_equal(unit_count_files(), 1);
    assert_ok(io_out_write(o, "abc", 3, err));
    io_out_abort(o);
    assert_int_equal(unit_count_files(), 0);
}

static void commit_that_fails(void **state)
{
    (void)state;
    struct io_out *o;
    char dir[4096];
    snprintf(dir, sizeof(dir), "%s", unit_path("out"));
    assert_ok(io_out_open(dir, &o, err));
    char cmd_target[4200];
    snprintf(cmd_target, sizeof(cmd_target), "%s/x", dir);
    assert_int_equal(mkdir(dir, 0755), 0);
    unit_write(cmd_target, "", 0); /* a folder that is not empty cannot be replaced */
    assert_true(io_out_commit(o, NULL) < 0);
    assert_int_equal(unit_count_files(), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(reads),  UNIT_TEST(shrunk_while_open), UNIT_TEST(bad_paths),
                                       UNIT_TEST(output), UNIT_TEST(aborted_output),    UNIT_TEST(commit_that_fails)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
