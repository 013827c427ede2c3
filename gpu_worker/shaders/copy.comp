// SPDX-License-Identifier: MIT
// Copies a buffer: what the device's memory gives when half of it is written. Dispatch: x = workgroups; four uvec4 a thread.
#version 460

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 256;

layout(set = 0, binding = 0, std430) readonly restrict buffer X { uvec4 v[]; } x;
layout(set = 0, binding = 1, std430) writeonly restrict buffer Y { uvec4 v[]; } y;

void main()
{
    uint at = gl_GlobalInvocationID.x, grid = gl_NumWorkGroups.x * THREADS;
    uvec4 a = x.v[at], b = x.v[at + grid], c = x.v[at + 2 * grid], d = x.v[at + 3 * grid];
    y.v[at] = a;
    y.v[at + grid] = b;
    y.v[at + 2 * grid] = c;
    y.v[at + 3 * grid] = d;
}
