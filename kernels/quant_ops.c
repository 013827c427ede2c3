/* SPDX-License-Identifier: MIT
 * The choice among the variants of quant_ops.h, for callers that use no other kernel: the quantizer. No state; any thread. */
#include "kernels/quant_ops.h"

#include <stddef.h>

#include "kernels/cpu.h"

const struct quant_ops *quant_ops_best(void)
{
    return cpu_select(NULL)->quant;
}
