/* SPDX-License-Identifier: MIT
 * response_format: answers that are JSON, or JSON of a schema. A grammar says after each token which may be next; the sampler sees
 * no others. The vocabulary is sorted once, at the first such request, so that tokens which begin alike are read together. Called
 * by api_params.c and api_job.c, and inside the sampler, on the loop's thread. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/api_impl.h"
#include "coordinator/grammar.h"
#include "coordinator/schema.h"
#include "coordinator/tokenizer.h"
#include "proto/util.h"

#define TOKEN_BYTES 256u
#define MAX_ENDS 8u

struct api_words {
    struct grammar_words words;
    struct grammar_matcher *matcher;
    char *bytes;
    uint32_t *offset, *ids; /* ids: of the words */
    uint8_t *same;
    uint32_t ends[MAX_ENDS], n_ends;
};

struct sorting { /* before the order is known */
    const char *bytes;
    const uint32_t *offset; /* by id */
};

static int compare(const void *x, const void *y, void *ctx)
{
    const struct sorting *s = ctx;
    uint32_t a = *(const uint32_t *)x, b = *(const uint32_t *)y;
    size_t n_a = s->offset[a + 1] - s->offset[a], n_b = s->offset[b + 1] - s->offset[b];
    int r = memcmp(s->bytes + s->offset[a], s->bytes + s->offset[b], MIN(n_a, n_b));
    if (r == 0)
        r = n_a < n_b ? -1 : n_a > n_b;
    return r ? r : a < b ? -1 : a > b;
}

static void words_free(struct api_words *w)
{
    if (!w)
        return;
    grammar_matcher_close(w->matcher);
    free(w->bytes);
    free(w->offset);
    free(w->ids);
    free(w->same);
    free(w);
}

/* The bytes of all tokens by id, and where each begins. */
static bool collect(const struct tokenizer *t, uint32_t vocab, char **ret_bytes, uint32_t *offset)
{
    size_t room = 8 * (size_t)vocab, n = 0;
    char *bytes = malloc(room + 1), token[TOKEN_BYTES];
    for (uint32_t id = 0; bytes && id < vocab; id++) {
        size_t length = tokenizer_is_end(t, id) ? 0 : tokenizer_bytes(t, id, token, sizeof(token));
        if (n + length > room) {
            char *p = realloc(bytes, room = 2 * (n + length));
            if (!p) {
                free(bytes);
                return false;
            }
            bytes = p;
        }
        offset[id] = (uint32_t)n;
        memcpy(bytes + n, token, length);
        n += length;
    }
    offset[vocab] = (uint32_t)n;
    *ret_bytes = bytes;
    return bytes != NULL;
}

static void arrange(struct api_words *w, uint32_t vocab, const char *bytes, const uint32_t *offset)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        uint32_t id = w->ids[i], length = offset[id + 1] - offset[id], same = 0;
        uint32_t before = i ? n - w->offset[i - 1] : 0;
        w->offset[i] = n;
        memcpy(w->bytes + n, bytes + offset[id], length);
        while (i && same < MIN(MIN(before, length), 255u) && w->bytes[w->offset[i - 1] + same] == w->bytes[n + same])
            same++;
        w->same[i] = (uint8_t)same;
        n += length;
    }
    w->offset[vocab] = n;
}

static struct api_words *words_make(const struct tokenizer *t)
{
    uint32_t vocab = tokenizer_vocab(t);
    struct api_words *w = calloc(1, sizeof(*w));
    auto_free uint32_t *offset = malloc((vocab + 1) * sizeof(*offset));
    auto_free char *bytes = NULL;
    if (!w || !offset || !collect(t, vocab, &bytes, offset)) {
        words_free(w);
        return NULL;
    }
    w->bytes = malloc(offset[vocab] + 1);
    w->offset = malloc((vocab + 1) * sizeof(*w->offset));
    w->ids = malloc(vocab * sizeof(*w->ids));
    w->same = malloc(vocab);
    if (!w->bytes || !w->offset || !w->ids || !w->same || grammar_matcher_open(&w->matcher) < 0) {
        words_free(w);
        return NULL;
    }
    for (uint32_t id = 0; id < vocab; id++) {
        w->ids[id] = id;
        if (w->n_ends < MAX_ENDS && tokenizer_is_end(t, id))
            w->ends[w->n_ends++] = id;
    }
    struct sorting s = {bytes, offset};
    qsort_r(w->ids, vocab, sizeof(*w->ids), compare, &s);
    arrange(w, vocab, bytes, offset);
    w->words = (struct grammar_words){.n = vocab, .bytes = w->bytes, .offset = w->offset, .same = w->same};
    return w;
}

