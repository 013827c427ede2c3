/* SPDX-License-Identifier: MIT
 * Attention with the products q, k, v and o on an NPU, and attention itself where the manifest has an operator for it, everything
 * else on the processor: the CPU backend inside, whose large parts this one takes over (struct attn_offload). Owns device,
 * manifest, one xrt_gemm or xrt_attend per operator, and the thread pool that both share. Chunks of fewer tokens than `many` stay
 * on the processor, where weights are read quantized: a third of the bytes. multiply and attend run on the data thread; they
 * allocate nothing, and log once, when a device that failed gives way to the processor. */
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/attn.h"
#include "kernels/cpu.h"
#include "kernels/pool.h"
#include "kernels/repack.h"
#include "model/gemma3.h"
#include "model/hparams.h"
#include "model/work_plan.h"
#include "npu_worker/arena.h"
#include "npu_worker/attn_backend.h"
#include "npu_worker/xrt_attend.h"
#include "npu_worker/xrt_gemm.h"
#include "npu_worker/xrt_load.h"
#include "npu_worker/xrt_products.h"
#include "proto/budget.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/memlock.h"
#include "proto/util.h"

#define MEASURE_NS UINT64_C(2000000000) /* of the crossover, about, at most */
#define MEASURE_KEYS 2048u              /* that the last query sees, at most */

struct attn_xrt {
    struct attn_offload offload;
    void *cpu; /* of attn_cpu */
    struct pool *pool;
    const struct xrt_device_ops *ops;
    struct xrt_device *device;
    struct manifest *manifest;
    struct xrt_products products;
    struct xrt_gemm *gemms[ATTN_PRODUCTS]; /* as products.ops */
    struct xrt_attend *attends[2];         /* as products.attend */
    struct hparams hparams;
    struct budget *budget;
    struct arena *arena;
    void *scratch;
    uint32_t scratch_block;
    uint64_t scratch_bytes, device_bytes;
    struct xrt_weights *(*kept)[ATTN_PRODUCTS]; /* [resident] */
    uint32_t resident, chunk_tokens;
    uint32_t many[2]; /* of layers whose weights move, and of those whose weights stay there; 0: not measured yet */
    uint32_t many_attend[2];
    bool keep_going, given_up;
    char name[64];
    _Atomic uint64_t made, offloaded;
};

static const char *xrt_describe(void *b)
{
    return ((struct attn_xrt *)b)->name;
}

static void give_up(struct attn_xrt *a, struct err *err)
{
    log_warn("npu", "%s; npu_worker computes on the processor from now on", err->text);
    err->code = 0;
    a->given_up = true;
}

static bool wants(void *ctx, uint32_t layer, enum attn_product which, uint32_t n_tokens)
{
    struct attn_xrt *a = ctx;
    bool there = a->products.op[which] && !a->given_up && n_tokens >= a->many[layer < a->resident];
    atomic_fetch_add_explicit(&a->made, 1, memory_order_relaxed);
    return there;
}

static bool wants_attention(void *ctx, uint32_t layer, uint32_t pos, uint32_t n)
{
    struct attn_xrt *a = ctx;
    int global = hparams_is_global(&a->hparams, layer);
    if (!a->products.attend[global])
        return false;
    atomic_fetch_add_explicit(&a->made, 1, memory_order_relaxed);
    return !a->given_up && n >= a->many_attend[global] && xrt_attend_fits(a->products.attend[global], pos, n);
}

/* What became of something that the device was asked for. */
static int outcome(struct attn_xrt *a, int r, struct err *err)
{
    if (r == 0) {
        atomic_fetch_add_explicit(&a->offloaded, 1, memory_order_relaxed);
        return 0;
    }
    if (!a->keep_going)
        return -ENODEV; /* it would not do better with the next chunk: the worker ends with this message */
    give_up(a, err);
    return ATTN_DECLINED;
}

static int multiply(void *ctx, uint32_t layer, enum attn_product which, const struct gemm_matrix *m, const float *x,
                    uint32_t n_tokens, float *y, struct err *err)
{
    struct attn_xrt *a = ctx;
    if (a->given_up) /* by an earlier product of this layer */
        return ATTN_DECLINED;
    struct xrt_gemm *g = a->gemms[xrt_products_index(&a->products, which)];
    return outcome(a,
                   layer < a->resident ? xrt_gemm_multiply_kept(g, a->kept[layer][which], x, n_tokens, y, err)
                                       : xrt_gemm_multiply(g, m, x, n_tokens, y, err),
                   err);
}

