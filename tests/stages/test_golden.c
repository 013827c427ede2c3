/* SPDX-License-Identifier: MIT
 * Embedding, every layer and the head against the values of Hugging Face transformers: each layer fed with the golden input, the
 * intermediates of a local and a global layer, and the whole chain. f32 and bf16 weights, f32 K and V, bound 1e-3: only the order
 * of f32 sums differs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu_worker/ffn_backend.h"
#include "kernels/quant.h"
#include "loader/embed.h"
#include "npu_worker/attn_backend.h"
#include "npu_worker/kv.h"
#include "proto/chunk.h"
#include "proto/err.h"
#include "proto/util.h"
#include "tests/stages/rig.h"

#define BOUND 1e-3f

struct model_case {
    const char *golden, *model;
};

static struct golden *golden;
static struct rig rig;
static uint32_t *ids;
static size_t n_tokens;

static void begin(const char *golden_name, const char *model)
{
    golden = rig_golden(golden_name);
    ids = (uint32_t *)(void *)rig_golden_read(golden, "ids", &n_tokens);
    rig_open(&rig, &(struct rig_options){.model = model,
                                         .kv_type = QUANT_F32,
                                         .n_threads = 2,
                                         .chunk_tokens = (uint32_t)n_tokens,
                                         .ring_slots = 1,
                                         .sequences = 1,
                                         .context = (uint32_t)n_tokens});
}

static void end(void)
{
    rig_close(&rig);
    rig_golden_close(golden);
    free(ids);
}

static void must(int r, const struct err *err)
{
    if (r < 0)
        fail_msg("%s", err->text);
}

static void compare(const char *name, const float *got, size_t n)
{
    size_t n_want;
    float *want = rig_golden_read(golden, name, &n_want);
    assert_int_equal(n, n_want);
    rig_close_to(name, got, want, n, BOUND);
    free(want);
}

static int n_dumped;

static void on_dump(void *ctx, const char *name, const float *rows, uint32_t n_rows, uint32_t width)
{
    char full[64];
    snprintf(full, sizeof(full), "layer.%u.in.%s", *(uint32_t *)ctx, name);
    compare(full, rows, (size_t)n_rows * width);
    n_dumped++;
}

static void layers(const char *golden_name, const char *model)
{
    struct err err = {0};
    struct chunk *c = calloc(1, sizeof(*c));
    char name[64];
    size_t n;
    begin(golden_name, model);
    size_t all = n_tokens * rig.hparams.hidden;
    must(embed_rows(rig.embed, ids, (uint32_t)n_tokens, rig.x, &err), &err);
    compare("embed", rig.x, all);
    rig_chunk(c, 0, 0, (uint32_t)n_tokens, 0);
    for (uint32_t layer = 0; layer < rig.hparams.n_layers; layer++) {
        snprintf(name, sizeof(name), "layer.%u.in.q", layer);
        bool dump = rig_golden_has(golden, name);
        snprintf(name, sizeof(name), "layer.%u.ffn", layer - 1);
        float *x = rig_golden_read(golden, layer ? name : "embed", &n);
        n_dumped = 0;
        must(attn_cpu.run(rig.attn, layer, c, x, rig.h, dump ? on_dump : NULL, &layer, &err), &err);
        assert_int_equal(n_dumped, dump ? 9 : 0);
        snprintf(name, sizeof(name), "layer.%u.attn", layer);
        compare(name, rig.h, all);
        free(x);
        float *h = rig_golden_read(golden, name, &n);
        n_dumped = 0;
        must(ffn_cpu.run(rig.ffn, layer, (uint32_t)n_tokens, h, rig.x, dump ? on_dump : NULL, &layer, &err), &err);
        assert_int_equal(n_dumped, dump ? 6 : 0);
        snprintf(name, sizeof(name), "layer.%u.ffn", layer);
        compare(name, rig.x, all);
        free(h);
    }
    end();
    free(c);
}

static void on_norm(void *ctx, const char *name, const float *rows, uint32_t n_rows, uint32_t width)
{
    float **at = ctx;
    assert_string_equal(name, "final_norm");
    memcpy(*at, rows, (size_t)n_rows * width * sizeof(float));
    *at += (size_t)n_rows * width;
}

static void head(const char *golden_name, const char *model)
{
    struct err err = {0};
    char name[64];
    size_t n;
    begin(golden_name, model);
    snprintf(name, sizeof(name), "layer.%u.ffn", rig.hparams.n_layers - 1);
    size_t hidden = rig.hparams.hidden, vocab = rig.hparams.vocab;
    float *x = rig_golden_read(golden, name, &n), *logits = calloc(n_tokens, vocab * sizeof(float)), *norm = rig.h;
    for (size_t at = 0; at < n_tokens; at += RIG_LOGITS_ROWS) {
        uint32_t rows = (uint32_t)MIN(RIG_LOGITS_ROWS, n_tokens - at);
        must(ffn_cpu.head(rig.ffn, rows, x + at * hidden, logits + at * vocab, on_norm, &norm, &err), &err);
    }
    compare("final_norm", rig.h, n_tokens * hidden);
    compare("logits", logits, n_tokens * vocab);
    free(x);
    free(logits);
    end();
}

static void chain(const char *golden_name, const char *model)
{
    begin(golden_name, model);
    float *logits = calloc(n_tokens, rig.hparams.vocab * sizeof(float));
    rig_sequence(&rig, 0, ids, (uint32_t)n_tokens, logits);
    compare("logits", logits, n_tokens * rig.hparams.vocab);
    free(logits);
    end();
}

#define DEMO "demo_hidden16.safetensors"
#define TINY "tiny-27b/golden.safetensors"
static struct model_case cases[] = {{DEMO, "demo-f32"}, {DEMO, "demo-bf16"}, {TINY, "tiny-27b-f32"}, {TINY, "tiny-27b-bf16"}};

static void test_layers(void **state)
{
    const struct model_case *m = *state;
    layers(m->golden, m->model);
}

static void test_head(void **state)
{
    const struct model_case *m = *state;
    head(m->golden, m->model);
}

static void test_chain(void **state)
{
    const struct model_case *m = *state;
    chain(m->golden, m->model);
}

int main(void)
{
    struct CMUnitTest tests[3 * ARRAY_LEN(cases)];
    size_t n = 0;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        tests[n++] = (struct CMUnitTest){.name = cases[i].model, .test_func = test_layers, .initial_state = &cases[i]};
        tests[n++] = (struct CMUnitTest){.name = cases[i].model, .test_func = test_head, .initial_state = &cases[i]};
        tests[n++] = (struct CMUnitTest){.name = cases[i].model, .test_func = test_chain, .initial_state = &cases[i]};
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
