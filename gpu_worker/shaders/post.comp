// SPDX-License-Identifier: MIT
// y = r + x / sqrt(mean(x^2) + eps) * w, where x is the sum of the parts that a split product left. One workgroup per token
// (dispatch x = tokens). n is a multiple of 4. y may be the buffer of r. A thread takes four columns at a time.
#version 460

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 128;

layout(set = 0, binding = 0, std430) readonly restrict buffer X { vec4 v[]; } x;
layout(set = 0, binding = 1, std430) readonly restrict buffer Norm { vec4 v[]; } w;
layout(set = 0, binding = 2, std430) readonly buffer R { vec4 v[]; } r;
layout(set = 0, binding = 3, std430) writeonly buffer Y { vec4 v[]; } y;

layout(push_constant, std430) uniform Args {
    uint n;
    float eps;
    uint n_parts, x_part;       // parts, and from part to part in vec4
    uint x_at, w_at, r_at, y_at; // in vec4; tokens lie n floats apart
} args;

shared float sums[THREADS];

vec4 whole(uint i)
{
    vec4 v = vec4(0.0);
    for (uint p = 0; p < args.n_parts; p++)
        v += x.v[args.x_at + p * args.x_part + i];
    return v;
}

void main()
{
    uint me = gl_LocalInvocationID.x, n = args.n / 4, from = gl_WorkGroupID.x * n;
    vec4 sum = vec4(0.0);
    for (uint i = me; i < n; i += THREADS) {
        vec4 v = whole(from + i);
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
    for (uint i = me; i < n; i += THREADS)
        y.v[args.y_at + from + i] = r.v[args.r_at + from + i] + whole(from + i) * s * w.v[args.w_at + i];
}
