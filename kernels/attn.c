/* SPDX-License-Identifier: MIT
 * Sizes of pages and scratch, the same for every variant. */
#include "kernels/attn.h"

#include "kernels/quant.h"

size_t attn_page_bytes(const struct attn_shape *s)
{
    size_t entries = (size_t)s->n_kv_heads * s->head_dim * 2 * ATTN_PAGE;
    return s->kv_type == QUANT_Q8_0 ? entries + entries / 32 * 2 : entries * (s->kv_type == QUANT_F16 ? 2 : 4);
}

/* K and V of one tile and head as f32; per row its scores, 16 lane sums and 16 floats of state. */
size_t attn_scratch_bytes(const struct attn_shape *s, uint32_t n_queries)
{
    size_t rows = (size_t)n_queries * (s->n_heads / s->n_kv_heads);
    rows = rows > ATTN_ROWS ? ATTN_ROWS : rows;
    return (2 * (size_t)ATTN_PAGE * s->head_dim + rows * (ATTN_PAGE + 16 + 16)) * sizeof(float);
}
