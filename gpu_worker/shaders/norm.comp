// SPDX-License-Identifier: MIT
// y = x / sqrt(mean(x^2) + eps) * w, one workgroup per token (dispatch x = tokens): as floats, as prepared activations, or both.
// A thread takes HOLD = ceil(n / 4 / THREADS) times four columns and keeps them, since for one token this is all latency; eight
// threads make a block of 32 and tell each other its magnitude. n and 4 THREADS are multiples of 32.
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 128;
layout(constant_id = 1) const uint FLOATS = 0;
layout(constant_id = 2) const uint QUANTS = 1;
layout(constant_id = 3) const uint HOLD = 1;

layout(set = 0, binding = 0, std430) readonly restrict buffer X { vec4 v[]; } x;
layout(set = 0, binding = 1, std430) readonly restrict buffer Norm { vec4 v[]; } w;
layout(set = 0, binding = 2, std430) writeonly restrict buffer Y { vec4 v[]; } y;
layout(set = 0, binding = 3, std430) writeonly restrict buffer Act { uint v[]; } act;
layout(set = 0, binding = 3, std430) writeonly restrict buffer ActPairs { uvec2 v[]; } act_pairs;

layout(push_constant, std430) uniform Args {
    uint n;               // columns
    float eps;
    uint x_at, w_at;      // in vec4; tokens lie n floats apart
    uint y_at;
    uint act_at, act_stride; // in uvec4
} args;

#include "act.glsl"
#include "sum.glsl"

shared uint most[HOLD * THREADS];
shared int sums[HOLD * THREADS];

void main()
{
    uint me = gl_LocalInvocationID.x, t = gl_WorkGroupID.x, n = args.n / 4, from = args.x_at + t * n;
    vec4 v[HOLD], scale[HOLD], sum = vec4(0.0);
    [[unroll]] for (uint k = 0; k < HOLD; k++) {
        uint i = me + k * THREADS;
        v[k] = i < n ? x.v[from + i] : vec4(0.0);
        scale[k] = i < n ? w.v[args.w_at + i] : vec4(0.0);
    }
    [[unroll]] for (uint k = 0; k < HOLD; k++)
        sum = fma(v[k], v[k], sum);
    float s = 1.0 / sqrt(sum_all(sum.x + sum.y + sum.z + sum.w) / float(args.n) + args.eps);
    [[unroll]] for (uint k = 0; k < HOLD; k++) {
        v[k] = v[k] * s * scale[k];
        uvec4 m = floatBitsToUint(v[k]) & 0x7fffffffu;
        most[me + k * THREADS] = max(max(m.x, m.y), max(m.z, m.w));
        if (FLOATS != 0 && me + k * THREADS < n)
            y.v[args.y_at + t * n + me + k * THREADS] = v[k];
    }
    if (QUANTS == 0)
        return;
    barrier();
    float d[HOLD];
    uint at = 4 * (args.act_at + t * args.act_stride);
    [[unroll]] for (uint k = 0; k < HOLD; k++) {
        uint i = me + k * THREADS, m = 0;
        for (uint j = 0; j < 8; j++)
            m = max(m, most[i / 8 * 8 + j]);
        d[k] = uintBitsToFloat(m) / 127.0;
        ivec4 q = act_quants(v[k], d[k] != 0.0 ? 1.0 / d[k] : 0.0);
        sums[i] = q.x + q.y + q.z + q.w;
        if (i < n)
            act.v[at + i] = act_word(q);
    }
    barrier();
    [[unroll]] for (uint k = 0; k < HOLD; k++) {
        uint i = me + k * THREADS;
        if (i % 8 == 0 && i < n)
            act_pairs.v[at / 2 + args.n / 8 + i / 8] =
                act_pair(d[k], sums[i] + sums[i + 1] + sums[i + 2] + sums[i + 3],
                         sums[i + 4] + sums[i + 5] + sums[i + 6] + sums[i + 7]);
    }
}
