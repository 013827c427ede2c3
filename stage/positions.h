/* SPDX-License-Identifier: MIT
 * Lists of numbers on the command line: "2,17,5" and "0..15" (both ends included), also mixed. Threads: any. */
#ifndef TANDEM_STAGE_POSITIONS_H
#define TANDEM_STAGE_POSITIONS_H

#include <stddef.h>
#include <stdint.h>

struct err;

/* option: how the message calls it ("--ids"). Numbers must be below `limit`, at most `max` of them.
 * *ret: malloc'ed, returned owned. */
int positions_parse(const char *option, const char *text, uint32_t limit, size_t max, uint32_t **ret, size_t *ret_n,
                    struct err *err);

#endif
