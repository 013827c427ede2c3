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

static void integer_tiles(const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const void *act, uint32_t n_tokens, float *y,
                          size_t y_stride)
{
    size_t blocks = m->n_cols / 32, tile_bytes = repack_tile_bytes(m->type, m->n_cols);
    for (uint32_t t = 0; t < n_tokens; t++) {
        struct gemm_act a = gemm_act_at((const uint8_t *)act + t * gemm_act_bytes(m->type, m->n_cols), m->n_cols);
        for (uint32_t i = tile0; i < tile1; i++) {
            const uint8_t *tile = (const uint8_t *)m->tiles + i * tile_bytes;
            const uint16_t *scales = (const uint16_t *)(const void *)(tile + blocks * (quant_block_bytes(m->type) - 2) * REPACK_ROWS);
            v16 acc = v16_set(0);
            for (size_t b = 0; b < blocks; b++) {
                for (int r = 0; r < REPACK_ROWS; r++) {
                    int32_t sum = 0;
                    for (int e = 0; e < 32; e++)
                        sum += weight(m->type, tile, b, r, e) * a.quants[32 * b + (size_t)e];
                    acc.v[r] = fmaf((float)sum, quant_f16_to_f32(scales[b * REPACK_ROWS + (size_t)r]) * a.scales[b], acc.v[r]);
                }
            }
            put(m, i, acc, y + t * y_stride);
        }
    }
}

static void q8_0_tiles(const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const void *act, uint32_t n_tokens, float *y,
                       size_t y_stride)
{
    integer_tiles(m, tile0, tile1, act, n_tokens, y, y_stride);
}

static void q4_0_tiles(const struct gemm_matrix *m, uint32_t tile0, uint32_t tile1, const void *act, uint32_t n_tokens, float *y,
                       size_t y_stride)
{
    integer_tiles(m, tile0, tile1, act, n_tokens, y, y_stride);
}
