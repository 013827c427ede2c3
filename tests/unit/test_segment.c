/* SPDX-License-Identifier: MIT
 * model/gemma3, model/segment, model/hparams: what stages get from a GGUF file. The files are made by the converter from the
 * small golden checkpoint; broken ones by changing bytes of them. One thread. */
#include "tests/unit/unit_test.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>

#include "kernels/quant.h"
#include "kernels/repack.h"
#include "model/gemma3.h"
#include "model/gguf.h"
#include "model/gguf_write.h"
#include "model/segment.h"
#include "proto/msg.h"
#include "quantizer/convert.h"

static const int types[] = {QUANT_F32,  QUANT_F16,  QUANT_BF16, QUANT_Q8_0, QUANT_Q4_0, QUANT_Q4_1,
                            QUANT_Q5_0, QUANT_Q5_1, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K};

static void convert(const char *in, const char *out, int type)
{
    struct convert_result res;
    const struct convert_options o = {
        .in = in, .out = out, .recipe = {.type = quant_name(type), .pure = true}, .n_threads = 2, .alignment = 4096};
    assert_ok(convert_run(&o, &res, err));
}

static void check_tensor(const struct gguf *g, uint32_t layer, const struct segment_layout *l, const struct segment_tensor *t,
                         const uint8_t *segment)
{
    const struct gguf_tensor *src;
    assert_ok(gemma3_find(g, t->role, layer, &src, err));
    size_t row = quant_row_bytes(t->type, t->n_cols);
    uint8_t *want = malloc(row), *got = malloc(row);
    assert_true(t->offset + t->bytes <= l->bytes);
    assert_int_equal(t->offset % (gemma3_is_norm(t->role) ? 64 : 4096), 0);
    for (uint32_t i = 0; i < t->n_rows; i++) {
        assert_ok(gguf_read(g, src, i * row, want, row, err));
        if (gemma3_is_norm(t->role))
            memcpy(got, segment + t->offset, row);
        else
            repack_extract_row(t->type, segment + t->offset + i / REPACK_ROWS * repack_tile_bytes(t->type, t->n_cols),
                               i % REPACK_ROWS, t->n_cols, got);
        assert_memory_equal(got, want, row);
    }
    free(want);
    free(got);
}

static void check_segment(const struct gguf *g, const struct hparams *h, enum segment_kind kind, uint32_t layer, size_t more_bounce)
{
    struct segment_layout l;
    uint8_t t[SEGMENT_MAX_TENSORS];
    assert_ok(segment_types(g, kind, layer, t, err));
    assert_ok(segment_layout_init(&l, h, kind, t, err));
    assert_int_equal(l.bytes % 4096, 0);
    assert_int_equal(l.n_tensors, segment_n_tensors(kind));
    size_t bounce_bytes = segment_bounce_min(&l) + more_bounce;
    uint8_t *dst = aligned_alloc(4096, l.bytes), *bounce = aligned_alloc(4096, (bounce_bytes + 4095) / 4096 * 4096);
    memset(dst, 0xaa, l.bytes);
    assert_ok(segment_fill(g, layer, &l, dst, bounce, bounce_bytes, err));
    size_t end = 0;
    for (uint32_t i = 0; i < l.n_tensors; i++) {
        assert_true(l.tensors[i].offset >= end);
        end = l.tensors[i].offset + l.tensors[i].bytes;
        assert_ptr_equal(segment_find(&l, l.tensors[i].role), &l.tensors[i]);
        check_tensor(g, layer, &l, &l.tensors[i], dst);
    }
    assert_err(segment_fill(g, layer, &l, dst, bounce, segment_bounce_min(&l) - 1, err), -EINVAL, "bounce buffer");
    l.tensors[1].type = l.tensors[1].type == QUANT_F32 ? QUANT_BF16 : QUANT_F32;
    assert_err(segment_fill(g, layer, &l, dst, bounce, bounce_bytes, err), -EINVAL, "not what the segment expects");
    free(dst);
    free(bounce);
}

static void fills_what_the_file_has(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        struct gguf *g;
        struct hparams h;
        bool super = quant_block_elems(types[i]) > 32; /* rows of 160 do not fit those */
        convert(unit_source(super ? "models/demo" : "tests/golden/tiny-27b"), unit_path("m.gguf"), types[i]);
        assert_ok(gguf_open(unit_path("m.gguf"), i % 2, &g, err));
        assert_ok(gemma3_hparams(g, &h, err));
        check_segment(g, &h, SEGMENT_ATTN, 0, 0);
        check_segment(g, &h, SEGMENT_FFN, h.n_layers - 1, 4096 * 3 + 64);
        check_segment(g, &h, SEGMENT_HEAD, 0, 1u << 20);
        gguf_close(g);
    }
}

