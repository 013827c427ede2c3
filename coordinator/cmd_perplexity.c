/* SPDX-License-Identifier: MIT
 * `perplexity`: scores a text by requests that generate nothing, several windows at once; a row is reduced to one number when it
 * comes. Runs on the main thread.
 *
 * Method window: windows of <bos> and W - 1 tokens, one after the other without overlap, every token but <bos>
 * scored, the last window shorter. Method llama.cpp (its perplexity tool): the text with <bos> before it is cut into chunks of
 * W, the first token of each is replaced by <bos>, positions W/2 to W - 2 are scored, a partial last chunk is left out.
 * Sums are kept per window and added in order, so the result does not depend on how windows overlapped in time. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/commands.h"
#include "coordinator/engine.h"
#include "coordinator/report.h"
#include "coordinator/tokenizer.h"
#include "proto/config.h"
#include "proto/err.h"
#include "proto/util.h"

struct perplexity;

struct window {
    struct perplexity *p;
    uint32_t *ids; /* while it runs */
    struct request *request;
    uint32_t n_ids;
    uint32_t n_scored;
    double sum, sum_squares;
};

struct perplexity {
    struct engine *engine;
    const uint32_t *ids; /* of the text */
    size_t n_ids;
    uint32_t bos, size; /* tokens per window */
    enum options_method method;
    struct window *windows;
    size_t n_windows, next;
    struct err error;
};

static void window_logits(void *ctx, uint32_t pos, const float *row, uint32_t vocab)
{
    struct window *w = ctx;
    uint32_t first = w->p->method == OPTIONS_METHOD_WINDOW ? 0 : w->p->size / 2;
    if (pos < first || pos + 1 >= w->n_ids)
        return;
    double nll = sample_nll(row, vocab, w->ids[pos + 1]);
    w->sum += nll;
    w->sum_squares += nll * nll;
    w->n_scored++;
}

static int submit_next(struct perplexity *p);

static void window_finished(void *ctx, const struct request_result *r)
{
    struct window *w = ctx;
    struct perplexity *p = w->p;
    w->request = NULL;
    free(w->ids);
    w->ids = NULL;
    if (r->finish == ENGINE_FINISH_CANCELLED || p->error.code)
        return;
    if (r->finish == ENGINE_FINISH_ERROR)
        p->error = r->err ? *r->err : (struct err){.code = -EIO, .text = "request failed"};
    else
        submit_next(p);
}

/* Text tokens of window i: the first of them, and how many. */
static size_t window_start(const struct perplexity *p, size_t i)
{
    return p->method == OPTIONS_METHOD_WINDOW ? i * (p->size - 1) : i * p->size;
}

static int submit_next(struct perplexity *p)
{
    if (p->next == p->n_windows)
        return 0;
    struct window *w = &p->windows[p->next];
    size_t start = window_start(p, p->next++), n = MIN((size_t)p->size - 1, p->n_ids - start);
    w->p = p;
    w->n_ids = (uint32_t)n + 1;
    w->ids = malloc(w->n_ids * sizeof(*w->ids));
    if (!w->ids)
        return err_set(&p->error, -ENOMEM, "perplexity: out of memory");
    w->ids[0] = p->bos;
    memcpy(w->ids + 1, p->ids + start, n * sizeof(*w->ids));
    struct request_params q = {
        .ids = w->ids, .n_ids = w->n_ids, .all_logits = true, .logits = window_logits, .finished = window_finished, .ctx = w};
    return engine_submit(p->engine, &q, &w->request, &p->error);
}

