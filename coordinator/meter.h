/* SPDX-License-Identifier: MIT
 * How many of something a second, of late: counts in buckets of a quarter of a second. Plain data; thread: the caller's. */
#ifndef TANDEM_COORDINATOR_METER_H
#define TANDEM_COORDINATOR_METER_H

#include <stdint.h>

#define METER_BUCKETS 8
#define METER_BUCKET_NS UINT64_C(250000000)

struct meter { /* all zero at first */
    uint64_t total;
    struct {
        uint64_t number, n; /* since time began, which of the buckets; what was counted in it */
    } buckets[METER_BUCKETS];
};

void meter_add(struct meter *m, uint64_t now_ns, uint64_t n);
/* Mean over the last two seconds, or over those that have passed since something was counted after a pause as long. */
double meter_rate(const struct meter *m, uint64_t now_ns);

#endif
