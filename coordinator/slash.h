/* SPDX-License-Identifier: MIT
 * What a person may say to a chat instead of a prompt. Thread: any. */
#ifndef TANDEM_COORDINATOR_SLASH_H
#define TANDEM_COORDINATOR_SLASH_H

#include <stddef.h>
#include <stdio.h>

struct err;

enum slash { SLASH_HELP, SLASH_LOAD, SLASH_QUIT, SLASH_RESET, SLASH_SAVE, SLASH_STATS, SLASH_COMMANDS };

#define SLASH_FILE_BYTES 4096

/* A line that begins with '/'. ret_file: of those that take a file, with "~/" replaced. -EINVAL: there is no such command, or its
 * file is missing; the message is for the person. */
int slash_parse(const char *line, enum slash *ret, char ret_file[SLASH_FILE_BYTES], struct err *err);
void slash_help(FILE *f);
/* For line_options.commands. */
const char *const *slash_names(size_t *ret_n);

#endif
