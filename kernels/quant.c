/* SPDX-License-Identifier: MIT
 * Converts rows between f32 and the formats of GGUF: names and sizes of all types, arithmetic of the scalar types and of blocks of
 * 32; the K types are in quant_k.c. Pure functions, any thread. Rounding follows ggml's reference quantizers (ggml-quants.c:
 * quantize_row_*_ref) bit for bit; the file is built without contraction, so that a product and a sum round separately, as there.
 */
#include "kernels/quant.h"

#include <float.h>
#include <math.h>
#include <string.h>
#include <strings.h>

#include "kernels/quant_k.h"

static const struct {
    int type;
    const char *name;
    size_t elems, bytes;
} formats[] = {
    {QUANT_F32, "f32", 1, 4},       {QUANT_F16, "f16", 1, 2},       {QUANT_BF16, "bf16", 1, 2},     {QUANT_Q8_0, "q8_0", 32, 34},
    {QUANT_Q4_0, "q4_0", 32, 18},   {QUANT_Q4_1, "q4_1", 32, 20},   {QUANT_Q5_0, "q5_0", 32, 22},   {QUANT_Q5_1, "q5_1", 32, 24},
    {QUANT_Q4_K, "q4_K", 256, 144}, {QUANT_Q5_K, "q5_K", 256, 176}, {QUANT_Q6_K, "q6_K", 256, 210},
};
#define N_FORMATS (sizeof(formats) / sizeof(formats[0]))

static int find(int type)
{
    for (size_t i = 0; i < N_FORMATS; i++) {
        if (formats[i].type == type)
            return (int)i;
    }
    return -1;
}

size_t quant_block_elems(int type)
{
    int i = find(type);
    return i < 0 ? 0 : formats[i].elems;
}

size_t quant_block_bytes(int type)
{
    int i = find(type);
    return i < 0 ? 0 : formats[i].bytes;
}

const char *quant_name(int type)
{
    int i = find(type);
    return i < 0 ? NULL : formats[i].name;
}

int quant_from_name(const char *name)
{
    for (size_t i = 0; i < N_FORMATS; i++) {
        if (strcasecmp(formats[i].name, name) == 0)
            return formats[i].type;
    }
    return -1;
}

const char *quant_ggml_name(int ggml_id)
{
    static const char *const names[] = {
        "f32",    "f16",   "q4_0",  "q4_1",   NULL,    NULL,    "q5_0",    "q5_1",   "q8_0",    "q8_1",
        "q2_K",   "q3_K",  "q4_K",  "q5_K",   "q6_K",  "q8_K",  "iq2_xxs", "iq2_xs", "iq3_xxs", "iq1_s",
        "iq4_nl", "iq3_s", "iq2_s", "iq4_xs", "i8",    "i16",   "i32",     "i64",    "f64",     "iq1_m",
        "bf16",   NULL,    NULL,    NULL,     "tq1_0", "tq2_0", NULL,      NULL,     NULL,      "mxfp4",
    };
    return ggml_id >= 0 && (size_t)ggml_id < sizeof(names) / sizeof(names[0]) ? names[ggml_id] : NULL;
}

size_t quant_row_bytes(int type, size_t n)
{
    int i = find(type);
    return i < 0 || n % formats[i].elems ? 0 : n / formats[i].elems * formats[i].bytes;
}

static uint32_t bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

float quant_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 31, man = h & 1023;
    if (exp == 31)
        return from_bits(sign | 0x7f800000 | man << 13 | (man ? 0x400000 : 0));
    if (exp == 0) {
        float f = (float)man * 0x1p-24f;
        return sign ? -f : f;
    }
    return from_bits(sign | (exp + 112) << 23 | man << 13);
}

