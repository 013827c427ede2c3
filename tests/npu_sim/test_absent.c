/* SPDX-License-Identifier: MIT
 * Where there is no XRT, or a module that is none of ours: a code and a sentence. The check of locked memory, by invented limits.
 * ask_program with programs that everybody has. Needs no XRT. */
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "npu_worker/xrt_load.h"
#include "proto/ask.h"
#include "proto/memlock.h"
#include "proto/util.h"
#include "tests/unit/unit_test.h"

static void test_absent(void **state)
{
    (void)state;
    const struct xrt_device_ops *ops = NULL;
    const char *text = unit_path("module.so");
    assert_err(xrt_load("/nonexistent/tandem_xrt.so", &ops, err), -ENOSYS, "built without XRT");
    unit_write(text, "not a library", 13);
    assert_err(xrt_load(text, &ops, err), -ENOSYS, "XRT cannot be loaded");
    Dl_info libc;
    assert_true(dladdr((void *)(uintptr_t)getpid, &libc) != 0);
    assert_err(xrt_load(libc.dli_fname, &ops, err), -ENOSYS, "'xrt_device_table' is not in it");
    assert_err(xrt_load(TANDEM_OLD_MODULE, &ops, err), -ENOSYS, "of another version (table 0 of 8 bytes; expected 1 of ");
    assert_null(ops);
}

static void test_memlock(void **state)
{
    (void)state;
    const uint64_t mib = 1 << 20;
    assert_ok(memlock_check(8 * mib, 8 * mib, "NPU buffers", err));
    assert_ok(memlock_check(MEMLOCK_UNLIMITED, UINT64_MAX, "NPU buffers", err));
    assert_err(memlock_check(8 * mib, 8 * mib + 1, "NPU buffers", err), -EAGAIN, "NPU buffers: 8193 KiB");
    assert_err(memlock_check(8 * mib, 2048 * mib, "NPU buffers", err), -EAGAIN, "limit (ulimit -l) is 8192 KiB");
    assert_err(memlock_check(8 * mib, 2048 * mib, "NPU buffers", err), -EAGAIN, "'ulimit -l 2097152'");
    assert_err(memlock_check(8 * mib, 2048 * mib, "NPU buffers", err), -EAGAIN, "'* - memlock 2097152'");
    assert_err(memlock_check(8 * mib, 2048 * mib, "NPU buffers", err), -EAGAIN, "LimitMEMLOCK=2147483648");
    assert_err(memlock_check(0, 1, "NPU buffers", err), -EAGAIN, "is 0 KiB");
    assert_true(memlock_limit() > 0);
}

static void test_ask(void **state)
{
    (void)state;
    char text[16];
    int status = 0;
    const char *const words[] = {"/bin/sh", "-c", "echo out; echo err >&2; exit 3", NULL};
    assert_ok(ask_program(words, 60000, text, sizeof(text), &status, err));
    assert_string_equal(text, "out\nerr\n");
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 3);
    const char *const much[] = {"/bin/sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done; echo end",
                                NULL};
    assert_ok(ask_program(much, 60000, text, sizeof(text), &status, err));
    assert_true(strlen(text) >= 7 && strlen(text) < sizeof(text));
    assert_string_equal(text + strlen(text) - 6, "9\nend\n");
    assert_int_equal(status, 0);
    const char *const dies[] = {"/bin/sh", "-c", "kill -SEGV $$", NULL};
    assert_ok(ask_program(dies, 60000, text, sizeof(text), &status, err));
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    const char *const hangs[] = {"/bin/sleep", "1000", NULL};
    assert_err(ask_program(hangs, 100, text, sizeof(text), &status, err), -ETIMEDOUT, "'/bin/sleep' did not answer within 100 ms");
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    const char *const silent[] = {"/bin/sh", "-c", "exec >&- 2>&-; exec sleep 1000", NULL}; /* its output ends, it does not */
    assert_err(ask_program(silent, 200, text, sizeof(text), &status, err), -ETIMEDOUT, "did not answer");
    const char *const absent[] = {"/nonexistent", NULL};
    assert_err(ask_program(absent, 100, text, sizeof(text), &status, err), -ENOENT, "'/nonexistent' cannot be started");
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(test_absent), UNIT_TEST(test_memlock), UNIT_TEST(test_ask)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