void api_format_free(struct api *a)
{
    words_free(a->words);
    a->words = NULL;
}

static int bad(struct api_refusal *why, const char *what)
{
    return api_refuse(why, 400, "response_format", "invalid_value", "parameter 'response_format': %s", what);
}

/* What is not known is refused, as a client that sends it relies on it. known: ends with NULL. */
static int check_members(json_t *object, const char *where, const char *const *known, struct api_refusal *why)
{
    const char *name;
    json_t *v;
    json_object_foreach(object, name, v)
    {
        size_t i = 0;
        while (known[i] && strcmp(known[i], name) != 0)
            i++;
        if (!known[i])
            return api_refuse(why, 400, "response_format", "unsupported_parameter",
                              "parameter 'response_format': '%s%.60s' is not supported; leave it out", where, name);
    }
    return 0;
}

int api_format_read(const struct api *a, json_t *format, struct api_params *p, struct api_refusal *why)
{
    const char *type = json_string_value(json_object_get(format, "type"));
    static const char *const plain[] = {"type", NULL}, *const with_schema[] = {"type", "json_schema", NULL},
                             *const of_schema[] = {"name", "description", "schema", "strict", NULL};
    json_t *wrapper = json_object_get(format, "json_schema");
    const json_t *schema = json_object_get(wrapper, "schema");
    struct err err = {0};
    (void)a;
    if (type && strcmp(type, "text") == 0)
        return check_members(format, "", plain, why);
    bool object = type && strcmp(type, "json_object") == 0;
    if (!object && (!type || strcmp(type, "json_schema") != 0))
        return bad(why, "expected the type text, json_object or json_schema");
    if (!object && !json_is_object(schema))
        return bad(why, "expected {\"type\": \"json_schema\", \"json_schema\": {\"name\": ..., \"schema\": {...}}}");
    int r = check_members(format, "", object ? plain : with_schema, why);
    if (r == 0 && !object)
        r = check_members(wrapper, "json_schema.", of_schema, why);
    if (r < 0)
        return r;
    r = schema_compile(object ? NULL : schema, &p->grammar, &p->grammar_rule, &err);
    if (r == -ENOMEM)
        return api_refuse(why, 500, NULL, "out_of_memory", "%s", err.text);
    return r < 0 ? bad(why, err.text) : 0;
}

static bool state_of(struct api_choice *c)
{
    struct api *a = c->job->api;
    if (!a->words)
        a->words = words_make(a->tokenizer);
    if (a->words && !c->state)
        grammar_state_open(c->job->params.grammar, c->job->params.grammar_rule, &c->state);
    return a->words && c->state;
}

struct masking {
    const struct api_words *words;
    float *logits;
};

static void refuse(void *ctx, uint32_t i)
{
    const struct masking *m = ctx;
    m->logits[m->words->ids[i]] = -INFINITY;
}

void api_format_mask(void *choice, float *logits, uint32_t vocab)
{
    struct api_choice *c = choice;
    float ends[MAX_ENDS];
    if (!state_of(c))
        return; /* api_format_take will tell */
    const struct api_words *w = c->job->api->words;
    for (uint32_t i = 0; i < w->n_ends; i++)
        ends[i] = logits[w->ends[i]];
    for (uint32_t id = w->words.n; id < vocab; id++)
        logits[id] = -INFINITY;
    struct masking m = {w, logits};
    grammar_state_match(c->state, w->matcher, &w->words, refuse, &m);
    for (uint32_t i = 0; i < w->n_ends && grammar_state_complete(c->state); i++)
        logits[w->ends[i]] = ends[i];
}

int api_format_take(struct api_choice *c, uint32_t id, struct err *err)
{
    char bytes[TOKEN_BYTES];
    if (!c->state)
        return err_set(err, -ENOMEM, "out of memory");
    size_t n = tokenizer_bytes(c->job->api->tokenizer, id, bytes, sizeof(bytes));
    if (n == 0 || !grammar_state_feed(c->state, bytes, n))
        return err_set(err, -ERANGE, "the answer cannot go on within its format, which has no end within 96 levels");
    return 0;
}
