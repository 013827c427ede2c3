/* SPDX-License-Identifier: MIT
 * Names, shapes and hyper-parameters of Gemma 3 in GGUF. Owns nothing; any thread. Everything read from the file is checked here
 * once, so that stages may trust struct hparams. */
#include "model/gemma3.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/quant.h"
#include "model/gguf.h"
#include "proto/err.h"
#include "proto/util.h"

#define LAYERS_27B 62

static const char *const suffixes[GEMMA3_LAYER_TENSORS] = {
    [GEMMA3_ATTN_NORM] = "attn_norm",
    [GEMMA3_ATTN_Q] = "attn_q",
    [GEMMA3_ATTN_K] = "attn_k",
    [GEMMA3_ATTN_V] = "attn_v",
    [GEMMA3_ATTN_Q_NORM] = "attn_q_norm",
    [GEMMA3_ATTN_K_NORM] = "attn_k_norm",
    [GEMMA3_ATTN_OUTPUT] = "attn_output",
    [GEMMA3_POST_ATTN_NORM] = "post_attention_norm",
    [GEMMA3_FFN_NORM] = "ffn_norm",
    [GEMMA3_FFN_GATE] = "ffn_gate",
    [GEMMA3_FFN_UP] = "ffn_up",
    [GEMMA3_FFN_DOWN] = "ffn_down",
    [GEMMA3_POST_FFN_NORM] = "post_ffw_norm",
};

void gemma3_shape(const struct hparams *h, enum gemma3_tensor t, uint32_t *ret_rows, uint32_t *ret_cols)
{
    uint32_t q = h->n_heads * h->head_dim, kv = h->n_kv_heads * h->head_dim;
    const struct {
        uint32_t rows, cols;
    } shapes[GEMMA3_TENSORS] = {
        [GEMMA3_ATTN_NORM] = {1, h->hidden},     [GEMMA3_ATTN_Q] = {q, h->hidden},
        [GEMMA3_ATTN_K] = {kv, h->hidden},       [GEMMA3_ATTN_V] = {kv, h->hidden},
        [GEMMA3_ATTN_Q_NORM] = {1, h->head_dim}, [GEMMA3_ATTN_K_NORM] = {1, h->head_dim},
        [GEMMA3_ATTN_OUTPUT] = {h->hidden, q},   [GEMMA3_POST_ATTN_NORM] = {1, h->hidden},
        [GEMMA3_FFN_NORM] = {1, h->hidden},      [GEMMA3_FFN_GATE] = {h->ffn, h->hidden},
        [GEMMA3_FFN_UP] = {h->ffn, h->hidden},   [GEMMA3_FFN_DOWN] = {h->hidden, h->ffn},
        [GEMMA3_POST_FFN_NORM] = {1, h->hidden}, [GEMMA3_OUTPUT_NORM] = {1, h->hidden},
        [GEMMA3_OUTPUT] = {h->vocab, h->hidden}, [GEMMA3_TOKEN_EMBD] = {h->vocab, h->hidden},
    };
    *ret_rows = shapes[t].rows;
    *ret_cols = shapes[t].cols;
}

const char *gemma3_name(enum gemma3_tensor t, uint32_t layer, char *buf, unsigned buf_size)
{
    if (t < GEMMA3_LAYER_TENSORS)
        snprintf(buf, buf_size, "blk.%u.%s.weight", layer, suffixes[t]);
    else
        snprintf(buf, buf_size, "%s.weight",
                 t == GEMMA3_OUTPUT_NORM ? "output_norm"
                 : t == GEMMA3_OUTPUT    ? "output"
                                         : "token_embd");
    return buf;
}

int gemma3_find(const struct gguf *g, enum gemma3_tensor t, uint32_t layer, const struct gguf_tensor **ret, struct err *err)
{
    char name[64];
    const struct gguf_tensor *x = gguf_find(g, gemma3_name(t, layer, name, sizeof(name)));
    if (!x && t == GEMMA3_OUTPUT) /* tied to the embedding */
        x = gguf_find(g, gemma3_name(GEMMA3_TOKEN_EMBD, 0, name, sizeof(name)));
    if (!x)
        return err_set(err, -EPROTO, "model '%s': tensor '%s' is missing; expected a complete Gemma 3 text model", gguf_path(g),
                       name);
    *ret = x;
    return 0;
}

bool gemma3_is_norm(enum gemma3_tensor t)
{
    return t == GEMMA3_ATTN_NORM || t == GEMMA3_ATTN_Q_NORM || t == GEMMA3_ATTN_K_NORM || t == GEMMA3_POST_ATTN_NORM ||
           t == GEMMA3_FFN_NORM || t == GEMMA3_POST_FFN_NORM || t == GEMMA3_OUTPUT_NORM;
}

