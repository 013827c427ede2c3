/* SPDX-License-Identifier: MIT
 * What CONFIGURE tells a stage, from plan and config. Threads: plain data. */
#ifndef TANDEM_COORDINATOR_CONFIGURE_H
#define TANDEM_COORDINATOR_CONFIGURE_H

#include "proto/config.h"
#include "proto/msg.h"

struct err;
struct plan;

enum config_process configure_process(enum msg_role role);
/* q: all zero. -ENAMETOOLONG for a model path that does not fit the message. */
int configure_fill(struct msg_configure *q, enum msg_role role, const struct config *c, const struct plan *p, uint32_t epoch,
                   bool first, struct err *err);

#endif
