/* SPDX-License-Identifier: MIT
 * Owns the reading of one tokenizer.json; called by vocabulary.c and by the fuzz target, on one thread. The three large parts
 * (vocab, merges, added_tokens) go into the arrays of bpe.c as they come; all that is left, some settings, becomes one small JSON
 * value that is compared with what Gemma 3 has. A file that puts the merges before the vocabulary is read twice. Nothing that
 * changes ids is ignored; truncation and padding are, because they are set anew for each call in the library that wrote them.
 * Format: huggingface/tokenizers, tokenizers/src/tokenizer/serialization.rs and models/bpe/serialization.rs. */
#include "quantizer/tokenizer_json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/util.h"
#include "quantizer/bpe.h"
#include "quantizer/json_stream.h"

#define ADDED_SCORE (-1000.0f)
#define MARK "\xe2\x96\x81"
#define MAX_ADDED 65536u /* Gemma 3 has 6,415 */

enum part { SETTINGS, ADDED, VOCAB, MERGES, PARTS };

struct added {
    char *text;
    size_t n;
    int64_t id;
    bool special;
};

struct reader {
    struct bpe *bpe;
    uint32_t n_rows;
    struct json_stream_value settings, entry; /* entry: of added_tokens */
    struct added *added;
    uint32_t n_added, added_cap;
    size_t added_bytes;
    enum part at;   /* what the next event belongs to */
    unsigned depth; /* open brackets in that part */
    bool in_model;
    bool wait, late, again; /* wait: pass over this part; late: so were the merges, before the vocabulary; again: second reading */
    bool seen[PARTS];
    char *text; /* VOCAB: the key; MERGES: the left piece */
    size_t n_text;
    unsigned n_pair; /* pieces of the open pair */
};

static const char *const part_names[PARTS] = {"", "added_tokens", "model.vocab", "model.merges"};

/* ---- added tokens ---- */

static bool flag(const json_t *entry, const char *key, bool *ret_bad)
{
    const json_t *v = json_object_get(entry, key);
    *ret_bad |= v && !json_is_boolean(v);
    return json_is_true(v);
}

/* A space in a text becomes a mark before merging, but added tokens are found before that; only in runs of marks both agree. */
static bool spaces_fit(const char *s, size_t n)
{
    size_t marks = 0;
    for (size_t i = 0; i + 3 <= n; i++)
        marks += memcmp(s + i, MARK, 3) == 0;
    return !memchr(s, ' ', n) && (marks == 0 || marks * 3 == n);
}

static int check_added(const json_t *entry, struct added *ret, struct err *err)
{
    const json_t *id = json_object_get(entry, "id"), *content = json_object_get(entry, "content");
    const char *s = json_string_value(content);
    size_t n = json_string_length(content);
    bool bad = false, strip = flag(entry, "lstrip", &bad) | flag(entry, "rstrip", &bad);
    strip |= flag(entry, "single_word", &bad) | flag(entry, "normalized", &bad);
    *ret = (struct added){.n = n, .id = json_integer_value(id), .special = flag(entry, "special", &bad)};
    if (!s || !json_is_integer(id) || ret->id < 0 || bad || n == 0 || n > BPE_PIECE_MAX || strlen(s) != n)
        return err_set(
            err, -EINVAL,
            "added token '%.64s': expected an object with 'id', a 'content' of 1 to %u bytes, and true or false elsewhere",
            s ? s : "(no content)", BPE_PIECE_MAX);
    if (strip)
        return err_set(
            err, -ENOTSUP,
            "added token '%.64s' has one of lstrip, rstrip, single_word, normalized; expected false for each, as every Gemma "
            "3 has: GGUF cannot express them",
            s);
    if (!spaces_fit(s, n))
        return err_set(
            err, -ENOTSUP,
            "added token '%.64s' has spaces among other characters; expected none: GGUF's readers would match it elsewhere", s);
    return 0;
}

static int keep_added(struct reader *p, struct err *err)
{
    struct added a;
    int r = check_added(p->entry.done, &a, err);
    if (r < 0)
        return r;
    p->added_bytes += a.n;
    if (p->n_added == MAX_ADDED || p->added_bytes > BPE_TEXTS_MAX)
        return err_set(err, -EINVAL, "key 'added_tokens' has more than %u entries or %u MiB of them; expected less", MAX_ADDED,
                       BPE_TEXTS_MAX >> 20);
    if (p->n_added == p->added_cap) {
        uint32_t cap = MAX(p->added_cap * 2, 256u);
        struct added *more = realloc(p->added, cap * sizeof(*more));
        if (!more)
            return err_set(err, -ENOMEM, "out of memory for %u added tokens", cap);
        p->added = more;
        p->added_cap = cap;
    }
    a.text = strdup(json_string_value(json_object_get(p->entry.done, "content")));
    if (!a.text)
        return err_set(err, -ENOMEM, "out of memory for an added token");
    p->added[p->n_added++] = a;
    json_stream_drop(&p->entry);
    return 0;
}