static int check_tensor(const struct gguf *g, const struct hparams *h, enum gemma3_tensor t, uint32_t layer, struct err *err)
{
    const struct gguf_tensor *x = NULL;
    uint32_t rows, cols;
    int r = gemma3_find(g, t, layer, &x, err);
    if (r < 0)
        return r;
    gemma3_shape(h, t, &rows, &cols);
    if (x->dims[0] != cols || x->dims[1] != rows || x->dims[2] != 1 || x->dims[3] != 1)
        return err_set(err, -EPROTO, "model '%s': tensor '%s' is %" PRIu64 " x %" PRIu64 "; expected rows of %u, %u of them",
                       gguf_path(g), x->name, x->dims[0], x->dims[1], cols, rows);
    if (gemma3_is_norm(t) ? x->type != QUANT_F32 : quant_block_elems(x->type) == 0)
        return err_set(err, -ENOTSUP, "model '%s': tensor '%s' has type %s; expected %s (convert the checkpoint with 'quantizer')",
                       gguf_path(g), x->name, quant_ggml_name(x->type), gemma3_is_norm(t) ? "f32" : QUANT_NAMES);
    return 0;
}

static int need_u32(const struct gguf *g, const char *key, uint32_t lo, uint32_t hi, uint32_t *ret, struct err *err)
{
    char full[96];
    snprintf(full, sizeof(full), "gemma3.%s", key);
    int r = gguf_get_u32(g, full, ret, err);
    if (r == -ENOENT)
        return err_set(err, -EPROTO, "model '%s': key '%s' is missing", gguf_path(g), full);
    if (r < 0)
        return err_wrap(err, r, "model '%s'", gguf_path(g));
    if (*ret < lo || *ret > hi)
        return err_set(err, -EPROTO, "model '%s': key '%s' is %u; expected %u to %u", gguf_path(g), full, *ret, lo, hi);
    return 0;
}

/* A float that must be positive and finite; absent: the default, unless that is 0 (then it is required). */
static int want_f32(const struct gguf *g, const char *key, float absent, float *ret, struct err *err)
{
    char full[96];
    snprintf(full, sizeof(full), "gemma3.%s", key);
    int r = gguf_get_f32(g, full, ret, err);
    if (r == -ENOENT && absent > 0) {
        *ret = absent;
        return 0;
    }
    if (r == -ENOENT)
        return err_set(err, -EPROTO, "model '%s': key '%s' is missing", gguf_path(g), full);
    if (r < 0)
        return err_wrap(err, r, "model '%s'", gguf_path(g));
    if (!(*ret > 0) || !isfinite(*ret))
        return err_set(err, -EPROTO, "model '%s': key '%s' is %g; expected a positive number", gguf_path(g), full, (double)*ret);
    return 0;
}

static int rope_scaling(const struct gguf *g, float *ret, struct err *err)
{
    const char *type;
    *ret = 1;
    int r = gguf_get_string(g, "gemma3.rope.scaling.type", &type, NULL, err);
    if (r == -ENOENT) /* a factor alone means linear, as in llama.cpp */
        return want_f32(g, "rope.scaling.factor", 1, ret, err);
    if (r < 0)
        return err_wrap(err, r, "model '%s'", gguf_path(g));
    if (strcmp(type, "none") == 0)
        return 0;
    if (strcmp(type, "linear") != 0)
        return err_set(err, -ENOTSUP, "model '%s': key 'gemma3.rope.scaling.type' is '%s'; expected 'linear' or 'none'",
                       gguf_path(g), type);
    return want_f32(g, "rope.scaling.factor", 1, ret, err);
}

/* Keys that other Gemma 3 files do not have and that would change the arithmetic. */
static int unusual(const struct gguf *g, struct hparams *h, struct err *err)
{
    static const char pattern[] = "gemma3.attention.sliding_window_pattern";
    static const char *const caps[] = {"gemma3.attn_logit_softcapping", "gemma3.final_logit_softcapping"};
    int r = gguf_get_u32(g, pattern, &h->global_every, err);
    if (r == 0 && (h->global_every < 1 || h->global_every > 512))
        return err_set(err, -ENOTSUP, "model '%s': key '%s' is %u; expected 1 to 512", gguf_path(g), pattern, h->global_every);
    if (r < 0 && r != -ENOENT)
        return err_wrap(err, r, "model '%s'", gguf_path(g));
    for (size_t i = 0; i < ARRAY_LEN(caps); i++) {
        float cap;
        r = gguf_get_f32(g, caps[i], &cap, err);
        if (r == 0 && cap != 0)
            return err_set(err, -ENOTSUP, "model '%s': key '%s' is %g; expected none: Gemma 3 caps no logits", gguf_path(g),
                           caps[i], (double)cap);
        if (r < 0 && r != -ENOENT)
            return err_wrap(err, r, "model '%s'", gguf_path(g));
    }
    return 0;
}

