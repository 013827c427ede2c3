/* SPDX-License-Identifier: MIT
 * Owns one open GGUF model, a file or all parts of a split one, and a parsed copy of its metadata; never its tensor data. Filled
 * once by gguf_open, then read-only, from any thread. The header is read through a small window, so a file that lies about a length
 * costs no memory: every length is checked against what is left of the file before anything is allocated. */
#include "model/gguf.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "kernels/quant.h"
#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"

#define WINDOW (64u << 10)
#define MAX_HEADER (256u << 20) /* bytes of metadata: what bounds the memory that a file can make us take */
#define MAX_TENSORS 65536u
#define MAX_KV 4096u
#define MAX_NAME 1024u
#define MAX_STRING (16u << 20)
#define MAX_ARRAY (64u << 20) /* elements */

struct value {
    char *key;
    enum gguf_value_type type, element; /* element: of arrays */
    uint64_t n;                         /* elements, 1 for scalars; bytes for a string */
    uint8_t *data;                      /* packed elements; a string with a NUL; a string array: all strings, each with a NUL */
    uint64_t *offsets;                  /* string arrays: n + 1 offsets into data */
};

struct gguf {
    struct io_file **files;
    char *path; /* of the first part */
    uint32_t n_files, n_tensors, n_values;
    uint32_t part, n_parts;
    struct gguf_tensor *tensors;
    struct value *values;
    uint32_t *index; /* hash table of tensor names: index + 1, 0 = empty */
    uint32_t index_size;
};

struct reader {
    struct io_file *file;
    uint64_t at, window_at, size;
    size_t window_size;
    uint8_t window[WINDOW];
};

static int take(struct reader *r, void *dst, size_t n, struct err *err)
{
    if (n > r->size - r->at)
        return err_set(err, -EPROTO, "header wants %zu bytes at offset %" PRIu64 ", the file ends at %" PRIu64 " (is it cut off?)",
                       n, r->at, r->size);
    if (r->at + n > MAX_HEADER)
        return err_set(err, -EPROTO, "metadata goes on after offset %" PRIu64 "; expected at most %u bytes of it", r->at,
                       MAX_HEADER);
    if (n > WINDOW) {
        int e = io_read(r->file, r->at, dst, n, err);
        if (e == 0)
            r->at += n;
        return e;
    }
    if (r->at < r->window_at || r->at + n > r->window_at + r->window_size) {
        r->window_at = r->at;
        r->window_size = (size_t)MIN((uint64_t)WINDOW, r->size - r->at);
        int e = io_read(r->file, r->at, r->window, r->window_size, err);
        if (e < 0) {
            r->window_size = 0;
            return e;
        }
    }
    memcpy(dst, r->window + (r->at - r->window_at), n);
    r->at += n;
    return 0;
}

static size_t element_bytes(uint32_t type)
{
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < ARRAY_LEN(sizes) ? sizes[type] : 0;
}

static int take_string(struct reader *r, uint64_t max, char **ret, uint64_t *ret_n, struct err *err)
{
    uint64_t n = 0, at = r->at;
    int e = take(r, &n, sizeof(n), err);
    if (e < 0)
        return e;
    if (n > max || n > r->size - r->at)
        return err_set(err, -EPROTO, "string at offset %" PRIu64 " has %" PRIu64 " bytes; expected at most %" PRIu64, at, n,
                       MIN(max, r->size - r->at));
    char *s = malloc((size_t)n + 1);
    if (!s)
        return err_set(err, -ENOMEM, "string at offset %" PRIu64 ": out of memory", at);
    e = take(r, s, (size_t)n, err);
    if (e < 0) {
        free(s);
        return e;
    }
    s[n] = '\0';
    *ret = s;
    if (ret_n)
        *ret_n = n;
    return 0;
}

