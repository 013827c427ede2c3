/* SPDX-License-Identifier: MIT
 * The sampler: greedy ties, which tokens each filter leaves, probabilities against exact ones, reproducibility per (seed,
 * choice, index), penalties, and rows with NaN and infinities. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "coordinator/sample.h"
#include "proto/err.h"

#define VOCAB 64u
#define DRAWS 200000u

static const struct sample_params plain = {.temperature = 1.0f, .top_p = 1.0f, .repeat_penalty = 1.0f, .seed = 11};

static void make_row(float *row)
{
    for (uint32_t i = 0; i < VOCAB; i++)
        row[i] = 3.0f * sinf((float)i * 1.7f) + 0.01f * (float)i;
}

static void draw(const struct sample_params *p, const float *row, unsigned *counts)
{
    struct sampler *s;
    assert_int_equal(sampler_open(VOCAB, &s), 0);
    memset(counts, 0, VOCAB * sizeof(*counts));
    for (uint32_t i = 0; i < DRAWS; i++) {
        uint32_t id = sampler_pick(s, p, row, NULL, 0, 0, i);
        assert_true(id < VOCAB);
        counts[id]++;
    }
    sampler_close(s);
}

/* The filters once more, slowly: by repeated search for the highest. Probabilities into prob. */
static unsigned exact(const struct sample_params *p, const float *row, double *prob)
{
    uint32_t order[VOCAB], n = VOCAB;
    bool taken[VOCAB] = {false};
    for (uint32_t k = 0; k < VOCAB; k++) {
        uint32_t best = VOCAB;
        for (uint32_t i = 0; i < VOCAB; i++) {
            if (!taken[i] && (best == VOCAB || row[i] > row[best]))
                best = i;
        }
        taken[best] = true;
        order[k] = best;
    }
    if (p->top_k && p->top_k < n)
        n = p->top_k;
    double sum = 0.0, part = 0.0;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)row[order[i]]);
    uint32_t kept = 0;
    while (p->top_p < 1.0f && kept < n && part < (double)p->top_p * sum)
        part += exp((double)row[order[kept++]]);
    n = p->top_p < 1.0f ? kept : n;
    for (kept = 1; kept < n && exp((double)row[order[kept]] - (double)row[order[0]]) >= (double)p->min_p; kept++)
        ;
    n = kept;
    sum = 0.0;
    for (uint32_t i = 0; i < VOCAB; i++)
        prob[i] = 0.0;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)row[order[i]] / (double)p->temperature);
    for (uint32_t i = 0; i < n; i++)
        prob[order[i]] = exp((double)row[order[i]] / (double)p->temperature) / sum;
    return n;
}

static void test_distribution(void **state)
{
    (void)state;
    static const struct {
        float temperature, top_p, min_p;
        uint32_t top_k, kept; /* 0: any number */
    } cases[] = {{1.0f, 1.0f, 0.0f, 0, 64}, {0.7f, 1.0f, 0.0f, 0, 64}, {2.0f, 1.0f, 0.0f, 5, 5},
                 {1.0f, 0.5f, 0.0f, 0, 0},  {1.0f, 0.9f, 0.0f, 7, 0},  {1.0f, 1.0f, 0.2f, 0, 0},
                 {1.5f, 0.8f, 0.3f, 30, 0}, {1.0f, 1e-6f, 0.0f, 0, 1}, {1.0f, 1.0f, 1.0f, 0, 1}};
    float row[VOCAB];
    make_row(row);
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct sample_params p = plain;
        double prob[VOCAB];
        unsigned counts[VOCAB], n;
        p.temperature = cases[i].temperature;
        p.top_p = cases[i].top_p;
        p.min_p = cases[i].min_p;
        p.top_k = cases[i].top_k;
        n = exact(&p, row, prob);
        assert_true(!cases[i].kept || n == cases[i].kept);
        draw(&p, row, counts);
        for (uint32_t k = 0; k < VOCAB; k++) {
            double want = prob[k] * DRAWS, slack = 5.0 * sqrt(want + 1.0); /* five standard deviations; the seed is fixed */
            if ((prob[k] == 0.0 && counts[k]) || fabs(counts[k] - want) > slack)
                fail_msg("case %zu, token %u: %u draws, expected %.1f", i, k, counts[k], want);
        }
    }
}

