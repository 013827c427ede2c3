/* SPDX-License-Identifier: MIT
 * Server-sent events: the same ones however the bytes are cut, what is read over, and bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/client/sse.h"
#include "proto/err.h"
#include "proto/util.h"

static int note(void *ctx, const char *data, size_t n, struct err *err)
{
    char *all = ctx;
    (void)err;
    assert_int_equal(strlen(data), n);
    snprintf(all + strlen(all), 256 - strlen(all), "<%s>", data);
    return strcmp(data, "stop") == 0 ? -ECANCELED : 0;
}

/* In pieces of `step` bytes. */
static int feed(const char *bytes, size_t n, size_t step, char *all)
{
    struct sse s = {0};
    struct err err = {0};
    int r = 0;
    all[0] = '\0';
    for (size_t at = 0; at < n && r == 0; at += step)
        r = sse_feed(&s, bytes + at, MIN(step, n - at), note, all, &err);
    sse_fini(&s);
    return r;
}

static void test_pieces(void **state)
{
    static const struct {
        const char *bytes, *events;
    } cases[] = {
        {"data: a\n\ndata: b\n\n", "<a><b>"},
        {"data: a\r\n\r\ndata:b\r\n\r\n", "<a><b>"},
        {"data: one\ndata: two\n\n", "<one\ntwo>"},
        {": a comment\n\nevent: x\nid: 7\ndata:  indented\n\n\n\n", "< indented>"},
        {"data:\n\ndata: after nothing\n\n", "<><after nothing>"},
        {"database: no\n\n", ""},
        {"data: not whole\n", ""},
        {"", ""},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        size_t n = strlen(cases[i].bytes);
        for (size_t step = 1; step <= n + 1; step++) {
            char all[256];
            assert_int_equal(feed(cases[i].bytes, n, step, all), 0);
            assert_string_equal(all, cases[i].events);
        }
    }
}

static void test_ends(void **state)
{
    static const char text[] = "data: a\n\ndata: stop\n\ndata: never\n\n";
    char all[256];
    (void)state;
    assert_int_equal(feed(text, strlen(text), 7, all), -ECANCELED);
    assert_string_equal(all, "<a><stop>");
}

static void test_bounds(void **state)
{
    char *big = malloc(SSE_MAX_BYTES + 16), all[256];
    struct err err = {0};
    struct sse s = {0};
    (void)state;
    memset(big, 'x', SSE_MAX_BYTES + 16);
    assert_int_equal(feed(big, SSE_MAX_BYTES, 1 << 16, all), 0);
    assert_int_equal(feed(big, SSE_MAX_BYTES + 1, 1 << 16, all), -EPROTO);
    memcpy(big, "data: ", 6); /* many lines of one event */
    big[1 << 20] = '\n';
    int r = 0;
    for (int i = 0; i < 8 && r == 0; i++)
        r = sse_feed(&s, big, (1 << 20) + 1, note, all, &err);
    assert_int_equal(r, -EPROTO);
    assert_non_null(strstr(err.text, "more than"));
    sse_fini(&s);
    free(big);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
