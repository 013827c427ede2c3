/* SPDX-License-Identifier: MIT
 * What the tests of proto/ share: cmocka with its prerequisites, and a count of open file descriptors that every test must
 * leave as it found it. */
#ifndef TANDEM_TESTS_PROTO_TEST_H
#define TANDEM_TESTS_PROTO_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <string.h>

#include "proto/err.h"

static inline int count_fds(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static int fds_before;

static inline int fds_setup(void **state)
{
    (void)state;
    fds_before = count_fds();
    return 0;
}

static inline int fds_teardown(void **state)
{
    (void)state;
    int now = count_fds();
    if (now != fds_before)
        print_error("%d file descriptors are open, %d were before the test\n", now, fds_before);
    return now != fds_before;
}

#define FD_TEST(f) cmocka_unit_test_setup_teardown(f, fds_setup, fds_teardown)

#define assert_err(call, want, part)                                          \
    do {                                                                      \
        struct err err_ = {0}, *err = &err_;                                  \
        int r_ = (call);                                                      \
        if (r_ != (want) || err_.code != (want) || !strstr(err_.text, part))  \
            print_error("got %d, code %d: '%s'\n", r_, err_.code, err_.text); \
        assert_int_equal(r_, want);                                           \
        assert_int_equal(err_.code, want);                                    \
        assert_non_null(strstr(err_.text, part));                             \
    } while (0)

#define assert_ok(call)                             \
    do {                                            \
        struct err err_ = {0}, *err = &err_;        \
        int r_ = (call);                            \
        if (r_ < 0)                                 \
            print_error("%d: %s\n", r_, err_.text); \
        assert_true(r_ >= 0);                       \
    } while (0)

#endif
