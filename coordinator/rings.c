/* SPDX-License-Identifier: MIT
 * Owns the memfds of rings and bells, and the mappings of the coordinator's ends. Called by the supervisor on the loop's thread. */
#include "coordinator/rings.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan.h"
#include "coordinator/supervise.h"
#include "proto/err.h"
#include "proto/ring.h"
#include "proto/util.h"

enum ring_name { RING_TOKENS, RING_X0, RING_H, RING_X, RING_OUTPUT, RINGS };
enum { BELL_COORDINATOR = MSG_ROLES, BELLS };

/* Who produces and consumes a ring, and the index of the ring among that stage's outputs and inputs (proto/stage.h). */
static const struct {
    const char *name;
    int producer, output_index, consumer, input_index;
} ring_table[RINGS] = {
    [RING_TOKENS] = {"tandem-tokens", BELL_COORDINATOR, 0, MSG_ROLE_LOADER, 0},
    [RING_X0] = {"tandem-x0", MSG_ROLE_LOADER, 0, MSG_ROLE_NPU, 1},
    [RING_H] = {"tandem-h", MSG_ROLE_NPU, 0, MSG_ROLE_GPU, 0},
    [RING_X] = {"tandem-x", MSG_ROLE_GPU, 0, MSG_ROLE_NPU, 0},
    [RING_OUTPUT] = {"tandem-output", MSG_ROLE_GPU, 1, BELL_COORDINATOR, 0},
};

struct rings {
    const struct plan *plan;
    int bell_fds[BELLS], ring_fds[RINGS];
    struct bell *bell, *peers[2]; /* ours; those of the loader and of gpu_worker */
    struct ring *tokens, *output;
    bool made;
};

int rings_open(const struct plan *plan, struct rings **ret, struct err *err)
{
    struct rings *r = calloc(1, sizeof(*r));
    int code = 0;
    if (!r)
        return err_set(err, -ENOMEM, "rings: out of memory");
    r->plan = plan;
    for (int i = 0; i < RINGS; i++)
        r->ring_fds[i] = -1;
    for (int i = 0; i < BELLS; i++)
        r->bell_fds[i] = -1;
    for (int i = 0; code == 0 && i < BELLS; i++) {
        r->bell_fds[i] = bell_make(err);
        code = MIN(r->bell_fds[i], 0);
    }
    if (code == 0)
        code = bell_map(r->bell_fds[BELL_COORDINATOR], &r->bell, err);
    if (code < 0) {
        rings_close(r);
        return code;
    }
    *ret = r;
    return 0;
}

void rings_drop(struct rings *r)
{
    ring_detach(take_ptr(&r->tokens));
    ring_detach(take_ptr(&r->output));
    bell_unmap(take_ptr(&r->peers[0]));
    bell_unmap(take_ptr(&r->peers[1]));
    for (int i = 0; i < RINGS; i++) {
        util_close_fd(&r->ring_fds[i]);
        r->ring_fds[i] = -1;
    }
    r->made = false;
}

void rings_close(struct rings *r)
{
    if (!r)
        return;
    rings_drop(r);
    bell_unmap(r->bell);
    for (int i = 0; i < BELLS; i++)
        util_close_fd(&r->bell_fds[i]);
    free(r);
}

static int attach_ours(struct rings *r, uint32_t epoch, struct err *err)
{
    int code;
    if ((code = bell_map(r->bell_fds[MSG_ROLE_LOADER], &r->peers[0], err)) < 0 ||
        (code = bell_map(r->bell_fds[MSG_ROLE_GPU], &r->peers[1], err)) < 0 ||
        (code = ring_attach(r->ring_fds[RING_TOKENS], RING_PRODUCER, epoch, r->bell, r->peers[0], &r->tokens, err)) < 0)
        return code;
    return ring_attach(r->ring_fds[RING_OUTPUT], RING_CONSUMER, epoch, r->bell, r->peers[1], &r->output, err);
}

int rings_make(struct rings *r, uint32_t epoch, struct err *err)
{
    const struct plan *p = r->plan;
    int code = 0;
    for (int i = 0; code == 0 && i < RINGS; i++) {
        size_t slot = i == RING_TOKENS ? p->token_slot_bytes : i == RING_OUTPUT ? p->out_slot_bytes : p->worker_slot_bytes;
        uint32_t n = i == RING_OUTPUT ? p->logits_slots : i == RING_TOKENS ? p->token_slots : p->ring_slots;
        r->ring_fds[i] = ring_make(ring_table[i].name, n, slot, epoch, err);
        code = MIN(r->ring_fds[i], 0);
    }
    if (code == 0)
        code = attach_ours(r, epoch, err);
    if (code < 0)
        rings_drop(r);
    r->made = code == 0;
    return code;
}

