// SPDX-License-Identifier: MIT
// Prepared activations. For integer types a token is n / 4 words of int8, four columns each, then per block of 32 a pair:
// f32 scale d = max|x| / 127, and the sums of the block's two halves of 16 as int16 (first half low). Rounded up to 4 words.
// The values are those of kernels/gemm_act.h. For float types a token is its n floats.
uint act_words(uint n)
{
    return (n / 4 + n / 16 + 3) / 4 * 4;
}

// Eight vectors of four columns -> words and pair. Magnitudes are compared as integers, so that a NaN reaches the scale.
void act_quantize(const vec4 x[8], out uint words[8], out uvec2 pair)
{
    uvec4 m = uvec4(0);
    for (int i = 0; i < 8; i++)
        m = max(m, floatBitsToUint(x[i]) & 0x7fffffffu);
    float d = uintBitsToFloat(max(max(m.x, m.y), max(m.z, m.w))) / 127.0, id = d != 0.0 ? 1.0 / d : 0.0;
    int half_sum[2];
    half_sum[0] = half_sum[1] = 0;
    for (int i = 0; i < 8; i++) {
        vec4 t = roundEven(x[i] * id);
        bvec4 ok = lessThanEqual(abs(t), vec4(127.0)); // out of range: not finite, or 1 / d overflowed
        ivec4 q = ivec4(mix(vec4(0.0), t, ok));
        half_sum[i / 4] += q.x + q.y + q.z + q.w;
        uvec4 u = uvec4(q) & 255u;
        words[i] = u.x | u.y << 8 | u.z << 16 | u.w << 24;
    }
    pair = uvec2(floatBitsToUint(d), uint(half_sum[0]) & 0xffffu | uint(half_sum[1]) << 16);
}
