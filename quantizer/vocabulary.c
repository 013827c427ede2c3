/* SPDX-License-Identifier: MIT
 * Owns the pieces of one tokenizer between loading and writing. Called by the converter, on one thread. It does not tokenize and
 * keeps no reference to the writer. The pieces come from tokenizer.model or, without one, from tokenizer.json; from there on both
 * go the same way. Types and scores follow llama.cpp's converter, because llama.cpp splits a text at control and
 * user-defined tokens before it merges: a marker left as a normal piece would never be found there. */
#include "quantizer/vocabulary.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <jansson.h>

#include "model/gguf_write.h"
#include "proto/err.h"
#include "proto/util.h"
#include "quantizer/hf.h"
#include "quantizer/spm.h"
#include "quantizer/tokenizer_json.h"

#define ADDED_SCORE (-1000.0f)
#define SPACE_MARK "\xe2\x96\x81" /* U+2581, a space inside pieces */
#define CONFIG "tokenizer_config.json"

enum special { BOS, EOS, UNKNOWN, PADDING, TURN_END, SPECIALS };

static const struct {
    const char *config, *key, *piece; /* key of tokenizer_config.json; GGUF key; piece when the config does not say */
} specials[SPECIALS] = {
    [BOS] = {"bos_token", "tokenizer.ggml.bos_token_id", NULL},
    [EOS] = {"eos_token", "tokenizer.ggml.eos_token_id", NULL},
    [UNKNOWN] = {"unk_token", "tokenizer.ggml.unknown_token_id", NULL},
    [PADDING] = {"pad_token", "tokenizer.ggml.padding_token_id", NULL},
    [TURN_END] = {"eot_token", "tokenizer.ggml.eot_token_id", "<end_of_turn>"},
};

struct token {
    const char *text; /* borrows from model or owned texts */
    uint32_t n;
    float score;
    int32_t type; /* enum spm_type, the numbers are those of GGUF */
};

struct vocabulary {
    char *model; /* bytes of tokenizer.model, or texts from tokenizer.json */
    bool from_json;
    json_t *config; /* while loading */
    struct token *tokens;
    uint32_t n;
    char **owned; /* texts that are not in model */
    uint32_t n_owned;
    int64_t ids[SPECIALS]; /* -1: none */
    char *template;
    size_t template_bytes;
    bool add_bos, add_eos;
};

static bool starts_and_ends(const char *s, size_t n, const char *prefix, char last)
{
    size_t p = strlen(prefix);
    return n > p && memcmp(s, prefix, p) == 0 && s[n - 1] == last;
}

/* Names that llama.cpp's converter makes control tokens although the config does not call them special. */
static bool looks_special(const char *s, size_t n)
{
    return (n == 5 && memcmp(s, "<pad>", 5) == 0) || (n == 6 && memcmp(s, "<mask>", 6) == 0) ||
           starts_and_ends(s, n, "<unused", '>');
}

/* A copy with plain spaces for space marks, kept until close. */
static int own(struct vocabulary *v, const char *s, size_t n, bool plain_spaces, struct token *t, struct err *err)
{
    char *copy = malloc(n + 1), **owned = realloc(v->owned, (v->n_owned + 1) * sizeof(*owned));
    if (owned)
        v->owned = owned;
    if (!copy || !owned) {
        free(copy);
        return err_set(err, -ENOMEM, "out of memory for a token");
    }
    size_t out = 0;
    for (size_t i = 0; i < n;) {
        bool mark = plain_spaces && n - i >= 3 && memcmp(s + i, SPACE_MARK, 3) == 0;
        copy[out++] = mark ? ' ' : s[i];
        i += mark ? 3 : 1;
    }
    v->owned[v->n_owned++] = copy;
    t->text = copy;
    t->n = (uint32_t)out;
    return 0;
}

/* A token outside the merges: found as a whole in a text. */
static int set_added(struct vocabulary *v, struct token *t, const char *s, size_t n, bool special, struct err *err)
{
    special = special || looks_special(s, n);
    t->type = special ? SPM_CONTROL : SPM_USER_DEFINED;
    t->score = ADDED_SCORE;
    return own(v, s, n, !special, t, err);
}

