/* SPDX-License-Identifier: MIT
 * The face of the search: its lanes are the best that this processor has, their results the same (quant_search_body.h). Called by
 * the quantizer's threads. No state, no allocation; any thread. */
#include "kernels/quant_search.h"

#include "kernels/quant.h"
#include "kernels/quant_ops.h"

void quant_search_row(int type, const float *src, const float *weights, void *dst, size_t n)
{
    quant_ops_best()->search(type, src, weights, dst, n);
}

double quant_search_error(int type, const float *src, const float *weights, const void *quantized, size_t n)
{
    float y[QUANT_SUPER_BLOCK];
    double sum = 0;
    size_t step = quant_is_integer(type) ? quant_block_elems(type) : 1, bytes = quant_block_bytes(type);
    for (size_t i = 0; i < n; i += step) {
        quant_dequantize_row(type, (const char *)quantized + i / step * bytes, y, step);
        for (size_t j = 0; j < step; j++) {
            double e = (double)src[i + j] - (double)y[j];
            sum += (weights ? (double)weights[i + j] : 1.0) * e * e;
        }
    }
    return sum;
}