static void bad_layouts(void **state)
{
    (void)state;
    const struct hparams h = {.n_layers = 1, .hidden = 48, .ffn = 64, .n_heads = 2, .n_kv_heads = 1, .head_dim = 16, .vocab = 1};
    struct segment_layout l;
    uint8_t ffn[] = {QUANT_F32, QUANT_Q8_0, QUANT_Q8_0, QUANT_Q8_0, QUANT_F32};
    assert_err(segment_layout_init(&l, &h, SEGMENT_FFN, ffn, err), -EINVAL, "tensor 1 has type id 8 and rows of 48");
    ffn[1] = ffn[2] = QUANT_F16;
    assert_ok(segment_layout_init(&l, &h, SEGMENT_FFN, ffn, err));
    ffn[4] = QUANT_BF16;
    assert_err(segment_layout_init(&l, &h, SEGMENT_FFN, ffn, err), -EINVAL, "tensor 4");
    ffn[4] = 99;
    assert_err(segment_layout_init(&l, &h, SEGMENT_FFN, ffn, err), -EINVAL, "type id 99");
    const uint8_t head[] = {QUANT_F32, QUANT_F32};
    assert_ok(segment_layout_init(&l, &h, SEGMENT_HEAD, head, err));
    assert_int_equal(l.tensors[1].bytes, 16 * 48 * 4); /* a matrix of one row is still a whole tile */
    assert_null(segment_find(&l, GEMMA3_ATTN_Q));
}

/* ---- hyper-parameters ---- */

static void of_golden_files(void **state)
{
    (void)state;
    struct gguf *g;
    struct hparams h;
    convert(unit_source("tests/golden/tiny-27b"), unit_path("m.gguf"), QUANT_BF16);
    assert_ok(gguf_open(unit_path("m.gguf"), false, &g, err));
    assert_ok(gemma3_hparams(g, &h, err));
    assert_int_equal(h.n_layers, 8);
    assert_int_equal(h.hidden, 160);
    assert_int_equal(h.ffn, 640);
    assert_int_equal(h.n_heads, 4);
    assert_int_equal(h.n_kv_heads, 2);
    assert_int_equal(h.head_dim, 32);
    assert_int_equal(h.vocab, 512);
    assert_int_equal(h.window, 32);
    assert_int_equal(h.global_every, 6);
    assert_int_equal(h.context_max, 131072);
    assert_true(h.eps == 1e-6f && h.rope_base_global == 1e6f && h.rope_base_local == 1e4f && h.rope_factor_global == 8);
    assert_true(h.attn_scale == (float)(1 / sqrt(40)));
    assert_false(hparams_is_global(&h, 4));
    assert_true(hparams_is_global(&h, 5));
    gguf_close(g);
}

struct change {
    const char *drop;   /* key left out */
    const char *extra;  /* key added, f32 0.5, or u32 7 when it ends in "pattern" */
    const char *tensor; /* tensor left out */
    uint32_t layers;    /* 0: one */
    bool untied;
};

static void key_u32(struct gguf_write *w, const struct change *c, const char *key, uint32_t v)
{
    if (!c->drop || strcmp(c->drop, key) != 0)
        gguf_write_u32(w, key, v);
}

static void add_tensors(struct gguf_write *w, const struct change *c, const struct hparams *h, int *n)
{
    for (uint32_t layer = 0; layer <= h->n_layers; layer++) {
        int from = layer < h->n_layers ? 0 : GEMMA3_OUTPUT_NORM, to = layer < h->n_layers ? GEMMA3_LAYER_TENSORS : GEMMA3_TENSORS;
        for (int t = from; t < to; t++) {
            char name[64];
            uint32_t rows, cols;
            gemma3_shape(h, (enum gemma3_tensor)t, &rows, &cols);
            gemma3_name((enum gemma3_tensor)t, layer, name, sizeof(name));
            if ((c->tensor && strcmp(c->tensor, name) == 0) || (t == GEMMA3_OUTPUT && !c->untied))
                continue;
            const uint64_t dims[] = {cols, rows};
            assert_ok(gguf_write_tensor(w, name, QUANT_F32, gemma3_is_norm((enum gemma3_tensor)t) ? 1 : 2, dims, err));
            (*n)++;
        }
    }
}

