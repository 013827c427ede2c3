/* SPDX-License-Identifier: MIT
 * A framed Unix stream socket under uv_poll: preamble with magic and version first, then msgpack frames, fds by SCM_RIGHTS.
 * Peer credentials are checked (same uid). Wrong fd count, oversized frame, MSG_CTRUNC: every received fd is closed, the
 * connection is closed with -EPROTO. Thread: the loop's. */
#ifndef TANDEM_PROTO_CONN_H
#define TANDEM_PROTO_CONN_H

#include <stdbool.h>

#include <uv.h>

#include "proto/msg.h"

struct err;
struct conn;

struct conn_handlers {
    /* fds: owned by the connection; a handler that keeps one takes it by setting its entry to -1. Unknown types never arrive here
     * (an error reply is sent). May call conn_send and conn_close. */
    void (*message)(void *ctx, struct conn *c, const struct msg *m, int *fds, int n_fds);
    /* Once, when the peer closed (err->code 0 = clean EOF) or broke the protocol. The connection still has to be conn_close'd. */
    void (*closed)(void *ctx, struct conn *c, const struct err *err);
};

/* A connected socket (takes fd on success). name borrows a long-lived string for traces. */
int conn_open(uv_loop_t *loop, int fd, const char *name, const struct conn_handlers *h, void *ctx, struct conn **ret,
              struct err *err);
/* Another owner: from now on his handlers are called, also when this is called from inside one. name: as above. */
void conn_set_owner(struct conn *c, const char *name, const struct conn_handlers *h, void *ctx);
/* Queues; fds are dup'ed, the caller's stay the caller's. The number must be what messages.def says. */
int conn_send(struct conn *c, const struct msg *m, const int *fds, int n_fds, struct err *err);
/* Messages of which filter says true are dropped as if they had been sent: for faults on demand (proto/fault.h). */
void conn_set_filter(struct conn *c, bool (*filter)(void *ctx), void *ctx);
/* Handles what has come and was not read yet: the last words of a peer whose death is known already. NULL is fine. */
void conn_read(struct conn *c);
/* Borrowed. */
int conn_fd(const struct conn *c);
/* Bytes still queued. */
size_t conn_pending(const struct conn *c);
/* No handler is called afterwards; memory goes in the last close callback. NULL is fine. Queued output is tried once. */
void conn_close(struct conn *c);

#endif
