/* SPDX-License-Identifier: MIT
 * The K types in plain C: quantization is quant_k_body.h on the reference lanes, dequantization follows ggml-quants.c
 * (dequantize_row_q4_K, _q5_K, _q6_K) bit for bit. Called through quant.c. Pure functions, any thread. */
#include "kernels/quant_k.h"

#include "kernels/lanes_ref.h"

#include "kernels/quant_k_body.h"

void quant_k_quantize_row(int type, const float *src, void *dst, size_t n)
{
    k_quantize_row(type, src, dst, n);
}

static void dequantize_45(int type, const uint8_t *b, float *y)
{
    uint8_t s[8], m[8], q[QUANT_SUPER_BLOCK];
    float d = k_get_f16(b), dmin = k_get_f16(b + 2);
    quant_k_get_scales(b + 4, s, m);
    quant_k_get_45(type == QUANT_Q5_K ? b + 16 : NULL, type == QUANT_Q5_K ? b + 48 : b + 16, q);
    for (int i = 0; i < QUANT_SUPER_BLOCK; i++)
        y[i] = d * (float)s[i / 32] * (float)q[i] - dmin * (float)m[i / 32];
}

static void dequantize_6(const uint8_t *b, float *y)
{
    uint8_t q[QUANT_SUPER_BLOCK];
    float d = k_get_f16(b + 208);
    quant_k_get_6(b, b + 128, q);
    for (int i = 0; i < QUANT_SUPER_BLOCK; i++)
        y[i] = d * (float)(int8_t)b[192 + i / 16] * (float)(q[i] - 32);
}

void quant_k_dequantize_row(int type, const void *src, float *dst, size_t n)
{
    const uint8_t *in = src;
    size_t bytes = quant_block_bytes(type);
    for (size_t i = 0; i < n / QUANT_SUPER_BLOCK; i++) {
        if (type == QUANT_Q6_K)
            dequantize_6(in + i * bytes, dst + i * QUANT_SUPER_BLOCK);
        else
            dequantize_45(type, in + i * bytes, dst + i * QUANT_SUPER_BLOCK);
    }
}
