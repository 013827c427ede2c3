// SPDX-License-Identifier: MIT
// y = r + x / sqrt(mean(x^2) + eps) * w, where x is the sum of the parts that a split product left, times the token's scale where
// SCALED (scale.comp). One workgroup per token (dispatch x = tokens); y may be the buffer of r. A thread takes
// HOLD = ceil(n / 4 / THREADS) times four columns and keeps them. n is a multiple of 4.
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 128;
layout(constant_id = 1) const uint HOLD = 1;
layout(constant_id = 2) const uint SCALED = 0;

layout(set = 0, binding = 0, std430) readonly restrict buffer X { vec4 v[]; } x;
layout(set = 0, binding = 1, std430) readonly restrict buffer Norm { vec4 v[]; } w;
layout(set = 0, binding = 2, std430) readonly buffer R { vec4 v[]; } r;
layout(set = 0, binding = 3, std430) writeonly buffer Y { vec4 v[]; } y;
layout(set = 0, binding = 4, std430) readonly restrict buffer Scales { float v[]; } scales;

layout(push_constant, std430) uniform Args {
    uint n;
    float eps;
    uint n_parts, x_part, x_stride; // parts; from part to part, from token to token of x, in vec4
    uint x_at, w_at, r_at, y_at;    // in vec4; tokens of r and y lie n floats apart
    uint scales_at;
} args;

#include "sum.glsl"

void main()
{
    uint me = gl_LocalInvocationID.x, n = args.n / 4, t = gl_WorkGroupID.x;
    float by = SCALED != 0 ? scales.v[args.scales_at + t] : 1.0;
    vec4 v[HOLD], scale[HOLD], rest[HOLD], sum = vec4(0.0);
    [[unroll]] for (uint k = 0; k < HOLD; k++) {
        uint i = me + k * THREADS;
        v[k] = scale[k] = rest[k] = vec4(0.0);
        if (i < n) {
            for (uint p = 0; p < args.n_parts; p++)
                v[k] += x.v[args.x_at + p * args.x_part + t * args.x_stride + i];
            scale[k] = w.v[args.w_at + i];
            rest[k] = r.v[args.r_at + t * n + i];
        }
        v[k] *= by;
    }
    [[unroll]] for (uint k = 0; k < HOLD; k++)
        sum = fma(v[k], v[k], sum);
    float s = 1.0 / sqrt(sum_all(sum.x + sum.y + sum.z + sum.w) / float(args.n) + args.eps);
    [[unroll]] for (uint k = 0; k < HOLD; k++) {
        uint i = me + k * THREADS;
        if (i < n)
            y.v[args.y_at + t * n + i] = rest[k] + v[k] * s * scale[k];
    }
}
