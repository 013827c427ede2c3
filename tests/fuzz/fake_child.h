/* SPDX-License-Identifier: MIT
 * Stands for coordinator/child.c, which the linker then leaves in its library: stages without processes. What is sent to one must
 * be a message that can be encoded; of its descriptors those of rings and of the status page are kept. It ends when it is told to.
 */
#ifndef TANDEM_TESTS_FUZZ_FAKE_CHILD_H
#define TANDEM_TESTS_FUZZ_FAKE_CHILD_H

#include "coordinator/child.h"
#include "proto/err.h"

#define FAKE_MAX_BYTES (64u << 10) /* of a ring that is mapped */

struct child {
    uv_loop_t *loop;
    enum msg_role role;
    struct child_handlers h;
    void *ctx;
    bool running, silent, mute; /* silent: it reads nothing and says nothing; mute: it answers pings and does nothing */
    struct err why;             /* code: it was killed */
    int starts;
    uint32_t epoch; /* of the last PAUSE or CONFIGURE */
    bool told_pause, told_start;
    uint32_t *page; /* mapping of the status page */
    struct {
        uint8_t *p;
        size_t bytes;
    } rings[2][2]; /* direction, index */
};

extern struct child *fake_children[MSG_ROLES];
/* A message of the stage; what it breaks ends it, as in child.c. */
void fake_child_say(struct child *c, const struct msg *m, int *fds);
/* It is gone: `ended` is called. why->code 0: as if by the signal. */
void fake_child_end(struct child *c, int signal);

#endif
