/* SPDX-License-Identifier: MIT
 * The members of a request's JSON object: one table says for each name what it may hold, for which endpoints, and where it goes. A
 * name that is not in it is refused, because an answer that silently lacks what was asked for is worse. `null` counts as left out.
 * Called by api_job.c and api_tokens.c; it keeps nothing. */
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <string.h>
#include <sys/random.h>

#include "coordinator/api_impl.h"
#include "coordinator/grammar.h"
#include "coordinator/tokenizer.h"
#include "proto/util.h"

#define BIT(k) (1u << (k))
#define RUNS (BIT(API_CHAT) | BIT(API_COMPLETION))
#define ALL (RUNS | BIT(API_TOKENIZE) | BIT(API_DETOKENIZE))

struct member;
typedef int read_fn(const struct api *a, const struct member *m, json_t *v, struct api_params *p, struct api_refusal *why);

enum type { TYPE_F32, TYPE_U32, TYPE_BOOL, TYPE_OTHER };

struct member {
    const char *name;
    unsigned kinds;
    enum type type;
    double min, max;
    size_t offset;
    read_fn *read; /* of TYPE_OTHER */
};

static int refuse_value(struct api_refusal *why, const char *name, const char *expected)
{
    return api_refuse(why, 400, name, "invalid_value", "parameter '%s': expected %s", name, expected);
}

static int read_model(const struct api *a, const struct member *m, json_t *v, struct api_params *p, struct api_refusal *why)
{
    (void)p;
    if (!json_is_string(v))
        return refuse_value(why, m->name, "the name of a model");
    if (strcmp(json_string_value(v), a->model) != 0)
        return api_refuse(why, 404, m->name, "model_not_found", "there is no model '%.80s'; expected '%s'", json_string_value(v),
                          a->model);
    return 0;
}

static int read_prompt(const struct api *a, const struct member *m, json_t *v, struct api_params *p, struct api_refusal *why)
{
    (void)a;
    if (p->prompt)
        return api_refuse(why, 400, m->name, "invalid_value", "both 'messages' and 'prompt' are given; expected one of them");
    p->prompt = v;
    p->has_messages = strcmp(m->name, "messages") == 0;
    return 0;
}

static int read_max_completion(const struct api *a, const struct member *m, json_t *v, struct api_params *p,
                               struct api_refusal *why)
{
    (void)a;
    uint32_t n = (uint32_t)MIN(json_integer_value(v), (json_int_t)UINT32_MAX); /* more than any context has room for */
    if (!json_is_integer(v) || json_integer_value(v) < 1)
        return refuse_value(why, m->name, "a whole number of at least 1");
    if (p->max_tokens && p->max_tokens != n)
        return api_refuse(why, 400, m->name, "invalid_value",
                          "'max_tokens' and 'max_completion_tokens' differ; expected one of them");
    p->max_tokens = n;
    return 0;
}

static int read_top_k(const struct api *a, const struct member *m, json_t *v, struct api_params *p, struct api_refusal *why)
{
    (void)a;
    json_int_t k = json_integer_value(v);
    if (!json_is_integer(v) || k < -1 || k > INT32_MAX)
        return refuse_value(why, m->name, "a whole number of at least 1; 0 or -1 is all");
    p->sample.top_k = k < 0 ? 0 : (uint32_t)k;
    return 0;
}

static int read_top_p(const struct api *a, const struct member *m, json_t *v, struct api_params *p, struct api_refusal *why)
{
    (void)a;
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= 0.0 && x <= 1.0))
        return refuse_value(why, m->name, "a number from 0 to 1");
    p->sample.top_p = x > 0.0 ? MAX((float)x, FLT_MIN) : FLT_MIN; /* the most probable one is always left */
    return 0;
}

static int read_seed(const struct api *a, const struct member *m, json_t *v, struct api_params *p, struct api_refusal *why)
{
    (void)a;
    if (!json_is_integer(v))
        return refuse_value(why, m->name, "a whole number");
    p->sample.seed = (uint64_t)json_integer_value(v);
    p->has_seed = true;
    return 0;
}

