/* SPDX-License-Identifier: MIT
 * quantizer/hf and quantizer/spm: config.json in every style, each refusal, and broken tokenizer models. One thread. */
#include "tests/unit/unit_test.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>

#include "quantizer/hf.h"
#include "quantizer/spm.h"

#define ARCH "\"architectures\":[\"Gemma3ForCausalLM\"]"

static int parse(const char *json, struct hf_config *c, struct err *e)
{
    return hf_config_parse(json, strlen(json), c, e);
}

static void defaults(void **state)
{
    (void)state;
    struct hf_config c;
    assert_ok(parse("{" ARCH "}", &c, err));
    const struct hparams *h = &c.h;
    assert_int_equal(h->n_layers, 26);
    assert_int_equal(h->hidden, 2304);
    assert_int_equal(h->ffn, 9216);
    assert_int_equal(h->n_heads, 8);
    assert_int_equal(h->n_kv_heads, 4);
    assert_int_equal(h->head_dim, 256);
    assert_int_equal(h->vocab, 262208);
    assert_int_equal(h->window, 4096);
    assert_int_equal(h->global_every, 6);
    assert_int_equal(h->context_max, 131072);
    assert_true(h->eps == 1e-6f && h->rope_base_global == 1e6f && h->rope_base_local == 1e4f);
    assert_true(h->rope_factor_global == 1 && h->attn_scale == 0.0625f);
    assert_true(c.tied);
}

static void check_tiny(const struct hf_config *c)
{
    assert_int_equal(c->h.n_layers, 8);
    assert_int_equal(c->h.window, 32);
    assert_int_equal(c->h.vocab, 512);
    assert_true(c->h.rope_factor_global == 8);
    assert_true(c->h.attn_scale == (float)(1 / sqrt(40)));
}

static void styles_agree(void **state)
{
    (void)state;
    static const char *const names[] = {"tests/golden/tiny-27b/config.json", "tests/golden/tiny-27b/config_v5.json",
                                        "tests/golden/tiny-27b-multimodal/config.json"};
    struct hf_config first, c;
    for (size_t i = 0; i < 3; i++) {
        struct bytes b = unit_read(unit_source(names[i]));
        assert_ok(hf_config_parse((const char *)b.data, b.n, &c, err));
        unit_free(&b);
        check_tiny(&c);
        if (i == 0)
            first = c;
        assert_memory_equal(&c.h, &first.h, sizeof(c.h));
    }
    assert_ok(hf_config_load(unit_source("models/demo"), &c, err));
    assert_int_equal(c.h.n_layers, 12);
    assert_true(c.h.attn_scale == 0.125f);
}

static void accepted(void **state)
{
    (void)state;
    struct hf_config c;
    assert_ok(
        parse("{\"model_type\":\"gemma3_text\",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4},\"head_dim\":null}", &c, err));
    assert_true(c.h.rope_factor_global == 4);
    assert_int_equal(c.h.head_dim, 256);
    assert_ok(parse("{\"model_type\":\"gemma3\",\"tie_word_embeddings\":false,\"text_config\":{\"query_pre_attn_scalar\":168.0}}",
                    &c, err));
    assert_true(c.h.attn_scale == (float)(1 / sqrt(168)));
    assert_false(c.tied);
    assert_ok(
        parse("{" ARCH ",\"rope_scaling\":null,\"sliding_window_pattern\":6,\"use_bidirectional_attention\":false}", &c, err));
}

