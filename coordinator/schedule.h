/* SPDX-License-Identifier: MIT
 * Which tokens go into which chunk, and what to do with what comes back. Sequence slots, queue, chunks in flight, sampling.
 * Knows rings but no processes. Thread: the loop's; callbacks of requests run inside schedule_drain and schedule_fail. */
#ifndef TANDEM_COORDINATOR_SCHEDULE_H
#define TANDEM_COORDINATOR_SCHEDULE_H

#include <stdbool.h>

#include "coordinator/engine.h"

struct journal;
struct ring;
struct schedule;
struct trace;

int schedule_open(const struct plan *plan, struct schedule **ret, struct err *err);
void schedule_close(struct schedule *s); /* drops requests without callbacks; NULL is fine */
/* From now on requests that generate are noted there. Borrowed; NULL: nowhere. */
void schedule_set_journal(struct schedule *s, struct journal *j);
/* Where to record what is sent, comes back and is drawn; borrowed, NULL: nowhere. */
void schedule_set_trace(struct schedule *s, struct trace *t);
/* Rings of the current epoch; borrowed. */
void schedule_attach(struct schedule *s, struct ring *tokens, struct ring *output, uint32_t epoch);
/* The rings are gone: nothing is sent until schedule_restart. died: by the death of a stage, which what is under way may have
 * caused. */
void schedule_pause(struct schedule *s, bool died);
/* As attach, and goes on where it was. kv_lost: npu_worker is a new one, whose KV cache is empty. */
void schedule_restart(struct schedule *s, struct ring *tokens, struct ring *output, uint32_t epoch, bool kv_lost);
/* Rises whenever a request gets further than it ever was. */
uint64_t schedule_progress(const struct schedule *s);
/* Ends the requests that were under way at most deaths since they last got further, and says how many; 0: none was. limit: the one
 * that was reached, with its key. */
uint32_t schedule_give_up(struct schedule *s, const char *limit, const struct err *why);
/* The backend changed: answers that have begun say so. */
void schedule_mark_numerics(struct schedule *s);
int schedule_submit(struct schedule *s, const struct request_params *p, struct request **ret, struct err *err);
void schedule_cancel(struct schedule *s, struct request *r);
/* Send as many chunks as there are credits for. */
void schedule_pump(struct schedule *s);
/* Take what lies in the output ring, sample, call back, pump. -EPROTO when gpu_worker breaks the format. What is committed
 * meanwhile may be left: the ring is not empty then. */
int schedule_drain(struct schedule *s, struct err *err);
/* The pipeline is gone: every request finishes with ENGINE_FINISH_ERROR. */
void schedule_fail(struct schedule *s, const struct err *err);
uint32_t schedule_active(const struct schedule *s); /* requests queued or running */

struct schedule_counts {
    uint32_t in_flight, in_flight_most;          /* chunks */
    uint32_t queued, running, sequences;         /* requests; slots for those that run */
    uint64_t finished, failed;                   /* requests, since start; with an error */
    uint64_t prompt_tokens, output_tokens;       /* since start: prompt positions processed, tokens sampled */
    uint64_t asked_tokens, cached_tokens;        /* prompt tokens of requests that may reuse, and those that were in the KV cache */
    double prompt_per_second, output_per_second; /* of late (meter.h) */
};
uint32_t schedule_in_flight(const struct schedule *s, uint32_t *ret_done); /* chunks; of these rings, those that came back */
void schedule_count(const struct schedule *s, struct schedule_counts *ret);

#endif
