/* SPDX-License-Identifier: MIT
 * Where a text can be cut so that its parts have the ids of the whole. A tokenizer merges characters only into pieces of its
 * vocabulary: where no piece has the two characters on both sides of a cut next to each other, nothing reaches across it.
 * Threads: any, once all pieces are added. */
#ifndef TANDEM_COORDINATOR_NEIGHBOURS_H
#define TANDEM_COORDINATOR_NEIGHBOURS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct neighbours;

/* Takes 2 to 4 bytes for each piece, at least 10 KiB. NULL: out of memory. */
struct neighbours *neighbours_open(uint32_t n_pieces);
void neighbours_close(struct neighbours *nb);
/* UTF-8; U+2581 and a space are the same. */
void neighbours_add(struct neighbours *nb, const char *piece, size_t n);

/* Lengths are those that sentencepiece sees: a space is U+2581 there, and a byte that is part of no character is U+FFFD, both three
 * bytes. */
struct neighbours_bounds {
    size_t part;    /* a part ends at the first place behind so many bytes, */
    size_t stretch; /* but where there is none in so many, at the last one before */
    bool strict;    /* false: a longer stretch without any place becomes one part */
};
/* The code point that a text begins with, n > 0. */
uint32_t neighbours_first(const char *text, size_t n);
/* Bytes of the first part of text, n > 0; 0: it begins with more than b->stretch bytes without a place to cut at. */
size_t neighbours_cut(const struct neighbours *nb, const struct neighbours_bounds *b, const char *text, size_t n);

#ifdef __cplusplus
}
#endif
#endif
