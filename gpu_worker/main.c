/* SPDX-License-Identifier: MIT
 * The gpu_worker program: a stage under the coordinator, or alone the FFN of one layer, or final norm and logits. */
#include <errno.h>

#include "gpu_worker/ffn_backend.h"
#include "gpu_worker/gpu.h"
#include "kernels/cpu.h"
#include "model/npy.h"
#include "proto/err.h"
#include "proto/util.h"
#include "stage/single.h"

#define CHUNK 128
#define LOGITS_ROWS 4

static int layer_rows(struct single *s, void *b, uint32_t layer, float *rows, size_t n, uint32_t chunk, struct err *err)
{
    size_t width = s->hparams.hidden;
    int r = 0;
    for (size_t at = 0; r == 0 && at < n; at += chunk)
        r = ffn_cpu.run(b, layer, (uint32_t)MIN(chunk, n - at), rows + at * width, rows + at * width, s->dump ? single_dump : NULL,
                        s, err);
    return r < 0 ? r : npy_write(s->out, rows, n, width, err);
}

static int head_rows(struct single *s, void *b, const float *rows, size_t n, uint32_t block, struct err *err)
{
    struct npy_writer *w;
    size_t vocab = s->hparams.vocab;
    auto_free float *logits = malloc(block * vocab * sizeof(float));
    if (!logits)
        return err_set(err, -ENOMEM, "out of memory for logits");
    int r = npy_writer_open(s->out, n, vocab, &w, err);
    if (r < 0)
        return r;
    for (size_t at = 0; r == 0 && at < n; at += block) {
        uint32_t m = (uint32_t)MIN(block, n - at);
        r = ffn_cpu.head(b, m, rows + at * s->hparams.hidden, logits, s->dump ? single_dump : NULL, s, err);
        for (uint32_t i = 0; r == 0 && i < m; i++)
            r = npy_writer_row(w, at + i, logits + i * vocab, err);
    }
    if (r == 0)
        return npy_writer_finish(w, err);
    npy_writer_abort(w);
    return r;
}

static int run(struct single *s, struct err *err)
{
    auto_free float *rows = NULL;
    void *b = NULL, *data = NULL;
    struct segment_layout l;
    uint32_t layer = 0;
    size_t n = 0;
    int r = s->head ? 0 : single_layer(s, &layer, err);
    if (r == 0)
        r = single_rows(s, &rows, &n, err);
    if (r == 0 && s->dump && n > 1024)
        r = err_set(err, -E2BIG, "--dump: '%s' has %zu rows; expected at most 1024", s->in, n);
    if (r < 0)
        return r;
    uint32_t chunk = (uint32_t)MIN(n, s->dump ? 1024u : CHUNK), block = (uint32_t)MIN(n, s->dump ? 1024u : LOGITS_ROWS);
    const struct ffn_backend_options o = {.hparams = &s->hparams,
                                          .budget = &s->budget,
                                          .types = s->types,
                                          .n_threads = s->config->gpu.threads ? s->config->gpu.threads : (uint32_t)cpu_count(),
                                          .chunk_tokens = chunk,
                                          .logits_rows = block,
                                          .variant = s->variant};
    r = ffn_cpu.open(&o, &b, err);
    if (r == 0)
        r = single_segment(s, s->head ? SEGMENT_HEAD : SEGMENT_FFN, layer, &l, &data, err);
    if (r == 0)
        r = ffn_cpu.load_segment(b, layer, &l, data, err);
    if (r == 0)
        r = s->head ? head_rows(s, b, rows, n, block, err) : layer_rows(s, b, layer, rows, n, chunk, err);
    ffn_cpu.close(b);
    single_free_segment(s, &l, data);
    return r;
}

int main(int argc, char **argv)
{
    static const struct single_program program = {.name = "gpu_worker",
                                                  .summary = "computes x = h + post_norm(FFN(norm(h))) of a layer, and the logits",
                                                  .options = SINGLE_LAYER | SINGLE_IN | SINGLE_DUMP | SINGLE_HEAD,
                                                  .ops = &gpu_ops,
                                                  .run = run};
    return single_main(&program, argc, argv);
}
