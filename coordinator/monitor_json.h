/* SPDX-License-Identifier: MIT
 * A snapshot as JSON and back; docs/OPERATIONS.md has the schema. Threads: plain data. */
#ifndef TANDEM_COORDINATOR_MONITOR_JSON_H
#define TANDEM_COORDINATOR_MONITOR_JSON_H

struct err;
struct json_t;
struct monitor_snapshot;

struct json_t *monitor_json_make(const struct monitor_snapshot *s);      /* returns owned, NULL = out of memory */
struct json_t *monitor_json_processes(const struct monitor_snapshot *s); /* its list of processes alone; likewise */
/* -EPROTO when a key is missing or holds something else; others are ignored. */
int monitor_json_read(const struct json_t *j, struct monitor_snapshot *ret, struct err *err);

#endif
