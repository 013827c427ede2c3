/* SPDX-License-Identifier: MIT
 * Token ids to scaled embedding rows, read from the model file row by row so that the table is never resident.
 * Thread: one (the data thread); open and close before and after. */
#ifndef TANDEM_LOADER_EMBED_H
#define TANDEM_LOADER_EMBED_H

#include <stdint.h>

#include "model/hparams.h"

struct budget;
struct embed;
struct err;
struct gguf;

/* Opens the file of g a second time, buffered; g itself is not kept. budget: borrowed. */
int embed_open(const struct gguf *g, const struct hparams *h, struct budget *budget, struct embed **ret, struct err *err);
void embed_close(struct embed *e); /* NULL and half-built are fine */
/* ret_rows: [n][hidden] f32 = row * sqrt(hidden). -EINVAL for an id outside the vocabulary. */
int embed_rows(struct embed *e, const uint32_t *ids, uint32_t n, float *ret_rows, struct err *err);
uint64_t embed_bytes_read(const struct embed *e); /* any thread */

#endif
