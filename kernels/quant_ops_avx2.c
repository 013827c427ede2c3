/* SPDX-License-Identifier: MIT
 * The conversions of quant_ops.h with AVX2, FMA and F16C. Called by the quantizer's threads. Owns nothing, allocates nothing; any
 * thread. */
#include "kernels/lanes_avx2.h"

#include "kernels/quant_ops_body.h"
