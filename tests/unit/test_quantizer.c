/* SPDX-License-Identifier: MIT
 * The converter end to end: every tensor of the result against the checkpoint, equal results from equal models in different
 * layouts, the tokenizer's keys, the command line, and checkpoints that must be refused without leaving a file. */
#include "tests/unit/unit_test.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/quant.h"
#include "model/gemma3.h"
#include "model/gguf.h"
#include "model/safetensors.h"
#include "quantizer/convert.h"
#include "tests/unit/checkpoint.h"

static const int types[] = {QUANT_F32, QUANT_F16, QUANT_BF16, QUANT_Q8_0, QUANT_Q4_0};
#define N_TYPES (sizeof(types) / sizeof(types[0]))

static int convert(const char *in, const char *out, int type, struct convert_result *res, struct err *e)
{
    struct convert_result ignored;
    const struct convert_options o = {
        .in = in, .out = out, .recipe = {.type = quant_name(type)}, .n_threads = 2, .alignment = 4096, .no_search = true};
    return convert_run(&o, res ? res : &ignored, e);
}

/* ---- tensors ---- */

static const struct {
    const char *gguf, *hf;
} name_pairs[] = {
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"attn_output", "self_attn.o_proj"},
    {"post_attention_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_norm", "pre_feedforward_layernorm"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    {"post_ffw_norm", "post_feedforward_layernorm"},
};

/* "blk.3.attn_q.weight" -> "<prefix>layers.3.self_attn.q_proj.weight", written here again and not taken from the converter. */
static void hf_name(const char *prefix, const char *gguf, char *ret, size_t size)
{
    unsigned layer;
    char part[64];
    if (strcmp(gguf, "token_embd.weight") == 0) {
        snprintf(ret, size, "%sembed_tokens.weight", prefix);
    } else if (strcmp(gguf, "output_norm.weight") == 0) {
        snprintf(ret, size, "%snorm.weight", prefix);
    } else {
        assert_int_equal(sscanf(gguf, "blk.%u.%63[^.].weight", &layer, part), 2);
        for (size_t i = 0; i < sizeof(name_pairs) / sizeof(name_pairs[0]); i++) {
            if (strcmp(part, name_pairs[i].gguf) == 0)
                snprintf(ret, size, "%slayers.%u.%s.weight", prefix, layer, name_pairs[i].hf);
        }
    }
}

/* How far a value may be from the checkpoint's: half a step of the type, plus what rounding the scale to f16 (2^-11 relative, 2^-25
 * absolute below 2^-14) adds in the largest multiple of it. */
static float tolerance(int type, float x, float amax)
{
    switch (type) {
    case QUANT_F16:
        return fmaxf(fabsf(x) * 0x1p-11f, 0x1p-25f);
    case QUANT_Q8_0:
        return amax / 127 * 0.5f + amax * 0x1p-11f + 127 * 0x1p-25f;
    case QUANT_Q4_0:
        return amax / 8 + amax * 0x1p-11f + 8 * 0x1p-25f; /* the far end of the signed range is cut: up to one step */
    default:
        return 0;
    }
}

static void check_row(int type, const float *want, const uint8_t *got, size_t n, const char *name)
{
    uint8_t *exact = malloc(quant_row_bytes(type, n));
    float *back = malloc(n * sizeof(*back));
    quant_quantize_row(type, want, exact, n);
    if (memcmp(exact, got, quant_row_bytes(type, n)) != 0)
        fail_msg("'%s' is not what quant_quantize_row gives", name);
    quant_dequantize_row(type, got, back, n);
    for (size_t b = 0; b < n; b += 16) {
        float amax = 0;
        size_t first = b / 32 * 32, end = first + 32 < n ? first + 32 : n;
        for (size_t i = first; i < end; i++)
            amax = fmaxf(amax, fabsf(want[i]));
        for (size_t i = b; i < b + 16 && i < n; i++) {
            if (!(fabsf(back[i] - want[i]) <= tolerance(type, want[i], amax)))
                fail_msg("'%s', column %zu: %g became %g", name, i, (double)want[i], (double)back[i]);
        }
    }
    free(exact);
    free(back);
}

