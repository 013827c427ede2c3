/* SPDX-License-Identifier: MIT
 * Every fault of the simulated NPU ends in its own error with a sentence that helps, and a lost device is left alone. */
#include <errno.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "proto/memlock.h"
#include "proto/util.h"
#include "tests/npu_sim/rig.h"
#include "tests/npu_sim/sim.h"
#include "tests/unit/unit_test.h"

static const char *const norm[] = {"rms_norm:4x64:1e-6"};

static int no_device(const char *folder)
{
    struct rig r;
    CHECK_ERR(rig_open(&r, folder, norm, 1, err), -ENODEV, "NPU 0 cannot be opened");
    CHECK_ERR(r.ops->open(0, &r.device, err), -ENODEV, "amdxdna");
    return 0;
}

static int no_driver(const char *folder)
{
    struct rig r;
    setenv("XILINX_XRT", folder, 1); /* no libxrt_core in it */
    CHECK_ERR(rig_open(&r, folder, norm, 1, err), -ENODEV, "XILINX_XRT");
    return 0;
}

static int second_device(const char *folder)
{
    struct rig r;
    struct xrt_device *d = NULL;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_ERR(r.ops->open(1, &d, err), -ENODEV, "NPU 1");
    CHECK_ERR(r.ops->open(UINT32_MAX, &d, err), -ENODEV, "NPU 4294967295");
    rig_close(&r);
    return 0;
}

static int load_fails(const char *folder)
{
    struct rig r;
    CHECK_ERR(
        rig_open(&r, folder, norm, 1, err), -ENOEXEC,
        "; it is damaged, or of another device, or the device has no room for one more: expected a whole xclbin that was built "
        "for 'npu_sim'");
    r.ops->close(r.device);
    return 0;
}

static int memory(const char *folder) /* of 64 KiB */
{
    struct rig r;
    struct xrt_buffer *a = NULL, *b = NULL, *c = NULL;
    struct xrt_device_stats s;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(r.ops->make_buffer(r.kernel, 0, 60 << 10, &a, err));
    CHECK_ERR(r.ops->make_buffer(r.kernel, 0, 8 << 10, &b, err), -ENOMEM, "8 KiB more were asked for, 60 KiB are held");
    CHECK_ERR(r.ops->make_buffer(r.kernel, 0, 8 << 10, &b, err), -ENOMEM, "npu.memory");
    CHECK(!r.ops->lost(r.device));
    CHECK_OK(r.ops->make_buffer(r.kernel, 0, 4 << 10, &c, err)); /* a refusal changes nothing */
    r.ops->free_buffer(a);
    CHECK_OK(r.ops->make_buffer(r.kernel, 0, 32 << 10, &b, err));
    r.ops->stats(r.device, &s);
    CHECK(s.bytes == 36 << 10 && s.peak_bytes == 64 << 10 && s.buffers == 3);
    r.ops->free_buffer(b);
    r.ops->free_buffer(c);
    rig_close(&r);
    CHECK(rig_report(folder, "peak_bytes") == 64 << 10);
    return 0;
}

static int locked_memory(const char *folder) /* of 64 KiB */
{
    struct rig r;
    struct xrt_buffer *a = NULL;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_ERR(r.ops->make_buffer(r.kernel, 0, 1 << 20, &a, err), -EAGAIN, "ulimit -l");
    CHECK_ERR(r.ops->make_buffer(r.kernel, 0, 1 << 20, &a, err), -EAGAIN, "/etc/security/limits.d");
    CHECK_ERR(r.ops->make_buffer(r.kernel, 0, 1 << 20, &a, err), -EAGAIN, "LimitMEMLOCK");
    CHECK(!a && !r.ops->lost(r.device));
    rig_close(&r);
    return 0;
}

/* The limit of this process, for which it gives up the capability that lifts it. */
static int limit_locked(rlim_t bytes)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};
    const struct rlimit l = {.rlim_cur = bytes, .rlim_max = bytes};
    CHECK(syscall(SYS_capget, &header, data) == 0);
    data[0].effective &= ~(1u << CAP_IPC_LOCK);
    CHECK(syscall(SYS_capset, &header, data) == 0 && setrlimit(RLIMIT_MEMLOCK, &l) == 0);
    return 0;
}

/* AMD's driver locks a heap when a device is opened: under a common limit not even that succeeds. */
static int locked_memory_at_open(const char *folder)
{
    struct rig r;
    CHECK(limit_locked(4 << 20) == 0);
    CHECK_ERR(rig_open(&r, folder, norm, 1, err), -EAGAIN,
              "NPU 0 cannot be opened: 65536 KiB have to be locked in memory, but the limit (ulimit -l) is 4096 KiB");
    CHECK_ERR(r.ops->open(0, &r.device, err), -EAGAIN, "LimitMEMLOCK=67108864");
    CHECK_ERR(r.ops->open(0, &r.device, err), -EAGAIN, "the NPU's buffers come on top of that");
    return 0;
}