/* {"TOKEN ID": BIAS, ...} */
static int read_bias(const struct api *a, const struct member *m, json_t *v, struct api_params *p, struct api_refusal *why)
{
    const char *key;
    json_t *value;
    uint32_t vocab = tokenizer_vocab(a->tokenizer);
    if (!json_is_object(v) || json_object_size(v) > API_MAX_BIAS)
        return refuse_value(why, m->name, "an object of at most 1024 token ids and their bias from -100 to 100");
    json_object_foreach(v, key, value)
    {
        char *end;
        unsigned long id = *key >= '0' && *key <= '9' ? strtoul(key, &end, 10) : ULONG_MAX;
        double x = json_number_value(value);
        if (id >= vocab || *end || !json_is_number(value) || !(x >= -100.0 && x <= 100.0))
            return api_refuse(why, 400, m->name, "invalid_value",
                              "parameter '%s': member '%.20s': expected a token id below %u and its bias from -100 to 100", m->name,
                              key, vocab);
        p->bias[p->sample.n_bias++] = (struct sample_bias){(uint32_t)id, (float)x};
    }
    return 0;
}

static int read_stop(const struct api *a, const struct member *m, json_t *v, struct api_params *p, struct api_refusal *why)
{
    (void)a;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > STOP_MAX)
        return api_refuse(why, 400, m->name, "invalid_value", "parameter 'stop': found %zu strings; expected at most %u", n,
                          STOP_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *s = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_string(s) || json_string_length(s) == 0 || json_string_length(s) > STOP_MAX_BYTES)
            return api_refuse(why, 400, m->name, "invalid_value",
                              "parameter 'stop': expected a string or a list of strings, each of 1 to %u bytes", STOP_MAX_BYTES);
        p->stop.words[i].text = json_string_value(s);
        p->stop.words[i].n = json_string_length(s);
        p->stop.n++;
    }
    return 0;
}

static int read_stream_options(const struct api *a, const struct member *m, json_t *v, struct api_params *p,
                               struct api_refusal *why)
{
    (void)a;
    const char *key;
    json_t *value;
    if (!json_is_object(v))
        return refuse_value(why, m->name, "an object");
    json_object_foreach(v, key, value)
    {
        if (strcmp(key, "include_usage") != 0)
            return api_refuse(why, 400, m->name, "unsupported_parameter", "parameter 'stream_options.%.40s' is not supported", key);
        if (!json_is_boolean(value))
            return refuse_value(why, m->name, "true or false as 'include_usage'");
        p->include_usage = json_is_true(value);
    }
    return 0;
}

static int read_logprobs(const struct api *a, const struct member *m, json_t *v, struct api_params *p, struct api_refusal *why)
{
    (void)a;
    if (p->kind == API_CHAT) {
        if (!json_is_boolean(v))
            return refuse_value(why, m->name, "true or false");
        p->logprobs = json_is_true(v);
        return 0;
    }
    json_int_t n = json_integer_value(v);
    if (!json_is_integer(v) || n < 0 || n > API_MAX_TOP)
        return refuse_value(why, m->name, "a whole number from 0 to 20");
    p->logprobs = true;
    p->top_logprobs = (uint32_t)n;
    return 0;
}

static int read_special(const struct api *a, const struct member *m, json_t *v, struct api_params *p, struct api_refusal *why)
{
    (void)a;
    if (!json_is_boolean(v))
        return refuse_value(why, m->name, "true or false");
    p->no_special = json_is_false(v);
    return 0;
}

static int read_format(const struct api *a, const struct member *m, json_t *v, struct api_params *p, struct api_refusal *why)
{
    (void)m;
    return api_format_read(a, v, p, why);
}

static int read_user(const struct api *a, const struct member *m, json_t *v, struct api_params *p, struct api_refusal *why)
{
    (void)a, (void)p;
    return json_is_string(v) ? 0 : refuse_value(why, m->name, "a string");
}

