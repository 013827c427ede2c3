/* SPDX-License-Identifier: MIT
 * vec_body.h on the lanes of lanes_ref.h. Owns nothing, allocates nothing; any thread. */
#include "kernels/lanes_ref.h"

#include "kernels/vec_body.h"
