/* SPDX-License-Identifier: MIT
 * attn_body.h on the lanes of lanes_avx512.h. Owns nothing, allocates nothing; any thread. */
#include "kernels/lanes_avx512.h"

#include "kernels/attn_body.h"