static void check_tensor(const struct gguf *g, const struct gguf_tensor *t, const struct safetensors *s, const char *prefix,
                         int type)
{
    char name[128];
    hf_name(prefix, t->name, name, sizeof(name));
    const struct safetensors_tensor *src = safetensors_find(s, name);
    assert_non_null(src);
    bool norm = t->n_dims == 1;
    size_t cols = t->dims[0], row = quant_row_bytes(t->type, cols);
    assert_int_equal(norm, strstr(t->name, "norm") != NULL);
    assert_int_equal(t->type, norm ? QUANT_F32 : type);
    assert_int_equal(t->offset % 4096, 0);
    assert_int_equal(cols, src->dims[norm ? 0 : 1]);
    assert_int_equal(t->dims[1], norm ? 1 : src->dims[0]);
    uint16_t *raw = malloc(cols * 2);
    float *want = malloc(cols * sizeof(*want));
    uint8_t *got = malloc(row);
    for (uint64_t r = 0; r < t->dims[1]; r++) {
        assert_ok(safetensors_read(s, src, r * cols * 2, raw, cols * 2, err));
        for (size_t i = 0; i < cols; i++)
            want[i] = quant_bf16_to_f32(raw[i]) + (norm ? 1 : 0);
        assert_ok(gguf_read(g, t, r * row, got, row, err));
        check_row(t->type, want, got, cols, t->name);
    }
    free(raw);
    free(want);
    free(got);
}

static void check_conversion(const char *folder, const char *prefix, int type, uint32_t n_tensors, uint32_t n_vision)
{
    struct convert_result res;
    struct safetensors *s;
    struct gguf *g;
    struct hparams h;
    assert_ok(convert(unit_source(folder), unit_path("m.gguf"), type, &res, err));
    assert_int_equal(res.n_tensors, n_tensors);
    assert_int_equal(res.n_vision_skipped, n_vision);
    assert_ok(safetensors_open(unit_source(folder), &s, err));
    assert_ok(gguf_open(unit_path("m.gguf"), false, &g, err));
    assert_int_equal(gguf_file_bytes(g), res.bytes_out);
    assert_ok(gemma3_hparams(g, &h, err));
    assert_memory_equal(&h, &res.h, sizeof(h));
    assert_int_equal(gguf_n_tensors(g), n_tensors);
    for (uint32_t i = 0; i < n_tensors; i++)
        check_tensor(g, gguf_tensor_at(g, i), s, prefix, type);
    gguf_close(g);
    safetensors_close(s);
}

static void every_tensor(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_TYPES; i++) {
        check_conversion("models/demo", "model.", types[i], 158, 0);
        check_conversion("tests/golden/tiny-27b", "model.", types[i], 106, 0);
        check_conversion("tests/golden/tiny-27b-multimodal", "language_model.model.", types[i], 106, 6);
    }
    assert_int_equal(unit_count_files(), 1);
}

static void assert_same_file(const char *a, const char *b)
{
    struct bytes x = unit_read(a), y = unit_read(b);
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.data, y.data, x.n);
    unit_free(&x);
    unit_free(&y);
}

static void copy_tiny(const char *name, const char *config)
{
    static const char *const names[] = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                                        "model.safetensors.index.json", "tokenizer.model", "tokenizer_config.json"};
    char from[512], to[512];
    snprintf(to, sizeof(to), "%s", unit_path(name));
    assert_int_equal(mkdir(to, 0755), 0);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(from, sizeof(from), "tests/golden/tiny-27b/%s", names[i]);
        snprintf(to, sizeof(to), "%s/%s", name, names[i]);
        unit_copy(unit_source(from), unit_path(to));
    }
    snprintf(to, sizeof(to), "%s/config.json", name);
    unit_copy(unit_source(config), unit_path(to));
}

static void layouts_give_the_same_file(void **state)
{
    (void)state;
    copy_tiny("v5", "tests/golden/tiny-27b/config_v5.json");
    for (size_t i = 0; i < N_TYPES; i++) {
        assert_ok(convert(unit_source("tests/golden/tiny-27b"), unit_path("a.gguf"), types[i], NULL, err));
        assert_ok(convert(unit_source("tests/golden/tiny-27b-multimodal"), unit_path("b.gguf"), types[i], NULL, err));
        assert_ok(convert(unit_path("v5"), unit_path("c.gguf"), types[i], NULL, err));
        assert_same_file(unit_path("a.gguf"), unit_path("b.gguf"));
        assert_same_file(unit_path("a.gguf"), unit_path("c.gguf"));
    }
}