uint16_t quant_f32_to_f16(float f)
{
    uint32_t u = bits(f), a = u & 0x7fffffff;
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    if (a > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
    if (a >= 0x477ff000) /* rounds to 65536 or is larger */
        return sign | 0x7c00;
    if (a < 0x38800000) { /* below 2^-14: subnormal; adding 2^-24 * 2^23 makes the unit of f32 that of the result */
        float r = from_bits(a) + 0.5f;
        return (uint16_t)(sign | (bits(r) - bits(0.5f)));
    }
    uint32_t odd = a >> 13 & 1;
    return (uint16_t)(sign | ((a + 0xfff + odd - (112u << 23)) >> 13));
}

uint16_t quant_f32_to_bf16(float f)
{
    uint32_t u = bits(f);
    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 64);
    return (uint16_t)((u + (0x7fff + (u >> 16 & 1))) >> 16);
}

static void put_f16(uint8_t *p, float f)
{
    uint16_t h = quant_f32_to_f16(f);
    memcpy(p, &h, 2);
}

static float get_f16(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return quant_f16_to_f32(h);
}

/* What is no int8 (1 / d overflowed, NaN) becomes 0, as it does in ggml on x86. */
static int to_int8(float f)
{
    return f > -129 && f < 128 ? (int8_t)f : 0;
}

static void quantize_q8_0(const float *x, uint8_t *b)
{
    float amax = 0;
    for (int i = 0; i < QUANT_BLOCK; i++)
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    float d = amax / 127, id = d != 0 ? 1 / d : 0;
    put_f16(b, d);
    for (int i = 0; i < QUANT_BLOCK; i++)
        b[2 + i] = (uint8_t)to_int8(roundf(x[i] * id));
}

void quant_put_32(const uint8_t *q, uint8_t *qh, uint8_t *qs)
{
    uint32_t high = 0;
    for (int i = 0; i < QUANT_BLOCK / 2; i++)
        qs[i] = (uint8_t)((q[i] & 15) | q[i + 16] << 4);
    for (int i = 0; qh && i < QUANT_BLOCK; i++)
        high |= (uint32_t)(q[i] >> 4) << i;
    if (qh)
        memcpy(qh, &high, 4);
}

/* q4_0 and q5_0: x = d * (q - half); the element of largest magnitude becomes 0. */
static void quantize_symmetric(const float *x, int half, uint8_t *b)
{
    float amax = 0, max = 0;
    for (int i = 0; i < QUANT_BLOCK; i++) {
        if (fabsf(x[i]) > amax) {
            amax = fabsf(x[i]);
            max = x[i];
        }
    }
    float d = max / (float)-half, id = d != 0 ? 1 / d : 0;
    uint8_t q[QUANT_BLOCK];
    for (int i = 0; i < QUANT_BLOCK; i++) {
        int v = to_int8(x[i] * id + ((float)half + 0.5f));
        q[i] = (uint8_t)(v > 2 * half - 1 ? 2 * half - 1 : v);
    }
    put_f16(b, d);
    quant_put_32(q, half == 16 ? b + 2 : NULL, half == 16 ? b + 6 : b + 2);
}

/* q4_1 and q5_1: x = d * q + m; the smallest element becomes 0. */
static void quantize_offset(const float *x, int top, uint8_t *b)
{
    float min = FLT_MAX, max = -FLT_MAX;
    for (int i = 0; i < QUANT_BLOCK; i++) {
        min = x[i] < min ? x[i] : min;
        max = x[i] > max ? x[i] : max;
    }
    float d = (max - min) / (float)top, id = d != 0 ? 1 / d : 0;
    uint8_t q[QUANT_BLOCK];
    for (int i = 0; i < QUANT_BLOCK; i++) {
        int v = to_int8((x[i] - min) * id + 0.5f);
        q[i] = (uint8_t)(v > top ? top : v);
    }
    put_f16(b, d);
    put_f16(b + 2, min);
    quant_put_32(q, top == 31 ? b + 4 : NULL, top == 31 ? b + 8 : b + 4);
}

static void quantize_block(int type, const float *x, uint8_t *b)
{
    switch (type) {
    case QUANT_Q8_0:
        quantize_q8_0(x, b);
        break;
    case QUANT_Q4_0:
    case QUANT_Q5_0:
        quantize_symmetric(x, type == QUANT_Q4_0 ? 8 : 16, b);
        break;
    case QUANT_Q4_1:
    case QUANT_Q5_1:
        quantize_offset(x, type == QUANT_Q4_1 ? 15 : 31, b);
        break;
    default:
        break;
    }
}

