/* SPDX-License-Identifier: MIT
 * ggml's reference quantization of the K types (ggml-quants.c: quantize_row_q4_K_ref, _q5_K_ref, _q6_K_ref with their searches
 * make_qkx2_quants and make_qx_quants), bit for bit, on sixteen lanes. A lane is a sub-block: it walks its elements in their order,
 * so that every sum rounds as the scalar original. A variant includes this after its lanes header. */
#include <math.h>
#include <string.h>

#include "kernels/quant.h"
#include "kernels/quant_k.h"

#define K_TINY 1e-15f /* groups below count as zero in q6_K; no scale but 0 is smaller */

static void k_put_f16(uint8_t *p, float f)
{
    uint16_t h = quant_f32_to_f16(f);
    memcpy(p, &h, 2);
}

static float k_get_f16(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return quant_f16_to_f32(h);
}

/* Nearest integer by adding 1.5 * 2^23, as the original has it: what is not finite becomes a large negative number or 0. */
static int k_nearest(float f)
{
    float t = f + 12582912.0f;
    uint32_t u;
    memcpy(&u, &t, 4);
    return (int)(u & 0x7fffff) - 0x400000;
}

/* The same within lo..hi, on lanes: 0 for what is not finite. */
static inline v16 k_clamped(v16 x, float lo, float hi)
{
    v16 r = v16_zero_unless_less(v16_abs(x), v16_set(4194304.0f), v16_round(x));
    return v16_min(v16_max(r, v16_set(lo)), v16_set(hi));
}

/* x[i] of every lane side by side: lane j holds sub-block j of `size` elements; lanes from n_lanes on are zero. */
static void k_gather(const float *src, int size, int n_lanes, v16 *ret_x)
{
    float t[16];
    for (int i = 0; i < size; i++) {
        for (int j = 0; j < 16; j++)
            t[j] = j < n_lanes ? src[j * size + i] : 0;
        ret_x[i] = v16_load(t);
    }
}

/* The reverse for quants: integral values within u8. */
static void k_scatter(const v16 *x, int size, int n_lanes, uint8_t *ret_q)
{
    float t[16];
    for (int i = 0; i < size; i++) {
        v16_store(t, x[i]);
        for (int j = 0; j < 16 && j < n_lanes; j++)
            ret_q[j * size + i] = (uint8_t)t[j];
    }
}

/* Scale and minimum of sixteen sub-blocks of 32 (make_qkx2_quants): of some inverse scales the one whose least-squares fit has
 * the smallest error, weighted by rms + |x|. ret_inverse and ret_first with which quants follow: clamp(inverse * (x - first)). */
static void k_fit(const v16 *x, int top, float from, float step, int n_steps, v16 *ret_scale, v16 *ret_min, v16 *ret_inverse,
                  v16 *ret_first)
{
    v16 w[32], zero = v16_set(0), sum = zero, min = x[0], max = x[0], sum_w = zero, sum_x = zero;
    for (int i = 0; i < 32; i++)
        sum = v16_add(sum, v16_mul(x[i], x[i]));
    v16 rms = v16_sqrt(v16_div(sum, v16_set(32)));
    for (int i = 0; i < 32; i++) {
        w[i] = v16_add(rms, v16_abs(x[i]));
        min = v16_min(x[i], min);
        max = v16_max(x[i], max);
        sum_w = i ? v16_add(sum_w, w[i]) : w[i];
        sum_x = i ? v16_add(sum_x, v16_mul(w[i], x[i])) : v16_mul(w[i], x[i]);
    }
    min = v16_min(min, zero);
    v16 lowest = min, inverse = v16_div(v16_set((float)top), v16_sub(max, min));
    v16 scale = v16_div(v16_set(1), inverse), best = zero, best_inverse = inverse, best_first = min;
    for (int i = 0; i < 32; i++) {
        v16 l = k_clamped(v16_mul(inverse, v16_sub(x[i], min)), 0, (float)top);
        v16 diff = v16_sub(v16_add(v16_mul(scale, l), min), x[i]);
        best = v16_add(best, v16_mul(w[i], v16_mul(diff, diff)));
    }
    for (int s = 0; s <= n_steps; s++) {
        v16 l[32], sum_l = zero, sum_l2 = zero, sum_xl = zero;
        inverse = v16_div(v16_set(from + step * (float)s + (float)top), v16_sub(max, min)); /* of the best minimum so far */
        for (int i = 0; i < 32; i++) {
            l[i] = k_clamped(v16_mul(inverse, v16_sub(x[i], min)), 0, (float)top);
            v16 wl = v16_mul(w[i], l[i]);
            sum_l = v16_add(sum_l, wl);
            sum_l2 = v16_add(sum_l2, v16_mul(wl, l[i]));
            sum_xl = v16_add(sum_xl, v16_mul(wl, x[i]));
        }
        v16 det = v16_sub(v16_mul(sum_w, sum_l2), v16_mul(sum_l, sum_l));
        v16 this_scale = v16_div(v16_sub(v16_mul(sum_w, sum_xl), v16_mul(sum_x, sum_l)), det);
        v16 this_min = v16_div(v16_sub(v16_mul(sum_l2, sum_x), v16_mul(sum_l, sum_xl)), det);
        this_scale = v16_select_less(zero, this_min, v16_div(sum_xl, sum_l2), this_scale);
        this_min = v16_select_less(zero, this_min, zero, this_min);
        v16 error = zero;
        for (int i = 0; i < 32; i++) {
            v16 diff = v16_sub(v16_add(v16_mul(this_scale, l[i]), this_min), x[i]);
            error = v16_add(error, v16_mul(w[i], v16_mul(diff, diff)));
        }
        error = v16_select_less(zero, det, error, v16_set(INFINITY));
        best_inverse = v16_select_less(error, best, inverse, best_inverse);
        best_first = v16_select_less(error, best, min, best_first);
        scale = v16_select_less(error, best, this_scale, scale);
        min = v16_select_less(error, best, this_min, min);
        best = v16_select_less(error, best, error, best);
    }
    *ret_scale = v16_zero_unless_less(lowest, max, scale); /* all equal: scale 0, quants 0 */
    *ret_inverse = v16_zero_unless_less(lowest, max, best_inverse);
    *ret_min = v16_sub(zero, v16_select_less(lowest, max, min, lowest));
    *ret_first = best_first;
}

