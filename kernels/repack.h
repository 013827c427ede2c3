/* SPDX-License-Identifier: MIT
 * Row interleaving for SIMD: a tile holds REPACK_ROWS rows of a matrix so that lane r of a vector always belongs to
 * row r. Every CPU variant reads this one layout, so a segment does not depend on the machine that reads it.
 *
 * Tile of R = 16 rows x K columns:
 *   f32, f16, bf16: element [k][r], k = 0..K-1
 *   q8_0: quants [block b][group g = 0..7][row r][4 bytes: elements 4g..4g+3 of block b], then scales f16 [b][r]
 *   q4_0: quants [block b][v = 0..3][row r][4 bytes: low nibbles = elements 4v..4v+3, high nibbles = 16+4v..16+4v+3],
 *         then scales f16 [b][r]
 * A tile starts at a multiple of 64 bytes and is padded to one; rows beyond the matrix are zero. */
#ifndef TANDEM_KERNELS_REPACK_H
#define TANDEM_KERNELS_REPACK_H

#include <stddef.h>
#include <stdint.h>

#define REPACK_ROWS 16
#define REPACK_ALIGN 64

/* Bytes of one tile (multiple of 64), 0 when type/n_cols do not fit. */
size_t repack_tile_bytes(int type, size_t n_cols);
static inline size_t repack_n_tiles(size_t n_rows)
{
    return (n_rows + REPACK_ROWS - 1) / REPACK_ROWS;
}
/* Bytes of a whole matrix: n_tiles * tile_bytes. */
size_t repack_bytes(int type, size_t n_rows, size_t n_cols);
/* n_rows (1..16) consecutive rows as they lie in GGUF -> one whole tile (fully written, absent rows as zero). */
void repack_tile(int type, const void *rows, size_t n_rows, size_t n_cols, void *tile);
/* The reverse, for one row; for tests and debugging. */
void repack_extract_row(int type, const void *tile, size_t row, size_t n_cols, void *ret_row);

#endif