static void threads_do_not_matter(void **state)
{
    (void)state;
    struct convert_result res;
    struct convert_options o = {
        .in = unit_source("models/demo"), .out = "", .recipe = {.type = "q4_0"}, .alignment = 32, .name = "demo"};
    for (o.n_threads = 1; o.n_threads <= 3; o.n_threads += 2) {
        o.out = unit_path(o.n_threads == 1 ? "a.gguf" : "b.gguf");
        assert_ok(convert_run(&o, &res, err));
    }
    assert_same_file(unit_path("a.gguf"), unit_path("b.gguf"));
    struct gguf *g;
    const char *name;
    uint32_t alignment;
    assert_ok(gguf_open(unit_path("a.gguf"), false, &g, err));
    assert_ok(gguf_get_string(g, "general.name", &name, NULL, err));
    assert_string_equal(name, "demo");
    assert_int_equal(gguf_get_u32(g, "general.alignment", &alignment, NULL), -ENOENT);
    gguf_close(g);
}

/* ---- keys ---- */

static uint32_t u32(const struct gguf *g, const char *key)
{
    uint32_t v = 0;
    assert_ok(gguf_get_u32(g, key, &v, err));
    return v;
}

static void check_token(const struct gguf *g, uint32_t id, const char *text, int32_t type)
{
    const char *s;
    size_t n;
    const void *array;
    uint64_t count;
    assert_ok(gguf_get_string_at(g, "tokenizer.ggml.tokens", id, &s, &n, err));
    assert_string_equal(s, text);
    assert_ok(gguf_get_array(g, "tokenizer.ggml.token_type", GGUF_I32, &array, &count, err));
    assert_true(id < count);
    assert_int_equal(((const int32_t *)array)[id], type);
}

static void demo_keys(void **state)
{
    (void)state;
    static const uint32_t file_types[] = {0, 1, 32, 7, 2};
    for (size_t i = 0; i < N_TYPES; i++) {
        struct gguf *g;
        bool b;
        const char *s;
        size_t n;
        assert_ok(convert(unit_source("models/demo"), unit_path("m.gguf"), types[i], NULL, err));
        assert_ok(gguf_open(unit_path("m.gguf"), false, &g, err));
        assert_int_equal(u32(g, "general.file_type"), file_types[i]);
        assert_int_equal(u32(g, "general.quantization_version"), 2);
        assert_int_equal(gguf_get_string(g, "general.name", &s, &n, NULL), -ENOENT);
        assert_int_equal(u32(g, "tokenizer.ggml.bos_token_id"), 2);
        assert_int_equal(u32(g, "tokenizer.ggml.eos_token_id"), 1);
        assert_int_equal(u32(g, "tokenizer.ggml.eot_token_id"), 9);
        assert_int_equal(u32(g, "tokenizer.ggml.unknown_token_id"), 3);
        assert_int_equal(u32(g, "tokenizer.ggml.padding_token_id"), 0);
        assert_ok(gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &b, err));
        assert_true(b);
        assert_ok(gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &b, err));
        assert_false(b);
        assert_ok(gguf_get_string(g, "tokenizer.chat_template", &s, &n, err));
        assert_non_null(strstr(s, "<start_of_turn>"));
        check_token(g, 0, "<pad>", 3);
        check_token(g, 3, "<unk>", 2);
        check_token(g, 5, "<unused0>", 3);
        check_token(g, 8, "<start_of_turn>", 3);
        check_token(g, 10, "\n", 4);
        check_token(g, 12, "  ", 4); /* plain spaces, as llama.cpp's converter stores user-defined ones */
        assert_int_equal(gguf_get_string(g, "gemma3.rope.scaling.type", &s, &n, NULL), -ENOENT);
        gguf_close(g);
    }
}

