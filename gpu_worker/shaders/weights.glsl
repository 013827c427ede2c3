// SPDX-License-Identifier: MIT
// Tiles of 16 rows as kernels/repack.h lays them down, read as uvec4 of 16 bytes; TYPE is the ggml type id. A unit is what one lane
// takes at a time: ROWS consecutive rows and UNIT_COLS columns. The includer defines uvec4 weights(uint matrix, uint at).
#define F32 0
#define F16 1
#define Q4_0 2
#define Q4_1 3
#define Q5_0 6
#define Q5_1 7
#define Q8_0 8
#define Q4_K 12
#define Q5_K 13
#define Q6_K 14
#define BF16 30

#define IS_FLOAT (TYPE == F32 || TYPE == F16 || TYPE == BF16)
#define HAS_MIN (TYPE == Q4_1 || TYPE == Q5_1 || TYPE == Q4_K || TYPE == Q5_K)
#define HAS_FIFTH (TYPE == Q5_0 || TYPE == Q5_1 || TYPE == Q5_K)
#define HAS_TAIL (TYPE == Q4_0 || TYPE == Q5_0 || TYPE == Q8_0 || TYPE == Q6_K)
#define IS_SUPER (TYPE == Q4_K || TYPE == Q5_K || TYPE == Q6_K)

#if IS_FLOAT
#define UNIT_COLS 4
#if TYPE == F32
#define ROWS 4
#else
#define ROWS 8
#endif
#define GROUPS (16 / ROWS)

struct unit {
    uvec4 w[4]; // a column each
};

void unit_load(uint matrix, uint tile, uint n_units, uint u, uint rows, out unit ret)
{
    for (int j = 0; j < 4; j++)
        ret.w[j] = weights(matrix, tile + (4 * u + j) * GROUPS + rows);
}

// Rows 4 v .. 4 v + 3 of one column.
vec4 unit_column(const unit x, int j, int v)
{
#if TYPE == F32
    return uintBitsToFloat(x.w[j]);
#else
    uvec2 p = v == 0 ? x.w[j].xy : x.w[j].zw;
#if TYPE == F16
    return vec4(unpackHalf2x16(p.x), unpackHalf2x16(p.y));
#else
    return uintBitsToFloat(uvec4(p.x << 16, p.x & 0xffff0000u, p.y << 16, p.y & 0xffff0000u));
#endif
#endif
}

#else // integer types
#define UNIT_COLS 32
#define ROWS 4
#define GROUPS 4
#define WORD 4 // a word of 16 rows, in uvec4

// Words of 32 columns, where the low nibbles start, and the word of fifth bits; words of a block, of a super-block for K types.
#if TYPE == Q8_0
#define WORDS 8
#define QUANTS 0
#elif TYPE == Q4_0 || TYPE == Q4_K
#define WORDS 4
#define QUANTS 0
#elif TYPE == Q4_1
#define WORDS 5
#define QUANTS 1
#elif TYPE == Q5_0 || TYPE == Q5_K
#define WORDS 5
#define QUANTS 1
#define HIGH 0
#elif TYPE == Q5_1
#define WORDS 6
#define QUANTS 2
#define HIGH 1
#else
#define WORDS 6 // q6_K: bits 4 and 5 in the first two
#define QUANTS 2
#endif
#if IS_SUPER
#define BLOCK_WORDS (4 + 8 * WORDS)
#else
#define BLOCK_WORDS WORDS
#endif

struct unit {
    uvec4 w[WORDS];
#if TYPE == Q4_K || TYPE == Q5_K
    uvec4 head[4];
#elif TYPE == Q6_K
    uvec4 head;
#endif
#if HAS_TAIL
    uvec2 tail;
#endif
};

uint block_at(uint tile, uint b)
{
#if HAS_TAIL
    return tile + b / 2 * (2 * BLOCK_WORDS + 1) * WORD + b % 2 * (BLOCK_WORDS * WORD);
#else
    return tile + b * (BLOCK_WORDS * WORD);
#endif
}

