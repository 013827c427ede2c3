/* SPDX-License-Identifier: MIT
 * The scalar face of the shared exp, and RoPE's angles. Pure functions, any thread. */
#include "kernels/vec.h"

#include <math.h>

#include "kernels/lanes_ref.h"

#include "kernels/exp_body.h"

float vec_expf(float x)
{
    return exp16(v16_set(x)).v[0];
}

void vec_rope_table(uint32_t pos, size_t head_dim, double theta, double factor, float *ret_cos, float *ret_sin)
{
    for (size_t i = 0; i < head_dim / 2; i++) {
        double angle = (double)pos * pow(theta, -2.0 * (double)i / (double)head_dim) / factor;
        ret_cos[i] = (float)cos(angle);
        ret_sin[i] = (float)sin(angle);
    }
}
