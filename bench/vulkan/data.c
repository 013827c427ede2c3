/* SPDX-License-Identifier: MIT
 * Random test data: weights quantized by the project's own quantizer and interleaved as a segment holds them; activations in the
 * form of the shaders. Called by the checks and by the benchmark; owns what it returns until freed. */
#include "bench/vulkan/data.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_worker/shaders.h"
#include "kernels/gemm_act.h"
#include "kernels/quant.h"
#include "kernels/repack.h"

void *data_alloc(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (!p) {
        fputs("bench_vulkan: out of memory\n", stderr);
        exit(1);
    }
    memset(p, 0, bytes);
    return p;
}

float data_random(void)
{
    static uint64_t s = 88172645463325252u;
    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return (float)(int32_t)(s >> 32) * 0x1p-31f;
}

struct data_matrix data_matrix_make(int type, uint32_t n_rows, uint32_t n_cols, uint32_t distinct)
{
    size_t row = quant_row_bytes(type, n_cols), tile = repack_tile_bytes(type, n_cols);
    struct data_matrix d = {.bytes = repack_bytes(type, n_rows, n_cols)};
    float *f = data_alloc(n_cols * sizeof(float));
    d.tiles = data_alloc(d.bytes);
    d.rows = data_alloc(row * n_rows);
    for (uint32_t i = 0; i < n_rows; i++) {
        if (i >= distinct) {
            memcpy(d.rows + i * row, d.rows + i % distinct * row, row);
            continue;
        }
        for (uint32_t k = 0; k < n_cols; k++)
            f[k] = 0.05f * data_random();
        quant_quantize_row(type, f, d.rows + i * row, n_cols);
    }
    for (uint32_t r = 0; r < n_rows; r += 16)
        repack_tile(type, d.rows + r * row, n_rows - r < 16 ? n_rows - r : 16, n_cols, (char *)d.tiles + r / 16 * tile);
    d.m = (struct gemm_matrix){.type = type, .n_rows = n_rows, .n_cols = n_cols, .tiles = d.tiles};
    free(f);
    return d;
}

void data_matrix_free(struct data_matrix *m)
{
    free(m->tiles);
    free(m->rows);
    *m = (struct data_matrix){0};
}

uint32_t data_act_words(int type, uint32_t n_cols)
{
    return quant_is_integer(type) ? shaders_act_words(n_cols) : n_cols;
}

uint32_t data_act(int type, const void *act, uint32_t n_cols, uint32_t *ret_words)
{
    if (!quant_is_integer(type)) {
        memcpy(ret_words, act, n_cols * sizeof(float));
        return n_cols;
    }
    struct gemm_act a = gemm_act_at(act, n_cols);
    memcpy(ret_words, a.quants, n_cols);
    for (uint32_t b = 0; b < n_cols / 32; b++) {
        uint32_t *pair = ret_words + n_cols / 4 + 2 * b;
        memcpy(pair, &a.scales[b], 4);
        pair[1] = (uint32_t)(a.halves[2 * b] / -32) & 0xffff;
        pair[1] |= (uint32_t)(a.halves[2 * b + 1] / -32) << 16;
    }
    return shaders_act_words(n_cols);
}

int data_act_floats(int type, const uint32_t *words, uint32_t n_cols, float *ret)
{
    if (!quant_is_integer(type)) {
        memcpy(ret, words, n_cols * sizeof(float));
        return 1;
    }
    const int8_t *q = (const int8_t *)words;
    for (uint32_t b = 0; b < n_cols / 32; b++) {
        const uint32_t *pair = words + n_cols / 4 + 2 * b;
        int sum[2] = {0};
        float d;
        memcpy(&d, pair, 4);
        for (uint32_t i = 0; i < 32; i++) {
            ret[32 * b + i] = d * (float)q[32 * b + i];
            sum[i / 16] += q[32 * b + i];
        }
        if ((int16_t)pair[1] != sum[0] || (int16_t)(pair[1] >> 16) != sum[1])
            return 0;
    }
    return 1;
}
