/* SPDX-License-Identifier: MIT
 * attn_body.h on the lanes of lanes_ref.h. Owns nothing, allocates nothing; any thread. */
#include "kernels/lanes_ref.h"

#include "kernels/attn_body.h"
