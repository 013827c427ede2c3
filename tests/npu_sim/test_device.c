/* SPDX-License-Identifier: MIT
 * Buffers, slices, syncs, kernels and runs through the module of XRT on the simulated NPU, and that what the module counts is what
 * reached the device through libxrt. */
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xclbin.h>

#include "proto/util.h"
#include "tests/npu_sim/rig.h"
#include "tests/npu_sim/sim.h"
#include "tests/npu_sim/sim_xclbin.h"
#include "tests/unit/unit_test.h"

#define WIDTH 64u
#define ROWS 4u
#define WAIT_MS 60000
static const char *const norm[] = {"rms_norm:4x64:1e-6"};

static void fill(uint16_t *x, size_t n, float value)
{
    for (size_t i = 0; i < n; i++)
        x[i] = sim_bf16(value);
}

static int table(const char *folder)
{
    struct rig r;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK(strcmp(r.ops->flavour, "load_xclbin") == 0 && !r.ops->locks_memory);
    CHECK(r.ops->xrt_major == 2 && r.ops->xrt_minor == 13);
    CHECK(strcmp(r.ops->name(r.device), SIM_XCLBIN_PLATFORM) == 0);
    CHECK(!r.ops->lost(r.device));
    rig_close(&r);
    CHECK(rig_report(folder, "opens") == 1 && rig_report(folder, "bytes") == 0);
    return 0;
}

static bool is_mapped(const char *path)
{
    char line[4400], real[PATH_MAX];
    bool found = false;
    if (!realpath(path, real))
        return false;
    FILE *f = fopen("/proc/self/maps", "r");
    while (f && !found && fgets(line, sizeof(line), f))
        found = strstr(line, real) != NULL;
    if (f)
        fclose(f);
    return found;
}

/* A folder that XILINX_XRT names gives libxrt_coreutil, too, where it has one. */
static int whole_xrt(const char *folder)
{
    struct rig r;
    char path[4096];
    snprintf(path, sizeof(path), "%.4000s/lib", folder);
    CHECK(mkdir(path, 0700) == 0);
    snprintf(path, sizeof(path), "%.4000s/lib/libxrt_core.so.2", folder);
    CHECK(symlink(TANDEM_SIM_ROOT "/lib/libxrt_core.so.2", path) == 0);
    snprintf(path, sizeof(path), "%.4000s/lib/libxrt_coreutil.so.2", folder);
    unit_copy(TANDEM_XRT_LIBRARY, path);
    setenv("XILINX_XRT", folder, 1);
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK(is_mapped(path) && !is_mapped(TANDEM_XRT_LIBRARY));
    rig_close(&r);
    return 0;
}

/* One that is damaged is told, and not passed over for the system's. */
static int damaged_xrt(const char *folder)
{
    struct rig r;
    char path[4096];
    snprintf(path, sizeof(path), "%.4000s/lib/libxrt_coreutil.so.2", folder);
    unit_write(path, "not a library", 13);
    setenv("XILINX_XRT", folder, 1);
    CHECK_ERR(rig_open(&r, folder, norm, 1, err), -ENOSYS, "a whole XRT in the folder that XILINX_XRT names");
    return 0;
}

