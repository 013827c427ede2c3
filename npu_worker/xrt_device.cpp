// SPDX-License-Identifier: MIT
// The one C++ file of npu_worker: XRT's C++ interface behind the table of xrt_device.h. A module by itself, loaded by xrt_load.c.
// Every function is noexcept: call() turns what XRT throws into a negative errno and a sentence. It counts calls and bytes, keeps
// the ranges of slices, and remembers when a device is lost; it decides nothing, logs nothing and starts no thread (XRT does).
//
// Two flavours by the headers that are found. hw_context: current XRT, which Ryzen AI NPUs need (register_xclbin, then a
// context for each xclbin). load_xclbin: Debian 12's 2.13, where a device holds one xclbin at a time. The hw_context branch has
// been compiled, against a stand-in and XRT 2.25, but has not met hardware (docs/NPU.md).
extern "C" {
#include "npu_worker/xclbin.h"
#include "npu_worker/xrt_device.h"
#include "proto/err.h"
#include "proto/memlock.h"
}

#if __has_include(<xrt/xrt_hw_context.h>)
#include <xrt/xrt_hw_context.h>
#define HW_CONTEXT 1
#elif __has_include(<xrt/experimental/xrt_hw_context.h>)
#include <xrt/experimental/xrt_hw_context.h>
#define HW_CONTEXT 1
#else
#define HW_CONTEXT 0
#endif
#include <xrt/xrt_bo.h>
#include <xrt/xrt_device.h>
#include <xrt/xrt_kernel.h>
#if __has_include(<xrt/experimental/xrt_xclbin.h>)
#include <xrt/experimental/xrt_xclbin.h>
#else
#include <experimental/xrt_xclbin.h>
#endif
#if __has_include(<xrt/detail/abi.h>)
#include <xrt/detail/abi.h>
#endif

#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace
{
constexpr std::uint64_t run_transaction = 3; // opcode
constexpr int first_data = 3;                // argument number of bo0

struct loaded {
    std::string file, prefix;
#if HW_CONTEXT
    xrt::hw_context context;
#endif
    xrt::kernel kernel;
};
} // namespace

struct xrt_device {
    xrt::device device;
    std::string name;
    std::vector<std::weak_ptr<loaded>> kernels;
    xrt_device_stats stats{};
    bool lost = false;
};
struct xrt_kernel {
    xrt_device *device;
    std::shared_ptr<loaded> held;
    xrt::bo dummy; // for arguments that an operator does not use
};
// A slice has the parent's xrt::bo as well: XRT 2.13 does not check the range of a slice's sync, so all syncs go by the parent.
struct xrt_buffer {
    xrt_device *device;
    xrt::bo bo, root;
    std::size_t bytes, offset, words;
    char *host;
    bool slice;
};
struct xrt_run {
    xrt_device *device;
    std::shared_ptr<loaded> held;
    xrt::run run;
    bool started;
};