/* A model of 32 x 64 with one thing changed; its data is a hole. */
static void write_model(const char *path, const struct change *c)
{
    const struct hparams h = {
        .n_layers = c->layers ? c->layers : 1, .hidden = 32, .ffn = 64, .n_heads = 4, .n_kv_heads = 2, .head_dim = 16, .vocab = 7};
    struct gguf_write *w;
    int n = 0;
    assert_ok(gguf_write_open(path, 32, &w, err));
    gguf_write_string(w, "general.architecture", "gemma3", 6);
    key_u32(w, c, "gemma3.block_count", h.n_layers);
    key_u32(w, c, "gemma3.embedding_length", h.hidden);
    key_u32(w, c, "gemma3.feed_forward_length", h.ffn);
    key_u32(w, c, "gemma3.attention.head_count", h.n_heads);
    key_u32(w, c, "gemma3.attention.head_count_kv", h.n_kv_heads);
    key_u32(w, c, "gemma3.attention.key_length", h.head_dim);
    key_u32(w, c, "gemma3.context_length", 99);
    key_u32(w, c, "gemma3.attention.sliding_window", 4);
    if (!c->drop || strcmp(c->drop, "gemma3.attention.layer_norm_rms_epsilon") != 0)
        gguf_write_f32(w, "gemma3.attention.layer_norm_rms_epsilon", 1e-5f);
    if (c->extra && strstr(c->extra, "pattern"))
        gguf_write_u32(w, c->extra, 7);
    else if (c->extra)
        gguf_write_f32(w, c->extra, 0.5f);
    add_tensors(w, c, &h, &n);
    assert_ok(gguf_write_begin(w, err));
    static const uint8_t zeros[64 * 64 * 4];
    for (int i = 0; i < n; i++) {
        uint64_t left = sizeof(zeros);
        while (left && gguf_write_data(w, i, 0, zeros, left, NULL) < 0) /* sizes differ: the largest that fits */
            left -= 4;
    }
    assert_ok(gguf_write_finish(w, NULL, err));
}

static int read_model(const struct change *c, struct hparams *h, struct err *e)
{
    struct gguf *g;
    write_model(unit_path("m.gguf"), c);
    assert_ok(gguf_open(unit_path("m.gguf"), false, &g, err));
    int r = gemma3_hparams(g, h, e);
    gguf_close(g);
    return r;
}

static void defaults_and_extras(void **state)
{
    (void)state;
    struct hparams h;
    assert_ok(read_model(&(struct change){0}, &h, err));
    assert_true(h.rope_base_global == 1e4f && h.rope_base_local == 1e4f && h.rope_factor_global == 1);
    assert_true(h.attn_scale == 0.25f && h.eps == 1e-5f);
    assert_int_equal(h.context_max, 99);
    assert_ok(read_model(&(struct change){.layers = 62}, &h, err)); /* the 27B scales by hidden / heads */
    assert_true(h.attn_scale == (float)(1 / sqrt(8)));
    assert_ok(read_model(&(struct change){.extra = "gemma3.attention.scale", .layers = 62}, &h, err));
    assert_true(h.attn_scale == 0.5f);
    assert_ok(read_model(&(struct change){.extra = "gemma3.rope.freq_base_swa"}, &h, err));
    assert_true(h.rope_base_local == 0.5f && h.rope_base_global == 1e4f);
    assert_ok(read_model(&(struct change){.extra = "gemma3.rope.scaling.factor"}, &h, err));
    assert_true(h.rope_factor_global == 0.5f);
    assert_ok(read_model(&(struct change){.extra = "gemma3.attention.sliding_window_pattern"}, &h, err));
    assert_int_equal(h.global_every, 7);
    assert_ok(read_model(&(struct change){.untied = true}, &h, err));
}