static void convert_synthetic(const struct checkpoint *c, struct gguf **ret)
{
    checkpoint_make(unit_path("in"), c);
    assert_ok(convert(unit_path("in"), unit_path("m.gguf"), QUANT_Q8_0, NULL, err));
    assert_ok(gguf_open(unit_path("m.gguf"), false, ret, err));
}

static void tokenizer_without_config(void **state)
{
    (void)state;
    struct gguf *g;
    const char *s;
    convert_synthetic(&(struct checkpoint){0}, &g);
    assert_int_equal(u32(g, "tokenizer.ggml.bos_token_id"), 2);
    assert_int_equal(u32(g, "tokenizer.ggml.eot_token_id"), 9);
    assert_int_equal(gguf_get_string(g, "tokenizer.chat_template", &s, NULL, NULL), -ENOENT);
    check_token(g, 8, "<start_of_turn>", 4);
    check_token(g, 5, "<unused0>", 3);
    gguf_close(g);
}

static void tokenizer_config_rules(void **state)
{
    (void)state;
    struct gguf *g;
    const char *s;
    convert_synthetic(&(struct checkpoint){.tokenizer_config =
                                               "{\"added_tokens_decoder\":{\"5\":{\"content\":\"<tool>\",\"special\":true},"
                                               "\"9999\":{\"content\":\"<image_soft_token>\"}},"
                                               "\"eos_token\":{\"content\":\"<end_of_turn>\"},"
                                               "\"chat_template\":[{\"name\":\"x\",\"template\":\"X\"},"
                                               "{\"name\":\"default\",\"template\":\"D\"}]}"},
                      &g);
    check_token(g, 5, "<tool>", 3);
    assert_int_equal(u32(g, "tokenizer.ggml.eos_token_id"), 9);
    assert_ok(gguf_get_string(g, "tokenizer.chat_template", &s, NULL, err));
    assert_string_equal(s, "D");
    gguf_close(g);
    unit_write(unit_path("in/chat_template.jinja"), "J", 1);
    unit_write(unit_path("in/tokenizer_config.json"), "{\"eot_token\":null,\"add_bos_token\":false}", 40);
    bool add;
    assert_ok(convert(unit_path("in"), unit_path("m.gguf"), QUANT_Q8_0, NULL, err));
    assert_ok(gguf_open(unit_path("m.gguf"), false, &g, err));
    assert_ok(gguf_get_string(g, "tokenizer.chat_template", &s, NULL, err));
    assert_string_equal(s, "J");
    assert_ok(gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &add, err));
    assert_false(add);
    gguf_close(g);
}

/* ---- unusual and broken checkpoints ---- */

static void rows_without_tokens(void **state)
{
    (void)state;
    struct gguf *g;
    checkpoint_make(unit_path("in"), &(struct checkpoint){0});
    struct bytes b = unit_read(unit_path("in/config.json"));
    char *at = strstr((char *)b.data, "\"vocab_size\":512");
    assert_non_null(at);
    memcpy(at, "\"vocab_size\":500", 16);
    unit_write(unit_path("in/config.json"), b.data, b.n);
    assert_err(convert(unit_path("in"), unit_path("m.gguf"), QUANT_BF16, NULL, err), -EINVAL,
               "'model.embed_tokens.weight' has 2 dimensions, 512 x 32; config.json means 500 x 32");
    unit_free(&b);
    /* the other way round: a tokenizer with fewer pieces than rows; the last piece is cut off its model */
    checkpoint_make(unit_path("in"), &(struct checkpoint){0});
    struct bytes t = unit_read(unit_path("in/tokenizer.model")), shorter = {0};
    size_t pos = 0, n_pieces = 0;
    while (pos < t.n) { /* top-level fields of this file all have lengths below 128, except the settings at its end */
        size_t n = t.data[pos + 1], head = 2;
        if (n >= 128) {
            n = (n & 127) | (size_t)t.data[pos + 2] << 7;
            head = 3;
        }
        if (t.data[pos] != 0x0a || ++n_pieces <= 510)
            unit_put(&shorter, t.data + pos, head + n);
        pos += head + n;
    }
    assert_int_equal(n_pieces, 512);
    unit_write(unit_path("in/tokenizer.model"), shorter.data, shorter.n);
    assert_ok(convert(unit_path("in"), unit_path("m.gguf"), QUANT_BF16, NULL, err));
    assert_ok(gguf_open(unit_path("m.gguf"), false, &g, err));
    check_token(g, 510, "[PAD510]", 5);
    check_token(g, 511, "[PAD511]", 5);
    gguf_close(g);
    unit_free(&t);
    unit_free(&shorter);
}

