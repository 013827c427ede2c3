// SPDX-License-Identifier: MIT
// y = gelu(gate) * up of products that were left apart or in parts: as floats, as prepared activations, or both. SCALED: gate and
// up are to be multiplied by the token's scale first (scale.comp).
// Dispatch: x = ceil(n / 32 / THREADS), y = tokens; a thread prepares one block of 32 columns, whose sums the workgroup has read side by
// side. n is a multiple of 32.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "act.glsl"
#include "gelu.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
layout(constant_id = 1) const uint FLOATS = 0;
layout(constant_id = 2) const uint QUANTS = 1;
layout(constant_id = 3) const uint SCALED = 0;

layout(set = 0, binding = 0, std430) readonly restrict buffer Gate { vec4 v[]; } gate;
layout(set = 0, binding = 1, std430) readonly restrict buffer Up { vec4 v[]; } up;
layout(set = 0, binding = 2, std430) writeonly restrict buffer Y { vec4 v[]; } y;
layout(set = 0, binding = 3, std430) writeonly restrict buffer Act { uvec4 v[]; } act;
layout(set = 0, binding = 3, std430) writeonly restrict buffer ActPairs { uvec2 v[]; } act_pairs;
layout(set = 0, binding = 4, std430) readonly restrict buffer Scales { float v[]; } scales;

layout(push_constant, std430) uniform Args {
    uint n;
    uint n_parts, part;         // parts of gate and of up, and from part to part in vec4
    uint stride;                // of gate and up from token to token in vec4
    uint gate_at, up_at, y_at;  // in vec4; tokens of y lie n floats apart
    uint act_at, act_stride;    // in uvec4
    uint scales_at;
} args;

const uint ROW = 9; // of a block in shared memory: odd, against bank conflicts
shared vec4 tile[THREADS * ROW];

void main()
{
    uint me = gl_LocalInvocationID.x, b0 = gl_WorkGroupID.x * THREADS, t = gl_WorkGroupID.y, n_blocks = args.n / 32;
    uint from = t * args.stride + 8 * b0, n = 8 * min(THREADS, n_blocks - b0);
    float by = SCALED != 0 ? scales.v[args.scales_at + t] : 1.0;
    for (uint i = me; i < n; i += THREADS) {
        vec4 g = gate.v[args.gate_at + from + i], u = up.v[args.up_at + from + i];
        for (uint p = 1; p < args.n_parts; p++) {
            g += gate.v[args.gate_at + p * args.part + from + i];
            u += up.v[args.up_at + p * args.part + from + i];
        }
        vec4 v = gelu(g * by) * (u * by);
        if (FLOATS != 0)
            y.v[args.y_at + t * (args.n / 4) + 8 * b0 + i] = v;
        if (QUANTS != 0)
            tile[i / 8 * ROW + i % 8] = v;
    }
    barrier();
    if (QUANTS != 0 && 8 * me < n) {
        vec4 v[8];
        for (uint i = 0; i < 8; i++)
            v[i] = tile[me * ROW + i];
        uint words[8], at = args.act_at + t * args.act_stride, b = b0 + me;
        uvec2 pair;
        act_quantize(v, words, pair);
        act.v[at + 2 * b] = uvec4(words[0], words[1], words[2], words[3]);
        act.v[at + 2 * b + 1] = uvec4(words[4], words[5], words[6], words[7]);
        act_pairs.v[2 * at + args.n / 8 + b] = pair;
    }
}
