/* SPDX-License-Identifier: MIT
 * Reads an importance matrix whole (some MiB for the largest model) and keeps mean squares for each tensor of the source. Called by
 * the conversion on one thread; the weights are then read by the converting threads. Everything in the file is untrusted: sizes are
 * checked against the model, values must be finite and not negative. */
#include "quantizer/imatrix.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "kernels/quant.h"
#include "model/gguf.h"
#include "model/gguf_write.h"
#include "proto/err.h"
#include "proto/util.h"
#include "quantizer/source.h"

struct imatrix {
    char *name, *dataset;
    uint32_t chunks, n, n_tensors;
    uint64_t hash;
    float **weights;
};

static int read_values(const struct gguf *g, const struct gguf_tensor *t, uint64_t n, float *ret, struct err *err)
{
    if (t->type != QUANT_F32 || t->bytes != n * sizeof(float))
        return err_set(err, -EINVAL, "tensor '%s' has %" PRIu64 " x %" PRIu64 " elements of type %s; expected %" PRIu64 " of f32",
                       t->name, t->dims[0], t->dims[1], quant_ggml_name(t->type), n);
    int r = gguf_read(g, t, 0, ret, (size_t)t->bytes, err);
    for (uint64_t i = 0; r == 0 && i < n; i++) {
        if (!(ret[i] >= 0) || !isfinite(ret[i]))
            r = err_set(err, -EINVAL, "tensor '%s', element %" PRIu64 " is %g; expected a finite number of at least 0", t->name, i,
                        (double)ret[i]);
    }
    return r;
}

static int take_tensor(struct imatrix *m, const struct gguf *g, const struct source_tensor *t, uint32_t i, struct err *err)
{
    char name[96];
    float count;
    snprintf(name, sizeof(name), "%s.in_sum2", t->name);
    const struct gguf_tensor *sums = gguf_find(g, name);
    snprintf(name, sizeof(name), "%s.counts", t->name);
    const struct gguf_tensor *counts = gguf_find(g, name);
    if (!sums)
        return 0;
    if (!counts)
        return err_set(err, -EINVAL, "tensor '%s' is missing beside '%s'", name, sums->name);
    float *w = m->weights[i] = malloc(t->cols * sizeof(*w));
    if (!w)
        return err_set(err, -ENOMEM, "out of memory");
    int r = read_values(g, sums, t->cols, w, err);
    if (r == 0)
        r = read_values(g, counts, 1, &count, err);
    if (r < 0)
        return r;
    for (uint32_t k = 0; k < t->cols; k++)
        w[k] = count > 0 ? w[k] / count : 1;
    m->hash = XXH3_64bits_withSeed(w, t->cols * sizeof(*w), m->hash + i);
    m->n++;
    return 0;
}

static int check_type(const struct gguf *g, struct err *err)
{
    const char *type = "(none)";
    int r = gguf_get_string(g, "general.type", &type, NULL, err);
    if (r == -ENOENT || (r == 0 && strcmp(type, "imatrix") != 0))
        return err_set(err, -EINVAL, "key 'general.type' is '%s'; expected 'imatrix' (a file of llama-imatrix in GGUF format)",
                       type);
    return r;
}

static int load(struct imatrix *m, const struct gguf *g, const struct source *s, struct err *err)
{
    const char *dataset;
    int r = check_type(g, err);
    if (r < 0)
        return r;
    gguf_get_u32(g, "imatrix.chunk_count", &m->chunks, NULL);
    if (gguf_get_string_at(g, "imatrix.datasets", 0, &dataset, &(size_t){0}, NULL) == 0)
        m->dataset = strdup(dataset);
    for (uint32_t i = 0; r == 0 && i < m->n_tensors; i++)
        r = take_tensor(m, g, source_at(s, i), i, err);
    if (r == 0 && m->n == 0)
        r = err_set(err, -EINVAL,
                    "has weights for none of the model's matrices; expected tensors such as 'blk.0.attn_q.weight.in_sum2'");
    return r;
}

int imatrix_open(const char *path, const struct source *s, struct imatrix **ret, struct err *err)
{
    struct gguf *g = NULL;
    struct imatrix *m = calloc(1, sizeof(*m));
    const char *slash = strrchr(path, '/');
    if (m) {
        m->n_tensors = source_n(s);
        m->weights = calloc(m->n_tensors, sizeof(float *));
        m->name = strdup(slash ? slash + 1 : path);
    }
    int r = m && m->weights && m->name ? gguf_open(path, false, &g, err) : err_set(err, -ENOMEM, "out of memory");
    if (r == 0)
        r = load(m, g, s, err);
    gguf_close(g);
    if (r < 0) {
        imatrix_close(m);
        return err_wrap(err, r, "importance matrix '%s'", path);
    }
    *ret = m;
    return 0;
}

void imatrix_close(struct imatrix *m)
{
    if (!m)
        return;
    for (uint32_t i = 0; m->weights && i < m->n_tensors; i++)
        free(m->weights[i]);
    free(m->weights);
    free(m->name);
    free(m->dataset);
    free(m);
}

const float *imatrix_weights(const struct imatrix *m, uint32_t i)
{
    return m ? m->weights[i] : NULL;
}

uint32_t imatrix_n(const struct imatrix *m)
{
    return m->n;
}

uint64_t imatrix_hash(const struct imatrix *m)
{
    return m->hash;
}

void imatrix_write_keys(const struct imatrix *m, struct gguf_write *w)
{
    gguf_write_string(w, "quantize.imatrix.file", m->name, strlen(m->name));
    if (m->dataset)
        gguf_write_string(w, "quantize.imatrix.dataset", m->dataset, strlen(m->dataset));
    gguf_write_u32(w, "quantize.imatrix.entries_count", m->n);
    gguf_write_u32(w, "quantize.imatrix.chunks_count", m->chunks);
}
