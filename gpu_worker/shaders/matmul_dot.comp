// SPDX-License-Identifier: MIT
// Matrix times many tokens without cooperative matrices: y[part][token][row]. A workgroup makes BM rows x BN tokens, a thread
// 4 TM x 4 TN of them; 16 words at a time of each row and token pass through shared memory (integer types: 4 columns a word, so two
// blocks of 32; float types: one column a word), and while they are multiplied, the next are on their way to registers.
// Integer types: exact sums of int8 products in a block of 32, then f32 across blocks from the first to the last, as the CPU does.
// Float types: f32 sums of 16 columns, then across these.
// y is neither scaled nor padded. Dispatch: x = tiles of tokens, y = tiles of rows, z = parts. BM: a multiple of 16, BN of 4;
// THREADS = BM / (4 TM) * BN / (4 TN).
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "dot.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 256;
layout(constant_id = 1) const uint BM = 64;
layout(constant_id = 2) const uint BN = 64;
layout(constant_id = 3) const uint TM = 1;
layout(constant_id = 4) const uint TN = 1;

layout(set = 0, binding = 0, std430) readonly restrict buffer Weights { uvec4 v[]; } w0;
layout(set = 0, binding = 0, std430) readonly restrict buffer WeightPairs { uvec2 v[]; } w0_pairs;
layout(set = 0, binding = 1, std430) readonly restrict buffer Act { uvec4 v[]; } act;
layout(set = 0, binding = 1, std430) readonly restrict buffer ActPairs { uvec2 v[]; } act_pairs;
layout(set = 0, binding = 2, std430) writeonly restrict buffer Out { float v[]; } y;

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
#include "weights.glsl"

#define STEP 16 // words of a row or token
#if IS_FLOAT
#define UNIT_WORDS 32
#else
#define UNIT_WORDS 8
#define BLOCKS (STEP / UNIT_WORDS) // of a step
#endif
const uint AQ = BM / 4; // rows and tokens come in fours: a vector each
const uint BQ = BN / 4;
const uint B_STRIDE = BQ + 1; // one more, against bank conflicts
const uint ACCS = TM * TN * 4;

shared uvec4 a_tile[STEP * AQ];       // [word][four rows]
shared uvec4 b_tile[STEP * B_STRIDE]; // [word][four tokens]

// What a thread fetches: units i = first, first + THREADS, ... of a kind. Kinds begin at different threads, so that each has few.
uint first_unit(uint offset)
{
    return (gl_LocalInvocationID.x + THREADS - offset % THREADS) % THREADS;
}

uint tile_at(uint row0, uint tile)
{
    return min(row0 / 16 + tile, (args.n_rows + 15) / 16 - 1) * args.tile_vec4;
}

// ---- rows ----

#if IS_FLOAT
const uint A_UNITS = BM / ROWS * STEP; // a column of ROWS rows
struct a_unit {
    uvec4 w;
};

void a_fetch(uint i, uint row0, uint word, uint end, out a_unit ret)
{
    ret.w = weights(0, tile_at(row0, i / (GROUPS * STEP)) + (word + i / GROUPS % STEP) * GROUPS + i % GROUPS);
}

void a_put(uint i, const a_unit x)
{
    unit u;
    u.w[0] = x.w;
    for (int v = 0; v < ROWS / 4; v++)
        a_tile[i / GROUPS % STEP * AQ + 4 * (i / (GROUPS * STEP)) + i % GROUPS * (ROWS / 4) + v] =
            floatBitsToUint(unit_column(u, 0, v));
}
#else
const uint A_UNITS = BM * BLOCKS; // two groups of four columns of four rows: g and 4 + g
struct a_unit {
    uvec4 w;
#if TYPE == Q8_0 || HAS_FIFTH
    uvec4 high;
#elif TYPE == Q6_K
    uvec4 high[2];
#endif
};

// Consecutive lanes: fours of a tile, then g.
void a_fetch(uint i, uint row0, uint word, uint end, out a_unit ret)
{
    uint rows = i % 4, g = i / 4 % 4, tile = tile_at(row0, i / 16 % (BM / 16)), u = min(word / UNIT_WORDS + i / BM, end - 1);
#if IS_SUPER
    uint at = block_at(tile, u / 8) + (4 + u % 8 * WORDS) * WORD + rows;
#else
    uint at = block_at(tile, u) + rows;
#endif
    ret.w = weights(0, at + (QUANTS + g) * WORD);
#if TYPE == Q8_0
    ret.high = weights(0, at + (4 + g) * WORD);
#elif HAS_FIFTH
    ret.high = weights(0, at + HIGH * WORD);
#elif TYPE == Q6_K
    ret.high[0] = weights(0, at);
    ret.high[1] = weights(0, at + WORD);
#endif
}

