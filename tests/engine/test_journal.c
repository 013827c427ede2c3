/* SPDX-License-Identifier: MIT
 * Requests in progress on file: what was written comes back, from a file cut or changed at any byte comes back what is whole or
 * nothing, and no request is taken twice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "coordinator/journal.h"
#include "proto/err.h"
#include "proto/util.h"

#define N_PROMPT 5
#define N_DONE 4

static char base[64], own[80], model[80];
static const uint32_t ids[N_PROMPT + N_DONE] = {2, 17, 300, 5, 4000, 9, 11, 13, 70000};

static void put(const char *path, const void *bytes, size_t n)
{
    auto_fd fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(util_write_all(fd, bytes, n), 0);
}

static int setup(void **state)
{
    (void)state;
    snprintf(base, sizeof(base), "/tmp/tandem-journal-XXXXXX");
    if (!mkdtemp(base))
        return -1;
    snprintf(own, sizeof(own), "%s/own", base);
    snprintf(model, sizeof(model), "%s/m.gguf", base);
    put(model, "weights", 7);
    return mkdir(own, 0700);
}

static int teardown(void **state)
{
    (void)state;
    return unlink(model) == 0 && rmdir(own) == 0 ? rmdir(base) : -1; /* fails when anything was left */
}

static struct journal *open_with_vocab(uint32_t vocab)
{
    const struct journal_options o = {.folder = own, .model = model, .context = 512, .vocab = vocab};
    struct journal *j;
    struct err err = {0};
    assert_int_equal(journal_open(&o, &j, &err), 0);
    return j;
}

static struct journal *open_journal(void)
{
    return open_with_vocab(262144);
}

static struct journal_request request(void)
{
    return (struct journal_request){
        .ids = ids,
        .n_prompt = N_PROMPT,
        .max_tokens = 100,
        .choice = 3,
        .sample = {
            .temperature = 0.5f, .top_k = 7, .top_p = 0.9f, .min_p = 0.1f, .repeat_penalty = 1.5f, .repeat_last = 64, .seed = 99}};
}

/* A folder that a killed coordinator left, with one request in it. */
static void leave(const char *name, uint32_t n_done)
{
    char left[PATH_MAX];
    struct journal *j = open_journal();
    struct journal_file *f;
    struct journal_request q = request();
    assert_int_equal(journal_begin(j, &q, &f, NULL), 0);
    for (uint32_t i = 0; i < n_done; i++)
        assert_true(journal_token(f, ids[N_PROMPT + i]));
    journal_leave(f);
    journal_close(j);
    snprintf(left, sizeof(left), "%s/journal-%s", base, name);
    assert_int_equal(rename(own, left), 0);
    assert_int_equal(mkdir(own, 0700), 0);
}

static void test_round_trip(void **state)
{
    (void)state;
    for (uint32_t n = 0; n <= N_DONE; n++) {
        struct journal_request q;
        struct journal_file *f;
        struct stat st;
        char path[PATH_MAX];
        uint32_t others;
        leave("1-0", n);
        snprintf(path, sizeof(path), "%s/journal-1-0/request-000000", base);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
        struct journal *j = open_journal();
        assert_int_equal(journal_claim(j, base, &q, &f, &others, NULL), 1);
        struct journal_request want = request();
        assert_int_equal(q.n_prompt, N_PROMPT);
        assert_int_equal(q.n_done, n);
        assert_memory_equal(q.ids, ids, (N_PROMPT + n) * sizeof(*ids));
        assert_int_equal(q.max_tokens, want.max_tokens);
        assert_int_equal(q.context, 512);
        assert_int_equal(q.choice, want.choice);
        assert_memory_equal(&q.sample, &want.sample, sizeof(want.sample));
        journal_end(f);
        assert_int_equal(journal_claim(j, base, &q, &f, &others, NULL), 0);
        assert_int_equal(others, 0);
        journal_close(j);
    }
}

