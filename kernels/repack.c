/* SPDX-License-Identifier: MIT
 * Moves rows of a GGUF tensor into tiles of 16 interleaved rows and back. Bits are moved, never changed: each block becomes words
 * of 4 bytes in the order of repack.h, and words of 16 rows lie side by side. Pure functions, any thread; the loader calls
 * repack_tile once per tile when it fills a segment. */
#include "kernels/repack.h"

#include <stdbool.h>
#include <string.h>

#define R REPACK_ROWS
#define MAX_WORDS 52
#define NIBBLES 0x0f0f0f0fu

static size_t round_up(size_t n)
{
    return (n + REPACK_ALIGN - 1) / REPACK_ALIGN * REPACK_ALIGN;
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

/* 32 bits, bit 4g + j <-> bit g of byte j. */
static uint32_t spread(uint32_t high)
{
    uint32_t h = 0;
    for (int g = 0; g < 8; g++) {
        uint32_t four = high >> 4 * g & 15; /* bit j to byte j: one multiplication copies the bits, one mask picks them */
        h |= (four * 0x00204081u & 0x01010101u) << g;
    }
    return h;
}

static uint32_t gather(uint32_t h)
{
    uint32_t high = 0;
    for (int i = 0; i < 32; i++)
        high |= (h >> (8 * (i % 4) + i / 4) & 1) << i;
    return high;
}

/* 32 elements whose nibbles are the low (shift 0) or high (4) ones of eight words -> four words as q4_0, and back (adding). */
static void nibbles_in(const uint32_t *qs, int shift, uint32_t *ret_w)
{
    for (int v = 0; v < 4; v++)
        ret_w[v] = (qs[v] >> shift & NIBBLES) | (qs[v + 4] >> shift & NIBBLES) << 4;
}

static void nibbles_out(const uint32_t *w, int shift, uint32_t *qs)
{
    for (int v = 0; v < 4; v++) {
        qs[v] |= (w[v] & NIBBLES) << shift;
        qs[v + 4] |= (w[v] >> 4 & NIBBLES) << shift;
    }
}

static void q45_k_in(bool high, const uint32_t *b, uint32_t *w)
{
    const uint32_t *qh = b + 4, *qs = high ? b + 12 : b + 4;
    memcpy(w, b, 16);
    w += 4;
    for (int s = 0; s < 8; s++) {
        if (high) {
            uint32_t h = 0;
            for (int g = 0; g < 8; g++)
                h |= (qh[g] >> s & 0x01010101u) << g;
            *w++ = h;
        }
        nibbles_in(qs + 8 * (s / 2), 4 * (s % 2), w);
        w += 4;
    }
}

static void q45_k_out(bool high, const uint32_t *w, uint32_t *b)
{
    uint32_t *qh = b + 4, *qs = high ? b + 12 : b + 4;
    memset(b, 0, high ? 176 : 144);
    memcpy(b, w, 16);
    w += 4;
    for (int s = 0; s < 8; s++) {
        for (int g = 0; high && g < 8; g++)
            qh[g] |= (*w >> g & 0x01010101u) << s;
        w += high;
        nibbles_out(w, 4 * (s % 2), qs + 8 * (s / 2));
        w += 4;
    }
}

/* Words 0..31 of a block are ql, 32..47 qh, 48..51 scales. Run s of 32 elements: half s / 4; in it the two low runs and the two
 * high ones share their words. */
static void q6_k_in(const uint32_t *b, uint32_t *w)
{
    memcpy(w, b + 48, 16);
    w += 4;
    for (int s = 0; s < 8; s++, w += 6) {
        const uint32_t *ql = b + 16 * (s / 4) + 8 * (s % 2), *qh = b + 32 + 8 * (s / 4);
        w[0] = w[1] = 0;
        for (int g = 0; g < 8; g++)
            w[g / 4] |= (qh[g] >> 2 * (s % 4) & 0x03030303u) << 2 * (g % 4);
        nibbles_in(ql, s % 4 / 2 * 4, w + 2);
    }
}

static void q6_k_out(const uint32_t *w, uint32_t *b)
{
    memset(b, 0, 192);
    memcpy(b + 48, w, 16);
    w += 4;
    for (int s = 0; s < 8; s++, w += 6) {
        uint32_t *ql = b + 16 * (s / 4) + 8 * (s % 2), *qh = b + 32 + 8 * (s / 4);
        for (int g = 0; g < 8; g++)
            qh[g] |= (w[g / 4] >> 2 * (g % 4) & 0x03030303u) << 2 * (s % 4);
        nibbles_out(w + 2, s % 4 / 2 * 4, ql);
    }
}

/* A block without its tail -> its words. */
static void words_in(int type, const uint8_t *block, uint32_t *w)
{
    uint32_t b[MAX_WORDS];
    size_t head = repack_has_tail(type) && type != QUANT_Q6_K ? 2 : 0;
    memcpy(b, block + head, repack_block_words(type) * 4);
    switch (type) {
    case QUANT_Q4_K:
    case QUANT_Q5_K:
        q45_k_in(type == QUANT_Q5_K, b, w);
        break;
    case QUANT_Q6_K:
        q6_k_in(b, w);
        break;
    default:
        memcpy(w, b, repack_block_words(type) * 4);
        if (type == QUANT_Q5_0)
            w[0] = spread(b[0]);
        else if (type == QUANT_Q5_1)
            w[1] = spread(b[1]);
        break;
    }
}

static void words_out(int type, const uint32_t *w, uint8_t *block)
{
    uint32_t b[MAX_WORDS];
    size_t head = repack_has_tail(type) && type != QUANT_Q6_K ? 2 : 0;
    switch (type) {
    case QUANT_Q4_K:
    case QUANT_Q5_K:
        q45_k_out(type == QUANT_Q5_K, w, b);
        break;
    case QUANT_Q6_K:
        q6_k_out(w, b);
        break;
    default:
        memcpy(b, w, repack_block_words(type) * 4);
        if (type == QUANT_Q5_0)
            b[0] = gather(w[0]);
        else if (type == QUANT_Q5_1)
            b[1] = gather(w[1]);
        break;
    }
    memcpy(block + head, b, repack_block_words(type) * 4);
}

static size_t tail_at(int type)
{
    return type == QUANT_Q6_K ? 208 : 0;
}

static void block_tile(int type, const uint8_t *rows, size_t n_rows, size_t n_cols, uint8_t *tile)
{
    size_t blocks = n_cols / quant_block_elems(type), words = repack_block_words(type), bytes = quant_block_bytes(type);
    uint32_t w[MAX_WORDS];
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t b = 0; b < blocks; b++) {
            const uint8_t *src = rows + (r * blocks + b) * bytes;
            words_in(type, src, w);
            for (size_t v = 0; v < words; v++)
                memcpy(tile + repack_block_offset(type, b) + (v * R + r) * 4, &w[v], 4);
            if (repack_has_tail(type))
                memcpy(tile + repack_tail_offset(type, blocks, b) + r * 2, src + tail_at(type), 2);
        }
    }
}

