/* SPDX-License-Identifier: MIT
 * Looks up embedding rows in the model file. Owns a buffered file handle and a small direct-mapped cache of finished rows, both
 * taken from the budget at open; looking up allocates nothing. Rows are a few KiB at random offsets, for which the page cache is
 * right and direct I/O would be wrong. Ids come from another process: each is copied once and checked. */
#include "loader/embed.h"

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "kernels/quant.h"
#include "model/gemma3.h"
#include "model/gguf.h"
#include "model/work_plan.h"
#include "proto/budget.h"
#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"

struct embed {
    struct budget *budget;
    struct io_file *file;
    uint64_t offset; /* of the table, in the file */
    size_t raw_bytes, stride, memory_bytes;
    uint32_t hidden, vocab;
    int type;
    float scale;
    uint8_t *memory;
    float *rows;   /* [WORK_PLAN_EMBED_ROWS], stride bytes apart */
    uint32_t *ids; /* id + 1 held by a cache row, 0 = none */
    void *raw;
    _Atomic uint64_t bytes_read;
};

int embed_open(const struct gguf *g, const struct hparams *h, struct budget *budget, struct embed **ret, struct err *err)
{
    const struct gguf_tensor *t;
    int r = gemma3_find(g, GEMMA3_TOKEN_EMBD, 0, &t, err);
    if (r < 0)
        return r;
    struct embed *e = calloc(1, sizeof(*e));
    if (!e)
        return err_set(err, -ENOMEM, "embedding: out of memory");
    e->budget = budget;
    e->offset = t->offset;
    e->type = t->type;
    e->hidden = h->hidden;
    e->vocab = h->vocab;
    e->scale = sqrtf((float)h->hidden);
    e->raw_bytes = quant_row_bytes(t->type, h->hidden);
    e->stride = util_round_up(h->hidden * sizeof(float), 64);
    e->memory_bytes = work_plan_embed_bytes(h);
    r = io_open(gguf_file(g, t->file), false, &e->file, err);
    if (r == 0)
        r = budget_alloc(budget, BUDGET_SCRATCH, e->memory_bytes, (void **)&e->memory, err);
    if (r < 0) {
        embed_close(e);
        return r;
    }
    e->rows = (float *)(void *)e->memory;
    e->raw = e->memory + e->stride * WORK_PLAN_EMBED_ROWS;
    e->ids = (uint32_t *)(void *)(e->memory + e->stride * (WORK_PLAN_EMBED_ROWS + 1));
    *ret = e;
    return 0;
}

void embed_close(struct embed *e)
{
    if (!e)
        return;
    budget_free(e->budget, BUDGET_SCRATCH, e->memory, e->memory_bytes);
    io_close(e->file);
    free(e);
}

static float *cache_row(const struct embed *e, uint32_t id)
{
    return e->rows + (size_t)(id % WORK_PLAN_EMBED_ROWS) * (e->stride / sizeof(float));
}

static int fetch(struct embed *e, uint32_t id, float *row, struct err *err)
{
    e->ids[id % WORK_PLAN_EMBED_ROWS] = 0;
    int r = io_read(e->file, e->offset + (uint64_t)id * e->raw_bytes, e->raw, e->raw_bytes, err);
    if (r < 0)
        return err_wrap(err, r, "embedding of token %u", id);
    atomic_fetch_add_explicit(&e->bytes_read, e->raw_bytes, memory_order_relaxed);
    quant_dequantize_row(e->type, e->raw, row, e->hidden);
    for (uint32_t i = 0; i < e->hidden; i++)
        row[i] *= e->scale;
    e->ids[id % WORK_PLAN_EMBED_ROWS] = id + 1;
    return 0;
}

int embed_rows(struct embed *e, const uint32_t *ids, uint32_t n, float *ret_rows, struct err *err)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t id = *(const volatile uint32_t *)&ids[i];
        if (id >= e->vocab)
            return err_set(err, -EINVAL, "token %u has id %u; expected less than %u", i, id, e->vocab);
        float *row = cache_row(e, id);
        int r = e->ids[id % WORK_PLAN_EMBED_ROWS] == id + 1 ? 0 : fetch(e, id, row, err);
        if (r < 0)
            return r;
        memcpy(ret_rows + (size_t)i * e->hidden, row, e->hidden * sizeof(float));
    }
    return 0;
}

uint64_t embed_bytes_read(const struct embed *e)
{
    return atomic_load_explicit(&e->bytes_read, memory_order_relaxed);
}
