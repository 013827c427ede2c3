/* SPDX-License-Identifier: MIT
 * Sizes of prepared activations, the same for every variant. */
#include "kernels/gemm.h"

#include "kernels/gemm_act.h"
#include "kernels/quant.h"

static int is_integer(int type)
{
    return quant_block_elems(type) == QUANT_BLOCK;
}

size_t gemm_act_bytes(int type, size_t n_cols)
{
    size_t n = is_integer(type) ? 2 * gemm_act_part(n_cols) + n_cols : n_cols * sizeof(float);
    return (n + 63) / 64 * 64;
}

int gemm_same_act(int type_a, int type_b)
{
    return is_integer(type_a) == is_integer(type_b);
}