static void refusals(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        int code;
        const char *part;
    } cases[] = {
        {"", -EINVAL, "JSON"},
        {"[1]", -ENOTSUP, "architecture is '(none)'"},
        {"{\"architectures\":[\"Gemma2ForCausalLM\"]}", -ENOTSUP,
         "architecture is 'Gemma2ForCausalLM'; expected Gemma3ForCausalLM"},
        {"{\"architectures\":[\"Gemma3ForConditionalGeneration\"]}", -EINVAL, "key 'text_config' is missing"},
        {"{" ARCH ",\"hidden_size\":\"256\"}", -EINVAL, "key 'hidden_size' is \"256\"; expected a whole number, 16 to 65536"},
        {"{" ARCH ",\"hidden_size\":1}", -EINVAL, "key 'hidden_size' is 1"},
        {"{" ARCH ",\"num_hidden_layers\":1e3}", -EINVAL, "'num_hidden_layers'"},
        {"{" ARCH ",\"vocab_size\":-1}", -EINVAL, "'vocab_size' is -1"},
        {"{" ARCH ",\"num_key_value_heads\":3}", -EINVAL, "'num_key_value_heads' is 3; expected a divisor"},
        {"{" ARCH ",\"head_dim\":40}", -ENOTSUP, "'head_dim' is 40; expected a multiple of 16"},
        {"{" ARCH ",\"rms_norm_eps\":0}", -EINVAL, "'rms_norm_eps' is 0; expected a positive number"},
        {"{" ARCH ",\"rms_norm_eps\":1e300}", -EINVAL, "'rms_norm_eps'"},
        {"{" ARCH ",\"rms_norm_eps\":1e-300}", -EINVAL, "'rms_norm_eps'"},
        {"{" ARCH ",\"query_pre_attn_scalar\":-1}", -EINVAL, "'query_pre_attn_scalar'"},
        {"{" ARCH ",\"attn_logit_softcapping\":50.0}", -ENOTSUP, "'attn_logit_softcapping' is 50.0"},
        {"{" ARCH ",\"final_logit_softcapping\":30.0}", -ENOTSUP, "'final_logit_softcapping'"},
        {"{" ARCH ",\"attention_bias\":true}", -ENOTSUP, "'attention_bias'"},
        {"{" ARCH ",\"use_bidirectional_attention\":true}", -ENOTSUP, "'use_bidirectional_attention'"},
        {"{" ARCH ",\"quantization_config\":{\"bits\":4}}", -ENOTSUP, "'quantization_config'"},
        {"{" ARCH ",\"hidden_activation\":\"silu\"}", -ENOTSUP, "'hidden_activation' is \"silu\"; expected \"gelu_pytorch_tanh\""},
        {"{" ARCH ",\"tie_word_embeddings\":1}", -EINVAL, "'tie_word_embeddings'"},
        {"{" ARCH ",\"sliding_window_pattern\":4}", -ENOTSUP, "'sliding_window_pattern' is 4; expected 6"},
        {"{" ARCH ",\"layer_types\":[\"full_attention\"]}", -EINVAL, "'layer_types'"},
        {"{" ARCH ",\"num_hidden_layers\":2,\"layer_types\":[\"sliding_attention\",\"full_attention\"]}", -ENOTSUP,
         "'layer_types[1]' is \"full_attention\"; expected 'sliding_attention'"},
        {"{" ARCH ",\"num_hidden_layers\":1,\"layer_types\":[7]}", -ENOTSUP, "'layer_types[0]' is 7"},
        {"{" ARCH ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":8}}", -ENOTSUP, "'rope_scaling.rope_type' is \"yarn\""},
        {"{" ARCH ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":0}}", -EINVAL, "'rope_scaling.factor'"},
        {"{" ARCH ",\"rope_scaling\":8}", -EINVAL, "'rope_scaling' is 8"},
        {"{" ARCH ",\"rope_parameters\":{\"rope_theta\":1}}", -ENOTSUP, "'rope_parameters'"},
        {"{" ARCH ",\"rope_parameters\":{\"full_attention\":{}}}", -EINVAL, "'rope_parameters.sliding_attention' is absent"},
        {"{" ARCH ",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":\"x\"},\"sliding_attention\":{}}}", -EINVAL,
         "'rope_parameters.full_attention.rope_theta'"},
        {"{" ARCH ",\"rope_parameters\":{\"full_attention\":{},\"sliding_attention\":{\"rope_type\":\"linear\",\"factor\":2}}}",
         -ENOTSUP, "local layers of Gemma 3 have none"},
        {"{\"model_type\":\"gemma3\",\"text_config\":{\"hidden_size\":0}}", -EINVAL, "'text_config.hidden_size' is 0"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct hf_config c = {.h = {.n_layers = 77}};
        assert_err(parse(cases[i].json, &c, err), cases[i].code, cases[i].part);
        assert_int_equal(c.h.n_layers, 77); /* not touched */
    }
}

