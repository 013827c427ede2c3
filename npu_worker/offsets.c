/* SPDX-License-Identifier: MIT
 * Owns an array of blocks, used and free, linked to their neighbours by offset; free ones are in the list of their size besides.
 * The lists: sizes below 8 granules have one each, above that every power of two is cut into 8. A bit per list says whether it has
 * a member. Never allocates after open. */
#include "npu_worker/offsets.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "proto/err.h"
#include "proto/util.h"

#define NONE OFFSETS_NONE
#define STEPS 8 /* lists of a power of two */
#define LISTS 512

struct block {
    uint64_t at, n; /* granules */
    uint32_t before, after;
    uint32_t previous, next; /* in a list; next: also of unused entries of the array */
    bool used;
};

struct offsets {
    uint64_t n, used, peak; /* granules */
    uint32_t max_blocks, n_used, spare;
    uint64_t filled[LISTS / 64];
    uint32_t lists[LISTS];
    struct block *blocks;
};

/* The list of free parts of n granules. */
static uint32_t list_of(uint64_t n)
{
    uint32_t e = 63 - (uint32_t)__builtin_clzll(n);
    return n < STEPS ? (uint32_t)n : (e - 2) * STEPS + (uint32_t)(n >> (e - 3) & (STEPS - 1));
}

/* The first list all of whose members have n granules or more. */
static uint32_t sure_list(uint64_t n)
{
    uint64_t step = n < STEPS ? 1 : UINT64_C(1) << (60 - __builtin_clzll(n));
    return list_of(util_round_up(n, step));
}

static uint32_t first_filled(const struct offsets *o, uint32_t from)
{
    for (uint32_t w = from / 64; w < LISTS / 64; w++) {
        uint64_t bits = o->filled[w] & (w == from / 64 ? UINT64_MAX << from % 64 : UINT64_MAX);
        if (bits)
            return w * 64 + (uint32_t)__builtin_ctzll(bits);
    }
    return NONE;
}

static void list_add(struct offsets *o, uint32_t b)
{
    uint32_t l = list_of(o->blocks[b].n), head = o->lists[l];
    o->blocks[b].previous = NONE;
    o->blocks[b].next = head;
    if (head != NONE)
        o->blocks[head].previous = b;
    o->lists[l] = b;
    o->filled[l / 64] |= UINT64_C(1) << l % 64;
}

static void list_remove(struct offsets *o, uint32_t b)
{
    const struct block *x = &o->blocks[b];
    uint32_t l = list_of(x->n);
    if (x->next != NONE)
        o->blocks[x->next].previous = x->previous;
    if (x->previous != NONE)
        o->blocks[x->previous].next = x->next;
    else
        o->lists[l] = x->next;
    if (o->lists[l] == NONE)
        o->filled[l / 64] &= ~(UINT64_C(1) << l % 64);
}

int offsets_open(uint64_t bytes, uint32_t max_blocks, struct offsets **ret, struct err *err)
{
    uint32_t entries = 2 * max_blocks + 1; /* a free part between every two in use */
    struct offsets *o = calloc(1, sizeof(*o));
    if (o)
        o->blocks = malloc((size_t)entries * sizeof(*o->blocks));
    if (!o || !o->blocks || max_blocks > 1u << 30 || bytes < OFFSETS_GRANULE) {
        offsets_close(o);
        return err_set(err, o ? -EINVAL : -ENOMEM, "offset allocator: %llu bytes in %u blocks: expected at least %d, and memory",
                       (unsigned long long)bytes, max_blocks, OFFSETS_GRANULE);
    }
    o->n = bytes / OFFSETS_GRANULE;
    o->max_blocks = max_blocks;
    for (uint32_t i = 0; i < LISTS; i++)
        o->lists[i] = NONE;
    for (uint32_t i = 1; i < entries; i++)
        o->blocks[i].next = i + 1 < entries ? i + 1 : NONE;
    o->spare = entries > 1 ? 1 : NONE;
    o->blocks[0] = (struct block){.n = o->n, .before = NONE, .after = NONE};
    list_add(o, 0);
    *ret = o;
    return 0;
}

void offsets_close(struct offsets *o)
{
    if (o)
        free(o->blocks);
    free(o);
}

static uint64_t waste(const struct block *b, uint64_t align)
{
    return util_round_up(b->at, align) - b->at;
}

/* A free part that holds n granules at a multiple of `align`: one that surely does, or whichever does. */
static uint32_t find(const struct offsets *o, uint64_t n, uint64_t align)
{
    uint32_t l = first_filled(o, sure_list(n + align - 1));
    if (l != NONE)
        return o->lists[l];
    for (l = first_filled(o, list_of(n)); l != NONE; l = first_filled(o, l + 1)) {
        for (uint32_t b = o->lists[l]; b != NONE; b = o->blocks[b].next) {
            if (o->blocks[b].n >= waste(&o->blocks[b], align) + n)
                return b;
        }
    }
    return NONE;
}

