/* SPDX-License-Identifier: MIT
 * Matrix products on the NPU: y[t] = W x[t] by a gemm operator of the manifest, whatever the shape of W. Activations and weights go
 * over as bf16, tile by tile: while the NPU multiplies one tile of W, the processor unpacks the next from the segment. Sums are the
 * operator's (f32), results its output type. All buffers are made at open. Threads: open and close on the main thread, multiply on
 * the data thread; it allocates nothing. */
#ifndef TANDEM_NPU_WORKER_XRT_GEMM_H
#define TANDEM_NPU_WORKER_XRT_GEMM_H

#include <stdint.h>

#include "kernels/gemm.h"
#include "npu_worker/xrt_operator.h"

struct err;
struct xrt_gemm;
struct xrt_weights;

/* Whether this operator can multiply: a gemm with bf16 for a and b, bf16 or f32 for c, n in whole tiles of rows. -ENOTSUP. */
int xrt_gemm_usable(const struct manifest_operator *op, struct err *err);
/* o->scratch: of xrt_gemm_scratch_bytes */
int xrt_gemm_open(const struct xrt_operator_options *o, struct xrt_gemm **ret, struct err *err);
void xrt_gemm_close(struct xrt_gemm *g); /* NULL is fine */
/* Bytes of NPU memory that open takes, instructions included, each buffer rounded up to XRT_DEVICE_ALIGN; -errno: the instruction
 * file cannot be read. */
int xrt_gemm_bytes(const struct manifest_operator *op, uint32_t n_tokens, uint64_t *ret, struct err *err);
uint64_t xrt_gemm_scratch_bytes(const struct manifest_operator *op, uint32_t n_threads);
/* m: of at most the operator's k columns. x: [n_tokens][m->n_cols], y: [n_tokens][m->n_rows] f32. Errors of xrt_device.h. */
int xrt_gemm_multiply(struct xrt_gemm *g, const struct gemm_matrix *m, const float *x, uint32_t n_tokens, float *y,
                      struct err *err);

/* All tiles of m on the device, unpacked once: its products then move activations alone. Main thread, before multiply; freed before
 * g is closed. */
int xrt_gemm_keep(struct xrt_gemm *g, const struct gemm_matrix *m, struct xrt_weights **ret, struct err *err);
void xrt_gemm_free_kept(struct xrt_gemm *g, struct xrt_weights *w); /* NULL is fine */
uint64_t xrt_gemm_kept_bytes(const struct manifest_operator *op, uint32_t n_rows);
int xrt_gemm_multiply_kept(struct xrt_gemm *g, const struct xrt_weights *w, const float *x, uint32_t n_tokens, float *y,
                           struct err *err);

#endif