/* Two passes would need the bytes twice; the pool grows by doubling and never beyond what is left of the file plus NULs. */
static int take_string_array(struct reader *r, struct value *v, struct err *err)
{
    size_t cap = 4096, used = 0;
    v->offsets = malloc((size_t)(v->n + 1) * sizeof(*v->offsets));
    v->data = malloc(cap);
    if (!v->offsets || !v->data)
        return err_set(err, -ENOMEM, "out of memory for %" PRIu64 " strings", v->n);
    for (uint64_t i = 0; i < v->n; i++) {
        uint64_t n = 0, at = r->at;
        int e = take(r, &n, sizeof(n), err);
        if (e < 0)
            return e;
        if (n > MAX_STRING || n > r->size - r->at)
            return err_set(err, -EPROTO,
                           "string %" PRIu64 " at offset %" PRIu64 " has %" PRIu64 " bytes; the file has %" PRIu64 " left", i, at,
                           n, r->size - r->at);
        if (used + n + 1 > cap) {
            cap = MAX(cap * 2, used + (size_t)n + 1);
            uint8_t *p = realloc(v->data, cap);
            if (!p)
                return err_set(err, -ENOMEM, "out of memory for %zu bytes of strings", cap);
            v->data = p;
        }
        v->offsets[i] = used;
        e = take(r, v->data + used, (size_t)n, err);
        if (e < 0)
            return e;
        used += (size_t)n;
        v->data[used++] = '\0';
    }
    v->offsets[v->n] = used;
    return 0;
}

static int take_array(struct reader *r, struct value *v, struct err *err)
{
    uint32_t element;
    uint64_t at = r->at;
    int e = take(r, &element, sizeof(element), err);
    if (e == 0)
        e = take(r, &v->n, sizeof(v->n), err);
    if (e < 0)
        return e;
    bool strings = element == GGUF_STRING;
    size_t size = strings ? 8 : element_bytes(element);
    if (size == 0)
        return err_set(err, -EPROTO,
                       "array at offset %" PRIu64 " has element type %u; expected a number, bool or string (no nested arrays)", at,
                       element);
    if (v->n > MAX_ARRAY || v->n > (r->size - r->at) / size)
        return err_set(err, -EPROTO, "array at offset %" PRIu64 " has %" PRIu64 " elements; the file has %" PRIu64 " bytes left",
                       at, v->n, r->size - r->at);
    v->element = (enum gguf_value_type)element;
    if (strings)
        return take_string_array(r, v, err);
    v->data = malloc((size_t)v->n * size + 1);
    if (!v->data)
        return err_set(err, -ENOMEM, "out of memory for an array of %" PRIu64, v->n);
    return take(r, v->data, (size_t)v->n * size, err);
}

static int take_value(struct reader *r, struct value *v, struct err *err)
{
    uint32_t type;
    uint64_t at = r->at;
    int e = take_string(r, MAX_NAME, &v->key, NULL, err);
    if (e < 0)
        return err_wrap(err, e, "key at offset %" PRIu64, at);
    at = r->at;
    e = take(r, &type, sizeof(type), err);
    if (e == 0 && type > GGUF_F64)
        e = err_set(err, -EPROTO, "type %u at offset %" PRIu64 "; expected 0 to %d", type, at, GGUF_F64);
    if (e == 0) {
        v->type = (enum gguf_value_type)type;
        v->n = 1;
        if (type == GGUF_STRING) {
            e = take_string(r, MAX_STRING, (char **)&v->data, &v->n, err);
        } else if (type == GGUF_ARRAY) {
            e = take_array(r, v, err);
        } else {
            v->data = malloc(8);
            e = v->data ? take(r, v->data, element_bytes(type), err) : err_set(err, -ENOMEM, "out of memory");
        }
    }
    return e < 0 ? err_wrap(err, e, "key '%s'", v->key) : 0;
}

static uint32_t hash(const char *s)
{
    uint32_t h = 2166136261u; /* FNV-1a */
    for (; *s; s++)
        h = (h ^ (uint8_t)*s) * 16777619u;
    return h;
}

static uint32_t *index_slot(const struct gguf *g, const char *name)
{
    uint32_t i = hash(name) & (g->index_size - 1);
    while (g->index[i] && strcmp(g->tensors[g->index[i] - 1].name, name) != 0)
        i = (i + 1) & (g->index_size - 1);
    return &g->index[i];
}

