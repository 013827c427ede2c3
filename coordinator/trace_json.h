/* SPDX-License-Identifier: MIT
 * Events as Chrome's Trace Event Format has them, one JSON object each, into memory. The array's brackets and commas are the
 * caller's. Nothing but numbers and words of this file goes in. Threads: one. */
#ifndef TANDEM_COORDINATOR_TRACE_JSON_H
#define TANDEM_COORDINATOR_TRACE_JSON_H

#include <stddef.h>

#include "proto/msg.h"
#include "proto/trace.h"

/* Bytes that the objects of one call take at most, commas included. */
#define TRACE_JSON_MAX 2048

#define TRACE_JSON_COORDINATOR MSG_ROLES /* a process: this, or enum msg_role */

struct trace_json_process {
    int pid;
    uint32_t process;  /* enum msg_role or TRACE_JSON_COORDINATOR */
    uint32_t restarts; /* before this one */
    uint8_t fill[2];   /* of its input rings, as they were last told; begin with 0xff */
};

/* All append to buf, room for TRACE_JSON_MAX, objects with ",\n" before each, and return the bytes. */
size_t trace_json_process(char *buf, const struct trace_json_process *p); /* names of the process */
size_t trace_json_thread(char *buf, const struct trace_json_process *p, enum trace_lane lane);
size_t trace_json_event(char *buf, struct trace_json_process *p, enum trace_lane lane, const struct trace_event *e);
size_t trace_json_lost(char *buf, const struct trace_json_process *p, enum trace_lane lane, uint32_t n, uint64_t now_ns);
size_t trace_json_counter(char *buf, const struct trace_json_process *p, const char *name, uint64_t value, uint64_t now_ns);

#endif
