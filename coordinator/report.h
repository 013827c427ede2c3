/* SPDX-License-Identifier: MIT
 * What the processes did and used, as a table for people; JSON on standard output. Threads: none of its own. */
#ifndef TANDEM_COORDINATOR_REPORT_H
#define TANDEM_COORDINATOR_REPORT_H

#include <stdio.h>

#include "coordinator/engine.h"

struct answer;
struct json_t;

void report_processes(const struct monitor_snapshot *m, FILE *f);
/* Everything, as `stats` prints it. */
void report_snapshot(const struct monitor_snapshot *m, FILE *f);
/* What the last death of a stage cost; nothing where there was none. */
void report_recovery(const struct engine_recovery *r, FILE *f);
struct json_t *report_recovery_json(const struct engine_recovery *r);
/* Tokens and tokens/s of prompt and answer; one line per answer when there are several. */
void report_answers(const struct answer *a, size_t n, FILE *f);
/* One line and its newline; -EIO when it cannot be written. Takes j; NULL is out of memory. */
int report_print_json(struct json_t *j, FILE *f, struct err *err);

#endif
