/* SPDX-License-Identifier: MIT
 * Owns nothing: looks shapes up in a manifest and adds up sizes. Called by npu_worker when it opens the XRT backend, and for its
 * lists; never while tokens are computed. */
#include "npu_worker/xrt_products.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "model/hparams.h"
#include "npu_worker/xrt_gemm.h"
#include "proto/err.h"
#include "proto/util.h"

#define USUAL_CHUNK 128 /* whatever chunks a run has, so that the choice depends on the model alone */

const char *xrt_products_name(enum attn_product which)
{
    static const char *const names[ATTN_PRODUCTS] = {[ATTN_Q] = "q", [ATTN_K] = "k", [ATTN_V] = "v", [ATTN_O] = "o"};
    return names[which];
}

static void add_operator(struct xrt_products *p, const struct manifest_operator *op)
{
    for (uint32_t i = 0; i < p->n_ops; i++) {
        if (p->ops[i] == op)
            return;
    }
    p->ops[p->n_ops++] = op;
}

int xrt_products_choose(const struct manifest *m, const struct hparams *h, struct xrt_products *ret, struct err *err)
{
    uint32_t heads = h->n_heads * h->head_dim, kv = h->n_kv_heads * h->head_dim;
    const uint32_t rows[ATTN_PRODUCTS] = {[ATTN_Q] = heads, [ATTN_K] = kv, [ATTN_V] = kv, [ATTN_O] = h->hidden};
    *ret = (struct xrt_products){0};
    for (int i = 0; i < ATTN_PRODUCTS; i++) {
        struct err why = {0};
        ret->rows[i] = rows[i];
        ret->cols[i] = i == ATTN_O ? heads : h->hidden;
        const uint32_t want[MANIFEST_DIMS] = {[MANIFEST_M] = USUAL_CHUNK, [MANIFEST_K] = ret->cols[i], [MANIFEST_N] = rows[i]};
        if (manifest_find(m, MANIFEST_GEMM, want, xrt_gemm_usable, &ret->op[i], NULL, &why) < 0) {
            snprintf(ret->why[i], sizeof(ret->why[i]), "%.*s", (int)sizeof(ret->why[i]) - 1, why.text);
        } else {
            add_operator(ret, ret->op[i]);
        }
    }
    return ret->n_ops ? 0
                      : err_set(err, -ENOTSUP, "the manifest has no operator for a product of this model: %s", ret->why[ATTN_Q]);
}

int xrt_products_check_files(const struct xrt_products *p, struct err *err)
{
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < p->n_ops; i++)
        r = manifest_check_files(p->ops[i], err);
    return r;
}

uint32_t xrt_products_index(const struct xrt_products *p, enum attn_product which)
{
    uint32_t i = 0;
    while (i < p->n_ops && p->ops[i] != p->op[which])
        i++;
    return i;
}

int xrt_products_bytes(const struct xrt_products *p, uint32_t n_tokens, uint64_t *ret, struct err *err)
{
    int r = 0;
    *ret = 0;
    for (uint32_t i = 0; r == 0 && i < p->n_ops; i++) {
        uint64_t bytes = 0;
        r = xrt_gemm_bytes(p->ops[i], n_tokens, &bytes, err);
        *ret += bytes;
    }
    return r;
}

uint64_t xrt_products_scratch(const struct xrt_products *p, uint32_t n_threads)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < p->n_ops; i++)
        most = MAX(most, xrt_gemm_scratch_bytes(p->ops[i], n_threads));
    return util_round_up(most, 4096);
}

uint64_t xrt_products_moved(const struct xrt_products *p)
{
    uint64_t bytes = 0;
    for (int i = 0; i < ATTN_PRODUCTS; i++) {
        const struct manifest_operator *op = p->op[i];
        if (op)
            bytes += (uint64_t)util_round_up(p->rows[i], op->dims[MANIFEST_N]) * op->dims[MANIFEST_K] * 2;
    }
    return bytes;
}

uint64_t xrt_products_kept(const struct xrt_products *p)
{
    uint64_t bytes = 0;
    for (int i = 0; i < ATTN_PRODUCTS; i++)
        bytes += p->op[i] ? xrt_gemm_kept_bytes(p->op[i], p->rows[i]) : 0;
    return bytes;
}

int xrt_products_sizes(const struct xrt_products *p, FILE *out, struct err *err)
{
    uint64_t fixed = 0, group[ATTN_PRODUCTS] = {0};
    for (uint32_t i = 0; i < p->n_ops; i++) {
        uint64_t one = 0, two = 0;
        int r = xrt_gemm_bytes(p->ops[i], 1, &one, err);
        if (r == 0)
            r = xrt_gemm_bytes(p->ops[i], p->ops[i]->dims[MANIFEST_M] + 1, &two, err);
        if (r < 0)
            return r;
        group[i] = two - one;
        fixed += one - group[i];
    }
    fprintf(out, "products\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t", xrt_products_scratch(p, 1),
            xrt_products_moved(p), xrt_products_kept(p), fixed);
    for (uint32_t i = 0; i < p->n_ops; i++)
        fprintf(out, "%s%u:%" PRIu64, i ? "," : "", p->ops[i]->dims[MANIFEST_M], group[i]);
    fputc('\n', out);
    return 0;
}

/* An operation that has no backend on the NPU, why, and what the manifest has for it in vain. */
static void print_here(const struct manifest *m, const char *name, enum manifest_kind kind, const char *why, FILE *out)
{
    fprintf(out, "%-20s processor: %s", name, why);
    for (size_t i = 0; i < manifest_count(m); i++) {
        if (manifest_get(m, i)->kind == kind) {
            fprintf(out, "; the %s of line %u is not used", manifest_kind_name(kind), manifest_get(m, i)->line);
            break;
        }
    }
    fputc('\n', out);
}

void xrt_products_print(const struct xrt_products *p, const struct manifest *m, uint32_t many, FILE *out)
{
    static const char short_work[] = "a run on an NPU takes longer than all of it does here (docs/NPU.md)";
    char when[64] = "";
    if (many == UINT32_MAX)
        snprintf(when, sizeof(when), " (never: the processor was faster at every number of tokens)");
    else if (many)
        snprintf(when, sizeof(when), ", chunks of %u tokens and more", many);
    else
        snprintf(when, sizeof(when), ", from as many tokens as are measured at start");
    print_here(m, "input norm", MANIFEST_RMS_NORM, short_work, out);
    for (int i = 0; i < ATTN_PRODUCTS; i++) {
        char name[32];
        if (i == ATTN_O) {
            print_here(m, "norm of q and k", MANIFEST_RMS_NORM, short_work, out);
            print_here(m, "RoPE", MANIFEST_ROPE, short_work, out);
            print_here(m, "attention", MANIFEST_ATTENTION, "no backend calls an operator for it", out);
        }
        snprintf(name, sizeof(name), "%s, %u x %u", xrt_products_name((enum attn_product)i), p->rows[i], p->cols[i]);
        if (p->op[i])
            fprintf(out, "%-20s NPU: gemm of line %u, m %u k %u n %u%s\n", name, p->op[i]->line, p->op[i]->dims[MANIFEST_M],
                    p->op[i]->dims[MANIFEST_K], p->op[i]->dims[MANIFEST_N], when);
        else
            fprintf(out, "%-20s processor: %s\n", name, p->why[i]);
    }
    print_here(m, "post norm, residual", MANIFEST_RMS_NORM, short_work, out);
    print_here(m, "products, few tokens", MANIFEST_GEMV, "it reads the quantized weights, a third of the bytes of bf16", out);
}
