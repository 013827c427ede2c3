/* SPDX-License-Identifier: MIT
 * Writes an xclbin that real XRT 2.13 accepts and that only the simulated NPU loads: one kernel with the arguments of the public
 * flows (opcode, instructions, words, bo0 .. bo4). */
#ifndef TANDEM_TESTS_NPU_SIM_XCLBIN_H
#define TANDEM_TESTS_NPU_SIM_XCLBIN_H

#define SIM_XCLBIN_PLATFORM "npu_sim"

/* 0 or a negative errno. tag makes files differ that are to count as different xclbins. */
int sim_xclbin_write(const char *path, const char *kernel, const char *tag);

#endif
