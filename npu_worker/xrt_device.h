/* SPDX-License-Identifier: MIT
 * The C face of XRT's C++ interface, as far as a Ryzen AI NPU needs it: open a device, load a kernel, buffers, runs. It lives in a
 * module of its own (xrt_device.cpp) that is loaded when it is wanted (xrt_load.h), so that npu_worker starts where there is no
 * XRT; all that the module exports is one table.
 *
 * Kernels are called as the public flows of mlir-aie do: kernel(3, instructions, words, bo0 .. bo4), where 3 is "run a transaction
 * binary". Memory: the host's and the device's view of a buffer are apart until sync is called, in both directions. A device holds
 * one arena with make_buffer, cut into slices for weights, inputs and outputs; runs are prepared once and started many times, and
 * several may have been started when the first is waited for: a tile is uploaded while the other computes.
 *
 * Errors, all with a sentence that names the call, what was found and the remedy. No exception leaves the module.
 *   -ENOSYS     XRT is not installed, or the module was not built (xrt_load alone)
 *   -ENODEV     no device with this number, or its driver cannot be reached; any call after a run has hung or failed
 *   -ENOMEM     out of NPU memory
 *   -EAGAIN     the limit of locked memory is too low (ulimit -l)
 *   -ENOEXEC    the xclbin is damaged, made for another device, has no such kernel, or the device has no room for it
 *   -ENOTSUP    an operator is missing (manifest.h alone)
 *   -ETIMEDOUT  a run has not ended in time, or the device says so itself
 *   -EIO        a run ended in an error, was aborted or could not be submitted; a sync failed
 *   -EINVAL     arguments that are wrong before XRT sees them
 * After -ETIMEDOUT or -EIO of a run the device may still write to its buffers and XRT may hand out the packet of a run that hangs:
 * the device is lost. Every later call that would reach it fails with -ENODEV; close and the free functions keep what the device
 * may still use. The process should end with _exit and be started again.
 *
 * Threads: one at a time. Objects are freed before what they were made from: runs, slices, buffers, kernels, device. */
#ifndef TANDEM_NPU_WORKER_XRT_DEVICE_H
#define TANDEM_NPU_WORKER_XRT_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct xrt_device;
struct xrt_kernel;
struct xrt_buffer;
struct xrt_run;

#define XRT_DEVICE_ABI 1u
#define XRT_DEVICE_TABLE "xrt_device_table" /* the symbol: a const struct xrt_device_ops */
#define XRT_DEVICE_ARGUMENTS 5u             /* bo0 to bo4 */
#define XRT_DEVICE_ALIGN 4096u              /* offsets of slices */

/* Calls into XRT that returned, since the device was opened. */
struct xrt_device_stats {
    uint64_t buffers, slices, syncs_to, syncs_from, bytes_to, bytes_from, starts, waits;
    uint64_t bytes, peak_bytes; /* held in buffers, instructions included; slices cost nothing */
};

enum xrt_device_direction { XRT_DEVICE_TO, XRT_DEVICE_FROM };

struct xrt_device_ops {
    uint32_t abi, bytes;           /* XRT_DEVICE_ABI, size of this struct */
    const char *flavour;           /* "hw_context", or "load_xclbin": an older XRT, which knows no Ryzen AI NPU */
    uint32_t xrt_major, xrt_minor; /* that the module was compiled for */
    bool locks_memory;             /* buffers of this flavour's driver count under RLIMIT_MEMLOCK, and are checked against it */

    /* The name lives as long as the device. */
    int (*open)(unsigned index, struct xrt_device **ret, struct err *err);
    const char *(*name)(const struct xrt_device *d);
    void (*stats)(const struct xrt_device *d, struct xrt_device_stats *ret);
    bool (*lost)(const struct xrt_device *d);
    void (*close)(struct xrt_device *d); /* NULL is fine */

    /* The first kernel of the file whose name begins with prefix ("MLIR_AIE"). The same file and prefix are loaded once. */
    int (*load_kernel)(struct xrt_device *d, const char *xclbin, const char *prefix, struct xrt_kernel **ret, struct err *err);
    void (*free_kernel)(struct xrt_kernel *k);

    /* Data, host_only, in the memory that bo<argument> of this kernel reads; usable by every kernel of the device that reads the
     * same memory, which on an NPU is all of them. What is in it is not known. */
    int (*make_buffer)(struct xrt_kernel *k, unsigned argument, size_t bytes, struct xrt_buffer **ret, struct err *err);
    /* A cacheable buffer that holds the words, uploaded. */
    int (*make_instructions)(struct xrt_kernel *k, const uint32_t *words, size_t n_words, struct xrt_buffer **ret, struct err *err);
    /* Part of a buffer that make_buffer made; offset is a multiple of XRT_DEVICE_ALIGN. */
    int (*make_slice)(struct xrt_buffer *parent, size_t offset, size_t bytes, struct xrt_buffer **ret, struct err *err);
    void *(*map)(struct xrt_buffer *b); /* the host's side, while the buffer lives; slices: at their offset */
    size_t (*size)(const struct xrt_buffer *b);
    int (*sync)(struct xrt_buffer *b, enum xrt_device_direction direction, size_t offset, size_t bytes, struct err *err);
    void (*free_buffer)(struct xrt_buffer *b); /* NULL is fine */

    /* n_arguments buffers as bo0 and up; the rest is given a dummy. set_argument changes one between runs. */
    int (*make_run)(struct xrt_kernel *k, struct xrt_buffer *instructions, struct xrt_buffer *const *arguments,
                    unsigned n_arguments, struct xrt_run **ret, struct err *err);
    int (*set_argument)(struct xrt_run *r, unsigned argument, struct xrt_buffer *b, struct err *err);
    int (*start)(struct xrt_run *r, struct err *err);
    int (*wait)(struct xrt_run *r, unsigned timeout_ms, struct err *err); /* timeout_ms > 0 */
    void (*free_run)(struct xrt_run *r);                                  /* NULL is fine; waits for nothing: not while it runs */
};

#endif
