/* SPDX-License-Identifier: MIT
 * One stage's process and its control connection: started, killed with a reason, started again. Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_CHILD_H
#define TANDEM_COORDINATOR_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <uv.h>

#include "proto/msg.h"

struct child;
struct err;

struct child_handlers {
    /* Negative: the message breaks the protocol or says that the stage cannot go on; it is killed with that reason. fds: as conn.h.
     */
    int (*message)(void *ctx, const struct msg *m, int *fds, struct err *err);
    /* Once for each start: the process is gone and nothing of it is left here; it may be started again, also from in here. why:
     * always an error. signal: what ended it; 0: it exited, or we killed it for the reason given. */
    void (*ended)(void *ctx, const struct err *why, int signal);
};

/* stage_dir: NULL: beside this program. handlers, ctx, loop: borrowed. */
int child_open(uv_loop_t *loop, enum msg_role role, const char *stage_dir, const struct child_handlers *h, void *ctx,
               struct child **ret, struct err *err);
/* Not while it runs. On failure `ended` is not called, but the loop must run until child_running is false. */
int child_start(struct child *c, struct err *err);
/* Nothing happens while there is no connection: `ended` tells. */
int child_send(struct child *c, const struct msg *m, const int *fds, int n_fds, struct err *err);
/* SIGKILL; `ended` gives this reason unless there was one before. */
void child_kill(struct child *c, const struct err *why);
bool child_running(const struct child *c);   /* a process or a handle is left */
bool child_connected(const struct child *c); /* messages can be sent */
int child_pid(const struct child *c);        /* 0 when no process runs */
void child_close(struct child *c);           /* not while it runs; NULL is fine */
/* Path of a stage's program; stage_dir NULL: beside this program. */
int child_path(const char *stage_dir, const char *name, char *buf, size_t size, struct err *err);

#endif