// Bytes of 0 .. 63 less their zero point, signed.
uvec4 less_zero(uvec4 q)
{
#if TYPE == Q4_0
    return (q | 0x80808080u) - 0x08080808u ^ 0x80808080u;
#elif TYPE == Q5_0
    return (q | 0x80808080u) - 0x10101010u ^ 0x80808080u;
#elif TYPE == Q6_K
    return (q | 0x80808080u) - 0x20202020u ^ 0x80808080u;
#else
    return q;
#endif
}

void a_put(uint i, const a_unit x)
{
    uint g = i / 4 % 4, at = (i / BM * UNIT_WORDS + g) * AQ + i / 16 % (BM / 16) * 4 + i % 4;
#if TYPE == Q8_0
    uvec4 low = x.w, high = x.high;
#else
    uvec4 low = x.w & 0x0f0f0f0fu, high = x.w >> 4 & 0x0f0f0f0fu;
#if HAS_FIFTH
    low |= x.high << 4 - g & 0x10101010u;
    high |= x.high >> g & 0x10101010u;
#elif TYPE == Q6_K
    low |= x.high[0] >> 2 * g << 4 & 0x30303030u;
    high |= x.high[1] >> 2 * g << 4 & 0x30303030u;
#endif
#endif
    a_tile[at] = less_zero(low);
    a_tile[at + 4 * AQ] = less_zero(high);
}

shared vec4 a_d[BLOCKS * AQ];
#if HAS_MIN
shared vec4 a_m[BLOCKS * AQ];
#elif TYPE == Q6_K
shared ivec4 a_half[BLOCKS * 2 * AQ];
#endif
const uint S_UNITS = AQ * BLOCKS; // scales of a block of four rows

uint s_unit(uint i, uint word, uint end)
{
    return min(word / UNIT_WORDS + i / AQ, end - 1);
}

// Of the unit only the scales are used: the compiler drops the rest.
void s_fetch(uint i, uint row0, uint word, uint end, out unit ret)
{
    unit_load(0, tile_at(row0, i % AQ / 4), args.n_units, s_unit(i, word, end), i % 4, ret);
}

void s_put(uint i, uint word, uint end, const unit x)
{
    vec4 d, m;
    uint u = s_unit(i, word, end);
    unit_scales(x, u, d, m);
    a_d[i] = d;
#if HAS_MIN
    a_m[i] = m;
#elif TYPE == Q6_K
    for (int h = 0; h < 2; h++)
        a_half[(i / AQ * 2 + h) * AQ + i % AQ] = unit_half_scale(x, u, h);
#endif
}

shared vec4 b_d[BLOCKS * BQ];
#if HAS_MIN
shared vec4 b_sum[BLOCKS * BQ];
#endif
const uint P_UNITS = BQ * BLOCKS; // scales of a block of four tokens
struct p_unit {
    uvec2 pair[4];
};

void p_fetch(uint i, uint token0, uint word, uint end, out p_unit ret)
{
    uint u = min(word / UNIT_WORDS + i / BQ, end - 1);
    [[unroll]] for (uint c = 0; c < 4; c++) {
        uint at = args.act_at + min(token0 + i % BQ * 4 + c, args.n_tokens - 1) * args.act_stride;
        ret.pair[c] = act_pairs.v[2 * (at + 2 * args.n_units) + u];
    }
}

void p_put(uint i, const p_unit x)
{
    vec4 d, sum;
    [[unroll]] for (int c = 0; c < 4; c++) {
        int both = (int(x.pair[c].y) << 16 >> 16) + (int(x.pair[c].y) >> 16);
        d[c] = uintBitsToFloat(x.pair[c].x);
        sum[c] = d[c] * float(both);
    }
    b_d[i] = d;
#if HAS_MIN
    b_sum[i] = sum;
#endif
}
#endif

// ---- tokens ----

const uint B_UNITS = BQ * (STEP / 4); // four words of four tokens
struct b_unit {
    uvec4 x[4];
};

