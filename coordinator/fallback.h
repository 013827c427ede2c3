/* SPDX-License-Identifier: MIT
 * The plan of a pipeline that runs, changed for a worker whose backend does not work: the processor takes over. Threads: plain
 * data. */
#ifndef TANDEM_COORDINATOR_FALLBACK_H
#define TANDEM_COORDINATOR_FALLBACK_H

#include <stdint.h>

#include "proto/msg.h"

struct config;
struct err;
struct gguf;
struct plan;

/* Chunks, rings, pages and caps stay what they are. -ENOENT: there is no further backend; another error: the plan for it does not
 * fit, and *plan is as it was. */
int fallback_plan(const struct config *c, const struct gguf *g, enum msg_role role, uint64_t command_bytes, struct plan *plan,
                  struct err *err);

#endif
