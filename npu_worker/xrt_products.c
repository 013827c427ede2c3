/* SPDX-License-Identifier: MIT
 * Owns nothing: looks shapes up in a manifest and adds up sizes. Called by npu_worker when it opens the XRT backend, and for its
 * lists; never while tokens are computed. */
#include "npu_worker/xrt_products.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/attn.h"
#include "kernels/quant.h"
#include "kernels/repack.h"
#include "model/hparams.h"
#include "model/work_plan.h"
#include "npu_worker/xrt_attend.h"
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

/* Whether an operator attends in layers of this shape. */
static int attends(const struct manifest_operator *op, const struct attn_shape *s, struct err *err)
{
    const struct {
        enum manifest_dim dim;
        const char *name;
        uint32_t want;
    } equal[] = {{MANIFEST_HEADS, "heads", s->n_heads},
                 {MANIFEST_KV_HEADS, "kv_heads", s->n_kv_heads},
                 {MANIFEST_HEAD_DIM, "head_dim", s->head_dim},
                 {MANIFEST_WINDOW, "window", s->window}};
    int r = xrt_attend_usable(op, err);
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(equal); i++) {
        if (op->dims[equal[i].dim] != equal[i].want)
            r = err_set(err, -ENOTSUP, "attention of line %u: %s is %u; expected %u", op->line, equal[i].name,
                        op->dims[equal[i].dim], equal[i].want);
    }
    if (r == 0 && fabsf(op->scale - s->scale) > s->scale / 256) /* bf16's precision */
        r = err_set(err, -ENOTSUP, "attention of line %u: scale is %g; expected %g", op->line, (double)op->scale, (double)s->scale);
    return r;
}

/* Pairs of a query and a key that are computed for a usual chunk, padding included. */
static uint64_t attend_work(const struct manifest_operator *op)
{
    return (uint64_t)util_round_up(USUAL_CHUNK, op->dims[MANIFEST_TOKENS]) * op->dims[MANIFEST_KEYS];
}

/* Least work; without a window first of all room for the context, or for as much of it as any has. */
static bool attends_better(const struct manifest_operator *op, const struct manifest_operator *than, uint32_t context)
{
    uint32_t room = MIN(op->dims[MANIFEST_KEYS], context), other = MIN(than->dims[MANIFEST_KEYS], context);
    return op->dims[MANIFEST_WINDOW] || room == other ? attend_work(op) < attend_work(than) : room > other;
}

static void choose_attention(const struct manifest *m, const struct hparams *h, uint32_t context, bool global,
                             struct xrt_products *ret)
{
    struct attn_shape *s = &ret->shapes[global];
    char *why = ret->why_attend[global];
    work_plan_attn_shape(h, global, QUANT_F16, s);
    snprintf(why, sizeof(ret->why_attend[global]), "the manifest has no attention");
    for (size_t i = manifest_count(m);
         i-- > 0;) { /* backwards: of equal ones the first is taken, and of reasons the first is told */
        const struct manifest_operator *op = manifest_get(m, i), *best = ret->attend[global];
        struct err no = {0};
        if (op->kind != MANIFEST_ATTENTION)
            continue;
        if (attends(op, s, &no) < 0)
            snprintf(why, sizeof(ret->why_attend[global]), "%.*s", (int)sizeof(ret->why_attend[global]) - 1, no.text);
        else if (!best || !attends_better(best, op, context))
            ret->attend[global] = op;
    }
}

int xrt_products_choose(const struct manifest *m, const struct hparams *h, uint32_t context, struct xrt_products *ret,
                        struct err *err)
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
    if (h->global_every > 1)
        choose_attention(m, h, context, false, ret);
    if (h->n_layers >= h->global_every)
        choose_attention(m, h, context, true, ret);
    return ret->n_ops ? 0
                      : err_set(err, -ENOTSUP, "the manifest has no operator for a product of this model: %s", ret->why[ATTN_Q]);
}

int xrt_products_check_files(const struct xrt_products *p, struct err *err)
{
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < p->n_ops; i++)
        r = manifest_check_files(p->ops[i], err);
    for (int global = 0; r == 0 && global < 2; global++)
        r = p->attend[global] ? manifest_check_files(p->attend[global], err) : 0;
    return r;
}

uint32_t xrt_products_index(const struct xrt_products *p, enum attn_product which)
{
    uint32_t i = 0;
    while (i < p->n_ops && p->ops[i] != p->op[which])
        i++;
    return i;
}

static int attend_bytes(const struct xrt_products *p, uint64_t *ret, struct err *err)
{
    int r = 0;
    *ret = 0;
    for (int global = 0; r == 0 && global < 2; global++) {
        uint64_t bytes = 0;
        r = p->attend[global] ? xrt_attend_bytes(p->attend[global], &bytes, err) : 0;
        *ret += bytes;
    }
    return r;
}

int xrt_products_bytes(const struct xrt_products *p, uint32_t n_tokens, uint64_t *ret, struct err *err)
{
    int r = attend_bytes(p, ret, err);
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
    for (int global = 0; global < 2; global++)
        most = MAX(most, p->attend[global] ? xrt_attend_scratch_bytes(p->attend[global], n_threads) : 0);
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
    int r = attend_bytes(p, &fixed, err);
    for (uint32_t i = 0; r == 0 && i < p->n_ops; i++) {
        uint64_t one = 0, two = 0;
        r = xrt_gemm_bytes(p->ops[i], 1, &one, err);
        if (r == 0)
            r = xrt_gemm_bytes(p->ops[i], p->ops[i]->dims[MANIFEST_M] + 1, &two, err);
        group[i] = two - one;
        fixed += one - group[i];
    }
    if (r < 0)
        return r;
    fprintf(out, "products\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t", xrt_products_scratch(p, 1),
            xrt_products_moved(p), xrt_products_kept(p), fixed);
    for (uint32_t i = 0; i < p->n_ops; i++)
        fprintf(out, "%s%u:%" PRIu64, i ? "," : "", p->ops[i]->dims[MANIFEST_M], group[i]);
    fputc('\n', out);
    return 0;
}

