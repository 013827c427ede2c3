/* SPDX-License-Identifier: MIT
 * The probe survives whatever opening a device does, and npu_worker lists what there is. */
#include <errno.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "npu_worker/xrt_probe.h"
#include "proto/ask.h"
#include "tests/npu_sim/sim_xclbin.h"
#include "tests/unit/unit_test.h"

#define WORKER TANDEM_BIN_DIR "/npu_worker"
#define LONG_MS 60000

static void test_there(void **state)
{
    (void)state;
    struct xrt_probe_answer a = {0};
    setenv("NPU_SIM", "", 1);
    assert_ok(xrt_probe(WORKER, 0, LONG_MS, &a, err));
    assert_string_equal(a.name, SIM_XCLBIN_PLATFORM);
    assert_string_equal(a.flavour, "load_xclbin");
    assert_string_equal(a.version, "2.13");
}

static void test_not_there(void **state)
{
    (void)state;
    struct xrt_probe_answer a = {0};
    setenv("NPU_SIM", "no_device=1", 1);
    assert_err(xrt_probe(WORKER, 0, LONG_MS, &a, err), -ENODEV, "NPU 0 cannot be opened");
    setenv("NPU_SIM", "", 1);
    assert_err(xrt_probe(WORKER, 3, LONG_MS, &a, err), -ENODEV, "NPU 3 cannot be opened");
    assert_err(xrt_probe("/nonexistent/npu_worker", 0, LONG_MS, &a, err), -ENODEV, "cannot be started");
    assert_err(xrt_probe("/bin/true", 0, LONG_MS, &a, err), -ENODEV, "no answer");
    assert_int_equal(a.name[0], 0);
}

static void test_crash(void **state)
{
    (void)state;
    struct xrt_probe_answer a;
    setenv("NPU_SIM", "crash_open=1", 1);
    assert_err(xrt_probe(WORKER, 0, LONG_MS, &a, err), -ENODEV, "crashed when it was opened (signal 6)");
}

static void test_hang(void **state)
{
    (void)state;
    struct xrt_probe_answer a;
    setenv("NPU_SIM", "hang_open=1", 1);
    assert_err(xrt_probe(WORKER, 0, 300, &a, err), -ENODEV, "did not answer within 300 ms");
}

static void list(char *text, size_t bytes, int want)
{
    const char *const words[] = {WORKER, "--list-devices", NULL};
    int status = 0;
    assert_ok(ask_program(words, LONG_MS, text, bytes, &status, err));
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), want);
}

static void test_list(void **state)
{
    (void)state;
    char text[4096];
    setenv("NPU_SIM", "", 1);
    list(text, sizeof(text), 0);
    assert_non_null(strstr(text, "XRT 2.13, load_xclbin"));
    assert_non_null(strstr(text, "\n0  " SIM_XCLBIN_PLATFORM "\n"));
    assert_non_null(strstr(text, "locked memory"));
    setenv("NPU_SIM", "no_device=1", 1);
    list(text, sizeof(text), 1);
    assert_non_null(strstr(text, "npu_worker: error: NPU 0 cannot be opened"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(test_there), UNIT_TEST(test_not_there), UNIT_TEST(test_crash),
                                       UNIT_TEST(test_hang), UNIT_TEST(test_list)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
