/* SPDX-License-Identifier: MIT
 * An operator of the manifest made ready on the device: its kernel, its instructions, and two runs that alternate, so that one is
 * under way while the processor fills or empties the buffers of the other. Which buffers there are and what is in them is its
 * user's to say (xrt_gemm, xrt_attend). Threads: all on the main thread but set, sync, start, wait and settle, which are the data
 * thread's and allocate nothing. Errors of xrt_device.h, with the operator's line. */
#ifndef TANDEM_NPU_WORKER_XRT_OPERATOR_H
#define TANDEM_NPU_WORKER_XRT_OPERATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "npu_worker/manifest.h"
#include "npu_worker/xrt_device.h"

struct arena;
struct err;
struct pool;
struct trace;

struct xrt_operator_options {
    const struct xrt_device_ops *ops;
    struct xrt_device *device;
    const struct manifest_operator *op; /* that its user can drive */
    struct pool *pool;                  /* converts what goes over and what comes back */
    struct arena *arena;                /* where its buffers have a block */
    void *scratch;                      /* 64-aligned; may serve several; all six borrowed */
    uint32_t n_tokens;                  /* at once, at most */
    unsigned timeout_ms;                /* of a run */
    struct trace *trace;                /* where to record runs; NULL: nowhere; borrowed */
};

#define XRT_OPERATOR_BUFFERS 68u /* at most */

struct xrt_operator {
    struct xrt_operator_options o;
    struct xrt_kernel *kernel;
    struct xrt_buffer *instructions;
    struct xrt_buffer *buffers[XRT_OPERATOR_BUFFERS]; /* in the order in which they were made */
    uint32_t n_buffers;
    struct xrt_run *runs[2];
    bool under_way[2];
    uint64_t started_ns[2], ended_ns; /* for traces: of each run, and of the last that ended */
    uint32_t tiles_block, instructions_block;
};

/* Kernel and instructions, and a block of so many bytes for buffers to come. After an error, close. */
int xrt_operator_open(struct xrt_operator *x, const struct xrt_operator_options *o, uint64_t buffer_bytes, struct err *err);
void xrt_operator_close(struct xrt_operator *x); /* with all its buffers */

/* Bytes of NPU memory, rounded up to XRT_DEVICE_ALIGN: of one argument, and of instructions together with what stands for
 * arguments that the operator does not use (-errno: the file cannot be read). */
uint64_t xrt_operator_argument_bytes(const struct manifest_operator *op, enum manifest_role role);
int xrt_operator_fixed_bytes(const struct manifest_operator *op, uint64_t *ret, struct err *err);

int xrt_operator_make_buffer(struct xrt_operator *x, enum manifest_role role, struct xrt_buffer **ret, struct err *err);
/* buffers: one for each argument of the operator, by role. */
int xrt_operator_make_run(struct xrt_operator *x, int which, struct xrt_buffer *const buffers[MANIFEST_ROLES], struct err *err);
int xrt_operator_sync(struct xrt_operator *x, struct xrt_buffer *b, enum manifest_role role, enum xrt_device_direction to,
                      struct err *err);
int xrt_operator_sync_part(struct xrt_operator *x, struct xrt_buffer *b, enum xrt_device_direction to, size_t offset, size_t bytes,
                           struct err *err);
int xrt_operator_set(struct xrt_operator *x, int which, enum manifest_role role, struct xrt_buffer *b, struct err *err);
int xrt_operator_start(struct xrt_operator *x, int which, struct err *err);
int xrt_operator_wait(struct xrt_operator *x, int which, struct err *err);
/* After an error: waits for what is under way, so that nothing writes to buffers any more, or the device is lost. */
void xrt_operator_settle(struct xrt_operator *x);

#endif
