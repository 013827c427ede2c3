/* SPDX-License-Identifier: MIT
 * What the coordinator takes from npu_worker's answer about an NPU; a script answers in its place. */
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

#include "coordinator/npu_device.h"
#include "proto/config.h"
#include "proto/memlock.h"
#include "tests/unit/unit_test.h"

static const char *answers(const char *npu)
{
    char text[512];
    const char *path = unit_path("npu_worker");
    int n = snprintf(text, sizeof(text),
                     "#!/bin/sh\nprintf 'XRT warns\\nproducts\\t1024\\t2048\\t4096\\t512\\t64:8192,32:16384\\nnpu\\t%s\\n'\n", npu);
    unit_write(path, text, (size_t)n);
    assert_int_equal(chmod(path, 0700), 0);
    return unit_path("");
}

static struct config *with_manifest(void)
{
    static const char text[] = "model: model.gguf\nnpu: {backend: xrt, manifest: manifest.yaml}\n";
    const char *path = unit_path("tandem.yaml");
    struct config *c = NULL;
    unit_write(path, text, sizeof(text) - 1);
    assert_ok(config_load(path, NULL, 0, &c, err));
    return c;
}

static void test_answer(void **state)
{
    (void)state;
    struct npu_device d;
    struct config *c = with_manifest();
    assert_ok(npu_device_find(c, answers("load_xclbin\\t2.13\\tnpu_sim"), &d, err));
    assert_true(d.xrt);
    assert_string_equal(d.name, "npu_sim");
    assert_true(d.scratch == 1024 && d.moved == 2048 && d.kept == 4096 && d.fixed == 512);
    assert_true(npu_device_bytes(&d, 65) == 512 + 2 * 8192 + 3 * 16384);
    assert_true(d.heap == 0); /* that flavour's driver locks nothing */
    assert_ok(npu_device_find(c, answers("hw_context\\t2.25\\tNPU Strix"), &d, err));
    assert_string_equal(d.name, "NPU Strix");
    assert_true(d.heap == MEMLOCK_NPU_HEAP && d.lockable == memlock_limit());
    c->spawn[CONFIG_NPU] = false;
    assert_ok(npu_device_find(c, answers("hw_context\\t2.25\\tNPU Strix"), &d, err));
    assert_true(d.lockable == MEMLOCK_UNLIMITED); /* not known: others start npu_worker */
    config_free(c);
}

static void test_no_answer(void **state)
{
    (void)state;
    struct npu_device d;
    struct config *c = with_manifest();
    assert_err(npu_device_find(c, answers("hw_context\\t2.25"), &d, err), -ENODEV, "was not understood");
    assert_false(d.xrt);
    assert_true(d.heap == 0);
    config_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(test_answer), UNIT_TEST(test_no_answer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
