/* SPDX-License-Identifier: MIT
 * Stop strings: the end of a text does not depend on the pieces in which it comes, and nothing is released that a stop string takes
 * back. Against a search that sees the whole text at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "coordinator/stop.h"
#include "proto/util.h"

static struct stop make(const char *const *words, uint32_t n)
{
    struct stop s = {.n = n};
    for (uint32_t i = 0; i < n; i++) {
        s.words[i].text = words[i];
        s.words[i].n = strlen(words[i]);
    }
    return s;
}

/* Where the text ends: the stop string that is whole first, of those the one that began first. SIZE_MAX: nowhere. */
static size_t cut_of(const struct stop *s, const char *text)
{
    size_t best_end = SIZE_MAX, best = SIZE_MAX;
    for (uint32_t i = 0; i < s->n; i++) {
        const char *at = strstr(text, s->words[i].text);
        size_t begin = at ? (size_t)(at - text) : 0, end = begin + s->words[i].n;
        if (at && (end < best_end || (end == best_end && begin < best))) {
            best_end = end;
            best = begin;
        }
    }
    return best;
}

static void test_known(void **state)
{
    (void)state;
    static const struct {
        const char *words[3], *text;
        size_t ret;
        bool found;
    } cases[] = {
        {{"b", "abc"}, "xabc", 2, true}, /* "b" was whole first */
        {{"abc", "bc"}, "xabc", 1, true}, {{"bc", "abc"}, "xabc", 1, true}, {{"\n\n"}, "x\n", 1, false},
        {{"aab"}, "xaa", 1, false},       {{"aab"}, "xaaa", 2, false},      {{"aab", "a", "q"}, "x", 1, false},
        {{"abc"}, "", 0, false},          {{"abcd"}, "ab", 0, false},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint32_t n = 0;
        while (n < 3 && cases[i].words[n])
            n++;
        struct stop s = make(cases[i].words, n);
        size_t ret;
        assert_int_equal(stop_scan(&s, cases[i].text, 0, strlen(cases[i].text), &ret), cases[i].found);
        assert_int_equal(ret, cases[i].ret);
    }
    struct stop none = {0};
    size_t ret;
    assert_false(stop_scan(&none, "abc", 1, 3, &ret));
    assert_int_equal(ret, 3);
}

static void test_pieces(void **state)
{
    (void)state;
    uint32_t x = 12345;
#define NEXT(n) (((x = x * 1664525u + 1013904223u) >> 16) % (n))
    for (int round = 0; round < 20000; round++) {
        char text[40], words[STOP_MAX][8];
        const char *list[STOP_MAX];
        size_t n = 1 + NEXT(38);
        uint32_t n_words = 1 + NEXT(round % 2 ? 3 : STOP_MAX);
        for (size_t i = 0; i < n; i++)
            text[i] = "abc"[NEXT(3)];
        text[n] = '\0';
        for (uint32_t w = 0; w < n_words; w++) {
            size_t length = 1 + NEXT(7);
            for (size_t i = 0; i < length; i++)
                words[w][i] = "abc"[NEXT(3)];
            words[w][length] = '\0';
            list[w] = words[w];
        }
        struct stop s = make(list, n_words);
        size_t cut = cut_of(&s, text), at = 0, released = 0, ret;
        bool found = false;
        while (!found && at < n) {
            size_t piece = 1 + NEXT(5);
            piece = MIN(piece, n - at);
            found = stop_scan(&s, text, at, at + piece, &ret);
            at += piece;
            assert_true(ret <= at);
            if (!found) {
                assert_true(ret >= released); /* what was released stays */
                released = ret;
            }
        }
        assert_int_equal(found, cut != SIZE_MAX);
        if (found)
            assert_int_equal(ret, cut);
        assert_true(released <= cut);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known),
        cmocka_unit_test(test_pieces),
    };
    return cmocka_run_group_tests_name("stop", tests, NULL, NULL);
}
