/* SPDX-License-Identifier: MIT
 * The list of tensors that both kinds of source fill, and the identity by which a resumed conversion knows its input again. Owns
 * the list and the open kind behind it; called by conversion and comparison on one thread. It never reads tensor data. */
#include "quantizer/source.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <xxhash.h>

#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"
#include "quantizer/source_impl.h"

int source_open(const char *path, struct source **ret, struct err *err)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return err_set_errno(err, -errno,
                             "input '%s'; expected the folder of a checkpoint (config.json, *.safetensors) or a GGUF file", path);
    bool file = S_ISREG(st.st_mode);
    struct source *s = calloc(1, sizeof(*s));
    if (!s)
        return err_set(err, -ENOMEM, "'%s': out of memory", path);
    s->kind = file ? &source_gguf_kind : &source_hf_kind;
    int r = s->kind->open(s, path, err);
    if (r < 0) {
        source_close(s);
        return r;
    }
    for (uint32_t i = 0; i < s->n; i++)
        s->bytes += s->tensors[i].bytes;
    *ret = s;
    return 0;
}

void source_close(struct source *s)
{
    if (!s)
        return;
    if (s->ctx)
        s->kind->close(s->ctx);
    free(s->tensors);
    free(s);
}

struct source_tensor *source_add(struct source *s, enum gemma3_tensor role, uint32_t layer)
{
    if (s->n == s->cap) {
        uint32_t cap = MAX(s->cap * 2, 64u);
        struct source_tensor *p = realloc(s->tensors, cap * sizeof(*p));
        if (!p)
            return NULL;
        s->tensors = p;
        s->cap = cap;
    }
    struct source_tensor *t = &s->tensors[s->n++];
    *t = (struct source_tensor){.role = role, .layer = layer};
    gemma3_shape(&s->h, role, &t->rows, &t->cols);
    gemma3_name(role, layer, t->name, sizeof(t->name));
    return t;
}

const struct hparams *source_hparams(const struct source *s)
{
    return &s->h;
}

uint32_t source_n(const struct source *s)
{
    return s->n;
}

const struct source_tensor *source_at(const struct source *s, uint32_t i)
{
    return &s->tensors[i];
}

uint32_t source_n_skipped(const struct source *s)
{
    return s->n_skipped;
}

uint64_t source_bytes(const struct source *s)
{
    return s->bytes;
}

bool source_is_gguf(const struct source *s)
{
    return s->kind == &source_gguf_kind;
}

int source_unchanged(const struct source *s, struct err *err)
{
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < s->n; i++)
        r = i == 0 || s->tensors[i].file != s->tensors[i - 1].file ? io_unchanged(s->tensors[i].file, err) : 0;
    return r;
}

static bool same_file(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* What decides on the output beside the tensors' files, in a folder. */
static const char *const beside[] = {"config.json",       "generation_config.json",      "tokenizer.model",
                                     "tokenizer.json",    "tokenizer_config.json",       "special_tokens_map.json",
                                     "added_tokens.json", "model.safetensors.index.json"};

static const char *beside_path(const struct source *s, size_t i, char path[PATH_MAX])
{
    const char *of = s->n ? io_path(s->tensors[0].file) : "", *slash = strrchr(of, '/');
    int n = snprintf(path, PATH_MAX, "%.*s%s", slash ? (int)(slash + 1 - of) : 0, of, beside[i]);
    return n < PATH_MAX ? path : "";
}

bool source_has(const struct source *s, const char *path)
{
    char other[PATH_MAX];
    for (uint32_t i = 0; i < s->n; i++) {
        if ((i == 0 || s->tensors[i].file != s->tensors[i - 1].file) && same_file(io_path(s->tensors[i].file), path))
            return true;
    }
    for (size_t i = 0; !source_is_gguf(s) && i < ARRAY_LEN(beside); i++) {
        if (same_file(beside_path(s, i, other), path))
            return true;
    }
    return false;
}

static void add_file(XXH3_state_t *x, const char *path)
{
    struct stat st = {0};
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    stat(path, &st);
    const uint64_t facts[] = {(uint64_t)st.st_size, (uint64_t)st.st_mtim.tv_sec, (uint64_t)st.st_mtim.tv_nsec};
    XXH3_64bits_update(x, name, strlen(name) + 1);
    XXH3_64bits_update(x, facts, sizeof(facts));
}

uint64_t source_identity(const struct source *s)
{
    XXH3_state_t *x = XXH3_createState();
    if (!x)
        return 0;
    XXH3_64bits_reset(x);
    for (uint32_t i = 0; i < s->n; i++) {
        const struct source_tensor *t = &s->tensors[i];
        const uint64_t facts[] = {t->rows, t->cols, (uint64_t)t->type, t->offset, t->bytes};
        if (i == 0 || t->file != s->tensors[i - 1].file)
            add_file(x, io_path(t->file));
        XXH3_64bits_update(x, t->origin, strlen(t->origin) + 1);
        XXH3_64bits_update(x, facts, sizeof(facts));
    }
    char path[PATH_MAX];
    for (size_t i = 0; !source_is_gguf(s) && i < ARRAY_LEN(beside); i++)
        add_file(x, beside_path(s, i, path));
    uint64_t h = XXH3_64bits_digest(x);
    XXH3_freeState(x);
    return h;
}

int source_write_keys(const struct source *s, const char *name, uint32_t file_type, struct gguf_write *w, struct err *err)
{
    return s->kind->write_keys(s, name, file_type, w, err);
}

void source_forget_keys(struct source *s)
{
    s->kind->forget_keys(s->ctx);
}
