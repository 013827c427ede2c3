/* SPDX-License-Identifier: MIT
 * Owns one GGUF file being written: its metadata in two growing buffers (keys, tensor infos) until begin, then only the tensors'
 * places. Called by the quantizer and by tests, on one thread. It never keeps tensor data and never writes under the final
 * name; the gaps between tensors are holes of the file, which read as the zeros that the format asks for. */
#include "model/gguf_write.h"

#include <inttypes.h>
#include <string.h>

#include "kernels/quant.h"
#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"

#define DEFAULT_ALIGNMENT 32u
#define MAX_TENSORS 65536u
#define HEAD_BYTES 24 /* magic, version, two counts */

struct buffer {
    uint8_t *data;
    size_t n, cap;
    bool failed;
};

struct place {
    char *name;
    uint64_t offset, bytes, written; /* offset: from the beginning of the data section */
};

struct gguf_write {
    struct io_out *out;
    char *path;
    uint32_t alignment;
    struct buffer keys, infos, names; /* names: of the keys, each with a NUL */
    uint64_t n_keys, strings_left;
    char *twice; /* a key that came twice */
    struct place *places;
    uint32_t n_places, cap_places;
    uint64_t data_offset, data_bytes;
};

static void put(struct buffer *b, const void *data, size_t n)
{
    if (b->failed)
        return;
    if (n > b->cap - b->n) {
        size_t cap = MAX(b->cap * 2, b->n + n + 4096);
        uint8_t *p = realloc(b->data, cap);
        if (!p) {
            b->failed = true;
            return;
        }
        b->data = p;
        b->cap = cap;
    }
    if (n)
        memcpy(b->data + b->n, data, n);
    b->n += n;
}

static void put_u32(struct buffer *b, uint32_t v)
{
    put(b, &v, sizeof(v));
}

static void put_u64(struct buffer *b, uint64_t v)
{
    put(b, &v, sizeof(v));
}

static void put_string(struct buffer *b, const char *s, size_t n)
{
    put_u64(b, n);
    put(b, s, n);
}

static void put_key(struct gguf_write *w, const char *key, enum gguf_value_type type)
{
    for (size_t i = 0; i < w->names.n; i += strlen((const char *)w->names.data + i) + 1) {
        if (strcmp((const char *)w->names.data + i, key) == 0 && !w->twice)
            w->twice = strdup(key);
    }
    put(&w->names, key, strlen(key) + 1);
    put_string(&w->keys, key, strlen(key));
    put_u32(&w->keys, (uint32_t)type);
    w->n_keys++;
}

int gguf_write_open(const char *path, uint32_t alignment, struct gguf_write **ret, struct err *err)
{
    if (alignment < 8 || alignment > 1u << 20 || (alignment & (alignment - 1)))
        return err_set(err, -EINVAL, "'%s': alignment %u; expected a power of two, 8 to 1 MiB", path ? path : "metadata",
                       alignment);
    struct gguf_write *w = calloc(1, sizeof(*w));
    if (!w || !(w->path = strdup(path ? path : "metadata"))) {
        free(w);
        return err_set(err, -ENOMEM, "'%s': out of memory", path ? path : "metadata");
    }
    w->alignment = alignment;
    int r = path ? io_out_open(path, &w->out, err) : 0;
    if (r < 0) {
        gguf_write_abort(w);
        return r;
    }
    if (alignment != DEFAULT_ALIGNMENT)
        gguf_write_u32(w, "general.alignment", alignment);
    *ret = w;
    return 0;
}

void gguf_write_u32(struct gguf_write *w, const char *key, uint32_t v)
{
    put_key(w, key, GGUF_U32);
    put_u32(&w->keys, v);
}

void gguf_write_f32(struct gguf_write *w, const char *key, float v)
{
    put_key(w, key, GGUF_F32);
    put(&w->keys, &v, sizeof(v));
}

void gguf_write_bool(struct gguf_write *w, const char *key, bool v)
{
    uint8_t byte = v;
    put_key(w, key, GGUF_BOOL);
    put(&w->keys, &byte, 1);
}

void gguf_write_string(struct gguf_write *w, const char *key, const char *v, size_t n)
{
    put_key(w, key, GGUF_STRING);
    put_string(&w->keys, v, n);
}

