/* SPDX-License-Identifier: MIT
 * Owns the open files of one checkpoint and a table of its tensors, sorted by name. Filled once by open, then read-only, from any
 * thread; called by the quantizer and by tests. It never keeps tensor data. A header is read whole, but only after its length
 * has been checked against the file and a limit; jansson refuses duplicate names and deep nesting in it. */
#include "model/safetensors.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <jansson.h>

#include "kernels/quant.h"
#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"

#define MAX_HEADER (16u << 20)
#define MAX_FILES 256u
#define MAX_TENSORS 65536u
#define SUFFIX ".safetensors"

struct safetensors {
    struct io_file **files;
    uint32_t n_files, n_tensors, cap_tensors;
    struct safetensors_tensor *tensors;
};

static const struct dtype {
    const char *name;
    uint32_t bytes;
    int type;
} dtypes[] = {
    {"F32", 4, QUANT_F32}, {"F16", 2, QUANT_F16}, {"BF16", 2, QUANT_BF16}, {"F64", 8, -1},     {"I64", 8, -1},
    {"I32", 4, -1},        {"I16", 2, -1},        {"I8", 1, -1},           {"U64", 8, -1},     {"U32", 4, -1},
    {"U16", 2, -1},        {"U8", 1, -1},         {"BOOL", 1, -1},         {"F8_E4M3", 1, -1}, {"F8_E5M2", 1, -1},
};

static const struct dtype *find_dtype(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(dtypes); i++) {
        if (strcmp(dtypes[i].name, name) == 0)
            return &dtypes[i];
    }
    return NULL;
}

/* A JSON file or part of one, whole and bounded; returned owned. */
static int load_json(struct io_file *f, uint64_t offset, uint64_t n, json_t **ret, struct err *err)
{
    if (n > MAX_HEADER)
        return err_set(err, -EPROTO, "JSON of %" PRIu64 " bytes at offset %" PRIu64 "; expected at most %u", n, offset, MAX_HEADER);
    auto_free char *text = malloc((size_t)n + 1);
    if (!text)
        return err_set(err, -ENOMEM, "out of memory for %" PRIu64 " bytes of JSON", n);
    int r = io_read(f, offset, text, (size_t)n, err);
    if (r < 0)
        return r;
    json_error_t e;
    json_t *j = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &e);
    if (!j)
        return err_set(err, -EPROTO, "JSON at offset %" PRIu64 ": %s (line %d, column %d)", offset, e.text, e.line, e.column);
    *ret = j;
    if (json_is_object(j))
        return 0;
    json_decref(j);
    return err_set(err, -EPROTO, "JSON at offset %" PRIu64 " is not an object", offset);
}

static bool is_count(const json_t *j)
{
    return json_is_integer(j) && json_integer_value(j) >= 0;
}

static int read_shape(struct safetensors_tensor *t, const json_t *shape, uint32_t elem, size_t *ret_bytes, struct err *err)
{
    if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_MAX_DIMS)
        return err_set(err, -EPROTO, "'shape' is missing or wrong; expected an array of at most %d sizes", SAFETENSORS_MAX_DIMS);
    size_t bytes = elem;
    t->n_dims = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < SAFETENSORS_MAX_DIMS; i++) {
        const json_t *n = json_array_get(shape, i);
        t->dims[i] = 1;
        if (i >= t->n_dims)
            continue;
        if (!is_count(n) || !util_mul(bytes, (size_t)json_integer_value(n), &bytes))
            return err_set(err, -EPROTO, "'shape', element %u: expected a size whose product fits", i);
        t->dims[i] = (uint64_t)json_integer_value(n);
    }
    *ret_bytes = bytes;
    return 0;
}