void repack_tile(int type, const void *rows, size_t n_rows, size_t n_cols, void *tile)
{
    if (n_rows < R || repack_tile_bytes(type, n_cols) != quant_row_bytes(type, n_cols) * R)
        memset(tile, 0, repack_tile_bytes(type, n_cols));
    if (quant_is_integer(type))
        block_tile(type, rows, n_rows, n_cols, tile);
    else
        scalar_tile(rows, n_rows, n_cols, quant_block_bytes(type), tile);
}

void repack_extract_row(int type, const void *tile, size_t row, size_t n_cols, void *ret_row)
{
    const uint8_t *t = tile;
    uint8_t *out = ret_row;
    if (!quant_is_integer(type)) {
        size_t size = quant_block_bytes(type);
        for (size_t k = 0; k < n_cols; k++)
            memcpy(out + k * size, t + (k * R + row) * size, size);
        return;
    }
    size_t blocks = n_cols / quant_block_elems(type), words = repack_block_words(type), bytes = quant_block_bytes(type);
    uint32_t w[MAX_WORDS];
    for (size_t b = 0; b < blocks; b++) {
        for (size_t v = 0; v < words; v++)
            memcpy(&w[v], t + repack_block_offset(type, b) + (v * R + row) * 4, 4);
        words_out(type, w, out + b * bytes);
        if (repack_has_tail(type))
            memcpy(out + b * bytes + tail_at(type), t + repack_tail_offset(type, blocks, b) + row * 2, 2);
    }
}
