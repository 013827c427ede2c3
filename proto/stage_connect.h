/* SPDX-License-Identifier: MIT
 * A stage that somebody else started (a service manager, a debugger) finds its coordinator by the path of a socket. Thread: main.
 */
#ifndef TANDEM_PROTO_STAGE_CONNECT_H
#define TANDEM_PROTO_STAGE_CONNECT_H

struct err;

#define STAGE_TOKEN_CHARS 64        /* hexadecimal digits */
#define STAGE_TOKEN_SUFFIX ".token" /* of the file beside the socket */

/* Waits up to wait_ms for somebody to listen there: neither has to be started first. Returns the connected socket (owned, CLOEXEC),
 * or a negative errno. token: what the file beside the socket says; it is new whenever a coordinator begins to listen. */
int stage_connect(const char *path, int wait_ms, char token[STAGE_TOKEN_CHARS + 1], struct err *err);

#endif
