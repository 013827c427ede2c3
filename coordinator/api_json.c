/* SPDX-License-Identifier: MIT
 * Answers in OpenAI's shape: whole, or as the events of a stream. What is in an answer is the same either way; a stream says it in
 * pieces. Called by api_job.c; reads a job and marks what was sent, nothing else. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/api_impl.h"
#include "coordinator/tokenizer.h"
#include "proto/utf8.h"
#include "proto/util.h"

#define TOKEN_BYTES 512u

/* A token by itself: its text, or where that is not whole characters its bytes as "bytes:\xe2\x80". */
static json_t *token_text(const struct api *a, uint32_t id, json_t **ret_bytes)
{
    char bytes[TOKEN_BYTES], text[6 + 4 * TOKEN_BYTES + 1] = "bytes:";
    size_t n = tokenizer_bytes(a->tokenizer, id, bytes, sizeof(bytes));
    if (ret_bytes) {
        *ret_bytes = json_array();
        for (size_t i = 0; i < n; i++)
            json_array_append_new(*ret_bytes, json_integer((unsigned char)bytes[i]));
    }
    if (n == 0) /* a control token, which adds nothing to a text */
        return json_string(tokenizer_piece(a->tokenizer, id));
    if (utf8_valid(bytes, n) && !memchr(bytes, 0, n))
        return json_stringn(bytes, n);
    for (size_t i = 0; i < n; i++)
        snprintf(text + 6 + 4 * i, 5, "\\x%02x", (unsigned char)bytes[i]);
    return json_string(text);
}

static json_t *scored_json(const struct api *a, uint32_t id, float logprob)
{
    json_t *bytes = NULL, *text = token_text(a, id, &bytes);
    return json_pack("{s:o, s:f, s:o}", "token", text, "logprob", (double)logprob, "bytes", bytes);
}

static json_t *chat_logprobs(const struct api_choice *c, uint32_t from, uint32_t to)
{
    const struct api *a = c->job->api;
    uint32_t n_top = c->job->params.top_logprobs;
    json_t *list = json_array();
    for (uint32_t i = from; i < to; i++) {
        json_t *one = scored_json(a, c->tokens[i].id, c->tokens[i].logprob), *top = json_array();
        for (uint32_t k = 0; k < n_top; k++) {
            const struct sample_logprob *t = &c->top[(size_t)i * n_top + k];
            json_array_append_new(top, scored_json(a, t->id, t->logprob));
        }
        json_object_set_new(one, "top_logprobs", top);
        json_array_append_new(list, one);
    }
    return json_pack("{s:o, s:n}", "content", list, "refusal");
}

static size_t characters(const char *text, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)text[i] & 0xC0) != 0x80;
    return count;
}

static void set_top(json_t *object, const struct api *a, uint32_t id, float logprob)
{
    json_t *text = token_text(a, id, NULL);
    json_object_set_new(object, json_string_value(text) ? json_string_value(text) : "", json_real((double)logprob));
    json_decref(text);
}

static json_t *completion_logprobs(const struct api_choice *c, uint32_t from, uint32_t to)
{
    const struct api *a = c->job->api;
    uint32_t n_top = c->job->params.top_logprobs;
    json_t *tokens = json_array(), *scores = json_array(), *tops = json_array(), *offsets = json_array();
    size_t counted = 0, offset = 0;
    for (uint32_t i = from; i < to; i++) {
        json_t *top = json_object();
        json_array_append_new(tokens, token_text(a, c->tokens[i].id, NULL));
        json_array_append_new(scores, json_real((double)c->tokens[i].logprob));
        for (uint32_t k = 0; k < n_top; k++)
            set_top(top, a, c->top[(size_t)i * n_top + k].id, c->top[(size_t)i * n_top + k].logprob);
        if (n_top)
            set_top(top, a, c->tokens[i].id, c->tokens[i].logprob);
        json_array_append_new(tops, top);
        size_t begin = MIN(c->tokens[i].begin, c->n_text);
        offset += characters(c->text + counted, begin - counted);
        counted = begin;
        json_array_append_new(offsets, json_integer((json_int_t)offset));
    }
    return json_pack("{s:o, s:o, s:o, s:o}", "tokens", tokens, "token_logprobs", scores, "top_logprobs", tops, "text_offset",
                     offsets);
}

static json_t *logprobs_json(const struct api_choice *c, uint32_t from, uint32_t to)
{
    if (!c->job->params.logprobs)
        return json_null();
    return c->job->params.kind == API_CHAT ? chat_logprobs(c, from, to) : completion_logprobs(c, from, to);
}

/* Tokens of the text up to `released`; those that a stop string cut off whole are in no answer. */
static uint32_t tokens_until(const struct api_choice *c)
{
    uint32_t n = c->tokens_sent;
    while (n < c->n_tokens && (c->finished ? !c->stopped || c->tokens[n].begin < c->n_text : c->tokens[n].end <= c->released))
        n++;
    return n;
}

static json_t *usage_json(const struct api_job *job)
{
    json_int_t n = 0, cached = 0;
    for (uint32_t i = 0; i < job->n_choices; i++) {
        n += job->choices[i].n_output;
        cached += i % job->params.n == 0 ? job->choices[i].n_cached : 0; /* a prompt counts once, as above */
    }
    return json_pack("{s:I, s:I, s:I, s:{s:I}}", "prompt_tokens", (json_int_t)job->n_prompt_tokens, "completion_tokens", n,
                     "total_tokens", (json_int_t)job->n_prompt_tokens + n, "prompt_tokens_details", "cached_tokens", cached);
}

