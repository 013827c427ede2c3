/* SPDX-License-Identifier: MIT
 * One generated answer: collects the tokens of a request as ids and text, and echoes the text as it comes.
 * Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_ANSWER_H
#define TANDEM_COORDINATOR_ANSWER_H

#include <stdio.h>

#include "coordinator/engine.h"
#include "proto/err.h"

struct detokenizer;
struct tokenizer;

struct answer { /* caller's storage; all zero before answer_init */
    const struct tokenizer *tokenizer;
    struct detokenizer *detokenizer;
    struct engine *engine;
    struct request *request; /* NULL once finished */
    FILE *echo;              /* may be NULL */
    bool beside_log;         /* the echo is seen on the terminal of the log */
    char *text;              /* NUL-terminated UTF-8, never NULL after answer_init */
    size_t n_text, text_room;
    uint32_t *ids;
    uint32_t n_ids, ids_room;
    struct request_result result; /* valid when done */
    struct journal_file *journal; /* owned; from the end of the request until the answer is given. NULL: there is none */
    bool leave;                   /* the caller's: what is never given is left to be resumed */
    struct err error;             /* of the request, of memory or of the echo */
    bool done;
};

/* tokenizer and echo are borrowed. */
int answer_init(struct answer *a, const struct tokenizer *t, FILE *echo, struct err *err);
void answer_fini(struct answer *a); /* cancels the request if it still runs; unless `leave` is set it is not to be resumed */
/* All that was written to `f` reaches who reads it, and of this answer nothing is to be resumed. -EIO and the like: it could not be
 * written. */
int answer_given(struct answer *a, FILE *f, struct err *err);
/* A token that was generated elsewhere, before the request is submitted. */
void answer_add(struct answer *a, uint32_t id);
/* Nothing comes after these: an answer that another process had generated whole. */
void answer_end(struct answer *a);
/* Submit p with the callbacks of this answer put in. `a` must stay where it is until done. */
int answer_submit(struct answer *a, struct engine *e, const struct request_params *p, struct err *err);
/* Of answers that are done: prompt tokens per second, and decode passes per second (0 when there was none). */
double answer_prefill_rate(const struct answer *a);
double answer_decode_rate(const struct answer *a);

#endif
