/* SPDX-License-Identifier: MIT
 * Owns the layout of the status page. No thread of its own; never blocks. */
#include "proto/status.h"

#include <errno.h>
#include <stdatomic.h>

#include "proto/err.h"
#include "proto/shm.h"
#include "proto/util.h"

#define STATUS_MAGIC 0x54415453u /* "STAT" */

struct status {
    uint32_t magic, reserved;
    _Atomic uint64_t since_ns, chunk, usual_ns;
    _Atomic uint32_t layer, n_tokens, wait;
};
_Static_assert(sizeof(struct status) == 48, "layout");

int status_make(struct err *err)
{
    return shm_make_page("tandem-status", STATUS_MAGIC, err);
}

int status_map(int fd, struct status **ret, struct err *err)
{
    return shm_map_page(fd, "status page", STATUS_MAGIC, (void **)ret, err);
}

void status_unmap(struct status *s)
{
    shm_unmap(s, SHM_PAGE_BYTES);
}

#define STORE(field, value) atomic_store_explicit(&s->field, value, memory_order_relaxed)
#define LOAD(field) atomic_load_explicit(&s->field, memory_order_relaxed)

void status_busy(struct status *s, const struct status_work *w)
{
    STORE(since_ns, 0);
    STORE(chunk, w->chunk);
    STORE(layer, w->layer);
    STORE(n_tokens, w->n_tokens);
    STORE(usual_ns, w->usual_ns);
    STORE(since_ns, w->since_ns);
}

void status_waits(struct status *s, enum status_wait wait)
{
    STORE(wait, wait);
    STORE(since_ns, 0);
}

void status_goes_on(struct status *s)
{
    STORE(since_ns, util_now_ns());
}

void status_read(const struct status *s, struct status_work *ret)
{
    *ret = (struct status_work){.since_ns = LOAD(since_ns),
                                .wait = (enum status_wait)MIN(LOAD(wait), (uint32_t)STATUS_WEIGHTS),
                                .chunk = LOAD(chunk),
                                .layer = LOAD(layer),
                                .n_tokens = LOAD(n_tokens),
                                .usual_ns = LOAD(usual_ns)};
}