static void refused_models(void **state)
{
    (void)state;
    static const struct {
        struct change c;
        int code;
        const char *part;
    } cases[] = {
        {{.drop = "gemma3.block_count"}, -EPROTO, "key 'gemma3.block_count' is missing"},
        {{.drop = "gemma3.embedding_length"}, -EPROTO, "'gemma3.embedding_length' is missing"},
        {{.drop = "gemma3.feed_forward_length"}, -EPROTO, "'gemma3.feed_forward_length' is missing"},
        {{.drop = "gemma3.attention.head_count"}, -EPROTO, "'gemma3.attention.head_count' is missing"},
        {{.drop = "gemma3.context_length"}, -EPROTO, "'gemma3.context_length' is missing"},
        {{.drop = "gemma3.attention.layer_norm_rms_epsilon"}, -EPROTO, "epsilon' is missing"},
        {{.drop = "gemma3.attention.sliding_window"}, -EPROTO, "every layer would be global"},
        {{.drop = "gemma3.attention.key_length"}, -ENOTSUP, "4 heads of 8 on 2"},
        {{.drop = "gemma3.attention.head_count_kv"},
         -EPROTO,
         "tensor 'blk.0.attn_k.weight' is 32 x 32; expected rows of 32, 64 of them"},
        {{.extra = "gemma3.final_logit_softcapping"}, -ENOTSUP, "caps no logits"},
        {{.tensor = "blk.0.ffn_up.weight"}, -EPROTO, "tensor 'blk.0.ffn_up.weight' is missing"},
        {{.tensor = "output_norm.weight"}, -EPROTO, "tensor 'output_norm.weight' is missing"},
        {{.tensor = "token_embd.weight"}, -EPROTO, "tensor 'token_embd.weight' is missing"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct hparams h = {.n_layers = 77};
        assert_err(read_model(&cases[i].c, &h, err), cases[i].code, cases[i].part);
        assert_int_equal(h.n_layers, 77);
    }
}

/* Puts `type` where the tensor's info has its type: after the name, the count of dimensions and those. */
static void set_type(struct bytes *b, const char *name, uint32_t type)
{
    uint8_t *at = memmem(b->data, b->n, name, strlen(name));
    uint32_t n_dims;
    assert_non_null(at);
    memcpy(&n_dims, at + strlen(name), 4);
    memcpy(at + strlen(name) + 4 + 8 * n_dims, &type, 4);
}

static void types_that_we_cannot_run(void **state)
{
    (void)state;
    static const struct {
        const char *tensor;
        uint32_t type;
        const char *part;
    } cases[] = {
        {"blk.0.ffn_down.weight", 11,
         "tensor 'blk.0.ffn_down.weight' has type q3_K; expected f32, f16, bf16, q8_0, q4_0, q4_1, q5_0"},
        {"token_embd.weight", 10, "tensor 'token_embd.weight' has type q2_K"},
        {"blk.0.attn_norm.weight", QUANT_BF16, "tensor 'blk.0.attn_norm.weight' has type bf16; expected f32"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct gguf *g;
        struct hparams h;
        write_model(unit_path("m.gguf"), &(struct change){0});
        struct bytes b = unit_read(unit_path("m.gguf"));
        set_type(&b, cases[i].tensor, cases[i].type);
        unit_write(unit_path("m.gguf"), b.data, b.n);
        unit_free(&b);
        assert_ok(gguf_open(unit_path("m.gguf"), false, &g, err));
        assert_err(gemma3_hparams(g, &h, err), -ENOTSUP, cases[i].part);
        gguf_close(g);
    }
}

static void other_architecture(void **state)
{
    (void)state;
    struct gguf_write *w;
    struct gguf *g;
    struct hparams h;
    assert_ok(gguf_write_open(unit_path("m.gguf"), 32, &w, err));
    gguf_write_string(w, "general.architecture", "llama", 5);
    assert_ok(gguf_write_begin(w, err));
    assert_ok(gguf_write_finish(w, NULL, err));
    assert_ok(gguf_open(unit_path("m.gguf"), false, &g, err));
    assert_err(gemma3_hparams(g, &h, err), -ENOTSUP, "architecture is 'llama'; expected 'gemma3'");
    gguf_close(g);
}

static void travels_in_configure(void **state)
{
    (void)state;
    const struct hparams h = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1.5f, 2.5f, 3.5f, 4.5f, 5.5f};
    struct hparams back;
    struct msg_configure m = {.budget = 42};
    hparams_to_msg(&h, &m);
    assert_int_equal(m.n_layers, 1);
    assert_int_equal(m.hidden, 2);
    assert_int_equal(m.ffn, 3);
    assert_int_equal(m.n_heads, 4);
    assert_int_equal(m.n_kv_heads, 5);
    assert_int_equal(m.head_dim, 6);
    assert_int_equal(m.vocab, 7);
    assert_int_equal(m.window, 8);
    assert_int_equal(m.global_every, 9);
    assert_int_equal(m.context_max, 10);
    assert_true(m.eps == 1.5f && m.rope_base_global == 2.5f && m.rope_base_local == 3.5f);
    assert_true(m.rope_factor_global == 4.5f && m.attn_scale == 5.5f && m.budget == 42);
    hparams_from_msg(&m, &back);
    assert_memory_equal(&h, &back, sizeof(h));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(fills_what_the_file_has), UNIT_TEST(bad_layouts),          UNIT_TEST(of_golden_files),
        UNIT_TEST(defaults_and_extras),     UNIT_TEST(refused_models),       UNIT_TEST(types_that_we_cannot_run),
        UNIT_TEST(other_architecture),      UNIT_TEST(travels_in_configure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