static int sizes(const struct gguf *g, struct hparams *h, struct err *err)
{
    const struct gguf_tensor *embd = NULL;
    uint32_t value_length = 0;
    int r = need_u32(g, "block_count", 1, 512, &h->n_layers, err);
    if (r == 0)
        r = need_u32(g, "embedding_length", 16, 65536, &h->hidden, err);
    if (r == 0)
        r = need_u32(g, "feed_forward_length", 16, 524288, &h->ffn, err);
    if (r == 0)
        r = need_u32(g, "attention.head_count", 1, 512, &h->n_heads, err);
    h->n_kv_heads = h->n_heads;
    if (r == 0 && gguf_get_u32(g, "gemma3.attention.head_count_kv", &h->n_kv_heads, NULL) != -ENOENT)
        r = need_u32(g, "attention.head_count_kv", 1, h->n_heads, &h->n_kv_heads, err);
    h->head_dim = h->n_heads ? h->hidden / h->n_heads : 0;
    if (r == 0 && gguf_get_u32(g, "gemma3.attention.key_length", &h->head_dim, NULL) != -ENOENT)
        r = need_u32(g, "attention.key_length", 16, 1024, &h->head_dim, err);
    if (r == 0 && gguf_get_u32(g, "gemma3.attention.value_length", &value_length, NULL) == 0 && value_length != h->head_dim)
        r = err_set(err, -ENOTSUP, "model '%s': value_length %u differs from key_length %u", gguf_path(g), value_length,
                    h->head_dim);
    if (r == 0 && (h->n_heads % h->n_kv_heads || h->head_dim % 16 || h->head_dim < 16 || h->head_dim > 1024))
        r = err_set(err, -ENOTSUP,
                    "model '%s': %u heads of %u on %u KV heads; expected a multiple of the KV heads, head size a multiple of 16",
                    gguf_path(g), h->n_heads, h->head_dim, h->n_kv_heads);
    if (r == 0)
        r = need_u32(g, "context_length", 1, UINT32_MAX, &h->context_max, err);
    if (r < 0)
        return r;
    if (gguf_get_u32(g, "gemma3.attention.sliding_window", &h->window, NULL) == -ENOENT)
        return err_set(err, -EPROTO,
                       "model '%s': key 'gemma3.attention.sliding_window' is missing; without it every layer would be global, "
                       "which no Gemma 3 model is (convert the checkpoint again)",
                       gguf_path(g));
    r = need_u32(g, "attention.sliding_window", 1, UINT32_MAX, &h->window, err);
    if (r == 0)
        r = gemma3_find(g, GEMMA3_TOKEN_EMBD, 0, &embd, err);
    if (r == 0 && (embd->dims[1] == 0 || embd->dims[1] > 4194304))
        r = err_set(err, -EPROTO, "model '%s': 'token_embd.weight' has %" PRIu64 " rows; expected 1 to 4194304", gguf_path(g),
                    embd->dims[1]);
    if (r == 0)
        h->vocab = (uint32_t)embd->dims[1];
    return r;
}

int gemma3_hparams(const struct gguf *g, struct hparams *ret, struct err *err)
{
    struct hparams h = {.global_every = 6};
    const char *arch = "";
    int r = gguf_get_string(g, "general.architecture", &arch, NULL, err);
    if (r < 0 || strcmp(arch, "gemma3") != 0)
        return err_set(err, -ENOTSUP, "model '%s': architecture is '%s'; expected 'gemma3'", gguf_path(g), arch);
    r = sizes(g, &h, err);
    if (r == 0)
        r = unusual(g, &h, err);
    if (r == 0)
        r = want_f32(g, "attention.layer_norm_rms_epsilon", 0, &h.eps, err);
    if (r == 0)
        r = want_f32(g, "rope.freq_base", 10000, &h.rope_base_global, err);
    if (r == 0)
        r = want_f32(g, "rope.freq_base_swa", 10000, &h.rope_base_local, err);
    if (r == 0)
        r = rope_scaling(g, &h.rope_factor_global, err);
    double width = h.n_layers == LAYERS_27B ? (double)h.hidden / MAX(h.n_heads, 1u) : h.head_dim;
    if (r == 0)
        r = want_f32(g, "attention.scale", (float)(1 / sqrt(MAX(width, 1))), &h.attn_scale, err);
    for (uint32_t layer = 0; r == 0 && layer < h.n_layers; layer++) {
        for (int t = 0; r == 0 && t < GEMMA3_LAYER_TENSORS; t++)
            r = check_tensor(g, &h, (enum gemma3_tensor)t, layer, err);
    }
    for (int t = GEMMA3_OUTPUT_NORM; r == 0 && t < GEMMA3_TENSORS; t++)
        r = check_tensor(g, &h, (enum gemma3_tensor)t, 0, err);
    if (r == 0)
        *ret = h;
    return r;
}
