/* SPDX-License-Identifier: MIT
 * Rows of the K types (q4_K, q5_K, q6_K: super-blocks of 256 elements with integer scales of their sub-blocks); quant.h is the
 * face of it. The inline functions are the bit layouts of ggml-common.h, one element or scale per byte on the unpacked side.
 * Pure arithmetic, any thread. */
#ifndef TANDEM_KERNELS_QUANT_K_H
#define TANDEM_KERNELS_QUANT_K_H

#include <stddef.h>
#include <stdint.h>

/* n: multiple of 256. */
void quant_k_quantize_row(int type, const float *src, void *dst, size_t n);
void quant_k_dequantize_row(int type, const void *src, float *dst, size_t n);

/* The 12 bytes of q4_K and q5_K: 6 bits for each of 8 scales and 8 minima. The first four of each lie whole in a byte, whose two
 * top bits belong to the last four; their low nibbles share the last four bytes. */
static inline void quant_k_put_scales(const uint8_t *scales, const uint8_t *mins, uint8_t *p)
{
    for (int j = 0; j < 4; j++) {
        p[j] = (uint8_t)(scales[j] | (scales[j + 4] >> 4) << 6);
        p[j + 4] = (uint8_t)(mins[j] | (mins[j + 4] >> 4) << 6);
        p[j + 8] = (uint8_t)((scales[j + 4] & 15) | (mins[j + 4] & 15) << 4);
    }
}

static inline void quant_k_get_scales(const uint8_t *p, uint8_t *ret_scales, uint8_t *ret_mins)
{
    for (int j = 0; j < 4; j++) {
        ret_scales[j] = p[j] & 63;
        ret_mins[j] = p[j + 4] & 63;
        ret_scales[j + 4] = (uint8_t)((p[j + 8] & 15) | (p[j] >> 6) << 4);
        ret_mins[j + 4] = (uint8_t)((p[j + 8] >> 4) | (p[j + 4] >> 6) << 4);
    }
}

/* q4_K, q5_K: two sub-blocks of 32 share 32 bytes, the second in the high nibbles; bit s of qh[l] belongs to sub-block s.
 * qh is NULL for q4_K. */
static inline void quant_k_put_45(const uint8_t *q, uint8_t *qh, uint8_t *qs)
{
    for (int s = 0; s < 8; s += 2) {
        for (int l = 0; l < 32; l++)
            qs[16 * s + l] = (uint8_t)((q[32 * s + l] & 15) | q[32 * s + 32 + l] << 4);
    }
    for (int l = 0; qh && l < 32; l++) {
        unsigned high = 0;
        for (int s = 0; s < 8; s++)
            high |= (unsigned)(q[32 * s + l] >> 4) << s;
        qh[l] = (uint8_t)high;
    }
}

static inline void quant_k_get_45(const uint8_t *qh, const uint8_t *qs, uint8_t *ret_q)
{
    for (int s = 0; s < 8; s++) {
        for (int l = 0; l < 32; l++) {
            unsigned low = qs[16 * (s & ~1) + l] >> 4 * (s & 1) & 15;
            ret_q[32 * s + l] = (uint8_t)(low | (qh ? qh[l] >> s & 1u : 0u) << 4);
        }
    }
}

/* q6_K: in each half of 128, four runs of 32: low nibbles of 64 bytes, then their high nibbles; two more bits of each run in
 * 32 bytes of qh. */
static inline void quant_k_put_6(const uint8_t *q, uint8_t *ql, uint8_t *qh)
{
    for (int h = 0; h < 2; h++, q += 128, ql += 64, qh += 32) {
        for (int l = 0; l < 64; l++)
            ql[l] = (uint8_t)((q[l] & 15) | q[l + 64] << 4);
        for (int l = 0; l < 32; l++)
            qh[l] = (uint8_t)(q[l] >> 4 | q[l + 32] >> 4 << 2 | q[l + 64] >> 4 << 4 | q[l + 96] >> 4 << 6);
    }
}

static inline void quant_k_get_6(const uint8_t *ql, const uint8_t *qh, uint8_t *ret_q)
{
    for (int h = 0; h < 2; h++, ret_q += 128, ql += 64, qh += 32) {
        for (int l = 0; l < 32; l++) {
            ret_q[l] = (uint8_t)((ql[l] & 15) | (qh[l] & 3) << 4);
            ret_q[l + 32] = (uint8_t)((ql[l + 32] & 15) | (qh[l] >> 2 & 3) << 4);
            ret_q[l + 64] = (uint8_t)(ql[l] >> 4 | (qh[l] >> 4 & 3) << 4);
            ret_q[l + 96] = (uint8_t)(ql[l + 32] >> 4 | qh[l] >> 6 << 4);
        }
    }
}

#endif
