/* SPDX-License-Identifier: MIT
 * Owns nothing, and needs no timer: who counts says what time it is, and buckets that are too old are not looked at. */
#include "coordinator/meter.h"

#include "proto/util.h"

void meter_add(struct meter *m, uint64_t now_ns, uint64_t n)
{
    uint64_t number = now_ns / METER_BUCKET_NS;
    if (m->buckets[number % METER_BUCKETS].number != number) {
        m->buckets[number % METER_BUCKETS].number = number;
        m->buckets[number % METER_BUCKETS].n = 0;
    }
    m->buckets[number % METER_BUCKETS].n += n;
    m->total += n;
}

double meter_rate(const struct meter *m, uint64_t now_ns)
{
    uint64_t number = now_ns / METER_BUCKET_NS, first = number, sum = 0;
    for (int i = 0; i < METER_BUCKETS; i++) {
        uint64_t k = m->buckets[i].number;
        if (m->buckets[i].n == 0 || k > number || number - k >= METER_BUCKETS)
            continue;
        sum += m->buckets[i].n;
        first = MIN(first, k);
    }
    uint64_t passed = now_ns - first * METER_BUCKET_NS;
    return sum ? (double)sum * 1e9 / (double)MAX(passed, METER_BUCKET_NS) : 0.0;
}
