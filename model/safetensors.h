/* SPDX-License-Identifier: MIT
 * Reads safetensors checkpoints (format: huggingface/safetensors README). A file: u64 length of the header, the header in JSON
 * {"name": {"dtype": "BF16", "shape": [r, c], "data_offsets": [begin, end]}, ..., "__metadata__": {...}}, then the data without
 * holes. A checkpoint folder: model.safetensors, or the files that model.safetensors.index.json names.
 * Everything is untrusted: sizes, shapes, holes, overlaps, duplicates, file names, and index against files.
 * Threads: immutable after open; safetensors_read from any thread. */
#ifndef TANDEM_MODEL_SAFETENSORS_H
#define TANDEM_MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

struct err;
struct io_file;
struct safetensors;

#define SAFETENSORS_MAX_DIMS 8

struct safetensors_tensor {
    const char *name;
    const char *dtype; /* as the format calls it: "BF16" */
    int type;          /* enum quant_type for F32, F16 and BF16, otherwise -1 */
    uint32_t n_dims;
    uint64_t dims[SAFETENSORS_MAX_DIMS]; /* slowest first; absent ones are 1 */
    uint32_t file;                       /* index, see safetensors_file */
    uint64_t offset;                     /* absolute, in the file */
    uint64_t bytes;
};

int safetensors_open(const char *folder, struct safetensors **ret, struct err *err);
int safetensors_open_file(const char *path, struct safetensors **ret, struct err *err); /* one file, no index */
void safetensors_close(struct safetensors *s);                                          /* NULL is fine */
uint32_t safetensors_n(const struct safetensors *s);
const struct safetensors_tensor *safetensors_at(const struct safetensors *s, uint32_t i);         /* sorted by name */
const struct safetensors_tensor *safetensors_find(const struct safetensors *s, const char *name); /* NULL when absent */
uint32_t safetensors_n_files(const struct safetensors *s);
const char *safetensors_file(const struct safetensors *s, uint32_t file);   /* path */
struct io_file *safetensors_io(const struct safetensors *s, uint32_t file); /* borrowed; for reads in place */
/* Bytes [offset, offset + n) of the tensor's data. */
int safetensors_read(const struct safetensors *s, const struct safetensors_tensor *t, uint64_t offset, void *buf, size_t n,
                     struct err *err);

#endif
