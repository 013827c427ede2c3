/* SPDX-License-Identifier: MIT
 * Converts rows in pieces that stay in the first-level cache. Called by the pipeline's threads, by the choice of types and by
 * compare. Owns nothing. */
#include "quantizer/rows.h"

#include <math.h>
#include <string.h>

#include "kernels/quant.h"
#include "kernels/quant_ops.h"
#include "kernels/quant_search.h"
#include "proto/util.h"

#define PIECE 4096u /* elements: a multiple of every block */

/* The smallest magnitude that the type cannot hold: it would become infinite (block types: its scale, an f16). */
static float too_large(int type)
{
    switch (type) {
    case QUANT_F16:
        return 65520.0f;
    case QUANT_Q8_0:
        return 65520.0f * 127;
    case QUANT_Q4_0:
        return 65520.0f * 8;
    case QUANT_Q5_0:
        return 65520.0f * 16;
    case QUANT_Q4_1: /* the minimum is an f16 too */
    case QUANT_Q5_1:
        return 65520.0f;
    case QUANT_Q4_K: /* the minima are up to 63 times an f16 */
    case QUANT_Q5_K:
        return 65520.0f * 63;
    case QUANT_Q6_K:
        return 65520.0f * 127 * 31;
    case QUANT_BF16:
        return 0x1.FFp127f;
    default:
        return INFINITY;
    }
}

bool rows_has_search(int type)
{
    return type == QUANT_Q4_0 || type == QUANT_Q5_0 || type == QUANT_Q4_K || type == QUANT_Q5_K || type == QUANT_Q6_K;
}

void rows_init(struct rows *r, int src_type, int dst_type, size_t cols, float add, const float *weights, bool search)
{
    *r = (struct rows){
        .src_type = src_type,
        .dst_type = dst_type,
        .cols = cols,
        .src_row = quant_row_bytes(src_type, cols),
        .dst_row = quant_row_bytes(dst_type, cols),
        .add = add,
        .limit = too_large(dst_type),
        .weights = weights,
        .search = search && rows_has_search(dst_type),
        .copy = src_type == dst_type && quant_block_elems(src_type) > 1,
    };
}

size_t rows_scratch(size_t cols)
{
    return MAX(cols, PIECE);
}

bool rows_convert(const struct rows *r, const void *src, void *dst, float *scratch)
{
    const struct quant_ops *ops = quant_ops_best();
    if (r->copy) {
        memcpy(dst, src, r->dst_row);
        return true;
    }
    bool good = true;
    for (size_t at = 0; at < r->cols; at += PIECE) {
        size_t n = MIN(PIECE, r->cols - at);
        ops->to_f32(r->src_type, (const uint8_t *)src + quant_row_bytes(r->src_type, at), scratch, n);
        good &= ops->add_finite(scratch, r->add, n, r->limit);
        uint8_t *to = (uint8_t *)dst + quant_row_bytes(r->dst_type, at);
        if (good && r->search)
            quant_search_row(r->dst_type, scratch, r->weights ? r->weights + at : NULL, to, n);
        else if (good)
            ops->from_f32(r->dst_type, scratch, to, n);
    }
    return good;
}

size_t rows_find_bad(const struct rows *r, const void *src, float *scratch, float *ret_value)
{
    size_t i = 0;
    quant_ops_best()->to_f32(r->src_type, src, scratch, r->cols);
    while (i + 1 < r->cols && fabsf(scratch[i] + r->add) < r->limit)
        i++;
    *ret_value = scratch[i] + r->add;
    return i;
}