/* Sorting a whole vocabulary and keeping the best in a heap give the same order, ties, zeros and NaN included. */
static void test_all_candidates(void **state)
{
    (void)state;
    enum { WIDE = 6000 };
    struct sampler *s;
    struct sample_params sorted = plain, heap = plain;
    float row[WIDE];
    uint32_t different = 0;
    assert_int_equal(sampler_open(WIDE, &s), 0);
    for (uint32_t i = 0; i < WIDE; i++)
        row[i] = (float)((int)(i * 2654435761u >> 20) % 64 - 48) / 8.0f; /* about 94 of each value */
    for (uint32_t i = 0; i < WIDE; i += 97)
        row[i] = i % 2 ? -0.0f : 0.0f;
    row[17] = NAN;
    row[18] = -INFINITY;
    sorted.top_k = 0;
    heap.top_k = 2000;
    sorted.min_p = heap.min_p = 0.1f; /* keeps fewer than 2000 */
    for (uint32_t i = 0; i < 4000; i++) {
        uint32_t id = sampler_pick(s, &sorted, row, NULL, 0, 0, i);
        assert_int_equal(id, sampler_pick(s, &heap, row, NULL, 0, 0, i));
        different += id != sampler_pick(s, &sorted, row, NULL, 0, 0, i + 1);
    }
    assert_true(different > 2000);
    sorted.top_k = 5000; /* sorted, then cut */
    sorted.min_p = 0.0f;
    for (uint32_t i = 0; i < 1000; i++)
        assert_true(row[sampler_pick(s, &sorted, row, NULL, 0, 1, i)] >= -5.5f);
    sampler_close(s);
}

static void test_greedy(void **state)
{
    (void)state;
    struct sampler *s;
    float row[VOCAB];
    struct sample_params p = plain;
    assert_int_equal(sampler_open(VOCAB, &s), 0);
    make_row(row);
    row[40] = row[20] = row[50] = 9.0f;
    p.temperature = 0.0f;
    assert_int_equal(sampler_pick(s, &p, row, NULL, 0, 3, 5), 20);
    row[63] = 9.5f;
    assert_int_equal(sampler_pick(s, &p, row, NULL, 0, 3, 5), 63);
    p.temperature = 1.0f;
    p.top_k = 1;
    assert_int_equal(sampler_pick(s, &p, row, NULL, 0, 3, 5), 63);
    sampler_close(s);
}

static void test_ties_at_the_edge_of_top_k(void **state)
{
    (void)state;
    float row[VOCAB] = {0};
    unsigned counts[VOCAB];
    struct sample_params p = plain;
    p.top_k = 3;
    draw(&p, row, counts);
    assert_true(counts[0] && counts[1] && counts[2]);
    assert_int_equal(counts[0] + counts[1] + counts[2], DRAWS);
}

static void test_reproducible(void **state)
{
    (void)state;
    struct sampler *s;
    float row[VOCAB] = {0}, other[VOCAB];
    struct sample_params p = plain;
    uint32_t first[256];
    unsigned same_choice = 0, same_seed = 0;
    assert_int_equal(sampler_open(VOCAB, &s), 0);
    make_row(other);
    for (uint32_t i = 0; i < 256; i++)
        first[i] = sampler_pick(s, &p, row, NULL, 0, 0, i);
    for (uint32_t i = 256; i-- > 0;) { /* other calls in between, other order: the same draws */
        sampler_pick(s, &p, other, NULL, 0, 1, i);
        assert_int_equal(sampler_pick(s, &p, row, NULL, 0, 0, i), first[i]);
        same_choice += sampler_pick(s, &p, row, NULL, 0, 1, i) == first[i];
        p.seed ^= 1ull << 40;
        same_seed += sampler_pick(s, &p, row, NULL, 0, 0, i) == first[i];
        p.seed ^= 1ull << 40;
    }
    assert_true(same_choice < 20 && same_seed < 20); /* 4 expected by chance */
    sampler_close(s);
}

