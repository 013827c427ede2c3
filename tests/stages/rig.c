/* SPDX-License-Identifier: MIT
 * The rig of the stage tests: opens a converted checkpoint, fills every segment as the loader would, and drives the CPU backends
 * chunk by chunk. Owns all of it until rig_close. One thread (the backends have their own). */
#include "tests/stages/rig.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu_worker/ffn_backend.h"
#include "loader/embed.h"
#include "model/gguf.h"
#include "model/safetensors.h"
#include "model/segment.h"
#include "model/work_plan.h"
#include "npu_worker/arena.h"
#include "npu_worker/attn_backend.h"
#include "npu_worker/kv.h"
#include "proto/chunk.h"
#include "proto/err.h"
#include "proto/util.h"

struct rig_segment {
    struct segment_layout layout;
    void *data;
};

struct golden {
    struct safetensors *file;
};

static void must(int r, const struct err *err)
{
    if (r < 0)
        fail_msg("%s", err->text);
}

const char *rig_model_path(const char *name)
{
    static char path[4096];
    snprintf(path, sizeof(path), "%s/%s.gguf", TANDEM_MODELS_DIR, name);
    return path;
}

uint8_t *rig_types(const struct gguf *g, const struct hparams *h)
{
    struct err err = {0};
    uint8_t *types = calloc((size_t)h->n_layers * GEMMA3_LAYER_TENSORS + 3, 1), *t = types;
    for (uint32_t layer = 0; layer < h->n_layers; layer++) {
        must(segment_types(g, SEGMENT_ATTN, layer, t, &err), &err);
        must(segment_types(g, SEGMENT_FFN, layer, t + segment_n_tensors(SEGMENT_ATTN), &err), &err);
        t += GEMMA3_LAYER_TENSORS;
    }
    must(segment_types(g, SEGMENT_HEAD, 0, t, &err), &err);
    return types;
}

static void load(struct rig *r, enum segment_kind kind, uint32_t layer)
{
    struct err err = {0};
    struct rig_segment *s = &r->segments[r->n_segments++];
    uint8_t types[SEGMENT_MAX_TENSORS];
    must(segment_types(r->gguf, kind, layer, types, &err), &err);
    must(segment_layout_init(&s->layout, &r->hparams, kind, types, &err), &err);
    size_t n = segment_bounce_min(&s->layout);
    void *bounce = aligned_alloc(4096, n);
    must(budget_alloc(&r->budget, BUDGET_WEIGHTS, s->layout.bytes, &s->data, &err), &err);
    must(segment_fill(r->gguf, layer, &s->layout, s->data, bounce, n, &err), &err);
    free(bounce);
    must(kind == SEGMENT_ATTN ? attn_cpu.load_segment(r->attn, layer, &s->layout, s->data, &err)
                              : ffn_cpu.load_segment(r->ffn, layer, &s->layout, s->data, &err),
         &err);
}

void rig_open(struct rig *r, const struct rig_options *o)
{
    struct err err = {0};
    *r = (struct rig){.o = *o};
    budget_init(&r->budget, "rig", 0);
    must(gguf_open(rig_model_path(o->model), false, &r->gguf, &err), &err);
    must(gemma3_hparams(r->gguf, &r->hparams, &err), &err);
    r->types = rig_types(r->gguf, &r->hparams);
    const char *variant = o->variant ? o->variant : "auto";
    struct kv_options k = {.hparams = &r->hparams,
                           .budget = &r->budget,
                           .context = o->context,
                           .sequences = o->sequences,
                           .chunk_tokens = o->chunk_tokens,
                           .ring_slots = o->ring_slots,
                           .kv_type = o->kv_type};
    must(kv_make_arena(&k, 0, &r->arena, &err), &err);
    k.arena = r->arena;
    must(kv_open(&k, &r->kv, &err), &err);
    const struct attn_backend_options a = {.hparams = &r->hparams,
                                           .budget = &r->budget,
                                           .arena = r->arena,
                                           .kv = r->kv,
                                           .types = r->types,
                                           .n_threads = o->n_threads,
                                           .chunk_tokens = o->chunk_tokens,
                                           .ring_slots = o->ring_slots,
                                           .kv_type = o->kv_type,
                                           .variant = variant};
    must(attn_cpu.open(&a, &r->attn, &err), &err);
    const struct ffn_backend_options f = {.hparams = &r->hparams,
                                          .budget = &r->budget,
                                          .types = r->types,
                                          .n_threads = o->n_threads,
                                          .chunk_tokens = o->chunk_tokens,
                                          .logits_rows = RIG_LOGITS_ROWS,
                                          .variant = variant};
    must(ffn_cpu.open(&f, &r->ffn, &err), &err);
    must(embed_open(r->gguf, &r->hparams, &r->budget, &r->embed, &err), &err);
    r->segments = calloc(2 * r->hparams.n_layers + 1, sizeof(*r->segments));
    for (uint32_t layer = 0; layer < r->hparams.n_layers; layer++) {
        load(r, SEGMENT_ATTN, layer);
        load(r, SEGMENT_FFN, layer);
    }
    load(r, SEGMENT_HEAD, 0);
    r->x = calloc(o->chunk_tokens, r->hparams.hidden * sizeof(float));
    r->h = calloc(o->chunk_tokens, r->hparams.hidden * sizeof(float));
}