/* One entry of the header. data: where the data section begins, in the file of file_bytes. */
static int read_entry(struct safetensors_tensor *t, const json_t *entry, uint64_t data, uint64_t file_bytes, struct err *err)
{
    const char *name = json_string_value(json_object_get(entry, "dtype"));
    const json_t *range = json_object_get(entry, "data_offsets");
    const json_t *b = json_array_get(range, 0), *e = json_array_get(range, 1);
    const struct dtype *d = name ? find_dtype(name) : NULL;
    size_t bytes = 0;
    if (!d)
        return err_set(err, -EPROTO, "'dtype' is '%.32s'; expected F32, BF16, F16 or another type of the format",
                       name ? name : "(missing)");
    int r = read_shape(t, json_object_get(entry, "shape"), d->bytes, &bytes, err);
    if (r < 0)
        return r;
    if (json_array_size(range) != 2 || !is_count(b) || !is_count(e) || json_integer_value(b) > json_integer_value(e))
        return err_set(err, -EPROTO, "'data_offsets' is missing or wrong; expected [begin, end]");
    uint64_t begin = (uint64_t)json_integer_value(b), end = (uint64_t)json_integer_value(e);
    if (end > file_bytes - data)
        return err_set(err, -EPROTO, "data ends at %" PRIu64 "; the file has %" PRIu64 " bytes of data (is it cut off?)", end,
                       file_bytes - data);
    if (end - begin != bytes)
        return err_set(err, -EPROTO, "'data_offsets' hold %" PRIu64 " bytes; dtype and shape need %zu", end - begin, bytes);
    t->dtype = d->name;
    t->type = d->type;
    t->offset = data + begin;
    t->bytes = bytes;
    return 0;
}

static struct safetensors_tensor *next_tensor(struct safetensors *s, const char *name)
{
    if (s->n_tensors == s->cap_tensors) {
        uint32_t cap = MAX(s->cap_tensors * 2, 256u);
        struct safetensors_tensor *p = realloc(s->tensors, cap * sizeof(*p));
        if (!p)
            return NULL;
        s->tensors = p;
        s->cap_tensors = cap;
    }
    struct safetensors_tensor *t = &s->tensors[s->n_tensors];
    memset(t, 0, sizeof(*t));
    t->name = strdup(name);
    s->n_tensors += t->name != NULL;
    return t->name ? t : NULL;
}

static int by_offset(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    return x->offset != y->offset ? (x->offset > y->offset) - (x->offset < y->offset)
                                  : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* The format wants the data covered exactly: no holes, no overlaps, nothing behind. */
static int check_cover(struct safetensors_tensor *t, uint32_t n, uint64_t data, uint64_t file_bytes, struct err *err)
{
    uint64_t at = data;
    if (n)
        qsort(t, n, sizeof(*t), by_offset);
    for (uint32_t i = 0; i < n; i++) {
        if (t[i].offset != at)
            return err_set(err, -EPROTO,
                           "tensor '%s' begins at offset %" PRIu64 "; expected %" PRIu64 ", where the one before it ends (%s)",
                           t[i].name, t[i].offset, at, t[i].offset < at ? "an overlap" : "a hole");
        at += t[i].bytes;
    }
    if (at != file_bytes)
        return err_set(err, -EPROTO, "tensors end at offset %" PRIu64 ", the file at %" PRIu64, at, file_bytes);
    return 0;
}

static int check_metadata(const json_t *m, struct err *err)
{
    const char *key;
    json_t *v;
    if (!json_is_object(m))
        return err_set(err, -EPROTO, "'__metadata__' is not an object");
    json_object_foreach((json_t *)(uintptr_t)m, key, v)
    {
        if (!json_is_string(v))
            return err_set(err, -EPROTO, "'__metadata__', key '%.64s': expected a string", key);
    }
    return 0;
}

static int read_entries(struct safetensors *s, uint32_t file, json_t *header, uint64_t data, struct err *err)
{
    uint32_t first = s->n_tensors;
    uint64_t file_bytes = io_size(s->files[file]);
    const char *name;
    json_t *entry;
    json_object_foreach(header, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0) {
            int r = check_metadata(entry, err);
            if (r < 0)
                return r;
            continue;
        }
        if (s->n_tensors >= MAX_TENSORS)
            return err_set(err, -EPROTO, "more than %u tensors", MAX_TENSORS);
        struct safetensors_tensor *t = next_tensor(s, name);
        if (!t)
            return err_set(err, -ENOMEM, "out of memory");
        t->file = file;
        int r = read_entry(t, entry, data, file_bytes, err);
        if (r < 0)
            return err_wrap(err, r, "tensor '%.256s'", name);
    }
    return check_cover(s->tensors ? s->tensors + first : NULL, s->n_tensors - first, data, file_bytes, err);
}

