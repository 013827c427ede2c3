/* SPDX-License-Identifier: MIT
 * Chooses a kernel variant by what the processor and the system support. No state; any thread. */
#include "kernels/cpu.h"

#ifdef TANDEM_X86_KERNELS
#include <cpuid.h>
#endif
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
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

#ifdef TANDEM_X86_KERNELS
/* clang 14 does not know "f16c" in __builtin_cpu_supports: CPUID leaf 1, ECX bit 29 (Intel SDM, CPUID). */
static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
}
#endif

/* __builtin_cpu_supports also asks whether the system saves the registers. */
static bool supported(const char *name)
{
#ifdef TANDEM_X86_KERNELS
    if (strcmp(name, "avx2") == 0)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
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

/* Lowest processor of the core that `cpu` belongs to; cpu itself when the system does not say. */
static int first_of_core(int cpu)
{
    char path[96];
    int first;
    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *f = fopen(path, "re");
    if (!f)
        return cpu;
    if (fscanf(f, "%d", &first) != 1)
        first = cpu;
    fclose(f);
    return first;
}

int cpu_order(int *ret, int max)
{
    cpu_set_t set, seen;
    int n = 0, cores = 0;
    CPU_ZERO(&seen);
    if (sched_getaffinity(0, sizeof(set), &set) < 0) {
        CPU_ZERO(&set);
        CPU_SET(0, &set);
    }
    for (int pass = 0; pass < 2; pass++) {
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if (!CPU_ISSET(cpu, &set))
                continue;
            int first = first_of_core(cpu);
            bool another = first >= 0 && first < CPU_SETSIZE && CPU_ISSET(first, &seen);
            if (pass == 0 && !another) {
                CPU_SET(first, &seen);
                CPU_CLR(cpu, &set);
                cores++;
            } else if (pass == 0) {
                continue;
            }
            if (n < max)
                ret[n++] = cpu;
        }
    }
    return cores;
}
