/* SPDX-License-Identifier: MIT
 * The conversions of quant_ops.h in plain C: what the SIMD variants must give, byte for byte. Called by the quantizer's threads
 * and by tests. Owns nothing, allocates nothing; any thread. */
#include "kernels/quant_ops.h"

#include <math.h>

#include "kernels/lanes_ref.h"

#include "kernels/quant_k_body.h"
#include "kernels/quant_search_body.h"

static bool add_finite(float *x, float add, size_t n, float limit)
{
    bool ok = true;
    for (size_t i = 0; i < n; i++) {
        x[i] += add;
        ok &= fabsf(x[i]) < limit;
    }
    return ok;
}

const struct quant_ops quant_ops_ref = {
    .name = "ref", .to_f32 = quant_dequantize_row, .from_f32 = quant_quantize_row, .add_finite = add_finite, .search = s_search};
