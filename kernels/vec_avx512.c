/* SPDX-License-Identifier: MIT
 * vec_body.h on the lanes of lanes_avx512.h. Owns nothing, allocates nothing; any thread. */
#include "kernels/lanes_avx512.h"

#include "kernels/vec_body.h"
