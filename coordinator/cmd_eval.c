/* SPDX-License-Identifier: MIT
 * `eval`: the logits of every position of a prompt, as .npy. Submits one request that generates nothing; each row is written when
 * it comes and never kept. On failure no file is left. Runs on the main thread. */
#include <errno.h>

#include "coordinator/commands.h"
#include "coordinator/engine.h"
#include "model/npy.h"
#include "proto/err.h"

struct eval {
    struct engine *engine;
    struct request *request;
    struct npy_writer *writer;
    struct err error;
};

static void eval_logits(void *ctx, uint32_t pos, const float *row, uint32_t vocab)
{
    struct eval *e = ctx;
    (void)vocab;
    if (!e->error.code && npy_writer_row(e->writer, pos, row, &e->error) < 0)
        engine_cancel(e->engine, e->request);
}

static void eval_finished(void *ctx, const struct request_result *r)
{
    struct eval *e = ctx;
    e->request = NULL;
    if (r->finish == ENGINE_FINISH_ERROR && !e->error.code)
        e->error = r->err ? *r->err : (struct err){.code = -EIO, .text = "request failed"};
}

int cmd_eval_run(struct command *c, struct err *err)
{
    const struct options *o = c->options;
    struct eval e = {.engine = c->engine};
    uint32_t vocab = engine_plan(c->engine)->hparams.vocab;
    struct request_params q = {
        .ids = o->ids, .n_ids = o->n_ids, .all_logits = true, .logits = eval_logits, .finished = eval_finished, .ctx = &e};
    int r = npy_writer_open(o->logits, o->n_ids, vocab, &e.writer, err);
    if (r < 0)
        return r;
    r = engine_submit(c->engine, &q, &e.request, err);
    if (r == 0)
        r = engine_run(c->engine, err);
    if (r == 0 && e.error.code)
        r = err_set(err, e.error.code, "%s", e.error.text);
    if (e.request)
        engine_cancel(c->engine, e.request);
    if (r < 0) {
        npy_writer_abort(e.writer);
        return r;
    }
    return npy_writer_finish(e.writer, err);
}
