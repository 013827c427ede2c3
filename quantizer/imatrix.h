/* SPDX-License-Identifier: MIT
 * An importance matrix in llama.cpp's GGUF format (tools/imatrix): general.type "imatrix", imatrix.datasets, imatrix.chunk_count,
 * imatrix.chunk_size; for each matrix NAME the tensors NAME.in_sum2 (sums of squares of its inputs, one for each column) and
 * NAME.counts (how many inputs that were). Threads: immutable after open. */
#ifndef TANDEM_QUANTIZER_IMATRIX_H
#define TANDEM_QUANTIZER_IMATRIX_H

#include <stdint.h>

struct err;
struct gguf_write;
struct imatrix;
struct source;

/* Every entry for a tensor of s must have its number of columns; entries for others are ignored. */
int imatrix_open(const char *path, const struct source *s, struct imatrix **ret, struct err *err);
void imatrix_close(struct imatrix *m);                             /* NULL is fine */
const float *imatrix_weights(const struct imatrix *m, uint32_t i); /* of tensor i of s: [cols], or NULL. m may be NULL. */
uint32_t imatrix_n(const struct imatrix *m);                       /* tensors that have weights */
uint64_t imatrix_hash(const struct imatrix *m);                    /* of all weights */
/* The quantize.imatrix.* keys by which others tell how a file was made. */
void imatrix_write_keys(const struct imatrix *m, struct gguf_write *w);

#endif
