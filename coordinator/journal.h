/* SPDX-License-Identifier: MIT
 * Requests in progress, so that they can be finished after this process was killed: one file for each in the runtime folder, mode
 * 0600, with prompt, sampling parameters and the tokens so far. It is written as they come, without fsync: it outlives the
 * process, not the machine. Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_JOURNAL_H
#define TANDEM_COORDINATOR_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/engine.h"
#include "coordinator/sample.h"

struct err;
struct journal;
struct journal_file;

struct journal_options {
    const char *folder; /* of this process */
    const char *model;  /* path of the GGUF file, of which size and time are noted */
    uint32_t context;   /* noted */
    uint32_t vocab;     /* no id that is read back reaches it */
};

struct journal_request {
    const uint32_t *ids; /* prompt, then the tokens generated so far */
    uint32_t n_prompt, n_done, max_tokens, choice;
    uint32_t context;          /* of one that is claimed: with which it was begun */
    bool ended;                /* likewise: nothing is left to be generated, */
    enum engine_finish finish; /* and this is how it ended, as journal_finish was told */
    struct sample_params sample;
};

int journal_open(const struct journal_options *o, struct journal **ret, struct err *err);
void journal_close(struct journal *j); /* files of requests that did not end stay; NULL is fine */

/* A file for a request. */
int journal_begin(struct journal *j, const struct journal_request *q, struct journal_file **ret, struct err *err);
/* False: it could not be written (told once). Nothing is added any more; the file stays, so that --resume begins from what it has.
 */
bool journal_token(struct journal_file *f, uint32_t id);
/* The request has ended, `why` (stop, length or context); its answer is still to be handed to somebody. False: as above. */
bool journal_finish(struct journal_file *f, enum engine_finish why);
void journal_end(struct journal_file *f);   /* removes it; NULL is fine */
void journal_leave(struct journal_file *f); /* lets it lie, for another time */

/* The next request that a coordinator of the same model, now dead, left below `base` in a folder journal-*; it is moved into our
 * folder, so that nobody else takes it and another death leaves it there. q->ids: valid until journal_end; to be ended like one
 * begun here. 1: there it is; 0: there is none any more. What cannot be read, or belongs to another model, stays; *ret_others
 * counts it. */
int journal_claim(struct journal *j, const char *base, struct journal_request *ret, struct journal_file **ret_file,
                  uint32_t *ret_others, struct err *err);

#endif
