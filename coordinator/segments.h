/* SPDX-License-Identifier: MIT
 * The weight segments that workers have made: a duplicate of each one's fd, which outlives the worker. Plain data; thread: the
 * loop's. */
#ifndef TANDEM_COORDINATOR_SEGMENTS_H
#define TANDEM_COORDINATOR_SEGMENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/msg.h"

#define SEGMENTS_MAX 1024

struct segments;

struct held_segment {
    enum msg_role role; /* of the worker that made it */
    uint32_t kind, layer;
    uint64_t bytes;
    int fd; /* the table's */
    bool filled;
    bool inherited; /* its maker has ended; the successor may make another in its place, once */
};

struct segments *segments_open(void);    /* NULL: out of memory */
void segments_close(struct segments *s); /* closes every fd; NULL is fine */
/* Takes h->fd on success; NULL: the table is full, or the segment is there already. Valid until the next remove. */
struct held_segment *segments_add(struct segments *s, const struct held_segment *h);
struct held_segment *segments_find(struct segments *s, uint32_t kind, uint32_t layer); /* NULL: not held */
void segments_remove(struct segments *s, struct held_segment *h);                      /* closes its fd */
uint32_t segments_count(const struct segments *s);
struct held_segment *segments_at(struct segments *s, uint32_t i); /* i < count */

#endif