/* One that has ended says so and how; one whose end is half written, or is no end, has not. */
static void test_ended(void **state)
{
    (void)state;
    for (int cut = 0; cut < 2; cut++) {
        struct journal_request q = request();
        struct journal_file *f;
        struct stat st;
        char path[PATH_MAX], left[PATH_MAX];
        uint32_t others;
        struct journal *j = open_journal();
        assert_int_equal(journal_begin(j, &q, &f, NULL), 0);
        for (uint32_t i = 0; i < N_DONE; i++)
            assert_true(journal_token(f, ids[N_PROMPT + i]));
        assert_true(journal_finish(f, ENGINE_FINISH_CONTEXT));
        journal_leave(f);
        journal_close(j);
        snprintf(path, sizeof(path), "%s/request-000000", own);
        snprintf(left, sizeof(left), "%s/journal-1-0", base);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(truncate(path, st.st_size - cut), 0);
        assert_int_equal(rename(own, left), 0);
        assert_int_equal(mkdir(own, 0700), 0);
        j = open_journal();
        assert_int_equal(journal_claim(j, base, &q, &f, &others, NULL), 1);
        assert_int_equal(q.n_done, N_DONE);
        assert_int_equal(q.ended, cut == 0);
        assert_int_equal(q.finish, cut == 0 ? ENGINE_FINISH_CONTEXT : ENGINE_FINISH_STOP);
        snprintf(path, sizeof(path), "%s/request-000000", own); /* where it was taken to: only what is whole */
        off_t whole = st.st_size;
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_size, cut ? whole - 8 : whole);
        journal_end(f);
        journal_close(j);
    }
}

/* Killed again and again while it is finished: each takes it on from where it was. */
static void test_taken_on(void **state)
{
    (void)state;
    leave("1-0", 0);
    for (uint32_t n = 0; n < N_DONE; n++) {
        struct journal_request q;
        struct journal_file *f;
        uint32_t others;
        char left[PATH_MAX];
        struct journal *j = open_journal();
        assert_int_equal(journal_claim(j, base, &q, &f, &others, NULL), 1);
        assert_int_equal(q.n_done, n);
        assert_true(journal_token(f, ids[N_PROMPT + n]));
        journal_leave(f);
        journal_close(j);
        snprintf(left, sizeof(left), "%s/journal-%u-0", base, n + 2);
        assert_int_equal(rename(own, left), 0);
        assert_int_equal(mkdir(own, 0700), 0);
    }
    struct journal_request q;
    struct journal_file *f;
    uint32_t others;
    struct journal *j = open_journal();
    assert_int_equal(journal_claim(j, base, &q, &f, &others, NULL), 1);
    assert_int_equal(q.n_done, N_DONE);
    assert_memory_equal(q.ids, ids, sizeof(ids));
    journal_end(f);
    journal_close(j);
}

/* The disk is full in the middle of an entry, of a request begun here and of one that is taken on: what is whole stays, is told
 * once, and goes when the request ends. */
static void test_full_disk(void **state)
{
    (void)state;
    struct journal_request q = request();
    struct journal_file *f;
    struct rlimit before, few;
    struct stat st;
    char path[PATH_MAX], left[PATH_MAX];
    uint32_t others;
    snprintf(path, sizeof(path), "%s/request-000000", own);
    snprintf(left, sizeof(left), "%s/journal-1-0", base);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_IGN);
    for (uint32_t n = 0; n <= N_DONE; n++) { /* n: of a run before this one */
        struct journal *j = open_journal();
        if (n == 0)
            assert_int_equal(journal_begin(j, &q, &f, NULL), 0);
        else
            assert_int_equal(journal_claim(j, base, &q, &f, &others, NULL), 1);
        assert_int_equal(q.n_done, n ? n - 1 : 0);
        if (n)
            assert_true(journal_token(f, ids[N_PROMPT + n - 1]));
        assert_int_equal(stat(path, &st), 0);
        few = (struct rlimit){.rlim_cur = (rlim_t)st.st_size + 5, .rlim_max = before.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &few), 0);
        assert_false(journal_token(f, 77));
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_true(journal_token(f, 78)); /* there is room again, but 77 is not in it */
        assert_true(journal_finish(f, ENGINE_FINISH_LENGTH));
        off_t whole = st.st_size;
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_size, whole);
        if (n == N_DONE)
            journal_end(f);
        else
            journal_leave(f);
        journal_close(j);
        if (n < N_DONE) {
            assert_int_equal(rename(own, left), 0);
            assert_int_equal(mkdir(own, 0700), 0);
        }
    }
}

