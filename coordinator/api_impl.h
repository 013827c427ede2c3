/* SPDX-License-Identifier: MIT
 * What the files of the API share: api.c (routes), api_params.c, api_format.c and api_prompt.c (JSON to request), api_job.c (its
 * answers as they grow), api_json.c (answers to JSON), api_stats.c, api_tokens.c. */
#ifndef TANDEM_COORDINATOR_API_IMPL_H
#define TANDEM_COORDINATOR_API_IMPL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/api.h"
#include "coordinator/engine.h"
#include "coordinator/http.h"
#include "coordinator/metrics.h"
#include "coordinator/stop.h"
#include "proto/err.h"

#define API_MAX_TOP 20u
#define API_MAX_N 64u
#define API_MAX_PROMPTS 64u
#define API_MAX_CHOICES 128u
#define API_MAX_BIAS 1024u

struct api_asking;
struct api_choice;
struct api_job;

struct api {
    const struct config *config;
    struct engine *engine;
    const struct tokenizer *tokenizer;
    struct http *http;
    char model[128];
    int64_t created;    /* time of the model's file */
    uint32_t n_running; /* choices that the engine has, waiting ones too */
    struct api_job *jobs;
    struct api_words *words; /* NULL: no answer was bound to a format yet */
    struct metrics metrics;
    struct api_asking *asking; /* for statistics */
};

/* ---- api_params.c: every member of a request is read, or refused by name */
enum api_kind { API_CHAT, API_COMPLETION, API_TOKENIZE, API_DETOKENIZE };

struct api_refusal { /* filled by whoever refuses */
    unsigned status;
    char param[64]; /* "" = none */
    const char *code;
    struct err err;
};
int api_refuse(struct api_refusal *r, unsigned status, const char *param, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

struct api_params {
    enum api_kind kind;
    json_t *prompt; /* borrowed: messages, prompt, or tokens */
    bool has_messages;
    struct sample_params sample;
    struct sample_bias bias[API_MAX_BIAS];
    struct stop stop; /* texts borrowed from the JSON, which lives as long */
    uint32_t n, max_tokens;
    bool stream, include_usage, logprobs, no_special, has_seed;
    uint32_t top_logprobs;
    struct grammar *grammar; /* owned; NULL: any text */
    uint32_t grammar_rule;
};
void api_params_free(struct api_params *p); /* what it owns */
/* j: an object, borrowed as long as ret. */
int api_params_read(const struct api *a, enum api_kind kind, json_t *j, struct api_params *ret, struct api_refusal *why);

/* ---- api_format.c: answers that fit a grammar */
int api_format_read(const struct api *a, json_t *format, struct api_params *p, struct api_refusal *why); /* response_format */
void api_format_mask(void *choice, float *logits, uint32_t vocab);                                       /* of sample_params */
int api_format_take(struct api_choice *c, uint32_t id, struct err *err); /* every token of the answer */
void api_format_free(struct api *a);

/* ---- api_prompt.c */
struct api_prompt {
    uint32_t *ids; /* owned */
    uint32_t n;
};
/* One for messages, one or several for completions. ret: [API_MAX_PROMPTS]; freed by api_prompts_free. */
int api_prompts_make(const struct api *a, const struct api_params *p, struct api_prompt *ret, uint32_t *ret_n,
                     struct api_refusal *why);
void api_prompts_free(struct api_prompt *p, uint32_t n);
/* A list of ids. */
int api_ids_read(const struct api *a, const char *param, const json_t *list, struct api_prompt *ret, struct api_refusal *why);

/* ---- api_job.c */
struct api_token { /* of an answer with log-probabilities */
    uint32_t id;
    float logprob;
    size_t begin, end; /* of its text in the answer */
};

struct api_choice {
    struct api_job *job;
    uint32_t index, prompt;
    struct request *request; /* NULL: not running */
    struct detokenizer *detokenizer;
    struct grammar_state *state; /* of the answer, from its first token to its last; NULL without a format */
    char *text;
    size_t n_text, text_room;
    size_t released; /* bytes that no stop string can take back */
    size_t sent;
    struct api_token *tokens;
    struct sample_logprob *top; /* [tokens][top_logprobs] */
    uint32_t n_tokens, tokens_room, tokens_sent;
    uint32_t n_output;           /* generated, shown or not */
    bool stopped;                /* by a stop string */
    bool numerics_changed;       /* a stage went on with another backend meanwhile */
    uint32_t n_cached;           /* of the prompt */
    uint64_t asked_ns, token_ns; /* the request, its last token */
    bool finished, begun_sent, finish_sent;
    const char *finish_reason;
};

struct api_job {
    struct api_job *next, *prev;
    struct api *api;
    struct http_exchange *x;
    json_t *json; /* the request: owns what params borrow */
    struct api_params params;
    char id[48];
    int64_t created;
    uint32_t n_prompt_tokens;
    uint32_t n_choices, n_unfinished;
    struct api_choice *choices;
    struct err failed; /* code != 0 */
    unsigned failed_status;
    bool submitting, replied, usage_sent, done_sent;
    char *out; /* of a stream: events that are being written */
    size_t n_out, out_at;
};

/* Takes j. Answers x in every case. */
void api_job_start(struct api *a, struct http_exchange *x, enum api_kind kind, json_t *j);
/* All of them end with this error. */
void api_jobs_fail(struct api *a, unsigned status, const struct err *why);

/* ---- api_json.c: malloc'ed texts; NULL: out of memory */
char *api_json_answer(const struct api_job *job);
/* The next events of a stream, "" when there is nothing new; marks what it took as sent. */
char *api_json_events(struct api_job *job);

/* ---- api_tokens.c */
void api_tokenize(struct api *a, struct http_exchange *x, json_t *j);
void api_detokenize(struct api *a, struct http_exchange *x, json_t *j);
/* ---- api_stats.c */
void api_stats(struct api *a, struct http_exchange *x);
void api_metrics(struct api *a, struct http_exchange *x);
void api_stats_close(struct api *a);

/* ---- api.c */
void api_answer_json(struct http_exchange *x, unsigned status, json_t *j); /* takes j; NULL: out of memory */
void api_answer_refusal(struct http_exchange *x, const struct api_refusal *why);

#endif
