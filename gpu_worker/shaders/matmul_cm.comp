// SPDX-License-Identifier: MIT
// Matrix times many tokens by cooperative matrices: y[part][token][row] = sum over k of W[row][k] * x[token][k], weights and
// activations as f16, sums f32. A workgroup makes BM rows x BN tokens, each subgroup WM x WN of them; HALVES x 16 columns at a
// time pass through shared memory: while one step is multiplied, the next is on its way from global memory to registers. That load is
// unconditional (the last one is for nothing): a conditional one is moved by compilers to where it is used, behind the product.
// Activations: f16 in the order of scale.comp, each token divided by its scale, so whoever reads y multiplies by it; columns beyond
// the last, up to a whole step, are zero. Whole tiles of BN tokens and BM rows are written: y is padded.
// Dispatch: x = tiles of tokens, y = tiles of rows, z = parts. One subgroup has 32 lanes: THREADS = 32 * (BM / WM) * (BN / WN).
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#ifndef COOPMAT_PLAIN
#extension GL_KHR_shader_subgroup_basic : require
#endif
#include "coopmat.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 128;
layout(constant_id = 1) const uint BM = 128;
layout(constant_id = 2) const uint BN = 128;
layout(constant_id = 3) const uint WM = 64;
layout(constant_id = 4) const uint WN = 64;
layout(constant_id = 5) const uint HALVES = 2;

layout(set = 0, binding = 0, std430) readonly restrict buffer Weights { uvec4 v[]; } w0;
layout(set = 0, binding = 0, std430) readonly restrict buffer WeightPairs { uvec2 v[]; } w0_pairs;
layout(set = 0, binding = 0, std430) readonly restrict buffer WeightWords { uint v[]; } w0_words;
layout(set = 0, binding = 1, std430) readonly restrict buffer Act { uvec4 v[]; } act;
layout(set = 0, binding = 2, std430) restrict buffer Out { float v[]; } y;

layout(push_constant, std430) uniform Args {
    uint n_rows;     // of this dispatch's part of the matrix
    uint n_units;    // columns / 32
    uint tile_vec4;  // bytes of a tile / 16
    uint part_halves; // 16 columns each, a multiple of HALVES
    uint act_at, act_stride;     // in uvec4: first token, from eight columns to eight columns
    uint y_at, y_stride, y_part; // in floats: row 0 of token 0, from token to token, from part to part
    uint n_tokens;
} args;

uvec4 weights(uint matrix, uint at)
{
    return w0.v[at];
}
uvec2 weights_pair(uint matrix, uint at)
{
    return w0_pairs.v[at];
}
uint weights_word(uint at)
{
    return w0_words.v[at];
}
#include "weights.glsl"

const uint STEP = 16 * HALVES;        // columns of a step
const uint ROW_VEC4 = (2 * HALVES) | 1; // of a row in shared memory, in uvec4: odd, against bank conflicts

shared uvec4 b_tile[BN * ROW_VEC4];

#if IS_FLOAT
// Columns lie one after the other, as in the tile: no transposition.
#define A_BY_COLUMN true
const uint A_STRIDE = BM / 8 + 1;
shared uvec4 a_tile[STEP * A_STRIDE];
const uint A_UNITS = BM / 8 * STEP / THREADS;
struct a_unit {
#if TYPE == F32
    uvec4 w[2];
#else
    uvec4 w;
#endif
};

void a_fetch(uint unit, uint row0, uint g, out a_unit ret)
{
    uint rows = unit % (BM / 8), k = unit / (BM / 8), n_tiles = (args.n_rows + 15) / 16;
    uint tile = min((row0 + rows * 8) / 16, n_tiles - 1) * args.tile_vec4, column = min(16 * g + k, 32 * args.n_units - 1);
#if TYPE == F32
    ret.w[0] = weights(0, tile + column * 4 + rows % 2 * 2);
    ret.w[1] = weights(0, tile + column * 4 + rows % 2 * 2 + 1);
#else
    ret.w = weights(0, tile + column * 2 + rows % 2);
#endif
}

void a_put(uint unit, uint g, const a_unit x)
{
    uint rows = unit % (BM / 8), k = unit / (BM / 8);
    uvec4 h;
#if TYPE == F16
    h = x.w;
#elif TYPE == BF16
    for (int i = 0; i < 4; i++)
        h[i] = packHalf2x16(uintBitsToFloat(uvec2(x.w[i] << 16, x.w[i] & 0xffff0000u)));
#else
    vec4 p = uintBitsToFloat(x.w[0]), q = uintBitsToFloat(x.w[1]);
    h = uvec4(packHalf2x16(p.xy), packHalf2x16(p.zw), packHalf2x16(q.xy), packHalf2x16(q.zw));
#endif
    a_tile[k * A_STRIDE + rows] = h;
}
#else
#include "weights16.glsl"
#define A_BY_COLUMN false
const uint A_STRIDE = ROW_VEC4;
shared uvec4 a_tile[BM * ROW_VEC4];
const uint A_UNITS = BM * HALVES / THREADS;
#define a_unit half_unit

