/* SPDX-License-Identifier: MIT
 * What every program does first. Thread: main, before any other. */
#ifndef TANDEM_PROTO_PROCESS_H
#define TANDEM_PROTO_PROCESS_H

struct err;

/* Starts the log under `name`. Descriptors 0 to 2 are there: where the caller closed one, reading it is at its end and writing to 1
 * fails, and no file of ours takes its number. SIGPIPE and SIGXFSZ become failed writes. As many files may be open as the system
 * allows. -EMFILE when that is too few to work with, -EINVAL for a TANDEM_TRACE that means nothing. */
int process_begin(const char *name, struct err *err);

/* This process is asked something by another, which waits: it ends with that one, and at the latest after so many seconds, whatever
 * a driver does with it. */
void process_is_asked(unsigned seconds);

#endif
