/* SPDX-License-Identifier: MIT
 * Moves rows of a GGUF tensor into tiles of 16 interleaved rows and back. Bytes are moved, never changed. Pure functions, any
 * thread; the loader calls repack_tile once per tile when it fills a segment. */
#include "kernels/repack.h"

#include <stdbool.h>
#include <string.h>

#include "kernels/quant.h"

#define R REPACK_ROWS

static size_t round_up(size_t n)
{
    return (n + REPACK_ALIGN - 1) / REPACK_ALIGN * REPACK_ALIGN;
}

/* Bytes of quants per row and block: the rest of a block is its scale. */
static size_t quant_bytes(int type)
{
    return quant_block_bytes(type) - 2;
}

static bool is_block(int type)
{
    return quant_block_elems(type) == QUANT_BLOCK;
}

size_t repack_tile_bytes(int type, size_t n_cols)
{
    size_t row = quant_row_bytes(type, n_cols);
    return round_up(row * R);
}

size_t repack_bytes(int type, size_t n_rows, size_t n_cols)
{
    return repack_n_tiles(n_rows) * repack_tile_bytes(type, n_cols);
}

static void scalar_tile(const uint8_t *rows, size_t n_rows, size_t n_cols, size_t size, uint8_t *tile)
{
    for (size_t k = 0; k < n_cols; k++) {
        for (size_t r = 0; r < n_rows; r++)
            memcpy(tile + (k * R + r) * size, rows + (r * n_cols + k) * size, size);
    }
}

static void block_tile(int type, const uint8_t *rows, size_t n_rows, size_t n_cols, uint8_t *tile)
{
    size_t blocks = n_cols / QUANT_BLOCK, qb = quant_bytes(type), bb = qb + 2;
    uint8_t *scales = tile + blocks * qb * R;
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t b = 0; b < blocks; b++) {
            const uint8_t *src = rows + (r * blocks + b) * bb;
            memcpy(scales + (b * R + r) * 2, src, 2);
            for (size_t v = 0; v < qb / 4; v++)
                memcpy(tile + ((b * (qb / 4) + v) * R + r) * 4, src + 2 + 4 * v, 4);
        }
    }
}

void repack_tile(int type, const void *rows, size_t n_rows, size_t n_cols, void *tile)
{
    if (n_rows < R || repack_tile_bytes(type, n_cols) != quant_row_bytes(type, n_cols) * R)
        memset(tile, 0, repack_tile_bytes(type, n_cols));
    if (is_block(type))
        block_tile(type, rows, n_rows, n_cols, tile);
    else
        scalar_tile(rows, n_rows, n_cols, quant_block_bytes(type), tile);
}

void repack_extract_row(int type, const void *tile, size_t row, size_t n_cols, void *ret_row)
{
    const uint8_t *t = tile;
    uint8_t *out = ret_row;
    if (!is_block(type)) {
        size_t size = quant_block_bytes(type);
        for (size_t k = 0; k < n_cols; k++)
            memcpy(out + k * size, t + (k * R + row) * size, size);
        return;
    }
    size_t blocks = n_cols / QUANT_BLOCK, qb = quant_bytes(type), bb = qb + 2;
    for (size_t b = 0; b < blocks; b++) {
        memcpy(out + b * bb, t + blocks * qb * R + (b * R + row) * 2, 2);
        for (size_t v = 0; v < qb / 4; v++)
            memcpy(out + b * bb + 2 + 4 * v, t + ((b * (qb / 4) + v) * R + row) * 4, 4);
    }
}
