/* SPDX-License-Identifier: MIT
 * Attention on the CPU. Owns the thread pool and one scratch block (laid out by model/work_plan, taken from the arena at open);
 * borrows weights and KV cache. `run` is called on the data thread; it allocates nothing, takes no lock and never logs.
 *
 * One layer is five parallel loops: norm + preparation by token; the tiles of q, k and v together; norm, RoPE and storing of K
 * and V by token; attention by (block of queries, KV head); preparation by token; tiles of the output projection; post norm with
 * residual by token. Loops over few tokens stay on the caller, because waking threads costs more than the work.
 * Every value is computed by one thread in an order that depends on nothing but the model, so results are bit-identical for any
 * chunk, batch and thread count.
 *
 * RoPE tables are cached by position: all layers and the chunks in flight share them. Two positions of a chunk that want the same
 * cache line make the later one compute its own row. */
#include "npu_worker/attn_backend.h"

#include <errno.h>
#include <string.h>

#include "kernels/attn.h"
#include "kernels/cpu.h"
#include "kernels/gemm.h"
#include "kernels/pool.h"
#include "kernels/repack.h"
#include "kernels/vec.h"
#include "model/work_plan.h"
#include "npu_worker/arena.h"
#include "npu_worker/kv.h"
#include "proto/budget.h"
#include "proto/chunk.h"
#include "proto/err.h"
#include "proto/util.h"

#define NO_SLOT UINT32_MAX

struct weights {
    struct gemm_matrix q, k, v, o;
    const float *in_norm, *q_norm, *k_norm, *post_norm; /* in_norm NULL: not loaded */
};

struct span { /* consecutive tokens of one sequence */
    uint32_t token, n, pos;
    void *const *pages;
    bool away; /* attended by the offload */
};

struct block { /* queries of one span that share a pass over the keys */
    uint32_t span, token, n;
};

struct attn {
    struct hparams hparams;
    struct budget *budget;
    struct arena *arena;
    struct kv *kv;
    const struct cpu_kernels *kernels;
    struct pool *pool, *own_pool;
    const struct attn_offload *offload;
    char name[32];
    struct work_plan_attn plan;
    uint8_t *scratch;
    uint32_t scratch_block;
    struct attn_shape shapes[2]; /* local, global */
    struct weights *layers;
    uint32_t chunk_tokens;

    uint32_t *rope_pos, *rope_used; /* [rope_slots]: position + 1 held; last run that used it */
    uint32_t run_number;

    /* the run under way */
    const struct weights *w;
    const struct attn_shape *shape;
    const float *x;
    float *h;
    bool global, norms_done;
    uint32_t layer;
    bool away[ATTN_PRODUCTS]; /* multiplied by the offload */
    uint32_t n_tokens, n_spans, n_blocks, split;
    struct span spans[CHUNK_MAX_SEQS];
    struct block blocks[CHUNK_MAX_TOKENS];
    uint32_t token_span[CHUNK_MAX_TOKENS], rope_slot[CHUNK_MAX_TOKENS];
    uint32_t missing[CHUNK_MAX_TOKENS], n_missing; /* tokens whose table is to be computed */
};

static float *floats(const struct attn *a, size_t offset)
{
    return (float *)(void *)(a->scratch + offset);
}

static const char *cpu_describe(void *b)
{
    return ((struct attn *)b)->name;
}

static void cpu_close(void *b)
{
    struct attn *a = b;
    if (!a)
        return;
    pool_close(a->own_pool);
    if (a->scratch) {
        arena_give(a->arena, ARENA_SCRATCH, a->scratch_block);
        budget_give(a->budget, BUDGET_SCRATCH, a->plan.bytes);
    }
    free(a->rope_pos);
    free(a->rope_used);
    free(a->layers);
    free(a);
}

static int take_scratch(struct attn *a, struct err *err)
{
    int r = budget_take(a->budget, BUDGET_SCRATCH, a->plan.bytes, err);
    if (r < 0)
        return r;
    r = arena_take(a->arena, ARENA_SCRATCH, a->plan.bytes, &a->scratch_block, (void **)&a->scratch, err);
    if (r < 0)
        budget_give(a->budget, BUDGET_SCRATCH, a->plan.bytes);
    return r;
}