void b_fetch(uint i, uint token0, uint word, uint last, out b_unit ret)
{
    [[unroll]] for (uint c = 0; c < 4; c++) {
        uint t = min(token0 + i / (STEP / 4) * 4 + c, args.n_tokens - 1);
        ret.x[c] = act.v[args.act_at + t * args.act_stride + min(word / 4 + i % (STEP / 4), last)];
    }
}

void b_put(uint i, const b_unit b)
{
    [[unroll]] for (int j = 0; j < 4; j++)
        b_tile[(i % (STEP / 4) * 4 + j) * B_STRIDE + i / (STEP / 4)] = uvec4(b.x[0][j], b.x[1][j], b.x[2][j], b.x[3][j]);
}

// ---- product ----

vec4 acc[ACCS];

#if IS_FLOAT
// A step is summed by itself: long chains of f32 sums would lose more.
void multiply(uint rows, uint tokens, uint n)
{
    vec4 sum[ACCS];
    [[unroll]] for (uint at = 0; at < ACCS; at++)
        sum[at] = vec4(0.0);
    [[unroll]] for (uint k = 0; k < STEP; k++) {
        vec4 a[TM];
        [[unroll]] for (uint i = 0; i < TM; i++)
            a[i] = uintBitsToFloat(a_tile[k * AQ + rows + i * (AQ / TM)]);
        [[unroll]] for (uint j = 0; j < TN; j++) {
            vec4 b = uintBitsToFloat(b_tile[k * B_STRIDE + tokens + j * (BQ / TN)]);
            [[unroll]] for (uint i = 0; i < TM; i++)
                [[unroll]] for (int c = 0; c < 4; c++) {
                    uint at = (i * TN + j) * 4 + c;
                    sum[at] = fma(a[i], vec4(b[c]), sum[at]);
                }
        }
    }
    [[unroll]] for (uint at = 0; at < ACCS; at++)
        acc[at] += sum[at];
}
#else
#if TYPE == Q6_K
#define SUM_WORDS 4
#else
#define SUM_WORDS 8
#endif
// sum: of SUM_WORDS words of the step. Bounds are constants, or compilers would not unroll.
void dots(uint rows, uint tokens, uint from, out ivec4 sum[ACCS])
{
    [[unroll]] for (uint at = 0; at < ACCS; at++)
        sum[at] = ivec4(0);
    uint a_from = from * AQ + rows, b_from = from * B_STRIDE + tokens;
    [[unroll]] for (uint g = 0; g < SUM_WORDS; g++) {
        uvec4 a[TM];
        [[unroll]] for (uint i = 0; i < TM; i++)
            a[i] = a_tile[a_from + g * AQ + i * (AQ / TM)];
        [[unroll]] for (uint j = 0; j < TN; j++) {
            uvec4 b = b_tile[b_from + g * B_STRIDE + j * (BQ / TN)];
            [[unroll]] for (uint i = 0; i < TM; i++)
                [[unroll]] for (int c = 0; c < 4; c++)
                    sum[(i * TN + j) * 4 + c] +=
                        ivec4(dot4(a[i].x, b[c]), dot4(a[i].y, b[c]), dot4(a[i].z, b[c]), dot4(a[i].w, b[c]));
        }
    }
}

void multiply(uint rows, uint tokens, uint n)
{
    for (uint k = 0; k < n; k++) {
        ivec4 sum[ACCS];
#if TYPE == Q6_K
        ivec4 second[ACCS];
        dots(rows, tokens, k * UNIT_WORDS, sum);
        dots(rows, tokens, k * UNIT_WORDS + SUM_WORDS, second);
        [[unroll]] for (uint at = 0; at < ACCS; at++) {
            uint q = 2 * k * AQ + rows + at / (TN * 4) * (AQ / TM);
            sum[at] = sum[at] * a_half[q] + second[at] * a_half[q + AQ];
        }
#else
        dots(rows, tokens, k * UNIT_WORDS, sum);
#endif
        [[unroll]] for (uint j = 0; j < TN; j++) {
            vec4 dx = b_d[k * BQ + tokens + j * (BQ / TN)];
            [[unroll]] for (uint i = 0; i < TM; i++) {
                vec4 d = a_d[k * AQ + rows + i * (AQ / TM)];
                [[unroll]] for (int c = 0; c < 4; c++) {
                    uint at = (i * TN + j) * 4 + c;
                    acc[at] = fma(vec4(sum[at]), d * dx[c], acc[at]);
                }
#if HAS_MIN
                vec4 m = a_m[k * AQ + rows + i * (AQ / TM)], both = b_sum[k * BQ + tokens + j * (BQ / TN)];
                [[unroll]] for (int c = 0; c < 4; c++) {
                    uint at = (i * TN + j) * 4 + c;
                    acc[at] = fma(m, vec4(both[c]), acc[at]);
                }
#endif
            }
        }
    }
}
#endif

