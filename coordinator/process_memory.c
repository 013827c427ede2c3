/* SPDX-License-Identifier: MIT
 * Reads /proc/<pid>/status and /proc/<pid>/smaps_rollup (kernel documentation: filesystems/proc.rst). Owns nothing. */
#include "coordinator/process_memory.h"

#include <errno.h>
#include <string.h>

#include "proto/util.h"

static uint64_t field(const char *line, const char *name)
{
    size_t n = strlen(name);
    return strncmp(line, name, n) == 0 && line[n] == ':' ? strtoull(line + n + 1, NULL, 10) * 1024 : 0;
}

int process_memory_read(int pid, bool with_pss, struct process_memory *ret)
{
    char path[64], line[256];
    *ret = (struct process_memory){0};
    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    auto_file f = fopen(path, "re");
    if (!f)
        return -errno;
    while (fgets(line, sizeof(line), f)) {
        ret->rss += field(line, "VmRSS");
        ret->anon += field(line, "RssAnon");
        ret->shmem += field(line, "RssShmem");
    }
    if (!with_pss)
        return 0;
    snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
    auto_file g = fopen(path, "re");
    while (g && fgets(line, sizeof(line), g))
        ret->pss += field(line, "Pss");
    return 0;
}
