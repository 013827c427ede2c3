/* SPDX-License-Identifier: MIT
 * Owns three hash states and the list of finished checksums. Fed by the conversion's thread, with what it writes and with what it
 * reads back from an earlier run, so that both give the same sums. */
#include "quantizer/ledger.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "proto/util.h"
#include "quantizer/plan.h"

struct state {
    XXH3_state_t *tensor;
    uint32_t next; /* the tensor that the stream is in or before */
    uint64_t at;
};

struct ledger {
    const struct plan *plan;
    struct state now, mark;
    XXH3_state_t *group;
    uint64_t *checksums;
};

struct ledger *ledger_open(const struct plan *p)
{
    struct ledger *l = calloc(1, sizeof(*l));
    if (!l)
        return NULL;
    l->plan = p;
    l->now.tensor = XXH3_createState();
    l->mark.tensor = XXH3_createState();
    l->group = XXH3_createState();
    l->checksums = calloc(p->n_tensors + 1, sizeof(*l->checksums));
    if (!l->now.tensor || !l->mark.tensor || !l->group || !l->checksums) {
        ledger_close(l);
        return NULL;
    }
    XXH3_64bits_reset(l->now.tensor);
    XXH3_64bits_reset(l->group);
    ledger_mark(l);
    return l;
}

void ledger_close(struct ledger *l)
{
    if (!l)
        return;
    XXH3_freeState(l->now.tensor);
    XXH3_freeState(l->mark.tensor);
    XXH3_freeState(l->group);
    free(l->checksums);
    free(l);
}

/* The part of [at, at + n) in [begin, end), as an offset and a length. */
static size_t overlap(uint64_t at, size_t n, uint64_t begin, uint64_t end, size_t *ret_skip)
{
    uint64_t a = MAX(at, begin), b = MIN(at + n, end);
    *ret_skip = a > at ? (size_t)(a - at) : 0;
    return b > a ? (size_t)(b - a) : 0;
}

static void feed_tensors(struct ledger *l, const uint8_t *data, size_t n)
{
    struct state *s = &l->now;
    while (s->next < l->plan->n_tensors) {
        const struct plan_tensor *t = &l->plan->tensors[s->next];
        uint64_t begin = l->plan->files[t->file].begin + t->offset, end = begin + t->bytes;
        size_t skip, part = overlap(s->at, n, begin, end, &skip);
        if (part)
            XXH3_64bits_update(s->tensor, data + skip, part);
        if (s->at + n < end)
            break;
        l->checksums[s->next++] = XXH3_64bits_digest(s->tensor);
        XXH3_64bits_reset(s->tensor);
    }
}

static void feed_group(struct ledger *l, const uint8_t *data, size_t n)
{
    static const uint8_t zeros[512];
    uint64_t begin = l->plan->checksums, end = begin + l->plan->n_tensors * sizeof(uint64_t);
    size_t skip, part = overlap(l->now.at, n, begin, end, &skip), done = part ? skip + part : 0;
    if (part)
        XXH3_64bits_update(l->group, data, skip);
    for (size_t left = part; left > 0; left -= MIN(left, sizeof(zeros)))
        XXH3_64bits_update(l->group, zeros, MIN(left, sizeof(zeros)));
    XXH3_64bits_update(l->group, data + done, n - done);
}

void ledger_feed(struct ledger *l, const uint8_t *data, size_t n)
{
    feed_group(l, data, n);
    feed_tensors(l, data, n);
    l->now.at += n;
}

uint64_t ledger_at(const struct ledger *l)
{
    return l->now.at;
}

uint64_t ledger_group(struct ledger *l)
{
    uint64_t h = XXH3_64bits_digest(l->group);
    XXH3_64bits_reset(l->group);
    return h;
}

static void copy(struct state *to, const struct state *from)
{
    XXH3_state_t *tensor = to->tensor;
    XXH3_copyState(tensor, from->tensor);
    *to = *from;
    to->tensor = tensor;
}

void ledger_mark(struct ledger *l)
{
    copy(&l->mark, &l->now);
}

void ledger_back(struct ledger *l)
{
    copy(&l->now, &l->mark);
    XXH3_64bits_reset(l->group);
}

const uint64_t *ledger_checksums(const struct ledger *l)
{
    return l->checksums;
}
