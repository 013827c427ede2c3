/* SPDX-License-Identifier: MIT
 * A text in parts, however small, has the ids of the whole, and what is beyond the bounds is refused: with the demo model's
 * vocabulary, and with one in which few wide characters stand side by side in pieces of all types. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/tokenizer.h"
#include "model/gguf.h"
#include "proto/err.h"
#include "proto/util.h"
#include "tests/coordinator/vocab_file.h"

#define MODEL TANDEM_SOURCE_DIR "/models/demo/tokenizer.model"
#define FIRST_WIDE 3000u
#define N_WIDE 60u

static char dir[64], demo[96], wide[96];
static const char *const letters[] = {
    "\xc3\xa9", "\xe6\xbc\xa2", "\xe5\xad\x97", "\xf0\x9f\x90\xad", "\xef\xbf\xbd", "\xe2\x96\x81", "a", "\n", "\xd0\xb6"};

static uint32_t rng_state = 4711;
static uint32_t rng(uint32_t n)
{
    rng_state = rng_state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)rng_state * n) >> 32);
}

static size_t add(char *text, size_t n, const char *s)
{
    memcpy(text + n, s, strlen(s));
    return n + strlen(s);
}

static bool is_there(const struct vocab *v, size_t n_pieces, const char *text, size_t n)
{
    for (size_t i = 0; i < n_pieces; i++) {
        if (v->pieces[i].n == n && memcmp(v->pieces[i].text, text, n) == 0)
            return true;
    }
    return false;
}

/* Some of the pairs of nine letters are in a piece, some are not; scores are in no order, so that merges compete. */
static void make_wide(struct vocab *v)
{
    static const int types[] = {1, 1, 1, 1, 4, 5}; /* normal, user-defined, unused */
    for (size_t i = FIRST_WIDE; i < FIRST_WIDE + N_WIDE; i++) {
        char text[64];
        size_t n;
        do {
            n = 0;
            for (uint32_t k = 2 + rng(3); k > 0; k--)
                n = add(text, n, letters[rng(6) ? rng(4) + rng(2) * (i % 5) : rng(9)]);
        } while (is_there(v, i, text, n));
        memcpy(v->pieces[i].text, text, n);
        v->pieces[i].n = n;
        v->pieces[i].type = types[rng(ARRAY_LEN(types))];
        v->pieces[i].score = -(float)rng(50);
    }
    for (size_t i = FIRST_WIDE + N_WIDE; i < v->n; i++) { /* with the demo's own all pairs of letters would be in one */
        v->pieces[i].n = (size_t)snprintf(v->pieces[i].text, sizeof(v->pieces[i].text), "<unused9%zu>", i);
        v->pieces[i].type = 3;
    }
}

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/tandem-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(demo, sizeof(demo), "%s/demo.gguf", dir);
    snprintf(wide, sizeof(wide), "%s/wide.gguf", dir);
    struct vocab v = vocab_of_model(MODEL);
    assert_int_equal(v.n, 4096);
    vocab_write(&v, demo);
    make_wide(&v);
    vocab_write(&v, wide);
    vocab_free(&v);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(demo);
    unlink(wide);
    return rmdir(dir);
}

static struct tokenizer *open_bound(const char *file, size_t tokens, size_t stretch, size_t part)
{
    struct gguf *g;
    struct tokenizer *t;
    struct err err = {0};
    assert_int_equal(gguf_open(file, false, &g, &err), 0);
    if (tokenizer_open(g, &t, &err) < 0)
        fail_msg("%s", err.text);
    gguf_close(g);
    tokenizer_bound(t, &(struct tokenizer_bounds){.tokens = tokens, .stretch = stretch, .part = part});
    return t;
}

/* Letters, pieces, bytes that are no text, half characters, and runs of the same. */
static size_t random_text(const struct tokenizer *t, char *buf, size_t max)
{
    size_t n = 0;
    for (uint32_t count = rng(60); count > 0 && n + 2048 < max; count--) {
        uint32_t kind = rng(12), times = rng(10) ? 1 : rng(20);
        const char *piece = tokenizer_piece(t, rng(2) ? rng(4096) : FIRST_WIDE + rng(N_WIDE));
        char noise[3] = {(char)(1 + rng(255)), (char)(0x80 + rng(128)), 0};
        const char *s = kind < 6 ? letters[rng(9)] : kind < 9 ? piece : kind == 9 ? " " : noise;
        for (; times > 0; times--)
            n = add(buf, n, s);
        if (kind == 11)
            n = add(buf, n, letters[3]) - 1 - rng(3); /* and the next begins within it */
    }
    return n;
}

static void expect_same(const struct tokenizer *a, const struct tokenizer *b, const char *text, size_t n, bool markers)
{
    uint32_t *want, *got;
    size_t n_want, n_got;
    assert_int_equal(tokenizer_encode(a, text, n, markers, &want, &n_want, NULL), 0);
    assert_int_equal(tokenizer_encode(b, text, n, markers, &got, &n_got, NULL), 0);
    if (n_want != n_got || memcmp(want, got, n_got * sizeof(*got)) != 0)
        fail_msg("text '%.*s' has %zu ids as a whole, %zu in parts, or others", (int)n, text, n_want, n_got);
    free(want);
    free(got);
}