/* Integer scales and minima of one super-block from its eight scales and minima; what they stand for goes to d and m. */
static void k_put_head(const float *scales, const float *mins, uint8_t *b, float *ret_d, float *ret_m)
{
    float max_scale = 0, max_min = 0;
    for (int j = 0; j < 8; j++) {
        max_scale = scales[j] > max_scale ? scales[j] : max_scale;
        max_min = mins[j] > max_min ? mins[j] : max_min;
    }
    float inv_scale = max_scale > 0 ? 63.0f / max_scale : 0, inv_min = max_min > 0 ? 63.0f / max_min : 0;
    uint8_t s[8], m[8];
    for (int j = 0; j < 8; j++) {
        uint8_t ls = (uint8_t)k_nearest(inv_scale * scales[j]), lm = (uint8_t)k_nearest(inv_min * mins[j]);
        s[j] = ls > 63 ? 63 : ls;
        m[j] = lm > 63 ? 63 : lm;
    }
    k_put_f16(b, max_scale / 63.0f);
    k_put_f16(b + 2, max_min / 63.0f);
    quant_k_put_scales(s, m, b + 4);
    for (int j = 0; j < 8; j++) {
        ret_d[j] = k_get_f16(b) * (float)s[j];
        ret_m[j] = k_get_f16(b + 2) * (float)m[j];
    }
}

/* One or two super-blocks of q4_K or q5_K. */
static void k_quantize_45(int type, const float *src, int n_super, uint8_t *dst)
{
    int top = type == QUANT_Q4_K ? 15 : 31, bytes = type == QUANT_Q4_K ? 144 : 176;
    v16 x[32], q[32], scale, min, inverse, first;
    float scales[16], mins[16], d[16] = {0}, m[16] = {0};
    uint8_t quants[2 * QUANT_SUPER_BLOCK];
    k_gather(src, 32, 8 * n_super, x);
    if (type == QUANT_Q4_K)
        k_fit(x, 15, -1.0f, 0.1f, 20, &scale, &min, &inverse, &first);
    else
        k_fit(x, 31, -0.5f, 0.1f, 15, &scale, &min, &inverse, &first);
    v16_store(scales, scale);
    v16_store(mins, min);
    for (int i = 0; i < n_super; i++)
        k_put_head(scales + 8 * i, mins + 8 * i, dst + i * bytes, d + 8 * i, m + 8 * i);
    v16 vd = v16_load(d), vm = v16_load(m);
    for (int i = 0; i < 32; i++) {
        v16 fit = k_clamped(v16_mul(inverse, v16_sub(x[i], first)), 0, (float)top);
        v16 again = k_clamped(v16_div(v16_add(x[i], vm), vd), 0, (float)top);
        q[i] = v16_select_less(v16_abs(vd), v16_set(K_TINY), fit, again);
    }
    k_scatter(q, 32, 8 * n_super, quants);
    for (int i = 0; i < n_super; i++) {
        uint8_t *b = dst + i * bytes;
        quant_k_put_45(quants + QUANT_SUPER_BLOCK * i, type == QUANT_Q5_K ? b + 16 : NULL, type == QUANT_Q5_K ? b + 48 : b + 16);
    }
}

