/* SPDX-License-Identifier: MIT
 * Choice of a device by names and types alone; then, where there is a device: features taken away, memory within its limits, the
 * pipeline cache on disk when it is damaged, the crossover by invented times and its file. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "gpu_worker/shaders.h"
#include "gpu_worker/vk_crossover.h"
#include "gpu_worker/vk_memory.h"
#include "gpu_worker/vk_pipeline.h"
#include "gpu_worker/vk_submit.h"
#include "proto/budget.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

#define DISCRETE VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU
#define INTEGRATED VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU
#define CPU VK_PHYSICAL_DEVICE_TYPE_CPU

static void test_choice(void **state)
{
    (void)state;
    static const struct vk_candidate all[] = {{.name = "llvmpipe", .type = CPU},
                                              {.name = "Radeon 890M", .type = INTEGRATED},
                                              {.name = "GeForce", .type = DISCRETE, .unfit = "its driver speaks Vulkan 1.1"},
                                              {.name = "Radeon RX", .type = DISCRETE},
                                              {.name = "Second RX", .type = DISCRETE}};
    static const struct {
        const char *wanted;
        uint32_t from, n;
        bool allow_cpu;
        int index; /* or an error */
        const char *words;
    } cases[] = {
        {"auto", 0, 5, false, 3, "a discrete GPU"},
        {"", 0, 3, false, 1, "an integrated GPU"},
        {"auto", 0, 3, false, 1, "an integrated GPU"},
        {"auto", 0, 1, false, -ENODEV, "gpu.allow_cpu_device"},
        {"auto", 0, 1, true, 0, "nothing better"},
        {"auto", 0, 2, true, 1, "an integrated GPU"},
        {"auto", 2, 1, true, -ENODEV, "Vulkan 1.1"},
        {"auto", 0, 0, true, -ENODEV, "no Vulkan device"},
        {"1", 0, 5, false, 1, "names it"},
        {"0", 0, 5, false, 0, "names it"},
        {"5", 0, 5, false, -ENODEV, "there are 5 devices: 0 'llvmpipe', 1 'Radeon 890M'"},
        {"99999999999999999999", 0, 5, false, -ENODEV, "there are 5 devices"},
        {"890m", 0, 5, false, 1, "names it"},
        {"rx", 0, 5, false, 3, "names it"},
        {"geforce", 0, 5, false, -ENODEV, "cannot be used: its driver speaks"},
        {"arc", 0, 5, false, -ENODEV, "no device has that in its name; there are: 0 'llvmpipe'"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char why[160] = "";
        struct err err = {0};
        int r = vk_choose(all + cases[i].from, cases[i].n, cases[i].wanted, cases[i].allow_cpu, why, sizeof(why), &err);
        if (r != cases[i].index || !strstr(r < 0 ? err.text : why, cases[i].words))
            fail_msg("case %zu ('%s'): %d '%s'; expected %d '%s'", i, cases[i].wanted, r, r < 0 ? err.text : why, cases[i].index,
                     cases[i].words);
    }
}

static void test_feature_names(void **state)
{
    (void)state;
    uint32_t bits;
    struct err err = {0};
    assert_int_equal(vk_features_parse(NULL, &bits, &err), 0);
    assert_int_equal(bits, 0);
    assert_int_equal(vk_features_parse("int_dot, coopmat", &bits, &err), 0);
    assert_int_equal(bits, 1u << VK_FEATURE_INT_DOT | 1u << VK_FEATURE_COOPMAT);
    assert_int_equal(vk_features_parse("all", &bits, &err), 0);
    assert_int_equal(bits, (1u << VK_FEATURES) - 1);
    assert_int_equal(vk_features_parse("int_dot,dot", &bits, &err), -EINVAL);
    assert_non_null(strstr(err.text, "'dot'"));
    assert_non_null(strstr(err.text, "int_dot"));
}

