// SPDX-License-Identifier: MIT
// Matrix times 1..8 tokens: y[part][token][row]. A lane takes ROWS rows of one unit at a time, so that 32 lanes read whole runs of a
// tile. A workgroup has SLOTS tiles side by side, each lane TILES of them in turn with the same activations; LANES lanes share a
// row of a tile and walk its units in strides, and add up through shared memory at the end (any subgroup size will do).
// FUSED: two matrices instead of TILES tiles, and y = gelu(gate) * up; with QUANTIZE (SLOTS even) prepared at once as activations.
// Dispatch: x = ceil(n_tiles / (SLOTS * TILES)) (FUSED: / SLOTS), y = parts. Workgroup size: SLOTS * LANES * GROUPS.
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "dot.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
layout(constant_id = 1) const uint TOKENS = 1;
layout(constant_id = 2) const uint SLOTS = 1;
#ifdef FUSED
#define TILES 2
layout(constant_id = 3) const uint QUANTIZE = 0;
#else
layout(constant_id = 3) const uint TILES = 1;
#endif

layout(set = 0, binding = 0, std430) readonly restrict buffer Weights { uvec4 v[]; } w0;
layout(set = 0, binding = 0, std430) readonly restrict buffer WeightPairs { uvec2 v[]; } w0_pairs;
layout(set = 0, binding = 1, std430) readonly restrict buffer Act { uvec4 v[]; } act;
layout(set = 0, binding = 1, std430) readonly restrict buffer ActPairs { uvec2 v[]; } act_pairs;
layout(set = 0, binding = 2, std430) writeonly restrict buffer Out { float v[]; } y;
#ifdef FUSED
layout(set = 0, binding = 2, std430) writeonly restrict buffer OutWords { uint v[]; } y_words;
layout(set = 0, binding = 2, std430) writeonly restrict buffer OutPairs { uvec2 v[]; } y_pairs;
layout(set = 0, binding = 3, std430) readonly restrict buffer Weights1 { uvec4 v[]; } w1;
layout(set = 0, binding = 3, std430) readonly restrict buffer WeightPairs1 { uvec2 v[]; } w1_pairs;
#endif

layout(push_constant, std430) uniform Args {
    uint n_rows;     // of this dispatch's part of the matrix
    uint n_units;    // of a row: columns / UNIT_COLS
    uint tile_vec4;  // bytes of a tile / 16
    uint part_units; // units of a part
    uint act_at, act_stride;         // in uvec4: first token, from token to token
    uint y_at, y_stride, y_part;     // in floats: row 0 of token 0, from token to token, from part to part
    uint pairs_at;                   // QUANTIZE: y_at and y_stride count words; first pair of token 0, in pairs
} args;

#ifdef FUSED
uvec4 weights(uint matrix, uint at)
{
    return matrix == 0 ? w0.v[at] : w1.v[at];
}
uvec2 weights_pair(uint matrix, uint at)
{
    return matrix == 0 ? w0_pairs.v[at] : w1_pairs.v[at];
}
#include "act.glsl"
#include "gelu.glsl"
#else
uvec4 weights(uint matrix, uint at)
{
    return w0.v[at];
}
uvec2 weights_pair(uint matrix, uint at)
{
    return w0_pairs.v[at];
}
#endif
#include "weights.glsl"

#define VECS (ROWS / 4)
const uint LANES = THREADS / (SLOTS * GROUPS);

shared vec4 partial[2 * THREADS];
#ifdef FUSED
shared vec4 product[SLOTS * 4 * TOKENS];
#endif

vec4 acc[TILES * TOKENS * VECS];

