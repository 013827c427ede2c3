// SPDX-License-Identifier: MIT
// The power of two by which a token's activations are divided before they become f16: its largest magnitude comes to 2^13 .. 2^14,
// so that neither products' sums (f32) nor f16 overflow and small values stay normal. One workgroup per token (dispatch x).
// FLOATS: activations are floats; else prepared ones, of which the block scales tell.
#version 460

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 128;
layout(constant_id = 1) const uint FLOATS = 0;

layout(set = 0, binding = 0, std430) readonly restrict buffer Act { uint v[]; } act;
layout(set = 0, binding = 1, std430) writeonly restrict buffer Scales { float v[]; } scales;

layout(push_constant, std430) uniform Args {
    uint n;                  // columns
    uint act_at, act_stride; // in uvec4
    uint scales_at;          // in floats
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
    if (me == 0) {
        uint exponent = (m >> 23) + (FLOATS != 0 ? 0 : 7); // |x| < 2^(exponent - 126)
        exponent = clamp(exponent, 30, 240);
        scales.v[args.scales_at + gl_WorkGroupID.x] = uintBitsToFloat(exponent - 13 << 23);
    }
}