static void broken_config(void **state)
{
    (void)state;
    struct bytes b = unit_read(unit_source("tests/golden/tiny-27b/config_v5.json"));
    struct hf_config c;
    for (size_t n = 0; n + 2 < b.n; n++) {
        struct err e = {0};
        if (hf_config_parse((const char *)b.data, n, &c, &e) >= 0 || !e.text[0])
            fail_msg("cut to %zu was taken", n);
    }
    for (size_t i = 0; i < b.n; i++) {
        struct err e = {0};
        b.data[i] ^= 0x15;
        int r = hf_config_parse((const char *)b.data, b.n, &c, &e);
        b.data[i] ^= 0x15;
        assert_true((r == 0) == (e.text[0] == '\0'));
    }
    unit_free(&b);
}

static void files(void **state)
{
    (void)state;
    struct hf_config c;
    json_t *j;
    char *text;
    size_t n;
    assert_err(hf_config_load(unit_path("."), &c, err), -ENOENT, "config.json");
    unit_write(unit_path("config.json"), "{\"architectures\":[\"X\"]}", 23);
    assert_err(hf_config_load(unit_path("."), &c, err), -ENOTSUP, "config.json': architecture is 'X'");
    assert_err(hf_load_json(unit_path("."), "none.json", &j, err), -ENOENT, "none.json");
    unit_write(unit_path("a.json"), "[]", 2);
    assert_err(hf_load_json(unit_path("."), "a.json", &j, err), -EINVAL, "a.json' is not a JSON object");
    unit_write(unit_path("a.json"), "{\"a\":1,\"a\":2}", 13);
    assert_err(hf_load_json(unit_path("."), "a.json", &j, err), -EINVAL, "duplicate");
    assert_ok(hf_load_text(unit_path("."), "a.json", &text, &n, err));
    assert_string_equal(text, "{\"a\":1,\"a\":2}");
    free(text);
}

/* ---- SentencePiece ---- */

static void real_tokenizer(void **state)
{
    (void)state;
    struct spm s;
    struct bytes b = unit_read(unit_source("models/demo/tokenizer.model"));
    assert_ok(spm_parse(b.data, b.n, &s, err));
    assert_int_equal(s.n, 4096);
    assert_int_equal(s.unk, 3);
    assert_int_equal(s.bos, 2);
    assert_int_equal(s.eos, 1);
    assert_int_equal(s.pad, 0);
    assert_int_equal(s.pieces[3].type, SPM_UNKNOWN);
    assert_int_equal(s.pieces[2].type, SPM_CONTROL);
    assert_int_equal(s.pieces[8].type, SPM_USER_DEFINED);
    assert_int_equal(s.pieces[8].n, 15);
    assert_memory_equal(s.pieces[8].text, "<start_of_turn>", 15);
    unsigned bytes = 0;
    for (uint32_t i = 0; i < s.n; i++)
        bytes += s.pieces[i].type == SPM_BYTE;
    assert_int_equal(bytes, 256);
    spm_fini(&s);
    unit_free(&b);
}

