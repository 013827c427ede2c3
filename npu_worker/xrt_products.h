/* SPDX-License-Identifier: MIT
 * Which operator of a manifest multiplies which matrix of a model's attention, which one attends, and what that takes. The plan and
 * the backend ask the same functions. Touches no device. Threads: any. */
#ifndef TANDEM_NPU_WORKER_XRT_PRODUCTS_H
#define TANDEM_NPU_WORKER_XRT_PRODUCTS_H

#include <stdint.h>
#include <stdio.h>

#include "kernels/attn.h"
#include "npu_worker/attn_backend.h"
#include "npu_worker/manifest.h"

struct err;
struct hparams;

struct xrt_products {
    const struct manifest_operator *op[ATTN_PRODUCTS];  /* NULL: on the processor */
    char why[ATTN_PRODUCTS][256];                       /* it is not on the NPU */
    const struct manifest_operator *ops[ATTN_PRODUCTS]; /* each once */
    uint32_t n_ops, rows[ATTN_PRODUCTS], cols[ATTN_PRODUCTS];
    const struct manifest_operator *attend[2]; /* of layers with a window, of global ones; NULL: on the processor */
    char why_attend[2][256];
    struct attn_shape shapes[2]; /* n_heads 0: the model has no such layers */
};

/* context: tokens of a sequence, at most. -ENOTSUP when the manifest has an operator for none of the products; *ret says for each
 * what it needs even so. m: borrowed while ret is used. */
int xrt_products_choose(const struct manifest *m, const struct hparams *h, uint32_t context, struct xrt_products *ret,
                        struct err *err);
/* manifest_check_files of each operator that was chosen. */
int xrt_products_check_files(const struct xrt_products *p, struct err *err);
uint32_t xrt_products_index(const struct xrt_products *p, enum attn_product which); /* of its operator among ops */

/* Bytes of NPU memory for chunks of so many tokens, and of working memory. */
int xrt_products_bytes(const struct xrt_products *p, uint32_t n_tokens, uint64_t *ret, struct err *err);
uint64_t xrt_products_scratch(const struct xrt_products *p, uint32_t n_threads);
/* Bytes of weights as the NPU takes them, of one layer, padding included: what goes over for a chunk where they do not stay there.
 */
uint64_t xrt_products_moved(const struct xrt_products *p);
uint64_t xrt_products_kept(const struct xrt_products *p); /* the same as buffers, where they do */

/* One line for who plans, by tabs: products, bytes of scratch of a thread, xrt_products_moved, xrt_products_kept, bytes of NPU
 * memory whatever the chunk, and those of each further M tokens of each operator as M:BYTES with commas. */
int xrt_products_sizes(const struct xrt_products *p, FILE *out, struct err *err);

/* Where each operation of a layer runs, and why, the shapes of those that have no operator, and which operators of m are in
 * vain; m: as it was chosen from, also in vain. many: tokens from which on the NPU is used; 0: not known, UINT32_MAX: never. here:
 * why no NPU is used at all, or NULL. */
void xrt_products_print(const struct xrt_products *p, const struct manifest *m, uint32_t many, const char *here, FILE *out);
const char *xrt_products_name(enum attn_product which); /* "q" */

#endif
