/* SPDX-License-Identifier: MIT
 * The cost that is told for a JSON text is above what jansson takes for it at any moment, and not far above for the costliest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/json_cost.h"
#include "proto/util.h"

#define TEXT_BYTES ((size_t)1 << 20)

static size_t held, peak;

static void *count_malloc(size_t n)
{
    void *p = malloc(n);
    held += p ? malloc_usable_size(p) + sizeof(size_t) : 0;
    peak = MAX(peak, held);
    return p;
}

static void count_free(void *p)
{
    held -= p ? malloc_usable_size(p) + sizeof(size_t) : 0;
    free(p);
}

/* begin, as many units as fit, end. A unit's %x is its number. */
static size_t make(char *text, const char *begin, const char *unit, const char *end)
{
    size_t n = (size_t)sprintf(text, "%s", begin);
    for (unsigned k = 0; n + strlen(unit) + 64 < TEXT_BYTES; k++) {
        const char *number = strstr(unit, "%x");
        n += number ? (size_t)sprintf(text + n, "%.*s%x%s,", (int)(number - unit), unit, k, number + 2)
                    : (size_t)sprintf(text + n, "%s,", unit);
    }
    return n - 1 + (size_t)sprintf(text + n - 1, "%s", end);
}

static size_t measure(const char *text, size_t n)
{
    json_error_t e;
    held = peak = 0;
    json_t *j = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    if (!j)
        print_message("%s\n", e.text);
    assert_non_null(j);
    json_decref(j);
    assert_int_equal(held, 0);
    return peak;
}

static void test_above(void **state)
{
    (void)state;
    static const char *const units[] = {"{}",
                                        "[]",
                                        "1",
                                        "1.5",
                                        "true",
                                        "\"\"",
                                        "\"a\"",
                                        "\"\\u00e9\"",
                                        "[[]]",
                                        "[1]",
                                        "[{}]",
                                        "[1,2,3,4,5,6,7,8,9]",
                                        "{\"\":{}}",
                                        "{\"\":1}",
                                        "{\"\":[]}",
                                        "{\"\":\"\"}",
                                        "{\"\":{\"\":{\"\":[]}}}",
                                        "{\"a\":{},\"b\":{}}",
                                        "{\"0\":0,\"1\":0,\"2\":0,\"3\":0,\"4\":0,\"5\":0,\"6\":0,\"7\":0,\"8\":0}",
                                        "{\"role\":\"user\",\"content\":\"x\"}"};
    static const char *const members[] = {"\"%x\":1", "\"%x\":{}", "\"%x\":[]", "\"%x\":\"\"", "\"%x\":true"};
    char *text = malloc(TEXT_BYTES);
    assert_non_null(text);
    json_set_alloc_funcs(count_malloc, count_free);
    for (size_t i = 0; i < ARRAY_LEN(units) + ARRAY_LEN(members); i++) {
        bool list = i < ARRAY_LEN(units);
        const char *unit = list ? units[i] : members[i - ARRAY_LEN(units)];
        size_t n = make(text, list ? "{\"prompt\":[" : "{", unit, list ? "]}" : "}"), most = measure(text, n);
        uint64_t cost = json_cost(text, n);
        if (cost < most || cost > 4 * most)
            fail_msg("'%s': %zu bytes take %zu, told %zu", unit, n, most, (size_t)cost);
    }
    for (int escaped = 0; escaped < 2; escaped++) { /* one long string */
        size_t n = (size_t)sprintf(text, "{\"a\":\"");
        while (n + 64 < TEXT_BYTES)
            n += (size_t)sprintf(text + n, "%s", escaped ? "\\\"" : "x");
        n += (size_t)sprintf(text + n, "\"}");
        size_t most = measure(text, n);
        if (json_cost(text, n) < most)
            fail_msg("a string: %zu bytes take %zu, told %zu", n, most, (size_t)json_cost(text, n));
    }
    json_set_alloc_funcs(malloc, free);
    free(text);
}

/* Not JSON: nothing is read beyond the end, and what is in strings counts as text. */
static void test_any_text(void **state)
{
    (void)state;
    uint64_t nothing = json_cost("", 0);
    static const char *const ends[] = {"\"", "\"\\", "\"a\\\"", "\"[[[["};
    for (size_t i = 0; i < ARRAY_LEN(ends); i++) {
        size_t n = strlen(ends[i]);
        char *exact = malloc(n); /* a sanitizer sees a byte beyond */
        assert_non_null(exact);
        memcpy(exact, ends[i], n);
        assert_in_range(json_cost(exact, n), nothing, nothing + 200);
        free(exact);
    }
    assert_true(json_cost("[[[[", 4) > nothing + 400);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_above), cmocka_unit_test(test_any_text)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
