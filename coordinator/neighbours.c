/* SPDX-License-Identifier: MIT
 * One bit for each pair of ASCII characters, and for the others one of a table by hash: pairs that share a bit with a piece's only
 * cost a place to cut at. The table has sixteen to thirty-two bits for each piece. Owns the bits. */
#include "coordinator/neighbours.h"

#include <stdlib.h>

#include "proto/utf8.h"

#define ASCII 128u
#define TABLE_MIN 65536u
#define PIECE_BITS 16u

struct neighbours {
    uint32_t mask;  /* bits of the table less one */
    uint8_t bits[]; /* of the ASCII pairs, of the table */
};

struct character {
    uint32_t code;
    unsigned bytes, seen; /* in the text, and as sentencepiece sees it */
};

struct neighbours *neighbours_open(uint32_t n_pieces)
{
    uint32_t bits = TABLE_MIN;
    while (bits / PIECE_BITS < n_pieces && bits < UINT32_C(1) << 31)
        bits *= 2;
    struct neighbours *nb = calloc(1, sizeof(*nb) + (ASCII * ASCII + bits) / 8);
    if (nb)
        nb->mask = bits - 1;
    return nb;
}

void neighbours_close(struct neighbours *nb)
{
    free(nb);
}

/* As sentencepiece reads: a byte that is part of no character counts for itself. */
static struct character read_character(const char *text, size_t n)
{
    const unsigned char *p = (const unsigned char *)text;
    if (p[0] < 0x80)
        return (struct character){p[0], 1, p[0] == ' ' ? 3 : 1};
    int length = utf8_length(text, n);
    if (length <= 0)
        return (struct character){0xfffd, 1, 3};
    uint32_t code = p[0] & (0x7fu >> length);
    for (int i = 1; i < length; i++)
        code = code << 6 | (p[i] & 0x3fu);
    return (struct character){code == 0x2581 ? ' ' : code, (unsigned)length, (unsigned)length};
}

static size_t bit_of(const struct neighbours *nb, uint32_t a, uint32_t b)
{
    if (a < ASCII && b < ASCII)
        return a * ASCII + b;
    uint64_t both = (uint64_t)a << 21 | b; /* code points have 21 bits */
    return ASCII * ASCII + ((size_t)(both * UINT64_C(0x9e3779b97f4a7c15) >> 32) & nb->mask);
}

static bool in_piece(const struct neighbours *nb, uint32_t a, uint32_t b)
{
    size_t i = bit_of(nb, a, b);
    return nb->bits[i / 8] >> i % 8 & 1;
}

void neighbours_add(struct neighbours *nb, const char *piece, size_t n)
{
    uint32_t before = 0;
    for (size_t i = 0; i < n;) {
        struct character c = read_character(piece + i, n - i);
        if (i) {
            size_t bit = bit_of(nb, before, c.code);
            nb->bits[bit / 8] |= (uint8_t)(1u << bit % 8);
        }
        before = c.code;
        i += c.bytes;
    }
}

uint32_t neighbours_first(const char *text, size_t n)
{
    return read_character(text, n).code;
}

size_t neighbours_cut(const struct neighbours *nb, const struct neighbours_bounds *b, const char *text, size_t n)
{
    size_t seen = 0, place = 0; /* place: the last one so far */
    uint32_t before = 0;
    for (size_t i = 0; i < n;) {
        struct character c = read_character(text + i, n - i);
        if (i && !in_piece(nb, before, c.code)) {
            if (seen >= b->part)
                return i;
            place = i;
        }
        seen += c.seen;
        if (seen > b->stretch && (place || b->strict))
            return place;
        before = c.code;
        i += c.bytes;
    }
    return n;
}