static int attend(void *ctx, uint32_t layer, const struct attn_queries *x, struct err *err)
{
    struct attn_xrt *a = ctx;
    if (a->given_up) /* while it was measured */
        return ATTN_DECLINED;
    return outcome(a, xrt_attend_run(a->attends[hparams_is_global(&a->hparams, layer)], x, err), err);
}

static void xrt_count(void *b, uint64_t *ret_products, uint64_t *ret_offloaded)
{
    struct attn_xrt *a = b;
    *ret_products = atomic_load_explicit(&a->made, memory_order_relaxed);
    *ret_offloaded = atomic_load_explicit(&a->offloaded, memory_order_relaxed);
}

/* Weights that stay on the NPU go, and from now on none stays. */
static void drop_kept(struct attn_xrt *a)
{
    for (uint32_t l = 0; l < a->resident; l++) {
        for (int i = 0; i < ATTN_PRODUCTS; i++)
            xrt_gemm_free_kept(a->gemms[xrt_products_index(&a->products, (enum attn_product)i)], a->kept[l][i]);
    }
    a->resident = 0;
}

static void xrt_close(void *b)
{
    struct attn_xrt *a = b;
    if (!a)
        return;
    attn_cpu.close(a->cpu);
    drop_kept(a);
    free(a->kept);
    for (uint32_t i = 0; i < a->products.n_ops; i++)
        xrt_gemm_close(a->gemms[i]);
    for (int global = 0; global < 2; global++)
        xrt_attend_close(a->attends[global]);
    if (a->device) {
        struct xrt_device_stats s;
        a->ops->stats(a->device, &s);
        if (a->name[0]) /* it was opened */
            log_info("npu",
                     "%s: %" PRIu64 " of %" PRIu64 " operations, %" PRIu64 " runs, %" PRIu64 " bytes there and %" PRIu64
                     " back, %" PRIu64 " bytes of NPU memory at most",
                     a->name, a->offloaded, a->made, s.starts, s.bytes_to, s.bytes_from, s.peak_bytes);
        if (s.bytes && !a->ops->lost(a->device))
            log_warn("npu", "%" PRIu64 " bytes of NPU memory were not given back", s.bytes);
        a->ops->close(a->device);
    }
    pool_close(a->pool);
    manifest_close(a->manifest);
    arena_give(a->arena, ARENA_SCRATCH, a->scratch_block);
    budget_give(a->budget, BUDGET_SCRATCH, a->scratch_bytes);
    budget_give(a->budget, BUDGET_DEVICE, a->device_bytes);
    free(a);
}

static int open_operators(struct attn_xrt *a, const struct attn_backend_options *o, struct err *err)
{
    const struct cpu_kernels *kernels = cpu_select(o->variant);
    struct xrt_operator_options x = {.ops = a->ops,
                                     .device = a->device,
                                     .pool = a->pool,
                                     .arena = a->arena,
                                     .scratch = a->scratch,
                                     .n_tokens = o->chunk_tokens,
                                     .trace = o->trace,
                                     .timeout_ms = o->device.timeout_ms ? o->device.timeout_ms : ATTN_TIMEOUT_MS};
    int r =
        kernels ? 0 : err_set(err, -ENOTSUP, "kernel variant '%s' is unknown; expected one of: %s", o->variant, cpu_available());
    for (uint32_t i = 0; r == 0 && i < a->products.n_ops; i++) {
        x.op = a->products.ops[i];
        r = xrt_gemm_open(&x, &a->gemms[i], err);
    }
    for (int global = 0; r == 0 && global < 2; global++) {
        struct attn_shape s;
        work_plan_attn_shape(o->hparams, global, o->kv_type, &s);
        x.op = a->products.attend[global];
        if (x.op)
            r = xrt_attend_open(&x, &s, kernels->attn, &a->attends[global], err);
    }
    return r;
}

/* Everything of the device, as planned and no more. */
static int open_device(struct attn_xrt *a, const struct attn_backend_options *o, struct err *err)
{
    uint64_t bytes = 0;
    int r = xrt_load(NULL, &a->ops, err);
    if (r == 0)
        r = manifest_open(o->device.manifest, &a->manifest, err);
    if (r == 0)
        r = xrt_products_choose(a->manifest, o->hparams, o->context, &a->products, err);
    if (r == 0)
        r = xrt_products_check_files(&a->products, err);
    if (r == 0)
        r = xrt_products_bytes(&a->products, o->chunk_tokens, &bytes, err);
    bytes += a->resident * xrt_products_kept(&a->products);
    if (r == 0 && a->ops->locks_memory)
        r = memlock_check(memlock_limit(), MEMLOCK_NPU_HEAP + bytes, "the NPU's buffers and its driver's heap", err);
    if (r == 0)
        r = budget_take(a->budget, BUDGET_DEVICE, bytes, err);
    if (r < 0)
        return r;
    a->device_bytes = bytes;
    uint64_t scratch = xrt_products_scratch(&a->products, o->n_threads);
    r = budget_take(a->budget, BUDGET_SCRATCH, scratch, err);
    a->scratch_bytes = r == 0 ? scratch : 0;
    if (r == 0)
        r = arena_take(a->arena, ARENA_SCRATCH, scratch, &a->scratch_block, &a->scratch, err);
    if (r == 0)
        r = a->ops->open(o->device.index, &a->device, err);
    return r < 0 ? r : open_operators(a, o, err);
}