static int add_added(const struct reader *p, const struct added *a, struct err *err)
{
    int64_t id = bpe_find(p->bpe, a->text, a->n);
    if (id < 0 && a->id >= p->n_rows)
        return 0;
    if (id >= 0 && (id != a->id || bpe_type(p->bpe, (uint32_t)id) != SPM_NORMAL))
        return err_set(err, -EINVAL, "added token '%.64s' has id %lld, but it is there already, as %lld; expected it once", a->text,
                       (long long)a->id, (long long)id);
    int r = id < 0 ? bpe_add_piece(p->bpe, a->text, a->n, (uint32_t)a->id, err) : 0;
    if (r == 0)
        bpe_set_type(p->bpe, (uint32_t)a->id, a->special ? SPM_CONTROL : SPM_USER_DEFINED);
    return r;
}

/* ---- the stream ---- */

static int keep_text(struct reader *p, const struct json_stream_event *e, struct err *err)
{
    free(p->text);
    p->n_text = e->n;
    p->text = malloc(e->n + 1);
    if (!p->text)
        return err_set(err, -ENOMEM, "out of memory for a piece");
    memcpy(p->text, e->text, e->n);
    p->text[e->n] = '\0';
    return 0;
}

static int wrong_kind(const struct reader *p, struct err *err)
{
    static const char *const expected[PARTS] = {"", "an array of objects", "an object of piece and id: a BPE",
                                                "an array of 'a b' or ['a', 'b']"};
    return err_set(err, -EINVAL, "key '%s' is not %s", part_names[p->at], expected[p->at]);
}

static int on_added(struct reader *p, const struct json_stream_event *e, struct err *err)
{
    if (p->depth == 1 && p->entry.depth == 0 && e->kind != JSON_STREAM_MAP)
        return wrong_kind(p, err);
    int r = json_stream_add(&p->entry, e, err);
    return r == 0 && p->entry.depth == 0 ? keep_added(p, err) : r;
}

static int on_vocab(struct reader *p, const struct json_stream_event *e, struct err *err)
{
    uint32_t id = 0;
    if (e->kind == JSON_STREAM_KEY)
        return keep_text(p, e, err);
    bool ok = e->kind == JSON_STREAM_NUMBER_TEXT && e->n < 10;
    for (size_t i = 0; ok && i < e->n; i++) {
        ok = e->text[i] >= '0' && e->text[i] <= '9';
        id = id * 10 + (uint32_t)(e->text[i] - '0');
    }
    if (!ok)
        return err_set(err, -EINVAL, "key 'model.vocab': piece '%.48s' has no id; expected a whole number below %u", p->text,
                       p->n_rows);
    return bpe_add_piece(p->bpe, p->text, p->n_text, id, err);
}

/* 'a b', as files had it before pieces could hold spaces. */
static int on_merge_line(struct reader *p, const struct json_stream_event *e, struct err *err)
{
    const char *space = memchr(e->text, ' ', e->n), *end = e->text + e->n;
    if (!space || memchr(space + 1, ' ', (size_t)(end - space - 1)))
        return err_set(err, -EINVAL, "key 'model.merges' has '%.*s'; expected two pieces with one space between",
                       (int)MIN(e->n, (size_t)64), e->text);
    return bpe_add_merge(p->bpe, e->text, (size_t)(space - e->text), space + 1, (size_t)(end - space - 1), err);
}

static int on_merge(struct reader *p, const struct json_stream_event *e, struct err *err)
{
    if (e->kind == JSON_STREAM_TEXT && p->depth == 1)
        return on_merge_line(p, e, err);
    if (e->kind == JSON_STREAM_ARRAY && p->depth == 2) {
        p->n_pair = 0;
        return 0;
    }
    if (e->kind == JSON_STREAM_ARRAY_END && p->depth == 1)
        return p->n_pair == 2 ? 0 : wrong_kind(p, err);
    if (e->kind != JSON_STREAM_TEXT || p->depth != 2 || ++p->n_pair > 2)
        return wrong_kind(p, err);
    return p->n_pair == 1 ? keep_text(p, e, err) : bpe_add_merge(p->bpe, p->text, p->n_text, e->text, e->n, err);
}

