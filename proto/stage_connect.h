/* SPDX-License-Identifier: MIT
 * A stage that somebody else started (a service manager, a debugger) finds its coordinator by the path of a socket. Thread: main.
 */
#ifndef TANDEM_PROTO_STAGE_CONNECT_H
#define TANDEM_PROTO_STAGE_CONNECT_H

struct err;

/* Waits up to wait_ms for somebody to listen there: neither has to be started first. Returns the connected socket (owned, CLOEXEC),
 * or a negative errno. */
int stage_connect(const char *path, int wait_ms, struct err *err);

#endif
