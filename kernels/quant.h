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
    QUANT_Q4_1 = 3,  /* 32 in 20: f16 d, m; u8 qs[16]; x = d * q + m */
    QUANT_Q5_0 = 6,  /* 32 in 22: f16 d; u32 qh: bit j = bit 4 of element j; u8 qs[16]; x = d * (q - 16) */
    QUANT_Q5_1 = 7,  /* 32 in 24: f16 d, m; u32 qh; u8 qs[16]; x = d * q + m */
    QUANT_Q8_0 = 8,  /* 32 elements in 34 bytes: f16 d; i8 qs[32]; x = d * q */
    QUANT_Q4_K = 12, /* 256 in 144: f16 d, dmin; 8 6-bit scales and minima in 12 bytes; u8 qs[128]; x = d * sc * q - dmin * m */
    QUANT_Q5_K = 13, /* 256 in 176: as q4_K with u8 qh[32] before qs: bit s of byte l = bit 4 of element 32 s + l */
    QUANT_Q6_K = 14, /* 256 in 210: u8 ql[128], qh[64]; i8 scales[16], one per 16 elements; f16 d; x = d * sc * (q - 32) */
    QUANT_BF16 = 30, /* high half of an f32 */
};
/* For messages. */
#define QUANT_NAMES "f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_K, q5_K or q6_K"
#define QUANT_BLOCK 32        /* elements of a block of q4_0 ... q8_0, and of a prepared activation (gemm.h) */
#define QUANT_SUPER_BLOCK 256 /* of the K types */

/* 0 / NULL for a type we do not know. */
size_t quant_block_elems(int type);
size_t quant_block_bytes(int type);
const char *quant_name(int type);      /* "q4_0" */
int quant_from_name(const char *name); /* -1 when unknown; case-insensitive */
/* Name of any ggml type id that exists, supported or not ("q4_K", "iq2_xxs"); NULL when it does not exist. For messages. */
const char *quant_ggml_name(int ggml_id);
/* Bytes of a row of n elements; 0 when n is not a multiple of the block or the type is unknown. */
size_t quant_row_bytes(int type, size_t n);

/* Weights of this type are multiplied as integers, in blocks; the others as f32. */
static inline int quant_is_integer(int type)
{
    return type != QUANT_F32 && type != QUANT_F16 && type != QUANT_BF16;
}

/* Bit-exact with ggml's reference quantization (quantize_row_*_ref; f32->bf16 round to nearest even with quiet NaN, f32->f16
 * round to nearest even) and dequantization (dequantize_row_*). n: multiple of the block. src: [n] f32; dst: quant_row_bytes. */
void quant_quantize_row(int type, const float *src, void *dst, size_t n);
void quant_dequantize_row(int type, const void *src, float *dst, size_t n);

/* Quants q[32] of 4 bits, or of 5 with their highest bits in qh[4] (else NULL), as q4_0 ... q5_1 lay them down in qs[16]. */
void quant_put_32(const uint8_t *q, uint8_t *qh, uint8_t *qs);

float quant_f16_to_f32(uint16_t h);
uint16_t quant_f32_to_f16(float f);
uint16_t quant_f32_to_bf16(float f);
static inline float quant_bf16_to_f32(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)h << 16};
    return v.f;
}

#endif