static int read_file(struct safetensors *s, uint32_t file, struct err *err)
{
    struct io_file *f = s->files[file];
    uint64_t n;
    json_t *header;
    if (io_size(f) < sizeof(n))
        return err_set(err, -EPROTO, "has %" PRIu64 " bytes; expected a safetensors file, at least 8", io_size(f));
    int r = io_read(f, 0, &n, sizeof(n), err);
    if (r < 0)
        return r;
    if (n > io_size(f) - sizeof(n))
        return err_set(err, -EPROTO, "header of %" PRIu64 " bytes; the file has %" PRIu64 " (is it cut off, or not safetensors?)",
                       n, io_size(f));
    r = load_json(f, sizeof(n), n, &header, err);
    if (r < 0)
        return r;
    r = read_entries(s, file, header, sizeof(n) + n, err);
    json_decref(header);
    return r;
}

static int add_file(struct safetensors *s, const char *path, struct err *err)
{
    struct io_file **p = realloc(s->files, (s->n_files + 1) * sizeof(struct io_file *));
    if (!p)
        return err_set(err, -ENOMEM, "'%s': out of memory", path);
    s->files = p;
    int r = io_open(path, true, &s->files[s->n_files], err);
    if (r < 0)
        return r;
    r = read_file(s, s->n_files++, err);
    return r < 0 ? err_wrap(err, r, "checkpoint '%s'", path) : 0;
}

/* After all files: names sorted, none twice. */
static int finish(struct safetensors *s, struct err *err)
{
    if (s->n_tensors)
        qsort(s->tensors, s->n_tensors, sizeof(*s->tensors), by_name);
    for (uint32_t i = 1; i < s->n_tensors; i++) {
        if (strcmp(s->tensors[i].name, s->tensors[i - 1].name) == 0)
            return err_set(err, -EPROTO, "tensor '%s' is in both '%s' and '%s'", s->tensors[i].name,
                           safetensors_file(s, s->tensors[i - 1].file), safetensors_file(s, s->tensors[i].file));
    }
    return 0;
}

static bool is_plain_name(const char *s)
{
    size_t n = strlen(s), suffix = strlen(SUFFIX);
    return n > suffix && n < 256 && s[0] != '.' && !strchr(s, '/') && strcmp(s + n - suffix, SUFFIX) == 0;
}

static int open_shards(struct safetensors *s, const char *folder, const json_t *map, struct err *err)
{
    const char *tensor;
    json_t *v;
    json_t *seen = json_object(); /* file name -> index */
    int r = seen ? 0 : err_set(err, -ENOMEM, "out of memory");
    json_object_foreach((json_t *)(uintptr_t)map, tensor, v)
    {
        const char *file = json_string_value(v);
        if (r < 0)
            break;
        if (!file || !is_plain_name(file)) {
            r = err_set(err, -EPROTO,
                        "tensor '%.256s' is in file '%.256s'; expected the name of a " SUFFIX " file in the same folder", tensor,
                        file ? file : "(no string)");
        } else if (!json_object_get(seen, file)) {
            auto_free char *path = NULL;
            if (s->n_files >= MAX_FILES)
                r = err_set(err, -EPROTO, "more than %u files", MAX_FILES);
            else if (json_object_set_new(seen, file, json_integer(s->n_files)) < 0 || asprintf(&path, "%s/%s", folder, file) < 0)
                r = err_set(err, -ENOMEM, "out of memory");
            else
                r = add_file(s, path, err);
            if (r == -ENOENT)
                err_wrap(err, r, "the index names a file that is not there; complete the download");
        }
    }
    if (r == 0)
        r = finish(s, err);
    json_object_foreach((json_t *)(uintptr_t)map, tensor, v)
    {
        if (r < 0)
            break;
        const struct safetensors_tensor *t = safetensors_find(s, tensor);
        if (!t || (json_int_t)t->file != json_integer_value(json_object_get(seen, json_string_value(v))))
            r = err_set(err, -EPROTO, "tensor '%.256s' is not in file '%.256s', where the index says it is", tensor,
                        json_string_value(v));
    }
    for (uint32_t i = 0; r == 0 && i < s->n_tensors; i++) {
        if (!json_object_get(map, s->tensors[i].name))
            r = err_set(err, -EPROTO, "tensor '%.256s' of file '%s' is not in the index", s->tensors[i].name,
                        safetensors_file(s, s->tensors[i].file));
    }
    json_decref(seen);
    return r;
}

