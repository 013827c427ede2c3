/* SPDX-License-Identifier: MIT
 * The plan where a device with memory of its own is found: it is used where the model fits; else "auto" goes to the processor and
 * says why, and "vulkan" is an error. And the size of the KV cache by type. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "coordinator/plan.h"
#include "kernels/quant.h"
#include "model/gguf.h"
#include "proto/err.h"
#include "proto/util.h"

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

static const struct npu_device no_npu = {.xrt = false};
static const struct gpu_device roomy = {.vulkan = true, .name = "Big", .room = UINT64_C(8) << 30};
static const struct gpu_device narrow = {.vulkan = true, .name = "Small", .room = 1 << 20};

static const struct plan_machine *with(const struct gpu_device *gpu)
{
    static struct plan_machine m;
    m = (struct plan_machine){.gpu = gpu, .npu = &no_npu};
    return &m;
}

static void test_device_with_room(void **state)
{
    (void)state;
    static struct plan p;
    struct err err = {0};
    assert_int_equal(plan_make(config, gguf, with(&roomy), 0, &p, &err), 0);
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
    assert_int_equal(plan_make(config, gguf, with(&narrow), 0, &p, &err), 0);
    assert_false(p.gpu.vulkan);
    assert_int_equal(p.device_bytes, 0);
    assert_non_null(strstr(p.gpu.reason, "on device 'Small', where 1.0 MiB are free"));
    assert_int_equal(plan_make(config, gguf, with(&none), 0, &cpu, &err), 0);
    assert_memory_equal(p.process, cpu.process, sizeof(p.process));
}

static void test_device_demanded(void **state)
{
    (void)state;
    static struct plan p;
    struct err err = {0};
    strcpy(config->gpu.backend, "vulkan");
    assert_int_equal(plan_make(config, gguf, with(&narrow), 0, &p, &err), -ENOMEM);
    assert_non_null(strstr(err.text, "on device 'Small'"));
    assert_non_null(strstr(err.text, "'gpu.backend' to cpu"));
    assert_true(p.device_bytes > 1 << 20);
}

/* The pool that an NPU has without a word of the config is a limit with a name. */
static void test_default_pool(void **state)
{
    (void)state;
    static struct plan p;
    static const struct gpu_device none = {.vulkan = false};
    const struct npu_device npu = {.xrt = true, .name = "Simulated", .fixed = UINT64_C(3) << 30};
    const struct plan_machine m = {.gpu = &none, .npu = &npu};
    struct config c = *config;
    struct err err = {0};
    unsigned least = 0;
    strcpy(c.gpu.backend, "cpu");
    strcpy(c.npu.backend, "xrt");
    assert_int_equal(plan_make(&c, gguf, &m, 0, &p, &err), -ENOMEM);
    const char *said = strstr(err.text, "'npu.memory' is 2.0 GiB; raise it to at least ");
    if (!said || sscanf(said, "'npu.memory' is 2.0 GiB; raise it to at least %u MiB", &least) != 1)
        fail_msg("%s", err.text);
    c.npu.memory = (uint64_t)least << 20;
    assert_int_equal(plan_make(&c, gguf, &m, 0, &p, &err), 0);
    c.npu.memory -= 1 << 20;
    assert_int_equal(plan_make(&c, gguf, &m, 0, &p, &err), -ENOMEM);
    strcpy(c.npu.backend, "auto");
    c.npu.memory = 0;
    assert_int_equal(plan_make(&c, gguf, &m, 0, &p, &err), 0);
    assert_false(p.npu.xrt);
    assert_non_null(strstr(p.npu.reason, "'npu.memory' is 2.0 GiB"));
}

/* What AMD's driver locks for itself is npu_worker's, outside of npu.memory. */
static void test_driver_heap(void **state)
{
    (void)state;
    static struct plan without, with;
    static const struct gpu_device none = {.vulkan = false};
    struct npu_device npu = {.xrt = true, .name = "Simulated"};
    const struct plan_machine m = {.gpu = &none, .npu = &npu};
    struct config c = *config;
    struct err err = {0};
    strcpy(c.gpu.backend, "cpu");
    assert_int_equal(plan_make(&c, gguf, &m, 0, &without, &err), 0);
    npu.heap = UINT64_C(64) << 20;
    npu.lockable = UINT64_MAX;
    assert_int_equal(plan_make(&c, gguf, &m, 0, &with, &err), 0);
    assert_int_equal(with.process[CONFIG_NPU].fixed - without.process[CONFIG_NPU].fixed, npu.heap);
    assert_true(with.process[CONFIG_NPU].cap >= without.process[CONFIG_NPU].cap + npu.heap);
    c.npu.memory = (without.process[CONFIG_NPU].total - without.process[CONFIG_NPU].fixed + 4) / 4 * 5;
    assert_int_equal(plan_make(&c, gguf, &m, 0, &with, &err), 0);
    assert_true(with.npu.xrt);
}