#define EACH(units) ((units + THREADS - 1) / THREADS)
a_unit a_next[EACH(A_UNITS)];
b_unit b_next[EACH(B_UNITS)];
#if !IS_FLOAT
unit s_next[EACH(S_UNITS)];
p_unit p_next[EACH(P_UNITS)];
#endif

// end: of the part, in units.
void fetch(uint row0, uint token0, uint word, uint end)
{
    [[unroll]] for (uint e = 0, i = first_unit(0); e < EACH(A_UNITS); e++, i += THREADS)
        if (i < A_UNITS)
            a_fetch(i, row0, word, end, a_next[e]);
    [[unroll]] for (uint e = 0, i = first_unit(A_UNITS); e < EACH(B_UNITS); e++, i += THREADS)
        if (i < B_UNITS)
            b_fetch(i, token0, word, end * (UNIT_WORDS / 4) - 1, b_next[e]);
#if !IS_FLOAT
    [[unroll]] for (uint e = 0, i = first_unit(A_UNITS + B_UNITS); e < EACH(S_UNITS); e++, i += THREADS)
        if (i < S_UNITS)
            s_fetch(i, row0, word, end, s_next[e]);
    [[unroll]] for (uint e = 0, i = first_unit(A_UNITS + B_UNITS + S_UNITS); e < EACH(P_UNITS); e++, i += THREADS)
        if (i < P_UNITS)
            p_fetch(i, token0, word, end, p_next[e]);
#endif
}

void put(uint word, uint end)
{
    [[unroll]] for (uint e = 0, i = first_unit(0); e < EACH(A_UNITS); e++, i += THREADS)
        if (i < A_UNITS)
            a_put(i, a_next[e]);
    [[unroll]] for (uint e = 0, i = first_unit(A_UNITS); e < EACH(B_UNITS); e++, i += THREADS)
        if (i < B_UNITS)
            b_put(i, b_next[e]);
#if !IS_FLOAT
    [[unroll]] for (uint e = 0, i = first_unit(A_UNITS + B_UNITS); e < EACH(S_UNITS); e++, i += THREADS)
        if (i < S_UNITS)
            s_put(i, word, end, s_next[e]);
    [[unroll]] for (uint e = 0, i = first_unit(A_UNITS + B_UNITS + S_UNITS); e < EACH(P_UNITS); e++, i += THREADS)
        if (i < P_UNITS)
            p_put(i, p_next[e]);
#endif
}

void main()
{
    uint me = gl_LocalInvocationID.x, rows = me % (AQ / TM), tokens = me / (AQ / TM);
    uint token0 = gl_WorkGroupID.x * BN, row0 = gl_WorkGroupID.y * BM;
    uint begin = gl_WorkGroupID.z * args.part_units, end = min(begin + args.part_units, args.n_units);
    [[unroll]] for (uint at = 0; at < ACCS; at++)
        acc[at] = vec4(0.0);
    uint last = end * UNIT_WORDS, word = min(begin * UNIT_WORDS, last);
    if (word < last)
        fetch(row0, token0, word, end);
    for (; word < last; word += STEP) {
        barrier();
        put(word, end);
        barrier();
        if (word + STEP < last)
            fetch(row0, token0, word + STEP, end);
        multiply(rows, tokens, min(STEP, last - word) / UNIT_WORDS);
    }
    [[unroll]] for (uint i = 0; i < TM; i++)
        [[unroll]] for (uint j = 0; j < TN; j++)
            [[unroll]] for (uint c = 0; c < 4; c++) {
                uint row = row0 + 4 * (rows + i * (AQ / TM)), t = token0 + 4 * (tokens + j * (BQ / TN)) + c;
                uint at = args.y_at + gl_WorkGroupID.z * args.y_part + t * args.y_stride + row;
                for (uint r = 0; r < 4; r++)
                    if (t < args.n_tokens && row + r < args.n_rows)
                        y.v[at + r] = acc[(i * TN + j) * 4 + c][r];
            }
}
