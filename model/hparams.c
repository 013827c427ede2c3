/* SPDX-License-Identifier: MIT
 * Copies the hyper-parameters between their own struct and CONFIGURE, whose first fields are the same in the same order. */
#include "model/hparams.h"

#include <stddef.h>
#include <string.h>

#include "proto/msg.h"

_Static_assert(offsetof(struct msg_configure, budget) >= sizeof(struct hparams), "CONFIGURE begins with the hyper-parameters");
_Static_assert(offsetof(struct msg_configure, n_layers) == offsetof(struct hparams, n_layers), "order");
_Static_assert(offsetof(struct msg_configure, window) == offsetof(struct hparams, window), "order");
_Static_assert(offsetof(struct msg_configure, eps) == offsetof(struct hparams, eps), "order");
_Static_assert(offsetof(struct msg_configure, attn_scale) == offsetof(struct hparams, attn_scale), "order");

void hparams_from_msg(const struct msg_configure *m, struct hparams *ret)
{
    memcpy(ret, m, sizeof(*ret));
}

void hparams_to_msg(const struct hparams *h, struct msg_configure *ret)
{
    memcpy(ret, h, sizeof(*h));
}
