/* SPDX-License-Identifier: MIT
 * The integer types in plain C: what the SIMD variants must give, bit for bit. Owns nothing, allocates nothing; any thread. */
#include "kernels/lanes_ref.h"

#include "kernels/gemm_body.h"

/* Weight of row r, element e of block b in a tile. */
static int weight(int type, const uint8_t *tile, size_t b, int r, int e)
{
    if (type == QUANT_Q8_0)
        return (int8_t)tile[((b * 8 + (size_t)(e / 4)) * REPACK_ROWS + (size_t)r) * 4 + (size_t)(e % 4)];
    uint8_t byte = tile[((b * 4 + (size_t)(e % 16 / 4)) * REPACK_ROWS + (size_t)r) * 4 + (size_t)(e % 4)];
    return (e < 16 ? byte & 15 : byte >> 4) - 8;
}

/* One token x one tile: LANES_TOKENS and the tiles at once are 1 here. */
INLINE void integer_block(int type, int nt, int nw, const struct span *s)
{
    const uint8_t *tile = span_tiles(s);
    const uint16_t *scales =
        (const uint16_t *)(const void *)(tile + s->m->n_cols / 32 * (quant_block_bytes(type) - 2) * REPACK_ROWS);
    struct gemm_act a = gemm_act_at(s->act, s->m->n_cols);
    v16 acc = acc_load(s, nt - 1, nw - 1);
    for (size_t b = s->k0 / 32; b < s->k1 / 32; b++) {
        for (int r = 0; r < REPACK_ROWS; r++) {
            int32_t sum = 0;
            for (int e = 0; e < 32; e++)
                sum += weight(type, tile, b, r, e) * a.quants[32 * b + (size_t)e];
            acc.v[r] = fmaf((float)sum, quant_f16_to_f32(scales[b * REPACK_ROWS + (size_t)r]) * a.scales[b], acc.v[r]);
        }
    }
    acc_store(s, nt - 1, nw - 1, acc);
}