/* Scale of sixteen sub-blocks of 16 (make_qx_quants), elements weighted by their squares; quants clamp(inverse * x). */
static v16 k_fit_symmetric(const v16 *x, v16 *ret_inverse)
{
    v16 amax = v16_set(0), max = amax, zero = amax, scale = zero, best = zero, best_inverse = zero;
    for (int i = 0; i < 16; i++) {
        max = v16_select_less(amax, v16_abs(x[i]), x[i], max);
        amax = v16_max(v16_abs(x[i]), amax);
    }
    for (int s = -10; s <= 9; s++) { /* -10 stands for the first, undisturbed one */
        if (s == 0)
            continue;
        v16 inverse = v16_div(v16_set(s == -10 ? -32.0f : -(32.0f + 0.1f * (float)s)), max), sum_lx = zero, sum_l2 = zero;
        for (int i = 0; i < 16; i++) {
            v16 l = k_clamped(v16_mul(inverse, x[i]), -32, 31), w = v16_mul(x[i], x[i]);
            sum_lx = v16_add(sum_lx, v16_mul(v16_mul(w, x[i]), l));
            sum_l2 = v16_add(sum_l2, v16_mul(v16_mul(w, l), l));
        }
        v16 this_scale = v16_div(sum_lx, sum_l2);
        v16 old = s == -10 ? v16_set(-1) : v16_mul(best, sum_l2), now = s == -10 ? zero : v16_mul(sum_lx, sum_lx);
        best_inverse = v16_select_less(old, now, inverse, best_inverse);
        scale = v16_select_less(old, now, this_scale, scale);
        best = v16_select_less(old, now, v16_mul(this_scale, sum_lx), best);
    }
    *ret_inverse = v16_select_less(amax, v16_set(K_TINY), zero, best_inverse);
    return v16_select_less(amax, v16_set(K_TINY), zero, scale);
}

static void k_quantize_6(const float *src, uint8_t *b)
{
    v16 x[16], q[16], inverse;
    float scales[16], d[16], max = 0, amax = 0;
    uint8_t quants[QUANT_SUPER_BLOCK];
    k_gather(src, 16, 16, x);
    v16_store(scales, k_fit_symmetric(x, &inverse));
    for (int j = 0; j < 16; j++) {
        if (fabsf(scales[j]) > amax) {
            amax = fabsf(scales[j]);
            max = scales[j];
        }
    }
    if (amax < K_TINY) {
        memset(b, 0, 210);
        return;
    }
    float iscale = -128.0f / max;
    k_put_f16(b + 208, 1 / iscale);
    for (int j = 0; j < 16; j++) {
        int s = k_nearest(iscale * scales[j]);
        b[192 + j] = (uint8_t)(s > 127 ? 127 : s);
        d[j] = k_get_f16(b + 208) * (float)(int8_t)b[192 + j];
    }
    v16 vd = v16_load(d), zero = v16_set(0);
    v16 tiny = v16_select_less(zero, v16_abs(inverse), v16_set(32), zero); /* all zero there: quants 0, not 32 */
    for (int i = 0; i < 16; i++) {
        v16 fit = v16_add(k_clamped(v16_mul(inverse, x[i]), -32, 31), tiny);
        v16 again = v16_add(k_clamped(v16_div(x[i], vd), -32, 31), v16_set(32));
        q[i] = v16_select_less(v16_abs(vd), v16_set(K_TINY), fit, again);
    }
    k_scatter(q, 16, 16, quants);
    quant_k_put_6(quants, b, b + 128);
}

static void k_quantize_row(int type, const float *src, void *dst, size_t n)
{
    uint8_t *out = dst;
    size_t blocks = n / QUANT_SUPER_BLOCK, bytes = quant_block_bytes(type);
    if (type == QUANT_Q6_K) {
        for (size_t i = 0; i < blocks; i++)
            k_quantize_6(src + i * QUANT_SUPER_BLOCK, out + i * bytes);
        return;
    }
    for (size_t i = 0; i < blocks; i += 2)
        k_quantize_45(type, src + i * QUANT_SUPER_BLOCK, blocks - i > 1 ? 2 : 1, out + i * bytes);
}
