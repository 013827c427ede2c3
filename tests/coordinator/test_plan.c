/* SPDX-License-Identifier: MIT
 * The plan where a device with memory of its own is found: it is used where the model fits; else "auto" goes to the processor and
 * says why, and "vulkan" is an error. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "coordinator/plan.h"
#include "model/gguf.h"
#include "proto/err.h"

static struct gguf *gguf;
static struct config *config;

static int open_model(void **state)
{
    (void)state;
    struct err err = {0};
    if (gguf_open(TANDEM_MODELS_DIR "/demo-q8_0.gguf", false, &gguf, &err) < 0)
        fail_msg("%s", err.text);
    char path[] = "/tmp/tandem-plan-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_true(dprintf(fd, "model: %s\n", TANDEM_MODELS_DIR "/demo-q8_0.gguf") > 0);
    close(fd);
    int r = config_load(path, NULL, 0, &config, &err);
    unlink(path);
    if (r < 0)
        fail_msg("%s", err.text);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    config_free(config);
    gguf_close(gguf);
    return 0;
}

static const struct gpu_device roomy = {.vulkan = true, .name = "Big", .room = UINT64_C(8) << 30};
static const struct gpu_device narrow = {.vulkan = true, .name = "Small", .room = 1 << 20};

static void test_device_with_room(void **state)
{
    (void)state;
    static struct plan p;
    struct err err = {0};
    assert_int_equal(plan_make(config, gguf, &roomy, 0, &p, &err), 0);
    assert_true(p.gpu.vulkan);
    assert_true(p.device_bytes > p.process[CONFIG_GPU].bytes[BUDGET_WEIGHTS]);
    assert_string_equal(p.gpu.reason, "");
}

static void test_device_too_small(void **state)
{
    (void)state;
    static struct plan p, cpu;
    static const struct gpu_device none = {.vulkan = false};
    struct err err = {0};
    assert_int_equal(plan_make(config, gguf, &narrow, 0, &p, &err), 0);
    assert_false(p.gpu.vulkan);
    assert_int_equal(p.device_bytes, 0);
    assert_non_null(strstr(p.gpu.reason, "on device 'Small', where 1.0 MiB are free"));
    assert_int_equal(plan_make(config, gguf, &none, 0, &cpu, &err), 0);
    assert_memory_equal(p.process, cpu.process, sizeof(p.process));
}

static void test_device_demanded(void **state)
{
    (void)state;
    static struct plan p;
    struct err err = {0};
    strcpy(config->gpu.backend, "vulkan");
    assert_int_equal(plan_make(config, gguf, &narrow, 0, &p, &err), -ENOMEM);
    assert_non_null(strstr(err.text, "on device 'Small'"));
    assert_non_null(strstr(err.text, "'gpu.backend' to cpu"));
    assert_true(p.device_bytes > 1 << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_device_with_room), cmocka_unit_test(test_device_too_small),
                                       cmocka_unit_test(test_device_demanded)};
    return cmocka_run_group_tests(tests, open_model, close_model);
}