// rows: which four of the tile's rows.
void unit_load(uint matrix, uint tile, uint n_units, uint u, uint rows, out unit ret)
{
#if IS_SUPER
    uint b = u / 8, n_blocks = n_units / 8, block = block_at(tile, b), at = block + (4 + u % 8 * WORDS) * WORD;
#else
    uint b = u, n_blocks = n_units, block = block_at(tile, b), at = block;
#endif
    for (int j = 0; j < WORDS; j++)
        ret.w[j] = weights(matrix, at + j * WORD + rows);
#if TYPE == Q4_K || TYPE == Q5_K
    for (int j = 0; j < 4; j++)
        ret.head[j] = weights(matrix, block + j * WORD + rows);
#elif TYPE == Q6_K
    ret.head = weights(matrix, block + u % 8 / 2 * WORD + rows);
#endif
#if HAS_TAIL
    uint tail = tile + b / 2 * (2 * BLOCK_WORDS + 1) * WORD + (b / 2 * 2 + 1 < n_blocks ? 2 : 1) * BLOCK_WORDS * WORD;
    ret.tail = weights_pair(matrix, 2 * tail + b % 2 * 4 + rows);
#endif
}

// Group g = 0..7 of four columns of the four rows: signed bytes for q8_0, unsigned (below 64) for all others.
uvec4 unit_group(const unit x, int g)
{
#if TYPE == Q8_0
    return x.w[g];
#else
    uvec4 q = x.w[QUANTS + g % 4] >> (g < 4 ? 0 : 4) & 0x0f0f0f0fu;
#if HAS_FIFTH
    uvec4 h = x.w[HIGH];
    q |= (g < 4 ? h << (4 - g) : h >> (g - 4)) & 0x10101010u;
#elif TYPE == Q6_K
    uvec4 h = x.w[g / 4];
    int shift = 2 * (g % 4) - 4;
    q |= (shift < 0 ? h << -shift : h >> shift) & 0x30303030u;
#endif
    return q;
#endif
}

vec4 half_floats(uvec2 h)
{
    return vec4(unpackHalf2x16(h.x), unpackHalf2x16(h.y));
}

vec4 low_halves(uvec4 h)
{
    return vec4(unpackHalf2x16(h.x).x, unpackHalf2x16(h.y).x, unpackHalf2x16(h.z).x, unpackHalf2x16(h.w).x);
}

vec4 high_halves(uvec4 h)
{
    return vec4(unpackHalf2x16(h.x).y, unpackHalf2x16(h.y).y, unpackHalf2x16(h.z).y, unpackHalf2x16(h.w).y);
}

#if TYPE == Q4_K || TYPE == Q5_K
// 6-bit scales (from = 0) or minima (1) of run s = 0..7.
vec4 unit_small(const unit x, uint s, int from)
{
    uvec4 whole = x.head[1 + from];
    uvec4 late = x.head[3] >> 4 * from & 0x0f0f0f0fu | whole >> 2 & 0x30303030u;
    return vec4((s < 4 ? whole : late) >> 8 * (s % 4) & 63u);
}
#endif

// d and minimum of unit u.
void unit_scales(const unit x, uint u, out vec4 d, out vec4 m)
{
    m = vec4(0.0);
#if TYPE == Q4_K || TYPE == Q5_K
    d = low_halves(x.head[0]) * unit_small(x, u % 8, 0);
    m = -high_halves(x.head[0]) * unit_small(x, u % 8, 1);
#elif HAS_MIN
    d = low_halves(x.w[0]);
    m = high_halves(x.w[0]);
#else
    d = half_floats(x.tail);
#endif
}

#if TYPE == Q6_K
// i8 scales of both halves of unit u.
ivec4 unit_half_scale(const unit x, uint u, int part)
{
    return ivec4(x.head) << (24 - 8 * part - 16 * int(u % 2)) >> 24;
}
#endif

// What a block's integer sum starts at, from the packed sums of its halves.
int zero_point(uint sums, int part)
{
    int first = int(sums) << 16 >> 16, second = int(sums) >> 16;
#if TYPE == Q4_0
    return -8 * (first + second);
#elif TYPE == Q5_0
    return -16 * (first + second);
#elif TYPE == Q6_K
    return -32 * (part == 0 ? first : second);
#else
    return 0;
#endif
}
#endif
