/* SPDX-License-Identifier: MIT
 * From one row of logits to a token. Called by schedule.c on the loop's thread; it keeps no state between tokens, allocates
 * only in sampler_open, and never fails: a row of nothing but NaN and -inf gives id 0.
 *
 * Steps, in the order of llama.cpp's default chain: repetition penalty on the logits, presence and frequency penalty, bias, mask;
 * the top_k highest; the shortest prefix of these whose probability (softmax of what is left, temperature 1) reaches top_p; those
 * at least min_p times as probable as the best; softmax at the temperature; one uniform number decides. Candidates are ordered by
 * logit, then by lower id, so the result is a function of its arguments alone. NaN counts as -inf, +inf as the largest finite
 * value.
 *
 * Random numbers: Philox 4x32-10 (J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11),
 * key = seed, counter = (index, choice, 0, 0); the first two words give a double in [0, 1) of 53 bits. */
#include "coordinator/sample.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/util.h"

#define SORT_ABOVE 2048 /* candidates: from about here on sorting all is faster than a heap */

struct candidate {
    float logit;
    uint32_t id;
};

_Static_assert(sizeof(struct candidate) == sizeof(double), "the weights' memory is the other half of sort_all");

struct sampler {
    uint32_t vocab;
    float *penalised;       /* [vocab] */
    struct candidate *heap; /* [vocab] */
    union {
        double *weight;          /* [vocab] */
        uint32_t *count;         /* [vocab]: while penalising */
        struct candidate *spare; /* [vocab]: while sorting */
    };
};

void sample_params_default(struct sample_params *p)
{
    *p = (struct sample_params){
        .temperature = 1.0f, .top_k = 64, .top_p = 0.95f, .min_p = 0.0f, .repeat_penalty = 1.0f, .repeat_last = 64};
}

static int bad_value(struct err *err, const char *name, float found, const char *expected)
{
    return err_set(err, -EINVAL, "sampling: '%s' is %g; expected %s", name, (double)found, expected);
}

int sample_params_check(const struct sample_params *p, struct err *err)
{
    if (!(p->temperature >= 0.0f && p->temperature <= 100.0f))
        return bad_value(err, "temperature", p->temperature, "a number from 0 (greedy) to 100");
    if (!(p->top_p > 0.0f && p->top_p <= 1.0f))
        return bad_value(err, "top_p", p->top_p, "a number above 0, up to 1 (all)");
    if (!(p->min_p >= 0.0f && p->min_p <= 1.0f))
        return bad_value(err, "min_p", p->min_p, "a number from 0 (all) to 1");
    if (!(p->repeat_penalty >= 0.01f && p->repeat_penalty <= 100.0f))
        return bad_value(err, "repeat_penalty", p->repeat_penalty, "a number from 0.01 to 100; 1 is none");
    if (!(p->presence_penalty >= -100.0f && p->presence_penalty <= 100.0f))
        return bad_value(err, "presence_penalty", p->presence_penalty, "a number from -100 to 100; 0 is none");
    if (!(p->frequency_penalty >= -100.0f && p->frequency_penalty <= 100.0f))
        return bad_value(err, "frequency_penalty", p->frequency_penalty, "a number from -100 to 100; 0 is none");
    return 0;
}

int sampler_open(uint32_t vocab, struct sampler **ret)
{
    struct sampler *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->vocab = vocab;
    s->penalised = calloc(vocab, sizeof(*s->penalised));
    s->heap = calloc(vocab, sizeof(*s->heap));
    s->weight = calloc(vocab, sizeof(*s->weight));
    if (!s->penalised || !s->heap || !s->weight) {
        sampler_close(s);
        return -ENOMEM;
    }
    *ret = s;
    return 0;
}

void sampler_close(struct sampler *s)
{
    if (!s)
        return;
    free(s->penalised);
    free(s->heap);
    free(s->weight);
    free(s);
}

static float clean(float x)
{
    return isnan(x) ? -INFINITY : MIN(x, FLT_MAX);
}

static uint32_t argmax(const float *logits, uint32_t vocab)
{
    uint32_t best = 0;
    float best_logit = clean(logits[0]);
    for (uint32_t i = 1; i < vocab; i++) {
        float x = clean(logits[i]);
        if (x > best_logit) {
            best_logit = x;
            best = i;
        }
    }
    return best;
}