static int cpu_open(const struct attn_backend_options *o, void **ret, struct err *err)
{
    const struct cpu_kernels *kernels = cpu_select(o->variant);
    if (!kernels)
        return err_set(err, -ENOTSUP,
                       "kernel variant '%s' is unknown or not supported by this processor; expected auto or one of: %s", o->variant,
                       cpu_available());
    struct attn *a = calloc(1, sizeof(*a));
    if (!a)
        return err_set(err, -ENOMEM, "attention: out of memory");
    a->hparams = *o->hparams;
    a->budget = o->budget;
    a->arena = o->arena;
    a->kv = o->kv;
    a->kernels = kernels;
    a->chunk_tokens = MIN(o->chunk_tokens, CHUNK_MAX_TOKENS);
    snprintf(a->name, sizeof(a->name), "cpu %s", kernels->name);
    for (int global = 0; global < 2; global++)
        work_plan_attn_shape(o->hparams, global, o->kv_type, &a->shapes[global]);
    work_plan_attn_init(&a->plan, o->hparams, o->types, o->chunk_tokens, o->ring_slots, o->n_threads);
    a->layers = calloc(a->hparams.n_layers, sizeof(*a->layers));
    a->rope_pos = calloc(a->plan.rope_slots, sizeof(*a->rope_pos));
    a->rope_used = calloc(a->plan.rope_slots, sizeof(*a->rope_used));
    int r = a->layers && a->rope_pos && a->rope_used ? 0 : err_set(err, -ENOMEM, "attention: out of memory");
    if (r == 0)
        r = take_scratch(a, err);
    a->offload = o->offload;
    a->pool = o->pool;
    if (r == 0 && !a->pool) {
        r = pool_open((int)o->n_threads, &a->own_pool);
        a->pool = a->own_pool;
        if (r < 0)
            err_set_errno(err, r, "attention: %u threads", o->n_threads);
        else if (o->pin)
            pool_pin(a->pool);
    }
    if (r < 0) {
        cpu_close(a);
        return r;
    }
    *ret = a;
    return 0;
}

static int cpu_load_segment(void *b, uint32_t layer, const struct segment_layout *l, const void *data, struct err *err)
{
    struct attn *a = b;
    if (l->kind != SEGMENT_ATTN || layer >= a->hparams.n_layers)
        return err_set(err, -EINVAL, "attention: unexpected segment (kind %d, layer %u)", (int)l->kind, layer);
    a->layers[layer] = (struct weights){.q = segment_matrix(l, data, GEMMA3_ATTN_Q),
                                        .k = segment_matrix(l, data, GEMMA3_ATTN_K),
                                        .v = segment_matrix(l, data, GEMMA3_ATTN_V),
                                        .o = segment_matrix(l, data, GEMMA3_ATTN_OUTPUT),
                                        .in_norm = segment_norm(l, data, GEMMA3_ATTN_NORM),
                                        .q_norm = segment_norm(l, data, GEMMA3_ATTN_Q_NORM),
                                        .k_norm = segment_norm(l, data, GEMMA3_ATTN_K_NORM),
                                        .post_norm = segment_norm(l, data, GEMMA3_POST_ATTN_NORM)};
    return 0;
}

/* ---- what a run works on ---- */