static int tensor_size(struct gguf_tensor *t, struct err *err)
{
    size_t elems = quant_block_elems(t->type), n = 1;
    if (!quant_ggml_name(t->type))
        return err_set(err, -EPROTO, "type %d does not exist", t->type);
    for (int i = 0; i < 4; i++) {
        if (t->dims[i] == 0 || t->dims[i] > INT64_MAX / 4 || !util_mul(n, (size_t)t->dims[i], &n))
            return err_set(err, -EPROTO, "dimension %d is %" PRIu64 "; expected a size whose product fits", i, t->dims[i]);
    }
    if (elems == 0)
        return 0; /* a type we cannot read: an error only when the tensor is needed */
    if (t->dims[0] % elems)
        return err_set(err, -EPROTO, "rows of %" PRIu64 " elements; type %s needs a multiple of %zu", t->dims[0],
                       quant_name(t->type), elems);
    size_t bytes;
    if (!util_mul(n / elems, quant_block_bytes(t->type), &bytes))
        return err_set(err, -EPROTO, "is larger than memory can address");
    t->bytes = bytes;
    return 0;
}

static int take_tensor(struct reader *r, struct gguf *g, struct gguf_tensor *t, struct err *err)
{
    uint64_t at = r->at;
    uint32_t type = 0;
    char *name;
    int e = take_string(r, MAX_NAME, &name, NULL, err);
    if (e < 0)
        return err_wrap(err, e, "tensor at offset %" PRIu64, at);
    t->name = name;
    for (int i = 0; i < 4; i++)
        t->dims[i] = 1;
    e = take(r, &t->n_dims, sizeof(t->n_dims), err);
    if (e == 0 && (t->n_dims == 0 || t->n_dims > 4))
        e = err_set(err, -EPROTO, "has %u dimensions; expected 1 to 4", t->n_dims);
    for (uint32_t i = 0; e == 0 && i < t->n_dims; i++)
        e = take(r, &t->dims[i], 8, err);
    if (e == 0)
        e = take(r, &type, sizeof(type), err);
    t->type = (int)MIN(type, 1000000u);
    if (e == 0)
        e = take(r, &t->offset, 8, err);
    if (e == 0)
        e = tensor_size(t, err);
    if (e < 0)
        return err_wrap(err, e, "tensor '%s'", name);
    uint32_t *slot = index_slot(g, name);
    if (*slot)
        return err_set(err, -EPROTO, "tensor '%s' appears twice", name);
    *slot = (uint32_t)(t - g->tensors) + 1;
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const struct gguf_tensor *x = *(const struct gguf_tensor *const *)a, *y = *(const struct gguf_tensor *const *)b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

/* Offsets become absolute; each must be aligned, inside the file, and no tensor may lie on another. */
static int place_tensors(struct gguf *g, uint64_t data, uint32_t alignment, struct err *err)
{
    uint64_t size = io_size(g->files[0]), end = 0;
    auto_free struct gguf_tensor **order = calloc(g->n_tensors + 1, sizeof(struct gguf_tensor *));
    if (!order)
        return err_set(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        if (t->offset % alignment)
            return err_set(err, -EPROTO, "tensor '%s' is at data offset %" PRIu64 "; expected a multiple of %u", t->name, t->offset,
                           alignment);
        if (data > size || t->offset > size - data || t->bytes > size - data - t->offset)
            return err_set(err, -EPROTO,
                           "tensor '%s' of %" PRIu64 " bytes at data offset %" PRIu64 " ends after the file's %" PRIu64
                           " bytes (is it cut off?)",
                           t->name, t->bytes, t->offset, size);
        t->offset += data;
        order[i] = t;
    }
    qsort(order, g->n_tensors, sizeof(*order), by_offset);
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        if (order[i]->offset < end)
            return err_set(err, -EPROTO, "tensor '%s' overlaps the one before it at offset %" PRIu64, order[i]->name,
                           order[i]->offset);
        end = order[i]->offset + order[i]->bytes;
    }
    return 0;
}

static int take_magic(struct reader *r, struct err *err)
{
    uint8_t magic[9] = {0};
    if (r->size == 0)
        return err_set(err, -EPROTO, "is empty; expected a GGUF file");
    int e = take(r, magic, (size_t)MIN(r->size, sizeof(magic)), err);
    if (e < 0)
        return e;
    r->at = MIN(r->size, 4);
    if (memcmp(magic, "GGUF", 4) == 0)
        return 0;
    uint64_t length;
    memcpy(&length, magic, 8);
    if (magic[8] == '{' && length < r->size)
        return err_set(err, -EPROTO,
                       "is a safetensors file; expected GGUF (convert its folder with 'quantizer --in FOLDER --out FILE.gguf')");
    return err_set(err, -EPROTO, "is not a GGUF file: it begins with %02x %02x %02x %02x; expected 'GGUF'", magic[0], magic[1],
                   magic[2], magic[3]);
}