static int buffers(const char *folder)
{
    struct rig r;
    struct xrt_buffer *arena = NULL, *slice = NULL, *bad = NULL;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(r.ops->make_buffer(r.kernel, 0, 1 << 20, &arena, err));
    unsigned char *host = r.ops->map(arena);
    memset(host, 0, 1 << 20);
    CHECK_OK(r.ops->sync(arena, XRT_DEVICE_TO, 0, 1 << 20, err));
    CHECK_OK(r.ops->make_slice(arena, 8192, 5000, &slice, err));
    CHECK(r.ops->map(slice) == host + 8192 && r.ops->size(slice) == 5000);
    memset(host, 7, 1 << 20);
    CHECK_OK(r.ops->sync(slice, XRT_DEVICE_TO, 1000, 3000, err));
    memset(host, 9, 1 << 20);
    CHECK_OK(r.ops->sync(arena, XRT_DEVICE_FROM, 0, 1 << 20, err));
    for (size_t i = 0; i < 1 << 20; i++) /* what was synced, and nothing beside it */
        CHECK(host[i] == (i >= 9192 && i < 12192 ? 7 : 0));
    CHECK_OK(r.ops->sync(slice, XRT_DEVICE_TO, 5000, 0, err));
    CHECK_ERR(r.ops->sync(slice, XRT_DEVICE_TO, 4000, 1001, err), -EINVAL, "1001 bytes at 4000");
    CHECK_ERR(r.ops->sync(arena, XRT_DEVICE_FROM, SIZE_MAX, 2, err), -EINVAL, "sync of 2 bytes");
    CHECK_ERR(r.ops->make_slice(arena, 100, 100, &bad, err), -EINVAL, "multiple of 4096");
    CHECK_ERR(r.ops->make_slice(arena, 4096, 1 << 20, &bad, err), -EINVAL, "slice of 1048576 bytes at 4096");
    CHECK_ERR(r.ops->make_slice(arena, SIZE_MAX - 4095, 8192, &bad, err), -EINVAL, "slice of 8192");
    CHECK_ERR(r.ops->make_slice(slice, 0, 4096, &bad, err), -EINVAL, "data buffer");
    CHECK_ERR(r.ops->make_buffer(r.kernel, 5, 4096, &bad, err), -EINVAL, "argument from 0 to 4");
    CHECK_ERR(r.ops->make_buffer(r.kernel, 0, 0, &bad, err), -EINVAL, "0 bytes");
    CHECK(!bad);
    r.ops->free_buffer(slice);
    r.ops->free_buffer(arena);
    r.ops->free_buffer(NULL);
    rig_close(&r);
    return 0;
}

static int forgotten_sync(const char *folder)
{
    struct rig r;
    struct rig_operator o;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(rig_operator_open(&r, 0, &o, err));
    uint16_t *x = rig_map(&r, &o, MANIFEST_ARG_X), *w = rig_map(&r, &o, MANIFEST_ARG_W), *y = rig_map(&r, &o, MANIFEST_ARG_Y);
    fill(x, ROWS * WIDTH, 2);
    fill(w, WIDTH, 3);
    CHECK_OK(rig_operator_run(&r, &o, err));
    for (size_t i = 0; i < ROWS * WIDTH; i++)
        CHECK(sim_float(y[i]) == 3);
    fill(w, WIDTH, 5); /* not uploaded: the device still has 3 */
    fill(y, ROWS * WIDTH, 0);
    CHECK_OK(r.ops->start(o.run, err));
    CHECK_OK(r.ops->wait(o.run, WAIT_MS, err));
    for (size_t i = 0; i < ROWS * WIDTH; i++) /* not downloaded: the host's view is old */
        CHECK(sim_float(y[i]) == 0);
    CHECK_OK(r.ops->sync(o.buffers[2], XRT_DEVICE_FROM, 0, ROWS * WIDTH * 2, err));
    for (size_t i = 0; i < ROWS * WIDTH; i++)
        CHECK(sim_float(y[i]) == 3);
    CHECK_OK(rig_operator_run(&r, &o, err));
    CHECK(sim_float(y[0]) == 5);
    rig_operator_close(&r, &o);
    rig_close(&r);
    return 0;
}