void rig_close(struct rig *r)
{
    for (uint32_t i = 0; i < r->n_segments; i++)
        budget_free(&r->budget, BUDGET_WEIGHTS, r->segments[i].data, r->segments[i].layout.bytes);
    attn_cpu.close(r->attn);
    ffn_cpu.close(r->ffn);
    kv_close(r->kv);
    arena_close(r->arena);
    embed_close(r->embed);
    gguf_close(r->gguf);
    free(r->segments);
    free(r->types);
    free(r->x);
    free(r->h);
    assert_int_equal(r->budget.total, 0);
}

void rig_run(struct rig *r, const struct chunk *c, const uint32_t *ids, float *logits)
{
    struct err err = {0};
    uint32_t n = c->h.n_tokens;
    size_t hidden = r->hparams.hidden, vocab = r->hparams.vocab;
    must(embed_rows(r->embed, ids, n, r->x, &err), &err);
    for (uint32_t layer = 0; layer < r->hparams.n_layers; layer++) {
        must(attn_cpu.run(r->attn, layer, c, r->x, r->h, NULL, NULL, &err), &err);
        must(ffn_cpu.run(r->ffn, layer, n, r->h, r->x, NULL, NULL, &err), &err);
    }
    for (uint32_t at = 0; at < n; at += RIG_LOGITS_ROWS)
        must(ffn_cpu.head(r->ffn, MIN(RIG_LOGITS_ROWS, n - at), r->x + at * hidden, logits + at * vocab, NULL, NULL, &err), &err);
}

void rig_chunk(struct chunk *c, uint32_t seq, uint32_t pos, uint32_t n, uint32_t committed_pos)
{
    memset(&c->h, 0, sizeof(c->h));
    c->h.n_tokens = n;
    c->h.n_seqs = 1;
    c->seqs[0] = (struct chunk_seq){.seq = seq, .committed_pos = committed_pos};
    for (uint32_t i = 0; i < n; i++)
        c->tokens[i] = (struct chunk_token){.seq = seq, .pos = pos + i};
}

void rig_sequence(struct rig *r, uint32_t seq, const uint32_t *ids, uint32_t n, float *logits)
{
    struct chunk *c = calloc(1, sizeof(*c));
    for (uint32_t at = 0; at < n; at += r->o.chunk_tokens) {
        rig_chunk(c, seq, at, MIN(r->o.chunk_tokens, n - at), at);
        rig_run(r, c, ids + at, logits + (size_t)at * r->hparams.vocab);
    }
    free(c);
}

void rig_ids(uint32_t *ids, uint32_t n, uint32_t vocab, uint32_t seed)
{
    uint64_t state = seed * 2654435761u + 1;
    for (uint32_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        ids[i] = i ? (uint32_t)(state >> 33) % vocab : 2;
    }
}

struct golden *rig_golden(const char *name)
{
    struct err err = {0};
    char path[4096];
    struct golden *g = calloc(1, sizeof(*g));
    snprintf(path, sizeof(path), "%s/tests/golden/%s", TANDEM_SOURCE_DIR, name);
    must(safetensors_open_file(path, &g->file, &err), &err);
    return g;
}

void rig_golden_close(struct golden *g)
{
    safetensors_close(g->file);
    free(g);
}

bool rig_golden_has(const struct golden *g, const char *tensor)
{
    return safetensors_find(g->file, tensor) != NULL;
}

float *rig_golden_read(const struct golden *g, const char *tensor, size_t *ret_n)
{
    struct err err = {0};
    const struct safetensors_tensor *t = safetensors_find(g->file, tensor);
    if (!t)
        fail_msg("golden '%s' is missing", tensor);
    float *v = malloc(t->bytes);
    must(safetensors_read(g->file, t, 0, v, t->bytes, &err), &err);
    *ret_n = t->bytes / sizeof(float);
    return v;
}

void rig_close_to(const char *what, const float *got, const float *want, size_t n, float bound)
{
    float worst = 0;
    for (size_t i = 0; i < n; i++) {
        float d = fabsf(got[i] - want[i]);
        if (!(d <= bound))
            fail_msg("%s: element %zu is %g; expected %g within %g", what, i, (double)got[i], (double)want[i], (double)bound);
        worst = MAX(worst, d);
    }
    print_message("  %s: at most %.2g off\n", what, (double)worst);
}
