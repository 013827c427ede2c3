/* SPDX-License-Identifier: MIT
 * Owns nothing, and needs no timer: who counts says what time it is. Counts are kept as spans of a quarter of a second or more,
 * each with the time from the one before it: that is what its counts took. */
#include "coordinator/meter.h"

#include <stdio.h>

#include "proto/util.h"

#define RARE_NS UINT64_C(1000000000)
#define GONE 4u /* so many times the last one's time, and nothing more is expected */

void meter_begin(struct meter *m, uint64_t now_ns)
{
    m->begun_ns = now_ns;
}

void meter_add(struct meter *m, uint64_t now_ns, uint64_t n)
{
    struct meter_span *last = m->n_spans ? &m->spans[(m->n_spans - 1) % METER_SPANS] : NULL;
    m->total += n;
    if (last && m->begun_ns <= last->end_ns && now_ns - last->first_ns < METER_SPAN_NS) {
        last->end_ns = now_ns;
        last->n += n;
        return;
    }
    uint64_t since = MAX(m->begun_ns, last ? last->end_ns : 0);
    m->spans[m->n_spans++ % METER_SPANS] =
        (struct meter_span){.since_ns = since ? since : now_ns, .first_ns = now_ns, .end_ns = now_ns, .n = n};
}

/* Of all spans, as far as they lie in the window. late_ns: what the next one takes longer than the last. */
static double window_rate(const struct meter *m, uint64_t from_ns, uint64_t late_ns)
{
    double n = 0, took = (double)late_ns;
    for (uint64_t i = m->n_spans; i > 0 && m->n_spans - i < METER_SPANS; i--) {
        const struct meter_span *s = &m->spans[(i - 1) % METER_SPANS];
        if (s->end_ns <= from_ns)
            break;
        uint64_t whole = s->end_ns - s->since_ns, part = s->end_ns - MAX(s->since_ns, from_ns);
        n += whole ? (double)s->n * (double)part / (double)whole : (double)s->n;
        took += (double)part;
    }
    return n * 1e9 / MAX(took, 1e6); /* a first count that nobody began */
}

double meter_rate(const struct meter *m, uint64_t now_ns, bool awaited)
{
    if (m->n_spans == 0)
        return 0;
    const struct meter_span *last = &m->spans[(m->n_spans - 1) % METER_SPANS];
    uint64_t took = MAX(last->end_ns - last->since_ns, METER_SPAN_NS);
    uint64_t from = MAX(m->begun_ns, last->end_ns), waits = now_ns > from ? now_ns - from : 0;
    if (!awaited && now_ns - MIN(now_ns, last->end_ns) >= METER_WINDOW_NS)
        return 0;
    if (took >= RARE_NS)
        return !awaited || waits < GONE * took ? (double)last->n * 1e9 / (double)(awaited ? MAX(took, waits) : took) : 0;
    return window_rate(m, now_ns - MIN(now_ns, METER_WINDOW_NS), awaited && waits > took ? waits - took : 0);
}

const char *meter_text(char *buf, double rate)
{
    snprintf(buf, METER_TEXT, "%.*f", rate >= 10 || rate <= 0 ? 1 : rate >= 1 ? 2 : 3, MIN(rate, 1e15));
    return buf;
}