static int from_pieces(struct vocabulary *v, const struct spm *s, uint32_t n_rows, struct err *err)
{
    if (s->n > n_rows)
        return err_set(err, -EINVAL, "the tokenizer has %u pieces, the embedding %u rows; expected at least as many rows", s->n,
                       n_rows);
    v->tokens = calloc(n_rows, sizeof(*v->tokens));
    if (!v->tokens)
        return err_set(err, -ENOMEM, "out of memory for %u tokens", n_rows);
    v->n = n_rows;
    for (uint32_t i = 0; i < n_rows; i++) {
        struct token *t = &v->tokens[i];
        char name[32];
        int r = 0;
        if (i >= s->n) {
            int n = snprintf(name, sizeof(name), "[PAD%u]", i);
            *t = (struct token){.score = ADDED_SCORE, .type = SPM_UNUSED};
            r = own(v, name, (size_t)n, false, t, err);
        } else {
            const struct spm_piece *p = &s->pieces[i];
            *t = (struct token){.text = p->text, .n = p->n, .score = p->score, .type = (int32_t)p->type};
            if (p->type == SPM_USER_DEFINED || (p->type == SPM_CONTROL && v->from_json))
                r = set_added(v, t, p->text, p->n, p->type == SPM_CONTROL, err);
        }
        if (r < 0)
            return r;
    }
    v->ids[BOS] = s->bos;
    v->ids[EOS] = s->eos;
    v->ids[UNKNOWN] = s->unk;
    v->ids[PADDING] = s->pad;
    return 0;
}

static bool parse_id(const char *s, uint32_t *ret)
{
    uint64_t v = 0;
    size_t n = strlen(s);
    if (n == 0 || n > 9)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9')
            return false;
        v = v * 10 + (uint64_t)(s[i] - '0');
    }
    *ret = (uint32_t)v;
    return true;
}

/* Whether t, as set_added left it, was added with this text. */
static bool is_added_as(const struct token *t, const char *s, size_t n)
{
    size_t at = 0;
    if (t->type == SPM_NORMAL || t->type == SPM_BYTE)
        return false;
    for (size_t i = 0; i < n; at++) {
        bool mark = t->type == SPM_USER_DEFINED && n - i >= 3 && memcmp(s + i, SPACE_MARK, 3) == 0;
        if (at >= t->n || t->text[at] != (mark ? ' ' : s[i]))
            return false;
        i += mark ? 3 : 1;
    }
    return at == t->n;
}

static int from_added(struct vocabulary *v, struct err *err)
{
    json_t *added = json_object_get(v->config, "added_tokens_decoder"), *entry;
    const char *key;
    if (added && !json_is_object(added))
        return err_set(err, -EINVAL, CONFIG ", key 'added_tokens_decoder' is not an object");
    json_object_foreach(added, key, entry)
    {
        const json_t *content = json_object_get(entry, "content");
        size_t n = json_string_length(content);
        uint32_t id;
        if (!parse_id(key, &id) || n == 0 || n > 1024)
            return err_set(err, -EINVAL, CONFIG ", 'added_tokens_decoder.%.32s': expected an id with 'content' of 1 to 1024 bytes",
                           key);
        if (id >= v->n)
            continue; /* Hub configs of text models still list <image_soft_token> */
        struct token *t = &v->tokens[id];
        int32_t was = t->type;
        if (v->from_json && was != SPM_UNUSED && !is_added_as(t, json_string_value(content), n))
            return err_set(err, -EINVAL,
                           CONFIG ", 'added_tokens_decoder.%u' is '%.64s', but tokenizer.json has '%.*s' there, or not among its "
                                  "added tokens; expected that both agree",
                           id, json_string_value(content), (int)MIN(t->n, 64u), t->text);
        int r = set_added(v, t, json_string_value(content), n, json_is_true(json_object_get(entry, "special")), err);
        if (r < 0)
            return r;
        if (was == SPM_UNKNOWN) /* a tokenizer has one, and decoding depends on it */
            t->type = SPM_UNKNOWN;
    }
    return 0;
}