/* What has to be locked for one buffer more: the heap, what is held and the buffer. */
static int locked_memory_with_heap(const char *folder)
{
    struct rig r;
    struct xrt_buffer *a = NULL, *b = NULL;
    CHECK(limit_locked(4 << 20) == 0);
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(r.ops->make_buffer(r.kernel, 0, 60 << 10, &a, err));
    CHECK_ERR(r.ops->make_buffer(r.kernel, 0, 1 << 20, &b, err), -EAGAIN,
              "NPU buffer: 66620 KiB have to be locked in memory, but the limit (ulimit -l) is 4096 KiB");
    r.ops->free_buffer(a);
    rig_close(&r);
    return 0;
}

/* The same answer where the limit is not what is in the way. */
static int locked_memory_at_open_in_spite(const char *folder)
{
    struct rig r;
    bool allowed = memlock_limit() >= MEMLOCK_NPU_HEAP;
    CHECK_ERR(rig_open(&r, folder, norm, 1, err), -EAGAIN,
              allowed ? "could not lock 65536 KiB in memory (mmap(addr=" : "65536 KiB have to be locked");
    return 0;
}

static int sync_fails(const char *folder) /* the third: 1 is the instructions, 2 the first argument */
{
    struct rig r;
    struct rig_operator o;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(rig_operator_open(&r, 0, &o, err));
    CHECK_ERR(rig_operator_run(&r, &o, err), -EIO, "sync of an NPU buffer to the device");
    return 0;
}

/* The second run fails with `code` and `part`; then nothing reaches the device, and freeing does no harm. */
static int second_run(const char *folder, int code, const char *part, unsigned wait_ms)
{
    struct rig r;
    struct rig_operator o;
    struct xrt_buffer *b = NULL;
    struct xrt_run *run = NULL;
    struct xrt_kernel *k = NULL;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(rig_operator_open(&r, 0, &o, err));
    CHECK_OK(rig_operator_run(&r, &o, err));
    struct err said = {0};
    int e = r.ops->start(o.run, &said);
    if (e == 0)
        e = r.ops->wait(o.run, wait_ms, &said);
    if (e != code || !strstr(said.text, part))
        fprintf(stderr, "%d '%s'; expected %d '%s'\n", e, said.text, code, part);
    CHECK(e == code && said.code == code && strstr(said.text, part));
    CHECK(r.ops->lost(r.device));
    CHECK_ERR(r.ops->start(o.run, err), -ENODEV, "was lost");
    CHECK_ERR(r.ops->wait(o.run, 1, err), -ENODEV, "was lost");
    CHECK_ERR(r.ops->sync(o.buffers[0], XRT_DEVICE_TO, 0, 2, err), -ENODEV, "was lost");
    CHECK_ERR(r.ops->set_argument(o.run, 0, o.buffers[0], err), -ENODEV, "was lost");
    CHECK_ERR(r.ops->make_buffer(r.kernel, 0, 4096, &b, err), -ENODEV, "was lost");
    CHECK_ERR(r.ops->make_slice(o.buffers[0], 0, 2, &b, err), -ENODEV, "was lost");
    CHECK_ERR(r.ops->make_run(r.kernel, o.instructions, o.buffers, 3, &run, err), -ENODEV, "was lost");
    CHECK_ERR(r.ops->load_kernel(r.device, "any", "MLIR_AIE", &k, err), -ENODEV, "was lost");
    CHECK(!b && !run && !k);
    rig_operator_close(&r, &o);
    rig_close(&r);
    return 0;
}

static int hang(const char *folder)
{
    return second_run(folder, -ETIMEDOUT, "not done within 100 ms", 100);
}
static int device_timeout(const char *folder)
{
    return second_run(folder, -ETIMEDOUT, "time-out of its own", 60000);
}
static int run_error(const char *folder)
{
    return second_run(folder, -EIO, "ERT_CMD_STATE_ERROR", 60000);
}
static int run_abort(const char *folder)
{
    return second_run(folder, -EIO, "ERT_CMD_STATE_ABORT", 60000);
}
static int submit(const char *folder)
{
    return second_run(folder, -EIO, "could not be submitted", 60000);
}

