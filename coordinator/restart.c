/* SPDX-License-Identifier: MIT
 * Pure arithmetic; called by recovery.c. The first restart is immediate; each further one without progress waits twice as long as
 * the one before, give or take a quarter, so that stages that fail together do not start together. */
#include "coordinator/restart.h"

#include <string.h>

#include "proto/util.h"

static uint64_t delay_ms(uint32_t in_a_row, uint32_t random)
{
    if (in_a_row <= 1)
        return 0;
    uint64_t ms = in_a_row - 2 < 16 ? (uint64_t)RESTART_FIRST_MS << (in_a_row - 2) : RESTART_LAST_MS;
    ms = MIN(ms, (uint64_t)RESTART_LAST_MS);
    return ms - ms / 4 + random % (ms / 2);
}

bool restart_decide(struct restart *r, const struct restart_limits *l, uint64_t now_ns, uint64_t progress, uint32_t random,
                    uint64_t *ret_delay_ms)
{
    uint64_t second = now_ns / 1000000000, sum = 0;
    if (progress != r->progress)
        r->in_a_row = 0;
    r->progress = progress;
    for (int i = 0; i < RESTART_WINDOW_S; i++) {
        if (r->window[i].second + RESTART_WINDOW_S > second)
            sum += r->window[i].n;
    }
    if (r->in_a_row >= l->in_a_row || sum >= l->per_minute)
        return false;
    r->in_a_row++;
    uint32_t slot = (uint32_t)(second % RESTART_WINDOW_S);
    if (r->window[slot].second != second) {
        r->window[slot].second = second;
        r->window[slot].n = 0;
    }
    r->window[slot].n++;
    *ret_delay_ms = delay_ms(r->in_a_row, random);
    return true;
}

void restart_forget(struct restart *r)
{
    memset(r, 0, sizeof(*r));
}
