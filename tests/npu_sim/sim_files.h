/* SPDX-License-Identifier: MIT
 * A folder with what a build of the public operators leaves behind, for the simulated NPU: an xclbin, an instruction file per
 * operator, and the manifest that npu_worker reads.
 *
 * An operator is written as one word:
 *   gemm:MxKxN[:nk]                gemv:MxK                rms_norm:ROWSxWIDTH:EPSILON
 *   rope:ROWSxWIDTH[:interleaved]  attention:TOKENSxKEYSxHEADSxKV_HEADSxHEAD_DIMxWINDOW:SCALE
 * Tiles are the largest of 64, 32, 16, 8 that divide the shape as the limits ask, columns the largest of 4, 2, 1. */
#ifndef TANDEM_TESTS_NPU_SIM_FILES_H
#define TANDEM_TESTS_NPU_SIM_FILES_H

#include <stddef.h>
#include <stdint.h>

struct err;

/* The words of an operator; ret: room for SIM_STREAM_WORDS_MAX. */
int sim_files_words(const char *operator_text, uint32_t *ret, size_t *ret_n, struct err *err);
/* folder exists; what is in it is replaced: npu.xclbin, 0.bin or 0.txt (hex, every second one) and so on, manifest.yaml. */
int sim_files_write(const char *folder, const char *const *operators, size_t n, struct err *err);

#endif