/* An event inside one of the large parts, whose first is its opening bracket. */
static int on_part(struct reader *p, const struct json_stream_event *e, struct err *err)
{
    bool open = e->kind == JSON_STREAM_MAP || e->kind == JSON_STREAM_ARRAY;
    bool close = e->kind == JSON_STREAM_MAP_END || e->kind == JSON_STREAM_ARRAY_END;
    if (p->depth == 0) {
        if (e->kind != (p->at == VOCAB ? JSON_STREAM_MAP : JSON_STREAM_ARRAY))
            return wrong_kind(p, err);
        p->depth = 1;
        return 0;
    }
    p->depth += open;
    p->depth -= close;
    if (p->depth == 0) {
        p->at = SETTINGS;
        return 0;
    }
    if (p->wait)
        return 0;
    return p->at == ADDED ? on_added(p, e, err) : p->at == VOCAB ? on_vocab(p, e, err) : on_merge(p, e, err);
}

static enum part part_of_key(const struct reader *p, const struct json_stream_event *e)
{
    unsigned depth = p->settings.depth;
    for (int i = ADDED; i < PARTS; i++) {
        const char *name = i == ADDED ? part_names[i] : part_names[i] + strlen("model.");
        if (depth == (i == ADDED ? 1u : 2u) && (i == ADDED || p->in_model) && strlen(name) == e->n &&
            memcmp(name, e->text, e->n) == 0)
            return (enum part)i;
    }
    return SETTINGS;
}

static int on_event(void *ctx, const struct json_stream_event *e, struct err *err)
{
    struct reader *p = ctx;
    if (p->at != SETTINGS)
        return on_part(p, e, err);
    enum part part = e->kind == JSON_STREAM_KEY ? part_of_key(p, e) : SETTINGS;
    if (part == SETTINGS) {
        if (e->kind == JSON_STREAM_KEY && p->settings.depth == 1)
            p->in_model = e->n == 5 && memcmp(e->text, "model", 5) == 0;
        return json_stream_add(&p->settings, e, err);
    }
    if (p->seen[part])
        return err_set(err, -EINVAL, "key '%s' is there twice", part_names[part]);
    p->seen[part] = true;
    p->at = part;
    p->depth = 0;
    p->wait = p->again ? part != MERGES : part == MERGES && !p->seen[VOCAB];
    p->late |= p->wait && !p->again;
    return 0;
}

static int read_file(struct reader *p, const char *path, struct err *err)
{
    int r = json_stream_read(path, on_event, p, err);
    if (r == 0 && p->late && p->seen[VOCAB]) {
        json_stream_drop(&p->settings);
        memset(p->seen, 0, sizeof(p->seen));
        p->in_model = false;
        p->again = true;
        r = json_stream_read(path, on_event, p, err);
    }
    return r;
}

/* ---- settings ---- */

struct rule {
    const char *key;
    const char *allowed[3]; /* as JSON; "absent" where the key may be missing */
    const char *expected;
};

#define TO_MARK "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" MARK "\"}"
#define FROM_MARK "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" MARK "\"},\"content\":\" \"}"

/* The Split does nothing: after the normalizer there are no spaces. */
static const struct rule outer_rules[] = {
    {"version", {"\"1.0\""}, "\"1.0\""},
    {"normalizer", {TO_MARK, "{\"type\":\"Sequence\",\"normalizers\":[" TO_MARK "]}"}, TO_MARK},
    {"pre_tokenizer",
     {"null", "absent", "{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},\"behavior\":\"MergedWithPrevious\",\"invert\":false}"},
     "null, or a Split at ' ' with behavior MergedWithPrevious"},
    {"decoder",
     {"{\"type\":\"Sequence\",\"decoders\":[" FROM_MARK ",{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]}"},
     "a Sequence of Replace ('" MARK "' by ' '), ByteFallback and Fuse"},
};
static const struct rule model_rules[] = {
    {"type", {"\"BPE\""}, "\"BPE\""},
    {"dropout", {"absent", "null", "0.0"}, "null"},
    {"continuing_subword_prefix", {"absent", "null", "\"\""}, "null"},
    {"end_of_word_suffix", {"absent", "null", "\"\""}, "null"},
    {"byte_fallback", {"true"}, "true"},
    {"ignore_merges", {"absent", "false"}, "false"},
};
static const char *const outer_others[] = {"model", "post_processor", "truncation", "padding"};
static const char *const model_others[] = {"unk_token", "fuse_unk"}; /* <unk> never happens where all bytes are pieces */

