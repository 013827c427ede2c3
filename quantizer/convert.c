/* SPDX-License-Identifier: MIT
 * Owns one conversion: the open checkpoint, the list of tensors to write with the places they come from, and two block buffers.
 * First everything is checked (config, tokenizer, the name, shape and type of every tensor), then the output is begun, so that a
 * checkpoint that cannot be converted costs no time. Reading and writing happen on the caller's thread, rows are converted
 * by the pool. Memory: BLOCK of input, its conversion, and one row of f32 per thread, whatever the size of the model. */
#include "quantizer/convert.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>

#include "kernels/pool.h"
#include "kernels/quant.h"
#include "model/gemma3.h"
#include "model/gguf_write.h"
#include "model/safetensors.h"
#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"
#include "quantizer/hf.h"
#include "quantizer/vocabulary.h"

#define BLOCK (4u << 20)
#define GRAIN 8 /* rows handed to a thread at once */
#define MAX_THREADS 64

struct item {
    const struct safetensors_tensor *src;
    enum gemma3_tensor role;
    uint32_t layer, rows, cols;
    int type, index; /* index: in the writer */
};

struct conversion {
    const struct convert_options *o;
    struct hf_config config;
    struct safetensors *checkpoint;
    struct vocabulary *vocabulary;
    struct item *items;
    uint32_t n_items, n_vision;
    bool untied;
    uint64_t bytes_in, done;
    struct pool *pool;
    uint8_t *in, *out;
    float *rows[MAX_THREADS];
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

/* ---- what there is ---- */

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

static int add_item(struct conversion *c, const struct safetensors_tensor *t, enum gemma3_tensor role, uint32_t layer,
                    struct err *err)
{
    struct item *it = &c->items[c->n_items];
    bool norm = gemma3_is_norm(role);
    *it = (struct item){.src = t, .role = role, .layer = layer, .type = norm ? QUANT_F32 : c->o->type};
    gemma3_shape(&c->config.h, role, &it->rows, &it->cols);
    if (norm ? t->n_dims != 1 || t->dims[0] != it->cols : t->n_dims != 2 || t->dims[0] != it->rows || t->dims[1] != it->cols)
        return err_set(err, -EINVAL, "tensor '%s' has %u dimensions, %" PRIu64 " x %" PRIu64 "; config.json means %u x %u", t->name,
                       t->n_dims, t->dims[0], t->dims[1], norm ? it->cols : it->rows, norm ? 1 : it->cols);
    if (t->type < 0)
        return err_set(err, -ENOTSUP, "tensor '%s' has type %s; expected F32, F16 or BF16", t->name, t->dtype);
    if (quant_row_bytes(it->type, it->cols) == 0)
        return err_set(err, -ENOTSUP, "tensor '%s' has rows of %u; type %s needs a multiple of %zu (choose --type bf16)", t->name,
                       it->cols, quant_name(it->type), quant_block_elems(it->type));
    c->bytes_in += t->bytes;
    c->n_items++;
    return 0;
}

static int need_item(struct conversion *c, const char *prefix, enum gemma3_tensor role, uint32_t layer, struct err *err)
{
    char name[192];
    if (role < GEMMA3_LAYER_TENSORS)
        snprintf(name, sizeof(name), "%slayers.%u.%s", prefix, layer, names[role]);
    else
        snprintf(name, sizeof(name), "%s%s", prefix, names[role]);
    const struct safetensors_tensor *t = safetensors_find(c->checkpoint, name);
    if (!t)
        return err_set(err, -EINVAL, "tensor '%s' is missing; expected a complete Gemma 3 checkpoint of %u layers", name,
                       c->config.h.n_layers);
    return add_item(c, t, role, layer, err);
}

/* A checkpoint may store the tied output matrix too; then it must be the embedding, or the config is wrong about it. */
static int check_tied(struct conversion *c, const struct safetensors_tensor *head, const struct safetensors_tensor *embd,
                      struct err *err)
{
    bool same = head->type == embd->type && head->bytes == embd->bytes;
    for (uint64_t at = 0; same && at < head->bytes; at += BLOCK / 2) {
        size_t n = (size_t)MIN(head->bytes - at, BLOCK / 2);
        int r = safetensors_read(c->checkpoint, head, at, c->in, n, err);
        if (r == 0)
            r = safetensors_read(c->checkpoint, embd, at, c->in + BLOCK / 2, n, err);
        if (r < 0)
            return r;
        same = memcmp(c->in, c->in + BLOCK / 2, n) == 0;
    }
    return same ? 0
                : err_set(err, -EINVAL,
                          "tensor '%s' differs from '%s', but config.json says that they are tied; expected equal tensors, "
                          "or 'tie_word_embeddings': false",
                          head->name, embd->name);
}

static int find_head(struct conversion *c, const struct safetensors_tensor *embd, struct err *err)
{
    const struct safetensors_tensor *head = NULL;
    for (size_t i = 0; !head && i < ARRAY_LEN(heads); i++)
        head = safetensors_find(c->checkpoint, heads[i]);
    c->untied = !c->config.tied;
    if (c->config.tied)
        return head ? check_tied(c, head, embd, err) : 0;
    if (!head)
        return err_set(err, -EINVAL, "tensor 'lm_head.weight' is missing; config.json says 'tie_word_embeddings': false");
    return add_item(c, head, GEMMA3_OUTPUT, 0, err);
}

static bool starts_with_any(const char *s, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (strncmp(s, list[i], strlen(list[i])) == 0)
            return true;
    }
    return false;
}

