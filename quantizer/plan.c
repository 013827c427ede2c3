/* SPDX-License-Identifier: MIT
 * Lays out the output: which tensor goes into which file, the metadata of each file as bytes, and from them every offset. Called
 * by the conversion on one thread, before anything is written. Owns the metadata until plan_fini; it touches no file. */
#include "quantizer/plan.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/quant.h"
#include "model/gemma3.h"
#include "model/gguf.h"
#include "model/checksums.h"
#include "model/gguf_write.h"
#include "proto/err.h"
#include "proto/util.h"
#include "quantizer/pipeline.h"
#include "quantizer/recipe.h"
#include "quantizer/source.h"

/* File 0 holds what belongs to no layer, file i + 1 layer i. */
static uint32_t layer_file(const struct source_tensor *t)
{
    return t->role < GEMMA3_LAYER_TENSORS ? t->layer + 1 : 0;
}

static int by_layer(const void *a, const void *b)
{
    const struct plan_tensor *x = a, *y = b;
    uint32_t i = layer_file(x->src), j = layer_file(y->src);
    return i != j ? (i > j) - (i < j) : (x->source_index > y->source_index) - (x->source_index < y->source_index);
}

/* Fills files in order, each as far as it goes; the metadata of the first file counts with `head` bytes. */
static uint32_t pack(struct plan *p, uint64_t limit, uint64_t head, uint32_t alignment)
{
    uint64_t used = head;
    uint32_t file = 0;
    for (uint32_t i = 0; i < p->n_tensors; i++) {
        uint64_t n = util_round_up(p->tensors[i].bytes, alignment);
        if (limit && used + n > limit && i > 0 && p->tensors[i - 1].file == file) {
            file++;
            used = 0;
        }
        p->tensors[i].file = file;
        used += n;
        if (limit && file > 0)
            used += 512; /* more than the metadata of one tensor needs */
    }
    return file + 1;
}

static void split_keys(struct gguf_write *w, uint32_t file, const struct plan *p)
{
    const uint16_t no = (uint16_t)file, count = (uint16_t)p->n_files;
    const int32_t tensors = (int32_t)p->n_tensors;
    gguf_write_scalar(w, "split.no", GGUF_U16, &no, 1);
    gguf_write_scalar(w, "split.count", GGUF_U16, &count, 1);
    gguf_write_scalar(w, "split.tensors.count", GGUF_I32, &tensors, 1);
}