/* Cuts block b after n granules; the rest becomes a free part behind it. */
static void cut(struct offsets *o, uint32_t b, uint64_t n)
{
    uint32_t rest = o->spare;
    struct block *x = &o->blocks[b], *y = &o->blocks[rest];
    o->spare = y->next;
    *y = (struct block){.at = x->at + n, .n = x->n - n, .before = b, .after = x->after};
    if (x->after != NONE)
        o->blocks[x->after].before = rest;
    x->after = rest;
    x->n = n;
    list_add(o, rest);
}

uint32_t offsets_take(struct offsets *o, uint64_t bytes, uint64_t align, uint64_t *ret_offset)
{
    uint64_t n = bytes / OFFSETS_GRANULE + (bytes % OFFSETS_GRANULE != 0);
    align = align > OFFSETS_GRANULE ? align / OFFSETS_GRANULE : 1;
    if (n == 0 || n > o->n || o->n_used == o->max_blocks)
        return NONE;
    uint32_t b = find(o, n, align);
    if (b == NONE)
        return NONE;
    list_remove(o, b);
    uint64_t before = waste(&o->blocks[b], align);
    if (before) {
        uint32_t front = b;
        cut(o, front, before);
        list_add(o, front);
        b = o->blocks[front].after;
        list_remove(o, b);
    }
    if (o->blocks[b].n > n)
        cut(o, b, n);
    o->blocks[b].used = true;
    o->n_used++;
    o->used += n;
    o->peak = MAX(o->peak, o->used);
    *ret_offset = o->blocks[b].at * OFFSETS_GRANULE;
    return b;
}

/* Block b takes in the free part behind it, which is in no list any more. */
static void merge(struct offsets *o, uint32_t b)
{
    struct block *x = &o->blocks[b];
    uint32_t gone = x->after;
    x->n += o->blocks[gone].n;
    x->after = o->blocks[gone].after;
    if (x->after != NONE)
        o->blocks[x->after].before = b;
    o->blocks[gone].next = o->spare;
    o->spare = gone;
}

void offsets_give(struct offsets *o, uint32_t b)
{
    struct block *x = &o->blocks[b];
    x->used = false;
    o->n_used--;
    o->used -= x->n;
    if (x->after != NONE && !o->blocks[x->after].used) {
        list_remove(o, x->after);
        merge(o, b);
    }
    if (x->before != NONE && !o->blocks[x->before].used) {
        b = x->before;
        list_remove(o, b);
        merge(o, b);
    }
    list_add(o, b);
}

uint64_t offsets_at(const struct offsets *o, uint32_t block)
{
    return o->blocks[block].at * OFFSETS_GRANULE;
}

uint64_t offsets_size(const struct offsets *o, uint32_t block)
{
    return o->blocks[block].n * OFFSETS_GRANULE;
}

void offsets_stats(const struct offsets *o, struct offsets_stats *ret)
{
    uint64_t largest = 0;
    for (uint32_t l = LISTS; l-- > 0 && largest == 0;) {
        for (uint32_t b = o->lists[l]; b != NONE; b = o->blocks[b].next)
            largest = MAX(largest, o->blocks[b].n);
    }
    *ret = (struct offsets_stats){.bytes = o->n * OFFSETS_GRANULE,
                                  .used = o->used * OFFSETS_GRANULE,
                                  .peak = o->peak * OFFSETS_GRANULE,
                                  .largest = largest * OFFSETS_GRANULE,
                                  .blocks = o->n_used};
}

double offsets_fragmentation(const struct offsets_stats *s)
{
    return s->bytes > s->used ? 1.0 - (double)s->largest / (double)(s->bytes - s->used) : 0.0;
}

static bool listed(const struct offsets *o, uint32_t block)
{
    uint32_t l = list_of(o->blocks[block].n);
    for (uint32_t b = o->lists[l]; b != NONE; b = o->blocks[b].next) {
        if (b == block)
            return o->filled[l / 64] >> l % 64 & 1;
    }
    return false;
}

const char *offsets_check(const struct offsets *o)
{
    uint64_t at = 0, used = 0;
    uint32_t n_used = 0, n_free = 0, before = NONE;
    for (uint32_t b = 0; b != NONE; before = b, b = o->blocks[b].after) {
        const struct block *x = &o->blocks[b];
        if (x->at != at || x->n == 0 || x->before != before)
            return "a block does not begin where its neighbour ends";
        if (!x->used && before != NONE && !o->blocks[before].used)
            return "two free parts lie side by side";
        if (!x->used && !listed(o, b))
            return "a free part is not in the list of its size";
        at += x->n;
        used += x->used ? x->n : 0;
        n_used += x->used;
        n_free += !x->used;
    }
    for (uint32_t l = 0; l < LISTS; l++) {
        for (uint32_t b = o->lists[l]; b != NONE; b = o->blocks[b].next)
            n_free--;
    }
    if (n_free != 0)
        return "a list has a member that is not a free part";
    return at != o->n ? "blocks do not cover the range" : used != o->used || n_used != o->n_used ? "counters are wrong" : NULL;
}
