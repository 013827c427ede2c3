/* SPDX-License-Identifier: MIT
 * Layout of a collection area and the addition to it. Workers call collect_rows from their data thread; the coordinator reads the
 * sums when no chunk is in flight. Owns nothing. */
#include "model/collect.h"

#include <string.h>

static size_t layer_columns(const struct hparams *h, enum segment_kind kind)
{
    return (size_t)h->hidden + (kind == SEGMENT_ATTN ? (size_t)h->n_heads * h->head_dim : h->ffn);
}

size_t collect_bytes(const struct hparams *h, enum segment_kind kind)
{
    return h->n_layers * layer_columns(h, kind) * sizeof(double);
}

double *collect_at(double *area, const struct hparams *h, enum gemma3_tensor role, uint32_t layer, uint32_t *ret_n)
{
    bool attn = role == GEMMA3_ATTN_Q || role == GEMMA3_ATTN_K || role == GEMMA3_ATTN_V || role == GEMMA3_ATTN_OUTPUT;
    bool ffn = role == GEMMA3_FFN_GATE || role == GEMMA3_FFN_UP || role == GEMMA3_FFN_DOWN;
    if (!attn && !ffn)
        return NULL;
    double *p = area + layer * layer_columns(h, attn ? SEGMENT_ATTN : SEGMENT_FFN);
    bool second = role == GEMMA3_ATTN_OUTPUT || role == GEMMA3_FFN_DOWN;
    *ret_n = !second ? h->hidden : attn ? h->n_heads * h->head_dim : h->ffn;
    return second ? p + h->hidden : p;
}

void collect_rows(void *ctx, const char *name, const float *rows, uint32_t n_rows, uint32_t width)
{
    static const struct {
        const char *name;
        enum gemma3_tensor role;
    } inputs[] = {
        {"in_norm", GEMMA3_ATTN_Q}, {"heads", GEMMA3_ATTN_OUTPUT}, {"pre_ffn_norm", GEMMA3_FFN_GATE}, {"act", GEMMA3_FFN_DOWN}};
    struct collect *c = ctx;
    for (size_t i = 0; i < sizeof(inputs) / sizeof(inputs[0]); i++) {
        uint32_t n;
        if (strcmp(name, inputs[i].name) != 0)
            continue;
        double *sums = collect_at(c->area, c->hparams, inputs[i].role, c->layer, &n);
        for (uint32_t r = 0; n == width && r < n_rows; r++) {
            for (uint32_t k = 0; k < n; k++)
                sums[k] += (double)rows[(size_t)r * n + k] * (double)rows[(size_t)r * n + k];
        }
    }
}
