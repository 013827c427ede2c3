/* SPDX-License-Identifier: MIT
 * What Prometheus reads: histograms and counts of clients' requests, kept here, and a snapshot of the pipeline. Names are vLLM's
 * where it has one, so that dashboards made for it work; the rest is tandem_*. Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_METRICS_H
#define TANDEM_COORDINATOR_METRICS_H

#include <stdint.h>

#include "coordinator/engine.h"

#define METRICS_BUCKETS 20

struct metrics_histogram {
    uint64_t buckets[METRICS_BUCKETS + 1]; /* the last: above all bounds */
    double sum;
};

struct metrics { /* zero is fine */
    struct metrics_histogram first_token, next_token, whole, queue;
    uint64_t finished[ENGINE_FINISH_ERROR + 1];
};

struct metrics_server {
    const char *model;
    uint32_t connections;
    uint64_t requests;
};

void metrics_observe(struct metrics_histogram *h, uint64_t ns);
/* The text format, version 0.0.4; malloc'ed. NULL: out of memory. */
char *metrics_text(const struct metrics *m, const struct metrics_server *server, const struct monitor_snapshot *s);

#endif
