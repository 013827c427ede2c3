/* SPDX-License-Identifier: MIT
 * Owns the fds of weight segments. Called by supervise.c on the loop's thread; it maps nothing. */
#include "coordinator/segments.h"

#include <stdlib.h>
#include <unistd.h>

struct segments {
    uint32_t n;
    struct held_segment all[SEGMENTS_MAX];
};

struct segments *segments_open(void)
{
    return calloc(1, sizeof(struct segments));
}

void segments_close(struct segments *s)
{
    for (uint32_t i = 0; s && i < s->n; i++)
        close(s->all[i].fd);
    free(s);
}

struct held_segment *segments_find(struct segments *s, uint32_t kind, uint32_t layer)
{
    for (uint32_t i = 0; i < s->n; i++) {
        if (s->all[i].kind == kind && s->all[i].layer == layer)
            return &s->all[i];
    }
    return NULL;
}

struct held_segment *segments_add(struct segments *s, const struct held_segment *h)
{
    if (s->n == SEGMENTS_MAX || segments_find(s, h->kind, h->layer))
        return NULL;
    s->all[s->n] = *h;
    return &s->all[s->n++];
}

void segments_remove(struct segments *s, struct held_segment *h)
{
    close(h->fd);
    *h = s->all[--s->n];
}

uint32_t segments_count(const struct segments *s)
{
    return s->n;
}

struct held_segment *segments_at(struct segments *s, uint32_t i)
{
    return &s->all[i];
}