void a_fetch(uint unit, uint row0, uint g, out a_unit ret)
{
    uint row = row0 + unit % BM, h = min(g + unit / BM, 2 * args.n_units - 1), n_tiles = (args.n_rows + 15) / 16;
    half_load(min(row / 16, n_tiles - 1) * args.tile_vec4, args.n_units, h / 2, h % 2, row % 16, ret);
}

void a_put(uint unit, uint g, const a_unit x)
{
    uint h = min(g + unit / BM, 2 * args.n_units - 1), at = unit % BM * ROW_VEC4 + 2 * (unit / BM);
    uvec4 run[2];
    half_unpack(x, h / 2, h % 2, run);
    a_tile[at] = run[0];
    a_tile[at + 1] = run[1];
}
#endif

const uint B_UNITS = BN * 2 * HALVES / THREADS; // eight columns of a token each

uvec4 b_fetch(uint unit, uint token0, uint g)
{
    return act.v[args.act_at + (2 * g + unit / BN) * args.act_stride + min(token0 + unit % BN, args.n_tokens - 1)];
}

void b_put(uint unit, uvec4 b)
{
    b_tile[unit % BN * ROW_VEC4 + unit / BN] = b;
}

const uint MATS_M = WM / 16;
const uint MATS_N = WN / 16;

#ifdef COOPMAT_PLAIN
#include "coopmat_plain.glsl"
#endif

mat_c acc[MATS_M * MATS_N];

void multiply(uint row, uint token)
{
    [[unroll]] for (uint k = 0; k < STEP; k += 16) {
        mat_a a[MATS_M];
        [[unroll]] for (uint i = 0; i < MATS_M; i++) {
            uint at = A_BY_COLUMN ? (k) * A_STRIDE + row / 8 + 2 * i
                                  : (row + 16 * i) * A_STRIDE + k / 8;
            MAT_LOAD_A(a[i], a_tile, at, A_STRIDE, A_BY_COLUMN);
        }
        [[unroll]] for (uint j = 0; j < MATS_N; j++) {
            mat_b b;
            uint at = (token + 16 * j) * ROW_VEC4 + k / 8;
            MAT_LOAD_B(b, b_tile, at, ROW_VEC4, true);
            [[unroll]] for (uint i = 0; i < MATS_M; i++)
                acc[i * MATS_N + j] = MAT_MUL_ADD(a[i], b, acc[i * MATS_N + j]);
        }
    }
}

a_unit a[A_UNITS];
uvec4 b[B_UNITS];

void fetch(uint row0, uint token0, uint g)
{
    [[unroll]] for (uint i = 0; i < A_UNITS; i++)
        a_fetch(gl_LocalInvocationID.x + i * THREADS, row0, g, a[i]);
    [[unroll]] for (uint i = 0; i < B_UNITS; i++)
        b[i] = b_fetch(gl_LocalInvocationID.x + i * THREADS, token0, g);
}

void put(uint g)
{
    [[unroll]] for (uint i = 0; i < A_UNITS; i++)
        a_put(gl_LocalInvocationID.x + i * THREADS, g, a[i]);
    [[unroll]] for (uint i = 0; i < B_UNITS; i++)
        b_put(gl_LocalInvocationID.x + i * THREADS, b[i]);
}

void main()
{
    float16_t component = float16_t(0.0); // coopmat.glsl needs the type declared
    uint token0 = gl_WorkGroupID.x * BN, row0 = gl_WorkGroupID.y * BM;
    uint row = MAT_SUBGROUP % (BM / WM) * WM, token = MAT_SUBGROUP / (BM / WM) * WN;
    uint begin = gl_WorkGroupID.z * args.part_halves, end = min(begin + args.part_halves, 2 * args.n_units);
    [[unroll]] for (uint i = 0; i < MATS_M * MATS_N; i++)
        acc[i] = MAT_ZERO;
    fetch(row0, token0, begin);
    put(begin);
    barrier();
    for (uint g = begin; g < end; g += HALVES) {
        uint next = g + HALVES < end ? g + HALVES : g;
        fetch(row0, token0, next);
        multiply(row, token);
        barrier();
        put(next);
        barrier();
    }
    uint at = args.y_at + gl_WorkGroupID.z * args.y_part + (token0 + token) * args.y_stride + row0 + row;
    [[unroll]] for (uint i = 0; i < MATS_M; i++)
        [[unroll]] for (uint j = 0; j < MATS_N; j++)
            MAT_STORE_C(acc[i * MATS_N + j], y.v, at + 16 * j * args.y_stride + 16 * i, args.y_stride, true);
}
