/* SPDX-License-Identifier: MIT
 * Reads and writes NumPy arrays of f32 (format 1.0, numpy/lib/format.py). A reader owns nothing after it returns; a writer owns
 * its output until finish or abort. Called by single-stage mode, eval and tests, one thread per writer. The header is a Python
 * dictionary; only the keys and values that the format defines are understood, nothing is evaluated. */
#include "model/npy.h"

#include <ctype.h>
#include <inttypes.h>
#include <string.h>

#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"

#define MAGIC "\x93NUMPY\x01\x00"
#define MAGIC_BYTES 8
#define PREFIX_BYTES 10 /* magic, version, u16 length of the dictionary */
#define ALIGN 64
#define MAX_HEADER 4096

struct shape {
    size_t rows, cols;
};

static void skip_space(const char **p)
{
    while (**p == ' ' || **p == '\n' || **p == '\t')
        (*p)++;
}

static bool eat(const char **p, const char *what)
{
    skip_space(p);
    size_t n = strlen(what);
    if (strncmp(*p, what, n) != 0)
        return false;
    *p += n;
    return true;
}

static bool eat_number(const char **p, size_t *ret)
{
    skip_space(p);
    size_t v = 0;
    if (!isdigit((unsigned char)**p))
        return false;
    for (; isdigit((unsigned char)**p); (*p)++) {
        if (!util_mul(v, 10, &v) || !util_add(v, (size_t)(**p - '0'), &v))
            return false;
    }
    *ret = v;
    return true;
}

/* "(3,)" or "(3, 4)" */
static bool eat_shape(const char **p, struct shape *ret)
{
    size_t first = 0, second = 0;
    if (!eat(p, "(") || !eat_number(p, &first) || !eat(p, ","))
        return false;
    if (eat(p, ")")) {
        *ret = (struct shape){1, first};
        return true;
    }
    if (!eat_number(p, &second))
        return false;
    eat(p, ",");
    *ret = (struct shape){first, second};
    return eat(p, ")");
}

/* The three keys, each once, in any order, with or without a trailing comma. */
static int parse_dictionary(const char *p, struct shape *ret, struct err *err)
{
    const char *begin = p;
    unsigned seen = 0;
    bool ok = eat(&p, "{");
    while (ok && !eat(&p, "}")) {
        unsigned key = eat(&p, "'descr':") ? 1 : eat(&p, "'fortran_order':") ? 2 : eat(&p, "'shape':") ? 4 : 0;
        if (key == 1 && !eat(&p, "'<f4'"))
            return err_set(err, -ENOTSUP, "'descr' is not '<f4'; expected little-endian f32 (numpy: astype('<f4'))");
        if (key == 2 && !eat(&p, "False"))
            return err_set(err, -ENOTSUP, "'fortran_order' is not False; expected C order (numpy: ascontiguousarray)");
        if (key == 4 && !eat_shape(&p, ret))
            return err_set(err, -ENOTSUP, "'shape' is not understood; expected 1 or 2 dimensions");
        ok = key && !(seen & key);
        seen |= key;
        const char *end = p;
        if (ok && !eat(&p, ","))
            ok = eat(&end, "}");
    }
    skip_space(&p);
    if (!ok || seen != 7 || *p)
        return err_set(err, -EPROTO, "dictionary is broken near offset %td; expected 'descr', 'fortran_order' and 'shape'",
                       p - begin + PREFIX_BYTES);
    return 0;
}

static int read_header(struct io_file *f, struct shape *ret, uint64_t *ret_data, struct err *err)
{
    uint8_t prefix[PREFIX_BYTES];
    char text[MAX_HEADER + 1];
    if (io_size(f) < PREFIX_BYTES)
        return err_set(err, -EPROTO, "has %" PRIu64 " bytes; expected a .npy file", io_size(f));
    int r = io_read(f, 0, prefix, sizeof(prefix), err);
    if (r < 0)
        return r;
    if (memcmp(prefix, MAGIC, MAGIC_BYTES) != 0)
        return err_set(err, -EPROTO, "does not begin with the magic of a .npy file of version 1.0");
    size_t n = prefix[8] | (size_t)prefix[9] << 8;
    if (n > MAX_HEADER || n > io_size(f) - PREFIX_BYTES)
        return err_set(err, -EPROTO, "dictionary of %zu bytes; expected at most %u, inside the file", n, MAX_HEADER);
    r = io_read(f, PREFIX_BYTES, text, n, err);
    if (r < 0)
        return r;
    text[n] = '\0';
    if (strlen(text) != n)
        return err_set(err, -EPROTO, "dictionary has a NUL byte");
    *ret_data = PREFIX_BYTES + n;
    return parse_dictionary(text, ret, err);
}

