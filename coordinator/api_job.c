/* SPDX-License-Identifier: MIT
 * A chat or completion request from its JSON to its last byte: one `choice` for each answer, each a request of the engine. Owns the
 * job until the exchange ends; callbacks of the engine let the choices grow, callbacks of http.c take events out of a stream.
 * Everything on the loop's thread. Memory follows the answers' length, however slowly a client reads: events are written when the
 * socket takes them, from the text that is there then. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "coordinator/api_impl.h"
#include "coordinator/grammar.h"
#include "coordinator/tokenizer.h"
#include "proto/config.h"
#include "proto/util.h"

static void job_free(struct api_job *job)
{
    for (uint32_t i = 0; i < job->n_choices; i++) {
        struct api_choice *c = &job->choices[i];
        detokenizer_close(c->detokenizer);
        grammar_state_close(c->state);
        free(c->text);
        free(c->tokens);
        free(c->top);
    }
    free(job->choices);
    free(job->out);
    api_params_free(&job->params);
    json_decref(job->json);
    free(job);
}

static void cancel_all(struct api_job *job)
{
    for (uint32_t i = 0; i < job->n_choices; i++) {
        if (job->choices[i].request)
            engine_cancel(job->api->engine, job->choices[i].request);
    }
    engine_pump(job->api->engine); /* others may take the places */
}

static void answer(struct api_job *job)
{
    if (job->params.stream) {
        http_wake(job->x);
        return;
    }
    if (job->replied)
        return;
    job->replied = true;
    unsigned status = job->failed.code ? job->failed_status : 200;
    char *body =
        job->failed.code ? http_error_json(status, NULL, status == 504 ? "timeout" : NULL, job->failed.text) : api_json_answer(job);
    http_reply(job->x, status, body, body ? strlen(body) : 0, status == 503);
}

/* The first error is the job's. Whoever calls answers once nothing of it runs. */
static void fail(struct api_job *job, unsigned status, const struct err *why)
{
    if (job->failed.code)
        return;
    job->failed = *why;
    job->failed_status = status;
    cancel_all(job);
}

static bool choice_room(struct api_choice *c, size_t n)
{
    if (c->n_text + n + 1 <= c->text_room)
        return true;
    size_t room = 2 * (c->n_text + n + 1);
    char *p = realloc(c->text, room);
    if (!p)
        return false;
    c->text = p;
    c->text_room = room;
    return true;
}

static void out_of_memory(struct api_job *job)
{
    struct err e = {.code = -ENOMEM, .text = "out of memory"};
    fail(job, 500, &e);
}

/* New text: what may be shown of it, or where the answer ends. */
static void grow(struct api_choice *c, const char *s)
{
    size_t n = strlen(s), at, before = c->n_text;
    if (n == 0 || c->stopped)
        return;
    if (!choice_room(c, n)) {
        out_of_memory(c->job);
        return;
    }
    memcpy(c->text + c->n_text, s, n + 1);
    c->n_text += n;
    c->stopped = stop_scan(&c->job->params.stop, c->text, before, c->n_text, &at);
    if (c->stopped) {
        c->n_text = at;
        c->text[at] = '\0';
    }
    c->released = at;
}

static void on_scored(void *ctx, struct sampler *s, uint32_t id, const float *row)
{
    struct api_choice *c = ctx;
    uint32_t n_top = c->job->params.top_logprobs;
    if (c->n_tokens == c->tokens_room) {
        uint32_t room = c->tokens_room ? 2 * c->tokens_room : 64;
        struct api_token *tokens = realloc(c->tokens, room * sizeof(*tokens));
        c->tokens = tokens ? tokens : c->tokens;
        struct sample_logprob *top = tokens && n_top ? realloc(c->top, (size_t)room * n_top * sizeof(*top)) : NULL;
        c->top = top ? top : c->top;
        if (!tokens || (n_top && !top))
            return; /* on_token finds it missing */
        c->tokens_room = room;
    }
    double lp = sampler_logprobs(s, row, id, n_top, c->top ? c->top + (size_t)c->n_tokens * n_top : NULL);
    c->tokens[c->n_tokens++] = (struct api_token){.id = id, .logprob = (float)lp, .begin = c->n_text, .end = c->n_text};
}

