// SPDX-License-Identifier: MIT
// Weights of integer types as f16, sixteen columns of one row at a time, for matrix-matrix products. Half h of a block: the words
// 2h, 2h + 1, whose low nibbles are columns 8h .. 8h + 7 and whose high ones are 16 + 8h ..; q8_0 has them in words 2h, 2h + 1 and
// 4 + 2h, 5 + 2h. Within each group of four columns the order is 0, 2, 1, 3, since two bytes 16 bits apart become two f16 with one mask: q | 0x6400 is the f16
// of 1024 + q. Activations come in the same order. After weights.glsl; the includer defines uint weights_word(uint at).
#if TYPE == Q8_0
#define HALF_WORDS 4
#define ZERO 128
#else
#define HALF_WORDS 2
#define ZERO (TYPE == Q4_0 ? 8 : TYPE == Q5_0 ? 16 : TYPE == Q6_K ? 32 : 0)
#endif

struct half_unit {
    uint w[HALF_WORDS];
#if HAS_FIFTH
    uint high;
#elif TYPE == Q6_K
    uint high[2], head;
#endif
#if TYPE == Q4_K || TYPE == Q5_K
    uint head[4];
#else
    uint d; // both rows of a pair, or d and minimum
#endif
};

// tile: in uvec4; row: 0..15; u: block of 32 columns.
void half_load(uint tile, uint n_units, uint u, uint h, uint row, out half_unit ret)
{
#if IS_SUPER
    uint b = u / 8, n_blocks = n_units / 8, block = block_at(tile, b), at = block + (4 + u % 8 * WORDS) * WORD;
#else
    uint b = u, n_blocks = n_units, block = block_at(tile, b), at = block;
#endif
    for (uint j = 0; j < HALF_WORDS; j++)
        ret.w[j] = weights_word(4 * (at + (QUANTS + 2 * h + j + j / 2 * 2) * WORD) + row);
#if HAS_FIFTH
    ret.high = weights_word(4 * (at + HIGH * WORD) + row);
#elif TYPE == Q6_K
    ret.high[0] = weights_word(4 * at + row);
    ret.high[1] = weights_word(4 * (at + WORD) + row);
    ret.head = weights_word(4 * (block + u % 8 / 2 * WORD) + row);
#endif
#if TYPE == Q4_K || TYPE == Q5_K
    for (uint j = 0; j < 4; j++)
        ret.head[j] = weights_word(4 * (block + j * WORD) + row);
#elif HAS_MIN
    ret.d = weights_word(4 * at + row);
#else
    uint tail = tile + b / 2 * (2 * BLOCK_WORDS + 1) * WORD + (b / 2 * 2 + 1 < n_blocks ? 2 : 1) * BLOCK_WORDS * WORD;
    ret.d = weights_word(4 * tail + b % 2 * 8 + row / 2) >> 16 * (row % 2);
#endif
}

f16vec2 half_pair(uint x)
{
    return unpackFloat2x16(x);
}

// Four columns: bytes -> (q - zero) * d + m as two words of f16.
uvec2 half_group(uint q, int zero, f16vec2 d, f16vec2 m)
{
    f16vec2 even = half_pair(q & 0x00ff00ffu | 0x64006400u) - f16vec2(1024 + zero);
    f16vec2 odd = half_pair(q >> 8 & 0x00ff00ffu | 0x64006400u) - f16vec2(1024 + zero);
    return uvec2(packFloat2x16(fma(even, d, m)), packFloat2x16(fma(odd, d, m)));
}

// The same where scale and minimum are no f16: rounded once, at the end.
uvec2 half_group_f32(uint q, int zero, float d, float m)
{
    vec4 x = fma(vec4(ivec4(q & 255u, q >> 16 & 255u, q >> 8 & 255u, q >> 24) - zero), vec4(d), vec4(m));
    return uvec2(packHalf2x16(x.xy), packHalf2x16(x.zw));
}

#if TYPE == Q4_0 || TYPE == Q4_1
// Four columns of a word of nibbles, the low or the high ones: these stay where they are, as 16 times themselves.
uvec2 half_nibbles(uint w, bool high, f16vec2 d, f16vec2 m)
{
    uint mask = high ? 0x00f000f0u : 0x000f000fu;
    f16vec2 even = half_pair(w & mask | 0x64006400u), odd = half_pair(w >> 8 & mask | 0x64006400u);
    if (high) {
        even = fma(even, f16vec2(0.0625), f16vec2(-64 - ZERO));
        odd = fma(odd, f16vec2(0.0625), f16vec2(-64 - ZERO));
    } else {
        even -= f16vec2(1024 + ZERO);
        odd -= f16vec2(1024 + ZERO);
    }
    return uvec2(packFloat2x16(fma(even, d, m)), packFloat2x16(fma(odd, d, m)));
}
#endif

uint half_quants(const half_unit x, uint h, int j)
{
    // j = 0, 1: the first eight columns, 2, 3: the others; g: which group of four of the block
#if TYPE == Q8_0
    return x.w[j] ^ 0x80808080u;
#else
    uint q = x.w[j % 2] >> (j < 2 ? 0 : 4) & 0x0f0f0f0fu;
#if HAS_FIFTH
    uint g = 2 * h + uint(j % 2); // of its half of the bits
    q |= (j < 2 ? x.high << (4 - g) : x.high >> g) & 0x10101010u;
#elif TYPE == Q6_K
    uint g = 2 * h + uint(j % 2);
    q |= (g < 2 ? x.high[j / 2] << (4 - 2 * g) : x.high[j / 2] >> (2 * g - 4)) & 0x30303030u;
#endif
    return q;
#endif
}

// -> two runs of eight columns.
void half_unpack(const half_unit x, uint u, uint h, out uvec4 ret[2])
{
#if IS_SUPER
#if TYPE == Q6_K
    float whole = unpackHalf2x16(x.d).x;
    ivec2 sc = ivec2(x.head) << ivec2(24, 16) - 16 * int(u % 2) >> 24;
    float d[2] = float[2](whole * float(sc.x), whole * float(sc.y)), m = 0.0;
#else
    uint s = u % 8, shift = 8 * (s % 4);
    uint sc = (s < 4 ? x.head[1] : x.head[3] & 0x0f0f0f0fu | x.head[1] >> 2 & 0x30303030u) >> shift & 63u;
    uint mn = (s < 4 ? x.head[2] : x.head[3] >> 4 & 0x0f0f0f0fu | x.head[2] >> 2 & 0x30303030u) >> shift & 63u;
    vec2 dm = unpackHalf2x16(x.head[0]) * vec2(float(sc), -float(mn));
    float d[2] = float[2](dm.x, dm.x), m = dm.y;
#endif
    for (int j = 0; j < 2; j++)
        ret[j] = uvec4(half_group_f32(half_quants(x, h, 2 * j), ZERO, d[j], m),
                       half_group_f32(half_quants(x, h, 2 * j + 1), ZERO, d[j], m));
#else
    f16vec2 d = half_pair(x.d).xx, m = f16vec2(0.0);
#if HAS_MIN
    m = half_pair(x.d).yy;
#endif
    for (int j = 0; j < 2; j++)
#if TYPE == Q4_0 || TYPE == Q4_1
        ret[j] = uvec4(half_nibbles(x.w[0], j == 1, d, m), half_nibbles(x.w[1], j == 1, d, m));
#else
        ret[j] = uvec4(half_group(half_quants(x, h, 2 * j), ZERO, d, m), half_group(half_quants(x, h, 2 * j + 1), ZERO, d, m));
#endif
#endif
}