static int read_array(struct io_file *f, float **ret, struct shape *shape, struct err *err)
{
    uint64_t data;
    size_t bytes;
    int r = read_header(f, shape, &data, err);
    if (r < 0)
        return r;
    if (!util_mul(shape->rows, shape->cols, &bytes) || !util_mul(bytes, sizeof(float), &bytes) || bytes == 0)
        return err_set(err, -EPROTO, "shape is %zu x %zu; expected at least one element, and a size that fits", shape->rows,
                       shape->cols);
    if (bytes != io_size(f) - data)
        return err_set(err, -EPROTO, "shape %zu x %zu needs %zu bytes of data; the file has %" PRIu64, shape->rows, shape->cols,
                       bytes, io_size(f) - data);
    auto_free float *values = malloc(bytes);
    if (!values)
        return err_set(err, -ENOMEM, "out of memory for %zu bytes", bytes);
    r = io_read(f, data, values, bytes, err);
    if (r == 0)
        *ret = take_ptr(&values);
    return r;
}

int npy_read(const char *path, float **ret, size_t *ret_rows, size_t *ret_cols, struct err *err)
{
    struct io_file *f;
    struct shape shape = {0, 0};
    int r = io_open(path, false, &f, err);
    if (r < 0)
        return r;
    r = read_array(f, ret, &shape, err);
    io_close(f);
    if (r < 0)
        return err_wrap(err, r, "array '%s'", path);
    *ret_rows = shape.rows;
    *ret_cols = shape.cols;
    return 0;
}

struct npy_writer {
    struct io_out *out;
    char *path;
    size_t rows, cols, n_written;
    uint64_t data;
    uint8_t *written; /* one bit a row */
};

/* The dictionary as numpy writes it, padded so that data is aligned. */
static int write_header(struct npy_writer *w, struct err *err)
{
    char text[256];
    memcpy(text, MAGIC, MAGIC_BYTES);
    int n = snprintf(text + PREFIX_BYTES, sizeof(text) - PREFIX_BYTES,
                     "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }", w->rows, w->cols);
    size_t used = PREFIX_BYTES + (size_t)n, total = util_round_up(used + 1, ALIGN);
    memset(text + used, ' ', total - used - 1);
    text[total - 1] = '\n';
    text[8] = (char)((total - PREFIX_BYTES) & 255);
    text[9] = (char)((total - PREFIX_BYTES) >> 8);
    w->data = total;
    return io_out_write(w->out, text, total, err);
}

int npy_writer_open(const char *path, size_t rows, size_t cols, struct npy_writer **ret, struct err *err)
{
    size_t bytes;
    if (!util_mul(rows, cols, &bytes) || !util_mul(bytes, sizeof(float), &bytes) || bytes == 0 || bytes > INT64_MAX / 2)
        return err_set(err, -EINVAL, "array '%s': shape %zu x %zu; expected at least one element, and a size that fits", path, rows,
                       cols);
    int r = io_may_replace(path, MAGIC, sizeof(MAGIC) - 1, "a .npy file", err);
    if (r < 0)
        return r;
    struct npy_writer *w = calloc(1, sizeof(*w));
    if (!w || !(w->path = strdup(path)) || !(w->written = calloc(rows / 8 + 1, 1))) {
        npy_writer_abort(w);
        return err_set(err, -ENOMEM, "array '%s': out of memory", path);
    }
    w->rows = rows;
    w->cols = cols;
    r = io_out_open(path, &w->out, err);
    if (r == 0)
        r = write_header(w, err);
    if (r < 0) {
        npy_writer_abort(w);
        return r;
    }
    *ret = w;
    return 0;
}

int npy_writer_row(struct npy_writer *w, size_t row, const float *data, struct err *err)
{
    if (row >= w->rows)
        return err_set(err, -EINVAL, "array '%s': row %zu; expected 0 to %zu", w->path, row, w->rows - 1);
    size_t bytes = w->cols * sizeof(float);
    int r = io_out_pwrite(w->out, w->data + row * bytes, data, bytes, err);
    uint8_t bit = (uint8_t)(1u << row % 8);
    if (r == 0 && !(w->written[row / 8] & bit)) {
        w->written[row / 8] |= bit;
        w->n_written++;
    }
    return r;
}

int npy_writer_finish(struct npy_writer *w, struct err *err)
{
    int r;
    if (w->n_written != w->rows) {
        r = err_set(err, -EINVAL, "array '%s': %zu of %zu rows were written", w->path, w->n_written, w->rows);
    } else {
        struct io_out *out = take_ptr(&w->out);
        r = io_out_commit(out, err);
    }
    npy_writer_abort(w);
    return r;
}

void npy_writer_abort(struct npy_writer *w)
{
    if (!w)
        return;
    io_out_abort(w->out);
    free(w->written);
    free(w->path);
    free(w);
}

int npy_write(const char *path, const float *data, size_t rows, size_t cols, struct err *err)
{
    struct npy_writer *w;
    int r = npy_writer_open(path, rows, cols, &w, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < rows; i++) {
        r = npy_writer_row(w, i, data + i * cols, err);
        if (r < 0) {
            npy_writer_abort(w);
            return r;
        }
    }
    return npy_writer_finish(w, err);
}
