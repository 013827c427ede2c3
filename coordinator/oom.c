/* SPDX-License-Identifier: MIT
 * Words alone; what was found out is coordinator/cgroup.c's. Called where a stage or an earlier coordinator was killed. */
#include "coordinator/oom.h"

#include <stdio.h>

#include "coordinator/cgroup.h"
#include "proto/util.h"

void oom_describe(const struct cgroup_kill *k, const char *who, uint64_t cap, const char *remedy, char *buf, size_t size)
{
    char allowed[32], used[32], limit[32], held[128] = "";
    util_format_bytes(allowed, sizeof(allowed), cap);
    util_format_bytes(used, sizeof(used), k->peak);
    util_format_bytes(limit, sizeof(limit), k->limit);
    if (k->cause == CGROUP_CAP) {
        snprintf(buf, size, "%s was killed by the kernel: it needed more than its cap of %s; %s", who, allowed, remedy);
        return;
    }
    const char *how = k->capped ? "was killed by the kernel for want of memory around it"
                                : "was killed (signal 9), as it seems by the kernel for want of memory around it";
    if (k->peak)
        snprintf(held, sizeof(held), "it used at most %s of its cap of %s, but ", used, allowed);
    if (k->cause == CGROUP_LIMIT)
        snprintf(buf, size,
                 "%s %s: %sgroup '%s' was at its limit of %s, with all that runs in it; raise that limit, end others there, or set "
                 "'memory.total' to what it has room for",
                 who, how, held, k->group, limit);
    else
        snprintf(buf, size,
                 "%s %s: %sthis machine, or a container that it lies in, had no memory left; end other programs, or set "
                 "'memory.total' to what there is room for",
                 who, how, held);
}
