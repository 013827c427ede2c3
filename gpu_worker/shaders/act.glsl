// SPDX-License-Identifier: MIT
// Prepared activations. For integer types a token is n / 4 words of int8, four columns each, then per block of 32 a pair:
// f32 scale d = max|x| / 127, and the sums of the block's two halves of 16 as int16 (first half low). Rounded up to 4 words.
// The values are those of kernels/gemm_act.h. For float types a token is its n floats.
// Magnitudes are compared as integers, so that a NaN reaches the scale.

// id: 1 / d, or 0.
ivec4 act_quants(vec4 x, float id)
{
    vec4 t = roundEven(x * id);
    bvec4 ok = lessThanEqual(abs(t), vec4(127.0)); // out of range: not finite, or 1 / d overflowed
    return ivec4(mix(vec4(0.0), t, ok));
}

uint act_word(ivec4 q)
{
    uvec4 u = uvec4(q) & 255u;
    return u.x | u.y << 8 | u.z << 16 | u.w << 24;
}

uvec2 act_pair(float d, int first, int second)
{
    return uvec2(floatBitsToUint(d), uint(first) & 0xffffu | uint(second) << 16);
}

// Eight vectors of four columns -> words and pair.
void act_quantize(const vec4 x[8], out uint words[8], out uvec2 pair)
{
    uvec4 m = uvec4(0);
    for (int i = 0; i < 8; i++)
        m = max(m, floatBitsToUint(x[i]) & 0x7fffffffu);
    float d = uintBitsToFloat(max(max(m.x, m.y), max(m.z, m.w))) / 127.0, id = d != 0.0 ? 1.0 / d : 0.0;
    int half_sum[2];
    half_sum[0] = half_sum[1] = 0;
    for (int i = 0; i < 8; i++) {
        ivec4 q = act_quants(x[i], id);
        half_sum[i / 4] += q.x + q.y + q.z + q.w;
        words[i] = act_word(q);
    }
    pair = act_pair(d, half_sum[0], half_sum[1]);
}
