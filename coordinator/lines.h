/* SPDX-License-Identifier: MIT
 * Lines of a descriptor that is no terminal to edit on, with the caller's own waiting. Thread: one, the caller's. */
#ifndef TANDEM_COORDINATOR_LINES_H
#define TANDEM_COORDINATOR_LINES_H

#include <stdbool.h>
#include <stddef.h>

struct err;

#define LINES_MAX_BYTES (1u << 20)

struct lines {                                       /* caller's storage */
    int (*wait)(void *ctx, int fd, struct err *err); /* as in line.h */
    void *ctx;
    char *input; /* bytes read; the first `used` of them were given out */
    size_t n, used;
    bool end;
};

int lines_init(struct lines *l, int (*wait)(void *ctx, int fd, struct err *err), void *ctx, struct err *err);
void lines_fini(struct lines *l);
/* The next line of standard input without its newline, in place, until the next call. -ENODATA: there is none; -E2BIG: it is longer
 * than LINES_MAX_BYTES; what `wait` returned otherwise. */
int lines_next(struct lines *l, char **ret, struct err *err);

#endif
