// SPDX-License-Identifier: MIT
// Sum over a workgroup of THREADS, for all its threads; called once. SUBGROUP: with subgroup arithmetic, of any size; without:
// through shared memory alone.
#ifdef SUBGROUP
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
shared float sum_parts[THREADS];

float sum_all(float x)
{
    float total = 0.0;
#ifdef SUBGROUP
    x = subgroupAdd(x);
    if (subgroupElect())
        sum_parts[gl_SubgroupID] = x;
    barrier();
    for (uint i = 0; i < gl_NumSubgroups; i++)
        total += sum_parts[i];
#else
    uint me = gl_LocalInvocationID.x, width = THREADS;
    sum_parts[me] = x;
    barrier();
    while (width > 8) {
        uint next = (width + 7) / 8;
        if (me < next) {
            for (uint i = me + next; i < width; i += next)
                x += sum_parts[i];
            sum_parts[me] = x;
        }
        barrier();
        width = next;
    }
    for (uint i = 0; i < width; i++)
        total += sum_parts[i];
#endif
    return total;
}
