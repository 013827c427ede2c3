/* SPDX-License-Identifier: MIT
 * API keys and listening addresses, without a server. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "coordinator/http_auth.h"
#include "coordinator/http_listen.h"
#include "proto/err.h"
#include "proto/util.h"

static int keys(const char *text, mode_t mode, struct http_auth **ret, struct err *err)
{
    char path[] = "/tmp/test_http_auth.XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(util_write_all(fd, text, strlen(text)), 0);
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
    int r = http_auth_open("key 'http.api_key_file'", path, ret, err);
    unlink(path);
    return r;
}

static void test_keys(void **state)
{
    (void)state;
    struct http_auth *a;
    struct err err = {0};
    char longest[300] = "Bearer ", line[300] = "";
    memset(line, 'k', 255);
    memcpy(longest + 7, line, 256);
    char text[600];
    snprintf(text, sizeof(text), "#no-key-this\n12345678\r\n%s\nlast-one-here", line);
    assert_int_equal(keys(text, 0600, &a, &err), 0);
    static const char *const good[] = {"Bearer 12345678", "bearer  12345678", "BEARER last-one-here"};
    static const char *const bad[] = {"",
                                      "Bearer",
                                      "Bearer ",
                                      "12345678",
                                      "Basic 12345678",
                                      "Bearer 1234567",
                                      "Bearer 123456789",
                                      "Bearer 12345678 ",
                                      "Bearer #no-key-this",
                                      "Bearer 12345678\n",
                                      "Bearer\t12345678"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_true(http_auth_check(a, good[i]));
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_false(http_auth_check(a, bad[i]));
    assert_false(http_auth_check(a, NULL));
    assert_true(http_auth_check(a, longest));
    strcat(longest, "k");
    assert_false(http_auth_check(a, longest));
    http_auth_close(a);
}

static void test_bad_files(void **state)
{
    (void)state;
    struct http_auth *a = NULL;
    struct err err = {0};
    char many[300 * 10] = "", large[300] = "";
    for (int i = 0; i < 257; i++)
        strcat(many, "12345678\n");
    memset(large, 'x', 256);
    const struct {
        const char *text, *expected;
        mode_t mode;
    } cases[] = {
        {"12345678\n", "may be read by everybody; `chmod 600` it", 0604},
        {"", "has no key", 0600},
        {"#\n\n \n", "has no key", 0600},
        {"1234567\n", "line 1: a key of 7 bytes; expected 8 to 255", 0600},
        {"12345678\nab cdefgh\n", "line 2: a key of 9 bytes with others than printable ones", 0600},
        {"\xc3\xa9zzzzzzzz\n", "line 1: a key of 10 bytes with others", 0600},
        {large, "line 1: a key of 256 bytes", 0600},
        {many, "expected at most 256 keys", 0600},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        assert_true(keys(cases[i].text, cases[i].mode, &a, &err) < 0);
        if (!strstr(err.text, cases[i].expected))
            fail_msg("'%s' is not in: %s", cases[i].expected, err.text);
        assert_null(a);
    }
    assert_int_equal(http_auth_open("key 'http.api_key_file'", "/nonexistent", &a, &err), -ENOENT);
    assert_int_equal(http_auth_open("key 'http.api_key_file'", "/dev/null", &a, &err), -EINVAL);
}

static void test_addresses(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int loopback; /* -1: no address */
    } cases[] = {
        {"127.0.0.1:8080", 1},
        {"127.9.8.7:1", 1},
        {"localhost:0", 1},
        {"[::1]:8080", 1},
        {"0.0.0.0:80", 0},
        {"192.168.1.2:80", 0},
        {"[::]:80", 0},
        {"[fe80::1]:80", 0},
        {"none", -1},
        {"", -1},
        {":80", -1},
        {"127.0.0.1", -1},
        {"127.0.0.1:", -1},
        {"127.0.0.1:-1", -1},
        {"127.0.0.1: 1", -1},
        {"127.0.0.1:65536", -1},
        {"127.0.0.1:80x", -1},
        {"::1:80", -1},
        {"[::1:80", -1},
        {"127.1:80", -1},
        {"example.org:80", -1},
        {"[::1]8080", -1},
        {"0123456789012345678901234567890123456789012345678901234567890123456789:1", -1},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        bool loopback = false;
        struct err err = {0};
        int r = http_listen_check(cases[i].text, &loopback, &err);
        if (r != (cases[i].loopback < 0 ? -EINVAL : 0) || (r == 0 && loopback != (cases[i].loopback == 1)))
            fail_msg("'%s': %d, %d: %s", cases[i].text, r, loopback, err.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_addresses),
    };
    return cmocka_run_group_tests_name("http_auth", tests, NULL, NULL);
}