static bool allowed(const struct rule *rule, const json_t *found)
{
    for (size_t i = 0; i < ARRAY_LEN(rule->allowed) && rule->allowed[i]; i++) {
        bool absent = strcmp(rule->allowed[i], "absent") == 0;
        json_t *want = absent || !found ? NULL : json_loads(rule->allowed[i], JSON_DECODE_ANY, NULL);
        bool same = absent ? !found : want && json_equal((json_t *)(uintptr_t)found, want);
        json_decref(want);
        if (same)
            return true;
    }
    return false;
}

static int check_keys(const json_t *object, const char *prefix, const struct rule *rules, size_t n_rules, const char *const *others,
                      size_t n_others, struct err *err)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        bool known = false;
        for (size_t i = 0; i < n_rules; i++)
            known |= strcmp(key, rules[i].key) == 0;
        for (size_t i = 0; i < n_others; i++)
            known |= strcmp(key, others[i]) == 0;
        if (!known)
            return err_set(err, -ENOTSUP, "key '%s%.64s' is not known here; expected a tokenizer.json as every Gemma 3 has", prefix,
                           key);
    }
    for (size_t i = 0; i < n_rules; i++) {
        const json_t *found = json_object_get(object, rules[i].key);
        if (allowed(&rules[i], found))
            continue;
        auto_free char *text = json_dumps(found, JSON_ENCODE_ANY | JSON_COMPACT);
        return err_set(err, -ENOTSUP, "key '%s%s' is %.120s; expected %s, as every Gemma 3 has: GGUF cannot express another",
                       prefix, rules[i].key, text ? text : "absent", rules[i].expected);
    }
    return 0;
}

static int check_settings(const struct reader *p, struct err *err)
{
    const json_t *root = p->settings.done, *model = json_object_get(root, "model");
    if (!json_is_object(root) || !json_is_object(model))
        return err_set(err, -EINVAL, "key 'model' is not an object; expected a tokenizer.json of Hugging Face's tokenizers");
    int r = check_keys(root, "", outer_rules, ARRAY_LEN(outer_rules), outer_others, ARRAY_LEN(outer_others), err);
    if (r == 0)
        r = check_keys(model, "model.", model_rules, ARRAY_LEN(model_rules), model_others, ARRAY_LEN(model_others), err);
    if (r == 0 && (!p->seen[VOCAB] || !p->seen[MERGES]))
        r = err_set(err, -EINVAL, "key '%s' is missing; expected a BPE", part_names[p->seen[VOCAB] ? MERGES : VOCAB]);
    return r;
}

/* ---- what surrounds a text ---- */

/* The id of one {"SpecialToken": {"id": name}} of the template. */
static int special_of(const struct reader *p, const json_t *processor, const json_t *item, int64_t *ret, struct err *err)
{
    const char *name = json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));
    const json_t *ids = json_object_get(json_object_get(json_object_get(processor, "special_tokens"), name ? name : ""), "ids");
    int64_t id = name ? bpe_find(p->bpe, name, strlen(name)) : -1;
    if (id < 0 || json_array_size(ids) != 1 || json_integer_value(json_array_get(ids, 0)) != id)
        return err_set(err, -EINVAL, "key 'post_processor' names the special token '%.64s'; expected a piece, with its id alone",
                       name ? name : "(none)");
    *ret = id;
    return 0;
}

/* <bos> before a text and <eos> behind it are all that GGUF can say. */
static int read_template(const struct reader *p, struct tokenizer_json *t, struct err *err)
{
    const json_t *processor = json_object_get(p->settings.done, "post_processor");
    const json_t *single = json_object_get(processor, "single"), *item;
    const char *type = json_string_value(json_object_get(processor, "type"));
    unsigned texts = 0, before = 0, behind = 0;
    size_t i;
    if (!processor || json_is_null(processor))
        return 0;
    json_array_foreach((json_t *)(uintptr_t)single, i, item)
    {
        int r = 0;
        if (json_object_get(item, "Sequence"))
            texts++;
        else if (texts)
            r = behind++ ? 0 : special_of(p, processor, item, &t->spm.eos, err);
        else
            r = before++ ? 0 : special_of(p, processor, item, &t->spm.bos, err);
        if (r < 0)
            return r;
    }
    if (!type || strcmp(type, "TemplateProcessing") != 0 || texts != 1 || before > 1 || behind > 1)
        return err_set(
            err, -ENOTSUP,
            "key 'post_processor' is of type '%.64s' and puts %u tokens before and %u behind %u texts; expected null or a "
            "TemplateProcessing with at most one before and one behind: GGUF cannot express another",
            type ? type : "(none)", before, behind, texts);
    t->add_bos = before;
    t->add_eos = behind;
    return 0;
}

