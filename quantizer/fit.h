/* SPDX-License-Identifier: MIT
 * The best mix of types whose whole output fits into a number of bytes. Every matrix begins with the smallest type of a ladder
 * (q4_K, q5_K, q6_K, q8_0, bf16; where rows are no multiple of 256: q4_0, q5_0, q8_0, bf16). Then, as long as something fits, the
 * step is taken that lowers the error most per byte. The error of a matrix is its squared error relative to its own size, measured
 * on a few of its rows, times a weight: 2 for attn_v and ffn_down, 8 for the output matrix, 1 for the others.
 * Same input, same choice. Threads: one. */
#ifndef TANDEM_QUANTIZER_FIT_H
#define TANDEM_QUANTIZER_FIT_H

#include <stdint.h>
#include <stdio.h>

struct err;
struct recipe;
struct recipe_options;
struct source;

/* The smallest recipe of the ladder, with the overrides. */
int fit_smallest(const struct source *s, const struct recipe_options *o, struct recipe *ret, struct err *err);
/* Improves r, whose output has `bytes`, up to `limit`. alignment: of tensor data. Reads a little of every matrix. */
int fit_improve(const struct source *s, uint64_t bytes, uint64_t limit, uint32_t alignment, struct recipe *r, struct err *err);
/* "ffn_down: 10 q4_K, 2 q6_K" for kind number i of matrix; false when there is none. */
int fit_describe(const struct source *s, const struct recipe *r, unsigned i, char *buf, unsigned buf_size);
#define FIT_KINDS 9u

#endif
