// SPDX-License-Identifier: MIT
// Matrix times many tokens by cooperative matrices: y[part][token][row] = sum over k of W[row][k] * x[token][k], weights and
// activations as f16, sums f32. A workgroup makes BM rows x BN tokens, each subgroup WM x WN of them; 32 columns at a time pass
// through shared memory: while one step is multiplied, the next is on its way from global memory to registers.
// x: activations as matvec.comp takes them; each token is divided by its scale (scale.comp) so that f16 can hold it, and whoever
// reads y multiplies by it. Whole tiles of BN tokens and BM rows are written: y is padded.
// Dispatch: x = tiles of tokens, y = tiles of rows, z = parts. One subgroup has 32 lanes: THREADS = 32 * (BM / WM) * (BN / WN).
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_shader_subgroup_basic : require
#include "coopmat.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 128;
layout(constant_id = 1) const uint BM = 128;
layout(constant_id = 2) const uint BN = 128;
layout(constant_id = 3) const uint WM = 64;
layout(constant_id = 4) const uint WN = 64;
layout(constant_id = 5) const uint STAGES = 2;

layout(set = 0, binding = 0, std430) readonly restrict buffer Weights { uvec4 v[]; } w0;
layout(set = 0, binding = 0, std430) readonly restrict buffer WeightPairs { uvec2 v[]; } w0_pairs;
layout(set = 0, binding = 0, std430) readonly restrict buffer WeightWords { uint v[]; } w0_words;
layout(set = 0, binding = 1, std430) readonly restrict buffer Act { uvec4 v[]; } act;
layout(set = 0, binding = 1, std430) readonly restrict buffer ActPairs { uvec2 v[]; } act_pairs;
layout(set = 0, binding = 2, std430) restrict buffer Out { float v[]; } y;
layout(set = 0, binding = 3, std430) readonly restrict buffer Scales { float v[]; } scales;

layout(push_constant, std430) uniform Args {
    uint n_rows;     // of this dispatch's part of the matrix
    uint n_units;    // columns / 32
    uint tile_vec4;  // bytes of a tile / 16
    uint part_units; // units of a part
    uint act_at, act_stride;     // in uvec4: first token, from token to token
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

#define STEP 32              // columns of a step
#define ROW_VEC4 (STEP / 8 + 1) // of a row in shared memory, in uvec4: one more, against bank conflicts

shared uvec4 b_tile[STAGES * BN * ROW_VEC4];

#if IS_FLOAT
// Columns lie one after the other, as in the tile: no transposition.
#define A_BY_COLUMN true
const uint A_STRIDE = BM / 8 + 1;
shared uvec4 a_tile[STAGES * STEP * A_STRIDE];
const uint A_UNITS = BM / 8 * STEP / THREADS;
struct a_unit {
#if TYPE == F32
    uvec4 w[2];
#else
    uvec4 w;
#endif
};

void a_fetch(uint unit, uint row0, uint u, out a_unit ret)
{
    uint rows = unit % (BM / 8), k = unit / (BM / 8), n_tiles = (args.n_rows + 15) / 16;
    uint tile = min((row0 + rows * 8) / 16, n_tiles - 1) * args.tile_vec4;
#if TYPE == F32
    ret.w[0] = weights(0, tile + (STEP * u + k) * 4 + rows % 2 * 2);
    ret.w[1] = weights(0, tile + (STEP * u + k) * 4 + rows % 2 * 2 + 1);
#else
    ret.w = weights(0, tile + (STEP * u + k) * 2 + rows % 2);
#endif
}

void a_put(uint unit, uint stage, uint u, const a_unit x)
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
    a_tile[(stage * STEP + k) * A_STRIDE + rows] = h;
}
#else
#include "weights16.glsl"
#define A_BY_COLUMN false
const uint A_STRIDE = ROW_VEC4;
shared uvec4 a_tile[STAGES * BM * ROW_VEC4];
const uint A_UNITS = BM * 2 / THREADS;
#define a_unit half_unit

void a_fetch(uint unit, uint row0, uint u, out a_unit ret)
{
    uint row = row0 + unit % BM, h = unit / BM, n_tiles = (args.n_rows + 15) / 16;
    half_load(min(row / 16, n_tiles - 1) * args.tile_vec4, args.n_units, u, h, row % 16, ret);
}

void a_put(uint unit, uint stage, uint u, const a_unit x)
{
    uint row = unit % BM, h = unit / BM, at = (stage * BM + row) * ROW_VEC4;
    uvec4 run[2];
    half_unpack(x, u, h, run);
#if TYPE == Q8_0
    a_tile[at + 2 * h] = run[0];
    a_tile[at + 2 * h + 1] = run[1];
#else
    a_tile[at + h] = run[0];
    a_tile[at + 2 + h] = run[1];
#endif
}
#endif

#if IS_FLOAT
const uint B_UNITS = BN * (STEP / 8) / THREADS; // a token's eight columns each
struct b_unit {
    uvec4 x[2];
    float inverse;
};