/* ---- all together ---- */

static int find_specials(const struct reader *p, struct spm *s, struct err *err)
{
    const json_t *unknown = json_object_get(json_object_get(p->settings.done, "model"), "unk_token");
    const char *name = json_is_string(unknown) ? json_string_value(unknown) : "<unk>";
    unsigned n_bytes = 0;
    for (uint32_t i = 0; i < bpe_count(p->bpe); i++) {
        if (!bpe_type(p->bpe, i))
            return err_set(err, -EINVAL, "no piece has id %u, but the highest is %u; expected ids without holes", i,
                           bpe_count(p->bpe) - 1);
        n_bytes += bpe_type(p->bpe, i) == SPM_BYTE;
    }
    if (n_bytes != 256)
        return err_set(err, -ENOTSUP, "%u of the pieces <0x00> to <0xFF> are there; expected all 256: GGUF falls back to bytes",
                       n_bytes);
    s->bos = bpe_find(p->bpe, "<bos>", 5);
    s->eos = bpe_find(p->bpe, "<eos>", 5);
    s->pad = bpe_find(p->bpe, "<pad>", 5);
    s->unk = bpe_find(p->bpe, name, strlen(name));
    if (s->unk < 0 || bpe_type(p->bpe, (uint32_t)s->unk) == SPM_BYTE)
        return err_set(err, -EINVAL, "key 'model.unk_token' is '%.64s'; expected a piece", name);
    bpe_set_type(p->bpe, (uint32_t)s->unk, SPM_UNKNOWN);
    return 0;
}

static int take_pieces(struct reader *p, struct tokenizer_json *t, struct err *err)
{
    uint32_t n = bpe_count(p->bpe);
    auto_free float *scores = malloc(n * sizeof(*scores));
    t->spm.pieces = malloc(n * sizeof(*t->spm.pieces));
    if (!scores || !t->spm.pieces)
        return err_set(err, -ENOMEM, "out of memory for %u pieces", n);
    int r = bpe_scores(p->bpe, scores, err);
    if (r < 0)
        return r;
    t->spm.n = n;
    for (uint32_t i = 0; i < n; i++) {
        size_t length;
        const char *text = bpe_text(p->bpe, i, &length);
        int type = bpe_type(p->bpe, i);
        bool added = type != SPM_NORMAL && type != SPM_BYTE;
        t->spm.pieces[i] = (struct spm_piece){
            .text = text, .n = (uint32_t)length, .score = added ? ADDED_SCORE : scores[i], .type = (uint32_t)type};
    }
    t->texts = bpe_take_texts(p->bpe);
    return 0;
}

static int load(struct reader *p, const char *path, struct tokenizer_json *t, struct err *err)
{
    int r = bpe_open(p->n_rows, &p->bpe, err);
    if (r == 0)
        r = read_file(p, path, err);
    if (r < 0)
        return r;
    r = check_settings(p, err);
    for (uint32_t i = 0; r == 0 && i < p->n_added; i++)
        r = add_added(p, &p->added[i], err);
    if (r == 0)
        r = find_specials(p, &t->spm, err);
    if (r == 0)
        r = read_template(p, t, err);
    if (r == 0)
        r = take_pieces(p, t, err);
    return r;
}

int tokenizer_json_load(const char *path, uint32_t n_rows, struct tokenizer_json *ret, struct err *err)
{
    struct reader p = {.n_rows = n_rows};
    struct tokenizer_json t = {0};
    int r = load(&p, path, &t, err);
    for (uint32_t i = 0; i < p.n_added; i++)
        free(p.added[i].text);
    free(p.added);
    free(p.text);
    json_stream_drop(&p.settings);
    json_stream_drop(&p.entry);
    bpe_close(p.bpe);
    if (r < 0)
        tokenizer_json_fini(&t);
    else
        *ret = t;
    return r;
}

void tokenizer_json_fini(struct tokenizer_json *t)
{
    spm_fini(&t->spm);
    free(t->texts);
    *t = (struct tokenizer_json){0};
}