static void on_token(void *ctx, uint32_t id, uint32_t index)
{
    struct api_choice *c = ctx;
    uint64_t now = util_now_ns();
    metrics_observe(index ? &c->job->api->metrics.next_token : &c->job->api->metrics.first_token,
                    now - (index ? c->token_ns : c->asked_ns));
    c->token_ns = now;
    c->n_output++;
    if (c->job->params.logprobs && c->n_tokens != c->n_output) {
        out_of_memory(c->job);
        return;
    }
    struct err err = {0};
    if (c->job->params.grammar && api_format_take(c, id, &err) < 0) {
        fail(c->job, 500, &err);
        return;
    }
    grow(c, detokenizer_push(c->detokenizer, id));
    if (c->job->params.logprobs && c->n_tokens)
        c->tokens[c->n_tokens - 1].end = c->n_text;
    if (c->stopped && c->request)
        engine_cancel(c->job->api->engine, c->request);
    else if (c->job->params.stream && !c->job->failed.code)
        http_wake(c->job->x);
}

static void on_finished(void *ctx, const struct request_result *r)
{
    struct api_choice *c = ctx;
    struct api_job *job = c->job;
    c->request = NULL;
    c->finished = true;
    job->api->n_running--;
    job->n_unfinished--;
    grammar_state_close(c->state);
    c->state = NULL;
    if (!c->stopped && r->finish != ENGINE_FINISH_CANCELLED)
        grow(c, detokenizer_finish(c->detokenizer));
    c->released = c->n_text;
    c->numerics_changed = r->numerics_changed;
    c->n_cached = r->n_cached;
    metrics_observe(&job->api->metrics.whole, util_now_ns() - c->asked_ns);
    metrics_observe(&job->api->metrics.queue, r->queue_ns);
    job->api->metrics.finished[c->stopped ? ENGINE_FINISH_STOP : r->finish]++;
    c->finish_reason = c->stopped || r->finish == ENGINE_FINISH_STOP ? "stop" : "length";
    if (r->finish == ENGINE_FINISH_ERROR) {
        struct err unknown = {.code = -EIO, .text = "the request failed"};
        const char *reason;
        fail(job, engine_state(job->api->engine, &reason) == ENGINE_FAILED ? 503 : 500, r->err ? r->err : &unknown);
    }
    if (!job->submitting && job->x && (job->n_unfinished == 0 || job->params.stream))
        answer(job);
}

static bool is_end(void *ctx, uint32_t id)
{
    const struct api_choice *c = ctx;
    return tokenizer_is_end(c->job->api->tokenizer, id);
}

static ssize_t on_read(void *ctx, char *buf, size_t max)
{
    struct api_job *job = ctx;
    if (job->out_at == job->n_out) {
        free(job->out);
        job->out = NULL;
        job->n_out = job->out_at = 0;
        if (job->done_sent)
            return -1;
        job->out = api_json_events(job);
        if (!job->out)
            return -1;
        job->n_out = strlen(job->out);
    }
    size_t n = MIN(max, job->n_out - job->out_at);
    memcpy(buf, job->out + job->out_at, n);
    job->out_at += n;
    return (ssize_t)n;
}

static void on_expired(void *ctx)
{
    struct api_job *job = ctx;
    struct err why = {.code = -ETIMEDOUT};
    snprintf(why.text, sizeof(why.text), "the answer was not there within %u seconds ('http.request_timeout')",
             job->api->config->http.request_timeout);
    fail(job, 504, &why);
    answer(job);
}

static void on_ended(void *ctx)
{
    struct api_job *job = ctx;
    struct api *a = job->api;
    job->x = NULL;
    cancel_all(job);
    *(job->prev ? &job->prev->next : &a->jobs) = job->next;
    if (job->next)
        job->next->prev = job->prev;
    job_free(job);
}

void api_jobs_fail(struct api *a, unsigned status, const struct err *why)
{
    for (struct api_job *job = a->jobs; job; job = job->next) {
        if (job->n_unfinished == 0)
            continue;
        fail(job, status, why);
        answer(job);
    }
}

static int check_queue(const struct api *a, uint32_t n, struct api_refusal *why)
{
    uint32_t sequences = engine_plan(a->engine)->sequences, room = sequences + a->config->http.max_queue;
    if (n > API_MAX_CHOICES || n > room)
        return api_refuse(why, 400, "n", "invalid_value", "the request asks for %u answers; at most %u may be asked for at once", n,
                          MIN(room, API_MAX_CHOICES));
    if (a->n_running + n > room)
        return api_refuse(why, 429, NULL, "queue_full",
                          "%u answers run or wait; 'sequences' and 'http.max_queue' allow %u; try again", a->n_running, room);
    return 0;
}