/* Takes choices. */
static json_t *envelope(const struct api_job *job, json_t *choices)
{
    bool chat = job->params.kind == API_CHAT;
    const char *object = !chat ? "text_completion" : job->params.stream ? "chat.completion.chunk" : "chat.completion";
    return json_pack("{s:s, s:s, s:I, s:s, s:s, s:o}", "id", job->id, "object", object, "created", (json_int_t)job->created,
                     "model", job->api->model, "system_fingerprint", "tandem-" TANDEM_VERSION, "choices", choices);
}

/* Takes choice, which may be NULL. With the end of an answer comes what else is to be said of it. */
static json_t *ended(const struct api_choice *c, json_t *choice)
{
    if (c->numerics_changed)
        json_object_set_new(choice, "numerics_changed", json_true());
    return choice;
}

static json_t *choice_json(const struct api_choice *c)
{
    json_t *logprobs = logprobs_json(c, 0, tokens_until(c));
    if (c->job->params.kind == API_COMPLETION)
        return ended(c, json_pack("{s:i, s:s%, s:o, s:s}", "index", (int)c->index, "text", c->text, c->n_text, "logprobs", logprobs,
                                  "finish_reason", c->finish_reason));
    return ended(c, json_pack("{s:i, s:{s:s, s:s%, s:n}, s:o, s:s}", "index", (int)c->index, "message", "role", "assistant",
                              "content", c->text, c->n_text, "refusal", "logprobs", logprobs, "finish_reason", c->finish_reason));
}

char *api_json_answer(const struct api_job *job)
{
    json_t *choices = json_array();
    for (uint32_t i = 0; i < job->n_choices; i++)
        json_array_append_new(choices, choice_json(&job->choices[i]));
    json_t *j = envelope(job, choices);
    json_object_set_new(j, "usage", usage_json(job));
    char *text = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(j);
    return text;
}

struct events {
    FILE *f;
    bool failed;
};

static void put(struct events *e, json_t *j)
{
    char *text = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(j);
    e->failed |= !text || fprintf(e->f, "data: %s\n\n", text) < 0;
    free(text);
}

static void put_choice(struct events *e, const struct api_job *job, json_t *choice)
{
    json_t *list = json_array();
    json_array_append_new(list, choice);
    json_t *j = envelope(job, list);
    if (job->params.include_usage)
        json_object_set_new(j, "usage", json_null());
    put(e, j);
}

static void put_chat(struct events *e, const struct api_choice *c, json_t *delta, json_t *logprobs, const char *finish)
{
    json_t *choice =
        json_pack("{s:i, s:o, s:o, s:s?}", "index", (int)c->index, "delta", delta, "logprobs", logprobs, "finish_reason", finish);
    put_choice(e, c->job, finish ? ended(c, choice) : choice);
}

static void put_news(struct events *e, struct api_choice *c)
{
    const char *text = c->text + c->sent;
    uint32_t to = tokens_until(c);
    size_t n = c->released - c->sent;
    bool chat = c->job->params.kind == API_CHAT, end = c->finished && !c->finish_sent;
    if (chat && !c->begun_sent)
        put_chat(e, c, json_pack("{s:s, s:s}", "role", "assistant", "content", ""), json_null(), NULL);
    c->begun_sent = true;
    if (n || to > c->tokens_sent) {
        json_t *logprobs = logprobs_json(c, c->tokens_sent, to);
        if (chat)
            put_chat(e, c, json_pack("{s:s%}", "content", text, n), logprobs, NULL);
        else
            put_choice(
                e, c->job,
                json_pack("{s:i, s:s%, s:o, s:n}", "index", (int)c->index, "text", text, n, "logprobs", logprobs, "finish_reason"));
        c->sent = c->released;
        c->tokens_sent = to;
    }
    if (end && chat)
        put_chat(e, c, json_object(), json_null(), c->finish_reason);
    else if (end)
        put_choice(e, c->job,
                   ended(c, json_pack("{s:i, s:s, s:n, s:s}", "index", (int)c->index, "text", "", "logprobs", "finish_reason",
                                      c->finish_reason)));
    c->finish_sent |= end;
}

char *api_json_events(struct api_job *job)
{
    char *text = NULL;
    size_t n = 0;
    struct events e = {.f = open_memstream(&text, &n)};
    if (!e.f)
        return NULL;
    bool all = true;
    for (uint32_t i = 0; i < job->n_choices && !job->failed.code; i++) {
        put_news(&e, &job->choices[i]);
        all = all && job->choices[i].finish_sent;
    }
    if (job->failed.code) {
        char *error = http_error_json(job->failed_status, NULL, job->failed_status == 504 ? "timeout" : NULL, job->failed.text);
        e.failed |= !error || fprintf(e.f, "data: %s\n\n", error) < 0;
        free(error);
    } else if (all && job->params.include_usage) {
        json_t *j = envelope(job, json_array());
        json_object_set_new(j, "usage", usage_json(job));
        put(&e, j);
    }
    if (all) {
        e.failed |= fputs("data: [DONE]\n\n", e.f) == EOF;
        job->done_sent = true;
    }
    e.failed |= fclose(e.f) == EOF;
    if (!e.failed)
        return text;
    free(text);
    return NULL;
}