/* Random123's known answer for philox4x32-10 with key and counter zero is 6627e8d5 e169c58d ...: u = 0.398... */
static void test_known_answer(void **state)
{
    (void)state;
    struct sampler *s;
    float row[VOCAB] = {0};
    struct sample_params p = plain;
    p.seed = 0;
    assert_int_equal(sampler_open(VOCAB, &s), 0);
    assert_int_equal(sampler_pick(s, &p, row, NULL, 0, 0, 0), 0x6627e8d5u >> 26);
    sampler_close(s);
}

static void test_penalty(void **state)
{
    (void)state;
    struct sampler *s;
    float row[VOCAB] = {0}, before[VOCAB];
    struct sample_params p = plain;
    uint32_t history[] = {7, 5, 5, 5, 9, 4000000000u};
    row[5] = 4.0f;
    row[6] = 3.0f;
    row[7] = 2.5f;
    for (uint32_t i = 8; i < VOCAB; i++)
        row[i] = -1.0f;
    memcpy(before, row, sizeof(row));
    p.temperature = 0.0f;
    p.repeat_penalty = 1.25f;
    p.repeat_last = 64;
    assert_int_equal(sampler_open(VOCAB, &s), 0);
    assert_int_equal(sampler_pick(s, &p, row, history, 6, 0, 0), 5); /* 3.2: penalised once, not three times */
    p.repeat_penalty = 1.5f;
    assert_int_equal(sampler_pick(s, &p, row, history, 6, 0, 0), 6);
    p.repeat_last = 2;
    assert_int_equal(sampler_pick(s, &p, row, history, 6, 0, 0), 5);
    for (uint32_t i = 0; i < 8; i++)
        row[i] = -1.1f;
    row[8] = -1.05f;
    for (uint32_t i = 10; i < VOCAB; i++)
        row[i] = -1.2f;
    assert_int_equal(sampler_pick(s, &p, row, history, 6, 0, 0), 8); /* a negative logit gets lower */
    p.repeat_penalty = 1.0f;
    assert_int_equal(sampler_pick(s, &p, row, history, 6, 0, 0), 9);
    assert_float_equal(before[5], 4.0f, 0.0f);
    sampler_close(s);
}

/* Presence and frequency count the output alone, which is the end of the history; the row itself stays. */
static void test_output_penalties(void **state)
{
    (void)state;
    struct sampler *s;
    float row[VOCAB] = {0}, before[VOCAB];
    struct sample_params p = plain;
    const uint32_t history[] = {9, 9, 9, 9, 5, 6, 5, 4000000000u}; /* the last four are output */
    row[9] = 4.0f;
    row[5] = 5.0f;
    row[6] = 4.5f;
    memcpy(before, row, sizeof(row));
    p.temperature = 0.0f;
    assert_int_equal(sampler_open(VOCAB, &s), 0);
    p.presence_penalty = 0.9f; /* 5: 4.1, 6: 3.6, 9: 4 */
    assert_int_equal(sampler_pick(s, &p, row, history, 8, 0, 4), 5);
    p.presence_penalty = 1.1f; /* 5: 3.9 */
    assert_int_equal(sampler_pick(s, &p, row, history, 8, 0, 4), 9);
    assert_int_equal(sampler_pick(s, &p, row, history, 8, 0, 8), 5); /* 9 is output, too: 5: 3.9, 9: 2.9 */
    p.presence_penalty = 0.0f;
    p.frequency_penalty = 0.45f; /* 5: 4.1, 6: 4.05 */
    assert_int_equal(sampler_pick(s, &p, row, history, 8, 0, 4), 5);
    p.frequency_penalty = 0.48f; /* 5: 4.04, 6: 4.02 */
    assert_int_equal(sampler_pick(s, &p, row, history, 8, 0, 4), 5);
    p.frequency_penalty = 0.52f; /* 5: 3.96, 6: 3.98, 9: 4 */
    assert_int_equal(sampler_pick(s, &p, row, history, 8, 0, 4), 9);
    p.frequency_penalty = -1.0f; /* a negative one favours: 5: 7 */
    row[9] = 6.9f;
    assert_int_equal(sampler_pick(s, &p, row, history, 8, 0, 4), 5);
    row[9] = before[9];
    assert_memory_equal(row, before, sizeof(row));
    sampler_close(s);
}