/* One arena; while one tile is computed, the next is uploaded into the other half. */
static int double_buffer(const char *folder)
{
    enum { TILES = 20, TILE = 4096 };
    struct rig r;
    struct rig_operator o;
    struct xrt_buffer *arena = NULL, *x[2], *y[2];
    struct xrt_run *runs[2];
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(rig_operator_open(&r, 0, &o, err));
    CHECK_OK(r.ops->make_buffer(r.kernel, 0, 4 * TILE, &arena, err));
    uint16_t *w = rig_map(&r, &o, MANIFEST_ARG_W);
    fill(w, WIDTH, 1);
    CHECK_OK(r.ops->sync(o.buffers[1], XRT_DEVICE_TO, 0, WIDTH * 2, err));
    for (size_t i = 0; i < 2; i++) {
        CHECK_OK(r.ops->make_slice(arena, i * TILE, ROWS * WIDTH * 2, &x[i], err));
        CHECK_OK(r.ops->make_slice(arena, (2 + i) * TILE, ROWS * WIDTH * 2, &y[i], err));
        struct xrt_buffer *const arguments[] = {x[i], o.buffers[1], y[i]};
        CHECK_OK(r.ops->make_run(r.kernel, o.instructions, arguments, 3, &runs[i], err));
    }
    for (size_t tile = 0; tile <= TILES; tile++) {
        size_t i = tile % 2;
        if (tile < TILES) {
            uint16_t *row = r.ops->map(x[i]);
            fill(row, ROWS * WIDTH, 0);
            for (size_t j = 0; j < ROWS; j++)
                row[j * WIDTH + tile] = sim_bf16(1); /* normalised: 8 there, 0 elsewhere */
            CHECK_OK(r.ops->sync(x[i], XRT_DEVICE_TO, 0, ROWS * WIDTH * 2, err));
            CHECK_OK(r.ops->start(runs[i], err));
        }
        if (tile > 0) {
            CHECK_OK(r.ops->wait(runs[1 - i], WAIT_MS, err));
            CHECK_OK(r.ops->sync(y[1 - i], XRT_DEVICE_FROM, 0, ROWS * WIDTH * 2, err));
            const uint16_t *out = r.ops->map(y[1 - i]);
            for (size_t j = 0; j < ROWS * WIDTH; j++)
                CHECK(sim_float(out[j]) == (j % WIDTH == tile - 1 ? 8.0f : 0.0f));
        }
    }
    for (size_t i = 0; i < 2; i++) {
        r.ops->free_run(runs[i]);
        r.ops->free_buffer(x[i]);
        r.ops->free_buffer(y[i]);
    }
    r.ops->free_buffer(arena);
    rig_operator_close(&r, &o);
    rig_close(&r);
    return 0;
}

static int runs(const char *folder)
{
    struct rig r;
    struct rig_operator o;
    struct xrt_run *bad = NULL;
    struct xrt_buffer *other = NULL;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(rig_operator_open(&r, 0, &o, err));
    CHECK_ERR(r.ops->make_run(r.kernel, o.buffers[0], o.buffers, 3, &bad, err), -EINVAL, "instructions");
    CHECK_ERR(r.ops->make_run(r.kernel, o.instructions, o.buffers, 6, &bad, err), -EINVAL, "6 buffers");
    CHECK_ERR(r.ops->wait(o.run, 100, err), -EINVAL, "started");
    CHECK_OK(r.ops->start(o.run, err));
    CHECK_ERR(r.ops->start(o.run, err), -EINVAL, "not waited for");
    CHECK_ERR(r.ops->set_argument(o.run, 0, o.buffers[0], err), -EINVAL, "waited for");
    CHECK_ERR(r.ops->wait(o.run, 0, err), -EINVAL, "more than 0");
    CHECK_OK(r.ops->wait(o.run, WAIT_MS, err));
    CHECK_OK(r.ops->make_buffer(r.kernel, 0, ROWS * WIDTH * 2, &other, err));
    fill(r.ops->map(other), ROWS * WIDTH, 1);
    fill(rig_map(&r, &o, MANIFEST_ARG_W), WIDTH, 7);
    CHECK_OK(r.ops->sync(other, XRT_DEVICE_TO, 0, ROWS * WIDTH * 2, err));
    CHECK_OK(r.ops->set_argument(o.run, 0, other, err));
    CHECK_ERR(r.ops->set_argument(o.run, 5, other, err), -EINVAL, "0 to 4");
    CHECK_OK(rig_operator_run(&r, &o, err));
    CHECK(sim_float(((uint16_t *)rig_map(&r, &o, MANIFEST_ARG_Y))[0]) == 7);
    CHECK_ERR(r.ops->make_instructions(r.kernel, NULL, 0, &other, err), -EINVAL, "0 words");
    CHECK(!bad);
    return 0;
}

static int patch(const char *path, long at, uint64_t value, size_t bytes)
{
    FILE *f = fopen(path, "r+");
    CHECK(f && fseek(f, at, SEEK_SET) == 0 && fwrite(&value, bytes, 1, f) == 1);
    return fclose(f);
}

