/* SPDX-License-Identifier: MIT
 * Reads the JSON files of a checkpoint; called by the converter before anything is written. Owns nothing after it returns. The
 * reader of config.json keeps the first error and goes on with harmless values, so that each key is one line here. Key names and
 * defaults: transformers, models/gemma3/configuration_gemma3.py (4.50 and 5.x). */
#include "quantizer/hf.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"

#define MAX_FILE (64u << 20)
#define PATTERN 6 /* every sixth layer is global; GGUF readers assume it */

struct reader {
    const json_t *c;    /* the object being read */
    const char *prefix; /* of its keys in messages: "", "text_config." */
    struct err *err;
    int r;
};

static const json_t *get(const struct reader *p, const char *key)
{
    const json_t *v = json_object_get(p->c, key);
    return json_is_null(v) ? NULL : v; /* null means the default, as in Python */
}

static void refuse(struct reader *p, int code, const char *key, const json_t *found, const char *expected)
{
    if (p->r < 0)
        return;
    auto_free char *text = json_dumps(found, JSON_ENCODE_ANY | JSON_COMPACT);
    p->r = err_set(p->err, code, "key '%s%s' is %.60s; expected %s", p->prefix, key, text ? text : "absent", expected);
}

static double number(struct reader *p, const char *key, double absent)
{
    const json_t *v = get(p, key);
    if (!v)
        return absent;
    double d = json_number_value(v);
    if (json_is_number(v) && d > 0 && isfinite((float)d) && (float)d > 0)
        return d;
    refuse(p, -EINVAL, key, v, "a positive number");
    return absent;
}

static uint32_t count(struct reader *p, const char *key, uint32_t absent, uint32_t lo, uint32_t hi)
{
    const json_t *v = get(p, key);
    char expected[64];
    if (!v)
        return absent;
    if (json_is_integer(v) && json_integer_value(v) >= lo && json_integer_value(v) <= hi)
        return (uint32_t)json_integer_value(v);
    snprintf(expected, sizeof(expected), "a whole number, %u to %u", lo, hi);
    refuse(p, -EINVAL, key, v, expected);
    return absent;
}

/* A key that must be absent, null or false: what it switches on does not exist here. */
static void must_be_off(struct reader *p, const char *key)
{
    const json_t *v = get(p, key);
    if (v && !json_is_false(v))
        refuse(p, -ENOTSUP, key, v, "null or false (not supported)");
}

static bool flag(struct reader *p, const char *key, bool absent)
{
    const json_t *v = get(p, key);
    if (v && !json_is_boolean(v))
        refuse(p, -EINVAL, key, v, "true or false");
    return v ? json_is_true(v) : absent;
}

static void sizes(struct reader *p, struct hparams *h)
{
    h->n_layers = count(p, "num_hidden_layers", 26, 1, 512);
    h->hidden = count(p, "hidden_size", 2304, 16, 65536);
    h->ffn = count(p, "intermediate_size", 9216, 16, 524288);
    h->n_heads = count(p, "num_attention_heads", 8, 1, 512);
    h->n_kv_heads = count(p, "num_key_value_heads", 4, 1, 512);
    h->head_dim = count(p, "head_dim", 256, 16, 1024);
    h->vocab = count(p, "vocab_size", 262208, 1, 4194304);
    h->window = count(p, "sliding_window", 4096, 1, UINT32_MAX);
    h->context_max = count(p, "max_position_embeddings", 131072, 1, UINT32_MAX);
    if (p->r == 0 && h->n_heads % h->n_kv_heads)
        refuse(p, -EINVAL, "num_key_value_heads", get(p, "num_key_value_heads"), "a divisor of num_attention_heads");
    if (p->r == 0 && h->head_dim % 16)
        refuse(p, -ENOTSUP, "head_dim", get(p, "head_dim"), "a multiple of 16");
}

static const char *layer_type(uint32_t layer)
{
    return (layer + 1) % PATTERN ? "sliding_attention" : "full_attention";
}