static int take_counts(struct reader *r, struct gguf *g, struct err *err)
{
    uint32_t version;
    uint64_t n_tensors, n_values;
    int e = take_magic(r, err);
    if (e == 0)
        e = take(r, &version, 4, err);
    if (e == 0 && version != 2 && version != 3)
        e = err_set(err, -EPROTO, "GGUF version %u; expected 2 or 3 (little-endian)", version);
    if (e == 0)
        e = take(r, &n_tensors, 8, err);
    if (e == 0)
        e = take(r, &n_values, 8, err);
    if (e == 0 && (n_tensors > MAX_TENSORS || n_values > MAX_KV))
        e = err_set(err, -EPROTO, "%" PRIu64 " tensors and %" PRIu64 " keys; expected at most %u and %u", n_tensors, n_values,
                    MAX_TENSORS, MAX_KV);
    if (e < 0)
        return e;
    g->index_size = 64;
    while (g->index_size < n_tensors * 2)
        g->index_size *= 2;
    g->values = calloc((size_t)n_values + 1, sizeof(*g->values));
    g->tensors = calloc((size_t)n_tensors + 1, sizeof(*g->tensors));
    g->index = calloc(g->index_size, sizeof(*g->index));
    if (!g->values || !g->tensors || !g->index)
        return err_set(err, -ENOMEM, "out of memory");
    g->n_values = (uint32_t)n_values;
    g->n_tensors = (uint32_t)n_tensors;
    return 0;
}

static const struct value *find_value(const struct gguf *g, const char *key)
{
    for (uint32_t i = 0; i < g->n_values; i++) {
        if (g->values[i].key && strcmp(g->values[i].key, key) == 0)
            return &g->values[i];
    }
    return NULL;
}

static int optional_u32(const struct gguf *g, const char *key, uint32_t *ret, struct err *err)
{
    int e = gguf_get_u32(g, key, ret, err);
    return e == -ENOENT ? 0 : e;
}

static int parse(struct gguf *g, struct reader *r, struct err *err)
{
    uint32_t alignment = 32;
    int e = take_counts(r, g, err);
    for (uint32_t i = 0; e == 0 && i < g->n_values; i++) {
        struct value v = {0};
        e = take_value(r, &v, err);
        if (e == 0 && find_value(g, v.key))
            e = err_set(err, -EPROTO, "key '%s' appears twice", v.key);
        g->values[i] = v;
    }
    for (uint32_t i = 0; e == 0 && i < g->n_tensors; i++)
        e = take_tensor(r, g, &g->tensors[i], err);
    if (e == 0)
        e = optional_u32(g, "general.alignment", &alignment, err);
    if (e == 0 && (alignment == 0 || (alignment & (alignment - 1)) || alignment > 1u << 20))
        e = err_set(err, -EPROTO, "key 'general.alignment' is %u; expected a power of two up to 1 MiB", alignment);
    g->n_parts = 1;
    if (e == 0)
        e = optional_u32(g, "split.no", &g->part, err);
    if (e == 0)
        e = optional_u32(g, "split.count", &g->n_parts, err);
    if (e == 0 && (g->n_parts > GGUF_MAX_PARTS || (g->n_parts > 1 && g->part >= g->n_parts)))
        e = err_set(err, -EPROTO,
                    "is part %u of %u by its keys 'split.no' and 'split.count'; expected at most %u parts, counted from 0", g->part,
                    g->n_parts, GGUF_MAX_PARTS);
    return e < 0 ? e : place_tensors(g, util_round_up(r->at, alignment), alignment, err);
}

