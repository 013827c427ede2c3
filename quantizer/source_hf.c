/* SPDX-License-Identifier: MIT
 * A Hugging Face checkpoint as a source: finds each tensor of the text model under the names that transformers 4 and 5 give it,
 * checks its shape against config.json, and refuses what it would have to drop. Owns the open checkpoint, the config and, until
 * the keys are written, the tokenizer. Called by source.c on one thread; data are read only to compare a stored tied head. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "model/gguf_write.h"
#include "model/safetensors.h"
#include "proto/err.h"
#include "proto/util.h"
#include "quantizer/hf.h"
#include "quantizer/source_impl.h"
#include "quantizer/vocabulary.h"

#define PIECE (1u << 20)

struct checkpoint {
    struct hf_config config;
    struct safetensors *files;
    struct vocabulary *vocabulary;
};

/* Where a text model's tensors may be: alone, or inside a multimodal checkpoint as transformers 4 and 5 name it. */
static const char *const prefixes[] = {"model.", "language_model.model.", "model.language_model."};
static const char *const heads[] = {"lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight"};
static const char *const vision[] = {"vision_tower.",       "multi_modal_projector.",
                                     "model.vision_tower.", "model.multi_modal_projector.",
                                     "vision_model.",       "model.vision_model."};

static const char *const names[GEMMA3_TENSORS] = {
    [GEMMA3_ATTN_NORM] = "input_layernorm.weight",
    [GEMMA3_ATTN_Q] = "self_attn.q_proj.weight",
    [GEMMA3_ATTN_K] = "self_attn.k_proj.weight",
    [GEMMA3_ATTN_V] = "self_attn.v_proj.weight",
    [GEMMA3_ATTN_Q_NORM] = "self_attn.q_norm.weight",
    [GEMMA3_ATTN_K_NORM] = "self_attn.k_norm.weight",
    [GEMMA3_ATTN_OUTPUT] = "self_attn.o_proj.weight",
    [GEMMA3_POST_ATTN_NORM] = "post_attention_layernorm.weight",
    [GEMMA3_FFN_NORM] = "pre_feedforward_layernorm.weight",
    [GEMMA3_FFN_GATE] = "mlp.gate_proj.weight",
    [GEMMA3_FFN_UP] = "mlp.up_proj.weight",
    [GEMMA3_FFN_DOWN] = "mlp.down_proj.weight",
    [GEMMA3_POST_FFN_NORM] = "post_feedforward_layernorm.weight",
    [GEMMA3_OUTPUT_NORM] = "norm.weight",
    [GEMMA3_TOKEN_EMBD] = "embed_tokens.weight",
};

static int find_prefix(const struct safetensors *s, const char **ret, struct err *err)
{
    unsigned n = 0;
    for (size_t i = 0; i < ARRAY_LEN(prefixes); i++) {
        char name[128];
        snprintf(name, sizeof(name), "%s%s", prefixes[i], names[GEMMA3_TOKEN_EMBD]);
        if (safetensors_find(s, name)) {
            *ret = prefixes[i];
            n++;
        }
    }
    if (n != 1)
        return err_set(err, -EINVAL,
                       "'embed_tokens.weight' is there under %u of the names 'model.', 'language_model.model.' and "
                       "'model.language_model.'; expected exactly one",
                       n);
    return 0;
}

static int add_tensor(struct source *s, const struct safetensors_tensor *t, enum gemma3_tensor role, uint32_t layer,
                      struct err *err)
{
    const struct checkpoint *c = s->ctx;
    struct source_tensor *x = source_add(s, role, layer);
    bool norm = gemma3_is_norm(role);
    if (!x)
        return err_set(err, -ENOMEM, "out of memory");
    if (norm ? t->n_dims != 1 || t->dims[0] != x->cols : t->n_dims != 2 || t->dims[0] != x->rows || t->dims[1] != x->cols)
        return err_set(err, -EINVAL, "tensor '%s' has %u dimensions, %" PRIu64 " x %" PRIu64 "; config.json means %u x %u", t->name,
                       t->n_dims, t->dims[0], t->dims[1], norm ? x->cols : x->rows, norm ? 1 : x->cols);
    if (t->type < 0)
        return err_set(err, -ENOTSUP, "tensor '%s' has type %s; expected F32, F16 or BF16", t->name, t->dtype);
    x->origin = t->name;
    x->type = t->type;
    x->file = safetensors_io(c->files, t->file);
    x->offset = t->offset;
    x->bytes = t->bytes;
    x->add = norm ? 1.0f : 0.0f;
    return 0;
}

