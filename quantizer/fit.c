/* SPDX-License-Identifier: MIT
 * Measures what each type costs each matrix, then climbs the ladder greedily. Owns its tables for the length of a call. Called by
 * the conversion on one thread, before anything is written. It rounds without the search, which lowers all errors alike. */
#include "quantizer/fit.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/quant.h"
#include "kernels/quant_ops.h"
#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"
#include "quantizer/recipe.h"
#include "quantizer/rows.h"
#include "quantizer/source.h"

#define RUNGS 5
#define SAMPLE_ROWS 8

static const int super_ladder[RUNGS] = {QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K, QUANT_Q8_0, QUANT_BF16};
static const int plain_ladder[RUNGS] = {QUANT_Q4_0, QUANT_Q5_0, QUANT_Q8_0, QUANT_BF16, -1};

static const struct kind {
    enum gemma3_tensor role;
    const char *name;
    double weight;
} kinds[FIT_KINDS] = {
    {GEMMA3_TOKEN_EMBD, "token_embd", 1}, {GEMMA3_OUTPUT, "output", 8}, {GEMMA3_ATTN_Q, "attn_q", 1},
    {GEMMA3_ATTN_K, "attn_k", 1},         {GEMMA3_ATTN_V, "attn_v", 2}, {GEMMA3_ATTN_OUTPUT, "attn_output", 1},
    {GEMMA3_FFN_GATE, "ffn_gate", 1},     {GEMMA3_FFN_UP, "ffn_up", 1}, {GEMMA3_FFN_DOWN, "ffn_down", 2},
};

static const int *ladder(const struct source_tensor *t)
{
    return t->cols % QUANT_SUPER_BLOCK == 0 ? super_ladder : plain_ladder;
}

/* -1: there is no such rung. The last is the tensor's own type, as soon as that takes no more: nothing gets better by growing. */
static int rung_type(const struct source_tensor *t, int k)
{
    const int *l = ladder(t);
    size_t own = quant_row_bytes(t->type, t->cols);
    if (k >= RUNGS || l[k] < 0 || (k > 0 && own <= quant_row_bytes(l[k - 1], t->cols)))
        return -1;
    return own <= quant_row_bytes(l[k], t->cols) ? t->type : l[k];
}

static double weight(const struct source *s, const struct source_tensor *t)
{
    bool tied = source_at(s, source_n(s) - 1)->role != GEMMA3_OUTPUT;
    if (t->role == GEMMA3_TOKEN_EMBD && tied)
        return kinds[1].weight;
    for (size_t i = 0; i < FIT_KINDS; i++) {
        if (kinds[i].role == t->role)
            return kinds[i].weight;
    }
    return 0;
}

static uint64_t tensor_bytes(const struct source_tensor *t, int type, uint32_t alignment)
{
    return util_round_up(quant_row_bytes(type, t->cols) * (size_t)t->rows, alignment);
}

int fit_smallest(const struct source *s, const struct recipe_options *o, struct recipe *ret, struct err *err)
{
    struct recipe r = {.n = source_n(s), .name = "fit"};
    r.types = calloc(r.n, sizeof(*r.types));
    r.fixed = calloc(r.n, sizeof(*r.fixed));
    int e = r.types && r.fixed ? 0 : err_set(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; e == 0 && i < r.n; i++) {
        const struct source_tensor *t = source_at(s, i);
        r.types[i] = gemma3_is_norm(t->role) ? QUANT_F32 : rung_type(t, 0);
        r.fixed[i] = gemma3_is_norm(t->role);
        if (!quant_row_bytes(r.types[i], t->cols))
            e = err_set(err, -ENOTSUP, "tensor '%s' has rows of %u; a choice by size needs a multiple of 32", t->origin, t->cols);
    }
    if (e == 0)
        e = recipe_override(s, o, &r, err);
    if (e < 0)
        recipe_fini(&r);
    else
        *ret = r;
    return e;
}

/* ---- errors ---- */

struct sample {
    uint8_t *raw, *packed;
    float *exact, *back;
};

static int read_row(const struct source_tensor *t, uint32_t row, struct sample *b, struct err *err)
{
    size_t bytes = quant_row_bytes(t->type, t->cols), skip;
    int r = io_read_extent(t->file, t->offset + row * (uint64_t)bytes, bytes, b->raw, &skip, err);
    if (r < 0)
        return err_wrap(err, r, "tensor '%s'", t->origin);
    quant_ops_best()->to_f32(t->type, b->raw + skip, b->exact, t->cols);
    return 0;
}

/* Adds the squares of one row and, for each rung, of its errors. */
static void add_row(const struct source_tensor *t, struct sample *b, double *norm, double errors[RUNGS])
{
    const struct quant_ops *ops = quant_ops_best();
    for (uint32_t i = 0; i < t->cols; i++)
        *norm += (double)b->exact[i] * (double)b->exact[i];
    for (int k = 0, type; (type = rung_type(t, k)) >= 0 && type != t->type; k++) {
        ops->from_f32(type, b->exact, b->packed, t->cols);
        ops->to_f32(type, b->packed, b->back, t->cols);
        for (uint32_t i = 0; i < t->cols; i++) {
            double d = (double)b->exact[i] - (double)b->back[i];
            errors[k] += d * d;
        }
    }
}