static int open_one(const char *path, bool direct, struct gguf **ret, struct err *err)
{
    struct gguf *g = calloc(1, sizeof(*g));
    struct reader *r = calloc(1, sizeof(*r));
    if (g) {
        g->path = strdup(path);
        g->files = calloc(1, sizeof(*g->files));
    }
    int e = g && r && g->path && g->files ? io_open(path, direct, &g->files[0], err)
                                          : err_set(err, -ENOMEM, "model '%s': out of memory", path);
    if (e == 0) {
        g->n_files = 1;
        r->file = g->files[0];
        r->size = io_size(g->files[0]);
        e = parse(g, r, err);
        if (e < 0)
            err_wrap(err, e, "model '%s'", path);
    }
    free(r);
    if (e < 0) {
        gguf_close(g);
        return e;
    }
    *ret = g;
    return 0;
}

/* ---- models in parts ---- */

#define SUFFIX ".gguf"
#define PART_DIGITS 5
#define PART_TAIL (sizeof("-00001-of-00003") - 1)

char *gguf_part_name(const char *path, uint32_t part, uint32_t n_parts)
{
    size_t n = strlen(path), suffix = sizeof(SUFFIX) - 1;
    char *name;
    if (n > suffix && strcmp(path + n - suffix, SUFFIX) == 0)
        n -= suffix;
    return asprintf(&name, "%.*s-%05u-of-%05u" SUFFIX, (int)n, path, part + 1, n_parts) < 0 ? NULL : name;
}

/* What the parts have in common, from the name of the one that was opened; returned owned. */
static int find_stem(const struct gguf *opened, char **ret, struct err *err)
{
    size_t n = strlen(opened->path), tail = PART_TAIL + sizeof(SUFFIX) - 1;
    auto_free char *stem = n > tail ? strndup(opened->path, n - tail) : NULL;
    auto_free char *self = stem ? gguf_part_name(stem, opened->part, opened->n_parts) : NULL;
    if (!self || strcmp(self, opened->path) != 0)
        return err_set(err, -EPROTO,
                       "model '%s' is part %u of %u of a split model; expected a name that ends in '-%05u-of-%05u.gguf', with the "
                       "other parts beside it",
                       opened->path, opened->part + 1, opened->n_parts, opened->part + 1, opened->n_parts);
    *ret = take_ptr(&stem);
    return 0;
}

static int open_part(const char *stem, uint32_t part, uint32_t n_parts, bool direct, struct gguf **ret, struct err *err)
{
    auto_free char *path = gguf_part_name(stem, part, n_parts);
    struct gguf *g;
    if (!path)
        return err_set(err, -ENOMEM, "model '%s': out of memory", stem);
    int e = open_one(path, direct, &g, err);
    if (e == -ENOENT)
        return err_set(err, -ENOENT, "part %u of %u of a split model is missing; expected it at '%s'", part + 1, n_parts, path);
    if (e < 0)
        return e;
    if (g->part != part || g->n_parts != n_parts) {
        e = err_set(err, -EPROTO, "model '%s' says that it is part %u of %u; expected part %u of %u", path, g->part + 1, g->n_parts,
                    part + 1, n_parts);
        gguf_close(g);
        return e;
    }
    *ret = g;
    return 0;
}

static int index_tensors(struct gguf *g, struct err *err)
{
    g->index_size = 64;
    while (g->index_size < (uint64_t)g->n_tensors * 2)
        g->index_size *= 2;
    free(g->index);
    g->index = calloc(g->index_size, sizeof(*g->index));
    if (!g->index)
        return err_set(err, -ENOMEM, "model '%s': out of memory", g->path);
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        uint32_t *slot = index_slot(g, g->tensors[i].name);
        if (*slot)
            return err_set(err, -EPROTO, "model '%s': tensor '%s' is in two parts: '%s' and '%s'", g->path, g->tensors[i].name,
                           gguf_file(g, g->tensors[*slot - 1].file), gguf_file(g, g->tensors[i].file));
        *slot = i + 1;
    }
    return 0;
}

