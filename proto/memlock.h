/* SPDX-License-Identifier: MIT
 * Whether the limit of locked memory allows an NPU's buffers. The driver of Ryzen AI NPUs (amdxdna) maps every buffer locked, and
 * says no more than "Resource temporarily unavailable" where RLIMIT_MEMLOCK (`ulimit -l`, often 8 MiB) is below their sum.
 * Thread: any. */
#ifndef TANDEM_NPU_WORKER_XRT_MEMLOCK_H
#define TANDEM_NPU_WORKER_XRT_MEMLOCK_H

#include <stdint.h>

struct err;

#define XRT_MEMLOCK_UNLIMITED UINT64_MAX

/* Bytes; unlimited also where the process has CAP_IPC_LOCK, for which the limit does not hold. */
uint64_t xrt_memlock_limit(void);
/* 0, or -EAGAIN with the limit found, what is needed and how to raise it. what: "the NPU's buffers". */
int xrt_memlock_check(uint64_t limit, uint64_t wanted, const char *what, struct err *err);

#endif
