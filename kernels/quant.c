/* SPDX-License-Identifier: MIT
 * Converts rows between f32 and the formats of GGUF. Pure functions, any thread. Rounding follows ggml's reference quantizers
 * (ggml-quants.c: quantize_row_q4_0_ref, quantize_row_q8_0_ref) bit for bit; the file is built without contraction, so that a
 * product and a sum round separately, as there. */
#include "kernels/quant.h"

#include <math.h>
#include <string.h>
#include <strings.h>

static const struct {
    int type;
    const char *name;
    size_t elems, bytes;
} formats[] = {
    {QUANT_F32, "f32", 1, 4},     {QUANT_F16, "f16", 1, 2},     {QUANT_BF16, "bf16", 1, 2},
    {QUANT_Q8_0, "q8_0", 32, 34}, {QUANT_Q4_0, "q4_0", 32, 18},
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

static uint16_t f32_to_bf16(float f)
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

static void quantize_q4_0(const float *x, uint8_t *b)
{
    float amax = 0, max = 0;
    for (int i = 0; i < QUANT_BLOCK; i++) {
        if (fabsf(x[i]) > amax) {
            amax = fabsf(x[i]);
            max = x[i];
        }
    }
    float d = max / -8, id = d != 0 ? 1 / d : 0;
    put_f16(b, d);
    for (int i = 0; i < QUANT_BLOCK / 2; i++) {
        int lo = to_int8(x[i] * id + 8.5f), hi = to_int8(x[i + 16] * id + 8.5f);
        b[2 + i] = (uint8_t)((lo > 15 ? 15 : lo) | (hi > 15 ? 15 : hi) << 4);
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
            uint16_t h = type == QUANT_F16 ? quant_f32_to_f16(src[i]) : f32_to_bf16(src[i]);
            memcpy(out + 2 * i, &h, 2);
        }
        break;
    case QUANT_Q8_0:
        for (size_t i = 0; i < n / QUANT_BLOCK; i++)
            quantize_q8_0(src + i * QUANT_BLOCK, out + i * 34);
        break;
    case QUANT_Q4_0:
        for (size_t i = 0; i < n / QUANT_BLOCK; i++)
            quantize_q4_0(src + i * QUANT_BLOCK, out + i * 18);
        break;
    default:
        break;
    }
}

static void dequantize_q4_0(const uint8_t *b, float *y)
{
    float d = get_f16(b);
    for (int i = 0; i < QUANT_BLOCK / 2; i++) {
        y[i] = (float)((b[2 + i] & 15) - 8) * d;
        y[i + 16] = (float)((b[2 + i] >> 4) - 8) * d;
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
        for (size_t i = 0; i < n; i++)
            dst[i] = (float)(int8_t)in[i / 32 * 34 + 2 + i % 32] * get_f16(in + i / 32 * 34);
        break;
    case QUANT_Q4_0:
        for (size_t i = 0; i < n / QUANT_BLOCK; i++)
            dequantize_q4_0(in + i * 18, dst + i * QUANT_BLOCK);
        break;
    default:
        break;
    }
}