static int need_tensor(struct source *s, const char *prefix, enum gemma3_tensor role, uint32_t layer, struct err *err)
{
    const struct checkpoint *c = s->ctx;
    char name[192];
    if (role < GEMMA3_LAYER_TENSORS)
        snprintf(name, sizeof(name), "%slayers.%u.%s", prefix, layer, names[role]);
    else
        snprintf(name, sizeof(name), "%s%s", prefix, names[role]);
    const struct safetensors_tensor *t = safetensors_find(c->files, name);
    if (!t)
        return err_set(err, -EINVAL, "tensor '%s' is missing; expected a complete Gemma 3 checkpoint of %u layers", name,
                       s->h.n_layers);
    return add_tensor(s, t, role, layer, err);
}

/* A checkpoint may store the tied output matrix too; then it must be the embedding, or the config is wrong about it. */
static int check_tied(const struct safetensors *files, const struct safetensors_tensor *head, const char *embd_name,
                      struct err *err)
{
    const struct safetensors_tensor *embd = safetensors_find(files, embd_name);
    auto_free uint8_t *a = malloc(PIECE), *b = malloc(PIECE);
    if (!a || !b)
        return err_set(err, -ENOMEM, "out of memory");
    bool same = head->type == embd->type && head->bytes == embd->bytes;
    for (uint64_t at = 0; same && at < head->bytes; at += PIECE) {
        size_t n = (size_t)MIN(head->bytes - at, PIECE);
        int r = safetensors_read(files, head, at, a, n, err);
        if (r == 0)
            r = safetensors_read(files, embd, at, b, n, err);
        if (r < 0)
            return r;
        same = memcmp(a, b, n) == 0;
    }
    return same ? 0
                : err_set(err, -EINVAL,
                          "tensor '%s' differs from '%s', but config.json says that they are tied; expected equal tensors, "
                          "or 'tie_word_embeddings': false",
                          head->name, embd->name);
}

static int find_head(struct source *s, struct err *err)
{
    const struct checkpoint *c = s->ctx;
    const struct safetensors_tensor *head = NULL;
    for (size_t i = 0; !head && i < ARRAY_LEN(heads); i++)
        head = safetensors_find(c->files, heads[i]);
    if (c->config.tied)
        return head ? check_tied(c->files, head, s->tensors[0].origin, err) : 0;
    if (!head)
        return err_set(err, -EINVAL, "tensor 'lm_head.weight' is missing; config.json says 'tie_word_embeddings': false");
    return add_tensor(s, head, GEMMA3_OUTPUT, 0, err);
}

static bool starts_with_any(const char *s, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (strncmp(s, list[i], strlen(list[i])) == 0)
            return true;
    }
    return false;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Every tensor must be used, or be one that a text model does not need: anything else means that we would drop weights. */
static int check_rest(struct source *s, struct err *err)
{
    const struct checkpoint *c = s->ctx;
    auto_free const char **used = calloc(s->n, sizeof(*used));
    if (!used)
        return err_set(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < s->n; i++)
        used[i] = s->tensors[i].origin;
    qsort(used, s->n, sizeof(*used), by_name);
    for (uint32_t i = 0; i < safetensors_n(c->files); i++) {
        const struct safetensors_tensor *t = safetensors_at(c->files, i);
        size_t n = strlen(t->name);
        static const char frequencies[] = "rotary_emb.inv_freq"; /* a buffer that old checkpoints store */
        if (bsearch(&t->name, used, s->n, sizeof(*used), by_name) || starts_with_any(t->name, heads, ARRAY_LEN(heads)) ||
            (n >= sizeof(frequencies) && strcmp(t->name + n - (sizeof(frequencies) - 1), frequencies) == 0))
            continue;
        if (!starts_with_any(t->name, vision, ARRAY_LEN(vision)))
            return err_set(err, -ENOTSUP,
                           "tensor '%.256s' is not part of a Gemma 3 text model of %u layers; expected only its tensors and "
                           "those of the vision part (is it an adapter, or already quantized?)",
                           t->name, s->h.n_layers);
        s->n_skipped++;
    }
    return 0;
}