void gguf_write_array(struct gguf_write *w, const char *key, enum gguf_value_type type, const void *data, uint64_t n)
{
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    put_key(w, key, GGUF_ARRAY);
    put_u32(&w->keys, (uint32_t)type);
    put_u64(&w->keys, n);
    put(&w->keys, data, (size_t)n * sizes[type]);
}

void gguf_write_scalar(struct gguf_write *w, const char *key, enum gguf_value_type type, const void *data, uint64_t n)
{
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == GGUF_STRING) {
        gguf_write_string(w, key, data, (size_t)n);
        return;
    }
    put_key(w, key, type);
    put(&w->keys, data, sizes[type]);
}

uint64_t gguf_write_slots(struct gguf_write *w, const char *key, uint64_t n)
{
    put_key(w, key, GGUF_ARRAY);
    put_u32(&w->keys, GGUF_U64);
    put_u64(&w->keys, n);
    uint64_t at = HEAD_BYTES + w->keys.n;
    for (uint64_t i = 0; i < n; i++)
        put_u64(&w->keys, 0);
    return at;
}

void gguf_write_strings_begin(struct gguf_write *w, const char *key, uint64_t n)
{
    put_key(w, key, GGUF_ARRAY);
    put_u32(&w->keys, GGUF_STRING);
    put_u64(&w->keys, n);
    w->strings_left = n;
}

void gguf_write_strings_add(struct gguf_write *w, const char *s, size_t n)
{
    put_string(&w->keys, s, n);
    w->strings_left--; /* one too many wraps and is found by begin */
}

static struct place *next_place(struct gguf_write *w)
{
    if (w->n_places == w->cap_places) {
        uint32_t cap = MAX(w->cap_places * 2, 256u);
        struct place *p = realloc(w->places, cap * sizeof(*p));
        if (!p)
            return NULL;
        w->places = p;
        w->cap_places = cap;
    }
    return &w->places[w->n_places];
}