static int open_index(struct safetensors *s, const char *folder, const char *path, struct err *err)
{
    struct io_file *f;
    json_t *index = NULL;
    int r = io_open(path, false, &f, err);
    if (r < 0)
        return r;
    r = load_json(f, 0, io_size(f), &index, err);
    io_close(f);
    const json_t *map = json_object_get(index, "weight_map");
    if (r == 0 && !json_is_object(map))
        r = err_set(err, -EPROTO, "'weight_map' is missing; expected an object of tensor names and file names");
    if (r == 0)
        r = open_shards(s, folder, map, err);
    json_decref(index);
    return r < 0 ? err_wrap(err, r, "checkpoint index '%s'", path) : 0;
}

int safetensors_open(const char *folder, struct safetensors **ret, struct err *err)
{
    auto_free char *single = NULL, *index = NULL;
    struct safetensors *s = calloc(1, sizeof(*s));
    if (!s || asprintf(&single, "%s/model.safetensors", folder) < 0 ||
        asprintf(&index, "%s/model.safetensors.index.json", folder) < 0) {
        free(s);
        return err_set(err, -ENOMEM, "'%s': out of memory", folder);
    }
    int r;
    if (access(single, F_OK) == 0) {
        r = add_file(s, single, err);
        if (r == 0)
            r = finish(s, err);
    } else if (access(index, F_OK) == 0) {
        r = open_index(s, folder, index, err);
    } else {
        r = err_set(err, -ENOENT,
                    "folder '%s' has neither 'model.safetensors' nor 'model.safetensors.index.json'; expected a Hugging Face "
                    "checkpoint",
                    folder);
    }
    if (r < 0) {
        safetensors_close(s);
        return r;
    }
    *ret = s;
    return 0;
}

int safetensors_open_file(const char *path, struct safetensors **ret, struct err *err)
{
    struct safetensors *s = calloc(1, sizeof(*s));
    int r = s ? add_file(s, path, err) : err_set(err, -ENOMEM, "'%s': out of memory", path);
    if (r == 0)
        r = finish(s, err);
    if (r < 0) {
        safetensors_close(s);
        return r;
    }
    *ret = s;
    return 0;
}

void safetensors_close(struct safetensors *s)
{
    if (!s)
        return;
    for (uint32_t i = 0; i < s->n_tensors; i++)
        free((char *)(uintptr_t)s->tensors[i].name);
    for (uint32_t i = 0; i < s->n_files; i++)
        io_close(s->files[i]);
    free(s->tensors);
    free(s->files);
    free(s);
}

uint32_t safetensors_n(const struct safetensors *s)
{
    return s->n_tensors;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *s, uint32_t i)
{
    return &s->tensors[i];
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    struct safetensors_tensor key = {.name = name};
    return s->n_tensors ? bsearch(&key, s->tensors, s->n_tensors, sizeof(*s->tensors), by_name) : NULL;
}

uint32_t safetensors_n_files(const struct safetensors *s)
{
    return s->n_files;
}

const char *safetensors_file(const struct safetensors *s, uint32_t file)
{
    return io_path(s->files[file]);
}

struct io_file *safetensors_io(const struct safetensors *s, uint32_t file)
{
    return s->files[file];
}

int safetensors_read(const struct safetensors *s, const struct safetensors_tensor *t, uint64_t offset, void *buf, size_t n,
                     struct err *err)
{
    if (offset > t->bytes || n > t->bytes - offset)
        return err_set(err, -EINVAL, "tensor '%s': %zu bytes wanted at %" PRIu64 "; it has %" PRIu64, t->name, n, offset, t->bytes);
    int r = io_read(s->files[t->file], t->offset + offset, buf, n, err);
    return r < 0 ? err_wrap(err, r, "tensor '%s'", t->name) : 0;
}
