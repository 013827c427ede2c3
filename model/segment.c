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

int segment_sources(const struct gguf *g, uint32_t layer, const struct segment_layout *l,
                    const struct gguf_tensor *ret[SEGMENT_MAX_TENSORS], struct err *err)
{
    for (uint32_t i = 0; i < l->n_tensors; i++) {
        const struct segment_tensor *t = &l->tensors[i];
        int r = gemma3_find(g, t->role, layer, &ret[i], err);
        if (r < 0)
            return r;
        if (ret[i]->type != t->type || ret[i]->dims[0] != t->n_cols || ret[i]->dims[1] != t->n_rows)
            return err_set(err, -EINVAL, "tensor '%s' is not what the segment expects (type %s, rows of %u)", ret[i]->name,
                           quant_name(t->type), t->n_cols);
    }
    return 0;
}

bool segment_next(const struct segment_layout *l, const struct gguf_tensor *const *sources, size_t most, struct segment_cursor *at,
                  struct segment_piece *ret)
{
    if (at->tensor == l->n_tensors)
        return false;
    const struct segment_tensor *t = &l->tensors[at->tensor];
    size_t row = quant_row_bytes(t->type, t->n_cols);
    uint32_t rows = (uint32_t)MIN(most / (row * REPACK_ROWS), UINT32_MAX / REPACK_ROWS) * REPACK_ROWS;
    uint32_t n = MIN(t->n_rows - at->row, MAX(rows, 1u));
    *ret = (struct segment_piece){.src = sources[at->tensor],
                                  .to = t,
                                  .row = at->row,
                                  .n_rows = n,
                                  .offset = (uint64_t)at->row * row,
                                  .bytes = (size_t)n * row,
                                  .first = at->row == 0,
                                  .last = at->row + n == t->n_rows};
    at->row += n;
    if (ret->last)
        *at = (struct segment_cursor){.tensor = at->tensor + 1};
    return true;
}

void segment_place(const struct segment_piece *p, const void *raw, void *dst)
{
    const struct segment_tensor *t = p->to;
    size_t row = quant_row_bytes(t->type, t->n_cols), tile = repack_tile_bytes(t->type, t->n_cols);
    uint8_t *to = (uint8_t *)dst + t->offset;
    if (gemma3_is_norm(t->role)) {
        memcpy(to, raw, p->bytes);
        return;
    }
    to += p->row / REPACK_ROWS * tile;
    for (uint32_t i = 0; i < p->n_rows; i += REPACK_ROWS, to += tile)
        repack_tile(t->type, (const uint8_t *)raw + i * row, MIN(REPACK_ROWS, p->n_rows - i), t->n_cols, to);
}

int segment_fill(const struct gguf *g, uint32_t layer, const struct segment_layout *l, void *dst, void *bounce, size_t bounce_bytes,
                 struct err *err)
{
    const struct gguf_tensor *sources[SEGMENT_MAX_TENSORS];
    struct segment_cursor at = {0};
    struct segment_piece p;
    if (bounce_bytes < segment_bounce_min(l))
        return err_set(err, -EINVAL, "segment: bounce buffer of %zu bytes; expected at least %zu", bounce_bytes,
                       segment_bounce_min(l));
    int r = segment_sources(g, layer, l, sources, err);
    while (r == 0 && segment_next(l, sources, bounce_bytes, &at, &p)) {
        r = gguf_read(g, p.src, p.offset, bounce, p.bytes, err);
        if (r == 0)
            segment_place(&p, bounce, dst);
    }
    return r;
}