int gguf_write_tensor(struct gguf_write *w, const char *name, int type, uint32_t n_dims, const uint64_t *dims, struct err *err)
{
    if (n_dims < 1 || n_dims > 4 || w->n_places >= MAX_TENSORS)
        return err_set(err, -EINVAL, "tensor '%s': %u dimensions, tensor number %u; expected 1 to 4, and at most %u", name, n_dims,
                       w->n_places, MAX_TENSORS);
    for (uint32_t i = 0; i < w->n_places; i++) {
        if (strcmp(w->places[i].name, name) == 0)
            return err_set(err, -EINVAL, "tensor '%s' was given twice", name);
    }
    size_t bytes = quant_row_bytes(type, (size_t)dims[0]);
    if (bytes == 0)
        return err_set(err, -EINVAL, "tensor '%s': rows of %" PRIu64 " elements do not fit type %s", name, dims[0],
                       quant_name(type) ? quant_name(type) : "(unknown)");
    for (uint32_t i = 1; i < n_dims; i++) {
        if (!util_mul(bytes, (size_t)dims[i], &bytes) || bytes == 0 || bytes > INT64_MAX / 2)
            return err_set(err, -EINVAL, "tensor '%s': dimension %u is %" PRIu64 "; expected a size whose product fits", name, i,
                           dims[i]);
    }
    struct place *p = next_place(w);
    char *copy = strdup(name);
    if (!p || !copy) {
        free(copy);
        return err_set(err, -ENOMEM, "tensor '%s': out of memory", name);
    }
    *p = (struct place){.name = copy, .offset = w->data_bytes, .bytes = bytes};
    put_string(&w->infos, name, strlen(name));
    put_u32(&w->infos, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        put_u64(&w->infos, dims[i]);
    put_u32(&w->infos, (uint32_t)type);
    put_u64(&w->infos, p->offset);
    w->data_bytes = util_round_up(w->data_bytes + bytes, w->alignment);
    return (int)w->n_places++;
}

static int check_metadata(const struct gguf_write *w, struct err *err)
{
    if (w->twice)
        return err_set(err, -EINVAL, "'%s': key '%s' was given twice", w->path, w->twice);
    if (w->strings_left)
        return err_set(err, -EINVAL, "'%s': a string array is not as long as announced", w->path);
    if (w->keys.failed || w->infos.failed || w->names.failed)
        return err_set(err, -ENOMEM, "'%s': out of memory for the metadata", w->path);
    return 0;
}

static void make_head(const struct gguf_write *w, uint8_t head[HEAD_BYTES])
{
    const uint32_t version = 3;
    const uint64_t n_tensors = w->n_places;
    memcpy(head, "GGUF", 4);
    memcpy(head + 4, &version, 4);
    memcpy(head + 8, &n_tensors, 8);
    memcpy(head + 16, &w->n_keys, 8);
}

int gguf_write_take(struct gguf_write *w, uint8_t **ret, size_t *ret_n, struct err *err)
{
    int r = check_metadata(w, err);
    if (r < 0)
        return r;
    size_t used = HEAD_BYTES + w->keys.n + w->infos.n, n = util_round_up(used, w->alignment);
    uint8_t *p = malloc(n);
    if (!p)
        return err_set(err, -ENOMEM, "'%s': out of memory for %zu bytes of metadata", w->path, n);
    make_head(w, p);
    if (w->keys.n)
        memcpy(p + HEAD_BYTES, w->keys.data, w->keys.n);
    if (w->infos.n)
        memcpy(p + HEAD_BYTES + w->keys.n, w->infos.data, w->infos.n);
    memset(p + used, 0, n - used);
    *ret = p;
    *ret_n = n;
    return 0;
}

uint64_t gguf_write_place(const struct gguf_write *w, int i, uint64_t *ret_bytes)
{
    *ret_bytes = w->places[i].bytes;
    return w->places[i].offset;
}

uint64_t gguf_write_data_bytes(const struct gguf_write *w)
{
    return w->data_bytes;
}

int gguf_write_begin(struct gguf_write *w, struct err *err)
{
    uint8_t head[HEAD_BYTES];
    int r = check_metadata(w, err);
    make_head(w, head);
    if (r == 0)
        r = io_out_write(w->out, head, sizeof(head), err);
    if (r == 0)
        r = io_out_write(w->out, w->keys.data, w->keys.n, err);
    if (r == 0)
        r = io_out_write(w->out, w->infos.data, w->infos.n, err);
    w->data_offset = util_round_up(sizeof(head) + w->keys.n + w->infos.n, w->alignment);
    free(take_ptr(&w->keys.data));
    free(take_ptr(&w->infos.data));
    return r;
}

int gguf_write_data(struct gguf_write *w, int i, uint64_t offset, const void *data, size_t n, struct err *err)
{
    struct place *p = i >= 0 && (uint32_t)i < w->n_places ? &w->places[i] : NULL;
    if (!p || offset > p->bytes || n > p->bytes - offset || n > p->bytes - p->written)
        return err_set(err, -EINVAL, "'%s': %zu bytes for tensor %d at %" PRIu64 " are more than it has", w->path, n, i, offset);
    p->written += n;
    return io_out_pwrite(w->out, w->data_offset + p->offset + offset, data, n, err);
}

int gguf_write_finish(struct gguf_write *w, uint64_t *ret_file_bytes, struct err *err)
{
    uint64_t end = w->data_offset, size = w->data_offset + w->data_bytes;
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < w->n_places; i++) {
        const struct place *p = &w->places[i];
        if (p->written != p->bytes)
            r = err_set(err, -EINVAL, "'%s': tensor '%s' got %" PRIu64 " of %" PRIu64 " bytes", w->path, p->name, p->written,
                        p->bytes);
        end = w->data_offset + p->offset + p->bytes;
    }
    if (r == 0 && end < size) /* the last tensor is padded like the others */
        r = io_out_pwrite(w->out, size - 1, "", 1, err);
    if (r == 0) {
        struct io_out *out = take_ptr(&w->out);
        r = io_out_commit(out, err);
    }
    if (r == 0 && ret_file_bytes)
        *ret_file_bytes = size;
    gguf_write_abort(w);
    return r;
}

void gguf_write_abort(struct gguf_write *w)
{
    if (!w)
        return;
    io_out_abort(w->out);
    for (uint32_t i = 0; i < w->n_places; i++)
        free(w->places[i].name);
    free(w->places);
    free(w->keys.data);
    free(w->infos.data);
    free(w->names.data);
    free(w->twice);
    free(w->path);
    free(w);
}