#define AT(member) offsetof(struct api_params, member)
static const struct member members[] = {
    {"model", ALL, TYPE_OTHER, 0, 0, 0, read_model},
    {"messages", BIT(API_CHAT) | BIT(API_TOKENIZE), TYPE_OTHER, 0, 0, 0, read_prompt},
    {"prompt", BIT(API_COMPLETION) | BIT(API_TOKENIZE), TYPE_OTHER, 0, 0, 0, read_prompt},
    {"tokens", BIT(API_DETOKENIZE), TYPE_OTHER, 0, 0, 0, read_prompt},
    {"add_special_tokens", BIT(API_TOKENIZE), TYPE_OTHER, 0, 0, 0, read_special},
    {"max_tokens", RUNS, TYPE_OTHER, 0, 0, 0, read_max_completion},
    {"max_completion_tokens", BIT(API_CHAT), TYPE_OTHER, 0, 0, 0, read_max_completion},
    {"temperature", RUNS, TYPE_F32, 0, 2, AT(sample.temperature), NULL},
    {"top_p", RUNS, TYPE_OTHER, 0, 0, 0, read_top_p},
    {"top_k", RUNS, TYPE_OTHER, 0, 0, 0, read_top_k},
    {"min_p", RUNS, TYPE_F32, 0, 1, AT(sample.min_p), NULL},
    {"repetition_penalty", RUNS, TYPE_F32, 0.01, 100, AT(sample.repeat_penalty), NULL},
    {"presence_penalty", RUNS, TYPE_F32, -2, 2, AT(sample.presence_penalty), NULL},
    {"frequency_penalty", RUNS, TYPE_F32, -2, 2, AT(sample.frequency_penalty), NULL},
    {"logit_bias", RUNS, TYPE_OTHER, 0, 0, 0, read_bias},
    {"seed", RUNS, TYPE_OTHER, 0, 0, 0, read_seed},
    {"stop", RUNS, TYPE_OTHER, 0, 0, 0, read_stop},
    {"n", RUNS, TYPE_U32, 1, API_MAX_N, AT(n), NULL},
    {"stream", RUNS, TYPE_BOOL, 0, 0, AT(stream), NULL},
    {"stream_options", RUNS, TYPE_OTHER, 0, 0, 0, read_stream_options},
    {"logprobs", RUNS, TYPE_OTHER, 0, 0, 0, read_logprobs},
    {"top_logprobs", BIT(API_CHAT), TYPE_U32, 0, API_MAX_TOP, AT(top_logprobs), NULL},
    {"response_format", RUNS, TYPE_OTHER, 0, 0, 0, read_format},
    {"user", RUNS, TYPE_OTHER, 0, 0, 0, read_user},
};

/* Known, and accepted only where it asks for nothing. The value is JSON; NULL: any true or false. */
static const struct {
    const char *name, *neutral[2];
} neutral[] = {
    {"best_of", {"1", "1"}},
    {"echo", {"false", "false"}},
    {"function_call", {"\"none\"", "\"auto\""}},
    {"functions", {"[]", "[]"}},
    {"metadata", {"{}", "{}"}},
    {"modalities", {"[\"text\"]", "[\"text\"]"}},
    {"parallel_tool_calls", {"true", "false"}},
    {"service_tier", {"\"auto\"", "\"default\""}},
    {"store", {"false", "false"}},
    {"suffix", {"\"\"", "\"\""}},
    {"tool_choice", {"\"none\"", "\"auto\""}},
    {"tools", {"[]", "[]"}},
};

static bool equals(const json_t *v, const char *text)
{
    json_t *want = json_loads(text, JSON_DECODE_ANY, NULL);
    bool same = want && json_equal(want, v);
    json_decref(want);
    return same;
}

static int refuse_unknown(enum api_kind kind, const char *name, const json_t *v, struct api_refusal *why)
{
    const char *best = NULL;
    unsigned best_distance = 3;
    for (size_t i = 0; i < ARRAY_LEN(neutral); i++) {
        if (strcmp(neutral[i].name, name) != 0)
            continue;
        if (BIT(kind) & RUNS && (equals(v, neutral[i].neutral[0]) || equals(v, neutral[i].neutral[1])))
            return 0;
        return api_refuse(why, 400, name, "unsupported_parameter", "parameter '%s' is not supported; leave it out", name);
    }
    for (size_t i = 0; i < ARRAY_LEN(members); i++) {
        unsigned d = util_distance(name, members[i].name);
        if ((members[i].kinds & BIT(kind)) && d < best_distance) {
            best = members[i].name;
            best_distance = d;
        }
    }
    return api_refuse(why, 400, name, "unsupported_parameter", "parameter '%.60s' is not supported%s%s%s", name,
                      best ? "; did you mean '" : "; leave it out", best ? best : "", best ? "'?" : "");
}

