/* SPDX-License-Identifier: MIT
 * How many of something a second, of late, however rarely it comes. Plain data; thread: the caller's. */
#ifndef TANDEM_COORDINATOR_METER_H
#define TANDEM_COORDINATOR_METER_H

#include <stdbool.h>
#include <stdint.h>

#define METER_SPANS 9 /* of a window, and the one that it cuts */
#define METER_SPAN_NS UINT64_C(250000000)
#define METER_WINDOW_NS UINT64_C(2000000000)

struct meter_span {                      /* a count, with those that came within a quarter of a second after it */
    uint64_t since_ns, first_ns, end_ns; /* when work on it began; the first count, and the last */
    uint64_t n;
};

struct meter { /* all zero at first */
    uint64_t total;
    uint64_t begun_ns;
    uint64_t n_spans; /* ever; the last is spans[(n_spans - 1) % METER_SPANS] */
    struct meter_span spans[METER_SPANS];
};

/* Work begins after a pause: the time until now counts for nothing. */
void meter_begin(struct meter *m, uint64_t now_ns);
void meter_add(struct meter *m, uint64_t now_ns, uint64_t n);
/* Mean over the time that work took in the last two seconds. Of what comes less often than every second: by the time that the last
 * took, or the one that is awaited where that is longer already; 0 when it is four times as long. Not awaited: nothing is late, and
 * what there was is shown for two seconds. */
double meter_rate(const struct meter *m, uint64_t now_ns, bool awaited);
/* A rate for people, with as many decimals as it needs: 123.4, 1.23, 0.012. Returns buf, of METER_TEXT bytes. */
#define METER_TEXT 24
const char *meter_text(char *buf, double rate);

#endif
