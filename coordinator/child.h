/* SPDX-License-Identifier: MIT
 * One stage's process and its control connection: started, killed with a reason, started again; by us, or by others, whose process
 * is attached when it has said HELLO. Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_CHILD_H
#define TANDEM_COORDINATOR_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <uv.h>

#include "proto/msg.h"

struct child;
struct conn;
struct err;

#define CHILD_SIGNAL_UNKNOWN (-1)

struct child_handlers {
    /* Negative: the message breaks the protocol or says that the stage cannot go on; it is killed with that reason. fds: as conn.h.
     */
    int (*message)(void *ctx, const struct msg *m, int *fds, struct err *err);
    /* Once for each start: the process is gone and nothing of it is left here; it may be started again, also from in here. why:
     * always an error. signal: what ended it; 0: it exited, or said or got the reason given; CHILD_SIGNAL_UNKNOWN: only its
     * parent knows. */
    void (*ended)(void *ctx, const struct err *why, int signal);
};

/* stage_dir: NULL: where proto/place.h finds them. spawn: false: others start it. handlers, ctx, loop: borrowed. */
int child_open(uv_loop_t *loop, enum msg_role role, const char *stage_dir, bool spawn, const struct child_handlers *h, void *ctx,
               struct child **ret, struct err *err);
/* Not while it runs. On failure `ended` is not called, but the loop must run until child_running is false. Of one that others
 * start: from now on it may be attached. */
int child_start(struct child *c, struct err *err);
/* The process at the other end of conn, which has said hello: takes conn, and hands hello to `message`. Negative: conn is not
 * taken, and what was attached before is as it was. */
int child_attach(struct child *c, struct conn *conn, int pid, const struct msg *hello, struct err *err);
/* Nothing happens while there is no connection: `ended` tells. */
int child_send(struct child *c, const struct msg *m, const int *fds, int n_fds, struct err *err);
/* SIGKILL; `ended` gives this reason unless there was one before. */
void child_kill(struct child *c, const struct err *why);
bool child_spawned(const struct child *c);   /* false: others start it */
bool child_running(const struct child *c);   /* a process or a handle is left */
bool child_connected(const struct child *c); /* messages can be sent */
int child_pid(const struct child *c);        /* 0 when no process runs */
void child_close(struct child *c);           /* not while it runs; NULL is fine */
/* Path of a stage's program; stage_dir NULL: where proto/place.h finds it, or -ENOENT. */
int child_path(const char *stage_dir, const char *name, char *buf, size_t size, struct err *err);

#endif
