/* SPDX-License-Identifier: MIT
 * A GGUF file as a source, to be quantized again: its keys go over as they are, but for those that describe the file itself.
 * Owns the open file. Called by source.c on one thread. Tensors that no Gemma 3 model has are refused, because a copy that is
 * not understood cannot be checked. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/quant.h"
#include "model/gguf.h"
#include "model/gguf_write.h"
#include "proto/err.h"
#include "proto/util.h"
#include "quantizer/source_impl.h"

struct file {
    struct gguf *gguf;
};

static int add(struct source *s, const struct gguf *g, enum gemma3_tensor role, uint32_t layer, struct err *err)
{
    const struct gguf_tensor *t;
    int r = gemma3_find(g, role, layer, &t, err);
    if (r < 0)
        return r;
    struct source_tensor *x = source_add(s, role, layer);
    if (!x)
        return err_set(err, -ENOMEM, "out of memory");
    x->origin = t->name;
    x->type = t->type;
    x->file = gguf_io(g, t->file);
    x->offset = t->offset;
    x->bytes = t->bytes;
    return 0;
}

static int list(struct source *s, const struct gguf *g, struct err *err)
{
    char name[64];
    int r = add(s, g, GEMMA3_TOKEN_EMBD, 0, err);
    for (uint32_t layer = 0; r == 0 && layer < s->h.n_layers; layer++) {
        for (int t = 0; r == 0 && t < GEMMA3_LAYER_TENSORS; t++)
            r = add(s, g, (enum gemma3_tensor)t, layer, err);
    }
    if (r == 0)
        r = add(s, g, GEMMA3_OUTPUT_NORM, 0, err);
    if (r == 0 && gguf_find(g, gemma3_name(GEMMA3_OUTPUT, 0, name, sizeof(name))))
        r = add(s, g, GEMMA3_OUTPUT, 0, err);
    if (r == 0 && s->n != gguf_n_tensors(g))
        r = err_set(err, -ENOTSUP,
                    "has %u tensors; a Gemma 3 text model of %u layers has %u of them, and what the others are for is "
                    "not known (see 'quantizer info')",
                    gguf_n_tensors(g), s->h.n_layers, s->n);
    return r;
}

static int open_file(struct source *s, const char *path, struct err *err)
{
    struct file *f = calloc(1, sizeof(*f));
    if (!f)
        return err_set(err, -ENOMEM, "'%s': out of memory", path);
    s->ctx = f;
    int r = gguf_open(path, true, &f->gguf, err);
    if (r == 0)
        r = gemma3_hparams(f->gguf, &s->h, err);
    if (r < 0)
        return r;
    r = list(s, f->gguf, err);
    return r < 0 ? err_wrap(err, r, "model '%s'", path) : 0;
}

static void close_file(void *ctx)
{
    struct file *f = ctx;
    gguf_close(f->gguf);
    free(f);
}

/* Of the file that was read, not of the model. */
static bool is_of_file(const char *key)
{
    static const char *const keys[] = {"general.alignment",
                                       "general.file_type",
                                       "general.quantization_version",
                                       "general.name",
                                       "split.no",
                                       "split.count",
                                       "split.tensors.count",
                                       "quantize.imatrix.file",
                                       "quantize.imatrix.dataset",
                                       "quantize.imatrix.entries_count",
                                       "quantize.imatrix.chunks_count"};
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        if (strcmp(key, keys[i]) == 0)
            return true;
    }
    return strncmp(key, "tandem.", 7) == 0;
}

static void write_key(const struct gguf_key *k, struct gguf_write *w)
{
    if (k->type != GGUF_ARRAY) {
        gguf_write_scalar(w, k->name, k->type, k->data, k->n);
    } else if (k->element != GGUF_STRING) {
        gguf_write_array(w, k->name, k->element, k->data, k->n);
    } else {
        gguf_write_strings_begin(w, k->name, k->n);
        for (uint64_t i = 0; i < k->n; i++)
            gguf_write_strings_add(w, (const char *)k->data + k->offsets[i], (size_t)(k->offsets[i + 1] - k->offsets[i] - 1));
    }
}

static int write_keys(const struct source *s, const char *name, uint32_t file_type, struct gguf_write *w, struct err *err)
{
    const struct file *f = s->ctx;
    size_t length = name ? strlen(name) : 0;
    (void)err; /* what fails here is remembered by the writer */
    if (!name && gguf_get_string(f->gguf, "general.name", &name, &length, NULL) < 0)
        name = NULL;
    gguf_write_string(w, "general.architecture", "gemma3", 6);
    if (name)
        gguf_write_string(w, "general.name", name, length);
    gguf_write_u32(w, "general.file_type", file_type);
    gguf_write_u32(w, "general.quantization_version", 2);
    for (uint32_t i = 0; i < gguf_n_keys(f->gguf); i++) {
        struct gguf_key k;
        gguf_key_at(f->gguf, i, &k);
        if (!is_of_file(k.name) && strcmp(k.name, "general.architecture") != 0)
            write_key(&k, w);
    }
    return 0;
}

static void forget_keys(void *ctx)
{
    (void)ctx; /* the table of tensors, which is still needed, belongs to the same object */
}

const struct source_kind source_gguf_kind = {open_file, close_file, write_keys, forget_keys};
