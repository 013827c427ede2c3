/* SPDX-License-Identifier: MIT
 * Asks another program: starts it, reads what it prints, waits for its end, all within a time. For questions to drivers, which may
 * crash or hang: then that is the answer. Thread: any; blocks. */
#ifndef TANDEM_PROTO_ASK_H
#define TANDEM_PROTO_ASK_H

#include <stddef.h>

struct err;

/* words: the path of the program, its arguments, NULL. text: what it wrote to both of its outputs, terminated; of more than fits
 * (bytes, at least 16), the end. *ret_status: as of waitpid. -ETIMEDOUT where it has not ended in time: it is killed. */
int ask_program(const char *const *words, int timeout_ms, char *text, size_t bytes, int *ret_status, struct err *err);

#endif