/* What is timed here and there, for n tokens. */
struct trial {
    uint32_t layer;
    bool attention;
    enum attn_product which;
    uint32_t end; /* of the positions that attend */
};

static int try_once(struct attn_xrt *a, const struct trial *t, uint32_t n, bool offload, uint64_t *ret_ns, struct err *err)
{
    return t->attention ? attn_cpu_time_attention(a->cpu, t->layer, t->end - n, n, offload, ret_ns, err)
                        : attn_cpu_time(a->cpu, t->layer, t->which, n, offload, ret_ns, err);
}

/* From how many tokens on the NPU is faster, at every power of two from there to most. *ret_ns: there, the processor's time and the
 * NPU's. *ret_many UINT32_MAX: nowhere. ATTN_DECLINED: it could not be measured, and is nowhere. */
static int crossover(struct attn_xrt *a, const struct trial *t, uint32_t most, uint32_t *ret_many, uint64_t ret_ns[2],
                     struct err *err)
{
    uint64_t spent = 0;
    int r = 0;
    *ret_many = UINT32_MAX;
    for (uint32_t n = most; n > 0; n /= 2) {
        uint64_t best[2] = {UINT64_MAX, UINT64_MAX};
        for (int i = 0; r == 0 && i < 4 && (i < 2 || spent <= MEASURE_NS); i++) { /* one, the other, and once more */
            uint64_t ns = 0;
            r = try_once(a, t, n, i % 2, &ns, err);
            best[i % 2] = MIN(best[i % 2], ns);
            spent += ns;
        }
        if (r != 0)
            break;
        if (best[1] >= best[0])
            break;
        *ret_many = n;
        memcpy(ret_ns, best, sizeof(best));
        if (spent > MEASURE_NS)
            break;
    }
    atomic_store_explicit(&a->offloaded, 0, memory_order_relaxed); /* these were nobody's */
    return r;
}

/* The first product that it has stands for all. */
static int measure(struct attn_xrt *a, uint32_t layer, struct err *err)
{
    struct trial t = {.layer = layer, .which = ATTN_Q};
    uint64_t ns[2];
    while (!a->products.op[t.which])
        t.which++;
    uint32_t *many = &a->many[layer < a->resident];
    const char *where = layer < a->resident ? "whose weights stay there" : "whose weights are sent";
    int r = crossover(a, &t, a->chunk_tokens, many, ns, err);
    if (r != 0)
        return MIN(r, 0);
    if (*many == UINT32_MAX)
        log_info("npu",
                 "product %s is faster on the processor at every number of tokens up to %u: the NPU is not used for layers %s",
                 xrt_products_name(t.which), a->chunk_tokens, where);
    else
        log_info("npu",
                 "the NPU multiplies for chunks of %u tokens and more in layers %s (product %s: %.2f ms, on the processor %.2f ms)",
                 *many, where, xrt_products_name(t.which), (double)ns[1] / 1e6, (double)ns[0] / 1e6);
    return 0;
}

/* Where a window is full, or the operator; in a short context, as far as that goes. */
static int measure_attention(struct attn_xrt *a, bool global, struct err *err)
{
    const struct manifest_operator *op = a->products.attend[global];
    const char *kind = global ? "global layers" : "layers with a window";
    struct trial t = {
        .layer = global ? a->hparams.global_every - 1 : 0, .attention = true, .end = MIN(op->dims[MANIFEST_KEYS], MEASURE_KEYS)};
    uint32_t *many = &a->many_attend[global];
    uint64_t ns[2];
    int r = ATTN_DECLINED;
    *many = UINT32_MAX;
    for (; r == ATTN_DECLINED && t.end > 0 && !a->given_up; t.end /= 2)
        r = crossover(a, &t, MIN(a->chunk_tokens, t.end), many, ns, err);
    if (r != 0)
        return MIN(r, 0);
    if (*many == UINT32_MAX)
        log_info("npu", "attention of %s is faster on the processor at every number of a sequence's tokens that was tried", kind);
    else
        log_info("npu", "the NPU attends for %u tokens of a sequence and more in %s (%.2f ms, on the processor %.2f ms)", *many,
                 kind, (double)ns[1] / 1e6, (double)ns[0] / 1e6);
    return 0;
}

