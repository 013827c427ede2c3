/* SPDX-License-Identifier: MIT
 * Prompts that a person types on a terminal: editing and history by libedit, pasted text, several lines in one prompt, Tab.
 * Meanwhile the caller's own waiting goes on, so that it sees signals and whatever else it watches. Thread: one, the caller's. */
#ifndef TANDEM_COORDINATOR_LINE_H
#define TANDEM_COORDINATOR_LINE_H

#include <stdbool.h>
#include <stddef.h>

struct err;
struct line;

#define LINE_MAX_BYTES (64u << 10)                 /* of a prompt; what is longer goes through a pipe */
#define LINE_MEMORY_BYTES ((unsigned long)4 << 20) /* libedit has five copies of it in characters of 4 bytes; and the history */

struct line_options {            /* all borrowed until line_close */
    const char *const *commands; /* what Tab completes at the beginning of a prompt; those that end in a space take a file's name */
    size_t n_commands;
    const char *history; /* the file of earlier prompts (line_history.h); NULL: they are kept in memory alone */
    /* Until fd can be read: 0. A negative errno ends the reading; -EINTR: a signal came. */
    int (*wait)(void *ctx, int fd, struct err *err);
    int (*signal)(void *ctx); /* the one that came */
    void (*forget_signal)(void *ctx);
    void *ctx;
};

/* Standard input and output are a terminal that knows how to move its cursor. */
bool line_possible(void);
/* The terminal is in its own mode again whenever line_read has returned. -ENOTSUP: there is no UTF-8 locale. */
int line_open(const struct line_options *o, struct line **ret, struct err *err);
void line_close(struct line *l); /* NULL is fine */
/* The next prompt without its last newline, as UTF-8; *ret is borrowed until the next call. It goes into the history, unless it
 * begins with a space. -ENODATA: end of input; what `wait` returned otherwise. SIGINT clears the line, and ends the reading when it
 * comes a second time on an empty one. What is wrong with a prompt, or with the history's file, is said on the terminal, the latter
 * once. */
int line_read(struct line *l, char **ret, struct err *err);

#endif