static int open_choices(struct api_job *job, uint32_t n_prompts, struct api_refusal *why)
{
    uint32_t n = n_prompts * job->params.n;
    job->choices = calloc(n, sizeof(*job->choices));
    job->n_choices = job->choices ? n : 0;
    bool ok = job->choices;
    for (uint32_t i = 0; ok && i < n; i++) {
        struct api_choice *c = &job->choices[i];
        c->job = job;
        c->index = i;
        c->prompt = i / job->params.n;
        c->text_room = 256;
        c->text = calloc(1, c->text_room);
        ok = c->text && detokenizer_open(job->api->tokenizer, &c->detokenizer) == 0;
    }
    return ok ? 0 : api_refuse(why, 500, NULL, "out_of_memory", "out of memory");
}

static int submit(struct api_job *job, const struct api_prompt *prompts, struct api_refusal *why)
{
    struct api *a = job->api;
    struct err err = {0};
    int r = 0;
    job->submitting = true;
    for (uint32_t i = 0; i < job->n_choices && r == 0; i++) {
        struct api_choice *c = &job->choices[i];
        c->asked_ns = util_now_ns();
        struct request_params q = {.ids = prompts[c->prompt].ids,
                                   .n_ids = prompts[c->prompt].n,
                                   .max_tokens = job->params.max_tokens,
                                   .sample = job->params.sample,
                                   .choice = i % job->params.n,
                                   .reuse = true,
                                   .no_journal = true,
                                   .scored = job->params.logprobs ? on_scored : NULL,
                                   .token = on_token,
                                   .finished = on_finished,
                                   .is_end = is_end,
                                   .ctx = c};
        if (job->params.grammar) {
            q.sample.mask = api_format_mask;
            q.sample.mask_ctx = c;
        }
        r = engine_submit(a->engine, &q, &c->request, &err);
        a->n_running += r == 0;
        job->n_unfinished += r == 0;
    }
    if (r < 0) {
        cancel_all(job);
        return api_refuse(why, r == -ENOMEM ? 500 : 400, NULL, "invalid_value", "%s", err.text);
    }
    job->submitting = false;
    engine_pump(a->engine);
    return 0;
}

static void set_id(struct api_job *job)
{
    uint64_t random[2] = {util_now_ns(), (uintptr_t)job};
    if (getrandom(random, sizeof(random), 0) < 0)
        random[1] ^= random[0];
    snprintf(job->id, sizeof(job->id), "%s-%016llx%08x", job->params.kind == API_CHAT ? "chatcmpl" : "cmpl",
             (unsigned long long)random[0], (unsigned)random[1]);
    job->created = (int64_t)time(NULL);
}

/* Everything else of the request was read: while it waits and runs, no prompt, schema or name of a user stays. */
static void keep_stop(struct api_job *job)
{
    json_t *stop = json_incref(json_object_get(job->json, "stop")); /* its texts are borrowed */
    json_object_clear(job->json);
    if (stop)
        json_object_set_new(job->json, "stop", stop);
}

static int job_open(struct api_job *job, struct api_prompt *prompts, uint32_t *ret_n, struct api_refusal *why)
{
    struct api_params *p = &job->params;
    int r = api_prompts_make(job->api, p, prompts, ret_n, why);
    keep_stop(job);
    p->prompt = NULL;
    if (r == 0)
        r = check_queue(job->api, *ret_n * p->n, why);
    if (r == 0)
        r = open_choices(job, *ret_n, why);
    for (uint32_t i = 0; i < *ret_n; i++)
        job->n_prompt_tokens += prompts[i].n;
    if (r == 0)
        set_id(job);
    return r == 0 ? submit(job, prompts, why) : r;
}

void api_job_start(struct api *a, struct http_exchange *x, enum api_kind kind, json_t *j)
{
    struct api_refusal why = {0};
    struct api_prompt prompts[API_MAX_PROMPTS];
    uint32_t n_prompts = 0;
    struct api_job *job = calloc(1, sizeof(*job));
    if (!job) {
        json_decref(j);
        http_reply(x, 500, NULL, 0, 0);
        return;
    }
    *job = (struct api_job){.api = a, .x = x, .json = j};
    int r = api_params_read(a, kind, j, &job->params, &why);
    if (r == 0)
        r = job_open(job, prompts, &n_prompts, &why);
    api_prompts_free(prompts, n_prompts);
    if (r < 0) {
        api_answer_refusal(x, &why);
        job_free(job);
        return;
    }
    job->next = a->jobs;
    if (job->next)
        job->next->prev = job;
    a->jobs = job;
    const struct http_work work = {.read = on_read, .expired = on_expired, .ended = on_ended, .ctx = job};
    if (job->params.stream)
        http_stream(x, &work);
    else
        http_defer(x, &work);
}