/* Where the limit of locked memory is below heap and buffers: fewer buffers, then no NPU, or the sentence that names limit and
 * need. */
static void test_locked_memory(void **state)
{
    (void)state;
    static struct plan p;
    static const struct gpu_device none = {.vulkan = false};
    const uint64_t mib = 1 << 20, heap = 64 * mib;
    struct npu_device npu = {
        .xrt = true, .name = "Simulated", .fixed = 3 * mib, .kept = mib, .heap = heap, .lockable = heap + 3 * mib};
    const struct plan_machine m = {.gpu = &none, .npu = &npu};
    struct config c = *config;
    struct err err = {0};
    strcpy(c.gpu.backend, "cpu");
    strcpy(c.npu.backend, "xrt");
    assert_int_equal(plan_make(&c, gguf, &m, 0, &p, &err), 0);
    assert_int_equal(p.npu_resident, 0);
    npu.lockable += 2 * mib;
    assert_int_equal(plan_make(&c, gguf, &m, 0, &p, &err), 0);
    assert_int_equal(p.npu_resident, 2);
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    assert_non_null(f);
    plan_print(&p, f);
    fclose(f);
    assert_non_null(strstr(text, "\nlocked      69.0 MiB for the NPU, its driver's heap included, of 69.0 MiB that may be"));
    free(text);
    npu.lockable = heap + 3 * mib - 1;
    assert_int_equal(plan_make(&c, gguf, &m, 0, &p, &err), -ENOMEM);
    assert_non_null(strstr(err.text,
                           "the NPU's buffers and its driver's heap: 68608 KiB have to be locked in memory, but the limit "
                           "(ulimit -l) is 68607 KiB; raise it with 'ulimit -l 68608'"));
    strcpy(c.npu.backend, "auto");
    assert_int_equal(plan_make(&c, gguf, &m, 0, &p, &err), 0);
    assert_false(p.npu.xrt);
    assert_non_null(strstr(p.npu.reason, "(ulimit -l) is 68607 KiB"));
    npu.heap = 0; /* a flavour whose driver locks nothing */
    assert_int_equal(plan_make(&c, gguf, &m, 0, &p, &err), 0);
    assert_true(p.npu.xrt);
}

static int plan_kv(int kv_type, uint32_t context, struct plan *ret, struct err *err)
{
    static const struct gpu_device none = {.vulkan = false};
    struct config c = *config;
    strcpy(c.gpu.backend, "cpu");
    c.kv_type = kv_type;
    c.context = context;
    return plan_make(&c, gguf, with(&none), 0, ret, err);
}

static void test_kv_types(void **state)
{
    (void)state;
    static struct plan f32, f16, q8;
    struct err err = {0};
    assert_int_equal(plan_kv(QUANT_F32, 2048, &f32, &err), 0);
    assert_int_equal(plan_kv(QUANT_F16, 2048, &f16, &err), 0);
    assert_int_equal(plan_kv(QUANT_Q8_0, 2048, &q8, &err), 0);
    /* 2 KV heads of 64 dimensions; K and V; 64 positions. The pool is rounded to pages of 4 KiB, as the memory is. */
    uint64_t entries = 2 * 64 * 2 * 64, pages = f32.kv_pages, kv = f32.process[CONFIG_NPU].bytes[BUDGET_KV];
    assert_int_equal(q8.kv_pages, pages);
    assert_int_equal(kv - f16.process[CONFIG_NPU].bytes[BUDGET_KV], pages * entries * 2);
    assert_int_equal(kv - q8.process[CONFIG_NPU].bytes[BUDGET_KV],
                     pages * (entries * 4 - (entries / 32 * 34 + 4095) / 4096 * 4096));
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    plan_print(&q8, f);
    fclose(f);
    assert_non_null(strstr(text, "KV q8_0,"));
    free(text);
}

