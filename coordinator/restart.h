/* SPDX-License-Identifier: MIT
 * When a stage that ended is started again: at once, after a while, or not any more. Threads: plain data. */
#ifndef TANDEM_COORDINATOR_RESTART_H
#define TANDEM_COORDINATOR_RESTART_H

#include <stdbool.h>
#include <stdint.h>

#define RESTART_WINDOW_S 60
#define RESTART_FIRST_MS 100
#define RESTART_LAST_MS 5000

struct restart_limits {
    uint32_t in_a_row;   /* restarts without progress in between */
    uint32_t per_minute; /* with or without */
};

struct restart { /* all zero at first */
    uint32_t in_a_row;
    uint64_t progress;
    struct {
        uint64_t second;
        uint32_t n;
    } window[RESTART_WINDOW_S];
};

/* The stage ended. progress: rises while requests get further. random: any number, for jitter. True: start it again after
 * *ret_delay_ms, counted; false: a limit is reached. */
bool restart_decide(struct restart *r, const struct restart_limits *l, uint64_t now_ns, uint64_t progress, uint32_t random,
                    uint64_t *ret_delay_ms);
/* The cause is thought to be gone: another backend, or without the requests that were under way. */
void restart_forget(struct restart *r);

#endif
