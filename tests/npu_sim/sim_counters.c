/* SPDX-License-Identifier: MIT
 * What reached the simulated device since the process began, for tests that compare it with what was asked for. Written as a whole
 * file under the name that NPU_SIM_REPORT says, when a device is closed. Any thread. */
#include "tests/npu_sim/sim.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const names[SIM_COUNTERS] = {"opens",      "loads",    "buffers",    "bytes",   "peak_bytes", "syncs_to",
                                                "syncs_from", "bytes_to", "bytes_from", "submits", "runs"};
static _Atomic uint64_t values[SIM_COUNTERS];

void sim_count(enum sim_counter c, uint64_t n)
{
    atomic_fetch_add(&values[c], n);
}

void sim_count_allocated(int64_t bytes) /* under sim_lock */
{
    uint64_t now = atomic_fetch_add(&values[SIM_BYTES], (uint64_t)bytes) + (uint64_t)bytes;
    if (now > values[SIM_PEAK_BYTES])
        values[SIM_PEAK_BYTES] = now;
}

uint64_t sim_counter(enum sim_counter c)
{
    return values[c];
}

void sim_counters_report(void)
{
    const char *path = getenv("NPU_SIM_REPORT");
    char temporary[4096];
    if (!path || snprintf(temporary, sizeof(temporary), "%s.part", path) >= (int)sizeof(temporary))
        return;
    FILE *f = fopen(temporary, "w");
    if (!f) {
        perror(temporary);
        return;
    }
    for (unsigned c = 0; c < SIM_COUNTERS; c++)
        fprintf(f, "%s %" PRIu64 "\n", names[c], values[c]);
    if (fclose(f) != 0 || rename(temporary, path) != 0)
        perror(path);
}

/* A device that was lost is never closed. */
__attribute__((destructor)) static void report_at_exit(void)
{
    sim_counters_report();
}
