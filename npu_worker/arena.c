/* SPDX-License-Identifier: MIT
 * Owns the range and its allocator. Opened by the stage before the backend, closed after it; pages of the KV cache are taken on the
 * data thread, without a system call. */
#include "npu_worker/arena.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

#define HUGE_PAGE (UINT64_C(2) << 20)

struct arena {
    struct offsets *offsets;
    uint8_t *base;
    uint64_t bytes, used[ARENA_USES], peak[ARENA_USES];
};

static const char *const names[ARENA_USES] = {[ARENA_KV] = "KV pages", [ARENA_SCRATCH] = "scratch"};

int arena_open(uint64_t bytes, uint32_t max_blocks, struct arena **ret, struct err *err)
{
    struct arena *a = calloc(1, sizeof(*a));
    if (!a)
        return err_set(err, -ENOMEM, "NPU memory: out of memory");
    a->bytes = util_round_up(bytes, HUGE_PAGE);
    int r = offsets_open(bytes, max_blocks, &a->offsets, err);
    if (r == 0) {
        void *p = mmap(NULL, a->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        a->base = p == MAP_FAILED ? NULL : p;
        if (!a->base)
            r = err_set_errno(err, -errno, "NPU memory: a range of %" PRIu64 " bytes (see 'ulimit -v')", a->bytes);
    }
    if (r < 0) {
        offsets_close(a->offsets);
        free(a);
        return r;
    }
    madvise(a->base, a->bytes, MADV_HUGEPAGE);
    *ret = a;
    return 0;
}

void arena_close(struct arena *a)
{
    if (!a)
        return;
    struct arena_stats s;
    arena_stats(a, &s);
    log_info("npu",
             "memory: %" PRIu64 " bytes were used at most of %" PRIu64 " (KV pages %" PRIu64 ", scratch %" PRIu64
             "); %.0f%% fragmented at the end",
             s.all.peak, s.all.bytes, s.peak[ARENA_KV], s.peak[ARENA_SCRATCH], 100 * offsets_fragmentation(&s.all));
    for (int i = 0; i < ARENA_USES; i++) {
        if (a->used[i])
            log_warn("npu", "%" PRIu64 " bytes of NPU memory for %s were not given back", a->used[i], names[i]);
    }
    munmap(a->base, a->bytes);
    offsets_close(a->offsets);
    free(a);
}

int arena_take(struct arena *a, enum arena_use use, uint64_t bytes, uint64_t align, uint32_t *ret_block, void **ret,
               struct err *err)
{
    uint64_t at;
    uint32_t block = offsets_take(a->offsets, bytes, align, &at);
    if (block == OFFSETS_NONE) {
        struct offsets_stats s;
        offsets_stats(a->offsets, &s);
        return err_set(err, -ENOMEM,
                       "NPU memory: %" PRIu64 " bytes for %s do not fit: %" PRIu64 " of %" PRIu64
                       " are used, the largest free part has %" PRIu64 " (raise 'npu.memory')",
                       bytes, names[use], s.used, s.bytes, s.largest);
    }
    a->used[use] += bytes;
    a->peak[use] = MAX(a->peak[use], a->used[use]);
    *ret_block = block;
    *ret = a->base + at;
    return 0;
}

void arena_give(struct arena *a, enum arena_use use, uint64_t bytes, uint32_t block)
{
    offsets_give(a->offsets, block);
    a->used[use] -= bytes;
}

void arena_stats(const struct arena *a, struct arena_stats *ret)
{
    offsets_stats(a->offsets, &ret->all);
    for (int i = 0; i < ARENA_USES; i++) {
        ret->used[i] = a->used[i];
        ret->peak[i] = a->peak[i];
    }
}
