// SPDX-License-Identifier: MIT
// y = x / sqrt(mean(x^2) + eps) * w, one workgroup per token (dispatch x = tokens): as floats, as prepared activations, or both.
// A thread takes blocks of 32 columns, so that quantizing needs no other thread. n is a multiple of 32.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "act.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 128;
layout(constant_id = 1) const uint FLOATS = 0;
layout(constant_id = 2) const uint QUANTS = 1;

layout(set = 0, binding = 0, std430) readonly restrict buffer X { vec4 v[]; } x;
layout(set = 0, binding = 1, std430) readonly restrict buffer Norm { vec4 v[]; } w;
layout(set = 0, binding = 2, std430) writeonly restrict buffer Y { vec4 v[]; } y;
layout(set = 0, binding = 3, std430) writeonly restrict buffer Act { uvec4 v[]; } act;
layout(set = 0, binding = 3, std430) writeonly restrict buffer ActPairs { uvec2 v[]; } act_pairs;

layout(push_constant, std430) uniform Args {
    uint n;               // columns
    float eps;
    uint x_at, w_at;      // in vec4; tokens lie n floats apart
    uint y_at;
    uint act_at, act_stride; // in uvec4
} args;

shared float sums[THREADS];

void main()
{
    uint me = gl_LocalInvocationID.x, t = gl_WorkGroupID.x, from = args.x_at + t * (args.n / 4);
    vec4 sum = vec4(0.0);
    for (uint b = me; b < args.n / 32; b += THREADS)
        for (uint i = 0; i < 8; i++) {
            vec4 v = x.v[from + 8 * b + i];
            sum = fma(v, v, sum);
        }
    float total = sum.x + sum.y + sum.z + sum.w;
    sums[me] = total;
    for (uint width = THREADS, next; width > 1; width = next) {
        next = (width + 3) / 4;
        barrier();
        if (me < next) {
            for (uint i = me + next; i < width; i += next)
                total += sums[i];
            sums[me] = total;
        }
    }
    barrier();
    float s = 1.0 / sqrt(sums[0] / float(args.n) + args.eps);
    for (uint b = me; b < args.n / 32; b += THREADS) {
        vec4 v[8];
        for (uint i = 0; i < 8; i++)
            v[i] = x.v[from + 8 * b + i] * s * w.v[args.w_at + 8 * b + i];
        if (FLOATS != 0)
            for (uint i = 0; i < 8; i++)
                y.v[args.y_at + t * (args.n / 4) + 8 * b + i] = v[i];
        if (QUANTS != 0) {
            uint words[8], at = args.act_at + t * args.act_stride;
            uvec2 pair;
            act_quantize(v, words, pair);
            act.v[at + 2 * b] = uvec4(words[0], words[1], words[2], words[3]);
            act.v[at + 2 * b + 1] = uvec4(words[4], words[5], words[6], words[7]);
            act_pairs.v[2 * at + args.n / 8 + b] = pair;
        }
    }
}
