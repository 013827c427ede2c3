/* SPDX-License-Identifier: MIT
 * Whether the limit of locked memory allows an NPU's buffers. The driver of Ryzen AI NPUs (amdxdna) maps every buffer locked, and
 * says no more than "Resource temporarily unavailable" where RLIMIT_MEMLOCK (`ulimit -l`, often 8 MiB) is below their sum.
 * Thread: any. */
#ifndef TANDEM_PROTO_MEMLOCK_H
#define TANDEM_PROTO_MEMLOCK_H

#include <stdint.h>

struct err;

#define MEMLOCK_UNLIMITED UINT64_MAX
/* That the user's half of that driver locks for itself when a device is opened, before any buffer: its heap, mapped with MAP_LOCKED
 * (amd/xdna-driver, src/shim/kmq/pcidev.cpp; its issue 903 has the message with this length). Read there, not measured. */
#define MEMLOCK_NPU_HEAP (UINT64_C(64) << 20)

/* Bytes; unlimited also where the process has CAP_IPC_LOCK, for which the limit does not hold. */
uint64_t memlock_limit(void);
/* 0, or -EAGAIN with the limit found, what is needed and how to raise it. what: "the NPU's buffers". */
int memlock_check(uint64_t limit, uint64_t wanted, const char *what, struct err *err);

#endif