static void broken_tokenizer(void **state)
{
    (void)state;
    struct spm s;
    struct bytes b = unit_read(unit_source("tests/golden/tiny-27b/tokenizer.model"));
    unsigned refused = 0;
    for (size_t n = 0; n < b.n; n++) {
        uint8_t *copy = malloc(n + 1); /* of its own size, for the sanitizer */
        struct err e = {0};
        memcpy(copy, b.data, n);
        int r = spm_parse(copy, n, &s, &e);
        assert_true((r == 0) == (e.text[0] == '\0'));
        if (r == 0)
            spm_fini(&s);
        refused += r < 0;
        free(copy);
    }
    assert_true(refused + 8 > b.n); /* a cut between two last fields leaves a smaller valid model */
    for (size_t i = 0; i < b.n; i++) {
        struct err e = {0};
        b.data[i] ^= 0x81;
        int r = spm_parse(b.data, b.n, &s, &e);
        b.data[i] ^= 0x81;
        assert_true((r == 0) == (e.text[0] == '\0'));
        if (r == 0)
            spm_fini(&s);
    }
    unit_free(&b);
}

#define BPE "\x12\x02\x18\x02"              /* trainer_spec {model_type: 2} */
#define IDENTITY "\x1a\x04\x18\x00\x20\x00" /* normalizer_spec {add_dummy_prefix: 0, remove_extra_whitespaces: 0} */
#define PIECES         \
    "\x0a\x03\x0a\x01" \
    "a"                \
    "\x0a\x03\x0a\x01" \
    "b"                \
    "\x0a\x03\x0a\x01" \
    "c"

static void tokenizer_kinds(void **state)
{
    (void)state;
    static const struct {
        const char *data;
        size_t n;
        int code;
        const char *part;
    } cases[] = {
#define CASE(s) s, sizeof(s) - 1
        {CASE(PIECES BPE IDENTITY), 0, NULL},
        {CASE(BPE IDENTITY), -EPROTO, "no pieces"},
        {CASE(PIECES IDENTITY), -ENOTSUP, "model type 1; expected 2 (BPE)"},
        {CASE(PIECES BPE), -ENOTSUP, "dummy prefix 1"},
        {CASE(PIECES BPE "\x1a\x07\x12\x01x\x18\x00\x20\x00"), -ENOTSUP, "character map 1"},
        {CASE("\x0a\x02\x0a\x00" BPE IDENTITY), -EPROTO, "piece at offset 2 has 0 bytes"},
        {CASE("\x0a\x05\x0a\x01"
              "a"
              "\x18\x07" BPE IDENTITY),
         -EPROTO, "type 7"},
        {CASE("\x0a\x08\x0a\x01"
              "a"
              "\x15\x00\x00\xc0\x7f" BPE IDENTITY),
         -EPROTO, "a finite score"},
        {CASE("\x0a\x03\x0a\x01"
              "a" BPE IDENTITY),
         -EPROTO, "special id"},
        {CASE(PIECES BPE IDENTITY "\x0b"), -EPROTO, "is broken"},
        {CASE(PIECES BPE IDENTITY "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), -EPROTO, "is broken"},
        {CASE(PIECES BPE IDENTITY "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), -EPROTO, "is broken"},
        {CASE(PIECES BPE IDENTITY "\x02\x00"), -EPROTO, "is broken"},
        {CASE("PK\x03\x04"), -EPROTO, "is broken"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct spm s = {.n = 99};
        if (cases[i].code < 0) {
            assert_err(spm_parse((const uint8_t *)cases[i].data, cases[i].n, &s, err), cases[i].code, cases[i].part);
            assert_int_equal(s.n, 99);
        } else {
            assert_ok(spm_parse((const uint8_t *)cases[i].data, cases[i].n, &s, err));
            assert_int_equal(s.n, 3);
            spm_fini(&s);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(defaults),       UNIT_TEST(styles_agree),     UNIT_TEST(accepted),
                                       UNIT_TEST(refusals),       UNIT_TEST(broken_config),    UNIT_TEST(files),
                                       UNIT_TEST(real_tokenizer), UNIT_TEST(broken_tokenizer), UNIT_TEST(tokenizer_kinds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
