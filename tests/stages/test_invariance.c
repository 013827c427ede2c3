/* SPDX-License-Identifier: MIT
 * Logits must not change by a bit with the chunk size, the number of threads, the kernel variant, what else is in the batch, or
 * when positions are issued again: recovery and continuous batching rest on it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu.h"
#include "kernels/quant.h"
#include "npu_worker/kv.h"
#include "proto/chunk.h"
#include "proto/util.h"
#include "tests/stages/rig.h"

#define SEQUENCES 4

static void same_bits(const char *what, const float *got, const float *want, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&got[i], &want[i], sizeof(float)) != 0)
            fail_msg("%s: element %zu is %.9g instead of %.9g", what, i, (double)got[i], (double)want[i]);
    }
}

static float *logits_of(const struct rig_options *o, const uint32_t *ids, uint32_t n)
{
    struct rig r;
    rig_open(&r, o);
    float *logits = calloc(n, r.hparams.vocab * sizeof(float));
    rig_sequence(&r, 0, ids, n, logits);
    rig_close(&r);
    return logits;
}

/* Every combination gives what one chunk on one thread gives. */
static void combinations(const char *model, int kv_type, uint32_t n, uint32_t vocab)
{
    static const uint32_t chunks[] = {1, 7, 64, 100};
    static const char *const variants[] = {"ref", "avx2", "avx512"};
    uint32_t ids[256];
    char what[128];
    rig_ids(ids, n, vocab, 1);
    struct rig_options o = {
        .model = model, .kv_type = kv_type, .ring_slots = 4, .sequences = 1, .context = n, .n_threads = 1, .chunk_tokens = n};
    float *want = logits_of(&o, ids, n);
    for (size_t i = 0; i < ARRAY_LEN(chunks); i++) {
        for (uint32_t threads = 1; threads <= 3; threads++) {
            o.chunk_tokens = chunks[i];
            o.n_threads = threads;
            snprintf(what, sizeof(what), "%s, chunks of %u, %u threads", model, chunks[i], threads);
            float *got = logits_of(&o, ids, n);
            same_bits(what, got, want, (size_t)n * vocab);
            free(got);
        }
    }
    for (size_t i = 0; i < ARRAY_LEN(variants); i++) {
        o.chunk_tokens = 33;
        o.n_threads = 2;
        o.variant = variants[i];
        if (!cpu_select(variants[i])) {
            print_message("  %s is left out: this processor lacks it\n", variants[i]);
            continue;
        }
        snprintf(what, sizeof(what), "%s, kernels %s", model, variants[i]);
        float *got = logits_of(&o, ids, n);
        same_bits(what, got, want, (size_t)n * vocab);
        free(got);
    }
    free(want);
}

static void test_tiny_f32(void **state)
{
    (void)state;
    combinations("tiny-27b-f32", QUANT_F32, 100, 512);
}

static void test_tiny_bf16_kv_f16(void **state)
{
    (void)state;
    combinations("tiny-27b-bf16", QUANT_F16, 100, 512);
}

static void test_tiny_q8_0(void **state)
{
    (void)state;
    combinations("tiny-27b-q8_0", QUANT_F16, 100, 512);
}

static void test_tiny_kv_q8_0(void **state)
{
    (void)state;
    combinations("tiny-27b-bf16", QUANT_Q8_0, 100, 512);
    combinations("tiny-27b-q8_0", QUANT_Q8_0, 100, 512);
}

static void test_tiny_q4_0(void **state)
{
    (void)state;
    combinations("tiny-27b-q4_0", QUANT_F16, 100, 512);
}

/* Beyond the window of 128, with pages given back on the way. */
static void demo(int kv_type)
{
    uint32_t ids[200];
    rig_ids(ids, 200, 4096, 3);
    struct rig_options o = {.model = "demo-f16",
                            .kv_type = kv_type,
                            .ring_slots = 1,
                            .sequences = 1,
                            .context = 200,
                            .n_threads = 2,
                            .chunk_tokens = 200};
    float *want = logits_of(&o, ids, 200);
    o.chunk_tokens = 5;
    float *got = logits_of(&o, ids, 200);
    same_bits("demo-f16, chunks of 5", got, want, (size_t)200 * 4096);
    free(got);
    free(want);
}