/* What the machine does not have is refused before anything starts; what is only in use now is said. */
static void test_machine(void **state)
{
    (void)state;
    static struct plan p;
    static const struct gpu_device none = {.vulkan = false};
    struct plan_machine m = {.gpu = &none, .npu = &no_npu, .memory = {.total = 32 << 20, .available = 1 << 20}};
    struct config c = *config;
    struct err err = {0};
    char *text = NULL;
    size_t size = 0;
    strcpy(c.gpu.backend, "cpu");
    assert_int_equal(plan_make(&c, gguf, &m, 0, &p, &err), -ENOMEM);
    assert_non_null(strstr(err.text, "and this machine has 32.0 MiB of memory; "));
    m.memory.total = UINT64_C(8) << 30;
    assert_int_equal(plan_make(&c, gguf, &m, 0, &p, &err), 0);
    p.read_rate = 13e9;
    FILE *f = open_memstream(&text, &size);
    plan_print(&p, f);
    fclose(f);
    assert_non_null(strstr(text, "1.0 MiB of it free"));
    assert_non_null(strstr(text, "close other programs first"));
    assert_non_null(strstr(text, "speed       memory is read at 12.1 GiB/s"));
    uint64_t weights = p.process[CONFIG_NPU].bytes[BUDGET_WEIGHTS] + p.process[CONFIG_GPU].bytes[BUDGET_WEIGHTS];
    assert_int_equal(p.token_bytes, weights);
    free(text);
}

/* Less and less memory in the machine: first smaller chunks and KV caches, then streamed layers, then a refusal; never more than
 * there is, and never back. */
static void test_machine_shrinks(void **state)
{
    (void)state;
    static struct plan p;
    static const struct gpu_device none = {.vulkan = false};
    struct plan_machine m = {.gpu = &none, .npu = &no_npu};
    struct config c = *config;
    struct err err = {0};
    uint64_t streamed = 0;
    bool refused = false;
    strcpy(c.gpu.backend, "cpu");
    assert_int_equal(plan_make(&c, gguf, &m, 0, &p, &err), 0); /* of a machine without limits */
    uint64_t most = 0, least = 0;
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        most += p.process[i].total >> 20;
        least += p.process[i].fixed >> 20;
    }
    for (uint64_t mib = most + most / 15 + 8; mib > least; mib -= 2) { /* a sixteenth is kept free */
        m.memory.total = mib << 20;
        int r = plan_make(&c, gguf, &m, 0, &p, &err);
        assert_true(!refused || r < 0);
        refused = r < 0;
        if (r < 0)
            continue;
        uint64_t sum = 0, caps = 0;
        for (int i = 0; i < CONFIG_PROCESSES; i++) {
            sum += p.process[i].total;
            caps += p.process[i].cap;
            assert_true(p.process[i].cap >= p.process[i].total + (8 << 20));
        }
        assert_true(sum <= m.memory.total);
        assert_true(caps <= m.memory.total);
        assert_true(p.streamed_bytes >= streamed);
        assert_int_equal(plan_streams(&p), p.streamed_bytes > 0);
        streamed = p.streamed_bytes;
    }
    assert_true(streamed > 0 && refused);
}

/* Caps that nobody asked for are within the machine, and within a total that is larger than it; one that the config names stays. */
static void test_caps_within_machine(void **state)
{
    (void)state;
    static struct plan p;
    static const struct gpu_device none = {.vulkan = false};
    struct plan_machine m = {.gpu = &none, .npu = &no_npu};
    struct config c = *config;
    struct err err = {0};
    strcpy(c.gpu.backend, "cpu");
    assert_int_equal(plan_make(&c, gguf, &m, 0, &p, &err), 0);
    uint64_t need = 0, roomy_caps = 0;
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        need += p.process[i].total + (8 << 20);
        roomy_caps += p.process[i].cap;
    }
    const uint64_t limit = need + (roomy_caps - need) / 2; /* what the processes need fits, all that they would get does not */
    m.memory.total = limit > UINT64_C(1) << 30 ? limit + limit / 15 : limit; /* a sixteenth of much memory is not given away */
    for (int turn = 0; turn < 3; turn++) {
        c.total = turn == 1 ? UINT64_C(64) << 30 : 0;
        c.caps[CONFIG_NPU] = turn == 2 ? UINT64_C(64) << 30 : 0;
        assert_int_equal(plan_make(&c, gguf, &m, 0, &p, &err), 0);
        uint64_t caps = 0;
        for (int i = 0; i < CONFIG_PROCESSES; i++) {
            caps += i == CONFIG_NPU && turn == 2 ? 0 : p.process[i].cap;
            assert_true(p.process[i].cap >= p.process[i].total + (8 << 20));
        }
        assert_true(caps <= limit);
        assert_true(turn == 2 || caps > limit - (1 << 20)); /* all of it is given away */
        assert_true(turn < 2 || p.process[CONFIG_NPU].cap == c.caps[CONFIG_NPU]);
    }
}