static int by_source(const void *a, const void *b)
{
    const struct safetensors_tensor *x = *(const struct safetensors_tensor *const *)a,
                                    *y = *(const struct safetensors_tensor *const *)b;
    return (x > y) - (x < y);
}

/* Every tensor must be used, or be one that a text model does not need: anything else means that we would drop weights. */
static int check_rest(struct conversion *c, struct err *err)
{
    auto_free const struct safetensors_tensor **used = calloc(c->n_items, sizeof(*used));
    if (!used)
        return err_set(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < c->n_items; i++)
        used[i] = c->items[i].src;
    qsort(used, c->n_items, sizeof(*used), by_source);
    for (uint32_t i = 0; i < safetensors_n(c->checkpoint); i++) {
        const struct safetensors_tensor *t = safetensors_at(c->checkpoint, i);
        size_t n = strlen(t->name);
        static const char frequencies[] = "rotary_emb.inv_freq"; /* a buffer that old checkpoints store */
        if (bsearch(&t, used, c->n_items, sizeof(*used), by_source) || starts_with_any(t->name, heads, ARRAY_LEN(heads)) ||
            (n >= sizeof(frequencies) && strcmp(t->name + n - (sizeof(frequencies) - 1), frequencies) == 0))
            continue;
        if (!starts_with_any(t->name, vision, ARRAY_LEN(vision)))
            return err_set(err, -ENOTSUP,
                           "tensor '%.256s' is not part of a Gemma 3 text model of %u layers; expected only its tensors and "
                           "those of the vision part (is it an adapter, or already quantized?)",
                           t->name, c->config.h.n_layers);
        c->n_vision++;
    }
    return 0;
}

static int list_items(struct conversion *c, struct err *err)
{
    const char *prefix = NULL;
    int r = find_prefix(c->checkpoint, &prefix, err);
    if (r < 0)
        return r;
    c->items = calloc((size_t)c->config.h.n_layers * GEMMA3_LAYER_TENSORS + 3, sizeof(*c->items));
    if (!c->items)
        return err_set(err, -ENOMEM, "out of memory");
    r = need_item(c, prefix, GEMMA3_TOKEN_EMBD, 0, err);
    for (uint32_t layer = 0; r == 0 && layer < c->config.h.n_layers; layer++) {
        for (int t = 0; r == 0 && t < GEMMA3_LAYER_TENSORS; t++)
            r = need_item(c, prefix, (enum gemma3_tensor)t, layer, err);
    }
    if (r == 0)
        r = need_item(c, prefix, GEMMA3_OUTPUT_NORM, 0, err);
    if (r == 0)
        r = find_head(c, c->items[0].src, err);
    return r < 0 ? r : check_rest(c, err);
}

/* ---- rows ---- */

/* The smallest magnitude that the type cannot hold: it would become infinite (block types: its scale, an f16). */
static float too_large(int type)
{
    switch (type) {
    case QUANT_F16:
        return 65520.0f;
    case QUANT_Q8_0:
        return 65520.0f * 127;
    case QUANT_Q4_0:
        return 65520.0f * 8;
    case QUANT_BF16:
        return 0x1.FFp127f;
    default:
        return INFINITY;
    }
}