static void heads(void **state)
{
    (void)state;
    struct gguf *g;
    convert_synthetic(&(struct checkpoint){.head = CHECKPOINT_SAME_HEAD}, &g);
    assert_null(gguf_find(g, "output.weight"));
    gguf_close(g);
    convert_synthetic(&(struct checkpoint){.head = CHECKPOINT_OTHER_HEAD, .config = ",\"tie_word_embeddings\":false"}, &g);
    assert_non_null(gguf_find(g, "output.weight"));
    assert_int_equal(gguf_n_tensors(g), 16);
    gguf_close(g);
}

#define Q "model.layers.0.self_attn.q_proj.weight"
static const struct {
    struct checkpoint c;
    int type, code;
    const char *part;
} refused[] = {
    {{.skip = "model.norm.weight"}, QUANT_F32, -EINVAL, "tensor 'model.norm.weight' is missing"},
    {{.skip = Q}, QUANT_F32, -EINVAL, "tensor '" Q "' is missing; expected a complete Gemma 3 checkpoint of 1 layers"},
    {{.skip = "model.embed_tokens.weight"}, QUANT_F32, -EINVAL, "under 0 of the names"},
    {{.extra = "language_model.model.embed_tokens.weight"}, QUANT_F32, -EINVAL, "under 2 of the names"},
    {{.extra = "model.layers.1.input_layernorm.weight"}, QUANT_F32, -ENOTSUP, "is not part of a Gemma 3 text model of 1 layers"},
    {{.extra = "base_model.lora_A.weight"}, QUANT_F32, -ENOTSUP, "'base_model.lora_A.weight' is not part"},
    {{.f64 = Q}, QUANT_F32, -ENOTSUP, "tensor '" Q "' has type F64; expected F32, F16 or BF16"},
    {{.poke = Q, .poke_bits = 0x7fc0}, QUANT_Q4_0, -EDOM, "tensor '" Q "', row 31, column 31 is nan"},
    {{.poke = Q, .poke_bits = 0xff80}, QUANT_BF16, -EDOM, "row 31, column 31 is -inf"},
    {{.poke = Q, .poke_bits = 0x4780},
     QUANT_F16,
     -EDOM,
     "row 31, column 31 is 65536; expected a finite number that type f16 can hold"},
    {{.poke = Q, .poke_bits = 0x4b00}, QUANT_Q8_0, -EDOM, "that type q8_0 can hold"},
    {{.poke = "model.norm.weight", .poke_bits = 0x7f80}, QUANT_F32, -EDOM, "tensor 'model.norm.weight', row 0, column 31 is inf"},
    {{.cols = 48}, QUANT_Q8_0, -ENOTSUP, "has rows of 48; type q8_0 needs a multiple of 32 (choose --type bf16)"},
    {{.head = CHECKPOINT_OTHER_HEAD}, QUANT_F32, -EINVAL, "tensor 'lm_head.weight' differs from 'model.embed_tokens.weight'"},
    {{.config = ",\"tie_word_embeddings\":false"}, QUANT_F32, -EINVAL, "'lm_head.weight' is missing"},
    {{.config = ",\"rms_norm_eps\":-1"}, QUANT_F32, -EINVAL, "config.json': key 'rms_norm_eps'"},
    {{.tokenizer_config = "{\"bos_token\":\"<none>\"}"}, QUANT_F32, -EINVAL, "'bos_token' is '<none>', which is not a token"},
    {{.tokenizer_config = "{\"added_tokens_decoder\":{\"x\":{}}}"}, QUANT_F32, -EINVAL, "'added_tokens_decoder.x'"},
    {{.tokenizer_config = "{\"added_tokens_decoder\":7}"}, QUANT_F32, -EINVAL, "'added_tokens_decoder' is not an object"},
    {{.tokenizer_config = "{"}, QUANT_F32, -EINVAL, "tokenizer_config.json': JSON"},
};