/* Cut at every length, and each byte changed: what comes back is a beginning of the truth, or nothing does. */
static void test_damage(void **state)
{
    (void)state;
    uint8_t bytes[512], changed[512];
    char path[160], folder[128];
    leave("1-0", N_DONE);
    snprintf(folder, sizeof(folder), "%s/journal-1-0", base);
    snprintf(path, sizeof(path), "%s/request-000000", folder);
    auto_fd fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = read(fd, bytes, sizeof(bytes));
    assert_in_range(size, 100, 400);
    size_t n = (size_t)size, head = n - N_DONE * 8;
    struct journal *j = open_journal();
    for (size_t i = 0; i < 2 * n; i++) {
        size_t cut = i < n ? i : n;
        struct journal_request q;
        struct journal_file *f;
        uint32_t others;
        memcpy(changed, bytes, n);
        if (i >= n)
            changed[i - n] ^= 0x10;
        mkdir(folder, 0700);
        put(path, changed, cut);
        int r = journal_claim(j, base, &q, &f, &others, NULL);
        if (r == 0) {
            assert_int_equal(others, 1);
            assert_true(i < head || (i >= n && i - n < head));
            assert_int_equal(unlink(path), 0);
            assert_int_equal(rmdir(folder), 0);
            continue;
        }
        assert_int_equal(r, 1);
        assert_true(i < n ? cut >= head : i - n >= head);
        assert_int_equal(q.n_done, ((i < n ? cut : i - n) - head) / 8);
        assert_memory_equal(q.ids, ids, (N_PROMPT + q.n_done) * sizeof(*ids));
        journal_end(f);
    }
    journal_close(j);
}

/* Whole, but no process of ours writes it: an id that no vocabulary of this model has, an ending that is none. */
static void test_ids_and_endings(void **state)
{
    (void)state;
    struct journal_request q = request();
    struct journal_file *f;
    uint32_t others;
    char left[PATH_MAX];
    snprintf(left, sizeof(left), "%s/journal-1-0", base);
    leave("1-0", N_DONE);
    struct journal *j = open_with_vocab(4000); /* of the prompt */
    assert_int_equal(journal_claim(j, base, &q, &f, &others, NULL), 0);
    assert_int_equal(others, 1);
    journal_close(j);
    j = open_with_vocab(70000); /* the last token */
    assert_int_equal(journal_claim(j, base, &q, &f, &others, NULL), 1);
    assert_int_equal(q.n_done, N_DONE - 1);
    journal_end(f);
    journal_close(j);
    for (int why = 0; why < 256; why++) {
        j = open_journal();
        q = request();
        assert_int_equal(journal_begin(j, &q, &f, NULL), 0);
        assert_true(journal_token(f, ids[N_PROMPT]));
        assert_true(journal_finish(f, (enum engine_finish)why));
        journal_leave(f);
        journal_close(j);
        assert_int_equal(rename(own, left), 0);
        assert_int_equal(mkdir(own, 0700), 0);
        j = open_journal();
        assert_int_equal(journal_claim(j, base, &q, &f, &others, NULL), 1);
        assert_int_equal(q.n_done, 1);
        assert_int_equal(q.ended, why <= ENGINE_FINISH_CONTEXT);
        if (q.ended)
            assert_int_equal(q.finish, why);
        journal_end(f);
        journal_close(j);
    }
}

static void test_other_model(void **state)
{
    (void)state;
    struct journal_request q;
    struct journal_file *f;
    uint32_t others;
    char path[PATH_MAX];
    leave("1-0", 1);
    put(model, "other weights", 13);
    struct journal *j = open_journal();
    assert_int_equal(journal_claim(j, base, &q, &f, &others, NULL), 0);
    assert_int_equal(others, 1);
    journal_close(j);
    snprintf(path, sizeof(path), "%s/journal-1-0/request-000000", base);
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof(path), "%s/journal-1-0", base);
    assert_int_equal(rmdir(path), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ended, setup, teardown),
        cmocka_unit_test_setup_teardown(test_taken_on, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_disk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damage, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ids_and_endings, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_model, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
