/* SPDX-License-Identifier: MIT
 * Lines end in LF or CRLF; of an event only its data counts, several lines of which are joined by newlines; comments and other
 * fields are read over. Called by talk.c. What comes is another process's: bounded. */
#include "coordinator/client/sse.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/util.h"

/* At the end of a buffer, with a NUL behind. */
static int append(char **buf, size_t *n, size_t *room, const char *bytes, size_t more, struct err *err)
{
    if (*n + more > SSE_MAX_BYTES)
        return err_set(err, -EPROTO, "an event of the answer has more than %zu bytes", SSE_MAX_BYTES);
    if (*n + more + 1 > *room) {
        char *p = realloc(*buf, 2 * (*n + more + 1));
        if (!p)
            return err_set(err, -ENOMEM, "the answer: out of memory");
        *buf = p;
        *room = 2 * (*n + more + 1);
    }
    memcpy(*buf + *n, bytes, more);
    *n += more;
    (*buf)[*n] = '\0';
    return 0;
}

static int whole_line(struct sse *s, int (*each)(void *ctx, const char *data, size_t n, struct err *err), void *ctx,
                      struct err *err)
{
    size_t n = s->n_line;
    const char *line = s->line;
    int r = 0;
    if (n && line[n - 1] == '\r')
        s->line[--n] = '\0';
    s->n_line = 0;
    if (n == 0) {
        r = s->has_data ? each(ctx, s->data, s->n_data, err) : 0;
        s->has_data = false;
        s->n_data = 0;
        return r;
    }
    if (strncmp(line, "data:", 5) != 0)
        return 0;
    size_t skip = line[5] == ' ' ? 6 : 5;
    if (s->has_data)
        r = append(&s->data, &s->n_data, &s->data_room, "\n", 1, err);
    s->has_data = true;
    return r < 0 ? r : append(&s->data, &s->n_data, &s->data_room, line + skip, n - skip, err);
}

int sse_feed(struct sse *s, const char *bytes, size_t n, int (*each)(void *ctx, const char *data, size_t n, struct err *err),
             void *ctx, struct err *err)
{
    while (n) {
        const char *end = memchr(bytes, '\n', n);
        size_t piece = end ? (size_t)(end - bytes) : n;
        int r = append(&s->line, &s->n_line, &s->line_room, bytes, piece, err);
        if (r == 0 && end)
            r = whole_line(s, each, ctx, err);
        if (r < 0)
            return r;
        bytes += piece + (end != NULL);
        n -= piece + (end != NULL);
    }
    return 0;
}

void sse_fini(struct sse *s)
{
    free(s->line);
    free(s->data);
    *s = (struct sse){0};
}
