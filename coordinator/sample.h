/* SPDX-License-Identifier: MIT
 * From one row of logits to a token. The random number is a function of (seed, choice, token index) alone (a counter-based
 * generator: Philox 4x32-10, Salmon et al. 2011), so a re-issued step draws the same token. Ties in greedy: the lowest id.
 * Order as in llama.cpp's default chain: penalties, bias, top-k, top-p, min-p, temperature. No allocation after init. */
#ifndef TANDEM_COORDINATOR_SAMPLE_H
#define TANDEM_COORDINATOR_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

struct sample_bias {
    uint32_t id;
    float bias; /* added to the logit */
};

struct sample_logprob {
    uint32_t id;
    float logprob;
};

struct sample_params {
    float temperature;    /* 0 = greedy */
    uint32_t top_k;       /* 0 = all */
    float top_p;          /* 1 = all */
    float min_p;          /* 0 = all */
    float repeat_penalty; /* 1 = none; over the last repeat_last tokens of prompt and output */
    uint32_t repeat_last;
    float presence_penalty;         /* 0 = none; taken from the logit of each id that the output has */
    float frequency_penalty;        /* 0 = none; taken once for each time that the output has it */
    const struct sample_bias *bias; /* [n_bias]; borrowed as long as the request lives */
    uint32_t n_bias;
    /* May be NULL: sets the logits of tokens that may not come to -INFINITY, last of all changes. Must leave one, and be a function
     * of the output so far. */
    void (*mask)(void *ctx, float *logits, uint32_t vocab);
    void *mask_ctx;
    uint64_t seed;
};
void sample_params_default(
    struct sample_params *p); /* greedy is temperature 0; the default is 1.0, top_k 64, top_p 0.95 (Gemma's generation_config) */
int sample_params_check(const struct sample_params *p, struct err *err);

struct sampler; /* scratch for one vocabulary size; one thread */
int sampler_open(uint32_t vocab, struct sampler **ret);
void sampler_close(struct sampler *s);
/* logits: [vocab], not changed. history: prompt + output ids so far. index: how many tokens were generated before; the last `index`
 * of the history are the output. */
uint32_t sampler_pick(struct sampler *s, const struct sample_params *p, const float *logits, const uint32_t *history,
                      size_t n_history, uint32_t choice, uint32_t index);
/* Log-probability of `id` under softmax(logits), before penalties, bias and temperature. ret_top: the n_top most probable ids
 * (n_top <= vocab), in order; may be NULL when n_top is 0. */
double sampler_logprobs(struct sampler *s, const float *logits, uint32_t id, uint32_t n_top, struct sample_logprob *ret_top);
/* No NaN, no infinity. */
bool sample_finite(const float *logits, uint32_t vocab);
/* -log softmax(logits)[target], in double. */
double sample_nll(const float *logits, uint32_t vocab, uint32_t target);

#endif
