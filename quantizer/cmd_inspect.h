/* SPDX-License-Identifier: MIT
 * The commands that only read: verify, info, compare. Threads: one. */
#ifndef TANDEM_QUANTIZER_CMD_INSPECT_H
#define TANDEM_QUANTIZER_CMD_INSPECT_H

#include <stdbool.h>
#include <stdio.h>

void cmd_inspect_usage(FILE *f);
bool cmd_inspect_is(const char *name);       /* one of the three */
int cmd_inspect_main(int argc, char **argv); /* argv[0]: the command's name; returns the exit status */

#endif
