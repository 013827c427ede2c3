/* SPDX-License-Identifier: MIT
 * Buffers of the simulated NPU. Host and device each have memory of their own, and only a sync copies between them: what was not
 * synced is seen as a wrong number. Command packets alone are shared, as on the real device. Flags are refused as amdxdna refuses
 * them: data is host_only, instructions are cacheable. */
#include "tests/npu_sim/sim.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include <xrt_mem.h>

#define PAGE 4096u
#define KIND_MASK 0xff000000u

pthread_mutex_t sim_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sim_bo bos[SIM_BOS];
static unsigned n_bos = 1; /* numbers from here on were never used */
static uint64_t next_address = 1ull << 40;

static size_t mapped(size_t bytes)
{
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

static void *map_pages(size_t bytes)
{
    void *p = mmap(NULL, mapped(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static int allowed(size_t bytes, unsigned flags)
{
    unsigned kind = flags & KIND_MASK;
    uint64_t held = sim_counter(SIM_BYTES), cap = sim_fault(SIM_MEMORY), lock = sim_fault(SIM_MEMLOCK);
    if (kind == XCL_BO_FLAGS_EXECBUF)
        return 0;
    if (kind != XCL_BO_FLAGS_HOST_ONLY && kind != XCL_BO_FLAGS_CACHEABLE)
        return ENOTSUP;
    if (lock && held + bytes > lock)
        return EAGAIN;
    return cap && held + bytes > cap ? ENOMEM : 0;
}

static unsigned unused(void)
{
    for (unsigned i = 1; i < SIM_BOS; i++) {
        if (!bos[i].used)
            return i;
    }
    return 0;
}

unsigned sim_memory_alloc(void *user, size_t bytes, unsigned flags)
{
    bool packet = (flags & KIND_MASK) == XCL_BO_FLAGS_EXECBUF;
    unsigned i = unused();
    int e = i == 0 || bytes == 0 ? ENOMEM : allowed(bytes, flags);
    if (e) {
        errno = e;
        return 0;
    }
    struct sim_bo b = {
        .host = user ? user : map_pages(bytes), .bytes = bytes, .flags = flags, .used = true, .borrowed = user != NULL};
    b.device = packet ? b.host : map_pages(bytes);
    if (!b.host || !b.device) {
        if (b.host && !user)
            munmap(b.host, mapped(bytes));
        errno = ENOMEM;
        return 0;
    }
    b.address = next_address;
    next_address += mapped(bytes) + PAGE; /* one buffer's end is never another's beginning */
    bos[i] = b;
    n_bos = i < n_bos ? n_bos : i + 1;
    if (!packet) {
        sim_count(SIM_BUFFERS, 1);
        sim_count_allocated((int64_t)bytes);
    }
    return i;
}

void sim_memory_free(unsigned bo)
{
    struct sim_bo *b = sim_memory_get(bo);
    if (!b)
        return;
    if (b->device != b->host) {
        munmap(b->device, mapped(b->bytes));
        sim_count_allocated(-(int64_t)b->bytes);
    }
    if (!b->borrowed)
        munmap(b->host, mapped(b->bytes));
    b->used = false;
}

struct sim_bo *sim_memory_get(unsigned bo)
{
    return bo < SIM_BOS && bos[bo].used ? &bos[bo] : NULL;
}

void *sim_memory_at(uint64_t address, size_t bytes)
{
    for (unsigned i = 1; i < n_bos; i++) {
        const struct sim_bo *b = &bos[i];
        if (b->used && address >= b->address && address - b->address <= b->bytes && bytes <= b->bytes - (address - b->address))
            return (char *)b->device + (address - b->address);
    }
    return NULL;
}