/* At every place where one may cut; and at the last one before a small bound. */
static void test_parts(void **state)
{
    (void)state;
    const char *files[] = {demo, wide};
    for (int f = 0; f < 2; f++) {
        struct tokenizer *whole = open_bound(files[f], SIZE_MAX, SIZE_MAX, SIZE_MAX),
                         *every = open_bound(files[f], SIZE_MAX, SIZE_MAX, 1), *late = open_bound(files[f], SIZE_MAX, 48, SIZE_MAX);
        unsigned refused = 0;
        for (int i = 0; i < 20000; i++) {
            static char text[8192];
            uint32_t *ids;
            size_t n = random_text(whole, text, sizeof(text)), n_ids;
            expect_same(whole, every, text, n, i % 2);
            int r = tokenizer_encode(late, text, n, i % 2, &ids, &n_ids, NULL);
            if (r == 0) {
                free(ids);
                expect_same(whole, late, text, n, i % 2);
            } else {
                assert_int_equal(r, -E2BIG);
                refused++;
            }
        }
        print_message("%s: %u of 20000 have a stretch of more than 48 bytes\n", files[f], refused);
        assert_true(refused > 100 && refused < 15000);
        tokenizer_close(whole);
        tokenizer_close(every);
        tokenizer_close(late);
    }
}

static void expect_refused(const struct tokenizer *t, const char *text, size_t n, const char *expected)
{
    struct err err = {0};
    uint32_t *ids;
    size_t n_ids;
    int r = tokenizer_encode(t, text, n, true, &ids, &n_ids, &err);
    if (r != -E2BIG || !strstr(err.text, expected))
        fail_msg("%d '%s', expected '%s'", r, r < 0 ? err.text : "", expected);
}

/* A stretch is accepted up to the bound and refused with the next character; elsewhere a text may be as long as it likes. */
static void test_stretch(void **state)
{
    (void)state;
    struct tokenizer *t = open_bound(demo, SIZE_MAX, 0, 0), *whole = open_bound(demo, SIZE_MAX, SIZE_MAX, SIZE_MAX);
    size_t most = TOKENIZER_STRETCH / 3;
    char *text = malloc(1 << 20);
    memset(text, ' ', 1 << 20);
    expect_same(whole, t, text, most, true);
    expect_refused(t, text, most + 1, "more than 16384 bytes in a row, from U+0020 on");
    text[0] = '\x01'; /* which no piece has */
    expect_same(whole, t, text, most + 1, true);
    expect_refused(t, text, most + 2, "more than 16384 bytes in a row");
    for (size_t i = 0; i < 1 << 20; i += most)
        text[i] = '\x01';
    expect_same(whole, t, text, 1 << 20, true);
    for (size_t i = 0; i + 12 <= 1 << 20; i += 12)
        memcpy(text + i, "\xc3\xa9\xe6\xbc\xa2\xe5\xad\x97\xf0\x9f\x99\x82", 12);
    expect_same(whole, t, text, 600000, true); /* characters that are bytes here */
    memset(text, 0xff, 1 << 20);
    expect_same(whole, t, text, 100000, true);
    free(text);
    tokenizer_close(t);
    tokenizer_close(whole);
}

static void test_tokens(void **state)
{
    (void)state;
    enum { TOKENS = 1000 };
    struct tokenizer *t = open_bound(demo, TOKENS, 0, 0);
    char *text = malloc(1 << 20);
    uint32_t *ids;
    size_t n;
    for (size_t i = 0; i < 1 << 20; i++)
        text[i] = "12"[i % 2];
    assert_int_equal(tokenizer_encode(t, text, TOKENS + 1, true, &ids, &n, NULL), 0); /* one part: who called has exact figures */
    assert_int_equal(n, TOKENS + 1);
    free(ids);
    expect_refused(t, text, 8000, "the prompt has at least 4096 tokens; the context has 1000 ('context' in the config)");
    expect_refused(t, text, 1 << 20, "tokens; the context has 1000"); /* before anything is encoded */
    char markers[1100 * 13];
    size_t used = 0;
    for (int i = 0; i < 1100; i++)
        used = add(markers, used, "<end_of_turn>");
    expect_refused(t, markers, used, "at least 1001 tokens");
    struct err err = {0};
    text[8000] = '\0';
    struct tokenizer_message m[2] = {{"system", text}, {"user", "Hi"}};
    assert_int_equal(tokenizer_chat(t, m, 2, &ids, &n, &err), -E2BIG);
    assert_non_null(strstr(err.text, "the context has 1000"));
    free(text);
    tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parts), cmocka_unit_test(test_stretch), cmocka_unit_test(test_tokens)};
    return cmocka_run_group_tests_name("tokenizer_bounds", tests, setup, teardown);
}