static int64_t find_token(const struct vocabulary *v, const char *s, size_t n)
{
    for (uint32_t i = 0; i < v->n; i++) {
        if (v->tokens[i].n == n && memcmp(v->tokens[i].text, s, n) == 0)
            return i;
    }
    return -1;
}

static int find_specials(struct vocabulary *v, struct err *err)
{
    for (int i = 0; i < SPECIALS; i++) {
        const json_t *named = json_object_get(v->config, specials[i].config);
        if (json_is_object(named)) /* an AddedToken written out */
            named = json_object_get(named, "content");
        const char *name = json_is_string(named) ? json_string_value(named) : specials[i].piece;
        if (!name)
            continue;
        v->ids[i] = find_token(v, name, strlen(name));
        if (v->ids[i] < 0 && json_is_string(named))
            return err_set(err, -EINVAL, CONFIG ", key '%s' is '%.64s', which is not a token", specials[i].config, name);
    }
    if (v->ids[BOS] < 0 || v->ids[EOS] < 0 || v->ids[UNKNOWN] < 0)
        return err_set(err, -EINVAL, "the tokenizer has no <bos>, <eos> or <unk> (ids %" PRId64 ", %" PRId64 ", %" PRId64 ")",
                       v->ids[BOS], v->ids[EOS], v->ids[UNKNOWN]);
    return 0;
}

/* Of a list of named templates, the one called "default". */
static const json_t *default_template(const json_t *list)
{
    size_t i;
    json_t *entry;
    json_array_foreach((json_t *)(uintptr_t)list, i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (name && strcmp(name, "default") == 0)
            return json_object_get(entry, "template");
    }
    return NULL;
}

static int keep_template(struct vocabulary *v, const json_t *t, struct err *err)
{
    if (json_is_array(t))
        t = default_template(t);
    if (!json_is_string(t))
        return 0;
    v->template_bytes = json_string_length(t);
    v->template = malloc(v->template_bytes + 1);
    if (!v->template)
        return err_set(err, -ENOMEM, "out of memory for the chat template");
    memcpy(v->template, json_string_value(t), v->template_bytes + 1);
    return 0;
}