static void test_demo_f16(void **state)
{
    (void)state;
    demo(QUANT_F16);
}

static void test_demo_kv_q8_0(void **state)
{
    (void)state;
    demo(QUANT_Q8_0);
}

/* Up to `share[i]` next tokens of each sequence in one chunk, until all are done. */
static void batched(struct rig *r, uint32_t (*ids)[100], const uint32_t *lengths, float **logits)
{
    struct chunk *c = calloc(1, sizeof(*c));
    uint32_t done[SEQUENCES] = {0}, chunk_ids[256];
    size_t vocab = r->hparams.vocab;
    float *rows = calloc(r->o.chunk_tokens, vocab * sizeof(float));
    for (uint32_t round = 0;; round++) {
        memset(&c->h, 0, sizeof(c->h));
        for (uint32_t k = 0; k < SEQUENCES; k++) {
            uint32_t s = (k + round) % SEQUENCES, want = round % 3 == 0 ? 1 : 1 + (s * 7 + round * 5) % 13;
            uint32_t n = MIN(MIN(want, lengths[s] - done[s]), r->o.chunk_tokens - c->h.n_tokens);
            if (n == 0)
                continue;
            c->seqs[c->h.n_seqs++] = (struct chunk_seq){.seq = s, .committed_pos = done[s]};
            for (uint32_t i = 0; i < n; i++) {
                chunk_ids[c->h.n_tokens] = ids[s][done[s] + i];
                c->tokens[c->h.n_tokens++] = (struct chunk_token){.seq = s, .pos = done[s] + i};
            }
        }
        if (c->h.n_tokens == 0)
            break;
        rig_run(r, c, chunk_ids, rows);
        rig_run(r, c, chunk_ids, rows); /* issued again: nothing may change */
        for (uint32_t t = 0; t < c->h.n_tokens; t++) {
            uint32_t s = c->tokens[t].seq;
            memcpy(logits[s] + c->tokens[t].pos * vocab, rows + t * vocab, vocab * sizeof(float));
            done[s] = c->tokens[t].pos + 1;
        }
    }
    free(rows);
    free(c);
}

static void batches(const char *model, int kv_type)
{
    static const uint32_t lengths[SEQUENCES] = {100, 61, 64, 1};
    uint32_t ids[SEQUENCES][100];
    float *want[SEQUENCES], *got[SEQUENCES];
    struct rig_options o = {
        .model = model, .kv_type = kv_type, .ring_slots = 2, .sequences = 1, .context = 100, .n_threads = 1, .chunk_tokens = 100};
    struct rig r;
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        rig_ids(ids[s], lengths[s], 512, s + 10);
        want[s] = logits_of(&o, ids[s], lengths[s]);
        got[s] = calloc(lengths[s], 512 * sizeof(float));
    }
    o.sequences = SEQUENCES;
    o.n_threads = 3;
    o.chunk_tokens = 17;
    rig_open(&r, &o);
    for (int again = 0; again < 2; again++) { /* the second time in pages that hold what the first left */
        batched(&r, ids, lengths, got);
        for (uint32_t s = 0; s < SEQUENCES; s++) {
            same_bits("batch", got[s], want[s], (size_t)lengths[s] * 512);
            memset(got[s], 0, lengths[s] * 512 * sizeof(float));
            kv_free(r.kv, s);
        }
        assert_int_equal(kv_pages_used(r.kv), 0);
    }
    rig_close(&r);
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        free(want[s]);
        free(got[s]);
    }
}

static void test_batches_float(void **state)
{
    (void)state;
    batches("tiny-27b-bf16", QUANT_F16);
    batches("tiny-27b-bf16", QUANT_Q8_0);
}

static void test_batches_integer(void **state)
{
    (void)state;
    batches("tiny-27b-q4_0", QUANT_F16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_f32),        cmocka_unit_test(test_tiny_bf16_kv_f16), cmocka_unit_test(test_tiny_q8_0),
        cmocka_unit_test(test_tiny_q4_0),       cmocka_unit_test(test_demo_f16),         cmocka_unit_test(test_batches_float),
        cmocka_unit_test(test_batches_integer), cmocka_unit_test(test_tiny_kv_q8_0),     cmocka_unit_test(test_demo_kv_q8_0),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