static void test_bias(void **state)
{
    (void)state;
    struct sampler *s;
    float row[VOCAB];
    unsigned counts[VOCAB];
    struct sample_params p = plain;
    const struct sample_bias bias[] = {{20, 100.0f}, {VOCAB, 100.0f}, {4000000000u, 100.0f}},
                             ban[] = {{20, -100.0f}, {21, -100.0f}};
    make_row(row);
    p.bias = bias;
    p.n_bias = 3;
    draw(&p, row, counts);
    assert_int_equal(counts[20], DRAWS);
    p.bias = ban;
    p.n_bias = 2;
    draw(&p, row, counts);
    assert_int_equal(counts[20] + counts[21], 0);
    assert_true(counts[22] > 0);
    p.temperature = 0.0f;
    p.bias = bias;
    assert_int_equal(sampler_open(VOCAB, &s), 0);
    assert_int_equal(sampler_pick(s, &p, row, NULL, 0, 0, 0), 20);
    sampler_close(s);
}

static void leave_even(void *ctx, float *logits, uint32_t vocab)
{
    ++*(unsigned *)ctx;
    for (uint32_t i = 1; i < vocab; i += 2)
        logits[i] = -INFINITY;
}

/* The mask has the last word, and the filters see what it leaves. */
static void test_mask(void **state)
{
    (void)state;
    float row[VOCAB], before[VOCAB];
    unsigned counts[VOCAB], calls = 0, odd = 0, kinds = 0;
    const struct sample_bias bias[] = {{21, 50.0f}};
    struct sample_params p = plain;
    make_row(row);
    memcpy(before, row, sizeof(row));
    p.top_k = 8;
    p.bias = bias;
    p.n_bias = 1;
    p.mask = leave_even;
    p.mask_ctx = &calls;
    draw(&p, row, counts);
    for (uint32_t i = 0; i < VOCAB; i++) {
        odd += i % 2 ? counts[i] : 0;
        kinds += counts[i] > 0;
    }
    assert_int_equal(odd, 0);
    assert_int_equal(kinds, 8);
    assert_int_equal(calls, DRAWS);
    assert_memory_equal(row, before, sizeof(row));
}

/* Against sample_nll, which sums by itself. */
static void test_logprobs(void **state)
{
    (void)state;
    struct sampler *s;
    float row[VOCAB];
    struct sample_logprob top[VOCAB];
    make_row(row);
    row[40] = row[20] = 9.0f;
    assert_int_equal(sampler_open(VOCAB, &s), 0);
    for (uint32_t id = 0; id < VOCAB; id++)
        assert_true(fabs(sampler_logprobs(s, row, id, 0, NULL) + sample_nll(row, VOCAB, id)) < 1e-12);
    assert_true(fabs(sampler_logprobs(s, row, 3, VOCAB, top) + sample_nll(row, VOCAB, 3)) < 1e-12);
    assert_int_equal(top[0].id, 20);
    assert_int_equal(top[1].id, 40);
    for (uint32_t i = 0; i < VOCAB; i++) {
        assert_true(fabs((double)top[i].logprob + sample_nll(row, VOCAB, top[i].id)) < 1e-5);
        assert_true(i == 0 || top[i].logprob <= top[i - 1].logprob);
    }
    sampler_close(s);
}

