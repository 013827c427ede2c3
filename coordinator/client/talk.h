/* SPDX-License-Identifier: MIT
 * `coordinator client`: the chat of cmd_chat.c with a server. Thread: main. */
#ifndef TANDEM_COORDINATOR_CLIENT_TALK_H
#define TANDEM_COORDINATOR_CLIENT_TALK_H

struct err;
struct options;

/* 0 or a negative errno. *ret_signal: what ended it, 0 = none. */
int talk_run(const struct options *o, int *ret_signal, struct err *err);

#endif
