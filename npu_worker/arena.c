/* SPDX-License-Identifier: MIT
 * Owns the range and its allocator. Opened by the stage before the backend, closed after it; pages of the KV cache are taken on the
 * data thread, without a system call. */
#include "npu_worker/arena.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

#define HUGE_PAGE (UINT64_C(2) << 20)

struct arena {
    struct offsets *offsets;
    uint8_t *base;
    uint64_t bytes, mapped, used[ARENA_USES], peak[ARENA_USES], promised[ARENA_USES];
    bool changed; /* since it was published */
    struct {
        _Atomic uint64_t used[ARENA_USES], peak[ARENA_USES], all_used, all_peak, largest;
    } shown;
};

const char *arena_use_name(enum arena_use use)
{
    static const char *const names[ARENA_USES] = {[ARENA_WEIGHTS] = "weights",
                                                  [ARENA_KV] = "KV pages",
                                                  [ARENA_SCRATCH] = "scratch",
                                                  [ARENA_TILES] = "NPU tiles",
                                                  [ARENA_INSTRUCTIONS] = "NPU instructions"};
    return names[use];
}

int arena_open(uint64_t bytes, uint32_t max_blocks, struct arena **ret, struct err *err)
{
    struct arena *a = calloc(1, sizeof(*a));
    if (!a)
        return err_set(err, -ENOMEM, "NPU memory: out of memory");
    a->bytes = bytes ? bytes / ARENA_ALIGN * ARENA_ALIGN : (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    a->mapped = util_round_up(a->bytes, HUGE_PAGE);
    int r = offsets_open(a->bytes, max_blocks, &a->offsets, err);
    if (r == 0) {
        void *p = mmap(NULL, a->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        a->base = p == MAP_FAILED ? NULL : p;
        if (!a->base)
            r = err_set_errno(err, -errno,
                              "NPU memory: a range of %" PRIu64 " bytes (lower 'npu.memory', or see 'ulimit -v' and "
                              "/proc/sys/vm/overcommit_memory)",
                              a->mapped);
    }
    if (r < 0) {
        offsets_close(a->offsets);
        free(a);
        return r;
    }
    madvise(a->base, a->mapped, MADV_HUGEPAGE);
    a->changed = true;
    arena_publish(a);
    *ret = a;
    return 0;
}

/* "weights 1 KiB, KV pages 2 KiB": of every use that had any. */
static void describe_peaks(const struct arena_stats *s, char *buf, size_t bytes)
{
    size_t at = 0;
    buf[0] = '\0';
    for (int i = 0; i < ARENA_USES && at < bytes; i++) {
        if (s->peak[i])
            at += (size_t)snprintf(buf + at, bytes - at, "%s%s %" PRIu64, at ? ", " : "", arena_use_name((enum arena_use)i),
                                   s->peak[i]);
    }
}

void arena_close(struct arena *a)
{
    if (!a)
        return;
    struct arena_stats s;
    char peaks[256];
    arena_stats(a, &s);
    describe_peaks(&s, peaks, sizeof(peaks));
    log_info("npu", "memory: %" PRIu64 " bytes were used at most of %" PRIu64 " (%s); %.0f%% fragmented at the end", s.all.peak,
             s.all.bytes, peaks, 100 * offsets_fragmentation(&s.all));
    for (int i = 0; i < ARENA_USES; i++) {
        if (a->used[i])
            log_warn("npu", "%" PRIu64 " bytes of NPU memory for %s were not given back", a->used[i],
                     arena_use_name((enum arena_use)i));
    }
    munmap(a->base, a->mapped);
    offsets_close(a->offsets);
    free(a);
}

/* What a use may have in all: the pool without what others hold or were promised. */
static uint64_t room(const struct arena *a, enum arena_use use)
{
    uint64_t others = 0;
    for (int i = 0; i < ARENA_USES; i++)
        others += i == (int)use ? 0 : MAX(a->used[i], a->promised[i]);
    return a->bytes > others ? a->bytes - others : 0;
}

int arena_promise(struct arena *a, enum arena_use use, uint64_t bytes, struct err *err)
{
    if (bytes > room(a, use))
        return err_set(err, -ENOMEM,
                       "NPU memory: %" PRIu64 " bytes for %s do not fit: all others leave %" PRIu64 " of %" PRIu64
                       " (raise 'npu.memory')",
                       bytes, arena_use_name(use), room(a, use), a->bytes);
    a->promised[use] = bytes;
    return 0;
}

int arena_reserve(struct arena *a, enum arena_use use, uint64_t bytes, uint32_t *ret_block, struct err *err)
{
    uint64_t at, free_bytes = room(a, use) - MIN(room(a, use), a->used[use]);
    uint32_t block = OFFSETS_NONE;
    if (bytes <= free_bytes)
        block = offsets_take(a->offsets, util_round_up(bytes, ARENA_ALIGN), ARENA_ALIGN, &at);
    if (block == OFFSETS_NONE) {
        struct offsets_stats s;
        offsets_stats(a->offsets, &s);
        return err_set(err, -ENOMEM,
                       "NPU memory: %" PRIu64 " bytes for %s do not fit: %" PRIu64 " of %" PRIu64
                       " are used, the largest free part has %" PRIu64 ", and %" PRIu64
                       " are not promised to others (raise 'npu.memory')",
                       bytes, arena_use_name(use), s.used, s.bytes, s.largest, free_bytes);
    }
    a->used[use] += offsets_size(a->offsets, block);
    a->peak[use] = MAX(a->peak[use], a->used[use]);
    a->changed = true;
    *ret_block = block;
    return 0;
}

int arena_take(struct arena *a, enum arena_use use, uint64_t bytes, uint32_t *ret_block, void **ret, struct err *err)
{
    int r = arena_reserve(a, use, bytes, ret_block, err);
    if (r == 0)
        *ret = a->base + offsets_at(a->offsets, *ret_block);
    return r;
}

void arena_give(struct arena *a, enum arena_use use, uint32_t block)
{
    if (block == OFFSETS_NONE)
        return;
    a->used[use] -= offsets_size(a->offsets, block);
    a->changed = true;
    offsets_give(a->offsets, block);
}

void arena_stats(const struct arena *a, struct arena_stats *ret)
{
    offsets_stats(a->offsets, &ret->all);
    for (int i = 0; i < ARENA_USES; i++) {
        ret->used[i] = a->used[i];
        ret->peak[i] = a->peak[i];
    }
}

static void show(_Atomic uint64_t *to, uint64_t value)
{
    atomic_store_explicit(to, value, memory_order_relaxed);
}

void arena_publish(struct arena *a)
{
    struct arena_stats s;
    if (!a->changed)
        return;
    a->changed = false;
    arena_stats(a, &s);
    show(&a->shown.all_used, s.all.used);
    show(&a->shown.all_peak, s.all.peak);
    show(&a->shown.largest, s.all.largest);
    for (int i = 0; i < ARENA_USES; i++) {
        show(&a->shown.used[i], s.used[i]);
        show(&a->shown.peak[i], s.peak[i]);
    }
}

void arena_published(const struct arena *a, struct arena_stats *ret)
{
    *ret = (struct arena_stats){
        .all = {.bytes = a->bytes, .used = a->shown.all_used, .peak = a->shown.all_peak, .largest = a->shown.largest}};
    for (int i = 0; i < ARENA_USES; i++) {
        ret->used[i] = a->shown.used[i];
        ret->peak[i] = a->shown.peak[i];
    }
}