static void test_broken_rows(void **state)
{
    (void)state;
    struct sampler *s;
    struct sample_params greedy = plain, params = plain;
    float row[VOCAB];
    greedy.temperature = 0.0f;
    params.top_k = 8;
    params.top_p = 0.9f;
    params.min_p = 0.1f;
    assert_int_equal(sampler_open(VOCAB, &s), 0);
    for (uint32_t i = 0; i < VOCAB; i++)
        row[i] = NAN;
    assert_int_equal(sampler_pick(s, &greedy, row, NULL, 0, 0, 0), 0);
    assert_int_equal(sampler_pick(s, &params, row, NULL, 0, 0, 0), 0);
    assert_int_equal(sampler_pick(s, &plain, row, NULL, 0, 0, 0), 0);
    for (uint32_t i = 0; i < VOCAB; i++)
        row[i] = -INFINITY;
    assert_int_equal(sampler_pick(s, &params, row, NULL, 0, 0, 0), 0);
    row[33] = -5.0f;
    row[12] = NAN;
    for (uint32_t i = 0; i < 100; i++) {
        assert_int_equal(sampler_pick(s, &plain, row, NULL, 0, 0, i), 33);
        assert_int_equal(sampler_pick(s, &params, row, NULL, 0, 0, i), 33);
    }
    row[34] = INFINITY;
    assert_int_equal(sampler_pick(s, &greedy, row, NULL, 0, 0, 0), 34);
    assert_int_equal(sampler_pick(s, &plain, row, NULL, 0, 0, 0), 34);
    sampler_close(s);
}

static void test_nll(void **state)
{
    (void)state;
    float row[VOCAB];
    double sum = 0.0;
    make_row(row);
    for (uint32_t i = 0; i < VOCAB; i++)
        sum += exp((double)row[i]);
    for (uint32_t i = 0; i < VOCAB; i++)
        assert_true(fabs(sample_nll(row, VOCAB, i) - (log(sum) - (double)row[i])) < 1e-12);
    for (uint32_t i = 0; i < VOCAB; i++)
        row[i] += 1000.0f; /* exp would overflow */
    assert_true(fabs(sample_nll(row, VOCAB, 3) - (log(sum) + 1000.0 - (double)row[3])) < 1e-3);
}

static void test_check(void **state)
{
    (void)state;
    struct sample_params p;
    struct err err = {0};
    sample_params_default(&p);
    assert_int_equal(sample_params_check(&p, &err), 0);
    assert_int_equal(p.top_k, 64);
    p.temperature = -1.0f;
    assert_int_equal(sample_params_check(&p, &err), -EINVAL);
    assert_non_null(strstr(err.text, "'temperature' is -1; expected"));
    sample_params_default(&p);
    p.temperature = NAN;
    assert_int_equal(sample_params_check(&p, &err), -EINVAL);
    sample_params_default(&p);
    p.top_p = 0.0f;
    assert_int_equal(sample_params_check(&p, &err), -EINVAL);
    sample_params_default(&p);
    p.min_p = 1.5f;
    assert_int_equal(sample_params_check(&p, &err), -EINVAL);
    sample_params_default(&p);
    p.repeat_penalty = 0.0f;
    assert_int_equal(sample_params_check(&p, &err), -EINVAL);
    sample_params_default(&p);
    p.presence_penalty = 101.0f;
    assert_int_equal(sample_params_check(&p, &err), -EINVAL);
    sample_params_default(&p);
    p.frequency_penalty = NAN;
    assert_int_equal(sample_params_check(&p, &err), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_all_candidates),
        cmocka_unit_test(test_ties_at_the_edge_of_top_k),
        cmocka_unit_test(test_reproducible),
        cmocka_unit_test(test_known_answer),
        cmocka_unit_test(test_penalty),
        cmocka_unit_test(test_output_penalties),
        cmocka_unit_test(test_bias),
        cmocka_unit_test(test_mask),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_broken_rows),
        cmocka_unit_test(test_nll),
        cmocka_unit_test(test_check),
    };
    return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
