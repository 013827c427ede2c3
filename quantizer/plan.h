/* SPDX-License-Identifier: MIT
 * What will be written, to the byte, before anything is: the files (one, or the parts of a split model), the metadata of each, and
 * for every tensor its type, size and place. The output is also seen as one stream: the files one behind the other, each from a
 * page boundary. Threads: immutable after plan_make. */
#ifndef TANDEM_QUANTIZER_PLAN_H
#define TANDEM_QUANTIZER_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct err;
struct gguf_write;
struct recipe;
struct source;
struct source_tensor;

struct plan_options {
    const char *out, *name; /* name: general.name or NULL */
    uint32_t alignment;
    uint64_t split_bytes;                                /* most for one file; 0: no limit */
    bool split_layers;                                   /* a file for each layer, and one for the rest */
    void (*extra_keys)(void *ctx, struct gguf_write *w); /* more metadata for the first file; may be NULL */
    void *ctx;
};

struct plan_tensor {
    const struct source_tensor *src;
    int type;
    uint32_t source_index, file;
    uint64_t offset, bytes; /* in its file */
};

struct plan_file {
    char *path;
    uint8_t *header; /* metadata, padded to the data */
    size_t header_bytes;
    uint64_t bytes; /* of the whole file */
    uint64_t begin; /* in the stream */
    uint32_t first, n_tensors;
};

struct plan {
    const struct source *source; /* borrows */
    struct plan_tensor *tensors;
    uint32_t n_tensors;
    struct plan_file *files;
    uint32_t n_files;
    uint64_t bytes, stream_bytes; /* of all files; of the stream, padded to a page */
    uint64_t checksums;           /* where in the first file (and so in the stream) their n_tensors u64 lie */
    char type[16];
};

int plan_make(const struct source *s, const struct recipe *r, const struct plan_options *o, struct plan *ret, struct err *err);
void plan_fini(struct plan *p);
/* One line for each tensor: name, shape, from, to, file and offset, bytes. */
void plan_print(const struct plan *p, FILE *f);

#endif
