/* SPDX-License-Identifier: MIT
 * Element types and their row formats as in GGUF (ggml type ids and block layouts, ggml-common.h of llama.cpp).
 * Pure arithmetic: no allocation, no globals, no errors but a return value. Threads: any. */
#ifndef TANDEM_KERNELS_QUANT_H
#define TANDEM_KERNELS_QUANT_H

#include <stddef.h>
#include <stdint.h>

enum quant_type {
    QUANT_F32 = 0,   /* 4 bytes */
    QUANT_F16 = 1,   /* IEEE binary16 */
    QUANT_Q4_0 = 2,  /* 32 elements in 18 bytes: f16 d; u8 qs[16]: low nibble j = element j, high = j + 16; x = d * (q - 8) */
    QUANT_Q8_0 = 8,  /* 32 elements in 34 bytes: f16 d; i8 qs[32]; x = d * q */
    QUANT_BF16 = 30, /* high half of an f32 */
};
#define QUANT_BLOCK 32

/* 0 / NULL for a type we do not know. */
size_t quant_block_elems(int type);
size_t quant_block_bytes(int type);
const char *quant_name(int type);      /* "q4_0" */
int quant_from_name(const char *name); /* -1 when unknown; case-insensitive */
/* Name of any ggml type id that exists, supported or not ("q4_K", "iq2_xxs"); NULL when it does not exist. For messages. */
const char *quant_ggml_name(int ggml_id);
/* Bytes of a row of n elements; 0 when n is not a multiple of the block or the type is unknown. */
size_t quant_row_bytes(int type, size_t n);

/* Bit-exact with ggml's reference quantization (quantize_row_q4_0_ref, _q8_0_ref, f32->bf16 round to nearest even with
 * quiet NaN, f32->f16 round to nearest even). n: multiple of the block. src: [n] f32; dst: quant_row_bytes. */
void quant_quantize_row(int type, const float *src, void *dst, size_t n);
void quant_dequantize_row(int type, const void *src, float *dst, size_t n);

float quant_f16_to_f32(uint16_t h);
uint16_t quant_f32_to_f16(float f);
static inline float quant_bf16_to_f32(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)h << 16};
    return v.f;
}

#endif