/* Sequences in the chunk become spans with their pages. */
static int find_spans(struct attn *a, uint32_t layer, const struct chunk *c, struct err *err)
{
    uint32_t committed[CHUNK_MAX_SEQS] = {0};
    for (uint32_t i = 0; i < c->h.n_seqs; i++) {
        if (c->seqs[i].seq < CHUNK_MAX_SEQS)
            committed[c->seqs[i].seq] = c->seqs[i].committed_pos;
    }
    a->n_spans = 0;
    for (uint32_t t = 0; t < c->h.n_tokens; t++) {
        const struct chunk_token *k = &c->tokens[t];
        if (k->seq >= CHUNK_MAX_SEQS)
            return err_set(err, -EINVAL, "attention: token %u has sequence %u; expected less than %d", t, k->seq, CHUNK_MAX_SEQS);
        if (t && k[-1].seq == k->seq && k->pos == k[-1].pos + 1) {
            a->spans[a->n_spans - 1].n++;
        } else {
            if (a->n_spans == CHUNK_MAX_SEQS)
                return err_set(err, -EINVAL, "attention: a chunk of more than %d runs of positions", CHUNK_MAX_SEQS);
            a->spans[a->n_spans++] = (struct span){.token = t, .n = 1, .pos = k->pos};
        }
        a->token_span[t] = a->n_spans - 1;
    }
    for (uint32_t i = 0; i < a->n_spans; i++) {
        struct span *s = &a->spans[i];
        uint32_t seq = c->tokens[s->token].seq;
        int r = kv_prepare(a->kv, layer, seq, committed[seq], s->pos, s->n, &s->pages, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Blocks of queries that are attended here; with few of them, the heads of a group are split further so that every thread gets a
 * share. */
static void find_blocks(struct attn *a)
{
    a->n_blocks = 0;
    for (uint32_t i = 0; i < a->n_spans; i++) {
        const struct span *s = &a->spans[i];
        for (uint32_t at = 0; !s->away && at < s->n; at += a->plan.block_queries)
            a->blocks[a->n_blocks++] =
                (struct block){.span = i, .token = s->token + at, .n = MIN(a->plan.block_queries, s->n - at)};
    }
    uint32_t group = a->shape->n_heads / a->shape->n_kv_heads, items = a->n_blocks * a->shape->n_kv_heads;
    a->split = 1;
    while (a->split < group && (items * a->split < (uint32_t)pool_threads(a->pool) || group % a->split))
        a->split++;
}

static void find_rope(struct attn *a, const struct chunk *c)
{
    a->run_number++;
    a->n_missing = 0;
    for (uint32_t t = 0; t < c->h.n_tokens; t++) {
        uint32_t pos = c->tokens[t].pos, slot = pos & (a->plan.rope_slots - 1);
        bool held = a->rope_pos[slot] == pos + 1;
        if (!held && a->rope_used[slot] == a->run_number) {
            a->rope_slot[t] = NO_SLOT;
            continue;
        }
        if (!held)
            a->missing[a->n_missing++] = t;
        a->rope_pos[slot] = pos + 1;
        a->rope_used[slot] = a->run_number;
        a->rope_slot[t] = slot;
    }
}

static uint32_t token_pos(const struct attn *a, uint32_t t)
{
    const struct span *s = &a->spans[a->token_span[t]];
    return s->pos + (t - s->token);
}

static float *rope_row(const struct attn *a, uint32_t slot, bool global)
{
    return floats(a, a->plan.rope) + ((size_t)slot * 2 + global) * a->hparams.head_dim;
}

/* row: cos, then sin, head_dim / 2 of each */
static void make_rope(const struct attn *a, uint32_t pos, bool global, float *row)
{
    const struct hparams *h = &a->hparams;
    vec_rope_table(pos, h->head_dim, (double)(global ? h->rope_base_global : h->rope_base_local),
                   global ? (double)h->rope_factor_global : 1.0, row, row + h->head_dim / 2);
}

/* ---- parallel loops ---- */

static void do_rope(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct attn *a = ctx;
    (void)thread;
    for (uint32_t i = begin; i < end; i++) {
        for (int global = 0; global < 2; global++)
            make_rope(a, token_pos(a, a->missing[i]), global, rope_row(a, a->rope_slot[a->missing[i]], global));
    }
}

/* A normed row in the forms that q, k and v take, as far as they are multiplied here. */
static void prepare_row(const struct attn *a, uint32_t t)
{
    const struct gemm_matrix *const m[] = {[ATTN_Q] = &a->w->q, [ATTN_K] = &a->w->k, [ATTN_V] = &a->w->v};
    size_t n = a->hparams.hidden;
    const float *row = floats(a, a->plan.out) + t * n;
    bool done[2] = {false, false};
    for (size_t i = 0; i < ARRAY_LEN(m); i++) {
        int form = work_plan_form(m[i]->type);
        if (!done[form] && !a->away[i]) {
            a->kernels->gemm->prepare(m[i]->type, row, n, a->scratch + a->plan.act[form] + t * gemm_act_bytes(m[i]->type, n));
            done[form] = true;
        }
    }
}

static void do_input(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct attn *a = ctx;
    size_t n = a->hparams.hidden;
    (void)thread;
    for (uint32_t t = begin; t < end; t++) {
        a->kernels->vec->rmsnorm(a->x + t * n, a->w->in_norm, n, a->hparams.eps, floats(a, a->plan.out) + t * n);
        prepare_row(a, t);
    }
}

static void do_prepare_in(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct attn *a = ctx;
    (void)thread;
    for (uint32_t t = begin; t < end; t++)
        prepare_row(a, t);
}

/* Tiles are numbered through those of q, k and v that are multiplied here. */
static void do_qkv(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct attn *a = ctx;
    const struct {
        const struct gemm_matrix *m;
        size_t y;
    } parts[] = {{&a->w->q, a->plan.q}, {&a->w->k, a->plan.k}, {&a->w->v, a->plan.v}};
    uint32_t base = 0;
    (void)thread;
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        const struct gemm_matrix *m = parts[i].m;
        uint32_t n = a->away[i] ? 0 : (uint32_t)repack_n_tiles(m->n_rows);
        uint32_t lo = MAX(begin, base), hi = MIN(end, base + n);
        if (lo < hi)
            a->kernels->gemm->tiles(m, lo - base, hi - base, a->scratch + a->plan.act[work_plan_form(m->type)], a->n_tokens,
                                    floats(a, parts[i].y), m->n_rows);
        base += n;
    }
}

static void norm_heads(const struct attn *a, float *rows, uint32_t n_heads, const float *w)
{
    size_t d = a->hparams.head_dim;
    for (uint32_t i = 0; i < n_heads; i++)
        a->kernels->vec->rmsnorm(rows + i * d, w, d, a->hparams.eps, rows + i * d);
}

static void do_norms(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct attn *a = ctx;
    const struct hparams *h = &a->hparams;
    (void)thread;
    for (uint32_t t = begin; t < end; t++) {
        norm_heads(a, floats(a, a->plan.q) + (size_t)t * h->n_heads * h->head_dim, h->n_heads, a->w->q_norm);
        norm_heads(a, floats(a, a->plan.k) + (size_t)t * h->n_kv_heads * h->head_dim, h->n_kv_heads, a->w->k_norm);
    }
}

static void do_store(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct attn *a = ctx;
    const struct hparams *h = &a->hparams;
    size_t d = h->head_dim;
    if (!a->norms_done)
        do_norms(ctx, begin, end, thread);
    for (uint32_t t = begin; t < end; t++) {
        float *q = floats(a, a->plan.q) + t * h->n_heads * d, *k = floats(a, a->plan.k) + t * h->n_kv_heads * d;
        const float *v = floats(a, a->plan.v) + t * h->n_kv_heads * d;
        uint32_t pos = token_pos(a, t);
        float *row = floats(a, a->plan.thread + (size_t)thread * a->plan.thread_bytes);
        if (a->rope_slot[t] == NO_SLOT)
            make_rope(a, pos, a->global, row);
        else
            row = rope_row(a, a->rope_slot[t], a->global);
        for (uint32_t i = 0; i < h->n_heads; i++)
            a->kernels->vec->rope(q + i * d, d, row, row + d / 2);
        for (uint32_t i = 0; i < h->n_kv_heads; i++)
            a->kernels->vec->rope(k + i * d, d, row, row + d / 2);
        a->kernels->attn->store(a->shape, a->spans[a->token_span[t]].pages[pos / ATTN_PAGE], pos % ATTN_PAGE, k, v);
    }
}

/* Items: (block, KV head, part of the head group). A part is attention with a smaller group: its first query head is brought to
 * where the kernel looks for it by an offset. */
static void do_attention(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct attn *a = ctx;
    struct attn_shape part = *a->shape;
    size_t d = part.head_dim, width = (size_t)part.n_heads * d;
    uint32_t group = part.n_heads / part.n_kv_heads, share = group / a->split;
    part.n_heads = part.n_kv_heads * share;
    uint8_t *scratch =
        a->scratch + a->plan.thread + (size_t)thread * a->plan.thread_bytes + util_round_up(d * sizeof(float), REPACK_ALIGN);
    for (uint32_t i = begin; i < end; i++) {
        uint32_t piece = i % a->split, head = i / a->split % part.n_kv_heads;
        const struct block *b = &a->blocks[i / a->split / part.n_kv_heads];
        const struct span *s = &a->spans[b->span];
        size_t at = b->token * width + ((size_t)head * (group - share) + (size_t)piece * share) * d;
        a->kernels->attn->run(&part, head, floats(a, a->plan.q) + at, width, s->pos + (b->token - s->token), b->n, s->pages,
                              floats(a, a->plan.heads) + at, scratch);
    }
}

static void do_prepare_out(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct attn *a = ctx;
    const struct gemm_matrix *m = &a->w->o;
    (void)thread;
    for (uint32_t t = begin; t < end; t++)
        a->kernels->gemm->prepare(m->type, floats(a, a->plan.heads) + (size_t)t * m->n_cols, m->n_cols,
                                  a->scratch + a->plan.act_out + t * gemm_act_bytes(m->type, m->n_cols));
}

static void do_out(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct attn *a = ctx;
    (void)thread;
    a->kernels->gemm->tiles(&a->w->o, begin, end, a->scratch + a->plan.act_out, a->n_tokens, floats(a, a->plan.out),
                            a->w->o.n_rows);
}

static void do_post(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct attn *a = ctx;
    size_t n = a->hparams.hidden;
    (void)thread;
    for (uint32_t t = begin; t < end; t++)
        a->kernels->vec->rmsnorm_add(floats(a, a->plan.out) + t * n, a->w->post_norm, n, a->hparams.eps, a->x + t * n,
                                     a->h + t * n);
}

/* Rows that wait for a product, and where it goes. */
static void ends_of(const struct attn *a, enum attn_product which, const struct gemm_matrix **ret_m, const float **ret_x,
                    float **ret_y)
{
    const struct weights *w = a->w;
    const struct gemm_matrix *const m[] = {[ATTN_Q] = &w->q, [ATTN_K] = &w->k, [ATTN_V] = &w->v, [ATTN_O] = &w->o};
    const size_t y[] = {[ATTN_Q] = a->plan.q, [ATTN_K] = a->plan.k, [ATTN_V] = a->plan.v, [ATTN_O] = a->plan.out};
    *ret_m = m[which];
    *ret_x = floats(a, which == ATTN_O ? a->plan.heads : a->plan.out);
    *ret_y = floats(a, y[which]);
}

static void each_token(struct attn *a, uint32_t width, pool_fn fn)
{
    pool_run(a->pool, a->n_tokens, work_plan_token_grain(width), fn, a);
}

static uint32_t tile_grain(const struct attn *a, const struct gemm_matrix *m, uint32_t n_tiles)
{
    return work_plan_tile_grain(repack_tile_bytes(m->type, m->n_cols), n_tiles, a->n_tokens, (uint32_t)pool_threads(a->pool));
}

/* ---- products, here or elsewhere ---- */

/* Those of first .. last that are wanted elsewhere; what is declined stays to be done here. */
static int multiply_away(struct attn *a, enum attn_product first, enum attn_product last, struct err *err)
{
    bool declined = false;
    for (enum attn_product i = first; i <= last; i++) {
        const struct gemm_matrix *m;
        const float *x;
        float *y;
        if (!a->away[i])
            continue;
        ends_of(a, i, &m, &x, &y);
        int r = declined ? ATTN_DECLINED : a->offload->multiply(a->offload->ctx, a->layer, i, m, x, a->n_tokens, y, err);
        if (r < 0)
            return r;
        declined |= r == ATTN_DECLINED;
        a->away[i] = r != ATTN_DECLINED;
    }
    return declined ? ATTN_DECLINED : 0;
}

static void choose_away(struct attn *a)
{
    for (int i = 0; i < ATTN_PRODUCTS; i++)
        a->away[i] = a->offload && a->offload->wants(a->offload->ctx, a->layer, (enum attn_product)i, a->n_tokens);
}

static void multiply_qkv(struct attn *a)
{
    const struct gemm_matrix *const m[] = {&a->w->q, &a->w->k, &a->w->v};
    uint32_t n = 0;
    for (size_t i = 0; i < ARRAY_LEN(m); i++)
        n += a->away[i] ? 0 : (uint32_t)repack_n_tiles(m[i]->n_rows);
    if (n)
        pool_run(a->pool, n, tile_grain(a, &a->w->q, n), do_qkv, a);
}

static void multiply_out(struct attn *a)
{
    uint32_t n = (uint32_t)repack_n_tiles(a->w->o.n_rows);
    each_token(a, a->w->o.n_cols, do_prepare_out);
    pool_run(a->pool, n, tile_grain(a, &a->w->o, n), do_out, a);
}

/* ---- attention, likewise ---- */

static int attend_span(struct attn *a, struct span *s, struct err *err)
{
    size_t at = (size_t)s->token * a->shape->n_heads * a->shape->head_dim;
    const struct attn_queries x = {
        .pos = s->pos, .n = s->n, .pages = s->pages, .q = floats(a, a->plan.q) + at, .out = floats(a, a->plan.heads) + at};
    int r = a->offload->attend(a->offload->ctx, a->layer, &x, err);
    s->away = r == 0;
    return r;
}

static int attend_away(struct attn *a, struct err *err)
{
    int r = 0;
    for (uint32_t i = 0; r >= 0 && i < a->n_spans; i++) {
        struct span *s = &a->spans[i];
        s->away = false;
        if (a->offload && a->offload->wants_attention(a->offload->ctx, a->layer, s->pos, s->n))
            r = attend_span(a, s, err);
    }
    return r;
}

static void attend_here(struct attn *a)
{
    find_blocks(a);
    if (a->n_blocks)
        pool_run(a->pool, a->n_blocks * a->shape->n_kv_heads * a->split, 1, do_attention, a);
}

/* ---- how long it takes ---- */

int attn_cpu_time(void *b, uint32_t layer, enum attn_product which, uint32_t n_tokens, bool offload, uint64_t *ret_ns,
                  struct err *err)
{
    struct attn *a = b;
    const struct gemm_matrix *m;
    const float *x;
    float *y;
    a->w = &a->layers[layer];
    a->layer = layer;
    a->n_tokens = n_tokens;
    ends_of(a, which, &m, &x, &y);
    float *rows = floats(a, which == ATTN_O ? a->plan.heads : a->plan.out);
    for (size_t i = 0; i < (size_t)n_tokens * m->n_cols; i++)
        rows[i] = (float)(i % 251) / 251.0f - 0.5f;
    for (int i = 0; i < ATTN_PRODUCTS; i++)
        a->away[i] = i != (int)which;
    pool_begin(a->pool);
    uint64_t begin = util_now_ns();
    int r = 0;
    if (offload)
        r = a->offload->multiply(a->offload->ctx, layer, which, m, x, n_tokens, y, err);
    else if (which == ATTN_O)
        multiply_out(a);
    else {
        each_token(a, a->hparams.hidden, do_prepare_in);
        multiply_qkv(a);
    }
    *ret_ns = util_now_ns() - begin;
    pool_end(a->pool);
    return r;
}

int attn_cpu_time_attention(void *b, uint32_t layer, uint32_t pos, uint32_t n_tokens, bool offload, uint64_t *ret_ns,
                            struct err *err)
{
    struct attn *a = b;
    struct span *s = &a->spans[0];
    struct err none = {0};
    int r = 0;
    *s = (struct span){.n = n_tokens, .pos = pos};
    a->layer = layer;
    a->shape = &a->shapes[hparams_is_global(&a->hparams, layer)];
    a->n_tokens = n_tokens;
    a->n_spans = 1;
    for (uint32_t at = 0; r == 0 && at < pos; at += MIN(a->chunk_tokens, pos - at))
        r = kv_prepare(a->kv, layer, 0, at, at, MIN(a->chunk_tokens, pos - at), &s->pages, &none);
    if (r == 0)
        r = kv_prepare(a->kv, layer, 0, pos, pos, n_tokens, &s->pages, &none);
    if (r == 0) {
        memset(floats(a, a->plan.q), 0, (size_t)n_tokens * a->shape->n_heads * a->shape->head_dim * sizeof(float));
        pool_begin(a->pool);
        uint64_t begin = util_now_ns();
        if (offload)
            r = attend_span(a, s, err);
        else
            attend_here(a);
        *ret_ns = util_now_ns() - begin;
        pool_end(a->pool);
    } else {
        r = ATTN_DECLINED;
    }
    kv_free(a->kv, 0);
    return r;
}

/* ---- intermediates for single-stage mode ---- */

/* [tokens][heads][d] to [heads][tokens][d], through the buffer that attention will fill afterwards. */
static void dump_heads(const struct attn *a, const char *name, const float *rows, uint32_t n_heads, attn_dump_fn dump, void *ctx)
{
    size_t d = a->hparams.head_dim;
    float *turned = floats(a, a->plan.heads);
    for (uint32_t i = 0; i < n_heads; i++) {
        for (uint32_t t = 0; t < a->n_tokens; t++)
            memcpy(turned + ((size_t)i * a->n_tokens + t) * d, rows + ((size_t)t * n_heads + i) * d, d * sizeof(float));
    }
    dump(ctx, name, turned, n_heads * a->n_tokens, (uint32_t)d);
}

static void dump_projections(struct attn *a, attn_dump_fn dump, void *ctx)
{
    const struct hparams *h = &a->hparams;
    dump(ctx, "in_norm", floats(a, a->plan.out), a->n_tokens, h->hidden);
    dump(ctx, "q", floats(a, a->plan.q), a->n_tokens, h->n_heads * h->head_dim);
    dump(ctx, "k", floats(a, a->plan.k), a->n_tokens, h->n_kv_heads * h->head_dim);
    dump(ctx, "v", floats(a, a->plan.v), a->n_tokens, h->n_kv_heads * h->head_dim);
    do_norms(a, 0, a->n_tokens, 0);
    a->norms_done = true;
    dump_heads(a, "q_norm", floats(a, a->plan.q), h->n_heads, dump, ctx);
    dump_heads(a, "k_norm", floats(a, a->plan.k), h->n_kv_heads, dump, ctx);
}

static void dump_outputs(struct attn *a, attn_dump_fn dump, void *ctx)
{
    const struct hparams *h = &a->hparams;
    float *out = floats(a, a->plan.out);
    dump(ctx, "heads", floats(a, a->plan.heads), a->n_tokens, h->n_heads * h->head_dim);
    dump(ctx, "o", out, a->n_tokens, h->hidden);
    for (uint32_t t = 0; t < a->n_tokens; t++)
        a->kernels->vec->rmsnorm(out + (size_t)t * h->hidden, a->w->post_norm, h->hidden, h->eps, out + (size_t)t * h->hidden);
    dump(ctx, "post_attn_norm", out, a->n_tokens, h->hidden);
}

static int cpu_run(void *b, uint32_t layer, const struct chunk *c, const float *x, float *h, attn_dump_fn dump, void *dump_ctx,
                   struct err *err)
{
    struct attn *a = b;
    if (layer >= a->hparams.n_layers || !a->layers[layer].in_norm)
        return err_set(err, -EINVAL, "attention: layer %u has no weights", layer);
    if (c->h.n_tokens == 0 || c->h.n_tokens > a->chunk_tokens)
        return err_set(err, -EINVAL, "attention: chunk of %u tokens; expected 1 to %u", c->h.n_tokens, a->chunk_tokens);
    int r = find_spans(a, layer, c, err);
    if (r < 0)
        return r;
    a->w = &a->layers[layer];
    a->layer = layer;
    a->global = hparams_is_global(&a->hparams, layer);
    a->shape = &a->shapes[a->global];
    a->n_tokens = c->h.n_tokens;
    a->x = x;
    a->h = h;
    a->norms_done = false;
    find_rope(a, c);

    uint32_t hidden = a->hparams.hidden, width = a->hparams.n_heads * a->hparams.head_dim;
    choose_away(a);
    pool_begin(a->pool);
    pool_run(a->pool, a->n_missing, 8, do_rope, a);
    each_token(a, hidden, do_input);
    r = multiply_away(a, ATTN_Q, ATTN_V, err);
    if (r == ATTN_DECLINED)
        each_token(a, hidden, do_prepare_in);
    if (r >= 0)
        multiply_qkv(a);
    if (r < 0) {
        pool_end(a->pool);
        return r;
    }
    if (dump)
        dump_projections(a, dump, dump_ctx);
    each_token(a, width, do_store);
    r = attend_away(a, err);
    if (r >= 0) {
        attend_here(a);
        r = multiply_away(a, ATTN_O, ATTN_O, err);
    }
    if (r >= 0) {
        if (!a->away[ATTN_O])
            multiply_out(a);
        each_token(a, hidden, do_post);
    }
    pool_end(a->pool);
    if (r < 0)
        return r;
    if (dump)
        dump_outputs(a, dump, dump_ctx);
    return 0;
}

const struct attn_backend attn_cpu = {.name = "cpu",
                                      .open = cpu_open,
                                      .describe = cpu_describe,
                                      .load_segment = cpu_load_segment,
                                      .run = cpu_run,
                                      .close = cpu_close};
