/* SPDX-License-Identifier: MIT
 * Writes GGUF v3 (specification: ggml/docs/gguf.md). Order of calls: open, keys and tensors in any order, begin, data of each
 * tensor in any order and any pieces, finish. The file appears under its name at finish, complete, or never.
 * Threads: one. After a failure of any call only abort is allowed. */
#ifndef TANDEM_MODEL_GGUF_WRITE_H
#define TANDEM_MODEL_GGUF_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/gguf.h"

struct err;
struct gguf_write;

/* path NULL: metadata only, for gguf_write_take; errors then name no file.
 * alignment of tensor data: a power of two, 8 to 1 MiB; written as general.alignment unless it is the default, 32. */
int gguf_write_open(const char *path, uint32_t alignment, struct gguf_write **ret, struct err *err);

/* Keys: one value each; the same key twice is an error at begin. Out of memory is remembered and reported by begin. */
void gguf_write_u32(struct gguf_write *w, const char *key, uint32_t v);
void gguf_write_f32(struct gguf_write *w, const char *key, float v);
void gguf_write_bool(struct gguf_write *w, const char *key, bool v);
void gguf_write_string(struct gguf_write *w, const char *key, const char *v, size_t n);
/* type: a number type; data: n packed little-endian elements. */
void gguf_write_array(struct gguf_write *w, const char *key, enum gguf_value_type type, const void *data, uint64_t n);
/* A scalar of any type, or a string: data as gguf_key holds it. */
void gguf_write_scalar(struct gguf_write *w, const char *key, enum gguf_value_type type, const void *data, uint64_t n);
/* An array of n u64, zeros until their writer knows better. Returns where in the file its first element will lie. */
uint64_t gguf_write_slots(struct gguf_write *w, const char *key, uint64_t n);
/* A string array is begun with its length; then exactly so many elements follow at once. */
void gguf_write_strings_begin(struct gguf_write *w, const char *key, uint64_t n);
void gguf_write_strings_add(struct gguf_write *w, const char *s, size_t n);

/* dims[0] = row length. Tensors lie in the file in the order of these calls. Returns the tensor's index, or -EINVAL. */
int gguf_write_tensor(struct gguf_write *w, const char *name, int type, uint32_t n_dims, const uint64_t *dims, struct err *err);
/* Instead of begin, when somebody else writes the file: all metadata, padded to the data, in one piece, returned owned; its size
 * is where the data begin. */
int gguf_write_take(struct gguf_write *w, uint8_t **ret, size_t *ret_n, struct err *err);
/* Place of tensor i, from the beginning of the data, and of the end of the last one with its padding. */
uint64_t gguf_write_place(const struct gguf_write *w, int i, uint64_t *ret_bytes);
uint64_t gguf_write_data_bytes(const struct gguf_write *w);
/* Writes all metadata. */
int gguf_write_begin(struct gguf_write *w, struct err *err);
/* Bytes [offset, offset + n) of tensor i's data; each byte exactly once. */
int gguf_write_data(struct gguf_write *w, int i, uint64_t offset, const void *data, size_t n, struct err *err);
/* -EINVAL when a tensor's data is incomplete. Frees w, whatever it returns. */
int gguf_write_finish(struct gguf_write *w, uint64_t *ret_file_bytes, struct err *err);
void gguf_write_abort(struct gguf_write *w); /* NULL is fine; leaves no file */

#endif
