/* SPDX-License-Identifier: MIT
 * Faults and speed of the simulated NPU from NPU_SIM, "memory=1048576,hang_at=3". A key that is not known ends the process: a test
 * that misspells one would test nothing. */
#include "tests/npu_sim/sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[SIM_FAULTS] = {"no_device",    "crash_open", "hang_open",   "load_fail", "memory",     "memlock",
                                              "memlock_open", "sync_fail",  "submit_fail", "hang_at",   "timeout_at", "error_at",
                                              "abort_at",     "crash_at",   "delay_us",    "corner"};
static uint64_t values[SIM_FAULTS];

static void unknown(const char *text)
{
    fprintf(stderr, "npu_sim: NPU_SIM: '%s' is not KEY=NUMBER with a key that is known\n", text);
    abort();
}

static void read_one(const char *text)
{
    size_t n = strcspn(text, "=");
    char *end;
    if (text[n] != '=')
        unknown(text);
    for (unsigned f = 0; f < SIM_FAULTS; f++) {
        if (strlen(names[f]) != n || strncmp(names[f], text, n) != 0)
            continue;
        values[f] = strtoull(text + n + 1, &end, 10);
        if (end == text + n + 1 || (*end && *end != ','))
            unknown(text);
        return;
    }
    unknown(text);
}

void sim_faults_read(void)
{
    const char *text = getenv("NPU_SIM");
    memset(values, 0, sizeof(values));
    while (text && *text) {
        read_one(text);
        text = strchr(text, ',');
        if (text)
            text++;
    }
}

uint64_t sim_fault(enum sim_fault f)
{
    return values[f];
}