/* Tensors and file of part m go over to g; what is left of m is closed. */
static int take_part(struct gguf *g, struct gguf *m, struct err *err)
{
    struct io_file **files = realloc(g->files, (g->n_files + 1) * sizeof(struct io_file *));
    if (files)
        g->files = files;
    struct gguf_tensor *tensors = realloc(g->tensors, (g->n_tensors + m->n_tensors + 1) * sizeof(*tensors));
    if (tensors)
        g->tensors = tensors;
    if (!files || !tensors || g->n_tensors + m->n_tensors > MAX_TENSORS) {
        gguf_close(m);
        return err_set(err, files && tensors ? -EPROTO : -ENOMEM, "model '%s': out of memory, or more than %u tensors", g->path,
                       MAX_TENSORS);
    }
    for (uint32_t i = 0; i < m->n_tensors; i++) {
        g->tensors[g->n_tensors + i] = m->tensors[i];
        g->tensors[g->n_tensors + i].file = g->n_files;
    }
    g->n_tensors += m->n_tensors;
    m->n_tensors = 0;
    g->files[g->n_files++] = take_ptr(&m->files[0]);
    gguf_close(m);
    return 0;
}

static int open_parts(const char *stem, uint32_t n_parts, bool direct, struct gguf **ret, struct err *err)
{
    struct gguf *g = NULL, *m = NULL;
    uint32_t total;
    int e = open_part(stem, 0, n_parts, direct, &g, err);
    for (uint32_t i = 1; e == 0 && i < n_parts; i++) {
        e = open_part(stem, i, n_parts, direct, &m, err);
        if (e == 0)
            e = take_part(g, m, err);
    }
    if (e == 0)
        e = index_tensors(g, err);
    if (e == 0 && gguf_get_u32(g, "split.tensors.count", &total, NULL) == 0 && total != g->n_tensors)
        e = err_set(err, -EPROTO, "model '%s': its %u parts hold %u tensors; key 'split.tensors.count' says %u", g->path, n_parts,
                    g->n_tensors, total);
    if (e < 0)
        gguf_close(g);
    else
        *ret = g;
    return e;
}

int gguf_open(const char *path, bool direct, struct gguf **ret, struct err *err)
{
    auto_free char *stem = NULL;
    struct gguf *g = NULL;
    int e = open_one(path, direct, &g, err);
    if (e < 0 || g->n_parts <= 1) {
        if (e == 0)
            *ret = g;
        return e;
    }
    uint32_t n_parts = g->n_parts;
    e = find_stem(g, &stem, err);
    gguf_close(g);
    return e < 0 ? e : open_parts(stem, n_parts, direct, ret, err);
}

void gguf_close(struct gguf *g)
{
    if (!g)
        return;
    for (uint32_t i = 0; g->values && i < g->n_values; i++) {
        free(g->values[i].key);
        free(g->values[i].data);
        free(g->values[i].offsets);
    }
    for (uint32_t i = 0; g->tensors && i < g->n_tensors; i++)
        free((char *)g->tensors[i].name);
    for (uint32_t i = 0; g->files && i < g->n_files; i++)
        io_close(g->files[i]);
    free(g->values);
    free(g->tensors);
    free(g->index);
    free(g->files);
    free(g->path);
    free(g);
}

const char *gguf_path(const struct gguf *g)
{
    return g->path;
}

uint64_t gguf_file_bytes(const struct gguf *g)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < g->n_files; i++)
        n += io_size(g->files[i]);
    return n;
}

uint32_t gguf_n_files(const struct gguf *g)
{
    return g->n_files;
}

const char *gguf_file(const struct gguf *g, uint32_t file)
{
    return io_path(g->files[file]);
}

struct io_file *gguf_io(const struct gguf *g, uint32_t file)
{
    return g->files[file];
}

uint32_t gguf_n_keys(const struct gguf *g)
{
    return g->n_values;
}

void gguf_key_at(const struct gguf *g, uint32_t i, struct gguf_key *ret)
{
    const struct value *v = &g->values[i];
    *ret = (struct gguf_key){v->key, v->type, v->element, v->n, v->data, v->offsets};
}

uint32_t gguf_n_tensors(const struct gguf *g)
{
    return g->n_tensors;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, uint32_t i)
{
    return &g->tensors[i];
}

const struct gguf_tensor *gguf_find(const struct gguf *g, const char *name)
{
    uint32_t i = *index_slot(g, name);
    return i ? &g->tensors[i - 1] : NULL;
}

