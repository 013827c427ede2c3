/* SPDX-License-Identifier: MIT
 * A pipeline of one function for tests of the schedule: what it sends is read from the token ring and answered on the output ring.
 * The "model" is a hash of all tokens that were stored for a sequence up to a position: the next token is known without
 * running the schedule, so lost, doubled, reordered, forgotten or mixed-up tokens are seen at once. */
#ifndef TANDEM_TESTS_ENGINE_SCHEDULE_WORLD_H
#define TANDEM_TESTS_ENGINE_SCHEDULE_WORLD_H

#include "coordinator/schedule.h"
#include "proto/chunk.h"
#include "proto/err.h"

#define VOCAB 97
#define HIDDEN 16
#define WORLD_CONTEXT 512

struct bell;

struct world {
    struct plan plan;
    struct schedule *s;
    struct bell *bell;
    uint32_t epoch;
    int bell_fd, fds[2];
    struct ring *tokens[2], *output[2]; /* coordinator's end, pipeline's end */
    uint32_t n_seen[64];                /* positions stored per slot, */
    uint32_t first[64];                 /* pages given back where there is a window, */
    uint32_t hashes[64][WORLD_CONTEXT]; /* and the hash of what was stored up to each */
    uint32_t chunks, largest, decode_batch;
    struct err fail_next;
    uint32_t die_after;              /* slots of the output ring that are still written; UINT32_MAX: all */
    uint32_t deadly_seq, deadly_pos; /* storing it is the end; UINT32_MAX: no position */
    bool dead;
};

void world_open(struct world *w, uint32_t sequences, uint32_t chunk, uint32_t context);
void world_close(struct world *w);
/* New rings of the next epoch; what was in the old ones is gone, and all that was stored if kv_lost. */
void world_restart(struct world *w, bool died, bool kv_lost);
/* Take one chunk off the token ring and answer it; false when there is none. */
bool world_step(struct world *w);
void world_drain(struct world *w);
/* A slot of the output ring; the coordinator is given the chance to empty it first. */
void *world_out(struct world *w, const struct chunk *c);
void world_commit(struct world *w);
/* Until nothing is left to do. */
void world_run(struct world *w);

struct client {
    uint32_t ids[512], n, rows, n_cached;
    bool finished, numerics_changed;
    enum engine_finish finish;
    int code;
    char text[160];
};
struct request_params client_params(struct client *c, const uint32_t *ids, uint32_t n, uint32_t max_tokens);
/* Greedy output of the model after this prompt. */
void client_check(const struct client *c, const uint32_t *prompt, uint32_t n);

#endif