static void test_failures(void **state)
{
    (void)state;
    static const struct {
        VkResult r;
        int code;
        const char *words;
    } cases[] = {
        {VK_ERROR_DEVICE_LOST, -ENODEV, "was lost"},
        {VK_ERROR_OUT_OF_DEVICE_MEMORY, -ENOMEM, "lower gpu.memory"},
        {VK_ERROR_OUT_OF_HOST_MEMORY, -ENOMEM, "VK_ERROR_OUT_OF_HOST_MEMORY"},
        {VK_TIMEOUT, -ETIMEDOUT, "does not answer"},
        {VK_ERROR_INITIALIZATION_FAILED, -EIO, "VK_ERROR_INITIALIZATION_FAILED"},
        {(VkResult)-12345, -EIO, "(-12345)"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err err = {0};
        assert_int_equal(vk_fail(NULL, cases[i].r, "vkQueueSubmit", &err), cases[i].code);
        assert_non_null(strstr(err.text, cases[i].words));
        assert_non_null(strstr(err.text, "vkQueueSubmit"));
    }
}

/* The first device, or the test is left out. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = true };
#else
enum { SANITIZED = false };
#endif

static struct vk_device *open_device(uint32_t without, uint64_t max_buffer)
{
    const struct vk_options o = {.device = "auto", .allow_cpu = true, .without = without, .max_buffer = max_buffer};
    struct vk_device *d = NULL;
    struct err err = {0};
    if (vk_device_open(&o, &d, &err) < 0) {
        print_message("left out: %s\n", err.text);
        skip();
    }
    return d;
}

static void test_injected(void **state)
{
    (void)state;
    struct vk_device *d = open_device((1u << VK_FEATURES) - 1, 1 << 20);
    assert_int_equal(d->features, 0);
    assert_int_equal(d->import_align, 0);
    assert_true(d->max_range <= 1 << 20 && d->max_bytes <= 1 << 20);
    assert_true(vk_device_room(d) > 0);
    vk_device_close(d);
    const struct vk_options o = {.device = "auto", .allow_cpu = true, .subgroup = 12};
    struct err err = {0};
    assert_int_equal(vk_device_open(&o, &d, &err), -EINVAL);
    assert_non_null(strstr(err.text, "'gpu.subgroup' is 12; device '"));
}

static void test_memory(void **state)
{
    (void)state;
    struct vk_device *d = open_device(0, 1 << 20);
    struct budget budget;
    struct err err = {0};
    budget_init(&budget, "gpu_worker", 0);
    struct vk_memory m = {.device = d, .budget = &budget, .limit = 3 << 20};
    struct vk_buffer a, b, c, e;
    assert_int_equal(vk_buffer_make(&m, VK_MEMORY_DEVICE, (1 << 20) + 1, "weights", &a, &err), -ENOMEM);
    assert_non_null(strstr(err.text, "allocates at most 1.0 MiB at once"));
    assert_int_equal(vk_buffer_make(&m, VK_MEMORY_DEVICE, 1 << 20, "weights", &a, &err), 0);
    assert_int_equal(vk_buffer_make(&m, VK_MEMORY_STAGING, 1 << 20, "rows", &b, &err), 0);
    assert_non_null(b.map);
    assert_int_equal(vk_buffer_make(&m, VK_MEMORY_READBACK, 1, "rows", &c, &err), 0);
    assert_int_equal(vk_buffer_make(&m, VK_MEMORY_DEVICE, 1 << 20, "more weights", &e, &err), -ENOMEM);
    assert_non_null(strstr(err.text, "more weights"));
    assert_non_null(strstr(err.text, "gpu.memory"));
    assert_true(m.used > 2 << 20 && m.peak == m.used);
    void *host = aligned_alloc(4096, 8192);
    assert_non_null(host);
    if (d->import_align && d->import_align <= 4096) {
        assert_int_equal(vk_buffer_import(&m, (char *)host + 1, 4096, &e), -ENOTSUP);
        uint64_t used = m.used;
        if (vk_buffer_import(&m, host, 8192, &e) == 0)
            assert_ptr_equal(e.map, host);
        assert_int_equal(m.used, used); /* what is used in place costs nothing */
        vk_buffer_free(&m, &e);
    }
    vk_buffer_free(&m, &a);
    vk_buffer_free(&m, &b);
    vk_buffer_free(&m, &c);
    free(host);
    assert_int_equal(m.used, 0);
    assert_int_equal(budget.total, 0);
    vk_device_close(d);
}