/* Caps that together are more than a total which would do: that is said, and each way out of it is one, and no more than needed. */
static void test_caps_above_total(void **state)
{
    (void)state;
    static struct plan p;
    static const struct gpu_device none = {.vulkan = false};
    struct config c = *config;
    struct err err = {0};
    unsigned total, npu, gpu;
    strcpy(c.gpu.backend, "cpu");
    c.total = UINT64_C(16) << 30; /* sanitizers need some of it */
    c.caps[CONFIG_NPU] = c.caps[CONFIG_GPU] = UINT64_C(10) << 30;
    assert_int_equal(plan_make(&c, gguf, with(&none), 0, &p, &err), -ENOMEM);
    if (!strstr(err.text, "the caps add up to "))
        fail_msg("%s", err.text);
    assert_non_null(strstr(err.text, " ('memory.npu_worker' 10.0 GiB, 'memory.gpu_worker' 10.0 GiB, and"));
    const char *said = strstr(err.text, "but 'memory.total' is 16.0 GiB;");
    if (!said ||
        sscanf(said,
               "but 'memory.total' is 16.0 GiB; raise it to at least %u MiB; or lower 'memory.npu_worker' to at most %uMiB, or "
               "lower 'memory.gpu_worker' to at most %uMiB",
               &total, &npu, &gpu) != 3)
        fail_msg("%s", err.text);
    assert_int_equal(p.refusal.n_raise, 1);
    assert_true(p.refusal.n_other >= 2);
    const struct {
        uint64_t *value;
        unsigned mib;
        int worse; /* in MiB */
    } ways[] = {{&c.total, total, -1}, {&c.caps[CONFIG_NPU], npu, 1}, {&c.caps[CONFIG_GPU], gpu, 1}};
    for (size_t i = 0; i < ARRAY_LEN(ways); i++) { /* each is enough, and the smallest change that is */
        uint64_t old = *ways[i].value;
        *ways[i].value = (uint64_t)ways[i].mib << 20;
        assert_int_equal(plan_make(&c, gguf, with(&none), 0, &p, &err), 0);
        *ways[i].value = (uint64_t)((int64_t)ways[i].mib + ways[i].worse) << 20;
        assert_int_equal(plan_make(&c, gguf, with(&none), 0, &p, &err), -ENOMEM);
        *ways[i].value = old;
    }
}

/* A device that has no room for all layers gets those that are streamed, where the config insists on it. */
static void test_device_streams(void **state)
{
    (void)state;
    static struct plan p, small;
    struct gpu_device device = roomy;
    struct config c = *config;
    struct err err = {0};
    strcpy(c.gpu.backend, "vulkan");
    c.chunk_tokens = 16;
    assert_int_equal(plan_make(&c, gguf, with(&device), 0, &p, &err), 0);
    assert_int_equal(p.streamed_bytes, 0);
    device.room = p.device_bytes - 1;
    assert_int_equal(plan_make(&c, gguf, with(&device), 0, &small, &err), 0);
    assert_true(small.residency[CONFIG_GPU].n_streamed > 0 && small.residency[CONFIG_NPU].n_streamed == 0);
    assert_true(small.device_bytes <= device.room);
    strcpy(c.gpu.backend, "auto"); /* rather the processor, with everything in memory */
    assert_int_equal(plan_make(&c, gguf, with(&device), 0, &small, &err), 0);
    assert_false(small.gpu.vulkan);
    assert_int_equal(small.streamed_bytes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_device_with_room), cmocka_unit_test(test_device_too_small),
                                       cmocka_unit_test(test_device_demanded),  cmocka_unit_test(test_kv_types),
                                       cmocka_unit_test(test_machine),          cmocka_unit_test(test_machine_shrinks),
                                       cmocka_unit_test(test_device_streams),   cmocka_unit_test(test_caps_within_machine),
                                       cmocka_unit_test(test_default_pool),     cmocka_unit_test(test_driver_heap),
                                       cmocka_unit_test(test_locked_memory),    cmocka_unit_test(test_caps_above_total)};
    return cmocka_run_group_tests(tests, open_model, close_model);
}
