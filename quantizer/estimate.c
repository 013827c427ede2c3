/* SPDX-License-Identifier: MIT
 * Times rows of the largest tensor of each pair of types, and the reads that got them. Called by the conversion before it begins;
 * owns its buffers for the length of the call. Nothing that it finds changes the output. */
#include "quantizer/estimate.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"
#include "quantizer/plan.h"
#include "quantizer/rows.h"
#include "quantizer/source.h"

#define TRIAL (1u << 20)     /* bytes of input for each pair */
#define TRIAL_NS 10000000ull /* and no longer than this */
#define PASSES 4

/* The largest tensor with these types. */
static const struct plan_tensor *largest(const struct plan *p, int from, int to)
{
    const struct plan_tensor *best = NULL;
    for (uint32_t i = 0; i < p->n_tensors; i++) {
        const struct plan_tensor *t = &p->tensors[i];
        if (t->src->type == from && t->type == to && (!best || t->src->bytes > best->src->bytes))
            best = t;
    }
    return best;
}

struct trial {
    uint8_t *in, *out;
    float *scratch;
    uint64_t read_bytes, read_ns;
};

static int try_pair(struct trial *b, const struct plan_tensor *t, bool search, double *ret_ns_per_byte, struct err *err)
{
    struct rows r;
    rows_init(&r, t->src->type, t->type, t->src->cols, t->src->add, NULL, search);
    size_t n_rows = MAX(MIN(TRIAL / r.src_row, t->src->rows), 1u), skip;
    uint64_t begin = util_now_ns();
    int e = io_read_extent(t->src->file, t->src->offset, n_rows * r.src_row, b->in, &skip, err);
    if (e < 0)
        return err_wrap(err, e, "tensor '%s'", t->src->origin);
    b->read_ns += util_now_ns() - begin;
    b->read_bytes += n_rows * r.src_row;
    double best = HUGE_VAL;
    begin = util_now_ns();
    for (int pass = 0; pass < PASSES && util_now_ns() - begin < TRIAL_NS; pass++) { /* the first finds everything cold */
        uint64_t from = util_now_ns();
        size_t i = 0;
        while (i < n_rows && util_now_ns() - from < TRIAL_NS)
            rows_convert(&r, b->in + skip + i++ * r.src_row, b->out, b->scratch); /* a bad number is found later, and named */
        best = fmin(best, (double)(util_now_ns() - from) / ((double)i * (double)r.src_row));
    }
    *ret_ns_per_byte = best;
    return 0;
}

static int try_all(const struct plan *p, struct trial *b, bool search, double *ret_ns, uint64_t *ret_bytes, struct err *err)
{
    *ret_ns = 0;
    *ret_bytes = 0;
    for (uint32_t i = 0; i < p->n_tensors; i++) {
        const struct plan_tensor *t = &p->tensors[i];
        double ns = 0;
        if (largest(p, t->src->type, t->type) != t)
            continue;
        int r = try_pair(b, t, search, &ns, err);
        if (r < 0)
            return r;
        for (uint32_t k = 0; k < p->n_tensors; k++) {
            const struct plan_tensor *u = &p->tensors[k];
            if (u->src->type == t->src->type && u->type == t->type) {
                *ret_ns += ns * (double)u->src->bytes;
                *ret_bytes += u->src->bytes;
            }
        }
    }
    return 0;
}

int estimate_make(const struct plan *p, unsigned n_threads, bool search, struct estimate *ret, struct err *err)
{
    size_t cols = 0, row = 0;
    for (uint32_t i = 0; i < p->n_tensors; i++) {
        cols = MAX(cols, p->tensors[i].src->cols);
        row = MAX(row, (size_t)(p->tensors[i].src->bytes / p->tensors[i].src->rows));
    }
    struct trial b = {0};
    size_t in = util_round_up(MAX(row, TRIAL), IO_ALIGN) + 2 * (size_t)IO_ALIGN;
    double ns = 0;
    uint64_t bytes = 0;
    b.in = aligned_alloc(IO_ALIGN, in);
    b.out = malloc(cols * sizeof(float));
    b.scratch = malloc(rows_scratch(cols) * sizeof(float));
    int r = b.in && b.out && b.scratch ? try_all(p, &b, search, &ns, &bytes, err) : err_set(err, -ENOMEM, "out of memory");
    if (r == 0) {
        ns /= n_threads;
        ret->read_bytes_s = b.read_ns ? (double)b.read_bytes * 1e9 / (double)b.read_ns : 0;
        ret->convert_bytes_s = ns > 0 ? (double)bytes * 1e9 / ns : 0;
        double disk = b.read_bytes ? (double)(bytes + p->bytes) / ret->read_bytes_s : 0;
        ret->seconds = MAX(disk, ns / 1e9);
    }
    free(b.in);
    free(b.out);
    free(b.scratch);
    return r;
}
