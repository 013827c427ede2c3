/* SPDX-License-Identifier: MIT
 * The rings of an epoch and the bells of all processes: makes them, holds their fds for the stages and maps our own ends. Thread:
 * the loop's; the mapped ends may be used by another between rings_make and rings_drop. */
#ifndef TANDEM_COORDINATOR_RINGS_H
#define TANDEM_COORDINATOR_RINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/msg.h"

struct bell;
struct err;
struct plan;
struct ring;
struct rings;

#define RINGS_OF_STAGE_MAX 4

int rings_open(const struct plan *plan, struct rings **ret, struct err *err); /* bells; no rings yet. Borrows plan */
void rings_close(struct rings *r);                                            /* NULL is fine */
int rings_make(struct rings *r, uint32_t epoch, struct err *err);
void rings_drop(struct rings *r); /* closes and unmaps all rings; none is fine */
bool rings_made(const struct rings *r);
/* A stage that was killed may leave anything in its bell: its successor gets another. Not between make and drop. */
int rings_renew_bell(struct rings *r, enum msg_role role, struct err *err);

/* As ATTACH_RING wants it; fds are borrowed. */
struct ring_end {
    uint32_t direction, index;
    int fds[2]; /* ring, bell of the other side */
};
uint32_t rings_of(const struct rings *r, enum msg_role role, struct ring_end ret[RINGS_OF_STAGE_MAX]);
/* Who puts chunks into that input of a stage; a negative number: no stage does. */
int rings_writer(enum msg_role role, uint32_t input);
/* Likewise who takes them out of an output. */
int rings_reader(enum msg_role role, uint32_t output);
int rings_bell_fd(const struct rings *r, enum msg_role role);

/* Of any ring, while they are made: its name, how many slots are full, of how many. i < SUPERVISE_RINGS (supervise.h). */
int rings_look(const struct rings *r, int i, const char **ret_name, uint32_t *ret_fill, uint32_t *ret_slots, struct err *err);

/* The books of a stage: chunks it has taken from its rings and put into rings, as both sides say. Each chunk that is taken is first
 * passed on, so that `given` is never behind of `taken`, but of a stage that lost one. */
struct ring_books {
    uint32_t taken, given;
    bool has_input, output_full; /* something lies in an input, no place is left in an output */
};
/* While rings are made. done: chunks that came to their end here, out of these rings. Returns how many slots are full in all. */
int rings_books(const struct rings *r, uint32_t done, struct ring_books ret[MSG_ROLES], struct err *err);

/* Our ends, while rings are made: producer of the token ring, consumer of gpu_worker's; our bell is always there. */
struct ring *rings_tokens(struct rings *r);
struct ring *rings_output(struct rings *r);
struct bell *rings_bell(struct rings *r);

#endif
