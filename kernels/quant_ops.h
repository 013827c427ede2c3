/* SPDX-License-Identifier: MIT
 * Rows between f32 and the formats of GGUF, as fast as the processor allows: what the quantizer streams a checkpoint through.
 * Every variant gives the bytes of quant_quantize_row and quant_dequantize_row (quant.h), which the `ref` variant is made of.
 * No allocation, no globals. Threads: any. Source and destination need no alignment and must not overlap. */
#ifndef TANDEM_KERNELS_QUANT_OPS_H
#define TANDEM_KERNELS_QUANT_OPS_H

#include <stdbool.h>
#include <stddef.h>

struct quant_ops {
    const char *name; /* "ref", "avx2", "avx512" */
    /* n elements of `type` (any that quant.h knows; n a multiple of its block) to f32 and back. */
    void (*to_f32)(int type, const void *src, float *dst, size_t n);
    void (*from_f32)(int type, const float *src, void *dst, size_t n);
    /* x[i] += add, rounded once. True when afterwards every |x[i]| < limit; false also when one is NaN. limit may be INFINITY. All
     * elements are written in either case. */
    bool (*add_finite)(float *x, float add, size_t n, float limit);
    /* quant_search_row (quant_search.h). */
    void (*search)(int type, const float *src, const float *weights, void *dst, size_t n);
};

extern const struct quant_ops quant_ops_ref, quant_ops_avx2, quant_ops_avx512;

/* The fastest that this processor runs. */
const struct quant_ops *quant_ops_best(void);

#endif
