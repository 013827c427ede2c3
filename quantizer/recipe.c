/* SPDX-License-Identifier: MIT
 * The table of presets and the rules by which a mix gives some tensors more bits. Called by the conversion, on one thread, before
 * anything is written. Owns nothing but the list of types that it returns. */
#include "quantizer/recipe.h"

#include <errno.h>
#include <regex.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "kernels/quant.h"
#include "proto/err.h"
#include "proto/util.h"
#include "quantizer/source.h"

#define PATTERN_MAX 256

static const struct preset {
    const char *name, *type, *more; /* more: of a mix, for the tensors that suffer most */
    uint32_t file_type;
} presets[] = {
    {"f32", "f32", NULL, 0},      {"f16", "f16", NULL, 1},        {"bf16", "bf16", NULL, 32},     {"q8_0", "q8_0", NULL, 7},
    {"q6_k", "q6_k", NULL, 18},   {"q5_1", "q5_1", NULL, 9},      {"q5_0", "q5_0", NULL, 8},      {"q4_1", "q4_1", NULL, 3},
    {"q4_0", "q4_0", NULL, 2},    {"q5_k_m", "q5_k", "q6_k", 17}, {"q4_k_m", "q4_k", "q6_k", 15}, {"q5_k", "q5_k", "q6_k", 17},
    {"q4_k", "q4_k", "q6_k", 15}, /* the last two: llama-quantize's names for the two before */
};

const char *recipe_presets(void)
{
    return "f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_1, q5_0, q4_k_m, q4_1 or q4_0";
}

const char *recipe_types(void)
{
    return "f32, f16, bf16, q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1 or q4_0";
}

static const struct preset *find_preset(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(presets); i++) {
        if (strcasecmp(name, presets[i].name) == 0 && quant_from_name(presets[i].type) >= 0)
            return &presets[i];
    }
    return NULL;
}

bool recipe_is_preset(const char *name)
{
    return find_preset(name) != NULL;
}

uint32_t recipe_file_type(int type)
{
    for (size_t i = 0; i < ARRAY_LEN(presets); i++) {
        if (quant_from_name(presets[i].type) == type)
            return presets[i].file_type;
    }
    return 0;
}

int recipe_fitting_type(int type, uint32_t cols)
{
    static const struct {
        const char *from, *to;
    } fallbacks[] = {{"q4_k", "q5_0"}, {"q5_k", "q5_1"}, {"q6_k", "q8_0"}};
    if (quant_row_bytes(type, cols))
        return type;
    for (size_t i = 0; i < ARRAY_LEN(fallbacks); i++) {
        if (type == quant_from_name(fallbacks[i].from))
            type = quant_from_name(fallbacks[i].to);
    }
    return type >= 0 && quant_row_bytes(type, cols) ? type : -1;
}

/* The layers of a mix that get more bits: the first and the last eighth, and every third between. */
static bool has_more_bits(uint32_t layer, uint32_t n_layers)
{
    uint32_t eighth = n_layers / 8;
    return layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2;
}

static bool is_head(const struct source *s, const struct source_tensor *t)
{
    bool untied = source_at(s, source_n(s) - 1)->role == GEMMA3_OUTPUT;
    return t->role == (untied ? GEMMA3_OUTPUT : GEMMA3_TOKEN_EMBD);
}

static int preset_type(const struct source *s, const struct preset *p, bool pure, const struct source_tensor *t)
{
    int type = quant_from_name(p->type), more = p->more && !pure ? quant_from_name(p->more) : type;
    if (is_head(s, t))
        return quant_row_bytes(type, t->cols) ? more : quant_from_name("q8_0");
    if ((t->role == GEMMA3_ATTN_V || t->role == GEMMA3_FFN_DOWN) && has_more_bits(t->layer, source_hparams(s)->n_layers))
        return more;
    return type;
}

