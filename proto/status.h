/* SPDX-License-Identifier: MIT
 * The status page of a stage: what its data thread works on and since when, in a memfd of one page that the coordinator makes and
 * looks at now and then. Written by the data thread alone, with relaxed stores and no system call; read by another process, which
 * believes nothing in it beyond what concerns this stage: a page that lies only hides or causes the end of its own process. */
#ifndef TANDEM_PROTO_STATUS_H
#define TANDEM_PROTO_STATUS_H

#include <stdint.h>

struct err;
struct status;

int status_make(struct err *err);                             /* returns an owned fd */
int status_map(int fd, struct status **ret, struct err *err); /* borrows fd */
void status_unmap(struct status *s);                          /* NULL is fine */

enum status_wait { STATUS_INPUT, STATUS_SPACE, STATUS_WEIGHTS };

struct status_work {
    uint64_t since_ns;     /* CLOCK_MONOTONIC; 0: it waits, */
    enum status_wait wait; /* for this */
    uint64_t chunk;
    uint32_t layer, n_tokens;
    uint64_t usual_ns; /* mean of chunks of that kind so far; 0: the first one */
};
/* Data thread. */
void status_busy(struct status *s, const struct status_work *w);
void status_waits(struct status *s, enum status_wait wait); /* also in the middle of a chunk: the clock stands */
void status_goes_on(struct status *s);                      /* and starts anew */
/* Reader. The fields may belong to two chunks that follow each other. */
void status_read(const struct status *s, struct status_work *ret);

#endif