static void layer_pattern(struct reader *p, const struct hparams *h)
{
    static const char *const keys[] = {"sliding_window_pattern", "_sliding_window_pattern"};
    const json_t *types = get(p, "layer_types");
    if (!types) {
        for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
            if (get(p, keys[i]) && json_integer_value(get(p, keys[i])) != PATTERN)
                refuse(p, -ENOTSUP, keys[i], get(p, keys[i]), "6: GGUF has no key for another pattern of global layers");
        }
        return;
    }
    if (json_array_size(types) != h->n_layers)
        refuse(p, -EINVAL, "layer_types", types, "one string for each of num_hidden_layers");
    for (uint32_t i = 0; p->r == 0 && i < h->n_layers; i++) {
        const json_t *v = json_array_get(types, i);
        char key[32], expected[96];
        if (json_is_string(v) && strcmp(json_string_value(v), layer_type(i)) == 0)
            continue;
        snprintf(key, sizeof(key), "layer_types[%u]", i);
        snprintf(expected, sizeof(expected), "'%s': GGUF has no key for another pattern than every sixth layer global",
                 layer_type(i));
        refuse(p, -ENOTSUP, key, v, expected);
    }
}

/* The factor of linear scaling in an object {rope_type | type, factor}; 1 when there is none. */
static double scaling(struct reader *outer, const char *key, const json_t *object)
{
    char prefix[96];
    snprintf(prefix, sizeof(prefix), "%s%s.", outer->prefix, key);
    struct reader p = {.c = object, .prefix = prefix, .err = outer->err};
    const char *type_key = get(&p, "rope_type") ? "rope_type" : "type";
    const json_t *type = get(&p, type_key);
    const char *name = type ? json_string_value(type) : "default";
    double factor = 1;
    if (name && strcmp(name, "linear") == 0)
        factor = number(&p, "factor", 1);
    else if (!name || strcmp(name, "default") != 0)
        refuse(&p, -ENOTSUP, type_key, type, "\"linear\" or \"default\"");
    if (outer->r == 0)
        outer->r = p.r;
    return factor;
}

/* rope_parameters of transformers 5: one object per kind of layer. */
static void rope_by_kind(struct reader *outer, struct hparams *h, const json_t *params)
{
    static const char *const keys[] = {"full_attention", "sliding_attention"};
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        const json_t *object = json_object_get(params, keys[i]);
        char key[64], prefix[96];
        snprintf(key, sizeof(key), "rope_parameters.%s", keys[i]);
        snprintf(prefix, sizeof(prefix), "%s%s.", outer->prefix, key);
        if (!json_is_object(object)) {
            refuse(outer, -EINVAL, key, object, "an object");
            return;
        }
        struct reader p = {.c = object, .prefix = prefix, .err = outer->err};
        float *base = i == 0 ? &h->rope_base_global : &h->rope_base_local;
        *base = (float)number(&p, "rope_theta", (double)*base);
        if (outer->r == 0)
            outer->r = p.r;
        double factor = scaling(outer, key, object);
        if (i == 0)
            h->rope_factor_global = (float)factor;
        else if (factor != 1)
            refuse(outer, -ENOTSUP, key, object, "no scaling: local layers of Gemma 3 have none");
    }
}

static void rope(struct reader *p, struct hparams *h)
{
    const json_t *params = get(p, "rope_parameters"), *old = get(p, "rope_scaling");
    h->rope_base_global = (float)number(p, "rope_theta", 1e6);
    h->rope_base_local = (float)number(p, "rope_local_base_freq", 1e4);
    h->rope_factor_global = 1;
    if (params) {
        if (json_object_get(params, "full_attention") || json_object_get(params, "sliding_attention"))
            rope_by_kind(p, h, params);
        else
            refuse(p, -ENOTSUP, "rope_parameters", params, "objects 'full_attention' and 'sliding_attention'");
    } else if (old && !json_is_object(old)) {
        refuse(p, -EINVAL, "rope_scaling", old, "null or an object");
    } else if (old) {
        h->rope_factor_global = (float)scaling(p, "rope_scaling", old);
    }
}

static void arithmetic(struct reader *p, struct hparams *h)
{
    const char *key = get(p, "hidden_activation") ? "hidden_activation" : "hidden_act";
    const json_t *act = get(p, key);
    if (act && (!json_is_string(act) || strcmp(json_string_value(act), "gelu_pytorch_tanh") != 0))
        refuse(p, -ENOTSUP, key, act, "\"gelu_pytorch_tanh\"");
    must_be_off(p, "attn_logit_softcapping");
    must_be_off(p, "final_logit_softcapping");
    must_be_off(p, "attention_bias");
    must_be_off(p, "use_bidirectional_attention");
    must_be_off(p, "quantization_config");
    h->global_every = PATTERN;
    h->eps = (float)number(p, "rms_norm_eps", 1e-6);
    h->attn_scale = (float)(1 / sqrt(number(p, "query_pre_attn_scalar", 256)));
    rope(p, h);
}

