/* SPDX-License-Identifier: MIT
 * The file of earlier prompts: what goes in comes out, and of several processes that add and cut at once none loses what another
 * has just added. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "coordinator/line_history.h"
#include "proto/err.h"
#include "proto/util.h"

#define PROCESSES 4
#define EACH 500 /* together more than the file keeps: it is cut in between */

static char folder[] = "/tmp/tandem-history-XXXXXX";
static char path[64];

static int set_up(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

struct seen {
    int n, of[PROCESSES], last[PROCESSES];
    char text[8][64];
};

static void note(void *ctx, const char *text)
{
    struct seen *s = ctx;
    int process, number;
    snprintf(s->text[s->n % 8], sizeof(s->text[0]), "%s", text);
    s->n++;
    if (sscanf(text, "process %d prompt %d", &process, &number) != 2)
        return;
    assert_in_range(process, 0, PROCESSES - 1);
    if (s->of[process]) /* in order, and nothing between is missing */
        assert_int_equal(number, s->last[process] + 1);
    s->last[process] = number;
    s->of[process]++;
}

static void test_forms(void **state)
{
    static const char *const texts[] = {"plain", "two\nlines",         "back\\slash", "\\n is no newline",
                                        "\n",    "gr\xc3\xbc\xc3\x9f", "end\\"};
    struct seen s = {0};
    struct stat st;
    (void)state;
    assert_int_equal(line_history_load(path, note, &s, NULL), 0);
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        assert_int_equal(line_history_add(path, texts[i], NULL), 0);
    assert_int_equal(line_history_load(path, note, &s, NULL), 0);
    assert_int_equal(s.n, ARRAY_LEN(texts));
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        assert_string_equal(s.text[i], texts[i]);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    char *big = malloc(LINE_HISTORY_ENTRY_BYTES + 2);
    memset(big, 'x', LINE_HISTORY_ENTRY_BYTES + 1);
    big[LINE_HISTORY_ENTRY_BYTES + 1] = '\0';
    assert_int_equal(line_history_add(path, big, NULL), 0);
    free(big);
    s.n = 0;
    assert_int_equal(line_history_load(path, note, &s, NULL), 0);
    assert_int_equal(s.n, ARRAY_LEN(texts)); /* without the big one */
}

static void add_many(int process)
{
    for (int i = 1; i <= EACH; i++) {
        char text[64];
        struct err err;
        snprintf(text, sizeof(text), "process %d prompt %d", process, i);
        if (line_history_add(path, text, &err) < 0) {
            fprintf(stderr, "%s\n", err.text);
            _exit(1);
        }
    }
    _exit(0);
}

static void test_at_once(void **state)
{
    struct seen s = {0};
    (void)state;
    for (int p = 0; p < PROCESSES; p++) {
        if (fork() == 0)
            add_many(p);
    }
    for (int p = 0; p < PROCESSES; p++) {
        int status = -1;
        assert_true(wait(&status) > 0);
        assert_int_equal(status, 0);
    }
    assert_int_equal(line_history_load(path, note, &s, NULL), 0);
    assert_int_equal(s.n, LINE_HISTORY_LINES); /* of 2,000, cut at least four times */
    for (int p = 0; p < PROCESSES; p++)
        assert_true(s.of[p] == 0 || s.last[p] == EACH); /* 0: it was done long before the others */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_forms, set_up),
        cmocka_unit_test_setup(test_at_once, set_up),
    };
    if (!mkdtemp(folder))
        return 1;
    snprintf(path, sizeof(path), "%s/history", folder);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    rmdir(folder);
    return failed;
}
