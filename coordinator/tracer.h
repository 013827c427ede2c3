/* SPDX-License-Identifier: MIT
 * `--trace FILE`: collects what the coordinator and the stages record (proto/trace.h) and writes it as JSON while they run. A
 * thread of its own does that, so that neither the loop nor a stage ever waits for the file. A stage's memory outlives the stage
 * until what it recorded is written. Errors of writing end the trace with a warning, and nothing else. Threads: open, close and
 * tracer_stage* on the loop's thread. NULL is fine for a tracer: nothing is traced. */
#ifndef TANDEM_COORDINATOR_TRACER_H
#define TANDEM_COORDINATOR_TRACER_H

#include <stdint.h>

#include "proto/msg.h"

struct err;
struct trace;
struct tracer;

/* path: a file that does not exist yet. */
int tracer_open(const char *path, struct tracer **ret, struct err *err);
/* Writes what is left and ends the file. */
void tracer_close(struct tracer *t);
uint64_t tracer_bytes(void); /* that a tracer holds in the coordinator, stages' events included */

struct trace *tracer_own(struct tracer *t); /* where the coordinator records; NULL of NULL */
/* A stage is there: memory for its events, to be handed to it. Returns an owned fd. */
int tracer_stage(struct tracer *t, enum msg_role role, int pid, uint32_t restarts, struct err *err);
/* It is gone. */
void tracer_stage_ended(struct tracer *t, enum msg_role role);

#endif