int gguf_read(const struct gguf *g, const struct gguf_tensor *t, uint64_t offset, void *buf, size_t n, struct err *err)
{
    if (offset > t->bytes || n > t->bytes - offset)
        return err_set(err, -EINVAL, "tensor '%s': %zu bytes wanted at %" PRIu64 "; it has %" PRIu64, t->name, n, offset, t->bytes);
    int r = io_read(g->files[t->file], t->offset + offset, buf, n, err);
    return r < 0 ? err_wrap(err, r, "tensor '%s'", t->name) : 0;
}

static int wrong(const char *key, const struct value *v, const char *expected, struct err *err)
{
    static const char *const names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                        "bool", "string", "array", "u64", "i64", "f64"};
    return err_set(err, -EINVAL, "key '%s' is of type %s; expected %s", key, names[v->type], expected);
}

static bool as_integer(const struct value *v, int64_t *ret)
{
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } x = {0};
    if (v->type > GGUF_I64 || v->type == GGUF_F32 || v->type == GGUF_BOOL || v->type == GGUF_STRING || v->type == GGUF_ARRAY)
        return false;
    memcpy(&x, v->data, element_bytes(v->type));
    const int64_t values[] = {x.u8, x.i8, x.u16, x.i16, x.u32, x.i32, 0, 0, 0, 0, x.u64 > INT64_MAX ? -1 : (int64_t)x.u64, x.i64};
    *ret = values[v->type];
    return true;
}

int gguf_get_u32(const struct gguf *g, const char *key, uint32_t *ret, struct err *err)
{
    const struct value *v = find_value(g, key);
    int64_t n;
    if (!v)
        return -ENOENT;
    if (!as_integer(v, &n))
        return wrong(key, v, "an integer", err);
    if (n < 0 || n > UINT32_MAX)
        return err_set(err, -EINVAL, "key '%s' is %" PRId64 "; expected 0 to %u", key, n, UINT32_MAX);
    *ret = (uint32_t)n;
    return 0;
}

int gguf_get_f32(const struct gguf *g, const char *key, float *ret, struct err *err)
{
    const struct value *v = find_value(g, key);
    double d;
    if (!v)
        return -ENOENT;
    if (v->type == GGUF_F32) {
        memcpy(ret, v->data, 4);
    } else if (v->type == GGUF_F64) {
        memcpy(&d, v->data, 8);
        *ret = (float)d;
    } else {
        return wrong(key, v, "a float", err);
    }
    return 0;
}

int gguf_get_bool(const struct gguf *g, const char *key, bool *ret, struct err *err)
{
    const struct value *v = find_value(g, key);
    if (!v)
        return -ENOENT;
    if (v->type != GGUF_BOOL)
        return wrong(key, v, "a bool", err);
    *ret = v->data[0] != 0;
    return 0;
}

int gguf_get_string(const struct gguf *g, const char *key, const char **ret, size_t *ret_len, struct err *err)
{
    const struct value *v = find_value(g, key);
    if (!v)
        return -ENOENT;
    if (v->type != GGUF_STRING)
        return wrong(key, v, "a string", err);
    *ret = (const char *)v->data;
    if (ret_len)
        *ret_len = (size_t)v->n;
    return 0;
}

int gguf_get_array(const struct gguf *g, const char *key, enum gguf_value_type type, const void **ret, uint64_t *ret_n,
                   struct err *err)
{
    const struct value *v = find_value(g, key);
    if (!v)
        return -ENOENT;
    if (v->type != GGUF_ARRAY || v->element != type)
        return wrong(key, v, "an array of another type", err);
    *ret = v->data;
    *ret_n = v->n;
    return 0;
}

int gguf_get_string_at(const struct gguf *g, const char *key, uint64_t i, const char **ret, size_t *ret_len, struct err *err)
{
    const struct value *v = find_value(g, key);
    if (!v)
        return -ENOENT;
    if (v->type != GGUF_ARRAY || v->element != GGUF_STRING)
        return wrong(key, v, "an array of strings", err);
    if (i >= v->n)
        return err_set(err, -EINVAL, "key '%s' has %" PRIu64 " elements; element %" PRIu64 " was wanted", key, v->n, i);
    *ret = (const char *)v->data + v->offsets[i];
    *ret_len = (size_t)(v->offsets[i + 1] - v->offsets[i] - 1);
    return 0;
}