/* Whether the cache in the folder was good, after one kernel was made with it. */
static bool use_cache(const struct vk_device *d, const char *folder)
{
    struct vk_cache *c = NULL;
    struct vk_kernel k;
    struct err err = {0};
    assert_int_equal(vk_cache_open(d, folder, &c, &err), 0);
    bool warm = vk_cache_warm(c);
    assert_int_equal(vk_kernel_make(d, c, "copy", 2, 0, (uint32_t[]){64}, 1, 0, &k, &err), 0);
    vk_kernel_free(d, &k);
    vk_cache_close(c);
    return warm;
}

static void test_cache(void **state)
{
    (void)state;
    struct vk_device *d = open_device(0, 0);
    char folder[] = "/tmp/tandem-vulkan-XXXXXX", command[512], file[512];
    assert_non_null(mkdtemp(folder));
    assert_false(use_cache(d, folder));
    snprintf(command, sizeof(command), "ls %s/vulkan-*.cache", folder);
    FILE *p = popen(command, "r");
    assert_non_null(fgets(file, sizeof(file), p));
    pclose(p);
    file[strcspn(file, "\n")] = '\0';
    assert_true(use_cache(d, folder));
    struct stat st;
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_mode & 077, 0);
    for (off_t at = 0; at < st.st_size; at += at < 128 ? 1 : st.st_size / 16 + 1) {
        uint8_t byte;
        int fd = open(file, O_RDWR);
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 0x40;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        close(fd);
        assert_false(use_cache(d, folder)); /* ignored, and replaced */
        assert_true(use_cache(d, folder));
    }
    for (off_t size = 0; size < st.st_size; size += st.st_size / 8 + 1) {
        assert_int_equal(truncate(file, size), 0);
        assert_false(use_cache(d, folder));
    }
    assert_int_equal(unlink(file), 0);
    assert_int_equal(symlink("/etc/passwd", file), 0);
    assert_false(use_cache(d, folder));
    assert_int_equal(unlink(file), 0);
    assert_int_equal(rmdir(folder), 0);
    assert_false(use_cache(d, "")); /* no folder: no file */
    vk_device_close(d);
}

/* Times that say from where on many win, and how often they were asked for. */
struct clock {
    uint32_t from, asked;
    int fail;
    uint64_t sleep_ns;
};

static int tell(void *ctx, uint32_t tokens, bool by_many, double *ret, struct err *err)
{
    struct clock *c = ctx;
    c->asked++;
    *ret = by_many == (tokens >= c->from) ? 1e-3 : 2e-3;
    if (c->sleep_ns)
        nanosleep(&(struct timespec){.tv_nsec = (long)c->sleep_ns}, NULL);
    return c->fail ? err_set(err, c->fail, "told to fail") : 0;
}

static uint32_t crossover(const struct vk_crossover *c, const char *folder, uint32_t from, uint32_t *ret_asked)
{
    struct clock k = {.from = from};
    struct err err = {0};
    uint32_t n = 0;
    assert_int_equal(vk_crossover_find(c, folder, tell, &k, &n, &err), 0);
    *ret_asked = k.asked;
    return n;
}

