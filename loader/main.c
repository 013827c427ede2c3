/* SPDX-License-Identifier: MIT
 * The loader program: a stage under the coordinator, or alone the embedding rows of some tokens. */
#include "loader/embed.h"
#include "loader/loader.h"
#include "model/gguf.h"
#include "model/npy.h"
#include "proto/err.h"
#include "proto/util.h"
#include "stage/positions.h"
#include "stage/single.h"

#define IDS_MAX (1u << 20)

static int run(struct single *s, struct err *err)
{
    auto_free uint32_t *ids = NULL;
    auto_free float *rows = NULL;
    struct embed *e = NULL;
    size_t n = 0;
    int r = positions_parse("--ids", s->ids, s->hparams.vocab, IDS_MAX, &ids, &n, err);
    if (r < 0)
        return r;
    rows = calloc(n, s->hparams.hidden * sizeof(float));
    if (!rows)
        return err_set(err, -ENOMEM, "out of memory for %zu rows", n);
    r = embed_open(s->gguf, &s->hparams, &s->budget, &e, err);
    if (r == 0)
        r = embed_rows(e, ids, (uint32_t)n, rows, err);
    embed_close(e);
    return r < 0 ? r : npy_write(s->out, rows, n, s->hparams.hidden, err);
}

int main(int argc, char **argv)
{
    static const struct single_program program = {.name = "loader",
                                                  .summary = "owns the model file, fills weight segments, looks up embeddings",
                                                  .options = SINGLE_IDS,
                                                  .ops = &loader_ops,
                                                  .run = run};
    return single_main(&program, argc, argv);
}
