/* SPDX-License-Identifier: MIT
 * The instruction stream of the simulated NPU: what takes the place of the transaction binaries that the public flows build. u32
 * words: magic, version, operator, number of parameters, parameters. Data arguments are bo0 and up in the order given below;
 * matrices are row-major, all values bf16. A run whose stream or buffers do not fit ends in ERT_CMD_STATE_ERROR. */
#ifndef TANDEM_TESTS_NPU_SIM_STREAM_H
#define TANDEM_TESTS_NPU_SIM_STREAM_H

#include <stdint.h>

#define SIM_STREAM_MAGIC 0x4d495354u /* "TSIM" */
#define SIM_STREAM_VERSION 1u
#define SIM_STREAM_HEADER 4u
#define SIM_STREAM_WORDS_MAX 16u

enum sim_operator {
    SIM_GEMM,      /* a[m][k], b[k][n] or [n][k], c[m][n]; parameters m, k, n, b is [n][k], tile_m, tile_k, tile_n, columns */
    SIM_GEMV,      /* a[m][k], x[k], y[m]; m, k, tile_m, columns */
    SIM_RMS_NORM,  /* x[rows][width], w[width], y; rows, width, epsilon (bits of an f32) */
    SIM_ROPE,      /* x[rows][width], angles[rows][width], y; rows, width, method: 0 = halves, 1 = interleaved */
    SIM_ATTENTION, /* q[heads][tokens][d], k, v[kv_heads][keys][d], positions (4 i32), o;
                      tokens, keys, heads, kv_heads, d, window, scale (bits of an f32) */
    SIM_OPERATORS
};

static const uint32_t sim_stream_params[SIM_OPERATORS] = {8, 4, 3, 3, 7};

#endif