namespace
{
// What a call was about, for its message and for the errno that an exception without one means.
struct about {
    const char *what;
    int otherwise;
    struct err *err;
    bool maps = false; // the driver maps memory of its own in it
};

bool mentions(const char *text, const char *part)
{
    return std::strstr(text, part) != nullptr;
}

int out_of_memory(xrt_device *d, std::size_t wanted, const char *text, const about &a)
{
    std::uint64_t held = d ? d->stats.bytes : 0;
    return err_set(
        a.err, -ENOMEM,
        "%s: out of NPU memory: %zu KiB more were asked for, %llu KiB are held (%s); lower npu.memory or end other programs "
        "that use the NPU",
        a.what, (wanted + 1023) >> 10, static_cast<unsigned long long>(held >> 10), text);
}

// amdxdna maps its heap and buffers locked; the kernel says EAGAIN where RLIMIT_MEMLOCK is below their sum, EPERM where it is 0.
bool is_locked_memory(int code, const char *text, std::size_t wanted, const about &a)
{
    if (!wanted && !a.maps)
        return false;
    return code == EAGAIN || mentions(text, "Resource temporarily unavailable") ||
           (code == EPERM && (wanted || memlock_limit() == 0)); // at open it also means that the device may not be used
}

int locked_memory(xrt_device *d, std::size_t wanted, const char *text, const about &a)
{
    std::uint64_t limit = memlock_limit(), held = MEMLOCK_NPU_HEAP + (d ? d->stats.bytes : 0);
    if (memlock_check(limit, held + wanted, a.what, a.err) < 0)
        return -EAGAIN;
    return err_set(
        a.err, -EAGAIN,
        "%s: the driver could not lock %llu KiB in memory (%s), though the limit (ulimit -l) allows it; end programs that "
        "hold locked memory, or raise the limit with 'ulimit -l unlimited', in /etc/security/limits.d or by LimitMEMLOCK=",
        a.what, static_cast<unsigned long long>(((wanted ? wanted : held) + 1023) >> 10), text);
}

int classify(xrt_device *d, int code, const char *text, std::size_t wanted, const about &a)
{
    code = code < 0 ? -code : code;
    if (is_locked_memory(code, text, wanted, a))
        return locked_memory(d, wanted, text, a);
    if (wanted && (code == ENOMEM || mentions(text, "bad_alloc")))
        return out_of_memory(d, wanted, text, a);
    return err_set(a.err, a.otherwise, "%s: %s", a.what, text);
}

// wanted: bytes that the call allocates on the device, 0 for none.
template <typename F> int call(xrt_device *d, std::size_t wanted, const about &a, F &&f) noexcept
{
    errno = 0; // some shims leave no more than this behind a bad_alloc
    try {
        f();
        return 0;
    } catch (const std::bad_alloc &e) {
        int left = errno;
        return wanted ? classify(d, left ? left : ENOMEM, e.what(), wanted, a)
                      : err_set(a.err, -ENOMEM, "%s: out of memory", a.what);
    } catch (const std::system_error &e) {
        return classify(d, e.code().value(), e.what(), wanted, a);
    } catch (const std::exception &e) {
        return classify(d, errno, e.what(), wanted, a);
    } catch (...) {
        return err_set(a.err, a.otherwise, "%s: XRT threw something unknown", a.what);
    }
}

int refuse_lost(const xrt_device *, const char *what, struct err *err)
{
    return err_set(err, -ENODEV, "%s: the NPU was lost when a run hung or failed; this process has to end and be started again",
                   what);
}

int device_open(unsigned index, xrt_device **ret, struct err *err) noexcept
{
    char what[48];
    std::snprintf(what, sizeof(what), "NPU %u cannot be opened", index);
    std::unique_ptr<xrt_device> d;
    struct err said = {0, ""};
    int r = call(nullptr, 0, {what, -ENODEV, &said, true}, [&] {
        d = std::make_unique<xrt_device>();
        d->name = "without a name";
        d->device = xrt::device{index};
    });
    if (r == -EAGAIN)
        return err_set(err, r, "%s; the NPU's buffers come on top of that ('coordinator plan' says how many bytes)", said.text);
    if (r < 0)
        return err_set(err, r,
                       "%s; needed are an NPU, its driver (amdxdna) and XRT's plug-in for it (AMD's, or Debian's libxrt-npu2), and "
                       "XILINX_XRT=FOLDER where XRT is neither the system's nor in /opt/xilinx/xrt",
                       said.text);
    call(nullptr, 0, {what, -ENODEV, nullptr}, [&] { d->name = d->device.get_info<xrt::info::device::name>(); });
    *ret = d.release();
    return 0;
}

const char *device_name(const xrt_device *d) noexcept
{
    return d->name.c_str();
}

void device_stats(const xrt_device *d, xrt_device_stats *ret) noexcept
{
    *ret = d->stats;
}

bool device_lost(const xrt_device *d) noexcept
{
    return d->lost;
}

// Frees, but never what a lost device may still write to, and never with an exception from a destructor of XRT.
template <typename T> void release(xrt_device *d, T *object) noexcept
{
    if (object && !d->lost)
        call(nullptr, 0, {"free", -EIO, nullptr}, [&] { delete object; });
}

void device_close(xrt_device *d) noexcept
{
    if (d)
        release(d, d);
}

// What needs no word more, as XRT's own sentences about a file that it does not understand do.
struct told : std::runtime_error {
    using std::runtime_error::runtime_error;
};

std::string kernel_name(const xrt::xclbin &x, const char *file, const char *prefix)
{
    std::string known;
    for (const auto &k : x.get_kernels()) {
        const std::string name = k.get_name();
        if (name.rfind(prefix, 0) == 0)
            return name;
        known += (known.empty() ? "" : ", ") + name;
    }
    if (known.empty())
        throw std::runtime_error("it holds no kernel");
    throw told(std::string("no kernel whose name begins with '") + prefix + "'; '" + file + "' holds " + known);
}

std::shared_ptr<loaded> find_loaded(xrt_device *d, const char *file, const char *prefix)
{
    for (const auto &weak : d->kernels) {
        auto held = weak.lock();
        if (held && held->file == file && held->prefix == prefix)
            return held;
    }
    return nullptr;
}

std::shared_ptr<loaded> load(xrt_device *d, const char *file, const char *prefix)
{
    auto l = std::make_shared<loaded>();
    l->file = file;
    l->prefix = prefix;
    xrt::xclbin x{l->file};
    const std::string name = kernel_name(x, file, prefix);
#if HW_CONTEXT
    d->device.register_xclbin(x);
    l->context = xrt::hw_context{d->device, x.get_uuid()};
    l->kernel = xrt::kernel{l->context, name};
#else
    const xrt::uuid uuid = d->device.load_xclbin(x);
    l->kernel = xrt::kernel{d->device, uuid, name};
#endif
    d->kernels.push_back(l);
    return l;
}

int load_kernel(xrt_device *d, const char *xclbin, const char *prefix, xrt_kernel **ret, struct err *err) noexcept
{
    char what[160];
    std::snprintf(what, sizeof(what), "xclbin '%.140s'", xclbin);
    if (d->lost)
        return refuse_lost(d, what, err);
    auto held = find_loaded(d, xclbin, prefix);
    int r = held ? 0 : xclbin_check(xclbin, err);
    if (r < 0)
        return r;
    bool whole = false; // the sentence is
    struct err said = {0, ""};
    r = call(d, 0, {what, -ENOEXEC, &said, true}, [&] {
        auto k = std::make_unique<xrt_kernel>();
        k->device = d;
        try {
            k->held = held ? held : load(d, xclbin, prefix);
        } catch (const told &) {
            whole = true;
            throw;
        }
        *ret = k.release();
    });
    if (r == -ENOEXEC && !whole)
        return err_set(err, r,
                       "%s; it is damaged, or of another device, or the device has no room for one more: expected a whole xclbin "
                       "that was built for '%s'; build it again, or fewer",
                       said.text, d->name.c_str());
    return r < 0 ? err_set(err, r, "%s", said.text) : 0;
}

void free_kernel(xrt_kernel *k) noexcept
{
    if (!k || k->device->lost)
        return;
    if (k->dummy)
        k->device->stats.bytes -= XRT_DEVICE_ALIGN;
    release(k->device, k);
}

xrt::bo allocate(xrt_kernel *k, int argument, std::size_t bytes, xrt::bo::flags flags)
{
    return xrt::bo{k->device->device, bytes, flags, static_cast<xrt::memory_group>(k->held->kernel.group_id(argument))};
}

void count(xrt_device *d, std::size_t bytes)
{
    d->stats.buffers++;
    d->stats.bytes += bytes;
    if (d->stats.bytes > d->stats.peak_bytes)
        d->stats.peak_bytes = d->stats.bytes;
}

int make(xrt_kernel *k, int argument, std::size_t bytes, xrt::bo::flags flags, const about &a, xrt_buffer **ret) noexcept
{
    if (k->device->lost)
        return refuse_lost(k->device, a.what, a.err);
#if HW_CONTEXT
    if (memlock_check(memlock_limit(), MEMLOCK_NPU_HEAP + k->device->stats.bytes + bytes, a.what, a.err) < 0)
        return -EAGAIN;
#endif
    return call(k->device, bytes, a, [&] {
        auto b = std::make_unique<xrt_buffer>();
        b->device = k->device;
        b->bo = allocate(k, argument, bytes, flags);
        b->root = b->bo;
        b->bytes = bytes;
        b->host = b->bo.map<char *>();
        count(k->device, bytes);
        *ret = b.release();
    });
}

int make_buffer(xrt_kernel *k, unsigned argument, std::size_t bytes, xrt_buffer **ret, struct err *err) noexcept
{
    if (argument >= XRT_DEVICE_ARGUMENTS || bytes == 0)
        return err_set(err, -EINVAL,
                       "NPU buffer of %zu bytes for argument %u: expected at least 1 byte and an argument from 0 to %u", bytes,
                       argument, XRT_DEVICE_ARGUMENTS - 1);
    return make(k, first_data + static_cast<int>(argument), bytes, xrt::bo::flags::host_only, {"NPU buffer", -EIO, err}, ret);
}

int sync(xrt_buffer *b, xrt_device_direction direction, std::size_t offset, std::size_t bytes, struct err *err) noexcept
{
    xrt_device *d = b->device;
    const bool to = direction == XRT_DEVICE_TO;
    if (d->lost)
        return refuse_lost(d, "sync of an NPU buffer", err);
    if (offset > b->bytes || bytes > b->bytes - offset)
        return err_set(err, -EINVAL, "sync of %zu bytes at %zu of an NPU buffer of %zu bytes", bytes, offset, b->bytes);
    if (bytes == 0)
        return 0;
    int r = call(nullptr, 0, {to ? "sync of an NPU buffer to the device" : "sync of an NPU buffer from the device", -EIO, err},
                 [&] { b->root.sync(to ? XCL_BO_SYNC_BO_TO_DEVICE : XCL_BO_SYNC_BO_FROM_DEVICE, bytes, b->offset + offset); });
    if (r == 0) {
        (to ? d->stats.syncs_to : d->stats.syncs_from)++;
        (to ? d->stats.bytes_to : d->stats.bytes_from) += bytes;
    }
    return r;
}

void free_buffer(xrt_buffer *b) noexcept
{
    if (!b || b->device->lost)
        return;
    if (!b->slice)
        b->device->stats.bytes -= b->bytes;
    release(b->device, b);
}

int make_instructions(xrt_kernel *k, const std::uint32_t *words, std::size_t n_words, xrt_buffer **ret, struct err *err) noexcept
{
    xrt_buffer *b = nullptr;
    if (n_words == 0 || n_words > UINT32_MAX / 4)
        return err_set(err, -EINVAL, "NPU instructions: %zu words; expected 1 to %u", n_words, UINT32_MAX / 4);
    int r = make(k, 1, n_words * 4, xrt::bo::flags::cacheable, {"NPU instructions", -EIO, err}, &b);
    if (r < 0)
        return r;
    b->words = n_words;
    std::memcpy(b->host, words, n_words * 4);
    r = sync(b, XRT_DEVICE_TO, 0, n_words * 4, err);
    if (r < 0)
        free_buffer(b);
    else
        *ret = b;
    return r;
}

int make_slice(xrt_buffer *parent, std::size_t offset, std::size_t bytes, xrt_buffer **ret, struct err *err) noexcept
{
    if (parent->device->lost)
        return refuse_lost(parent->device, "slice of an NPU buffer", err);
    if (parent->slice || parent->words || bytes == 0 || offset % XRT_DEVICE_ALIGN || offset > parent->bytes ||
        bytes > parent->bytes - offset)
        return err_set(
            err, -EINVAL,
            "slice of %zu bytes at %zu of an NPU buffer of %zu bytes: expected a part of a data buffer, from a multiple of %u",
            bytes, offset, parent->bytes, XRT_DEVICE_ALIGN);
    return call(parent->device, 0, {"slice of an NPU buffer", -EIO, err}, [&] {
        auto b = std::make_unique<xrt_buffer>();
        b->device = parent->device;
        b->bo = xrt::bo{parent->bo, bytes, offset};
        b->root = parent->bo;
        b->bytes = bytes;
        b->offset = offset;
        b->host = parent->host + offset;
        b->slice = true;
        parent->device->stats.slices++;
        *ret = b.release();
    });
}

void *map(xrt_buffer *b) noexcept
{
    return b->host;
}

std::size_t size(const xrt_buffer *b) noexcept
{
    return b->bytes;
}

void make_dummy(xrt_kernel *k)
{
    if (k->dummy)
        return;
    k->dummy = allocate(k, first_data, XRT_DEVICE_ALIGN, xrt::bo::flags::host_only);
    count(k->device, XRT_DEVICE_ALIGN);
}

int make_run(xrt_kernel *k, xrt_buffer *instructions, xrt_buffer *const *arguments, unsigned n_arguments, xrt_run **ret,
             struct err *err) noexcept
{
    if (k->device->lost)
        return refuse_lost(k->device, "NPU run", err);
    if (instructions->words == 0 || n_arguments > XRT_DEVICE_ARGUMENTS)
        return err_set(err, -EINVAL, "NPU run with %u buffers and %zu instructions: expected at most %u, and instructions",
                       n_arguments, instructions->words, XRT_DEVICE_ARGUMENTS);
    return call(k->device, n_arguments < XRT_DEVICE_ARGUMENTS ? XRT_DEVICE_ALIGN : 0, {"NPU run", -EIO, err}, [&] {
        auto r = std::make_unique<xrt_run>();
        if (n_arguments < XRT_DEVICE_ARGUMENTS)
            make_dummy(k);
        r->device = k->device;
        r->held = k->held;
        r->run = xrt::run{k->held->kernel};
        r->run.set_arg(0, run_transaction);
        r->run.set_arg(1, instructions->bo);
        r->run.set_arg(2, static_cast<std::uint32_t>(instructions->words));
        for (unsigned i = 0; i < XRT_DEVICE_ARGUMENTS; i++)
            r->run.set_arg(first_data + static_cast<int>(i), i < n_arguments ? arguments[i]->bo : k->dummy);
        *ret = r.release();
    });
}

int set_argument(xrt_run *r, unsigned argument, xrt_buffer *b, struct err *err) noexcept
{
    if (r->device->lost)
        return refuse_lost(r->device, "argument of an NPU run", err);
    if (argument >= XRT_DEVICE_ARGUMENTS || r->started)
        return err_set(err, -EINVAL, "argument %u of an NPU run: expected 0 to %u, and a run that was waited for", argument,
                       XRT_DEVICE_ARGUMENTS - 1);
    return call(r->device, 0, {"argument of an NPU run", -EIO, err},
                [&] { r->run.set_arg(first_data + static_cast<int>(argument), b->bo); });
}

int start(xrt_run *r, struct err *err) noexcept
{
    if (r->device->lost)
        return refuse_lost(r->device, "start of an NPU run", err);
    if (r->started)
        return err_set(err, -EINVAL, "start of an NPU run that was not waited for");
    int e = call(nullptr, 0, {"start of an NPU run: it could not be submitted", -EIO, err}, [&] { r->run.start(); });
    if (e < 0) {
        r->device->lost = true;
        return e;
    }
    r->started = true;
    r->device->stats.starts++;
    return 0;
}

int ended_badly(xrt_device *d, ert_cmd_state state, unsigned timeout_ms, bool own, struct err *err)
{
    d->lost = true;
    if (state == ERT_CMD_STATE_ERROR)
        return err_set(err, -EIO, "NPU run: the device ended it with an error (ERT_CMD_STATE_ERROR)");
    if (state == ERT_CMD_STATE_ABORT)
        return err_set(err, -EIO, "NPU run: it was aborted (ERT_CMD_STATE_ABORT)");
    if (own)
        return err_set(err, -ETIMEDOUT, "NPU run: the device gave it up after a time-out of its own (ERT_CMD_STATE_TIMEOUT)");
    if (state == ERT_CMD_STATE_TIMEOUT || state == ERT_CMD_STATE_NEW || state == ERT_CMD_STATE_QUEUED ||
        state == ERT_CMD_STATE_SUBMITTED || state == ERT_CMD_STATE_RUNNING)
        return err_set(err, -ETIMEDOUT, "NPU run: not done within %u ms; the device hangs", timeout_ms);
    return err_set(err, -EIO, "NPU run: it ended in state %d; expected %d (ERT_CMD_STATE_COMPLETED)", static_cast<int>(state),
                   static_cast<int>(ERT_CMD_STATE_COMPLETED));
}

int wait(xrt_run *r, unsigned timeout_ms, struct err *err) noexcept
{
    ert_cmd_state state = ERT_CMD_STATE_NEW, after = ERT_CMD_STATE_NEW;
    if (r->device->lost)
        return refuse_lost(r->device, "wait for an NPU run", err);
    if (!r->started || timeout_ms == 0) // XRT takes 0 for "for ever"
        return err_set(err, -EINVAL, "wait of %u ms for an NPU run: expected more than 0, and a run that was started", timeout_ms);
    int e = call(nullptr, 0, {"wait for an NPU run", -EIO, err}, [&] {
        state = r->run.wait(std::chrono::milliseconds(timeout_ms));
        after = state == ERT_CMD_STATE_COMPLETED ? state : r->run.state();
    });
    r->device->stats.waits++;
    if (e < 0) {
        r->device->lost = true;
        return e;
    }
    if (state != ERT_CMD_STATE_COMPLETED)
        return ended_badly(r->device, state, timeout_ms, after == ERT_CMD_STATE_TIMEOUT, err);
    r->started = false;
    return 0;
}

void free_run(xrt_run *r) noexcept
{
    if (r && !r->started)
        release(r->device, r);
}
} // namespace

extern "C" __attribute__((visibility("default"))) const xrt_device_ops xrt_device_table = {
    XRT_DEVICE_ABI,
    sizeof(xrt_device_ops),
    HW_CONTEXT ? "hw_context" : "load_xclbin",
    xrt::detail::abi{}.major,
    xrt::detail::abi{}.minor,
    HW_CONTEXT != 0,
    device_open,
    device_name,
    device_stats,
    device_lost,
    device_close,
    load_kernel,
    free_kernel,
    make_buffer,
    make_instructions,
    make_slice,
    map,
    size,
    sync,
    free_buffer,
    make_run,
    set_argument,
    start,
    wait,
    free_run,
};
