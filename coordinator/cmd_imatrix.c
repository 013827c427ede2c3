/* SPDX-License-Identifier: MIT
 * `imatrix`: the model reads a text, window by window, while the workers sum the squares of what enters each matrix; the sums go
 * to a GGUF file in the form of llama.cpp's imatrix tool (tensors NAME.in_sum2 and NAME.counts; keys general.type, imatrix.*). One
 * window at a time, so that sums are added in the order of the text: the same text gives the same bytes, whatever the number of
 * threads. Every token asks for logits, because the last FFN runs for no other; they give the perplexity that is printed. Runs
 * on the main thread. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/commands.h"
#include "coordinator/engine.h"
#include "coordinator/report.h"
#include "coordinator/tokenizer.h"
#include "kernels/quant.h"
#include "model/collect.h"
#include "model/gemma3.h"
#include "model/gguf_write.h"
#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"

struct imatrix {
    struct engine *engine;
    const struct hparams *hparams;
    uint32_t *ids; /* [window] */
    uint32_t n_ids;
    uint64_t n_tokens, n_windows, n_scored;
    double sum; /* of -log p */
    struct request *request;
    struct err error;
};

static void imatrix_logits(void *ctx, uint32_t pos, const float *row, uint32_t vocab)
{
    struct imatrix *m = ctx;
    if (pos + 1 >= m->n_ids)
        return;
    m->sum += sample_nll(row, vocab, m->ids[pos + 1]);
    m->n_scored++;
}

static void imatrix_finished(void *ctx, const struct request_result *r)
{
    struct imatrix *m = ctx;
    m->request = NULL;
    if (r->finish == ENGINE_FINISH_ERROR)
        m->error = r->err ? *r->err : (struct err){.code = -EIO, .text = "request failed"};
}

static int read_window(struct imatrix *m, struct err *err)
{
    struct request_params q = {
        .ids = m->ids, .n_ids = m->n_ids, .all_logits = true, .logits = imatrix_logits, .finished = imatrix_finished, .ctx = m};
    int r = engine_submit(m->engine, &q, &m->request, err);
    if (r == 0)
        r = engine_run(m->engine, err);
    if (r < 0 && m->request)
        engine_cancel(m->engine, m->request);
    m->n_tokens += m->n_ids;
    m->n_windows++;
    return r == 0 && m->error.code ? err_set(err, m->error.code, "%s", m->error.text) : r;
}

static int read_text(struct imatrix *m, const struct command *c, struct err *err)
{
    uint32_t window = c->options->window;
    const struct plan *p = engine_plan(c->engine);
    if (window > MIN(p->context, p->hparams.context_max))
        return err_set(err, -EINVAL, "option '--window': found %u; expected at most 'context', %u tokens (the model allows %u)",
                       window, p->context, p->hparams.context_max);
    if (c->n_ids == 0)
        return err_set(err, -EINVAL, "file '%s' has no text", c->options->file);
    m->ids = malloc(window * sizeof(*m->ids));
    int r = m->ids ? 0 : err_set(err, -ENOMEM, "imatrix: out of memory");
    for (size_t at = 0; r == 0 && at < c->n_ids; at += window - 1) {
        size_t n = MIN((size_t)window - 1, c->n_ids - at);
        m->ids[0] = tokenizer_bos(c->tokenizer);
        memcpy(m->ids + 1, c->ids + at, n * sizeof(*m->ids));
        m->n_ids = (uint32_t)n + 1;
        r = read_window(m, err);
    }
    free(m->ids);
    return r;
}

/* Announces the two tensors of every matrix, or writes their data. */
static int each_matrix(const struct imatrix *m, double *const area[2], struct gguf_write *w, bool data, struct err *err)
{
    float count = (float)m->n_tokens;
    int r = 0, index = 0;
    for (uint32_t layer = 0; layer < m->hparams->n_layers; layer++) {
        for (int t = 0; r >= 0 && t < GEMMA3_LAYER_TENSORS; t++) {
            enum gemma3_tensor role = (enum gemma3_tensor)t;
            uint32_t n;
            const double *sums = collect_at(area[role >= GEMMA3_FFN_NORM], m->hparams, role, layer, &n);
            char name[64], full[96];
            if (!sums)
                continue;
            gemma3_name(role, layer, name, sizeof(name));
            if (!data) {
                snprintf(full, sizeof(full), "%s.in_sum2", name);
                r = gguf_write_tensor(w, full, QUANT_F32, 2, (const uint64_t[]){n, 1}, err);
                snprintf(full, sizeof(full), "%s.counts", name);
                if (r >= 0)
                    r = gguf_write_tensor(w, full, QUANT_F32, 2, (const uint64_t[]){1, 1}, err);
                continue;
            }
            auto_free float *row = malloc(n * sizeof(*row));
            if (!row)
                return err_set(err, -ENOMEM, "imatrix: out of memory");
            for (uint32_t k = 0; k < n; k++)
                row[k] = (float)sums[k];
            r = gguf_write_data(w, index, 0, row, n * sizeof(*row), err);
            if (r >= 0)
                r = gguf_write_data(w, index + 1, 0, &count, sizeof(count), err);
            index += 2;
        }
    }
    return MIN(r, 0);
}

static int write_file(const struct imatrix *m, const struct options *o, double *const area[2], struct err *err)
{
    struct gguf_write *w;
    int r = gguf_write_open(o->out, 32, &w, err);
    if (r < 0)
        return r;
    const char *slash = strrchr(o->file, '/'), *dataset = slash ? slash + 1 : o->file;
    gguf_write_string(w, "general.type", "imatrix", 7);
    gguf_write_strings_begin(w, "imatrix.datasets", 1);
    gguf_write_strings_add(w, dataset, strlen(dataset));
    gguf_write_u32(w, "imatrix.chunk_count", (uint32_t)m->n_windows);
    gguf_write_u32(w, "imatrix.chunk_size", o->window);
    r = each_matrix(m, area, w, false, err);
    if (r == 0)
        r = gguf_write_begin(w, err);
    if (r == 0)
        r = each_matrix(m, area, w, true, err);
    if (r == 0)
        return gguf_write_finish(w, NULL, err);
    gguf_write_abort(w);
    return r;
}

static int print_result(const struct imatrix *m, const struct options *o, struct err *err)
{
    double ppl = m->n_scored ? exp(m->sum / (double)m->n_scored) : 0;
    if (o->json)
        return report_print_json(json_pack("{s:s, s:I, s:I, s:f}", "out", o->out, "tokens", (json_int_t)m->n_tokens, "windows",
                                           (json_int_t)m->n_windows, "ppl", ppl),
                                 stdout, err);
    printf("'%s': %llu tokens in %llu windows, perplexity %.4f\n", o->out, (unsigned long long)m->n_tokens,
           (unsigned long long)m->n_windows, ppl);
    return 0;
}

int cmd_imatrix_run(struct command *c, struct err *err)
{
    struct imatrix m = {.engine = c->engine, .hparams = &engine_plan(c->engine)->hparams};
    double *area[2];
    int r = io_may_replace(c->options->out, "GGUF", 4, "a GGUF file", err);
    if (r == 0)
        r = engine_collect(c->engine, area, err);
    if (r == 0)
        r = read_text(&m, c, err);
    if (r == 0)
        r = write_file(&m, c->options, area, err);
    return r == 0 ? print_result(&m, c->options, err) : r;
}
