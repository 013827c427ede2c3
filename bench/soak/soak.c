/* SPDX-License-Identifier: MIT
 * bench_soak CONFIG SECONDS [SEED]: one pipeline, many requests of every kind at once, for a long time. Each request comes from a
 * small set, so that its answer is known from the first time it was given, and must be the same ever after, whatever runs beside
 * it. Some are cancelled while they wait or run, some are too long and must be refused with the others going on; now and then
 * nothing runs. Who watches the memory does so from outside, through the control socket (tests/e2e/soak.py). Thread: main. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/timerfd.h>

#include "coordinator/engine.h"
#include "coordinator/tokenizer.h"
#include "model/gguf.h"
#include "proto/config.h"
#include "proto/err.h"
#include "proto/process.h"
#include "proto/util.h"

#define KINDS 24
#define CLIENTS 8 /* requests at once; more than sequences, so that some wait */
#define BURST_NS UINT64_C(5000000000)
#define NEVER UINT32_MAX

struct kind {
    uint32_t *ids;
    uint32_t n_ids, max_tokens;
    float temperature;
    bool all_logits, ignore_end, known;
    uint64_t hash; /* of the whole answer */
};

struct soak;
struct client {
    struct soak *owner;
    struct kind *kind;
    struct request *request;
    uint32_t cancel_at; /* token at which it is cancelled; NEVER */
    uint64_t hash;
};

struct soak {
    struct engine *engine;
    struct tokenizer *tokenizer;
    struct kind kinds[KINDS];
    struct client clients[CLIENTS];
    uint64_t random, burst_end;
    uint64_t finished, cancelled, refused, tokens;
    struct err err; /* code != 0: something was wrong */
};

static uint32_t dice(struct soak *s, uint32_t n)
{
    s->random = s->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(s->random >> 33) % n;
}

static void mix(uint64_t *hash, const void *data, size_t n)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < n; i++)
        *hash = (*hash ^ p[i]) * UINT64_C(1099511628211);
}

static void begin(struct client *c, struct kind *kind);

static void on_token(void *ctx, uint32_t id, uint32_t index)
{
    struct client *c = ctx;
    mix(&c->hash, &id, sizeof(id));
    c->owner->tokens++;
    if (index == c->cancel_at)
        engine_cancel(c->owner->engine, c->request);
}

static void on_logits(void *ctx, uint32_t pos, const float *row, uint32_t vocab)
{
    struct client *c = ctx;
    mix(&c->hash, &pos, sizeof(pos));
    mix(&c->hash, row, MIN(vocab, 64u) * sizeof(*row));
}

static bool is_end(void *ctx, uint32_t id)
{
    const struct client *c = ctx;
    return tokenizer_is_end(c->owner->tokenizer, id);
}

static void on_finished(void *ctx, const struct request_result *r)
{
    struct client *c = ctx;
    struct soak *s = c->owner;
    struct kind *k = c->kind;
    c->request = NULL;
    if (r->finish == ENGINE_FINISH_ERROR) {
        if (!s->err.code)
            err_set(&s->err, -EIO, "a request failed: %s", r->err ? r->err->text : "?");
        return;
    }
    s->finished++;
    if (r->finish == ENGINE_FINISH_CANCELLED)
        s->cancelled++;
    else if (!k->known)
        k->hash = c->hash;
    else if (k->hash != c->hash && !s->err.code)
        err_set(&s->err, -EIO, "request %td of %u tokens: another answer than the first time", k - s->kinds, k->n_ids);
    k->known |= r->finish != ENGINE_FINISH_CANCELLED;
    if (util_now_ns() < s->burst_end)
        begin(c, NULL);
}

/* One that does not fit: refused with its figures, and nothing else changes. */
static void ask_too_much(struct soak *s)
{
    uint32_t n = engine_plan(s->engine)->context + 1 + dice(s, 1000);
    struct err err = {0};
    char figure[16];
    uint32_t *ids = calloc(n, sizeof(*ids));
    struct request_params p = {.ids = ids, .n_ids = n, .max_tokens = 1};
    sample_params_default(&p.sample);
    snprintf(figure, sizeof(figure), "%u", n);
    if (ids && (engine_submit(s->engine, &p, NULL, &err) != -E2BIG || !strstr(err.text, figure)) && !s->err.code)
        err_set(&s->err, -EIO, "a prompt of %u tokens was not refused as it should be: %s", n, err.text);
    free(ids);
    s->refused++;
}

/* kind NULL: any. */
static void begin(struct client *c, struct kind *kind)
{
    struct soak *s = c->owner;
    struct kind *k = c->kind = kind ? kind : &s->kinds[dice(s, KINDS)];
    struct request_params p = {.ids = k->ids,
                               .n_ids = k->n_ids,
                               .max_tokens = k->max_tokens,
                               .all_logits = k->all_logits,
                               .ignore_end = k->ignore_end,
                               .token = on_token,
                               .logits = on_logits,
                               .finished = on_finished,
                               .is_end = is_end,
                               .ctx = c};
    c->cancel_at = k->known && dice(s, 4) == 0 ? dice(s, k->max_tokens + 1) : NEVER;
    c->hash = UINT64_C(14695981039346656037);
    sample_params_default(&p.sample);
    p.sample.temperature = k->temperature;
    p.sample.seed = (uint64_t)(k - s->kinds);
    if (dice(s, 16) == 0)
        ask_too_much(s);
    if (engine_submit(s->engine, &p, &c->request, s->err.code ? NULL : &s->err) < 0)
        c->request = NULL;
}

