/* SPDX-License-Identifier: MIT
 * Attention on the NPU: o = softmax(scale q k^T) v of one sequence's consecutive queries over its pages of the KV cache, by an
 * attention operator of the manifest. Queries go over in groups of the operator's tokens, each with the keys that it sees, as bf16:
 * while the NPU computes one group, the processor reads the pages for the next. Threads: open and close on the main thread, run on
 * the data thread; it allocates nothing. Errors of xrt_device.h. */
#ifndef TANDEM_NPU_WORKER_XRT_ATTEND_H
#define TANDEM_NPU_WORKER_XRT_ATTEND_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/attn.h"
#include "npu_worker/xrt_operator.h"

struct attn_queries;
struct err;
struct xrt_attend;

/* Whether this operator can be driven: attention that takes positions, bf16 for q, k, v and o, and, with a window, keys
 * enough for all that its tokens see. -ENOTSUP. */
int xrt_attend_usable(const struct manifest_operator *op, struct err *err);
/* o->scratch: of xrt_attend_scratch_bytes. s: copied; heads, window and scale are the operator's. kernels read the pages. */
int xrt_attend_open(const struct xrt_operator_options *o, const struct attn_shape *s, const struct attn_ops *kernels,
                    struct xrt_attend **ret, struct err *err);
void xrt_attend_close(struct xrt_attend *a); /* NULL is fine */
/* Bytes of NPU memory that open takes, as xrt_gemm_bytes. */
int xrt_attend_bytes(const struct manifest_operator *op, uint64_t *ret, struct err *err);
uint64_t xrt_attend_scratch_bytes(const struct manifest_operator *op, uint32_t n_threads);

/* Whether the operator has room for all keys of queries at positions pos .. pos + n - 1. */
bool xrt_attend_fits(const struct manifest_operator *op, uint32_t pos, uint32_t n);
int xrt_attend_run(struct xrt_attend *a, const struct attn_queries *x, struct err *err);

#endif