/* The object with the text model's keys: the whole file, or text_config. */
static int find_text(const json_t *root, const json_t **ret, const char **ret_prefix, struct err *err)
{
    const json_t *names = json_object_get(root, "architectures"), *text = json_object_get(root, "text_config");
    const char *name = json_string_value(json_array_get(names, 0)), *model = json_string_value(json_object_get(root, "model_type"));
    bool multi = name ? strcmp(name, "Gemma3ForConditionalGeneration") == 0 : model && strcmp(model, "gemma3") == 0;
    bool plain = name ? strcmp(name, "Gemma3ForCausalLM") == 0 : model && strcmp(model, "gemma3_text") == 0;
    if (!multi && !plain)
        return err_set(err, -ENOTSUP, "architecture is '%.64s'; expected Gemma3ForCausalLM or Gemma3ForConditionalGeneration",
                       name    ? name
                       : model ? model
                               : "(none)");
    if (multi && !json_is_object(text))
        return err_set(err, -EINVAL, "key 'text_config' is missing; expected an object (architecture %.64s)", name ? name : model);
    *ret = multi ? text : root;
    *ret_prefix = multi ? "text_config." : "";
    return 0;
}

int hf_config_parse(const char *json, size_t n, struct hf_config *ret, struct err *err)
{
    json_error_t e;
    struct hf_config c = {.tied = true};
    json_t *root = json_loadb(json, n, JSON_REJECT_DUPLICATES, &e);
    if (!root)
        return err_set(err, -EINVAL, "JSON: %s (line %d, column %d)", e.text, e.line, e.column);
    struct reader p = {.err = err};
    p.r = find_text(root, &p.c, &p.prefix, err);
    if (p.r == 0) {
        struct reader top = {.c = root, .prefix = "", .err = err};
        must_be_off(&top, "quantization_config");
        c.tied = flag(&top, "tie_word_embeddings", true);
        p.r = top.r;
        c.tied = flag(&p, "tie_word_embeddings", c.tied);
        sizes(&p, &c.h);
        layer_pattern(&p, &c.h);
        arithmetic(&p, &c.h);
    }
    json_decref(root);
    if (p.r == 0)
        *ret = c;
    return p.r;
}

int hf_load_text(const char *folder, const char *name, char **ret, size_t *ret_n, struct err *err)
{
    auto_free char *path = NULL, *text = NULL;
    struct io_file *f;
    if (asprintf(&path, "%s/%s", folder, name) < 0)
        return err_set(err, -ENOMEM, "'%s': out of memory", name);
    int r = io_open(path, false, &f, err);
    if (r < 0)
        return r;
    uint64_t n = io_size(f);
    if (n > MAX_FILE)
        r = err_set(err, -EINVAL, "'%s' has %" PRIu64 " bytes; expected at most %u", path, n, MAX_FILE);
    else if (!(text = malloc((size_t)n + 1)))
        r = err_set(err, -ENOMEM, "'%s': out of memory", path);
    else
        r = io_read(f, 0, text, (size_t)n, err);
    io_close(f);
    if (r < 0)
        return r;
    text[n] = '\0';
    *ret = take_ptr(&text);
    *ret_n = (size_t)n;
    return 0;
}

int hf_load_json(const char *folder, const char *name, json_t **ret, struct err *err)
{
    auto_free char *text = NULL;
    size_t n;
    json_error_t e;
    int r = hf_load_text(folder, name, &text, &n, err);
    if (r < 0)
        return r;
    json_t *j = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    if (!j)
        return err_set(err, -EINVAL, "'%s/%s': JSON: %s (line %d, column %d)", folder, name, e.text, e.line, e.column);
    if (!json_is_object(j)) {
        json_decref(j);
        return err_set(err, -EINVAL, "'%s/%s' is not a JSON object", folder, name);
    }
    *ret = j;
    return 0;
}

int hf_config_load(const char *folder, struct hf_config *ret, struct err *err)
{
    auto_free char *text = NULL;
    size_t n;
    int r = hf_load_text(folder, "config.json", &text, &n, err);
    if (r < 0)
        return r;
    r = hf_config_parse(text, n, ret, err);
    return r < 0 ? err_wrap(err, r, "'%s/config.json'", folder) : 0;
}
