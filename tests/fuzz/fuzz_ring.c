/* SPDX-License-Identifier: MIT
 * Header page of a ring: a ring that can be attached has its slots inside the mapping, whatever the indices say. The first
 * byte chooses the side and how many pages the memfd has; the rest lies at its start. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/err.h"
#include "proto/ring.h"
#include "proto/shm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PAGE 4096u

static void use(struct ring *r, enum ring_side side)
{
    for (uint32_t i = 0; i < 8; i++) {
        uint8_t *slot = side == RING_PRODUCER ? ring_reserve(r) : ring_peek(r);
        if (!slot)
            return;
        slot[0]++;
        slot[ring_slot_bytes(r) - 1]++;
        if (side == RING_PRODUCER)
            ring_commit(r);
        else
            ring_release(r);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct bell *bell;
    struct err err = {0};
    struct ring *r = NULL;
    void *p;
    if (!bell) {
        int fd = bell_make(&err);
        if (bell_map(fd, &bell, &err) < 0)
            abort();
        close(fd);
    }
    if (size == 0)
        return 0;
    enum ring_side side = data[0] & 1 ? RING_CONSUMER : RING_PRODUCER;
    size_t bytes = PAGE * (1u + (data[0] >> 1 & 15));
    int fd = shm_make("fuzz", bytes, false, &err);
    if (fd < 0 || shm_map(fd, bytes, true, &p, &err) < 0)
        abort();
    memcpy(p, data + 1, size - 1 < bytes ? size - 1 : bytes);
    if (ring_attach(fd, side, 7, bell, bell, &r, &err) == 0) {
        if (ring_bytes(ring_n_slots(r), ring_slot_bytes(r)) > bytes)
            abort();
        use(r, side);
    } else if (!err.text[0]) {
        abort();
    }
    ring_detach(r);
    shm_unmap(p, bytes);
    close(fd);
    return 0;
}
