/* SPDX-License-Identifier: MIT
 * Column sums of squares of what enters each matrix of the layers, of which an importance matrix is made (llama.cpp's imatrix:
 * in_sum2). One area of f64 for each worker: per layer for npu_worker [hidden] of q, k, v | [n_heads * head_dim] of o; for
 * gpu_worker [hidden] of gate, up | [ffn] of down. The coordinator makes the area as a memfd of zeros, the worker adds to it. */
#ifndef TANDEM_MODEL_COLLECT_H
#define TANDEM_MODEL_COLLECT_H

#include <stddef.h>
#include <stdint.h>

#include "model/gemma3.h"
#include "model/hparams.h"
#include "model/segment.h"

/* kind: SEGMENT_ATTN or SEGMENT_FFN. */
size_t collect_bytes(const struct hparams *h, enum segment_kind kind);
/* The sums for a matrix of a layer, and how many columns; NULL for a tensor that has none. area: that of the matrix's worker. */
double *collect_at(double *area, const struct hparams *h, enum gemma3_tensor role, uint32_t layer, uint32_t *ret_n);

struct collect {
    double *area;
    const struct hparams *hparams;
    uint32_t layer;
};
/* An attn_dump_fn and ffn_dump_fn (ctx: struct collect): adds the rows that enter matrices, ignores the others. In the order of
 * the rows, so the sums do not depend on the number of threads. One thread. */
void collect_rows(void *ctx, const char *name, const float *rows, uint32_t n_rows, uint32_t width);

#endif