void quant_quantize_row(int type, const float *src, void *dst, size_t n)
{
    uint8_t *out = dst;
    switch (type) {
    case QUANT_F32:
        memcpy(dst, src, n * sizeof(float));
        break;
    case QUANT_F16:
    case QUANT_BF16:
        for (size_t i = 0; i < n; i++) {
            uint16_t h = type == QUANT_F16 ? quant_f32_to_f16(src[i]) : quant_f32_to_bf16(src[i]);
            memcpy(out + 2 * i, &h, 2);
        }
        break;
    case QUANT_Q4_K:
    case QUANT_Q5_K:
    case QUANT_Q6_K:
        quant_k_quantize_row(type, src, dst, n);
        break;
    default:
        for (size_t i = 0; i < n / QUANT_BLOCK; i++)
            quantize_block(type, src + i * QUANT_BLOCK, out + i * quant_block_bytes(type));
        break;
    }
}

/* Two functions for the two forms: y = q * d, and y = q * d + m, each rounded as written. */
static void dequantize_symmetric(const uint8_t *b, int half, float *y)
{
    const uint8_t *qs = half == 16 ? b + 6 : b + 2;
    float d = get_f16(b);
    uint32_t high = 0;
    if (half == 16)
        memcpy(&high, b + 2, 4);
    for (int i = 0; i < QUANT_BLOCK / 2; i++) {
        y[i] = (float)((int)((qs[i] & 15) | (high >> i & 1) << 4) - half) * d;
        y[i + 16] = (float)((int)((qs[i] >> 4) | (high >> (i + 16) & 1) << 4) - half) * d;
    }
}

static void dequantize_offset(const uint8_t *b, int top, float *y)
{
    const uint8_t *qs = top == 31 ? b + 8 : b + 4;
    float d = get_f16(b), m = get_f16(b + 2);
    uint32_t high = 0;
    if (top == 31)
        memcpy(&high, b + 4, 4);
    for (int i = 0; i < QUANT_BLOCK / 2; i++) {
        y[i] = (float)((qs[i] & 15) | (high >> i & 1) << 4) * d + m;
        y[i + 16] = (float)((qs[i] >> 4) | (high >> (i + 16) & 1) << 4) * d + m;
    }
}

void quant_dequantize_row(int type, const void *src, float *dst, size_t n)
{
    const uint8_t *in = src;
    uint16_t h;
    switch (type) {
    case QUANT_F32:
        memcpy(dst, src, n * sizeof(float));
        break;
    case QUANT_F16:
    case QUANT_BF16:
        for (size_t i = 0; i < n; i++) {
            memcpy(&h, in + 2 * i, 2);
            dst[i] = type == QUANT_F16 ? quant_f16_to_f32(h) : quant_bf16_to_f32(h);
        }
        break;
    case QUANT_Q8_0:
        for (size_t i = 0; i < n / QUANT_BLOCK; i++) {
            float d = get_f16(in + i * 34);
            for (size_t j = 0; j < QUANT_BLOCK; j++)
                dst[i * QUANT_BLOCK + j] = (float)(int8_t)in[i * 34 + 2 + j] * d;
        }
        break;
    case QUANT_Q4_0:
    case QUANT_Q5_0:
        for (size_t i = 0; i < n / QUANT_BLOCK; i++)
            dequantize_symmetric(in + i * quant_block_bytes(type), type == QUANT_Q4_0 ? 8 : 16, dst + i * QUANT_BLOCK);
        break;
    case QUANT_Q4_1:
    case QUANT_Q5_1:
        for (size_t i = 0; i < n / QUANT_BLOCK; i++)
            dequantize_offset(in + i * quant_block_bytes(type), type == QUANT_Q4_1 ? 15 : 31, dst + i * QUANT_BLOCK);
        break;
    case QUANT_Q4_K:
    case QUANT_Q5_K:
    case QUANT_Q6_K:
        quant_k_dequantize_row(type, src, dst, n);
        break;
    default:
        break;
    }
}
