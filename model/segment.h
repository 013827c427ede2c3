/* SPDX-License-Identifier: MIT
 * A segment is what one stage needs for one layer, laid out for its backend. Loader and single-stage mode build it with the
 * same code; the consumer computes the same layout from hyper-parameters and types alone, without the file.
 * ids: attention of layer i, FFN of layer i, or the head (final norm + output matrix, layer ignored).
 * Layout: tensors in enum order, each at a 4096-aligned offset for matrices (repacked tiles), 64-aligned for norms (f32),
 * the whole rounded up to 4096. */
#ifndef TANDEM_MODEL_SEGMENT_H
#define TANDEM_MODEL_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/gemm.h"
#include "model/gemma3.h"

enum segment_kind { SEGMENT_ATTN, SEGMENT_FFN, SEGMENT_HEAD };
#define SEGMENT_MAX_TENSORS 8

struct gguf_tensor;

struct segment_tensor {
    enum gemma3_tensor role;
    int type;
    uint32_t n_rows, n_cols;
    size_t offset, bytes; /* in the segment */
};

struct segment_layout {
    enum segment_kind kind;
    uint32_t n_tensors;
    struct segment_tensor tensors[SEGMENT_MAX_TENSORS];
    size_t bytes; /* multiple of 4096 */
};

/* Number of tensors of a kind; their types go into `types` below in enum order, one byte each. */
uint32_t segment_n_tensors(enum segment_kind kind);
/* types: [segment_n_tensors(kind)] ggml ids. -EINVAL when a type or shape does not fit. */
int segment_layout_init(struct segment_layout *l, const struct hparams *h, enum segment_kind kind, const uint8_t *types,
                        struct err *err);
/* The types of a segment as the file has them. */
int segment_types(const struct gguf *g, enum segment_kind kind, uint32_t layer, uint8_t *ret_types, struct err *err);
/* The tensor with that role; it is a programming error when the kind has none. */
const struct segment_tensor *segment_find(const struct segment_layout *l, enum gemma3_tensor role);

/* A norm's weights and a matrix's tiles in a filled segment at `data`; borrowed. */
const float *segment_norm(const struct segment_layout *l, const void *data, enum gemma3_tensor role);
struct gemm_matrix segment_matrix(const struct segment_layout *l, const void *data, enum gemma3_tensor role);

/* Filling goes in pieces: a norm, or whole tiles of a matrix. */
struct segment_piece {
    const struct gguf_tensor *src;
    const struct segment_tensor *to;
    uint32_t row, n_rows;
    uint64_t offset; /* in the tensor's data */
    size_t bytes;
    bool first, last; /* of the tensor */
};
struct segment_cursor {
    uint32_t tensor, row;
};
/* The file's tensors, checked against the layout, in its order. */
int segment_sources(const struct gguf *g, uint32_t layer, const struct segment_layout *l,
                    const struct gguf_tensor *ret[SEGMENT_MAX_TENSORS], struct err *err);
/* The next piece of at most `most` bytes (>= segment_bounce_min), from a cursor of zeroes on; false: there is none. */
bool segment_next(const struct segment_layout *l, const struct gguf_tensor *const *sources, size_t most, struct segment_cursor *at,
                  struct segment_piece *ret);
/* raw: the piece as it lies in the file; dst: the segment. Pieces may be placed in any order, by several threads at once. */
void segment_place(const struct segment_piece *p, const void *raw, void *dst);

/* Read from the file, check, repack, write to `dst` ([l->bytes], page-aligned). Reads in pieces through `bounce`
 * ([bounce_bytes] >= segment_bounce_min). */
size_t segment_bounce_min(const struct segment_layout *l);
int segment_fill(const struct gguf *g, uint32_t layer, const struct segment_layout *l, void *dst, void *bounce, size_t bounce_bytes,
                 struct err *err);

#endif
