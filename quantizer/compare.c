/* SPDX-License-Identifier: MIT
 * Reads both models in the same pieces and sums in double, in the order of the elements. Owns its buffers for the length of a call;
 * memory depends on the longest row, not on the model. Called by the command `compare` and by tests. */
#include "quantizer/compare.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/quant.h"
#include "kernels/quant_ops.h"
#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"
#include "quantizer/source.h"

#define PIECE (1u << 20) /* elements, or a row if that is longer */

struct side {
    struct source *source;
    uint8_t *raw;
    float *x;
};

double compare_rmse(const struct compare_sum *s)
{
    return s->n ? sqrt(s->dd / (double)s->n) : 0;
}

double compare_cosine(const struct compare_sum *s)
{
    double n = sqrt(s->aa) * sqrt(s->bb);
    return n > 0 ? s->ab / n : s->aa == s->bb;
}

static void add_up(const float *a, const float *b, size_t n, struct compare_sum *s)
{
    for (size_t i = 0; i < n; i++) {
        double x = (double)a[i], y = (double)b[i], d = x - y;
        s->aa += x * x;
        s->bb += y * y;
        s->ab += x * y;
        s->dd += d * d;
        s->max = MAX(s->max, fabs(d));
    }
    s->n += n;
}

static void merge(struct compare_sum *to, const struct compare_sum *s)
{
    to->n += s->n;
    to->aa += s->aa;
    to->bb += s->bb;
    to->ab += s->ab;
    to->dd += s->dd;
    to->max = MAX(to->max, s->max);
}

static int load(const struct side *side, const struct source_tensor *t, uint32_t row, uint32_t n, struct err *err)
{
    size_t bytes = quant_row_bytes(t->type, t->cols), skip, elements = (size_t)n * t->cols;
    int r = io_read_extent(t->file, t->offset + row * (uint64_t)bytes, n * bytes, side->raw, &skip, err);
    if (r < 0)
        return err_wrap(err, r, "tensor '%s'", t->origin);
    quant_ops_best()->to_f32(t->type, side->raw + skip, side->x, elements);
    quant_ops_best()->add_finite(side->x, t->add, elements, INFINITY);
    return 0;
}

static int compare_tensor(const struct side *a, const struct side *b, uint32_t i, struct compare_sum *ret, struct err *err)
{
    const struct source_tensor *x = source_at(a->source, i), *y = source_at(b->source, i);
    if (strcmp(x->name, y->name) != 0 || x->rows != y->rows || x->cols != y->cols)
        return err_set(err, -EINVAL, "tensor '%s' is %u x %u, and '%s' is %u x %u; expected two forms of the same model", x->name,
                       x->rows, x->cols, y->name, y->rows, y->cols);
    uint32_t step = MAX(PIECE / x->cols, 1u);
    for (uint32_t row = 0; row < x->rows; row += step) {
        uint32_t n = MIN(step, x->rows - row);
        int r = load(a, x, row, n, err);
        if (r == 0)
            r = load(b, y, row, n, err);
        if (r < 0)
            return r;
        add_up(a->x, b->x, (size_t)n * x->cols, ret);
    }
    return 0;
}

static int open_side(const char *path, struct side *s, struct err *err)
{
    int r = source_open(path, &s->source, err);
    size_t cols = PIECE;
    for (uint32_t i = 0; r == 0 && i < source_n(s->source); i++)
        cols = MAX(cols, source_at(s->source, i)->cols);
    if (r < 0)
        return r;
    s->raw = aligned_alloc(IO_ALIGN, util_round_up(cols * sizeof(float), IO_ALIGN) + 2 * (size_t)IO_ALIGN);
    s->x = malloc(cols * sizeof(float));
    return s->raw && s->x ? 0 : err_set(err, -ENOMEM, "out of memory");
}

static void close_side(struct side *s)
{
    source_close(s->source);
    free(s->raw);
    free(s->x);
}

static void print(FILE *f, const char *name, const char *from, const char *to, const struct compare_sum *s)
{
    if (f)
        fprintf(f, "%-36s %-5s %-5s %12.5g %12.5g %11.8f\n", name, from, to, compare_rmse(s), s->max, compare_cosine(s));
}

static int compare_all(const struct side *a, const struct side *b, FILE *f, struct compare_sum *ret, struct err *err)
{
    if (source_n(a->source) != source_n(b->source))
        return err_set(err, -EINVAL, "one has %u tensors, the other %u; expected two forms of the same model", source_n(a->source),
                       source_n(b->source));
    if (f)
        fprintf(f, "%-36s %-5s %-5s %12s %12s %11s\n", "tensor", "A", "B", "RMSE", "max error", "cosine");
    for (uint32_t i = 0; i < source_n(a->source); i++) {
        const struct source_tensor *x = source_at(a->source, i), *y = source_at(b->source, i);
        struct compare_sum s = {0};
        int r = compare_tensor(a, b, i, &s, err);
        if (r < 0)
            return r;
        print(f, x->name, quant_name(x->type), quant_name(y->type), &s);
        if (!gemma3_is_norm(x->role))
            merge(ret, &s);
    }
    print(f, "all matrices", "", "", ret);
    return 0;
}

int compare_run(const char *path_a, const char *path_b, FILE *f, struct compare_sum *ret, struct err *err)
{
    struct side a = {0}, b = {0};
    struct compare_sum sum = {0};
    int r = open_side(path_a, &a, err);
    if (r == 0)
        r = open_side(path_b, &b, err);
    if (r == 0) {
        r = compare_all(&a, &b, f, &sum, err);
        if (r < 0)
            err_wrap(err, r, "'%s' and '%s'", path_a, path_b);
    }
    close_side(&a);
    close_side(&b);
    if (r == 0)
        *ret = sum;
    return r;
}
