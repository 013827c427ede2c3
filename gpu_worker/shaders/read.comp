// SPDX-License-Identifier: MIT
// Reads a buffer once and keeps next to nothing: what the device's memory gives when nothing is written. Each thread takes
// `each` uvec4, a grid apart. Dispatch: x = workgroups.
#version 460

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 256;

layout(set = 0, binding = 0, std430) readonly restrict buffer X { uvec4 v[]; } x;
layout(set = 0, binding = 1, std430) writeonly restrict buffer Y { uint v[]; } y;

layout(push_constant, std430) uniform Args {
    uint each;
} args;

void main()
{
    uvec4 sum = uvec4(0);
    uint grid = gl_NumWorkGroups.x * THREADS;
    for (uint i = 0; i < args.each; i += 4) {
        uint at = gl_GlobalInvocationID.x + i * grid;
        uvec4 a = x.v[at], b = x.v[at + grid], c = x.v[at + 2 * grid], d = x.v[at + 3 * grid];
        sum ^= a ^ b ^ c ^ d;
    }
    if ((sum.x ^ sum.y ^ sum.z ^ sum.w) == 0x9e3779b9u)
        y.v[0] = sum.x;
}