/* Each id that occurs in the window is penalised once, however often it occurs. */
static void penalise_repeated(struct sampler *s, const struct sample_params *p, const float *logits, const uint32_t *history,
                              size_t n)
{
    for (size_t i = n - MIN(n, (size_t)p->repeat_last); i < n; i++) {
        if (history[i] >= s->vocab)
            continue;
        float x = logits[history[i]];
        s->penalised[history[i]] = x > 0.0f ? x / p->repeat_penalty : x * p->repeat_penalty;
    }
}

/* Subtractions in the order of the output, so that the sum is the same at every step and machine. */
static void penalise_output(struct sampler *s, const struct sample_params *p, const uint32_t *output, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (output[i] < s->vocab)
            s->count[output[i]] = 0;
    }
    for (size_t i = 0; i < n; i++) {
        if (output[i] >= s->vocab)
            continue;
        s->penalised[output[i]] -= p->frequency_penalty + (s->count[output[i]]++ ? 0.0f : p->presence_penalty);
    }
}

/* The logits to choose by: the row itself, or a changed copy. */
static const float *adjust(struct sampler *s, const struct sample_params *p, const float *logits, const uint32_t *history, size_t n,
                           size_t n_output)
{
    bool repeated = p->repeat_penalty != 1.0f && p->repeat_last && n;
    bool output = (p->presence_penalty != 0.0f || p->frequency_penalty != 0.0f) && MIN(n, n_output);
    if (!repeated && !output && !p->n_bias && !p->mask)
        return logits;
    memcpy(s->penalised, logits, s->vocab * sizeof(*logits));
    if (repeated)
        penalise_repeated(s, p, logits, history, n);
    if (output)
        penalise_output(s, p, history + n - MIN(n, n_output), MIN(n, n_output));
    for (uint32_t i = 0; i < p->n_bias; i++) {
        if (p->bias[i].id < s->vocab)
            s->penalised[p->bias[i].id] += p->bias[i].bias;
    }
    if (p->mask)
        p->mask(p->mask_ctx, s->penalised, s->vocab);
    return s->penalised;
}

/* True when a comes before b in the order of candidates. */
static bool before(struct candidate a, struct candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* Binary heap with the last candidate in order at the root. */
static void sift_down(struct candidate *h, uint32_t n, uint32_t i)
{
    struct candidate x = h[i];
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && before(h[child], h[child + 1]))
            child++;
        if (!before(x, h[child]))
            break;
        h[i] = h[child];
        i = child;
    }
    h[i] = x;
}

/* Grows as the logit falls; equal for equal logits. */
static uint32_t sort_key(float logit)
{
    union {
        float f;
        uint32_t u;
    } v = {.f = logit + 0.0f}; /* -0 becomes 0 */
    return v.u & 0x80000000u ? v.u : ~v.u & 0x7FFFFFFFu;
}

/* All candidates, in order, into s->heap: a stable radix sort from the lowest digit, so equal logits stay in the order of ids. */
static void sort_all(struct sampler *s, const float *logits)
{
    enum { BITS = 8, DIGITS = 1 << BITS, PASSES = 32 / BITS }; /* an even number of passes ends where it began */
    uint32_t start[PASSES][DIGITS] = {0};
    for (uint32_t i = 0; i < s->vocab; i++) {
        s->heap[i] = (struct candidate){clean(logits[i]), i};
        uint32_t key = sort_key(s->heap[i].logit);
        for (int pass = 0; pass < PASSES; pass++)
            start[pass][key >> (pass * BITS) & (DIGITS - 1)]++;
    }
    struct candidate *from = s->heap, *to = s->spare;
    for (int pass = 0; pass < PASSES; pass++) {
        uint32_t sum = 0;
        for (int d = 0; d < DIGITS; d++) {
            uint32_t n = start[pass][d];
            start[pass][d] = sum;
            sum += n;
        }
        for (uint32_t i = 0; i < s->vocab; i++)
            to[start[pass][sort_key(from[i].logit) >> (pass * BITS) & (DIGITS - 1)]++] = from[i];
        struct candidate *swap = from;
        from = to;
        to = swap;
    }
}

/* The k first candidates, in order, into s->heap. */
static uint32_t select_top(struct sampler *s, const float *logits, uint32_t k)
{
    struct candidate *h = s->heap;
    if (k > SORT_ABOVE) {
        sort_all(s, logits);
        return k;
    }
    for (uint32_t i = 0; i < k; i++)
        h[i] = (struct candidate){clean(logits[i]), i};
    for (uint32_t i = k / 2; i-- > 0;)
        sift_down(h, k, i);
    for (uint32_t i = k; i < s->vocab; i++) {
        struct candidate c = {clean(logits[i]), i};
        if (before(c, h[0])) {
            h[0] = c;
            sift_down(h, k, 0);
        }
    }
    for (uint32_t n = k; n > 1; n--) {
        struct candidate last = h[0];
        h[0] = h[n - 1];
        h[n - 1] = last;
        sift_down(h, n - 1, 0);
    }
    return k;
}

