/* SPDX-License-Identifier: MIT
 * The base floor: error values, log lines, byte sizes, environment table, budget and its fault injection. */
#include "tests/proto/proto_test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "proto/budget.h"
#include "proto/log.h"
#include "proto/utf8.h"
#include "proto/util.h"

static void test_err(void **state)
{
    (void)state;
    struct err e = {0};
    assert_int_equal(err_set(&e, -EINVAL, "key '%s'", "a"), -EINVAL);
    assert_int_equal(e.code, -EINVAL);
    assert_string_equal(e.text, "key 'a'");
    assert_int_equal(err_wrap(&e, -EIO, "file '%s'", "f"), -EINVAL);
    assert_string_equal(e.text, "file 'f': key 'a'");
    err_set(&e, -EIO, "again: %s", e.text);
    assert_string_equal(e.text, "again: file 'f': key 'a'");
    assert_int_equal(err_set_errno(&e, -ENOENT, "model"), -ENOENT);
    assert_string_equal(e.text, "model: No such file or directory");
    assert_int_equal(err_set(NULL, -EBUSY, "x"), -EBUSY);
    assert_int_equal(err_wrap(NULL, -EBUSY, "x"), -EBUSY);
    assert_int_equal(err_set_errno(NULL, -EBUSY, "x"), -EBUSY);
}

static void test_err_long(void **state)
{
    (void)state;
    struct err e = {0};
    char big[2 * ERR_TEXT_MAX];
    memset(big, 'x', sizeof(big));
    big[sizeof(big) - 1] = '\0';
    err_set(&e, -EIO, "%s", big);
    assert_int_equal(strlen(e.text), ERR_TEXT_MAX - 1);
    for (int i = 0; i < 3; i++)
        err_wrap(&e, -EIO, "%s", big);
    assert_int_equal(strlen(e.text), ERR_TEXT_MAX - 1);
}

static void test_bytes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int r;
        uint64_t want;
    } cases[] = {
        {"0", 0, 0},
        {"100", 0, 100},
        {"7B", 0, 7},
        {"64KiB", 0, 65536},
        {"512MiB", 0, 512ull << 20},
        {"2 GiB", 0, 2ull << 30},
        {"3gib", 0, 3ull << 30},
        {"1TiB", 0, 1ull << 40},
        {"18446744073709551615", 0, UINT64_MAX},
        {"18446744073709551616", -ERANGE, 0},
        {"17179869184GiB", -ERANGE, 0},
        {"", -EINVAL, 0},
        {"-1", -EINVAL, 0},
        {"1.5GiB", -EINVAL, 0},
        {"10MB", -EINVAL, 0},
        {"KiB", -EINVAL, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint64_t v = 42;
        assert_int_equal(util_parse_bytes(cases[i].text, &v), cases[i].r);
        assert_int_equal(v, cases[i].r ? 42 : cases[i].want);
    }
    char buf[16];
    assert_string_equal(util_format_bytes(buf, sizeof(buf), 7), "7 B");
    assert_string_equal(util_format_bytes(buf, sizeof(buf), 12 * 1024), "12.0 KiB");
    assert_string_equal(util_format_bytes(buf, sizeof(buf), 3ull << 29), "1.5 GiB");
    assert_non_null(util_format_bytes(buf, sizeof(buf), UINT64_MAX));
}

static void test_arithmetic(void **state)
{
    (void)state;
    size_t v = 5;
    assert_false(util_mul(SIZE_MAX, 2, &v));
    assert_false(util_add(SIZE_MAX, 1, &v));
    assert_int_equal(v, 5);
    assert_true(util_mul(6, 7, &v));
    assert_int_equal(v, 42);
    assert_int_equal(util_round_up(4097, 4096), 8192);
    assert_int_equal(util_round_up(4096, 4096), 4096);
    assert_int_equal(util_distance("chunk_tokens", "chunk_tokens"), 0);
    assert_int_equal(util_distance("contxt", "context"), 1);
    assert_int_equal(util_distance("", "abc"), 3);
    char longer[70];
    memset(longer, 'a', sizeof(longer));
    longer[69] = '\0';
    assert_true(util_distance(longer, longer) > 63);
    uint64_t a = util_now_ns();
    assert_true(util_now_ns() >= a);
}

