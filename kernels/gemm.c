/* SPDX-License-Identifier: MIT
 * Sizes of prepared activations, the same for every variant. */
#include "kernels/gemm.h"

#include "kernels/gemm_act.h"
#include "kernels/quant.h"

size_t gemm_act_bytes(int type, size_t n_cols)
{
    size_t n = quant_is_integer(type) ? 5 * gemm_act_part(n_cols) + n_cols : n_cols * sizeof(float);
    return (n + 63) / 64 * 64;
}

int gemm_same_act(int type_a, int type_b)
{
    return quant_is_integer(type_a) == quant_is_integer(type_b);
}