static void test_crossover(void **state)
{
    (void)state;
    static const struct {
        uint32_t from, tokens, want, asked;
    } cases[] = {{1, 128, 8, 2},
                 {8, 128, 8, 2},
                 {9, 128, 16, 4},
                 {64, 128, 64, 8},
                 {128, 128, 128, 10},
                 {129, 128, VK_CROSSOVER_NEVER, 10},
                 {64, 32, VK_CROSSOVER_NEVER, 6},
                 {64, 4, VK_CROSSOVER_NEVER, 0}};
    struct vk_device *d = open_device(0, 0);
    struct vk_crossover c = {.device = d, .shaders = 1, .family = "tiled", .hidden = 64, .ffn = 128, .types = {2, 8, 0}};
    struct err err = {0};
    uint32_t asked, n;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        c.tokens = cases[i].tokens;
        assert_int_equal(crossover(&c, "", cases[i].from, &asked), cases[i].want);
        assert_int_equal(asked, cases[i].asked);
    }
    c.tokens = 128;
    for (c.fallback = 8; c.fallback <= 32; c.fallback *= 4) { /* 8 take 100 ms: 16 are not begun */
        struct clock slow = {.from = 200, .sleep_ns = 50000000};
        assert_int_equal(vk_crossover_find(&c, "", tell, &slow, &n, &err), 0);
        assert_int_equal(n, c.fallback == 8 ? 16 : 32);
        assert_int_equal(slow.asked, 2);
    }
    struct clock fail = {.fail = -ENODEV};
    char folder[] = "/tmp/tandem-vulkan-XXXXXX", command[2048], file[512], text[4096];
    assert_non_null(mkdtemp(folder));
    assert_int_equal(vk_crossover_find(&c, folder, tell, &fail, &n, &err), -ENODEV);
    snprintf(command, sizeof(command), "ls %s/crossover-*.txt 2>/dev/null", folder);
    FILE *p = popen(command, "r");
    assert_null(fgets(file, sizeof(file), p)); /* nothing is kept of a failure */
    pclose(p);
    for (uint32_t from = 8; from <= 256; from *= 2) { /* kept, whatever the clock says later */
        uint32_t want = from > 128 ? VK_CROSSOVER_NEVER : from;
        c.shaders = from;
        assert_int_equal(crossover(&c, folder, from, &asked), want);
        assert_true(asked > 0);
        assert_int_equal(crossover(&c, folder, 1, &asked), want);
        assert_int_equal(asked, 0);
    }
    snprintf(command, sizeof(command), "rm %s/crossover-*.txt", folder);
    assert_int_equal(system(command), 0);
    assert_int_equal(crossover(&c, folder, 32, &asked), 32);
    snprintf(command, sizeof(command), "ls %s/crossover-*.txt", folder);
    p = popen(command, "r");
    assert_non_null(fgets(file, sizeof(file), p));
    pclose(p);
    file[strcspn(file, "\n")] = '\0';
    struct stat st;
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_mode & 077, 0);
    int fd = open(file, O_RDONLY);
    ssize_t bytes = read(fd, text, sizeof(text) - 1);
    close(fd);
    assert_int_equal(bytes, st.st_size);
    text[bytes] = '\0';
    assert_non_null(strstr(text, d->name));
    assert_non_null(strstr(text, "many: 32\n"));
    for (off_t at = 0; at < st.st_size; at += 7) {
        fd = open(file, O_RDWR);
        assert_int_equal(pwrite(fd, &(char){text[at] ^ 1}, 1, at), 1);
        close(fd);
        assert_int_equal(crossover(&c, folder, 32, &asked), 32);
        assert_true(asked > 0); /* ignored, and replaced */
        assert_int_equal(crossover(&c, folder, 1, &asked), 32);
        assert_int_equal(asked, 0);
    }
    for (off_t size = 0; size < 3 * st.st_size; size += st.st_size / 4 + 1) {
        assert_int_equal(truncate(file, size), 0);
        crossover(&c, folder, 32, &asked);
        assert_true(asked > 0);
    }
    /* an answer of somebody else's, under this name */
    struct vk_crossover other = c;
    other.ffn = 256;
    assert_int_equal(crossover(&other, folder, 8, &asked), 8);
    snprintf(command, sizeof(command), "for f in %s/crossover-*.txt; do [ $f = %s ] || mv $f %s; done", folder, file, file);
    assert_int_equal(system(command), 0);
    assert_int_equal(crossover(&c, folder, 32, &asked), 32);
    assert_true(asked > 0);
    assert_int_equal(unlink(file), 0);
    assert_int_equal(symlink("/etc/passwd", file), 0);
    assert_int_equal(crossover(&c, folder, 32, &asked), 32);
    assert_true(asked > 0);
    assert_int_equal(unlink(file), 0);
    assert_int_equal(rmdir(folder), 0);                      /* and no temporary file is left */
    assert_int_equal(crossover(&c, folder, 32, &asked), 32); /* a folder that is not there */
    vk_device_close(d);
}

