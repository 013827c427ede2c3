/* SPDX-License-Identifier: MIT
 * What one span of a trace costs the thread that records it, and what the place costs where tracing is off: the clock read at both
 * ends and an event put, a million times in rounds; the best and the median round. A reader takes the events between rounds. */
#include <stdio.h>
#include <stdlib.h>

#include "proto/err.h"
#include "proto/trace.h"
#include "proto/util.h"

#define ROUNDS 400
#define SPANS 4096u

static int by_size(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* writer: through a pointer that the compiler cannot know. */
static void measure(const char *what, struct trace *volatile *writer, struct trace *reader)
{
    double ns[ROUNDS];
    struct trace_event e;
    for (int r = 0; r < ROUNDS; r++) {
        uint64_t begin = util_now_ns();
        for (uint32_t i = 0; i < SPANS; i++) {
            struct trace *t = *writer;
            uint64_t start = trace_now(t);
            trace_span(t, TRACE_DATA, TRACE_CHUNK, start, trace_now(t));
        }
        ns[r] = (double)(util_now_ns() - begin) / SPANS;
        while (trace_take(reader, TRACE_DATA, &e))
            ;
    }
    qsort(ns, ROUNDS, sizeof(ns[0]), by_size);
    printf("%-4s %6.2f ns a span (best), %6.2f (median)%s\n", what, ns[0], ns[ROUNDS / 2],
           trace_lost(reader, TRACE_DATA) ? "; some were lost" : "");
}

int main(void)
{
    struct err err = {0};
    struct trace *writer = NULL, *reader = NULL;
    auto_fd fd = trace_make(&err);
    if (fd < 0 || trace_map(fd, &writer, &err) < 0 || trace_map(fd, &reader, &err) < 0) {
        fprintf(stderr, "bench_trace: %s\n", err.text);
        return 1;
    }
    struct trace *volatile on = writer, *volatile off = NULL;
    measure("on", &on, reader);
    measure("off", &off, reader);
    trace_unmap(writer);
    trace_unmap(reader);
    return 0;
}