/* What XRT would read beyond the end of, or refuse in words of its own. */
static int damaged_xclbin(const char *folder)
{
    struct rig r;
    struct xrt_kernel *k = NULL;
    struct stat st;
    char path[4096];
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    snprintf(path, sizeof(path), "%.4000s/part.xclbin", folder);
    CHECK(sim_xclbin_write(path, "MLIR_AIE", "a part of one") == 0 && stat(path, &st) == 0);
    CHECK(patch(path, offsetof(struct axlf, m_sections[1].m_sectionSize), (uint64_t)st.st_size, 8) == 0);
    CHECK_ERR(r.ops->load_kernel(r.device, path, "MLIR_AIE", &k, err), -ENOEXEC, "damaged: section 1 does not lie in its");
    CHECK(patch(path, offsetof(struct axlf, m_sections[0].m_sectionOffset), UINT64_MAX, 8) == 0);
    CHECK_ERR(r.ops->load_kernel(r.device, path, "MLIR_AIE", &k, err), -ENOEXEC, "damaged: section 0 does not lie in its");
    CHECK(patch(path, offsetof(struct axlf, m_header.m_numSections), UINT32_MAX, 4) == 0);
    CHECK_ERR(r.ops->load_kernel(r.device, path, "MLIR_AIE", &k, err), -ENOEXEC, "damaged: 4294967295 sections");
    CHECK(patch(path, offsetof(struct axlf, m_header.m_numSections), 0, 4) == 0); /* whole, but XRT finds nothing in it */
    CHECK_ERR(r.ops->load_kernel(r.device, path, "MLIR_AIE", &k, err), -ENOEXEC, "that was built for '" SIM_XCLBIN_PLATFORM "'");
    for (off_t bytes = st.st_size - 1; bytes > 0; bytes /= 2) {
        CHECK(truncate(path, bytes) == 0);
        CHECK_ERR(r.ops->load_kernel(r.device, path, "MLIR_AIE", &k, err), -ENOEXEC,
                  bytes >= 8 ? "it was cut off: " : "it does not begin with 'xclbin2'");
    }
    CHECK(!k);
    rig_close(&r);
    return 0;
}

static int kernels(const char *folder)
{
    struct rig r;
    struct xrt_kernel *k = NULL, *second = NULL;
    char path[4096];
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    snprintf(path, sizeof(path), "%.4000s/npu.xclbin", folder);
    CHECK_OK(r.ops->load_kernel(r.device, path, "MLIR_AIE", &k, err));
    r.ops->free_kernel(k);
    CHECK_ERR(r.ops->load_kernel(r.device, path, "DPU", &second, err), -ENOEXEC, "holds MLIR_AIE");
    snprintf(path, sizeof(path), "%.4000s/absent.xclbin", folder);
    CHECK_ERR(r.ops->load_kernel(r.device, path, "MLIR_AIE", &second, err), -ENOEXEC,
              "absent.xclbin': it cannot be read: No such file");
    FILE *f = fopen(path, "w");
    fputs("this is no xclbin, though it is long enough to be read as one", f);
    fclose(f);
    CHECK_ERR(r.ops->load_kernel(r.device, path, "MLIR_AIE", &second, err), -ENOEXEC, "absent.xclbin");
    CHECK_ERR(r.ops->load_kernel(r.device, path, "MLIR_AIE", &second, err), -ENOEXEC, "it does not begin with 'xclbin2'");
    /* Another xclbin: the kernel of the first still runs. */
    snprintf(path, sizeof(path), "%.4000s/second.xclbin", folder);
    CHECK(sim_xclbin_write(path, "MLIR_AIE_2", "another") == 0);
    CHECK_OK(r.ops->load_kernel(r.device, path, "MLIR_AIE", &second, err));
    struct rig_operator o;
    CHECK_OK(rig_operator_open(&r, 0, &o, err));
    fill(rig_map(&r, &o, MANIFEST_ARG_X), ROWS * WIDTH, 1);
    fill(rig_map(&r, &o, MANIFEST_ARG_W), WIDTH, 4);
    CHECK_OK(rig_operator_run(&r, &o, err));
    CHECK(sim_float(((uint16_t *)rig_map(&r, &o, MANIFEST_ARG_Y))[0]) == 4);
    struct xrt_run *by_second = NULL; /* and both kernels take the same buffers */
    fill(rig_map(&r, &o, MANIFEST_ARG_W), WIDTH, 6);
    CHECK_OK(r.ops->make_run(second, o.instructions, o.buffers, 3, &by_second, err));
    CHECK_OK(r.ops->sync(o.buffers[1], XRT_DEVICE_TO, 0, WIDTH * 2, err));
    CHECK_OK(r.ops->start(by_second, err));
    CHECK_OK(r.ops->wait(by_second, WAIT_MS, err));
    CHECK_OK(r.ops->sync(o.buffers[2], XRT_DEVICE_FROM, 0, ROWS * WIDTH * 2, err));
    CHECK(sim_float(((uint16_t *)rig_map(&r, &o, MANIFEST_ARG_Y))[0]) == 6);
    r.ops->free_run(by_second);
    rig_operator_close(&r, &o);
    r.ops->free_kernel(second);
    rig_close(&r);
    CHECK(rig_report(folder, "loads") == 2); /* the same file twice is loaded once */
    return 0;
}

