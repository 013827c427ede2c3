/* SPDX-License-Identifier: MIT
 * An end by the kernel for want of memory, in words: what was too small, with the figures, and what to do. Threads: any. */
#ifndef TANDEM_COORDINATOR_OOM_H
#define TANDEM_COORDINATOR_OOM_H

#include <stddef.h>
#include <stdint.h>

struct cgroup_kill;

/* who: "npu_worker (pid 7)"; remedy: what to do where its own cap was too small, as "raise 'memory.npu_worker'". */
void oom_describe(const struct cgroup_kill *k, const char *who, uint64_t cap, const char *remedy, char *buf, size_t size);

#endif
