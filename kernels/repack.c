/* SPDX-License-Identifier: MIT
 * Moves rows of a GGUF tensor into tiles of 16 interleaved rows and back. Bits are moved, never changed: each block becomes words
 * of 4 bytes in the order of repack.h, and words of 16 rows lie side by side. Pure functions, any thread; the loader calls
 * repack_tile once per tile when it fills a segment. */
#include "kernels/repack.h"

#include <stdbool.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define R REPACK_ROWS
#define MAX_WORDS 52
#define NIBBLES 0x0f0f0f0fu
#define LINE 64
#define AHEAD 512 /* bytes of a row; sixteen rows are more streams than processors follow by themselves */

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

typedef uint32_t words4 __attribute__((vector_size(16)));
typedef uint16_t halves8 __attribute__((vector_size(16)));

static words4 load4(const void *p)
{
    words4 v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static halves8 load8(const void *p)
{
    halves8 v;
    memcpy(&v, p, sizeof(v));
    return v;
}

/* Past the caches: a segment is larger than they are, and a line that is not fetched to be overwritten is half the work of memory.
 * Only where all of a tile goes this way, from registers: other stores between these cost more than is won. */
static inline __attribute__((always_inline)) void put(bool past, uint8_t *out, words4 v)
{
#ifdef __SSE2__
    if (past) {
        _mm_stream_si128((__m128i *)(void *)out, (__m128i)v);
        return;
    }
#endif
    memcpy(out, &v, sizeof(v));
}

/* What was put is there before anything that is stored from now on. */
static void put_end(void)
{
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* Four words of each of four rows `from` bytes apart, to [word][row]: word v of all rows at out + v * stride bytes. */
static inline __attribute__((always_inline)) void transpose4(bool past, const uint8_t *rows, size_t from, uint8_t *out,
                                                             size_t stride)
{
    words4 a = load4(rows), b = load4(rows + from), c = load4(rows + 2 * from), d = load4(rows + 3 * from);
    words4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    words4 cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const words4 t[4] = {__builtin_shufflevector(ab, cd, 0, 1, 4, 5), __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
                         __builtin_shufflevector(AB, CD, 0, 1, 4, 5), __builtin_shufflevector(AB, CD, 2, 3, 6, 7)};
    for (int v = 0; v < 4; v++)
        put(past, out + (size_t)v * stride, t[v]);
}

/* Eight halves of each of eight rows `from` bytes apart, likewise. */
static void transpose8(const uint8_t *rows, size_t from, uint8_t *out, size_t stride)
{
    halves8 x[8], y[8];
    for (int i = 0; i < 8; i++)
        x[i] = load8(rows + (size_t)i * from);
    for (int step = 0; step < 3; step++) { /* row i beside row i + 4, three times */
        for (int i = 0; i < 4; i++) {
            y[2 * i] = __builtin_shufflevector(x[i], x[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            y[2 * i + 1] = __builtin_shufflevector(x[i], x[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        memcpy(x, y, sizeof(x));
    }
    for (int v = 0; v < 8; v++)
        put(true, out + (size_t)v * stride, (words4)x[v]);
}

/* The next `bytes` of sixteen rows. */
static inline __attribute__((always_inline)) void fetch_ahead(const uint8_t *rows, size_t row, size_t bytes)
{
    for (size_t r = 0; r < R; r++) {
        for (size_t at = 0; at < bytes; at += LINE)
            __builtin_prefetch(rows + r * row + AHEAD + at);
    }
}

static void scalar_tile(const uint8_t *rows, size_t n_rows, size_t n_cols, size_t size, uint8_t *tile)
{
    size_t step = 16 / size, k = 0, row = n_cols * size;
    for (; n_rows == R && k + step <= n_cols; k += step) {
        if (k * size % LINE == 0)
            fetch_ahead(rows + k * size, row, LINE);
        for (size_t r = 0; r < R; r += step) {
            const uint8_t *from = rows + r * row + k * size;
            if (size == 4)
                transpose4(true, from, row, tile + (k * R + r) * 4, R * 4);
            else
                transpose8(from, row, tile + (k * R + r) * 2, R * 2);
        }
    }
    for (; k < n_cols; k++) {
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

/* A block's words lie in GGUF as they do in a tile. */
static bool as_it_is(int type)
{
    return type == QUANT_Q4_0 || type == QUANT_Q8_0 || type == QUANT_Q4_1;
}

/* One block of 16 rows: a cache line of the tile is written at once. Words that have to be made are all made first: a load of
 * sixteen bytes behind four stores of four would wait for them. */
static inline __attribute__((always_inline)) void block_of_rows(int type, const uint8_t *src, size_t row, size_t words,
                                                                uint8_t *out)
{
    uint32_t w[R][MAX_WORDS];
    size_t head = repack_has_tail(type) && type != QUANT_Q6_K ? 2 : 0;
    for (size_t r = 0; r < R && !as_it_is(type); r++)
        words_in(type, src + r * row, w[r]);
    const uint8_t *from = as_it_is(type) ? src + head : (const uint8_t *)w;
    const size_t step = as_it_is(type) ? row : sizeof(w[0]);
    for (size_t v = 0; v < words / 4 * 4; v += 4) {
        for (size_t r = 0; r < R; r += 4)
            transpose4(as_it_is(type), from + r * step + v * 4, step, out + (v * R + r) * 4, R * 4);
    }
    for (size_t v = words / 4 * 4; v < words; v++) {
        for (size_t r = 0; r < R; r += 4) {
            uint32_t x[4];
            for (size_t i = 0; i < 4; i++)
                memcpy(&x[i], from + (r + i) * step + v * 4, 4);
            put(as_it_is(type), out + (v * R + r) * 4, (words4){x[0], x[1], x[2], x[3]});
        }
    }
}

/* d of a block of 16 rows. */
static inline __attribute__((always_inline)) void tail_of_rows(int type, const uint8_t *src, size_t row, uint8_t *out)
{
    for (size_t k = 0; k < R; k += 8) {
        uint16_t d[8];
        for (size_t r = 0; r < 8; r++)
            memcpy(&d[r], src + (k + r) * row + tail_at(type), 2);
        const halves8 all = {d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]}; /* in a register: not loaded behind its stores */
        put(as_it_is(type), out + k * 2, (words4)all);
    }
}

static inline __attribute__((always_inline)) void tile_of(int type, const uint8_t *rows, size_t n_rows, size_t n_cols,
                                                          uint8_t *tile)
{
    size_t blocks = n_cols / quant_block_elems(type), words = repack_block_words(type), bytes = quant_block_bytes(type);
    size_t row = blocks * bytes, every = bytes < LINE ? LINE / bytes : 1;
    uint32_t w[MAX_WORDS];
    for (size_t b = 0; b < blocks; b++) {
        const uint8_t *src = rows + b * bytes;
        uint8_t *out = tile + repack_block_offset(type, b);
        if (n_rows == R && as_it_is(type) && b % every == 0)
            fetch_ahead(src, row, bytes);
        if (n_rows == R) {
            block_of_rows(type, src, row, words, out);
            if (repack_has_tail(type))
                tail_of_rows(type, src, row, tile + repack_tail_offset(type, blocks, b));
            continue;
        }
        for (size_t r = 0; r < n_rows; r++) {
            words_in(type, src + r * row, w);
            for (size_t v = 0; v < words; v++)
                memcpy(out + (v * R + r) * 4, &w[v], 4);
        }
        for (size_t r = 0; repack_has_tail(type) && r < n_rows; r++)
            memcpy(tile + repack_tail_offset(type, blocks, b) + r * 2, src + r * row + tail_at(type), 2);
    }
}

/* The type is a constant in each. */
static void block_tile(int type, const uint8_t *rows, size_t n_rows, size_t n_cols, uint8_t *tile)
{
    switch (type) {
    case QUANT_Q4_0:
        tile_of(QUANT_Q4_0, rows, n_rows, n_cols, tile);
        break;
    case QUANT_Q8_0:
        tile_of(QUANT_Q8_0, rows, n_rows, n_cols, tile);
        break;
    case QUANT_Q4_1:
        tile_of(QUANT_Q4_1, rows, n_rows, n_cols, tile);
        break;
    case QUANT_Q5_0:
        tile_of(QUANT_Q5_0, rows, n_rows, n_cols, tile);
        break;
    case QUANT_Q5_1:
        tile_of(QUANT_Q5_1, rows, n_rows, n_cols, tile);
        break;
    case QUANT_Q4_K:
        tile_of(QUANT_Q4_K, rows, n_rows, n_cols, tile);
        break;
    case QUANT_Q5_K:
        tile_of(QUANT_Q5_K, rows, n_rows, n_cols, tile);
        break;
    default:
        tile_of(QUANT_Q6_K, rows, n_rows, n_cols, tile);
        break;
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
    put_end();
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
