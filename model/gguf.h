/* SPDX-License-Identifier: MIT
 * Reads GGUF v2/v3 (specification: ggml/docs/gguf.md). Layout: magic "GGUF", u32 version, u64 n_tensors, u64 n_kv,
 * key-values, tensor infos (name, u32 n_dims, u64 dims[], u32 type, u64 offset), padding to general.alignment, data.
 * The metadata is read in bounded pieces and kept; tensor data never is. Everything in the file is untrusted: counts,
 * lengths, nesting, dims, offsets and overlaps are checked, and errors name key or tensor and file offset.
 * A model in parts (llama.cpp's convention: NAME-00001-of-00003.gguf, keys split.no, split.count and split.tensors.count) opens
 * by any of its parts and looks like one file: metadata of the first, tensors of all.
 * Threads: immutable after open; gguf_read from any thread. */
#ifndef TANDEM_MODEL_GGUF_H
#define TANDEM_MODEL_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct gguf;
struct io_file;

enum gguf_value_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
};

struct gguf_tensor {
    const char *name;
    uint32_t n_dims;
    uint64_t dims[4]; /* dims[0] = row length (columns), dims[1] = rows; absent ones are 1 */
    int type;         /* ggml type id, possibly one we do not support */
    uint32_t file;    /* index, see gguf_file */
    uint64_t offset;  /* absolute, in the file */
    uint64_t bytes;   /* 0 when the type is unsupported */
};

/* One key as it lies in the file. */
struct gguf_key {
    const char *name;
    enum gguf_value_type type, element; /* element: of arrays */
    uint64_t n;                         /* elements, 1 for scalars; bytes for a string */
    const void *data;                   /* packed elements; string arrays: texts with a NUL behind each */
    const uint64_t *offsets;            /* string arrays: n + 1 offsets into data */
};

#define GGUF_MAX_PARTS 512u

/* direct: read tensor data with O_DIRECT where possible. */
int gguf_open(const char *path, bool direct, struct gguf **ret, struct err *err);
void gguf_close(struct gguf *g);
const char *gguf_path(const struct gguf *g);    /* of the first part */
uint64_t gguf_file_bytes(const struct gguf *g); /* of all parts */
uint32_t gguf_n_files(const struct gguf *g);    /* parts */
const char *gguf_file(const struct gguf *g, uint32_t file);
struct io_file *gguf_io(const struct gguf *g, uint32_t file); /* borrowed; for reads in place */
uint32_t gguf_n_keys(const struct gguf *g);
void gguf_key_at(const struct gguf *g, uint32_t i, struct gguf_key *ret); /* borrows */
/* "NAME-00002-of-00003.gguf" of part 1 (from 0) of 3, for a path that ends in ".gguf" or does not; returned owned, NULL when out
 * of memory. */
char *gguf_part_name(const char *path, uint32_t part, uint32_t n_parts);
uint32_t gguf_n_tensors(const struct gguf *g);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, uint32_t i);
const struct gguf_tensor *gguf_find(const struct gguf *g, const char *name); /* NULL when absent */
/* Bytes [offset, offset + n) of the tensor's data. */
int gguf_read(const struct gguf *g, const struct gguf_tensor *t, uint64_t offset, void *buf, size_t n, struct err *err);

/* Getters: 0; -ENOENT when absent (err untouched), -EINVAL with a message when of another type or range.
 * u32 accepts any integer type whose value fits; f32 accepts f32 and f64. Strings are borrowed and NUL-terminated. */
int gguf_get_u32(const struct gguf *g, const char *key, uint32_t *ret, struct err *err);
int gguf_get_f32(const struct gguf *g, const char *key, float *ret, struct err *err);
int gguf_get_bool(const struct gguf *g, const char *key, bool *ret, struct err *err);
int gguf_get_string(const struct gguf *g, const char *key, const char **ret, size_t *ret_len, struct err *err);
/* Arrays: pointer to packed little-endian elements (i32/f32/u8...), borrowed. */
int gguf_get_array(const struct gguf *g, const char *key, enum gguf_value_type type, const void **ret, uint64_t *ret_n,
                   struct err *err);
/* Element i of a string array, O(1). */
int gguf_get_string_at(const struct gguf *g, const char *key, uint64_t i, const char **ret, size_t *ret_len, struct err *err);

#endif
