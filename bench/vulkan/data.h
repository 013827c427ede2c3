/* SPDX-License-Identifier: MIT
 * Random matrices and activations for bench_vulkan, as the CPU kernels and as the shaders want them. One thread. */
#ifndef TANDEM_BENCH_VULKAN_DATA_H
#define TANDEM_BENCH_VULKAN_DATA_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/gemm.h"

/* Ends the program when memory runs out. Returns owned, zeroed, 64-aligned. */
void *data_alloc(size_t bytes);
float data_random(void); /* uniform in -1 .. 1, the same sequence in every run */

struct data_matrix {
    struct gemm_matrix m;
    void *tiles;   /* owned */
    uint8_t *rows; /* owned: as in GGUF */
    size_t bytes;  /* of tiles */
};
/* distinct: rows that are drawn anew; the others repeat them. */
struct data_matrix data_matrix_make(int type, uint32_t n_rows, uint32_t n_cols, uint32_t distinct);
void data_matrix_free(struct data_matrix *m);

/* One token prepared by the CPU kernels -> words as shaders/act.glsl, or the floats. Returns the number of words. */
uint32_t data_act(int type, const void *act, uint32_t n_cols, uint32_t *ret_words);
uint32_t data_act_words(int type, uint32_t n_cols);
/* What such a token stands for; false when a sum of halves is not that of its quants. */
int data_act_floats(int type, const uint32_t *words, uint32_t n_cols, float *ret);

#endif