bool rings_made(const struct rings *r)
{
    return r->made;
}

int rings_renew_bell(struct rings *r, enum msg_role role, struct err *err)
{
    int fd = bell_make(err);
    if (fd < 0)
        return fd;
    util_close_fd(&r->bell_fds[role]);
    r->bell_fds[role] = fd;
    return 0;
}

uint32_t rings_of(const struct rings *r, enum msg_role role, struct ring_end ret[RINGS_OF_STAGE_MAX])
{
    uint32_t n = 0;
    for (int i = 0; i < RINGS; i++) {
        bool produces = ring_table[i].producer == (int)role;
        if (!produces && ring_table[i].consumer != (int)role)
            continue;
        int peer = produces ? ring_table[i].consumer : ring_table[i].producer;
        ret[n++] = (struct ring_end){.direction = produces,
                                     .index = (uint32_t)(produces ? ring_table[i].output_index : ring_table[i].input_index),
                                     .fds = {r->ring_fds[i], r->bell_fds[peer]}};
    }
    return n;
}

int rings_writer(enum msg_role role, uint32_t input)
{
    for (int i = 0; i < RINGS; i++) {
        if (ring_table[i].consumer == (int)role && ring_table[i].input_index == (int)input)
            return ring_table[i].producer < MSG_ROLES ? ring_table[i].producer : -1;
    }
    return -1;
}

int rings_reader(enum msg_role role, uint32_t output)
{
    for (int i = 0; i < RINGS; i++) {
        if (ring_table[i].producer == (int)role && ring_table[i].output_index == (int)output)
            return ring_table[i].consumer < MSG_ROLES ? ring_table[i].consumer : -1;
    }
    return -1;
}

int rings_bell_fd(const struct rings *r, enum msg_role role)
{
    return r->bell_fds[role];
}

struct ring *rings_tokens(struct rings *r)
{
    return r->tokens;
}

struct ring *rings_output(struct rings *r)
{
    return r->output;
}

struct bell *rings_bell(struct rings *r)
{
    return r->bell;
}

_Static_assert(RINGS == SUPERVISE_RINGS, "one number");
int rings_look(const struct rings *r, int i, const char **ret_name, uint32_t *ret_fill, uint32_t *ret_slots, struct err *err)
{
    *ret_name = ring_table[i].name + strlen("tandem-");
    *ret_fill = *ret_slots = 0;
    struct ring_sight seen;
    int code = r->made ? ring_look(r->ring_fds[i], &seen, err) : 0;
    if (r->made && code == 0) {
        *ret_fill = seen.fill;
        *ret_slots = seen.n_slots;
    }
    return code;
}

/* All that was taken is read before anything that was given: in between, it can only look as if more had been given. */
int rings_books(const struct rings *r, uint32_t done, struct ring_books ret[MSG_ROLES], struct err *err)
{
    struct ring_sight before[RINGS], after[RINGS];
    int code = 0, full = 0;
    memset(ret, 0, MSG_ROLES * sizeof(*ret));
    for (int i = 0; code == 0 && i < RINGS; i++)
        code = ring_look(r->ring_fds[i], &before[i], err);
    for (int i = 0; code == 0 && i < RINGS; i++)
        code = ring_look(r->ring_fds[i], &after[i], err);
    if (code < 0)
        return code;
    for (int i = 0; i < RINGS; i++) {
        int from = ring_table[i].producer, to = ring_table[i].consumer;
        uint32_t fill = i == RING_OUTPUT ? MIN(ring_fill(r->output), ring_n_slots(r->output)) : after[i].fill;
        full += (int)fill;
        if (from < MSG_ROLES) {
            ret[from].given += i == RING_OUTPUT ? done + fill : after[i].head; /* of what lies there, some are logits */
            ret[from].output_full |= fill >= after[i].n_slots;
        }
        if (to < MSG_ROLES) {
            ret[to].taken += before[i].tail;
            ret[to].has_input |= fill > 0;
        }
    }
    return full;
}
