/* SPDX-License-Identifier: MIT
 * The choice among the variants of quant_ops.h, for callers that use no other kernel: the quantizer, which asks for every row. Owns
 * nothing but that choice, made once; any thread. */
#include "kernels/quant_ops.h"

#include <stdatomic.h>
#include <stddef.h>

#include "kernels/cpu.h"

const struct quant_ops *quant_ops_best(void)
{
    static _Atomic(const struct quant_ops *) best; /* asking the processor traps in a virtual machine */
    const struct quant_ops *ops = atomic_load_explicit(&best, memory_order_relaxed);
    if (!ops) {
        ops = cpu_select(NULL)->quant;
        atomic_store_explicit(&best, ops, memory_order_relaxed);
    }
    return ops;
}
