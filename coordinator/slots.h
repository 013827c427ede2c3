/* SPDX-License-Identifier: MIT
 * Slots through which weights pass: an fd of each, and the last request for it. A request has a number of the coordinator's own, so
 * that an answer to one that has been replaced, or that a worker made which is gone, is known as such. Plain data; thread: the
 * loop's. */
#ifndef TANDEM_COORDINATOR_SLOTS_H
#define TANDEM_COORDINATOR_SLOTS_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/msg.h"

struct slots;

struct held_slot {
    enum msg_role role; /* of the worker that made it */
    uint32_t kind, slot;
    uint64_t bytes;
    int fd;          /* the table's */
    bool inherited;  /* as of a segment */
    uint32_t n_open; /* requests that the loader has not answered, those that were replaced included */
    uint32_t layer;
    uint64_t bytes_wanted, worker_serial, serial; /* of the last request; serial 0: none is open */
    bool granted;                                 /* it had its answer, and the worker that made it lives */
    uint64_t asked_ns;                            /* when the loader, or the worker, was told of it last */
};

struct slots *slots_open(void);    /* NULL: out of memory */
void slots_close(struct slots *s); /* closes every fd; NULL is fine */
/* Takes h->fd on success; NULL: the table is full, or the slot is there already. Valid until the next remove. */
struct held_slot *slots_add(struct slots *s, const struct held_slot *h);
struct held_slot *slots_find(struct slots *s, uint32_t kind, uint32_t slot); /* NULL: not held */
void slots_remove(struct slots *s, struct held_slot *h);                     /* closes its fd */
uint64_t slots_serial(struct slots *s);                                      /* the next one */
uint32_t slots_count(const struct slots *s);
struct held_slot *slots_at(struct slots *s, uint32_t i); /* i < count */

#endif
