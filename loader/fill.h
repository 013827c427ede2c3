/* SPDX-License-Identifier: MIT
 * Fills segments: a few threads share the pieces of the segments that are wanted, in order, each reading one piece while others
 * repack theirs, and go on with the next segment while the last pieces of one are on their way. */
#ifndef TANDEM_LOADER_FILL_H
#define TANDEM_LOADER_FILL_H

#include <stdbool.h>
#include <stdint.h>

#include "model/segment.h"

struct budget;
struct err;
struct fill;
struct gguf;
struct trace;

/* least: the largest segment_bounce_min. verify: tensors are compared with the file's checksums, if it has some, when they are
 * read for the first time. g, budget: borrowed until close. */
int fill_open(const struct gguf *g, struct budget *budget, uint64_t least, bool verify, struct fill **ret, struct err *err);
void fill_trace(struct fill *f, struct trace *t); /* where to record pieces, before the first run; borrowed, NULL is fine */
void fill_close(struct fill *f);                  /* no fill_run is under way; NULL is fine */
/* Returns when dst ([l->bytes]) is whole. From several threads at once: segments come in the order of the calls, and one with the
 * dst of another follows it. */
int fill_run(struct fill *f, uint32_t layer, const struct segment_layout *l, void *dst, struct err *err);
uint64_t fill_bytes_read(const struct fill *f); /* any thread */

#endif