/* Short and long prompts, short and long answers, chats, greedy and not, logits of every position. */
static int make_kinds(struct soak *s, struct err *err)
{
    static const char *const words[] = {"cat", "dog", "old house by the sea", "train that could sing", "garden", "storm"};
    uint32_t context = engine_plan(s->engine)->context, vocab = engine_plan(s->engine)->hparams.vocab;
    for (uint32_t i = 0; i < KINDS; i++) {
        struct kind *k = &s->kinds[i];
        char text[128];
        size_t n;
        *k = (struct kind){.max_tokens = 1 + dice(s, 40), .temperature = i % 2 ? 1.0f : 0.0f, .ignore_end = i % 3 == 0};
        if (i % 4 == 0) { /* a chat */
            snprintf(text, sizeof(text), "Tell me a story about a %s", words[i / 4 % ARRAY_LEN(words)]);
            struct tokenizer_message m[2] = {{"system", "You tell stories."}, {"user", text}};
            int r = tokenizer_chat(s->tokenizer, m + i / 4 % 2, 2 - i / 4 % 2, &k->ids, &n, err);
            if (r < 0)
                return r;
            k->n_ids = (uint32_t)n;
            continue;
        }
        k->n_ids = i % 4 == 1 ? 1 + dice(s, 20) : i % 4 == 2 ? context / 4 + dice(s, context / 2) : 20 + dice(s, 100);
        k->all_logits = i % 8 == 3;
        k->max_tokens = k->all_logits ? 0 : i % 8 == 7 ? MIN(300u, context - k->n_ids) : k->max_tokens;
        k->ids = malloc(k->n_ids * sizeof(*k->ids));
        if (!k->ids)
            return err_set(err, -ENOMEM, "soak: out of memory");
        for (uint32_t j = 0; j < k->n_ids; j++)
            k->ids[j] = j ? dice(s, vocab) : tokenizer_bos(s->tokenizer);
    }
    return 0;
}

static int pause_ms(struct soak *s, uint32_t ms, struct err *err)
{
    auto_fd fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    struct itimerspec t = {.it_value = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 + 1}};
    if (fd < 0 || timerfd_settime(fd, 0, &t, NULL) < 0)
        return err_set_errno(err, -errno, "timer");
    return engine_wait_readable(s->engine, fd, err);
}

/* A burst of requests, each of which is followed by another until the burst ends; then a pause. */
static int burst(struct soak *s, uint64_t end, struct err *err)
{
    uint32_t n = 1 + dice(s, CLIENTS);
    s->burst_end = MIN(end, util_now_ns() + BURST_NS / 2 + dice(s, (uint32_t)(BURST_NS / 2)));
    for (uint32_t i = 0; i < n; i++)
        begin(&s->clients[i], NULL);
    for (uint32_t i = 0; i < n; i++) { /* before the first chunk is sent: some still wait, and some have just begun */
        if (s->clients[i].request && s->clients[i].kind->known && dice(s, 8) == 0)
            engine_cancel(s->engine, s->clients[i].request);
    }
    int r = engine_run(s->engine, err);
    if (r == 0 && s->err.code)
        r = err_set(err, s->err.code, "%s", s->err.text);
    return r < 0 ? r : pause_ms(s, dice(s, 500), err);
}

/* The longest request in every slot at once: the KV cache is touched as far as it will ever be, so that what grows later is no part
 * of it. */
static int warm_up(struct soak *s, struct err *err)
{
    struct kind *longest = s->kinds;
    for (uint32_t i = 1; i < KINDS; i++) {
        if (s->kinds[i].n_ids + s->kinds[i].max_tokens > longest->n_ids + longest->max_tokens)
            longest = &s->kinds[i];
    }
    for (uint32_t i = 0; i < MIN((uint32_t)CLIENTS, engine_plan(s->engine)->sequences); i++)
        begin(&s->clients[i], longest);
    return engine_run(s->engine, err);
}

static int run(struct soak *s, uint64_t seconds, struct err *err)
{
    uint64_t end = util_now_ns() + seconds * UINT64_C(1000000000);
    int r = make_kinds(s, err);
    for (uint32_t i = 0; i < CLIENTS; i++)
        s->clients[i] = (struct client){.owner = s};
    if (r == 0)
        r = warm_up(s, err);
    while (r == 0 && util_now_ns() < end)
        r = burst(s, end, err);
    printf("{\"finished\":%" PRIu64 ",\"cancelled\":%" PRIu64 ",\"refused\":%" PRIu64 ",\"tokens\":%" PRIu64 "}\n", s->finished,
           s->cancelled, s->refused, s->tokens);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        if (s->clients[i].request)
            engine_cancel(s->engine, s->clients[i].request);
    }
    return r;
}

int main(int argc, char **argv)
{
    static struct soak s;
    struct err err = {0};
    struct config *config = NULL;
    struct gguf *gguf = NULL;
    char *end;
    uint64_t seconds = argc > 2 ? strtoull(argv[2], &end, 10) : 0;
    if (seconds == 0) {
        fprintf(stderr, "usage: bench_soak CONFIG SECONDS [SEED]\n");
        return 2;
    }
    s.random = argc > 3 ? strtoull(argv[3], &end, 10) : 1;
    int r = process_begin("soak", &err);
    if (r == 0)
        r = config_load(argv[1], NULL, 0, &config, &err);
    if (r == 0)
        r = gguf_open(config->model, false, &gguf, &err);
    if (r == 0)
        r = tokenizer_open(gguf, &s.tokenizer, &err);
    if (r == 0)
        r = engine_open(config, gguf, NULL, &s.engine, &err);
    if (r == 0)
        r = run(&s, seconds, &err);
    engine_close(s.engine);
    for (int i = 0; i < KINDS; i++)
        free(s.kinds[i].ids);
    tokenizer_close(s.tokenizer);
    gguf_close(gguf);
    config_free(config);
    if (r < 0)
        fprintf(stderr, "soak: error: %s\n", err.text);
    return r < 0;
}