/* 30 ms each; only that they take as long as they say is checked. */
static int slow(const char *folder)
{
    struct rig r;
    struct rig_operator o;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(rig_operator_open(&r, 0, &o, err));
    uint64_t before = util_now_ns();
    for (int i = 0; i < 3; i++)
        CHECK_OK(rig_operator_run(&r, &o, err));
    CHECK(util_now_ns() - before >= 90000000u);
    rig_operator_close(&r, &o);
    rig_close(&r);
    return 0;
}

/* The whole default budget in one buffer, beside the operator's: nothing but address space until it is used. */
static int arena(const char *folder)
{
    const size_t bytes = (size_t)2 << 30;
    struct rig r;
    struct xrt_buffer *all = NULL, *last = NULL;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(r.ops->make_buffer(r.kernel, 0, bytes, &all, err));
    CHECK_OK(r.ops->make_slice(all, bytes - 4096, 4096, &last, err));
    memset(r.ops->map(last), 1, 4096);
    CHECK_OK(r.ops->sync(last, XRT_DEVICE_TO, 0, 4096, err));
    memset(r.ops->map(last), 2, 4096);
    CHECK_OK(r.ops->sync(last, XRT_DEVICE_FROM, 0, 4096, err));
    CHECK(((unsigned char *)r.ops->map(all))[bytes - 1] == 1);
    r.ops->free_buffer(last);
    r.ops->free_buffer(all);
    rig_close(&r);
    CHECK(rig_report(folder, "peak_bytes") == (int64_t)bytes && rig_report(folder, "bytes") == 0);
    return 0;
}

static int crash(const char *folder)
{
    struct rig r;
    struct rig_operator o;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(rig_operator_open(&r, 0, &o, err));
    CHECK_OK(rig_operator_run(&r, &o, err));
    CHECK_OK(rig_operator_run(&r, &o, err)); /* does not return */
    return 0;
}

/* A buffer that is too small for what the stream says, and a stream that says nothing: errors of the run, not of the process. */
static int wrong_stream(const char *folder)
{
    static const uint32_t nonsense[] = {1, 2, 3, 4, 5, 6, 7};
    struct rig r;
    struct rig_operator o;
    struct xrt_buffer *instructions = NULL;
    struct xrt_run *run = NULL;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(rig_operator_open(&r, 0, &o, err));
    CHECK_OK(r.ops->make_instructions(r.kernel, nonsense, 7, &instructions, err));
    CHECK_OK(r.ops->make_run(r.kernel, instructions, o.buffers, 3, &run, err));
    CHECK_OK(r.ops->start(run, err));
    CHECK_ERR(r.ops->wait(run, 60000, err), -EIO, "ERT_CMD_STATE_ERROR");
    return 0;
}

static int small_buffer(const char *folder)
{
    struct rig r;
    struct rig_operator o;
    struct xrt_buffer *small = NULL;
    CHECK_OK(rig_open(&r, folder, norm, 1, err));
    CHECK_OK(rig_operator_open(&r, 0, &o, err));
    CHECK_OK(r.ops->make_buffer(r.kernel, 0, 510, &small, err)); /* 4 x 64 x 2 are 512 */
    CHECK_OK(r.ops->set_argument(o.run, 2, small, err));
    CHECK_OK(r.ops->start(o.run, err));
    CHECK_ERR(r.ops->wait(o.run, 60000, err), -EIO, "ERT_CMD_STATE_ERROR");
    return 0;
}

static void test_opening(void **state)
{
    (void)state;
    rig_case(no_device, "no_device=1");
    rig_case(no_driver, "");
    rig_case(second_device, "");
    rig_case(load_fails, "load_fail=1");
}

static void test_memory(void **state)
{
    (void)state;
    rig_case(memory, "memory=65536");
    rig_case(locked_memory, "memlock=65536");
    rig_case(locked_memory_with_heap, "memlock=65536");
    rig_case(locked_memory_at_open, "memlock_open=1");
    rig_case(locked_memory_at_open_in_spite, "memlock_open=1");
    rig_case(arena, "memory=2147483648");
}

static void test_runs(void **state)
{
    (void)state;
    rig_case(sync_fails, "sync_fail=3");
    rig_case(hang, "hang_at=2");
    rig_case(device_timeout, "timeout_at=2");
    rig_case(run_error, "error_at=2");
    rig_case(run_abort, "abort_at=2");
    rig_case(submit, "submit_fail=2");
    rig_case(wrong_stream, "");
    rig_case(small_buffer, "");
    rig_case(slow, "delay_us=30000");
    rig_dies(crash, "crash_at=2", SIGABRT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(test_opening), UNIT_TEST(test_memory), UNIT_TEST(test_runs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
