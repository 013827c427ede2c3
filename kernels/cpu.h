/* SPDX-License-Identifier: MIT
 * Which kernel variant this processor runs. Chosen once at open; no globals. */
#ifndef TANDEM_KERNELS_CPU_H
#define TANDEM_KERNELS_CPU_H

struct gemm_ops;
struct vec_ops;
struct attn_ops;
struct quant_ops;

struct cpu_kernels {
    const char *name; /* "ref", "avx2" (AVX2+FMA+F16C), "avx512" (F, BW, VL, DQ, VNNI) */
    const struct gemm_ops *gemm;
    const struct vec_ops *vec;
    const struct attn_ops *attn;
    const struct quant_ops *quant;
};

/* forced: NULL or "auto" = best that the processor has. Returns NULL when `forced` is unknown or the processor lacks it. */
const struct cpu_kernels *cpu_select(const char *forced);
/* "ref avx2 avx512": those that this processor can run, for messages and HELLO. */
const char *cpu_available(void);
int cpu_count(void); /* processors this process may run on (affinity) */
/* The same processors, one of each core before the second of any, by Linux's topology in /sys; where it says nothing, each counts
 * as a core. ret: at most max ids. Returns the number of cores. */
int cpu_order(int *ret, int max);

#endif