void b_fetch(uint unit, uint token0, uint u, out b_unit ret)
{
    uint t = min(token0 + unit / (STEP / 8), args.n_tokens - 1), c = unit % (STEP / 8);
    uint at = args.act_at + t * args.act_stride + (STEP / 4) * u + 2 * c;
    ret.x[0] = act.v[at];
    ret.x[1] = act.v[at + 1];
    ret.inverse = 1.0 / scales.v[t];
}

void b_put(uint unit, uint stage, const b_unit b)
{
    vec4 p = uintBitsToFloat(b.x[0]) * b.inverse, q = uintBitsToFloat(b.x[1]) * b.inverse;
    b_tile[(stage * BN + unit / (STEP / 8)) * ROW_VEC4 + unit % (STEP / 8)] =
        uvec4(packHalf2x16(p.xy), packHalf2x16(p.zw), packHalf2x16(q.xy), packHalf2x16(q.zw));
}
#else
const uint B_UNITS = BN * 2 / THREADS; // half a block of a token each
struct b_unit {
    uvec4 q;
    float d;
};

void b_fetch(uint unit, uint token0, uint u, out b_unit ret)
{
    uint t = min(token0 + unit / 2, args.n_tokens - 1), at = args.act_at + t * args.act_stride;
    ret.q = act.v[at + 2 * u + unit % 2];
    ret.d = uintBitsToFloat(act_pairs.v[2 * at + 4 * args.n_units + u].x) / scales.v[t];
}

void b_put(uint unit, uint stage, const b_unit b)
{
    uint at = (stage * BN + unit / 2) * ROW_VEC4 + 2 * (unit % 2);
    f16vec2 d = f16vec2(float16_t(b.d)), zero = f16vec2(0.0);
    uvec4 q = b.q ^ 0x80808080u;
    b_tile[at] = uvec4(half_group(q.x, 128, d, zero), half_group(q.y, 128, d, zero));
    b_tile[at + 1] = uvec4(half_group(q.z, 128, d, zero), half_group(q.w, 128, d, zero));
}
#endif

const uint MATS_M = WM / 16;
const uint MATS_N = WN / 16;

mat_c acc[MATS_M * MATS_N];

void multiply(uint stage, uint row, uint token)
{
    [[unroll]] for (uint k = 0; k < STEP; k += 16) {
        mat_a a[MATS_M];
        [[unroll]] for (uint i = 0; i < MATS_M; i++) {
            uint at = A_BY_COLUMN ? (stage * STEP + k) * A_STRIDE + row / 8 + 2 * i
                                  : (stage * BM + row + 16 * i) * A_STRIDE + k / 8;
            MAT_LOAD_A(a[i], a_tile, at, A_STRIDE, A_BY_COLUMN);
        }
        [[unroll]] for (uint j = 0; j < MATS_N; j++) {
            mat_b b;
            uint at = (stage * BN + token + 16 * j) * ROW_VEC4 + k / 8;
            MAT_LOAD_B(b, b_tile, at, ROW_VEC4, true);
            [[unroll]] for (uint i = 0; i < MATS_M; i++)
                acc[i * MATS_N + j] = MAT_MUL_ADD(a[i], b, acc[i * MATS_N + j]);
        }
    }
}

void main()
{
    float16_t component = float16_t(0.0); // coopmat.glsl needs the type declared
    uint me = gl_LocalInvocationID.x, token0 = gl_WorkGroupID.x * BN, row0 = gl_WorkGroupID.y * BM;
    uint row = gl_SubgroupID % (BM / WM) * WM, token = gl_SubgroupID / (BM / WM) * WN;
    uint begin = gl_WorkGroupID.z * args.part_units, end = min(begin + args.part_units, args.n_units);
    a_unit a[A_UNITS];
    b_unit b[B_UNITS];
    [[unroll]] for (uint i = 0; i < MATS_M * MATS_N; i++)
        acc[i] = MAT_ZERO;
    for (uint u = begin, stage = 0; u <= end; u++) {
        if (u < end) {
            [[unroll]] for (uint i = 0; i < A_UNITS; i++)
                a_fetch(me + i * THREADS, row0, u, a[i]);
            [[unroll]] for (uint i = 0; i < B_UNITS; i++)
                b_fetch(me + i * THREADS, token0, u, b[i]);
        }
        if (u > begin) {
            multiply(stage, row, token);
            if (STAGES == 1)
                barrier();
            else
                stage ^= 1;
        }
        if (u < end) {
            [[unroll]] for (uint i = 0; i < A_UNITS; i++)
                a_put(me + i * THREADS, stage, u, a[i]);
            [[unroll]] for (uint i = 0; i < B_UNITS; i++)
                b_put(me + i * THREADS, stage, b[i]);
        }
        barrier();
    }
    uint at = args.y_at + gl_WorkGroupID.z * args.y_part + (token0 + token) * args.y_stride + row0 + row;
    [[unroll]] for (uint i = 0; i < MATS_M; i++)
        [[unroll]] for (uint j = 0; j < MATS_N; j++)
            MAT_STORE_C(acc[i * MATS_N + j], y.v, at + 16 * j * args.y_stride + 16 * i, args.y_stride, true);
}
