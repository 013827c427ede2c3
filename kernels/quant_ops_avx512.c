/* SPDX-License-Identifier: MIT
 * The conversions of quant_ops.h with AVX-512. Called by the quantizer's threads. Owns nothing, allocates nothing; any thread. */
#include "kernels/lanes_avx512.h"

#include "kernels/quant_ops_body.h"
