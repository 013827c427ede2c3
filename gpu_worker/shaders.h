/* SPDX-License-Identifier: MIT
 * The compute shaders of gpu_worker/shaders as SPIR-V, by name, and what C must know of them: specialization constants, push
 * constants (the order of their `Args`) and how prepared activations lie in memory. Constants only; threads: any.
 *
 * Names: matvec_T, gate_up_T (T = f32 ... q6_K; integer types also as ..._plain, without the integer dot product), norm and post
 * (with subgroup arithmetic; norm_plain, post_plain: without), geglu, read, copy, scale, matmul_cm_T, matmul_nv_T, matmul_dot_T
 * (integer types, also ..._plain), matmul_fma_T (float types). Descriptor set 0 holds storage buffers, bindings 0, 1, ... as each
 * shader lists them. Constant 0 is always the size of the workgroup. All offsets must keep buffers' ranges; rows of activations are
 * multiples of 32 columns. */
#ifndef TANDEM_GPU_WORKER_SHADERS_H
#define TANDEM_GPU_WORKER_SHADERS_H

#include <stddef.h>
#include <stdint.h>

struct shaders_code {
    const char *name;
    const uint32_t *words;
    size_t bytes;
};
extern const struct shaders_code shaders_table[];
extern const size_t shaders_count;
/* NULL when there is none of that name. */
const struct shaders_code *shaders_find(const char *name);

/* Words of 4 bytes of a token prepared for an integer type; see shaders/act.glsl. n: a multiple of 32. */
static inline uint32_t shaders_act_words(uint32_t n)
{
    return (n / 4 + n / 16 + 3) / 4 * 4;
}

/* matvec_T. Bindings: weights, activations, y. Constants: threads, tokens, slots, tiles; threads = slots * lanes * (2 for f16 and
 * bf16, else 4). Dispatch: ceil(tiles of the part / (slots * tiles)), parts.
 * gate_up_T. Bindings: gate, activations, y, up. Constants: threads, tokens, slots, quantize (slots even).
 * Dispatch: ceil(tiles / slots), 1. */
struct shaders_matvec {
    uint32_t n_rows, n_units, tile_vec4, part_units;
    uint32_t act_at, act_stride;
    uint32_t y_at, y_stride, y_part;
    uint32_t pairs_at;
};
/* Bindings: x, norm weights, y, activations. Constants: threads (a multiple of 8), floats, quants, hold = ceil(n / 4 / threads).
 * Dispatch: tokens. */
struct shaders_norm {
    uint32_t n;
    float eps;
    uint32_t x_at, w_at, y_at, act_at, act_stride;
};
/* Bindings: x, norm weights, residual, y, scales. Constants: threads, hold, scaled. Dispatch: tokens. */
struct shaders_post {
    uint32_t n;
    float eps;
    uint32_t n_parts, x_part, x_stride, x_at, w_at, r_at, y_at, scales_at;
};
/* Bindings: gate, up, y, activations, scales. Constants: threads, floats, quants, scaled.
 * Dispatch: ceil(n / 32 / threads), tokens. */
struct shaders_geglu {
    uint32_t n, n_parts, part, stride, gate_at, up_at, y_at, act_at, act_stride, scales_at;
};
/* Bindings: activations, scales, halves [n_padded / 8][tokens][8] (n_padded: a multiple of 32). Constants: threads, floats.
 * Dispatch: tokens. */
struct shaders_scale {
    uint32_t n, act_at, act_stride, scales_at, n_padded;
};
/* matmul_cm_T (VK_KHR_cooperative_matrix), matmul_nv_T (VK_NV_cooperative_matrix). Bindings: weights, halves, y.
 * Constants: threads, rows and tokens of a workgroup, of a subgroup, sixteens of columns of a step; threads = 32 for each subgroup.
 * n_units counts blocks of 32 columns for all types, part_units sixteens, whole steps; halves go on for a whole step after the last
 * column. act_stride: tokens. Dispatch: tiles of tokens, tiles of rows, parts. y: [tokens][rows], both
 * padded to whole tiles; to be multiplied by the token's scale.
 * matmul_dot_T, matmul_fma_T. Bindings: weights, activations, y. Constants: threads, rows and tokens of a workgroup (multiples of
 * 16 and 4), fours of rows and of tokens of a thread; threads * 16 * fours * fours = rows * tokens. Dispatch as above. y: neither
 * padded nor scaled. */
struct shaders_matmul {
    uint32_t n_rows, n_units, tile_vec4, part_units;
    uint32_t act_at, act_stride;
    uint32_t y_at, y_stride, y_part;
    uint32_t n_tokens;
};
/* copy: bindings x, y; constants: threads; dispatch: workgroups, each copies 64 bytes a thread; no push constants.
 * read: bindings x, y (4 bytes). Constants: threads. Dispatch: workgroups; each thread reads `each` times 16 bytes, a multiple
 * of 4. */
struct shaders_read {
    uint32_t each;
};

#endif
