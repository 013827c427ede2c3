/* SPDX-License-Identifier: MIT
 * Bodies of API requests: the first byte chooses the endpoint, the rest is JSON. Either it is refused with a status, a code and a
 * sentence, or every parameter and prompt is within its bounds. */
#include <jansson.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "coordinator/api_impl.h"
#include "coordinator/grammar.h"
#include "coordinator/tokenizer.h"
#include "model/gguf.h"
#include "tests/coordinator/vocab_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct api api = {.model = "demo"};

static void open_api(void)
{
    struct tokenizer *t = NULL;
    struct gguf *g;
    char path[64];
    struct vocab v = vocab_of_model(TANDEM_SOURCE_DIR "/models/demo/tokenizer.model");
    int fd = memfd_create("fuzz_api", MFD_CLOEXEC);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    vocab_write(&v, path);
    vocab_free(&v);
    if (gguf_open(path, false, &g, NULL) < 0 || tokenizer_open(g, &t, NULL) < 0 ||
        engine_open(NULL, g, NULL, &api.engine, NULL) < 0)
        abort();
    gguf_close(g);
    close(fd);
    api.tokenizer = t;
}

static void check_refusal(const struct api_refusal *why)
{
    if (why->status < 400 || why->status > 599 || !why->code || !why->err.text[0])
        abort();
}

static void check_params(const struct api_params *p)
{
    if (p->n < 1 || p->n > API_MAX_N || p->max_tokens < 1 || p->top_logprobs > API_MAX_TOP || p->stop.n > STOP_MAX)
        abort();
    if (sample_params_check(&p->sample, NULL) < 0 || p->sample.n_bias > API_MAX_BIAS || p->sample.bias != p->bias)
        abort();
    for (uint32_t i = 0; i < p->sample.n_bias; i++) {
        if (p->bias[i].id >= tokenizer_vocab(api.tokenizer) || !(fabsf(p->bias[i].bias) <= 100.0f))
            abort();
    }
    for (uint32_t i = 0; i < p->stop.n; i++) {
        if (p->stop.words[i].n < 1 || p->stop.words[i].n > STOP_MAX_BYTES)
            abort();
    }
}

static void make_prompts(const struct api_params *p)
{
    struct api_refusal why = {0};
    struct api_prompt prompts[API_MAX_PROMPTS];
    uint32_t n = 0;
    if (api_prompts_make(&api, p, prompts, &n, &why) < 0) {
        check_refusal(&why);
        return;
    }
    if (n < 1 || n > API_MAX_PROMPTS)
        abort();
    for (uint32_t i = 0; i < n; i++) {
        if (p->kind != API_TOKENIZE && (prompts[i].n == 0 || prompts[i].n > engine_plan(api.engine)->context))
            abort();
        for (uint32_t k = 0; k < prompts[i].n; k++) {
            if (prompts[i].ids[k] >= tokenizer_vocab(api.tokenizer))
                abort();
        }
    }
    api_prompts_free(prompts, n);
}

/* A walk along what the grammar allows ends in something that jansson reads, or is long. */
static void try_grammar(const struct api_params *p, uint32_t seed)
{
    char text[4096];
    struct grammar_state *s;
    size_t n = 0;
    if (grammar_state_open(p->grammar, p->grammar_rule, &s) < 0)
        abort();
    while (n < sizeof(text) && !grammar_state_complete(s)) {
        unsigned tried = 0;
        for (; tried < 320; tried++) {
            struct grammar_state *next;
            seed = seed * 1664525u + 1013904223u;
            text[n] = (char)(tried < 64 ? "\"\"}]]}:,{[0eatrufalsn "[(seed >> 16) % 22] : (char)(tried - 64));
            if (grammar_state_open(p->grammar, p->grammar_rule, &next) < 0)
                abort();
            bool may = grammar_state_feed(next, text, n + 1);
            grammar_state_close(next);
            if (may)
                break;
        }
        if (tried == 320 && n < 60) /* later, a schema without an end may have met the limit of nesting */
            abort();
        if (tried == 320)
            break;
        if (!grammar_state_feed(s, text + n++, 1))
            abort();
        if (n > 200)
            break;
    }
    json_t *j = grammar_state_complete(s) ? json_loadb(text, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL) : json_null();
    if (!j)
        abort();
    json_decref(j);
    grammar_state_close(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct api_params p;
    struct api_refusal why = {0};
    if (!api.tokenizer)
        open_api();
    if (size < 1 || size > 65536)
        return 0;
    enum api_kind kind = (enum api_kind)(data[0] % 4);
    json_t *j = json_loadb((const char *)data + 1, size - 1, JSON_REJECT_DUPLICATES, NULL);
    if (j && json_is_object(j)) {
        if (api_params_read(&api, kind, j, &p, &why) < 0) {
            check_refusal(&why);
        } else {
            check_params(&p);
            if (kind != API_DETOKENIZE)
                make_prompts(&p);
            if (p.grammar)
                try_grammar(&p, data[0] / 4);
            api_params_free(&p);
        }
    }
    json_decref(j);
    return 0;
}
