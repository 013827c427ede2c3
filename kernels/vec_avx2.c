/* SPDX-License-Identifier: MIT
 * vec_body.h on the lanes of lanes_avx2.h. Owns nothing, allocates nothing; any thread. */
#include "kernels/lanes_avx2.h"

#include "kernels/vec_body.h"
