/* SPDX-License-Identifier: MIT
 * Quantization that looks for the scales: per block the (weighted) squared error of what dequantization will give, with scales as
 * the format rounds them, is searched downwards from the reference result and never ends above it. Deterministic: a block's bytes
 * depend on its values and weights alone, not on the variant, the row or the machine. Types without a search (the scalar ones,
 * q4_1, q5_1) get the reference result. A block whose values or weights are not finite does, too. No allocation; any thread. */
#ifndef TANDEM_KERNELS_QUANT_SEARCH_H
#define TANDEM_KERNELS_QUANT_SEARCH_H

#include <stddef.h>

/* One row: n a multiple of the type's block. weights: [n] importance of the columns, >= 0, or NULL for 1 each. The measure:
 * sum over the row of weight * (src - dequantized)^2. */
void quant_search_row(int type, const float *src, const float *weights, void *dst, size_t n);

/* That sum for n quantized elements, in double, in their order; for tests and for choosing. */
double quant_search_error(int type, const float *src, const float *weights, const void *quantized, size_t n);

#endif