static long resident_kib(void)
{
    long total, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld", &total, &resident), 2);
    fclose(f);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static void test_copy(void **state)
{
    (void)state;
    struct vk_device *d = open_device(0, 0);
    struct budget budget;
    struct err err = {0};
    struct vk_queue *q = NULL;
    struct vk_cache *c = NULL;
    struct vk_kernel k;
    struct vk_buffer a, b, s;
    VkCommandBuffer cmd;
    budget_init(&budget, "gpu_worker", 0);
    struct vk_memory m = {.device = d, .budget = &budget};
    struct vk_recorder *rec = NULL;
    assert_int_equal(vk_queue_open(d, &q, &err), 0);
    assert_int_equal(vk_recorder_open(q, 1, &rec, &err), 0);
    assert_int_equal(vk_cache_open(d, "", &c, &err), 0);
    assert_int_equal(vk_kernel_make(d, c, "nothing", 2, 0, NULL, 0, 0, &k, &err), -EINVAL);
    assert_int_equal(vk_kernel_make(d, c, "copy", 2, 0, (uint32_t[]){64}, 1, 0, &k, &err), 0);
    assert_int_equal(vk_buffer_make(&m, VK_MEMORY_DEVICE, 65536, "a", &a, &err), 0);
    assert_int_equal(vk_buffer_make(&m, VK_MEMORY_READBACK, 65536, "b", &b, &err), 0);
    assert_int_equal(vk_buffer_make(&m, VK_MEMORY_STAGING, 4096, "staging", &s, &err), 0);
    uint8_t data[65536];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7 + i / 256);
    assert_int_equal(vk_upload(q, &s, a.buffer, 0, data, sizeof(data), &err), 0); /* in sixteen pieces */
    assert_int_equal(vk_begin(q, rec, 0, &cmd, &err), 0);
    assert_int_equal(vk_dispatch(q, cmd, &k, (struct vk_range[]){{a.buffer, 0, 0}, {b.buffer, 0, 0}}, NULL, 16, 1, 1, &err), 0);
    assert_int_equal(vk_end(q, cmd, &err), 0);
    for (int i = 0; i < 3; i++) { /* recorded once, run again and again */
        memset(b.map, 0, sizeof(data));
        assert_int_equal(vk_run(q, cmd, &err), 0);
        assert_memory_equal(b.map, data, sizeof(data));
    }
    long before = 0;
    for (int i = 0; i < 4000; i++) { /* recorded for one run, four thousand times in the memory of the first thousand */
        assert_int_equal(vk_begin(q, NULL, 0, &cmd, &err), 0);
        for (int n = 0; n < 4; n++)
            assert_int_equal(vk_dispatch(q, cmd, &k, (struct vk_range[]){{a.buffer, 0, 0}, {b.buffer, 0, 0}}, NULL, 1, 1, 1, &err),
                             0);
        assert_int_equal(vk_end(q, cmd, &err), 0);
        if (i % 100 == 0)
            assert_int_equal(vk_run(q, cmd, &err), 0);
        before = i == 1000 ? resident_kib() : before;
    }
    if (!SANITIZED) /* which keep what was freed */
        assert_in_range(resident_kib(), 0, before + 2048);
    vk_recorder_close(q, rec);
    vk_queue_close(q);
    vk_kernel_free(d, &k);
    vk_cache_close(c);
    vk_buffer_free(&m, &a);
    vk_buffer_free(&m, &b);
    vk_buffer_free(&m, &s);
    vk_device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),    cmocka_unit_test(test_feature_names), cmocka_unit_test(test_failures),
        cmocka_unit_test(test_injected),  cmocka_unit_test(test_memory),        cmocka_unit_test(test_cache),
        cmocka_unit_test(test_crossover), cmocka_unit_test(test_copy),
    };
    log_init("test", "error");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
