/* SPDX-License-Identifier: MIT
 * Lays out and fills segments. Owns nothing; any thread. The consumer computes the same layout from hyper-parameters and types
 * alone. Filling reads the file in pieces of whole 16-row tiles through a bounce buffer, so it needs no more memory than that. */
#include "model/segment.h"

#include <errno.h>
#include <string.h>

#include "kernels/quant.h"
#include "kernels/repack.h"
#include "model/gguf.h"
#include "proto/err.h"
#include "proto/util.h"

#define PAGE 4096

static const enum gemma3_tensor first[] = {
    [SEGMENT_ATTN] = GEMMA3_ATTN_NORM, [SEGMENT_FFN] = GEMMA3_FFN_NORM, [SEGMENT_HEAD] = GEMMA3_OUTPUT_NORM};
static const uint32_t count[] = {[SEGMENT_ATTN] = 8, [SEGMENT_FFN] = 5, [SEGMENT_HEAD] = 2};

uint32_t segment_n_tensors(enum segment_kind kind)
{
    return count[kind];
}

int segment_layout_init(struct segment_layout *l, const struct hparams *h, enum segment_kind kind, const uint8_t *types,
                        struct err *err)
{
    size_t at = 0;
    memset(l, 0, sizeof(*l));
    l->kind = kind;
    l->n_tensors = count[kind];
    for (uint32_t i = 0; i < l->n_tensors; i++) {
        struct segment_tensor *t = &l->tensors[i];
        t->role = (enum gemma3_tensor)(first[kind] + i);
        t->type = types[i];
        gemma3_shape(h, t->role, &t->n_rows, &t->n_cols);
        bool norm = gemma3_is_norm(t->role);
        t->bytes = norm ? quant_row_bytes(t->type, t->n_cols) : repack_bytes(t->type, t->n_rows, t->n_cols);
        if (t->bytes == 0 || (norm && t->type != QUANT_F32))
            return err_set(err, -EINVAL, "segment: tensor %u has type id %d and rows of %u; expected %s", i, t->type, t->n_cols,
                           norm ? "f32" : "f32, f16, bf16, q8_0 or q4_0 with rows that are multiples of the block");
        at = util_round_up(at, norm ? REPACK_ALIGN : PAGE);
        t->offset = at;
        at += t->bytes;
    }
    l->bytes = util_round_up(at, PAGE);
    return 0;
}

int segment_types(const struct gguf *g, enum segment_kind kind, uint32_t layer, uint8_t *ret_types, struct err *err)
{
    for (uint32_t i = 0; i < count[kind]; i++) {
        const struct gguf_tensor *t;
        int r = gemma3_find(g, (enum gemma3_tensor)(first[kind] + i), layer, &t, err);
        if (r < 0)
            return r;
        if (quant_block_elems(t->type) == 0)
            return err_set(err, -ENOTSUP, "tensor '%s' has type %s; expected " QUANT_NAMES, t->name, quant_ggml_name(t->type));
        ret_types[i] = (uint8_t)t->type;
    }
    return 0;
}

const struct segment_tensor *segment_find(const struct segment_layout *l, enum gemma3_tensor role)
{
    for (uint32_t i = 0; i < l->n_tensors; i++) {
        if (l->tensors[i].role == role)
            return &l->tensors[i];
    }
    return NULL;
}

const float *segment_norm(const struct segment_layout *l, const void *data, enum gemma3_tensor role)
{
    return (const float *)(const void *)((const uint8_t *)data + segment_find(l, role)->offset);
}

struct gemm_matrix segment_matrix(const struct segment_layout *l, const void *data, enum gemma3_tensor role)
{
    const struct segment_tensor *t = segment_find(l, role);
    return (struct gemm_matrix){
        .type = t->type, .n_rows = t->n_rows, .n_cols = t->n_cols, .tiles = (const uint8_t *)data + t->offset};
}

size_t segment_bounce_min(const struct segment_layout *l)
{
    size_t n = PAGE;
    for (uint32_t i = 0; i < l->n_tensors; i++)
        n = MAX(n, quant_row_bytes(l->tensors[i].type, l->tensors[i].n_cols) * REPACK_ROWS);
    return util_round_up(n, PAGE);
}

static int fill_matrix(const struct gguf *g, const struct gguf_tensor *src, const struct segment_tensor *t, uint8_t *dst,
                       void *bounce, size_t bounce_bytes, struct err *err)
{
    size_t row = quant_row_bytes(t->type, t->n_cols), tile = repack_tile_bytes(t->type, t->n_cols);
    uint32_t per_read = (uint32_t)MIN(bounce_bytes / (row * REPACK_ROWS), UINT32_MAX / REPACK_ROWS) * REPACK_ROWS;
    for (uint32_t at = 0; at < t->n_rows; at += per_read) {
        uint32_t n = MIN(per_read, t->n_rows - at);
        int r = gguf_read(g, src, (uint64_t)at * row, bounce, (size_t)n * row, err);
        if (r < 0)
            return r;
        for (uint32_t i = 0; i < n; i += REPACK_ROWS) {
            repack_tile(t->type, (const uint8_t *)bounce + (size_t)i * row, MIN(REPACK_ROWS, n - i), t->n_cols, dst);
            dst += tile;
        }
    }
    return 0;
}

int segment_fill(const struct gguf *g, uint32_t layer, const struct segment_layout *l, void *dst, void *bounce, size_t bounce_bytes,
                 struct err *err)
{
    if (bounce_bytes < segment_bounce_min(l))
        return err_set(err, -EINVAL, "segment: bounce buffer of %zu bytes; expected at least %zu", bounce_bytes,
                       segment_bounce_min(l));
    for (uint32_t i = 0; i < l->n_tensors; i++) {
        const struct segment_tensor *t = &l->tensors[i];
        const struct gguf_tensor *src;
        int r = gemma3_find(g, t->role, layer, &src, err);
        if (r == 0 && (src->type != t->type || src->dims[0] != t->n_cols || src->dims[1] != t->n_rows))
            r = err_set(err, -EINVAL, "tensor '%s' is not what the segment expects (type %s, rows of %u)", src->name,
                        quant_name(t->type), t->n_cols);
        if (r == 0)
            r = gemma3_is_norm(t->role) ? gguf_read(g, src, 0, (uint8_t *)dst + t->offset, t->bytes, err)
                                        : fill_matrix(g, src, t, (uint8_t *)dst + t->offset, bounce, bounce_bytes, err);
        if (r < 0)
            return r;
    }
    return 0;
}