#if IS_FLOAT
void accumulate(uint tile[TILES], uint u, uint rows)
{
    unit w[TILES];
    [[unroll]] for (uint i = 0; i < TILES; i++)
        unit_load(i, tile[i], args.n_units, u, rows, w[i]);
    [[unroll]] for (uint t = 0; t < TOKENS; t++) {
        vec4 x = uintBitsToFloat(act.v[args.act_at + t * args.act_stride + u]);
        [[unroll]] for (uint i = 0; i < TILES; i++)
            [[unroll]] for (int j = 0; j < 4; j++)
                [[unroll]] for (int v = 0; v < VECS; v++) {
                    uint a = (i * TOKENS + t) * VECS + v;
                    acc[a] = fma(unit_column(w[i], j, v), vec4(x[j]), acc[a]);
                }
    }
}
#else
void accumulate(uint tile[TILES], uint u, uint rows)
{
    unit w[TILES];
    [[unroll]] for (uint i = 0; i < TILES; i++)
        unit_load(i, tile[i], args.n_units, u, rows, w[i]);
    [[unroll]] for (uint t = 0; t < TOKENS; t++) {
        uint at = args.act_at + t * args.act_stride;
        uvec4 lo = act.v[at + 2 * u], hi = act.v[at + 2 * u + 1];
        uvec2 pair = act_pairs.v[2 * (at + 2 * args.n_units) + u];
        uint x[8] = {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
        float dx = uintBitsToFloat(pair.x);
        [[unroll]] for (uint i = 0; i < TILES; i++) {
            ivec4 sum[2];
            sum[0] = ivec4(zero_point(pair.y, 0));
            sum[1] = ivec4(zero_point(pair.y, 1));
            [[unroll]] for (int g = 0; g < 8; g++) {
                uvec4 q = unit_group(w[i], g);
                int h = TYPE == Q6_K ? g / 4 : 0;
                sum[h] += ivec4(dot4(q.x, x[g]), dot4(q.y, x[g]), dot4(q.z, x[g]), dot4(q.w, x[g]));
            }
            vec4 d, m;
            unit_scales(w[i], u, d, m);
#if TYPE == Q6_K
            sum[0] = sum[0] * unit_half_scale(w[i], u, 0) + sum[1] * unit_half_scale(w[i], u, 1);
#endif
            uint a = i * TOKENS + t;
            acc[a] = fma(vec4(sum[0]), d * dx, acc[a]);
#if HAS_MIN
            int both = (int(pair.y) << 16 >> 16) + (int(pair.y) >> 16);
            acc[a] = fma(m, vec4(dx * float(both)), acc[a]);
#endif
        }
    }
}
#endif

// Sums acc[a] over the lanes of a slot; the total is right in lane 0. Two halves of `partial` in turn, so that one barrier
// fewer is needed.
void reduce(uint a, uint lane)
{
    uint me = a % 2 * THREADS + gl_LocalInvocationID.x;
    vec4 sum = acc[a];
    partial[me] = sum;
    for (uint width = LANES, next; width > 1; width = next) {
        next = (width + 3) / 4;
        barrier();
        if (lane < next) {
            for (uint l = lane + next; l < width; l += next)
                sum += partial[me + (l - lane) * GROUPS];
            partial[me] = sum;
        }
    }
    acc[a] = sum;
}

void store_rows(uint t, uint row, vec4 x)
{
    uint at = args.y_at + gl_WorkGroupID.y * args.y_part + t * args.y_stride + row;
    for (uint c = 0; c < 4; c++)
        if (row + c < args.n_rows)
            y.v[at + c] = x[c];
}

#ifdef FUSED
// Blocks of 32 rows of the workgroup's products, of all tokens; one thread each.
void store_quantized(uint row0)
{
    barrier();
    for (uint i = gl_LocalInvocationID.x; i < SLOTS / 2 * TOKENS; i += THREADS) {
        uint t = i / (SLOTS / 2), block = i % (SLOTS / 2), words[8];
        uvec2 pair;
        vec4 x[8];
        for (uint k = 0; k < 8; k++)
            x[k] = product[t * SLOTS * 4 + block * 8 + k];
        uint b = row0 / 32 + block, at = args.y_at + t * args.y_stride;
        if (32 * b >= args.n_rows)
            continue;
        act_quantize(x, words, pair);
        for (uint k = 0; k < 8; k++)
            y_words.v[at + 8 * b + k] = words[k];
        y_pairs.v[args.pairs_at + t * (args.y_stride / 2) + b] = pair;
    }
}
#endif

void main()
{
    uint in_slot = gl_LocalInvocationID.x % (LANES * GROUPS), slot = gl_LocalInvocationID.x / (LANES * GROUPS);
    uint rows = in_slot % GROUPS, lane = in_slot / GROUPS, n_tiles = (args.n_rows + 15) / 16;
#ifdef FUSED
    uint first = gl_WorkGroupID.x * SLOTS + slot;
#else
    uint first = (gl_WorkGroupID.x * SLOTS + slot) * TILES;
#endif
    uint tile[TILES];
    [[unroll]] for (uint i = 0; i < TILES; i++) {
#ifdef FUSED
        tile[i] = min(first, n_tiles - 1) * args.tile_vec4;
#else
        tile[i] = min(first + i, n_tiles - 1) * args.tile_vec4;
#endif
    }
    [[unroll]] for (uint a = 0; a < TILES * TOKENS * VECS; a++)
        acc[a] = vec4(0.0);
    uint begin = gl_WorkGroupID.y * args.part_units, end = min(begin + args.part_units, args.n_units);
    for (uint u = begin + lane; u < end; u += LANES)
        accumulate(tile, u, rows);
    [[unroll]] for (uint a = 0; a < TILES * TOKENS * VECS; a++)
        reduce(a, lane);
#ifdef FUSED
    if (lane == 0) {
        for (uint t = 0; t < TOKENS; t++)
            for (uint v = 0; v < VECS; v++) {
                vec4 p = gelu(acc[t * VECS + v]) * acc[(TOKENS + t) * VECS + v];
                if (QUANTIZE != 0)
                    product[(t * SLOTS + slot) * 4 + rows * VECS + v] = p;
                else
                    store_rows(t, 16 * first + rows * ROWS + 4 * v, p);
            }
    }
    if (QUANTIZE != 0)
        store_quantized(16 * gl_WorkGroupID.x * SLOTS);
#else
    if (lane == 0) {
        for (uint i = 0; i < TILES; i++)
            for (uint t = 0; t < TOKENS; t++)
                for (uint v = 0; v < VECS; v++)
                    store_rows(t, 16 * (first + i) + rows * ROWS + 4 * v, acc[(i * TOKENS + t) * VECS + v]);
    }
#endif
}