static void test_environment(void **state)
{
    (void)state;
    setenv("TANDEM_CPU", "ref", 1);
    assert_string_equal(util_env(UTIL_ENV_CPU), "ref");
    setenv("TANDEM_CPU", "", 1);
    assert_null(util_env(UTIL_ENV_CPU));
    unsetenv("TANDEM_CPU");
    assert_null(util_env(UTIL_ENV_CPU));
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    util_env_help(f);
    fclose(f);
    int lines = 0;
    for (const char *p = text; *p; p++)
        lines += *p == '\n';
    assert_int_equal(lines, UTIL_ENV_MAX);
    static const char *const names[] = {"TANDEM_LOG", "TANDEM_TRACE", "TANDEM_CPU", "TANDEM_RUNTIME_DIR"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        assert_non_null(strstr(text, names[i]));
    free(text);
}

static void test_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int length;
        bool valid;
    } cases[] = {
        {"a", 1, true},
        {"\xc3\xa9", 2, true},
        {"\xe2\x82\xac!", 3, true},
        {"\xf0\x9f\x98\x80", 4, true},
        {"\xf0\x9f\x98", 0, false},      /* cut */
        {"\x80", -1, false},             /* continuation alone */
        {"\xc0\xaf", -1, false},         /* overlong */
        {"\xe0\x80\xaf", -1, false},     /* overlong */
        {"\xed\xa0\x80", -1, false},     /* surrogate */
        {"\xf4\x90\x80\x80", -1, false}, /* above U+10FFFF */
        {"\xe2\x82x", -2, false},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        size_t n = strlen(cases[i].text);
        assert_int_equal(utf8_length(cases[i].text, n), cases[i].length);
        assert_int_equal(utf8_valid(cases[i].text, n), cases[i].valid);
    }
    assert_true(utf8_valid("", 0));
    assert_false(utf8_valid("a\xff", 2));
}

static void test_write_all(void **state)
{
    (void)state;
    int fds[2];
    char buf[8] = "";
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    assert_int_equal(util_write_all(fds[1], "hello", 5), 0);
    assert_int_equal(read(fds[0], buf, sizeof(buf)), 5);
    close(fds[0]);
    close(fds[1]);
    assert_int_equal(util_write_all(fds[1], "x", 1), -EBADF);
}

