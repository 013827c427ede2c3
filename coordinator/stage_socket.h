/* SPDX-License-Identifier: MIT
 * Where stages that others start (a service manager, a debugger) knock: a socket, and beside it the token that they have to say.
 * Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_STAGE_SOCKET_H
#define TANDEM_COORDINATOR_STAGE_SOCKET_H

#include <uv.h>

struct conn;
struct err;
struct msg;
struct stage_socket;

#define STAGE_SOCKET_GUESTS 8      /* who have not said HELLO yet; a further one takes the place of the first */
#define STAGE_SOCKET_HELLO_MS 5000 /* until they have to */

/* A process of our user said HELLO with the right token. 0: connection and process are the callee's from now on (conn_set_owner).
 * Negative: it is told err, and its connection is closed. pid: by the kernel's word. */
typedef int stage_socket_hello(void *ctx, struct conn *conn, int pid, const struct msg *hello, struct err *err);

/* path: in a folder of ours with mode 0700; both files are removed at close, and what a killed coordinator left there now.
 * -EADDRINUSE: another coordinator listens there. */
int stage_socket_open(uv_loop_t *loop, const char *path, stage_socket_hello *hello, void *ctx, struct stage_socket **ret,
                      struct err *err);
void stage_socket_close(struct stage_socket *s); /* runs the loop until its handles are closed; NULL is fine */

#endif
