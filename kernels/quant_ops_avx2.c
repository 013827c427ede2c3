/* SPDX-License-Identifier: MIT
 * The conversions of quant_ops.h with AVX2, FMA and F16C. Called by the quantizer's threads. Owns nothing, allocates nothing; any
 * thread. */
#include "kernels/quant_ops.h"

#include <math.h>

#include "kernels/quant.h"

static bool add_finite(float *x, float add, size_t n, float limit)
{
    int bad = 0;
    for (size_t i = 0; i < n; i++) {
        x[i] += add;
        bad |= !(fabsf(x[i]) < limit);
    }
    return !bad;
}

const struct quant_ops quant_ops_avx2 = {
    .name = "avx2", .to_f32 = quant_dequantize_row, .from_f32 = quant_quantize_row, .add_finite = add_finite};