static int measure(const struct source *s, const struct source_tensor *t, struct sample *b, double errors[RUNGS], struct err *err)
{
    double norm = 0;
    uint32_t n = MIN(t->rows, SAMPLE_ROWS);
    for (uint32_t i = 0; i < n; i++) {
        int r = read_row(t, (uint32_t)((uint64_t)t->rows * i / n), b, err);
        if (r < 0)
            return r;
        add_row(t, b, &norm, errors);
    }
    for (int k = 0; k < RUNGS; k++) /* not finite: the conversion will name the number */
        errors[k] = norm > 0 && isfinite(errors[k]) ? weight(s, t) * errors[k] / norm : 0;
    return 0;
}

static int measure_all(const struct source *s, const struct recipe *r, double (*errors)[RUNGS], struct err *err)
{
    size_t cols = 0;
    for (uint32_t i = 0; i < r->n; i++)
        cols = MAX(cols, source_at(s, i)->cols);
    struct sample b = {.raw = aligned_alloc(IO_ALIGN, util_round_up(cols * sizeof(float), IO_ALIGN) + 2 * (size_t)IO_ALIGN),
                       .packed = malloc(cols * sizeof(float)),
                       .exact = malloc(cols * sizeof(float)),
                       .back = malloc(cols * sizeof(float))};
    int e = b.raw && b.packed && b.exact && b.back ? 0 : err_set(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; e == 0 && i < r->n; i++) {
        if (!r->fixed[i])
            e = measure(s, source_at(s, i), &b, errors[i], err);
    }
    free(b.raw);
    free(b.packed);
    free(b.exact);
    free(b.back);
    return e;
}

/* ---- the climb ---- */

struct step {
    double gain; /* error per byte */
    uint32_t tensor;
    uint64_t bytes;
};

/* The best step that fits; of equal ones the first. */
static bool best_step(const struct source *s, const struct recipe *r, double (*errors)[RUNGS], const uint8_t *rung, uint64_t room,
                      uint32_t alignment, struct step *ret)
{
    *ret = (struct step){0};
    for (uint32_t i = 0; i < r->n; i++) {
        const struct source_tensor *t = source_at(s, i);
        uint8_t k = rung[i];
        if (r->fixed[i] || rung_type(t, k + 1) < 0)
            continue;
        uint64_t more = tensor_bytes(t, rung_type(t, k + 1), alignment) - tensor_bytes(t, rung_type(t, k), alignment);
        double gain = (errors[i][k] - errors[i][k + 1]) / (double)MAX(more, 1u);
        if (more <= room && gain > ret->gain)
            *ret = (struct step){gain, i, more};
    }
    return ret->gain > 0;
}

/* The type of most bytes names the file. */
static uint32_t main_file_type(const struct source *s, const struct recipe *r)
{
    uint64_t bytes[64] = {0};
    int best = QUANT_F32;
    for (uint32_t i = 0; i < r->n; i++)
        bytes[r->types[i] & 63] += tensor_bytes(source_at(s, i), r->types[i], 1);
    for (int type = 0; type < 64; type++)
        best = bytes[type] > bytes[best] ? type : best;
    return recipe_file_type(best);
}

int fit_improve(const struct source *s, uint64_t bytes, uint64_t limit, uint32_t alignment, struct recipe *r, struct err *err)
{
    char want[16], need[16];
    struct step step;
    if (bytes > limit)
        return err_set(err, -ENOSPC, "%s do not hold this model: its smallest form needs %s (%llu bytes)",
                       util_format_bytes(want, sizeof(want), limit), util_format_bytes(need, sizeof(need), bytes),
                       (unsigned long long)bytes);
    double(*errors)[RUNGS] = calloc(r->n, sizeof(*errors));
    uint8_t *rung = calloc(r->n, 1);
    int e = errors && rung ? measure_all(s, r, errors, err) : err_set(err, -ENOMEM, "out of memory");
    while (e == 0 && best_step(s, r, errors, rung, limit - bytes, alignment, &step)) {
        r->types[step.tensor] = rung_type(source_at(s, step.tensor), ++rung[step.tensor]);
        bytes += step.bytes;
    }
    r->file_type = main_file_type(s, r);
    free(errors);
    free(rung);
    return e;
}

int fit_describe(const struct source *s, const struct recipe *r, unsigned i, char *buf, unsigned buf_size)
{
    int n = snprintf(buf, buf_size, "%s:", kinds[i].name);
    bool any = false;
    for (int type = 0; type < 64; type++) {
        uint32_t count = 0;
        for (uint32_t k = 0; k < r->n; k++)
            count += source_at(s, k)->role == kinds[i].role && r->types[k] == type;
        if (count && n < (int)buf_size)
            n += snprintf(buf + n, buf_size - (unsigned)n, "%s %u %s", any ? "," : "", count, quant_name(type));
        any = any || count;
    }
    return any;
}