struct job {
    const uint8_t *src;
    uint8_t *dst;
    size_t src_row, dst_row, cols;
    int src_type, dst_type;
    float add, limit;
    float *const *rows;
    _Atomic bool bad;
};

static bool convert_row(const struct job *j, size_t i, float *row)
{
    quant_dequantize_row(j->src_type, j->src + i * j->src_row, row, j->cols);
    bool good = true;
    for (size_t k = 0; k < j->cols; k++) {
        row[k] += j->add;
        good &= fabsf(row[k]) < j->limit; /* false for NaN too */
    }
    if (good)
        quant_quantize_row(j->dst_type, row, j->dst + i * j->dst_row, j->cols);
    return good;
}

static void convert_rows(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct job *j = ctx;
    for (uint32_t i = begin; i < end; i++) {
        if (!convert_row(j, i, j->rows[thread]))
            atomic_store_explicit(&j->bad, true, memory_order_relaxed);
    }
}

static int name_bad(const struct job *j, const struct item *it, uint32_t first, uint32_t n, float *row, struct err *err)
{
    for (uint32_t i = 0; i < n; i++) {
        quant_dequantize_row(j->src_type, j->src + i * j->src_row, row, j->cols);
        for (size_t k = 0; k < j->cols; k++) {
            float x = row[k] + j->add;
            if (!(fabsf(x) < j->limit))
                return err_set(err, -EINVAL,
                               "tensor '%s', row %u, column %zu is %g; expected a finite number that type %s can hold",
                               it->src->name, first + i, k, (double)x, quant_name(j->dst_type));
        }
    }
    return err_set(err, -EINVAL, "tensor '%s' has a number that type %s cannot hold", it->src->name, quant_name(j->dst_type));
}

static int convert_tensor(struct conversion *c, const struct item *it, struct gguf_write *w, struct err *err)
{
    struct job j = {.src = c->in,
                    .dst = c->out,
                    .src_row = quant_row_bytes(it->src->type, it->cols),
                    .dst_row = quant_row_bytes(it->type, it->cols),
                    .cols = it->cols,
                    .src_type = it->src->type,
                    .dst_type = it->type,
                    .add = gemma3_is_norm(it->role) ? 1.0f : 0.0f, /* GGUF stores the factor, Hugging Face its distance from 1 */
                    .limit = too_large(it->type),
                    .rows = c->rows};
    uint32_t per_block = (uint32_t)(BLOCK / j.src_row);
    for (uint32_t at = 0; at < it->rows; at += per_block) {
        uint32_t n = MIN(per_block, it->rows - at);
        if (c->o->stop && *c->o->stop)
            return err_set(err, -ECANCELED, "interrupted; nothing was written");
        int r = safetensors_read(c->checkpoint, it->src, (uint64_t)at * j.src_row, c->in, n * j.src_row, err);
        if (r < 0)
            return r;
        pool_run(c->pool, n, GRAIN, convert_rows, &j);
        if (atomic_load(&j.bad))
            return name_bad(&j, it, at, n, c->rows[0], err);
        r = gguf_write_data(w, it->index, (uint64_t)at * j.dst_row, c->out, n * j.dst_row, err);
        if (r < 0)
            return r;
        c->done += n * j.src_row;
        if (c->o->progress)
            c->o->progress(c->o->progress_ctx, c->done, c->bytes_in, it->src->name);
    }
    return 0;
}

/* ---- metadata ---- */

/* enum llama_ftype of llama.h: what most tensors are. */
static uint32_t file_type(int type)
{
    switch (type) {
    case QUANT_F16:
        return 1;
    case QUANT_Q4_0:
        return 2;
    case QUANT_Q8_0:
        return 7;
    case QUANT_BF16:
        return 32;
    default:
        return 0;
    }
}

static void write_keys(const struct conversion *c, struct gguf_write *w)
{
    const struct hparams *h = &c->config.h;
    gguf_write_string(w, "general.architecture", "gemma3", 6);
    gguf_write_string(w, "general.type", "model", 5);
    if (c->o->name)
        gguf_write_string(w, "general.name", c->o->name, strlen(c->o->name));
    gguf_write_u32(w, "general.file_type", file_type(c->o->type));
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
}