static int add_tensors(struct plan *p, struct plan_file *f, struct gguf_write *w, struct err *err)
{
    for (uint32_t i = f->first; i < f->first + f->n_tensors; i++) {
        const struct plan_tensor *t = &p->tensors[i];
        const uint64_t dims[] = {t->src->cols, t->src->rows};
        int r = gguf_write_tensor(w, t->src->name, t->type, gemma3_is_norm(t->src->role) ? 1 : 2, dims, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int checksum_keys(struct plan *p, struct gguf_write *w, struct err *err)
{
    auto_free uint8_t *types = malloc(p->n_tensors);
    if (!types)
        return err_set(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < p->n_tensors; i++)
        types[i] = (uint8_t)p->tensors[i].type;
    gguf_write_array(w, CHECKSUMS_TYPES_KEY, GGUF_U8, types, p->n_tensors);
    p->checksums = gguf_write_slots(w, CHECKSUMS_KEY, p->n_tensors);
    return 0;
}

static int lay_out_file(struct plan *p, uint32_t file, const struct recipe *r, const struct plan_options *o, struct err *err)
{
    struct plan_file *f = &p->files[file];
    struct gguf_write *w;
    int e = gguf_write_open(NULL, o->alignment, &w, err);
    if (e < 0)
        return e;
    if (file == 0)
        e = source_write_keys(p->source, o->name, r->file_type, w, err);
    if (file == 0 && o->extra_keys)
        o->extra_keys(o->ctx, w);
    if (p->n_files > 1)
        split_keys(w, file, p);
    if (e == 0 && file == 0)
        e = checksum_keys(p, w, err);
    if (e == 0)
        e = add_tensors(p, f, w, err);
    if (e == 0)
        e = gguf_write_take(w, &f->header, &f->header_bytes, err);
    for (uint32_t i = 0; e == 0 && i < f->n_tensors; i++) {
        struct plan_tensor *t = &p->tensors[f->first + i];
        t->offset = f->header_bytes + gguf_write_place(w, (int)i, &t->bytes);
    }
    f->bytes = f->header_bytes + gguf_write_data_bytes(w);
    gguf_write_abort(w);
    return e;
}

static int name_files(struct plan *p, const char *out, struct err *err)
{
    for (uint32_t i = 0; i < p->n_files; i++) {
        p->files[i].path = p->n_files > 1 ? gguf_part_name(out, i, p->n_files) : strdup(out);
        if (!p->files[i].path)
            return err_set(err, -ENOMEM, "out of memory");
    }
    return 0;
}

static int make_files(struct plan *p, const struct recipe *r, const struct plan_options *o, struct err *err)
{
    p->files = calloc(p->n_files, sizeof(*p->files));
    if (!p->files)
        return err_set(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < p->n_tensors; i++) {
        struct plan_file *f = &p->files[p->tensors[i].file];
        f->first = f->n_tensors++ ? f->first : i;
    }
    int e = name_files(p, o->out, err);
    uint64_t at = 0;
    p->bytes = 0;
    for (uint32_t i = 0; e == 0 && i < p->n_files; i++) {
        e = lay_out_file(p, i, r, o, err);
        p->files[i].begin = at;
        p->bytes += p->files[i].bytes;
        at = util_round_up(at + p->files[i].bytes, PIPELINE_PAGE);
    }
    p->stream_bytes = at;
    return e;
}

static void drop_files(struct plan *p)
{
    for (uint32_t i = 0; p->files && i < p->n_files; i++) {
        free(p->files[i].path);
        free(p->files[i].header);
    }
    free(take_ptr(&p->files));
}

static int split(struct plan *p, const struct recipe *r, const struct plan_options *o, struct err *err)
{
    p->n_files = 1;
    if (o->split_layers) {
        qsort(p->tensors, p->n_tensors, sizeof(*p->tensors), by_layer);
        for (uint32_t i = 0; i < p->n_tensors; i++)
            p->tensors[i].file = layer_file(p->tensors[i].src);
        p->n_files = p->tensors[p->n_tensors - 1].file + 1;
    }
    int e = make_files(p, r, o, err);
    if (e == 0 && o->split_bytes && p->bytes > o->split_bytes) {
        uint64_t head = p->files[0].header_bytes; /* of all tensors: more than the first part will need */
        drop_files(p);
        p->n_files = pack(p, o->split_bytes, head, o->alignment);
        e = make_files(p, r, o, err);
    }
    if (e == 0 && p->n_files > GGUF_MAX_PARTS)
        e = err_set(err, -EINVAL, "the model would have %u parts; expected at most %u (choose larger parts)", p->n_files,
                    GGUF_MAX_PARTS);
    return e;
}

int plan_make(const struct source *s, const struct recipe *r, const struct plan_options *o, struct plan *ret, struct err *err)
{
    struct plan p = {.source = s, .n_tensors = source_n(s)};
    p.tensors = calloc(p.n_tensors, sizeof(*p.tensors));
    if (!p.tensors)
        return err_set(err, -ENOMEM, "out of memory");
    snprintf(p.type, sizeof(p.type), "%s", r->name);
    for (uint32_t i = 0; i < p.n_tensors; i++) {
        const struct source_tensor *t = source_at(s, i);
        p.tensors[i] = (struct plan_tensor){.src = t, .type = r->types[i], .source_index = i};
        p.tensors[i].bytes = quant_row_bytes(r->types[i], t->cols) * t->rows;
    }
    int e = split(&p, r, o, err);
    if (e < 0)
        plan_fini(&p);
    else
        *ret = p;
    return e;
}

void plan_fini(struct plan *p)
{
    drop_files(p);
    free(take_ptr(&p->tensors));
}

void plan_print(const struct plan *p, FILE *f)
{
    fprintf(f, "%-36s %15s  %-5s %-5s %4s %13s %13s\n", "tensor", "shape", "from", "to", "file", "offset", "bytes");
    for (uint32_t i = 0; i < p->n_tensors; i++) {
        const struct plan_tensor *t = &p->tensors[i];
        char shape[32];
        snprintf(shape, sizeof(shape), "%u x %u", t->src->rows, t->src->cols);
        fprintf(f, "%-36s %15s  %-5s %-5s %4u %13" PRIu64 " %13" PRIu64 "\n", t->src->name, shape, quant_name(t->src->type),
                quant_name(t->type), t->file + 1, t->offset, t->bytes);
    }
}