/* weight[i] = exp((logit - best) / temperature); returns the sum. */
static double weigh(struct sampler *s, uint32_t n, double temperature)
{
    double sum = 0.0, best = (double)s->heap[0].logit;
    for (uint32_t i = 0; i < n; i++) {
        s->weight[i] = i == 0 ? 1.0 : exp(((double)s->heap[i].logit - best) / temperature);
        sum += s->weight[i];
    }
    return sum;
}

static uint32_t keep_top_p(struct sampler *s, uint32_t n, double top_p)
{
    double goal = weigh(s, n, 1.0) * top_p, sum = 0.0;
    for (uint32_t i = 0; i < n; i++) {
        sum += s->weight[i];
        if (sum >= goal)
            return i + 1;
    }
    return n;
}

static uint32_t keep_min_p(const struct sampler *s, uint32_t n, double min_p)
{
    double floor_logit = (double)s->heap[0].logit + log(min_p);
    uint32_t kept = 1;
    while (kept < n && (double)s->heap[kept].logit >= floor_logit)
        kept++;
    return kept;
}

/* Uniform in [0, 1). */
static double philox_uniform(uint64_t seed, uint32_t choice, uint32_t index)
{
    uint32_t c[4] = {index, choice, 0, 0}, key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c[0], p1 = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t next[4] = {(uint32_t)(p1 >> 32) ^ c[1] ^ key[0], (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c[3] ^ key[1], (uint32_t)p0};
        memcpy(c, next, sizeof(c));
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    uint64_t bits = ((uint64_t)c[0] << 32 | c[1]) >> 11;
    return (double)bits * 0x1p-53;
}

uint32_t sampler_pick(struct sampler *s, const struct sample_params *p, const float *logits, const uint32_t *history,
                      size_t n_history, uint32_t choice, uint32_t index)
{
    logits = adjust(s, p, logits, history, n_history, index);
    if (p->temperature == 0.0f || p->top_k == 1)
        return argmax(logits, s->vocab);
    uint32_t n = select_top(s, logits, p->top_k ? MIN(p->top_k, s->vocab) : s->vocab);
    if (isinf(s->heap[0].logit))
        return s->heap[0].id;
    if (p->top_p < 1.0f)
        n = keep_top_p(s, n, (double)p->top_p);
    if (p->min_p > 0.0f)
        n = keep_min_p(s, n, (double)p->min_p);
    double target = philox_uniform(p->seed, choice, index) * weigh(s, n, (double)p->temperature), sum = 0.0;
    for (uint32_t i = 0; i < n; i++) {
        sum += s->weight[i];
        if (sum > target)
            return s->heap[i].id;
    }
    return s->heap[0].id;
}

double sampler_logprobs(struct sampler *s, const float *logits, uint32_t id, uint32_t n_top, struct sample_logprob *ret_top)
{
    double best = (double)clean(logits[0]), sum = 0.0;
    for (uint32_t i = 1; i < s->vocab; i++)
        best = MAX(best, (double)clean(logits[i]));
    for (uint32_t i = 0; i < s->vocab; i++)
        sum += exp((double)clean(logits[i]) - best);
    double all = log(sum) + best;
    n_top = n_top ? select_top(s, logits, MIN(n_top, s->vocab)) : 0;
    for (uint32_t i = 0; i < n_top; i++)
        ret_top[i] = (struct sample_logprob){s->heap[i].id, (float)((double)s->heap[i].logit - all)};
    return (double)clean(logits[id]) - all;
}

bool sample_finite(const float *logits, uint32_t vocab)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        uint32_t u;
        memcpy(&u, &logits[i], sizeof(u));
        most = MAX(most, u & 0x7FFFFFFFu);
    }
    return most < 0x7F800000u;
}

double sample_nll(const float *logits, uint32_t vocab, uint32_t target)
{
    double best = (double)logits[0], sum = 0.0;
    for (uint32_t i = 1; i < vocab; i++)
        best = MAX(best, (double)logits[i]);
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - best);
    return log(sum) + best - (double)logits[target];
}
