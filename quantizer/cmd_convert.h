/* SPDX-License-Identifier: MIT
 * The command that converts: its options, its screen. Threads: one. */
#ifndef TANDEM_QUANTIZER_CMD_CONVERT_H
#define TANDEM_QUANTIZER_CMD_CONVERT_H

#include <stdio.h>

void cmd_convert_usage(FILE *f);
int cmd_convert_main(int argc, char **argv); /* returns the exit status */

#endif