static int check_rows(const struct source_tensor *t, int type, struct err *err)
{
    if (quant_row_bytes(type, t->cols))
        return 0;
    return err_set(err, -ENOTSUP, "tensor '%s' has rows of %u; type %s needs a multiple of %zu (choose --type bf16)", t->origin,
                   t->cols, quant_name(type), quant_block_elems(type));
}

static int apply_preset(const struct source *s, const struct recipe_options *o, struct recipe *r, struct err *err)
{
    const struct preset *p = find_preset(o->type ? o->type : "q8_0");
    if (!p)
        return err_set(err, -EINVAL, "type '%s' is not known; expected %s", o->type, recipe_presets());
    r->file_type = p->file_type;
    snprintf(r->name, sizeof(r->name), "%s", p->name);
    for (uint32_t i = 0; i < r->n; i++) {
        const struct source_tensor *t = source_at(s, i);
        int wanted = gemma3_is_norm(t->role) ? QUANT_F32 : preset_type(s, p, o->pure, t);
        int type = recipe_fitting_type(wanted, t->cols);
        if (type < 0)
            return check_rows(t, wanted, err);
        r->types[i] = type;
        r->n_fallback += type != wanted;
    }
    return 0;
}

static int apply_override(const struct source *s, const struct recipe_override *o, struct recipe *r, struct err *err)
{
    regex_t pattern;
    int type = quant_from_name(o->type), result = 0;
    uint32_t n = 0;
    if (type < 0)
        return err_set(err, -EINVAL, "tensor type '%s=%s': type '%s' is not known; expected %s", o->pattern, o->type, o->type,
                       recipe_types());
    const char *repeat = strchr(o->pattern, '{');
    if (strlen(o->pattern) > PATTERN_MAX || (repeat && strchr(repeat + 1, '{')))
        return err_set(
            err, -EINVAL,
            "tensor type '%.64s...': expected a pattern of at most %d characters with at most one {m,n}: others can take "
            "any amount of memory",
            o->pattern, PATTERN_MAX);
    int e = regcomp(&pattern, o->pattern, REG_EXTENDED | REG_NOSUB);
    if (e) {
        char text[128];
        regerror(e, &pattern, text, sizeof(text));
        return err_set(err, -EINVAL, "tensor type '%s=%s': not a regular expression: %s", o->pattern, o->type, text);
    }
    for (uint32_t i = 0; result == 0 && i < r->n; i++) {
        const struct source_tensor *t = source_at(s, i);
        if (gemma3_is_norm(t->role) || regexec(&pattern, t->name, 0, NULL, 0) != 0)
            continue;
        result = check_rows(t, type, err);
        r->types[i] = type;
        r->fixed[i] = true;
        n++;
    }
    regfree(&pattern);
    if (result == 0 && n == 0)
        result =
            err_set(err, -EINVAL, "tensor type '%s=%s' matches no matrix; expected part of a name such as 'blk.0.ffn_down.weight'",
                    o->pattern, o->type);
    return result;
}

int recipe_override(const struct source *s, const struct recipe_options *o, struct recipe *r, struct err *err)
{
    int e = 0;
    for (uint32_t i = 0; e == 0 && i < o->n_overrides; i++)
        e = apply_override(s, &o->overrides[i], r, err);
    return e;
}

int recipe_make(const struct source *s, const struct recipe_options *o, struct recipe *ret, struct err *err)
{
    struct recipe r = {.n = source_n(s)};
    r.types = calloc(r.n, sizeof(*r.types));
    r.fixed = calloc(r.n, sizeof(*r.fixed));
    int e = r.types && r.fixed ? apply_preset(s, o, &r, err) : err_set(err, -ENOMEM, "out of memory");
    if (e == 0)
        e = recipe_override(s, o, &r, err);
    if (e < 0)
        recipe_fini(&r);
    else
        *ret = r;
    return e;
}

void recipe_fini(struct recipe *r)
{
    free(r->types);
    free(r->fixed);
    r->types = NULL;
    r->fixed = NULL;
}