/* tokens: of what they are counted */
static void print_operator(const char *name, const char *shape, const char *tokens, uint32_t many, bool here, FILE *out)
{
    if (here)
        fprintf(out, "%-20s processor, as no NPU is used; the %s would fit\n", name, shape);
    else if (many == UINT32_MAX)
        fprintf(out, "%-20s NPU: %s (never: the processor was faster at every number of tokens)\n", name, shape);
    else if (many)
        fprintf(out, "%-20s NPU: %s, from %u %s on\n", name, shape, many, tokens);
    else
        fprintf(out, "%-20s NPU: %s, from as many %s on as are measured at start\n", name, shape, tokens);
}

static void print_product(const struct xrt_products *p, enum attn_product which, uint32_t many, bool here, FILE *out)
{
    const struct manifest_operator *op = p->op[which];
    char name[32], shape[64];
    snprintf(name, sizeof(name), "%s, %u x %u", xrt_products_name(which), p->rows[which], p->cols[which]);
    if (!op) {
        fprintf(out, "%-20s processor: needs a gemm of any m, k %u or more, n %u or any multiple of %d; %s\n", name, p->cols[which],
                p->rows[which], REPACK_ROWS, p->why[which]);
        return;
    }
    snprintf(shape, sizeof(shape), "gemm of line %u, m %u k %u n %u", op->line, op->dims[MANIFEST_M], op->dims[MANIFEST_K],
             op->dims[MANIFEST_N]);
    print_operator(name, shape, "tokens of a chunk", many, here, out);
}

static void print_attention(const struct xrt_products *p, bool global, uint32_t many, bool here, FILE *out)
{
    const struct manifest_operator *op = p->attend[global];
    const char *name = global ? "attention, global" : "attention, window";
    char shape[96];
    if (!op && p->shapes[global].n_heads)
        fprintf(out, "%-20s processor: %s\n", name, p->why_attend[global]);
    if (!op)
        return;
    snprintf(shape, sizeof(shape), "attention of line %u, tokens %u keys %u", op->line, op->dims[MANIFEST_TOKENS],
             op->dims[MANIFEST_KEYS]);
    print_operator(name, shape, "tokens of a sequence", many, here, out);
}

static bool is_chosen(const struct xrt_products *p, const struct manifest_operator *op)
{
    uint32_t i = 0;
    while (i < p->n_ops && p->ops[i] != op)
        i++;
    return i < p->n_ops || p->attend[0] == op || p->attend[1] == op;
}

/* Why a model's products pass over this operator. */
static void print_in_vain(const struct xrt_products *p, const struct manifest_operator *op, FILE *out)
{
    struct err why = {0};
    uint32_t least = UINT32_MAX;
    const struct attn_shape *s = &p->shapes[op->dims[MANIFEST_WINDOW] == 0];
    for (int i = 0; i < ATTN_PRODUCTS; i++)
        least = MIN(least, p->cols[i]);
    fprintf(out, "in vain: the %s of line %u", manifest_kind_name(op->kind), op->line);
    if (op->kind == MANIFEST_ATTENTION && attends(op, s, &why) < 0)
        fprintf(out, ": %s\n", s->n_heads ? why.text : "the model has no such layers");
    else if (op->kind == MANIFEST_ATTENTION)
        fprintf(out, ": another takes no more work%s\n", s->window ? "" : ", or has room for more of the context");
    else if (op->kind != MANIFEST_GEMM)
        fprintf(out, ": no backend calls operators of this kind\n");
    else if (xrt_gemm_usable(op, &why) < 0)
        fprintf(out, ": %s\n", why.text);
    else if (op->dims[MANIFEST_K] < least)
        fprintf(out, ": k is %u, which every product of this model exceeds\n", op->dims[MANIFEST_K]);
    else
        fprintf(out, ": for each product that it fits another takes no more work\n");
}

void xrt_products_print(const struct xrt_products *p, const struct manifest *m, uint32_t many, const char *here, FILE *out)
{
    static const char short_work[] = "a run on an NPU takes longer than all of it does here (docs/NPU.md)";
    static const struct {
        const char *name, *why;
        int before; /* this product; ATTN_PRODUCTS: behind all */
    } rest[] = {
        {"input norm", short_work, ATTN_Q},
        {"norm of q and k", short_work, ATTN_O},
        {"RoPE", short_work, ATTN_O},
        {"post norm, residual", short_work, ATTN_PRODUCTS},
        {"products, few tokens", "it reads the quantized weights, a third of the bytes of bf16", ATTN_PRODUCTS},
    };
    if (here)
        fprintf(out, "no NPU is used: %s\n", here);
    for (int i = 0; i <= ATTN_PRODUCTS; i++) {
        for (int global = 0; i == ATTN_O && global < 2; global++)
            print_attention(p, global, many, here, out);
        for (size_t k = 0; k < ARRAY_LEN(rest); k++) {
            if (rest[k].before == i)
                fprintf(out, "%-20s processor: %s\n", rest[k].name, rest[k].why);
        }
        if (i < ATTN_PRODUCTS)
            print_product(p, (enum attn_product)i, many, here, out);
    }
    for (size_t i = 0; i < manifest_count(m); i++) {
        if (!is_chosen(p, manifest_get(m, i)))
            print_in_vain(p, manifest_get(m, i), out);
    }
}
