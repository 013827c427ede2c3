/* SPDX-License-Identifier: MIT
 * Chooses a kernel variant by what the processor and the system support. No state; any thread. */
#include "kernels/cpu.h"

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "kernels/attn.h"
#include "kernels/gemm.h"
#include "kernels/quant_ops.h"
#include "kernels/vec.h"

static const struct cpu_kernels variants[] = {
#ifdef TANDEM_X86_KERNELS
    {"avx512", &gemm_avx512, &vec_avx512, &attn_avx512, &quant_ops_avx512},
    {"avx2", &gemm_avx2, &vec_avx2, &attn_avx2, &quant_ops_avx2},
#endif
    {"ref", &gemm_ref, &vec_ref, &attn_ref, &quant_ops_ref},
};
#define N_VARIANTS (sizeof(variants) / sizeof(variants[0]))

/* __builtin_cpu_supports also asks whether the system saves the registers. */
static bool supported(const char *name)
{
#ifdef TANDEM_X86_KERNELS
    if (strcmp(name, "avx2") == 0)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (strcmp(name, "avx512") == 0)
        return supported("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#endif
    return strcmp(name, "ref") == 0;
}

const struct cpu_kernels *cpu_select(const char *forced)
{
    bool any = !forced || strcmp(forced, "auto") == 0;
    for (size_t i = 0; i < N_VARIANTS; i++) {
        if ((any || strcmp(forced, variants[i].name) == 0) && supported(variants[i].name))
            return &variants[i];
    }
    return NULL;
}

const char *cpu_available(void)
{
    return supported("avx512") ? "ref avx2 avx512" : supported("avx2") ? "ref avx2" : "ref";
}

int cpu_count(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}
