/* SPDX-License-Identifier: MIT
 * Reads files of /proc; measures and tries with threads and memory that are given back at once. Only the plan command does: what
 * runs never depends on it. */
#include "coordinator/machine.h"

#include <jansson.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coordinator/cgroup.h"
#include "kernels/pool.h"
#include "proto/budget.h"
#include "proto/memlock.h"
#include "proto/shm.h"
#include "proto/util.h"

#define PART (UINT64_C(8) << 20)
#define PARTS 32u      /* at most */
#define PARTS_LEAST 8u /* still more than caches hold */
#define ROUNDS 4
#define TRY ((size_t)8 << 20) /* has whole huge pages in it, wherever it begins */

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
    uint64_t left, limit = cgroup_limit(NULL, &left); /* of a container or a service around us */
    if (limit && ret->total) {
        ret->total = MIN(ret->total, limit);
        ret->available = MIN(ret->available, left);
    }
}

/* Bytes of huge pages behind a mapping of ours, from /proc/self/smaps. */
static uint64_t huge_bytes(const void *at)
{
    static const char *const keys[] = {"AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:"};
    char line[512];
    uint64_t bytes = 0;
    bool here = false;
    auto_file f = fopen("/proc/self/smaps", "re");
    while (f && fgets(line, sizeof(line), f)) {
        unsigned long begin, end;
        if (sscanf(line, "%lx-%lx ", &begin, &end) == 2)
            here = begin <= (uintptr_t)at && (uintptr_t)at < end;
        for (size_t i = 0; here && i < ARRAY_LEN(keys); i++) {
            if (strncmp(line, keys[i], strlen(keys[i])) == 0)
                bytes += strtoull(line + strlen(keys[i]), NULL, 10) * 1024;
        }
    }
    return bytes;
}

/* As segments are made and mapped. */
static bool huge_shared(void)
{
    void *p = NULL;
    auto_fd fd = shm_make("tandem-probe", TRY, false, NULL);
    if (fd < 0 || shm_map(fd, TRY, true, &p, NULL) < 0)
        return false;
    memset(p, 1, TRY);
    bool huge = huge_bytes(p) > 0;
    shm_unmap(p, TRY);
    return huge;
}

/* As a budget allocates. */
static bool huge_private(void)
{
    struct budget b;
    void *p = NULL;
    budget_init(&b, "probe", 0);
    if (budget_alloc(&b, BUDGET_SCRATCH, TRY, &p, NULL) < 0)
        return false;
    memset(p, 1, TRY);
    bool huge = huge_bytes((char *)p + TRY / 2) > 0;
    budget_free(&b, BUDGET_SCRATCH, p, TRY);
    return huge;
}

void machine_print(FILE *f)
{
    char text[32] = "no limit";
    uint64_t limit = memlock_limit();
    if (limit != MEMLOCK_UNLIMITED)
        util_format_bytes(text, sizeof(text), limit);
    fprintf(f, "pages       huge ones for weights: %s; for KV cache and scratch: %s; locked memory, for an NPU: %s (ulimit -l)\n",
            huge_shared() ? "yes" : "no", huge_private() ? "yes" : "no", text);
}

json_t *machine_json(void)
{
    uint64_t limit = memlock_limit();
    return json_pack("{s:b, s:b, s:I}", "huge_pages_shared", huge_shared(), "huge_pages_private", huge_private(), "memlock_bytes",
                     limit > INT64_MAX ? (json_int_t)-1 : (json_int_t)limit);
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

double machine_read_rate(uint32_t n_threads, uint64_t available)
{
    static struct reading r;
    struct pool *pool = NULL;
    uint32_t parts = (uint32_t)MIN(available / 4 / PART, PARTS);
    size_t bytes = parts * PART;
    uint64_t best = UINT64_MAX;
    if (parts < PARTS_LEAST)
        return 0;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return 0;
    madvise(p, bytes, MADV_HUGEPAGE); /* as weights have them, where the kernel gives them */
    if (pool_open((int)n_threads, &pool) == 0) {
        memset(p, 1, bytes);
        r.data = p;
        for (int i = 0; i < ROUNDS; i++) {
            uint64_t begin = util_now_ns();
            pool_run(pool, parts, 1, read_part, &r);
            best = MIN(best, util_now_ns() - begin);
        }
    }
    pool_close(pool);
    munmap(p, bytes);
    return best == UINT64_MAX ? 0 : (double)bytes * 1e9 / (double)best;
}

#define DISK_READERS 4
#define DISK_PIECE ((size_t)2 << 20)
#define DISK_NS UINT64_C(250000000)

struct disk {
    int fd;
    uint64_t size, end_ns;
    uint8_t *buffers;
    _Atomic uint64_t next, bytes;
};

static void read_disk(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct disk *d = ctx;
    uint8_t *buf = d->buffers + (size_t)thread * DISK_PIECE;
    (void)begin;
    (void)end;
    while (util_now_ns() < d->end_ns) {
        uint64_t at = atomic_fetch_add(&d->next, DISK_PIECE) % (d->size / DISK_PIECE * DISK_PIECE);
        if (pread(d->fd, buf, DISK_PIECE, (off_t)at) != (ssize_t)DISK_PIECE)
            return;
        atomic_fetch_add(&d->bytes, DISK_PIECE);
    }
}

double machine_disk_rate(const char *path)
{
    struct disk d = {.fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT)};
    struct stat st;
    struct pool *pool = NULL;
    double rate = 0;
    size_t room = (DISK_READERS + 1) * DISK_PIECE;
    uint8_t *p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (d.fd >= 0 && p != MAP_FAILED && fstat(d.fd, &st) == 0 && st.st_size >= (off_t)(16 * DISK_PIECE) &&
        pool_open(DISK_READERS, &pool) == 0) {
        d.size = (uint64_t)st.st_size;
        d.buffers = p + (DISK_PIECE - (uintptr_t)p % DISK_PIECE) % DISK_PIECE; /* whole huge pages: the disk writes each at once */
        madvise(d.buffers, DISK_READERS * DISK_PIECE, MADV_HUGEPAGE);
        memset(d.buffers, 0, DISK_READERS * DISK_PIECE);
        /* another place each time: a virtual machine's host remembers what was read lately */
        uint64_t pieces = d.size / DISK_PIECE, first = util_now_ns() * UINT64_C(0x9e3779b97f4a7c15) % pieces;
        atomic_store(&d.next, first * DISK_PIECE);
        uint64_t start = util_now_ns();
        d.end_ns = start + DISK_NS;
        pool_run(pool, DISK_READERS, 1, read_disk, &d);
        rate = (double)d.bytes * 1e9 / (double)(util_now_ns() - start);
    }
    pool_close(pool);
    if (p != MAP_FAILED)
        munmap(p, room);
    util_close_fd(&d.fd);
    return rate;
}