static int list(struct source *s, struct err *err)
{
    const struct checkpoint *c = s->ctx;
    const char *prefix = NULL;
    int r = find_prefix(c->files, &prefix, err);
    if (r == 0)
        r = need_tensor(s, prefix, GEMMA3_TOKEN_EMBD, 0, err);
    for (uint32_t layer = 0; r == 0 && layer < s->h.n_layers; layer++) {
        for (int t = 0; r == 0 && t < GEMMA3_LAYER_TENSORS; t++)
            r = need_tensor(s, prefix, (enum gemma3_tensor)t, layer, err);
    }
    if (r == 0)
        r = need_tensor(s, prefix, GEMMA3_OUTPUT_NORM, 0, err);
    if (r == 0)
        r = find_head(s, err);
    return r < 0 ? r : check_rest(s, err);
}

static int open_folder(struct source *s, const char *path, struct err *err)
{
    struct checkpoint *c = calloc(1, sizeof(*c));
    if (!c)
        return err_set(err, -ENOMEM, "'%s': out of memory", path);
    s->ctx = c;
    int r = hf_config_load(path, &c->config, err);
    if (r == 0)
        r = safetensors_open(path, &c->files, err);
    if (r < 0)
        return r;
    s->h = c->config.h;
    r = list(s, err);
    return r < 0 ? err_wrap(err, r, "checkpoint '%s'", path) : vocabulary_load(path, s->h.vocab, &c->vocabulary, err);
}

static void close_folder(void *ctx)
{
    struct checkpoint *c = ctx;
    vocabulary_close(c->vocabulary);
    safetensors_close(c->files);
    free(c);
}

static int write_keys(const struct source *s, const char *name, uint32_t file_type, struct gguf_write *w, struct err *err)
{
    const struct checkpoint *c = s->ctx;
    const struct hparams *h = &s->h;
    gguf_write_string(w, "general.architecture", "gemma3", 6);
    gguf_write_string(w, "general.type", "model", 5);
    if (name)
        gguf_write_string(w, "general.name", name, strlen(name));
    gguf_write_u32(w, "general.file_type", file_type);
    gguf_write_u32(w, "general.quantization_version", 2);
    gguf_write_u32(w, "gemma3.context_length", h->context_max);
    gguf_write_u32(w, "gemma3.embedding_length", h->hidden);
    gguf_write_u32(w, "gemma3.block_count", h->n_layers);
    gguf_write_u32(w, "gemma3.feed_forward_length", h->ffn);
    gguf_write_u32(w, "gemma3.attention.head_count", h->n_heads);
    gguf_write_u32(w, "gemma3.attention.head_count_kv", h->n_kv_heads);
    gguf_write_f32(w, "gemma3.attention.layer_norm_rms_epsilon", h->eps);
    gguf_write_u32(w, "gemma3.attention.key_length", h->head_dim);
    gguf_write_u32(w, "gemma3.attention.value_length", h->head_dim);
    gguf_write_u32(w, "gemma3.attention.sliding_window", h->window);
    gguf_write_f32(w, "gemma3.attention.scale", h->attn_scale);
    gguf_write_f32(w, "gemma3.rope.freq_base", h->rope_base_global);
    gguf_write_f32(w, "gemma3.rope.freq_base_swa", h->rope_base_local);
    if (h->rope_factor_global != 1) {
        gguf_write_string(w, "gemma3.rope.scaling.type", "linear", 6);
        gguf_write_f32(w, "gemma3.rope.scaling.factor", h->rope_factor_global);
    }
    return vocabulary_write(c->vocabulary, w, err);
}

static void forget_keys(void *ctx)
{
    struct checkpoint *c = ctx;
    vocabulary_close(take_ptr(&c->vocabulary));
}

const struct source_kind source_hf_kind = {open_folder, close_folder, write_keys, forget_keys};