/* What lands on stderr while f runs. */
static void capture(void (*f)(void), char *buf, size_t size)
{
    int fds[2], saved = fcntl(2, F_DUPFD_CLOEXEC, 3);
    assert_int_equal(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    dup2(fds[1], 2);
    f();
    dup2(saved, 2);
    close(saved);
    close(fds[1]);
    ssize_t n = read(fds[0], buf, size - 1);
    buf[MAX(n, 0)] = '\0';
    close(fds[0]);
}

static void say(void)
{
    log_init("gpu_worker", "warn,nonsense,npu.*:debug,ring:error,x:loud");
    errno = EBUSY;
    log_warn("stage", "value %d", 7);
    log_info("stage", "hidden");
    log_debug("npu.kv", "shown");
    log_warn("ring", "hidden too");
    log_error("ring", "%02000d", 1);
    assert_int_equal(errno, EBUSY);
}

static void test_log(void **state)
{
    (void)state;
    char text[4096], want[128];
    capture(say, text, sizeof(text));
    snprintf(want, sizeof(want), "gpu_worker[%d] warn stage: value 7\n", (int)getpid());
    assert_non_null(strstr(text, want));
    assert_non_null(strstr(text, "'nonsense' is not a log rule"));
    assert_non_null(strstr(text, "'x:loud' is not a log rule"));
    assert_non_null(strstr(text, " debug npu.kv: shown\n"));
    assert_null(strstr(text, "hidden"));
    size_t n = strlen(text);
    assert_int_equal(text[n - 1], '\n');
    assert_true(log_enabled(LOG_DEBUG, "npu.attn"));
    assert_false(log_enabled(LOG_WARN, "ring"));
    log_init("test", NULL);
    assert_true(log_enabled(LOG_WARN, "ring"));
    assert_false(log_enabled(LOG_INFO, "ring"));
}

static void test_budget(void **state)
{
    (void)state;
    struct budget b;
    budget_init(&b, "npu_worker", 1000);
    assert_ok(budget_take(&b, BUDGET_KV, 600, err));
    assert_ok(budget_take(&b, BUDGET_SCRATCH, 400, err));
    assert_err(budget_take(&b, BUDGET_KV, 1, err), -ENOMEM,
               "npu_worker: 1 bytes for kv do not fit: 1000 bytes are used of 1000 allowed");
    assert_err(budget_take(&b, BUDGET_KV, UINT64_MAX, err), -ENOMEM, "kv");
    budget_give(&b, BUDGET_KV, 600);
    assert_int_equal(b.used[BUDGET_KV], 0);
    assert_int_equal(b.peak[BUDGET_KV], 600);
    assert_int_equal(b.total, 400);
    assert_int_equal(b.total_peak, 1000);
    assert_ok(budget_take(&b, BUDGET_WEIGHTS, 600, err));
    assert_int_equal(budget_take(&b, BUDGET_WEIGHTS, 1, NULL), -ENOMEM);
    budget_init(&b, "loader", 0);
    assert_ok(budget_take(&b, BUDGET_RING, 1ull << 50, err));
    assert_err(budget_take(&b, BUDGET_RING, UINT64_MAX, err), -ENOMEM, "ring");
    static const char *const names[] = {"weights", "kv", "scratch", "ring", "device"};
    for (int i = 0; i < BUDGET_CATEGORIES; i++)
        assert_string_equal(budget_category_name((enum budget_category)i), names[i]);
}

static void test_budget_alloc(void **state)
{
    (void)state;
    struct budget b;
    void *p = NULL;
    budget_init(&b, "gpu_worker", 3 << 20);
    assert_ok(budget_alloc(&b, BUDGET_SCRATCH, 5000, &p, err));
    assert_int_equal((uintptr_t)p % 4096, 0);
    for (int i = 0; i < 5000; i++)
        assert_int_equal(((uint8_t *)p)[i], 0);
    memset(p, 1, 5000);
    assert_int_equal(b.used[BUDGET_SCRATCH], 8192);
    void *q = NULL;
    assert_err(budget_alloc(&b, BUDGET_SCRATCH, 3 << 20, &q, err), -ENOMEM, "gpu_worker");
    assert_null(q);
    assert_int_equal(b.used[BUDGET_SCRATCH], 8192);
    budget_free(&b, BUDGET_SCRATCH, p, 5000);
    budget_free(&b, BUDGET_SCRATCH, NULL, 5000);
    assert_int_equal(b.total, 0);
    budget_init(&b, "gpu_worker", 0);
    assert_err(budget_alloc(&b, BUDGET_SCRATCH, (size_t)1 << 62, &q, err), -ENOMEM, "gpu_worker");
    assert_int_equal(b.total, 0);
}

/* Fail the n-th allocation for n = 0, 1, ... until all three succeed. */
static void test_fault_injection(void **state)
{
    (void)state;
    for (int n = 0; n < 4; n++) {
        struct budget b;
        void *p[3] = {NULL};
        int r = 0, i;
        budget_init(&b, "loader", 0);
        b.fail_after = n;
        for (i = 0; i < 3 && r == 0; i++)
            r = budget_alloc(&b, BUDGET_KV, 4096, &p[i], NULL);
        assert_int_equal(r, n < 3 ? -ENOMEM : 0);
        assert_int_equal(i, n < 3 ? n + 1 : 3);
        for (i = 0; i < 3; i++)
            budget_free(&b, BUDGET_KV, p[i], 4096);
        assert_int_equal(b.total, 0);
        assert_int_equal(budget_take(&b, BUDGET_KV, 1, NULL), n == 3 ? -ENOMEM : 0); /* once, and then never again */
        assert_ok(budget_take(&b, BUDGET_KV, 1, err));
    }
}

static void *hammer(void *arg)
{
    struct budget *b = arg;
    for (int i = 0; i < 20000; i++) {
        if (budget_take(b, BUDGET_SCRATCH, 7, NULL) == 0)
            budget_give(b, BUDGET_SCRATCH, 7);
    }
    return NULL;
}

static void test_budget_threads(void **state)
{
    (void)state;
    struct budget b;
    pthread_t t[4];
    budget_init(&b, "x", 14); /* two at a time */
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, hammer, &b), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(b.total, 0);
    assert_int_equal(b.used[BUDGET_SCRATCH], 0);
    assert_true(b.total_peak <= 14 && b.total_peak >= 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FD_TEST(test_err),          FD_TEST(test_err_long),        FD_TEST(test_bytes),
        FD_TEST(test_arithmetic),   FD_TEST(test_environment),     FD_TEST(test_log),
        FD_TEST(test_utf8),         FD_TEST(test_write_all),       FD_TEST(test_budget),
        FD_TEST(test_budget_alloc), FD_TEST(test_fault_injection), FD_TEST(test_budget_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