static void refusals_leave_nothing(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        checkpoint_make(unit_path("in"), &refused[i].c);
        assert_err(convert(unit_path("in"), unit_path("m.gguf"), refused[i].type, NULL, err), refused[i].code, refused[i].part);
        assert_int_equal(unit_count_files(), 1); /* the checkpoint */
        if (refused[i].c.tokenizer_config)
            unlink(unit_path("in/tokenizer_config.json"));
    }
    checkpoint_make(unit_path("in"), &(struct checkpoint){.cols = 48});
    assert_ok(convert(unit_path("in"), unit_path("m.gguf"), QUANT_BF16, NULL, err));
}

static void cut_files(void **state)
{
    (void)state;
    static const char *const names[] = {"model-00002-of-00002.safetensors", "tokenizer.model", "config.json"};
    for (size_t i = 0; i < 3; i++) {
        char name[128];
        snprintf(name, sizeof(name), "in%zu", i);
        copy_tiny(name, "tests/golden/tiny-27b/config.json");
        snprintf(name, sizeof(name), "in%zu/%s", i, names[i]);
        struct bytes b = unit_read(unit_path(name));
        unit_write(unit_path(name), b.data, b.n - 100);
        unit_free(&b);
        struct err e = {0};
        name[3] = '\0';
        assert_true(convert(unit_path(name), unit_path("m.gguf"), QUANT_Q4_0, NULL, &e) < 0);
        if (!strstr(e.text, names[i]))
            fail_msg("'%s' does not name '%s'", e.text, names[i]);
        assert_int_equal(unit_count_files(), i + 1);
    }
}

static void output_is_protected(void **state)
{
    (void)state;
    const char *demo = unit_source("models/demo");
    unit_write(unit_path("precious"), "not a model", 11);
    assert_err(convert(demo, unit_path("precious"), QUANT_Q4_0, NULL, err), -EEXIST, "exists and is not a GGUF file");
    assert_err(convert(demo, unit_path("."), QUANT_Q4_0, NULL, err), -EISDIR, "output");
    assert_err(convert(demo, unit_path("no/m.gguf"), QUANT_Q4_0, NULL, err), -ENOENT, "no/m.gguf': folder");
    assert_err(convert(unit_path("none"), unit_path("m.gguf"), QUANT_Q4_0, NULL, err), -ENOENT,
               "expected the folder of a checkpoint");
    unit_write(unit_path("old.gguf"), "GGUF and so on", 14);
    assert_ok(convert(demo, unit_path("old.gguf"), QUANT_Q4_0, NULL, err));
    assert_int_equal(unit_count_files(), 2);
}

static volatile sig_atomic_t stop;
static uint64_t last_done, last_total;

static void stop_early(void *ctx, uint64_t done, uint64_t total, const char *tensor)
{
    (void)tensor;
    assert_true(done > last_done && done <= total);
    last_done = done;
    last_total = total;
    if (*(bool *)ctx && done > total / 8) /* what is converted by then is still written */
        stop = 1;
}

/* What is done stays, and the same call goes on from there to the same bytes. */
static void interrupted(void **state)
{
    (void)state;
    struct convert_result res;
    bool early = true;
    struct convert_options o = {.in = unit_source("models/demo"),
                                .out = "",
                                .recipe = {.type = "f32"},
                                .n_threads = 1,
                                .alignment = 4096,
                                .group_bytes = 1 << 20,
                                .stop = &stop,
                                .progress = stop_early,
                                .ctx = &early};
    assert_ok(convert(o.in, unit_path("whole.gguf"), QUANT_F32, NULL, err));
    o.out = unit_path("m.gguf");
    stop = 0;
    last_done = 0;
    assert_err(convert_run(&o, &res, err), -ECANCELED, "interrupted; what is done is kept beside");
    assert_true(last_done > last_total / 8 && last_done < last_total);
    assert_int_equal(unit_count_files(), 3); /* whole.gguf, m.gguf.partial and its journal */
    early = false;
    stop = 0;
    last_done = 0;
    assert_ok(convert_run(&o, &res, err));
    assert_true(res.bytes_kept > last_total / 8);
    assert_int_equal(last_done, last_total);
    assert_int_equal(unit_count_files(), 2);
    assert_same_file(unit_path("whole.gguf"), unit_path("m.gguf"));
}