static int read_plain(const struct member *m, const json_t *v, struct api_params *p, struct api_refusal *why)
{
    void *to = (char *)p + m->offset;
    double x = json_number_value(v);
    bool type = m->type == TYPE_BOOL ? json_is_boolean(v) : m->type == TYPE_U32 ? json_is_integer(v) : json_is_number(v);
    if (m->type == TYPE_BOOL && !type)
        return refuse_value(why, m->name, "true or false");
    if (m->type == TYPE_BOOL) {
        *(bool *)to = json_is_true(v);
        return 0;
    }
    if (!type || !(x >= m->min && x <= m->max))
        return api_refuse(why, 400, m->name, "invalid_value", "parameter '%s': expected a %snumber from %.10g to %.10g", m->name,
                          m->type == TYPE_U32 ? "whole " : "", m->min, m->max);
    if (m->type == TYPE_F32)
        *(float *)to = (float)x;
    else
        *(uint32_t *)to = (uint32_t)x;
    return 0;
}

static int read_member(const struct api *a, const char *name, json_t *v, struct api_params *p, struct api_refusal *why)
{
    for (size_t i = 0; i < ARRAY_LEN(members); i++) {
        const struct member *m = &members[i];
        if (!(m->kinds & BIT(p->kind)) || strcmp(m->name, name) != 0)
            continue;
        if (json_is_null(v))
            return 0;
        return m->type == TYPE_OTHER ? m->read(a, m, v, p, why) : read_plain(m, v, p, why);
    }
    return json_is_null(v) ? 0 : refuse_unknown(p->kind, name, v, why);
}

static int check(const struct api_params *p, struct api_refusal *why)
{
    static const char *const needed[] = {"messages", "prompt", "prompt' or 'messages", "tokens"};
    if (!p->prompt)
        return api_refuse(why, 400, p->kind == API_TOKENIZE ? "prompt" : needed[p->kind], "missing_parameter",
                          "parameter '%s' is missing", needed[p->kind]);
    if (p->kind == API_CHAT && p->top_logprobs && !p->logprobs)
        return api_refuse(why, 400, "top_logprobs", "invalid_value", "parameter 'top_logprobs' needs 'logprobs': true");
    if (p->include_usage && !p->stream)
        return api_refuse(why, 400, "stream_options", "invalid_value", "parameter 'stream_options' needs 'stream': true");
    struct err err = {0};
    if (sample_params_check(&p->sample, &err) < 0)
        return api_refuse(why, 400, NULL, "invalid_value", "%s", err.text);
    return 0;
}

void api_params_free(struct api_params *p)
{
    grammar_close(p->grammar);
    p->grammar = NULL;
}

static int read_all(const struct api *a, enum api_kind kind, json_t *j, struct api_params *ret, struct api_refusal *why)
{
    const char *name;
    json_t *v;
    *ret = (struct api_params){.kind = kind, .n = 1};
    sample_params_default(&ret->sample);
    ret->sample.repeat_last = UINT32_MAX;
    json_object_foreach(j, name, v)
    {
        int r = read_member(a, name, v, ret, why);
        if (r < 0)
            return r;
    }
    if (!ret->max_tokens) /* as OpenAI's have it */
        ret->max_tokens = kind == API_CHAT ? UINT32_MAX : 16;
    if (!ret->has_seed && getrandom(&ret->sample.seed, sizeof(ret->sample.seed), 0) != (ssize_t)sizeof(ret->sample.seed))
        ret->sample.seed = util_now_ns();
    ret->sample.bias = ret->bias;
    return check(ret, why);
}

int api_params_read(const struct api *a, enum api_kind kind, json_t *j, struct api_params *ret, struct api_refusal *why)
{
    int r = read_all(a, kind, j, ret, why);
    if (r < 0)
        api_params_free(ret);
    return r;
}
