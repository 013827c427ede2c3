/* SPDX-License-Identifier: MIT
 * Whether a file is a whole xclbin, asked before XRT gets it. Thread: any. */
#ifndef TANDEM_NPU_WORKER_XCLBIN_H
#define TANDEM_NPU_WORKER_XCLBIN_H

struct err;

/* -ENOEXEC with what was found and the remedy: it cannot be read, is none, was cut off, or its sections do not lie in it. What is
 * in the sections is XRT's to judge. */
int xclbin_check(const char *path, struct err *err);

#endif
