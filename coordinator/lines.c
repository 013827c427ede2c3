/* SPDX-License-Identifier: MIT
 * Owns a buffer of the longest line. Called by cmd_chat.c and the client for pipes, files, and terminals that cannot move their
 * cursor. */
#include "coordinator/lines.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/err.h"
#include "proto/util.h"

int lines_init(struct lines *l, int (*wait)(void *ctx, int fd, struct err *err), void *ctx, struct err *err)
{
    *l = (struct lines){.wait = wait, .ctx = ctx, .input = malloc(LINES_MAX_BYTES + 1)};
    return l->input ? 0 : err_set(err, -ENOMEM, "standard input: out of memory");
}

void lines_fini(struct lines *l)
{
    free(l->input);
    *l = (struct lines){0};
}

static int read_more(struct lines *l, struct err *err)
{
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    int r = poll(&p, 1, 0) > 0 ? 0 : l->wait(l->ctx, STDIN_FILENO, err);
    if (r < 0)
        return r;
    ssize_t got = read(STDIN_FILENO, l->input + l->n, LINES_MAX_BYTES - l->n);
    if (got < 0 && errno != EINTR && errno != EAGAIN)
        return err_set_errno(err, -errno, "standard input: cannot be read");
    l->end = got == 0;
    l->n += (size_t)MAX(got, 0);
    return 0;
}

int lines_next(struct lines *l, char **ret, struct err *err)
{
    memmove(l->input, l->input + l->used, l->n - l->used);
    l->n -= l->used;
    l->used = 0;
    for (;;) {
        char *newline = memchr(l->input, '\n', l->n);
        if (newline || (l->end && l->n)) {
            size_t n = newline ? (size_t)(newline - l->input) : l->n;
            l->input[n] = '\0';
            *ret = l->input;
            l->used = MIN(n + 1, l->n);
            return 0;
        }
        if (l->end)
            return -ENODATA;
        if (l->n == LINES_MAX_BYTES)
            return err_set(err, -E2BIG, "standard input: a line of more than %u bytes; expected one prompt per line",
                           LINES_MAX_BYTES);
        int r = read_more(l, err);
        if (r < 0)
            return r;
    }
}