static int write_infos(struct conversion *c, struct gguf_write *w, struct err *err)
{
    for (uint32_t i = 0; i < c->n_items; i++) {
        struct item *it = &c->items[i];
        char name[64];
        const uint64_t dims[] = {it->cols, it->rows};
        it->index = gguf_write_tensor(w, gemma3_name(it->role, it->layer, name, sizeof(name)), it->type,
                                      gemma3_is_norm(it->role) ? 1 : 2, dims, err);
        if (it->index < 0)
            return it->index;
    }
    return 0;
}

static int write_all(struct conversion *c, struct convert_result *ret, struct err *err)
{
    struct gguf_write *w;
    int r = gguf_write_open(c->o->out, c->o->alignment, &w, err);
    if (r < 0)
        return r;
    write_keys(c, w);
    r = vocabulary_write(c->vocabulary, w, err);
    if (r == 0)
        r = write_infos(c, w, err);
    if (r == 0)
        r = gguf_write_begin(w, err);
    for (uint32_t i = 0; r == 0 && i < c->n_items; i++)
        r = convert_tensor(c, &c->items[i], w, err);
    if (r == 0)
        return gguf_write_finish(w, &ret->bytes_out, err);
    gguf_write_abort(w);
    return r;
}

/* ---- the whole ---- */

/* A name that exists is replaced only when it is a GGUF file: a slip must not cost somebody a checkpoint. */
static int check_output(const char *path, struct err *err)
{
    struct io_file *f;
    struct stat st;
    char magic[4] = "";
    if (stat(path, &st) < 0)
        return errno == ENOENT ? 0 : err_set_errno(err, -errno, "output '%s'", path);
    int r = io_open(path, false, &f, err);
    if (r < 0)
        return err_wrap(err, r, "output");
    if (io_size(f) >= sizeof(magic))
        r = io_read(f, 0, magic, sizeof(magic), err);
    io_close(f);
    if (r == 0 && memcmp(magic, "GGUF", 4) != 0)
        r = err_set(err, -EEXIST, "output '%s' exists and is not a GGUF file; remove it, or choose another name", path);
    return r;
}

static int make_buffers(struct conversion *c, struct err *err)
{
    size_t cols = MAX(MAX(c->config.h.hidden, c->config.h.ffn), c->config.h.n_heads * c->config.h.head_dim);
    int n = MIN(c->o->n_threads, MAX_THREADS);
    c->in = malloc(BLOCK);
    c->out = malloc(2 * (size_t)BLOCK); /* the widest: two bytes become four */
    bool ok = c->in && c->out;
    for (int i = 0; i < n; i++) {
        c->rows[i] = malloc(cols * sizeof(float));
        ok = ok && c->rows[i];
    }
    if (!ok)
        return err_set(err, -ENOMEM, "out of memory for block buffers");
    int r = pool_open(n, &c->pool);
    return r < 0 ? err_set_errno(err, r, "cannot make %d threads", n) : 0;
}

static void release(struct conversion *c)
{
    pool_close(c->pool);
    vocabulary_close(c->vocabulary);
    safetensors_close(c->checkpoint);
    free(c->items);
    free(c->in);
    free(c->out);
    for (int i = 0; i < MAX_THREADS; i++)
        free(c->rows[i]);
}

int convert_run(const struct convert_options *o, struct convert_result *ret, struct err *err)
{
    struct conversion c = {.o = o};
    struct convert_result result = {0};
    int r = check_output(o->out, err);
    if (r == 0)
        r = hf_config_load(o->in, &c.config, err);
    if (r == 0)
        r = safetensors_open(o->in, &c.checkpoint, err);
    if (r == 0)
        r = make_buffers(&c, err);
    if (r == 0) {
        r = list_items(&c, err);
        if (r < 0)
            err_wrap(err, r, "checkpoint '%s'", o->in);
    }
    if (r == 0)
        r = vocabulary_load(o->in, c.config.h.vocab, &c.vocabulary, err);
    if (r == 0)
        r = write_all(&c, &result, err);
    if (r == 0) {
        result.h = c.config.h;
        result.n_tensors = c.n_items;
        result.n_vision_skipped = c.n_vision;
        result.bytes_in = c.bytes_in;
        *ret = result;
    }
    release(&c);
    return r;
}
