/* SPDX-License-Identifier: MIT
 * Owns the fds of slots. Called by supervise.c on the loop's thread; it maps nothing. */
#include "coordinator/slots.h"

#include <stdlib.h>
#include <unistd.h>

#define SLOTS_MAX 16 /* eight of each worker */

struct slots {
    uint32_t n;
    uint64_t serial;
    struct held_slot all[SLOTS_MAX];
};

struct slots *slots_open(void)
{
    return calloc(1, sizeof(struct slots));
}

void slots_close(struct slots *s)
{
    for (uint32_t i = 0; s && i < s->n; i++)
        close(s->all[i].fd);
    free(s);
}

struct held_slot *slots_find(struct slots *s, uint32_t kind, uint32_t slot)
{
    for (uint32_t i = 0; i < s->n; i++) {
        if (s->all[i].kind == kind && s->all[i].slot == slot)
            return &s->all[i];
    }
    return NULL;
}

struct held_slot *slots_add(struct slots *s, const struct held_slot *h)
{
    if (s->n == SLOTS_MAX || slots_find(s, h->kind, h->slot))
        return NULL;
    s->all[s->n] = *h;
    return &s->all[s->n++];
}

void slots_remove(struct slots *s, struct held_slot *h)
{
    close(h->fd);
    *h = s->all[--s->n];
}

uint64_t slots_serial(struct slots *s)
{
    return ++s->serial;
}

uint32_t slots_count(const struct slots *s)
{
    return s->n;
}

struct held_slot *slots_at(struct slots *s, uint32_t i)
{
    return &s->all[i];
}
