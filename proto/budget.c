/* SPDX-License-Identifier: MIT
 * Counts bytes by category against one limit. Owns nothing but the counters; any thread. A take that would pass the limit
 * changes nothing. fail_after makes the n-th take fail, for tests that prove every path survives it. */
#include "proto/budget.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "proto/err.h"
#include "proto/util.h"

#define HUGE_PAGE ((size_t)2 << 20)

static const char *const names[BUDGET_CATEGORIES] = {"weights", "kv", "scratch", "ring", "device"};

const char *budget_category_name(enum budget_category cat)
{
    return (unsigned)cat < BUDGET_CATEGORIES ? names[cat] : "?";
}

void budget_init(struct budget *b, const char *process, uint64_t limit)
{
    memset(b, 0, sizeof(*b));
    snprintf(b->process, sizeof(b->process), "%s", process);
    b->limit = limit;
    atomic_store(&b->fail_after, -1);
}

static void raise_peak(_Atomic uint64_t *peak, uint64_t v)
{
    uint64_t p = atomic_load(peak);
    while (v > p && !atomic_compare_exchange_weak(peak, &p, v))
        ;
}

static int refuse(const struct budget *b, enum budget_category cat, uint64_t bytes, const char *why, const char *remedy,
                  struct err *err)
{
    uint64_t used = atomic_load(&b->total);
    return err_set(err, -ENOMEM, "%s: %" PRIu64 " bytes for %s %s: %" PRIu64 " bytes are used of %" PRIu64 " allowed; %s",
                   b->process, bytes, budget_category_name(cat), why, used, b->limit, remedy);
}

int budget_take(struct budget *b, enum budget_category cat, uint64_t bytes, struct err *err)
{
    if (atomic_load(&b->fail_after) >= 0 && atomic_fetch_sub(&b->fail_after, 1) == 0)
        return refuse(b, cat, bytes, "refused by fault injection", "none is needed", err);
    uint64_t total = atomic_load(&b->total), sum;
    do {
        if (__builtin_add_overflow(total, bytes, &sum) || (b->limit && sum > b->limit))
            return refuse(b, cat, bytes, "do not fit", "raise its memory cap", err);
    } while (!atomic_compare_exchange_weak(&b->total, &total, sum));
    raise_peak(&b->total_peak, sum);
    raise_peak(&b->peak[cat], atomic_fetch_add(&b->used[cat], bytes) + bytes);
    return 0;
}

void budget_give(struct budget *b, enum budget_category cat, uint64_t bytes)
{
    atomic_fetch_sub(&b->used[cat], bytes);
    atomic_fetch_sub(&b->total, bytes);
}

/* Large pieces begin at a multiple of a huge page, so that they can consist of such. */
static void *map(size_t bytes)
{
    size_t more = bytes >= HUGE_PAGE ? HUGE_PAGE : 0;
    uint8_t *r = mmap(NULL, bytes + more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (r == MAP_FAILED || !more)
        return r;
    size_t before = (more - (uintptr_t)r % more) % more;
    if (before)
        munmap(r, before);
    if (more - before)
        munmap(r + before + bytes, more - before);
    return r + before;
}

int budget_alloc(struct budget *b, enum budget_category cat, size_t bytes, void **ret, struct err *err)
{
    size_t rounded = util_round_up(bytes ? bytes : 1, 4096);
    int r = budget_take(b, cat, rounded, err);
    if (r < 0)
        return r;
    void *p = map(rounded);
    if (p == MAP_FAILED) {
        budget_give(b, cat, rounded);
        return refuse(b, cat, rounded, "are not to be had from the system", "free memory, or see 'ulimit -v'", err);
    }
    if (rounded >= HUGE_PAGE)
        madvise(p, rounded, MADV_HUGEPAGE);
    *ret = p;
    return 0;
}

void budget_free(struct budget *b, enum budget_category cat, void *p, size_t bytes)
{
    if (!p)
        return;
    size_t rounded = util_round_up(bytes ? bytes : 1, 4096);
    munmap(p, rounded);
    budget_give(b, cat, rounded);
}
