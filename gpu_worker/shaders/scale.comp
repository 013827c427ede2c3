// SPDX-License-Identifier: MIT
// Activations as f16 for cooperative matrices, and the power of two by which each token was divided on that way: its largest magnitude
// comes to 2^13 .. 2^14, so that neither products' sums (f32) nor f16 overflow and small values stay normal. One workgroup per token
// (dispatch x). FLOATS: activations are floats and keep their order; else prepared ones, of which the block scales tell, and of each
// four columns the order becomes 0, 2, 1, 3, and of each 32 the eights become 0, 2, 1, 3, as weights16.glsl has it.
// Halves: [column / 8][token][8], so that eight columns of many tokens lie together.
#version 460

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 128;
layout(constant_id = 1) const uint FLOATS = 0;

layout(set = 0, binding = 0, std430) readonly restrict buffer Act { uint v[]; } act;
layout(set = 0, binding = 1, std430) writeonly restrict buffer Scales { float v[]; } scales;
layout(set = 0, binding = 2, std430) writeonly restrict buffer Halves { uvec4 v[]; } halves;

layout(push_constant, std430) uniform Args {
    uint n;                  // columns
    uint act_at, act_stride; // in uvec4
    uint scales_at;          // in floats
    uint n_padded;           // columns of halves, a multiple of 8: zero from n on
} args;

shared uint most[THREADS];

void main()
{
    uint me = gl_LocalInvocationID.x, from = 4 * (args.act_at + gl_WorkGroupID.x * args.act_stride), m = 0;
    if (FLOATS != 0)
        for (uint i = me; i < args.n; i += THREADS)
            m = max(m, act.v[from + i] & 0x7fffffffu);
    else
        for (uint b = me; b < args.n / 32; b += THREADS)
            m = max(m, act.v[from + args.n / 4 + 2 * b]); // d is never negative
    most[me] = m;
    for (uint width = THREADS, next; width > 1; width = next) {
        next = (width + 3) / 4;
        barrier();
        if (me < next) {
            for (uint i = me + next; i < width; i += next)
                m = max(m, most[i]);
            most[me] = m;
        }
    }
    barrier();
    uint exponent = (most[0] >> 23) + (FLOATS != 0 ? 0 : 7); // |x| < 2^(exponent - 126)
    exponent = clamp(exponent, 30, 240);
    float inverse = uintBitsToFloat(254 - (exponent - 13) << 23);
    if (me == 0)
        scales.v[args.scales_at + gl_WorkGroupID.x] = uintBitsToFloat(exponent - 13 << 23);
    for (uint o = me; o < args.n_padded / 8; o += THREADS) {
        uint to = FLOATS != 0 ? o : o / 4 * 4 + o % 2 * 2 + o / 2 % 2;
        uvec4 ret = uvec4(0);
        for (uint i = 2 * o; o < args.n / 8 && i < 2 * o + 2; i++) {
            vec4 x;
            if (FLOATS != 0) {
                x = uintBitsToFloat(uvec4(act.v[from + 4 * i], act.v[from + 4 * i + 1], act.v[from + 4 * i + 2], act.v[from + 4 * i + 3])) *
                    inverse;
            } else {
                int q = int(act.v[from + i]);
                float d = uintBitsToFloat(act.v[from + args.n / 4 + i / 8 * 2]) * inverse;
                x = vec4(ivec4(q << 24, q << 8, q << 16, q) >> 24) * d;
            }
            ret[2 * (i % 2)] = packHalf2x16(x.xy);
            ret[2 * (i % 2) + 1] = packHalf2x16(x.zw);
        }
        halves.v[to * gl_NumWorkGroups.x + gl_WorkGroupID.x] = ret;
    }
}
