/* SPDX-License-Identifier: MIT
 * What /proc says of a process's memory. Thread: any. */
#ifndef TANDEM_COORDINATOR_PROCESS_MEMORY_H
#define TANDEM_COORDINATOR_PROCESS_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

struct process_memory {
    uint64_t rss;   /* VmRSS */
    uint64_t anon;  /* RssAnon: private pages of now */
    uint64_t shmem; /* RssShmem: pages of now that others may map as well */
    uint64_t pss;   /* proportional share, from smaps_rollup; 0 when not readable */
};

/* 0 or a negative errno. with_pss: the kernel walks every page of the process for it, which takes milliseconds; else it is 0. */
int process_memory_read(int pid, bool with_pss, struct process_memory *ret);

#endif
