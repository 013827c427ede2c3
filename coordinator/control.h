/* SPDX-License-Identifier: MIT
 * The control socket of a running coordinator: a Unix socket in its runtime folder, for programs of the same user. One JSON object
 * a line each way; docs/OPERATIONS.md has the requests. Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_CONTROL_H
#define TANDEM_COORDINATOR_CONTROL_H

#include <uv.h>

struct control;
struct err;
struct monitor;

#define CONTROL_LINE_MAX 4096 /* bytes of a request, its newline included */
#define CONTROL_CLIENTS 8     /* at once; a further one takes the place of who has been idle for longest */
#define CONTROL_IDLE_MS 10000 /* a client that asks nothing for so long is dropped, */
#define CONTROL_WRITE_MS 5000 /* and one that does not read its answer */

/* dir: the runtime folder; monitor: borrowed until close. */
int control_open(uv_loop_t *loop, const char *dir, struct monitor *monitor, struct control **ret, struct err *err);
void control_close(struct control *c); /* drops every client, runs the loop until all handles are closed; NULL is fine */

#endif
