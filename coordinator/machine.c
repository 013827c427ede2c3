/* SPDX-License-Identifier: MIT
 * Reads one file of /proc; measures with threads and memory that are given back at once. Only the plan command measures: what runs
 * never depends on it. */
#include "coordinator/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/pool.h"
#include "proto/util.h"

#define PART (UINT64_C(8) << 20)
#define PARTS 32u /* more than caches hold */
#define ROUNDS 4

void machine_memory(struct machine *ret)
{
    char line[128];
    auto_file f = fopen("/proc/meminfo", "re");
    *ret = (struct machine){0};
    while (f && fgets(line, sizeof(line), f)) {
        if (strncmp(line, "MemTotal:", 9) == 0)
            ret->total = strtoull(line + 9, NULL, 10) * 1024;
        else if (strncmp(line, "MemAvailable:", 13) == 0)
            ret->available = strtoull(line + 13, NULL, 10) * 1024;
    }
}

typedef uint64_t line __attribute__((vector_size(64))); /* what a cache line holds; the compiler makes vectors of it */

struct reading {
    const line *data;
    uint64_t sums[PARTS];
};

static void read_part(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct reading *r = ctx;
    line a = {0}, b = {0};
    (void)thread;
    for (uint32_t i = begin; i < end; i++) {
        const line *p = r->data + i * (PART / sizeof(line));
        for (size_t k = 0; k < PART / sizeof(line); k += 2) {
            a += p[k];
            b += p[k + 1];
        }
        r->sums[i] = a[0] + b[7];
    }
}

double machine_read_rate(uint32_t n_threads)
{
    static struct reading r;
    struct pool *pool = NULL;
    size_t bytes = PARTS * PART;
    uint64_t best = UINT64_MAX;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (p == MAP_FAILED)
        return 0;
    if (pool_open((int)n_threads, &pool) == 0) {
        memset(p, 1, bytes);
        r.data = p;
        for (int i = 0; i < ROUNDS; i++) {
            uint64_t begin = util_now_ns();
            pool_run(pool, PARTS, 1, read_part, &r);
            best = MIN(best, util_now_ns() - begin);
        }
    }
    pool_close(pool);
    munmap(p, bytes);
    return best == UINT64_MAX ? 0 : (double)bytes * 1e9 / (double)best;
}