static int run_windows(struct perplexity *p, uint32_t at_once, struct err *err)
{
    int r = 0;
    p->windows = calloc(p->n_windows, sizeof(*p->windows));
    if (!p->windows)
        return err_set(err, -ENOMEM, "perplexity: out of memory for %zu windows", p->n_windows);
    for (uint32_t i = 0; i < at_once && r == 0; i++)
        r = submit_next(p);
    if (r == 0)
        r = engine_run(p->engine, err);
    else
        err_set(err, r, "%s", p->error.text);
    if (r == 0 && p->error.code)
        r = err_set(err, p->error.code, "%s", p->error.text);
    for (size_t i = 0; i < p->n_windows; i++) {
        if (p->windows[i].request)
            engine_cancel(p->engine, p->windows[i].request);
        free(p->windows[i].ids);
        p->windows[i].ids = NULL;
    }
    return r;
}

static int print_perplexity(const struct perplexity *p, const struct options *o, uint64_t ns, struct err *err)
{
    double sum = 0.0, squares = 0.0, tokens = 0.0;
    size_t n = 0;
    for (size_t i = 0; i < p->n_windows; i++) {
        sum += p->windows[i].sum;
        squares += p->windows[i].sum_squares;
        n += p->windows[i].n_scored;
        tokens += p->windows[i].n_ids;
    }
    double mean = sum / (double)n, variance = squares / (double)n - mean * mean, ppl = exp(mean);
    double error = n > 1 && variance > 0.0 ? sqrt(variance / (double)(n - 1)) : 0.0;
    const char *method = p->method == OPTIONS_METHOD_WINDOW ? "window" : "llama.cpp";
    double seconds = (double)ns / 1e9;
    if (o->json)
        return report_print_json(json_pack("{s:s, s:i, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f}", "method", method, "window",
                                           (int)p->size, "text_tokens", (json_int_t)p->n_ids, "windows", (json_int_t)p->n_windows,
                                           "scored_tokens", (json_int_t)n, "ppl", ppl, "mean_nll", mean, "standard_error",
                                           ppl * error, "seconds", seconds, "tokens_per_s", tokens / seconds),
                                 stdout, err);
    printf("perplexity %.6f +- %.6f (method %s, window %u)\nmean nll   %.8f over %zu of %zu tokens, %zu windows\n%.1f s, %.1f "
           "tokens/s\n",
           ppl, ppl * error, method, p->size, mean, n, p->n_ids, p->n_windows, seconds, tokens / seconds);
    return 0;
}

static int plan_windows(struct perplexity *p, const struct options *o, const struct plan *plan, struct err *err)
{
    if (o->window > plan->hparams.context_max)
        return err_set(err, -EINVAL, "option '--window': found %u; the model was made for at most %u tokens", o->window,
                       plan->hparams.context_max);
    if (o->window > plan->context)
        return err_set(err, -EINVAL, "option '--window': found %u; expected at most the context of %u tokens, or --set context=%u",
                       o->window, plan->context, o->window);
    p->size = o->window;
    p->method = o->method;
    p->n_windows = o->method == OPTIONS_METHOD_WINDOW ? (p->n_ids + p->size - 2) / (p->size - 1) : (p->n_ids + 1) / p->size;
    if (p->n_windows == 0)
        return err_set(err, -EINVAL, "file '%s': %zu tokens; expected at least %u for this method and window", o->file, p->n_ids,
                       o->method == OPTIONS_METHOD_WINDOW ? 1 : p->size - 1);
    return 0;
}

uint64_t cmd_perplexity_bytes(const struct options *o, size_t n_ids)
{
    return n_ids * sizeof(uint32_t) + (n_ids / MAX(o->window - 1, 1u) + 2) * sizeof(struct window);
}

int cmd_perplexity_run(struct command *c, struct err *err)
{
    const struct options *o = c->options;
    const struct plan *plan = engine_plan(c->engine);
    struct perplexity p = {.engine = c->engine, .bos = tokenizer_bos(c->tokenizer), .ids = c->ids, .n_ids = c->n_ids};
    int r = plan_windows(&p, o, plan, err);
    if (r < 0)
        return r;
    uint64_t start = util_now_ns();
    r = run_windows(&p, 2 * plan->sequences, err);
    if (r == 0)
        r = print_perplexity(&p, o, util_now_ns() - start, err);
    free(p.windows);
    return r;
}
