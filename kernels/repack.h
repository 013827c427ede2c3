/* SPDX-License-Identifier: MIT
 * Row interleaving for SIMD: a tile holds REPACK_ROWS rows of a matrix so that lane r of a vector always belongs to
 * row r. Every CPU variant reads this one layout, so a segment does not depend on the machine that reads it.
 *
 * Tile of R = 16 rows x K columns. Blocks are made of words of 4 bytes, and word w of a row lies at [w][r]:
 *   f32, f16, bf16: element [k][r], k = 0..K-1
 *   q8_0: per block 8 words: word g = elements 4g..4g+3
 *   q4_0: per block 4 words: word v, low nibbles = elements 4v..4v+3, high nibbles = 16+4v..16+4v+3
 *   q5_0: per block H | 4 words as q4_0. H: bit g of byte j = bit 4 of element 4g+j, so that a shift puts them over nibbles
 *   q4_1: per block f16 d, m | 4 words;   q5_1: per block f16 d, m | H | 4 words
 *   q4_K: per 256: f16 d, dmin | 3 words of 6-bit scales as in GGUF | per 32 elements 4 words as q4_0
 *   q5_K: per 256: f16 d, dmin | 3 words of scales | per 32 elements H | 4 words
 *   q6_K: per 256: 4 words of i8 scales | per 32 elements L | M | 4 words. L: bits 2g, 2g+1 of byte j = bits 4, 5 of element
 *         4g+j, g = 0..3; M: the same for elements 16+4g+j
 *   q8_0, q4_0, q5_0, q6_K: two blocks at a time, and after their words one word of scales: f16 d at [first, second][r]. A last
 *   block without a second has half a word of them.
 * So a tile has as many bytes as its rows in GGUF, is read from front to back, and what belongs to 16 rows at once is one load.
 * A tile starts at a multiple of 64 bytes and is padded to one; rows beyond the matrix are zero. */
#ifndef TANDEM_KERNELS_REPACK_H
#define TANDEM_KERNELS_REPACK_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/quant.h"

#define REPACK_ROWS 16
#define REPACK_ALIGN 64

/* Words of a row's block in the first part of a tile; 0 for the scalar types. */
static inline size_t repack_block_words(int type)
{
    return type == QUANT_Q4_0                         ? 4
           : type == QUANT_Q8_0                       ? 8
           : type == QUANT_Q5_0 || type == QUANT_Q4_1 ? 5
           : type == QUANT_Q5_1                       ? 6
           : type == QUANT_Q4_K                       ? 36
           : type == QUANT_Q5_K                       ? 44
           : type == QUANT_Q6_K                       ? 52
                                                      : 0;
}
static inline int repack_has_tail(int type)
{
    return type == QUANT_Q4_0 || type == QUANT_Q8_0 || type == QUANT_Q5_0 || type == QUANT_Q6_K;
}
/* Bytes from the start of a tile to the words of block b, and to its d. */
static inline size_t repack_block_offset(int type, size_t b)
{
    size_t bytes = repack_block_words(type) * REPACK_ROWS * 4;
    return repack_has_tail(type) ? b / 2 * (2 * bytes + 64) + b % 2 * bytes : b * bytes;
}
static inline size_t repack_tail_offset(int type, size_t n_blocks, size_t b)
{
    size_t bytes = repack_block_words(type) * REPACK_ROWS * 4;
    return b / 2 * (2 * bytes + 64) + (b / 2 * 2 + 1 < n_blocks ? 2 * bytes : bytes) + b % 2 * 32;
}
/* Bytes of one tile (multiple of 64), 0 when type/n_cols do not fit. */
size_t repack_tile_bytes(int type, size_t n_cols);
static inline size_t repack_n_tiles(size_t n_rows)
{
    return (n_rows + REPACK_ROWS - 1) / REPACK_ROWS;
}
/* Bytes of a whole matrix: n_tiles * tile_bytes. */
size_t repack_bytes(int type, size_t n_rows, size_t n_cols);
/* n_rows (1..16) consecutive rows as they lie in GGUF -> one whole tile at a multiple of REPACK_ALIGN (fully written, absent rows
 * as zero; most of it past the caches). */
void repack_tile(int type, const void *rows, size_t n_rows, size_t n_cols, void *tile);
/* The reverse, for one row; for tests and debugging. */
void repack_extract_row(int type, const void *tile, size_t row, size_t n_cols, void *ret_row);

#endif