/* libxrt's entry points were used: the simulator lies behind libxrt_coreutil and counts the same. */
static int counters(const char *folder)
{
    struct rig r;
    struct rig_operator o;
    struct xrt_device_stats s, after;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(rig_operator_open(&r, 0, &o, err));
    for (int i = 0; i < 10; i++)
        CHECK_OK(rig_operator_run(&r, &o, err));
    r.ops->stats(r.device, &s);
    rig_operator_close(&r, &o);
    r.ops->free_kernel(r.kernel);
    r.ops->stats(r.device, &after);
    CHECK(s.bytes > 0 && s.peak_bytes == s.bytes && after.bytes == 0 && after.peak_bytes == s.peak_bytes);
    r.ops->close(r.device);
    manifest_close(r.manifest);
    CHECK(s.starts == 10 && s.waits == 10 && s.syncs_to == 31 && s.syncs_from == 30); /* 1: instructions */
    CHECK(s.buffers == 5); /* three arguments, instructions, the dummy of the others */
    const struct {
        const char *name;
        uint64_t value;
    } pairs[] = {{"runs", s.starts},           {"submits", s.starts},        {"syncs_to", s.syncs_to},
                 {"syncs_from", s.syncs_from}, {"bytes_from", s.bytes_from}, {"bytes_to", s.bytes_to},
                 {"buffers", s.buffers},       {"peak_bytes", s.peak_bytes}, {"bytes", 0}};
    for (size_t i = 0; i < ARRAY_LEN(pairs); i++) {
        if (rig_report(folder, pairs[i].name) != (int64_t)pairs[i].value)
            fprintf(stderr, "%s: the device counted %lld, the module %llu\n", pairs[i].name,
                    (long long)rig_report(folder, pairs[i].name), (unsigned long long)pairs[i].value);
        CHECK(rig_report(folder, pairs[i].name) == (int64_t)pairs[i].value);
    }
    return 0;
}

/* Peak and count stay where they are over many runs. */
static int flat(const char *folder)
{
    struct rig r;
    struct rig_operator o;
    struct xrt_device_stats first, last;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(rig_operator_open(&r, 0, &o, err));
    for (int i = 0; i < 2000; i++) {
        CHECK_OK(rig_operator_run(&r, &o, err));
        if (i == 0)
            r.ops->stats(r.device, &first);
    }
    r.ops->stats(r.device, &last);
    CHECK(last.starts == 2000 && last.buffers == first.buffers && last.peak_bytes == first.peak_bytes);
    rig_operator_close(&r, &o);
    rig_close(&r);
    CHECK(rig_report(folder, "peak_bytes") == (int64_t)last.peak_bytes);
    return 0;
}

#define CASE(name)                        \
    static void test_##name(void **state) \
    {                                     \
        (void)state;                      \
        rig_case(name, "");               \
    }
CASE(table)
static void test_whole_xrt(void **state)
{
    (void)state;
    rig_case(whole_xrt, "");
    rig_case(damaged_xrt, "");
}
CASE(buffers)
CASE(forgotten_sync)
CASE(double_buffer)
CASE(runs)
CASE(kernels)
CASE(damaged_xclbin)
CASE(counters)
CASE(flat)

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(test_table),         UNIT_TEST(test_whole_xrt), UNIT_TEST(test_buffers), UNIT_TEST(test_forgotten_sync),
        UNIT_TEST(test_double_buffer), UNIT_TEST(test_runs),      UNIT_TEST(test_kernels), UNIT_TEST(test_damaged_xclbin),
        UNIT_TEST(test_counters),      UNIT_TEST(test_flat)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
