/* SPDX-License-Identifier: MIT
 * Server-sent events out of bytes as they come. Thread: plain data. */
#ifndef TANDEM_COORDINATOR_CLIENT_SSE_H
#define TANDEM_COORDINATOR_CLIENT_SSE_H

#include <stdbool.h>
#include <stddef.h>

struct err;

#define SSE_MAX_BYTES ((size_t)4 << 20) /* of an event, and of a line */

struct sse { /* all zero before the first bytes */
    char *line, *data;
    size_t n_line, line_room, n_data, data_room;
    bool has_data;
};

/* each: the data of an event, with a NUL behind; what it returns below 0 ends the feeding and is returned. -EPROTO: an event is
 * longer than SSE_MAX_BYTES. */
int sse_feed(struct sse *s, const char *bytes, size_t n, int (*each)(void *ctx, const char *data, size_t n, struct err *err),
             void *ctx, struct err *err);
void sse_fini(struct sse *s);

#endif