/* In tokenizer_config.json, or beside it in a file of its own. A base model has none. */
static int find_template(struct vocabulary *v, const char *folder, struct err *err)
{
    int r = keep_template(v, json_object_get(v->config, "chat_template"), err);
    if (r < 0 || v->template)
        return r;
    r = hf_load_text(folder, "chat_template.jinja", &v->template, &v->template_bytes, err);
    if (r != -ENOENT)
        return r;
    json_t *file;
    r = hf_load_json(folder, "chat_template.json", &file, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    r = keep_template(v, json_object_get(file, "chat_template"), err);
    json_decref(file);
    return r;
}

/* What tokenizer.model or tokenizer.json says. ret->pieces: freed by the caller; their texts are the vocabulary's. */
static int load_pieces(struct vocabulary *v, const char *folder, uint32_t n_rows, struct spm *ret, struct err *err)
{
    size_t n;
    int r = hf_load_text(folder, "tokenizer.model", &v->model, &n, err);
    if (r == 0) {
        r = spm_parse((const uint8_t *)v->model, n, ret, err);
        return r < 0 ? err_wrap(err, r, "'%s/tokenizer.model'", folder) : 0;
    }
    if (r != -ENOENT)
        return r;
    auto_free char *path = NULL;
    struct tokenizer_json t;
    if (asprintf(&path, "%s/tokenizer.json", folder) < 0)
        return err_set(err, -ENOMEM, "'tokenizer.json': out of memory");
    r = tokenizer_json_load(path, n_rows, &t, err);
    if (r == -ENOENT)
        return err_set(err, r, "'%s' has neither tokenizer.model nor tokenizer.json; expected one of them", folder);
    if (r < 0)
        return err_wrap(err, r, "'%s'", path);
    v->model = t.texts;
    v->from_json = true;
    v->add_bos = t.add_bos;
    v->add_eos = t.add_eos;
    *ret = t.spm;
    return 0;
}

static int load_config(struct vocabulary *v, const char *folder, struct err *err)
{
    int r = hf_load_json(folder, CONFIG, &v->config, err);
    if (r != -ENOENT)
        return r;
    v->config = json_object();
    return v->config ? 0 : err_set(err, -ENOMEM, "out of memory");
}

static void choose_ends(struct vocabulary *v)
{
    const json_t *bos = json_object_get(v->config, "add_bos_token"), *eos = json_object_get(v->config, "add_eos_token");
    if (!v->from_json)
        v->add_bos = true;
    if (json_is_boolean(bos))
        v->add_bos = json_is_true(bos);
    if (json_is_boolean(eos))
        v->add_eos = json_is_true(eos);
}

static int load(struct vocabulary *v, const char *folder, uint32_t n_rows, struct err *err)
{
    struct spm s = {0};
    int r = load_pieces(v, folder, n_rows, &s, err);
    if (r == 0)
        r = load_config(v, folder, err);
    if (r == 0)
        r = from_pieces(v, &s, n_rows, err);
    spm_fini(&s);
    if (r == 0)
        r = from_added(v, err);
    if (r == 0)
        r = find_specials(v, err);
    if (r == 0)
        r = find_template(v, folder, err);
    if (r == 0)
        choose_ends(v);
    json_decref(v->config);
    v->config = NULL;
    return r;
}

int vocabulary_load(const char *folder, uint32_t n_rows, struct vocabulary **ret, struct err *err)
{
    struct vocabulary *v = calloc(1, sizeof(*v));
    if (!v)
        return err_set(err, -ENOMEM, "out of memory");
    for (int i = 0; i < SPECIALS; i++)
        v->ids[i] = -1;
    int r = load(v, folder, n_rows, err);
    if (r < 0) {
        vocabulary_close(v);
        return r;
    }
    *ret = v;
    return 0;
}

void vocabulary_close(struct vocabulary *v)
{
    if (!v)
        return;
    for (uint32_t i = 0; i < v->n_owned; i++)
        free(v->owned[i]);
    free(v->owned);
    free(v->tokens);
    free(v->template);
    free(v->model);
    free(v);
}

int vocabulary_write(const struct vocabulary *v, struct gguf_write *w, struct err *err)
{
    auto_free float *scores = malloc(v->n * sizeof(*scores));
    auto_free int32_t *types = malloc(v->n * sizeof(*types));
    if (!scores || !types)
        return err_set(err, -ENOMEM, "out of memory for %u tokens", v->n);
    gguf_write_string(w, "tokenizer.ggml.model", "llama", 5);
    gguf_write_string(w, "tokenizer.ggml.pre", "default", 7);
    gguf_write_strings_begin(w, "tokenizer.ggml.tokens", v->n);
    for (uint32_t i = 0; i < v->n; i++) {
        gguf_write_strings_add(w, v->tokens[i].text, v->tokens[i].n);
        scores[i] = v->tokens[i].score;
        types[i] = v->tokens[i].type;
    }
    gguf_write_array(w, "tokenizer.ggml.scores", GGUF_F32, scores, v->n);
    gguf_write_array(w, "tokenizer.ggml.token_type", GGUF_I32, types, v->n);
    for (int i = 0; i < SPECIALS; i++) {
        if (v->ids[i] >= 0)
            gguf_write_u32(w, specials[i].key, (uint32_t)v->ids[i]);
    }
    gguf_write_bool(w, "tokenizer.ggml.add_bos_token", v->add_bos);
    gguf_write_bool(w, "tokenizer.ggml.add_eos_token", v->add_eos);
    gguf_write_bool(w, "tokenizer.ggml.add_space_prefix", false);
    if (v->template)
        gguf_write_string(w, "tokenizer.chat_template", v->template, v->template_bytes);
    return 0;
}