static int xrt_open(const struct attn_backend_options *o, void **ret, struct err *err)
{
    struct attn_xrt *a = calloc(1, sizeof(*a));
    if (!a)
        return err_set(err, -ENOMEM, "attention: out of memory");
    a->budget = o->budget;
    a->arena = o->arena;
    a->scratch_block = OFFSETS_NONE;
    a->chunk_tokens = o->chunk_tokens;
    a->hparams = *o->hparams;
    a->many[0] = a->many[1] = a->many_attend[0] = a->many_attend[1] = o->device.many;
    a->resident = MIN(o->device.resident, o->hparams->n_layers);
    a->kept = calloc(MAX(a->resident, 1u), sizeof(*a->kept));
    if (!a->kept) {
        free(a);
        return err_set(err, -ENOMEM, "attention: out of memory");
    }
    a->keep_going = o->device.keep_going;
    a->offload =
        (struct attn_offload){.ctx = a, .wants = wants, .multiply = multiply, .wants_attention = wants_attention, .attend = attend};
    int r = pool_open((int)o->n_threads, &a->pool);
    if (r < 0)
        err_set_errno(err, r, "attention: %u threads", o->n_threads);
    else if (o->pin)
        pool_pin(a->pool);
    if (r == 0)
        r = open_device(a, o, err);
    struct attn_backend_options inner = *o;
    inner.offload = &a->offload;
    inner.pool = a->pool;
    if (r == 0)
        r = attn_cpu.open(&inner, &a->cpu, err);
    for (int global = 0; r == 0 && global < 2; global++) {
        if (a->products.attend[global] && a->many_attend[global] == 0)
            r = measure_attention(a, global, err);
    }
    if (r < 0) {
        xrt_close(a);
        return r;
    }
    snprintf(a->name, sizeof(a->name), "xrt %.36s, %.20s", a->ops->name(a->device), attn_cpu.describe(a->cpu));
    for (int i = 0; i < ATTN_PRODUCTS; i++) {
        if (!a->products.op[i])
            log_info("npu", "product %s runs on the processor: %s", xrt_products_name((enum attn_product)i), a->products.why[i]);
    }
    *ret = a;
    return 0;
}

/* The layer's weights to the device, for good. */
static int keep(struct attn_xrt *a, uint32_t layer, const struct segment_layout *l, const void *data, struct err *err)
{
    static const enum gemma3_tensor tensors[ATTN_PRODUCTS] = {
        [ATTN_Q] = GEMMA3_ATTN_Q, [ATTN_K] = GEMMA3_ATTN_K, [ATTN_V] = GEMMA3_ATTN_V, [ATTN_O] = GEMMA3_ATTN_OUTPUT};
    int r = 0;
    for (int i = 0; r == 0 && i < ATTN_PRODUCTS; i++) {
        struct gemm_matrix m = segment_matrix(l, data, tensors[i]);
        if (a->products.op[i])
            r = xrt_gemm_keep(a->gemms[xrt_products_index(&a->products, (enum attn_product)i)], &m, &a->kept[layer][i], err);
    }
    if (r == 0 || !a->keep_going)
        return r;
    give_up(a, err);
    return 0;
}

static int xrt_load_segment(void *b, uint32_t layer, const struct segment_layout *l, const void *data, struct err *err)
{
    struct attn_xrt *a = b;
    int r = attn_cpu.load_segment(a->cpu, layer, l, data, err);
    if (r == 0 && layer < a->resident && !a->given_up)
        r = keep(a, layer, l, data, err);
    if (r == 0 && a->many[layer < a->resident] == 0 && !a->given_up)
        r = measure(a, layer, err);
    if (a->many[1] == UINT32_MAX && a->resident) { /* slower even so, and the more where weights are sent */
        drop_kept(a);
        a->many[0] = UINT32_MAX;
    }
    return r;
}

static int xrt_run(void *b, uint32_t layer, const struct chunk *c, const float *x, float *h, attn_dump_fn dump, void *dump_ctx,
                   struct err *err)
{
    struct attn_xrt *a = b;
    return attn_cpu.run(a->cpu, layer, c, x, h, dump, dump_ctx, err);
}

const struct attn_backend attn_xrt = {.name = "xrt",
                                      .open = xrt_open,
                                      .describe = xrt_describe,
                                      .load_segment = xrt_load_segment,
                                      .run = xrt_run,
                                      .close = xrt_close,
                                      .count = xrt_count};