/* ---- the program ---- */

static int run(const char *arguments, struct bytes *out, struct bytes *errors)
{
    char command[4096];
    snprintf(command, sizeof(command), "%s/quantizer %s >%s 2>%s", TANDEM_BIN_DIR, arguments, unit_path("stdout"),
             unit_path("stderr"));
    int status = system(command);
    *out = unit_read(unit_path("stdout"));
    *errors = unit_read(unit_path("stderr"));
    unlink(unit_path("stdout"));
    unlink(unit_path("stderr"));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void check_run(const char *arguments, int status, const char *out_part, const char *errors_part)
{
    struct bytes out, errors;
    int got = run(arguments, &out, &errors);
    if (got != status || (out_part ? !strstr((char *)out.data, out_part) : out.n > 0) ||
        (errors_part ? !strstr((char *)errors.data, errors_part) : errors.n > 0))
        fail_msg("quantizer %s: %d\n%s\n%s", arguments, got, (char *)out.data, (char *)errors.data);
    unit_free(&out);
    unit_free(&errors);
}

static void command_line(void **state)
{
    (void)state;
    char arguments[2048];
    check_run("--help", 0, "Usage: quantizer", NULL);
    check_run("--version", 0, "quantizer (Tandem) " TANDEM_VERSION, NULL);
    check_run("", 2, NULL, "--in is missing");
    check_run("--in x", 2, NULL, "--out is missing");
    check_run("--in x --out y z", 2, NULL, "unexpected argument 'z'");
    check_run("--in x --out y --type q3_K", 2, NULL, "--type 'q3_K'; expected f32, f16, bf16, q8_0, q6_k");
    check_run("--in x --out y --threads 0", 2, NULL, "--threads '0'");
    check_run("--in x --out y --alignment 33", 2, NULL, "--alignment '33'");
    check_run("--wrong", 2, NULL, "Usage: quantizer");
    snprintf(arguments, sizeof(arguments), "--in /nonexistent --out %s", unit_path("m.gguf"));
    check_run(arguments, 1, NULL, "quantizer: input '/nonexistent'; expected the folder");
    assert_int_equal(unit_count_files(), 0);
    snprintf(arguments, sizeof(arguments), "--in %s --out %s --type Q4_0", unit_source("tests/golden/tiny-27b-multimodal"),
             unit_path("m.gguf"));
    check_run(arguments, 0, "106 tensors of 8 layers, 6 vision tensors skipped", NULL);
    snprintf(arguments, sizeof(arguments), "--in %s --out %s --type Q4_0 --no-search --alignment 4096",
             unit_source("tests/golden/tiny-27b"), unit_path("m.gguf"));
    check_run(arguments, 0, "0 vision tensors skipped", NULL);
    assert_ok(convert(unit_source("tests/golden/tiny-27b"), unit_path("n.gguf"), QUANT_Q4_0, NULL, err));
    assert_same_file(unit_path("m.gguf"), unit_path("n.gguf"));
    snprintf(arguments, sizeof(arguments), "--in %s --out %s --dry-run", unit_source("models/demo"), unit_path("dry.gguf"));
    check_run(arguments, 0, "blk.0.attn_q.weight", NULL);
    check_run(arguments, 0, "output: ", NULL);
    assert_int_equal(unit_count_files(), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(every_tensor),
        UNIT_TEST(layouts_give_the_same_file),
        UNIT_TEST(threads_do_not_matter),
        UNIT_TEST(demo_keys),
        UNIT_TEST(tokenizer_without_config),
        UNIT_TEST(tokenizer_config_rules),
        UNIT_TEST(rows_without_tokens),
        UNIT_TEST(heads),
        UNIT_TEST(refusals_leave_nothing),
        UNIT_TEST(cut_files),
        UNIT_TEST(output_is_protected),
        UNIT_TEST(interrupted),
        UNIT_TEST(command_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
