/* SPDX-License-Identifier: MIT
 * NumPy's .npy files (format version 1.0, numpy/lib/format.py): f32 little-endian, C order, 1 or 2 dimensions. For single-stage
 * mode and eval. Reading checks everything; writing goes through io_out (temporary name, rename). */
#ifndef TANDEM_MODEL_NPY_H
#define TANDEM_MODEL_NPY_H

#include <stddef.h>
#include <stdint.h>

struct err;
struct npy_writer;

/* Whole array, malloc'ed, returned owned; a 1-dimensional array has *ret_rows = 1. */
int npy_read(const char *path, float **ret, size_t *ret_rows, size_t *ret_cols, struct err *err);
int npy_write(const char *path, const float *data, size_t rows, size_t cols, struct err *err);
/* Streaming: rows may be written in any order with npy_writer_row; finish renames. */
int npy_writer_open(const char *path, size_t rows, size_t cols, struct npy_writer **ret, struct err *err);
int npy_writer_row(struct npy_writer *w, size_t row, const float *data, struct err *err);
int npy_writer_finish(struct npy_writer *w, struct err *err); /* frees w */
void npy_writer_abort(struct npy_writer *w);

#endif
