/* SPDX-License-Identifier: MIT
 * The npu_worker program: a stage under the coordinator, or alone the attention of one layer over one sequence.
 * Alone, rows are cut into chunks where a position does not follow the one before it, so that repeating positions works as it does
 * in the pipeline. */
#include <errno.h>
#include <string.h>

#include "kernels/cpu.h"
#include "model/gemma3.h"
#include "model/gguf.h"
#include "model/npy.h"
#include "model/work_plan.h"
#include "npu_worker/arena.h"
#include "npu_worker/attn_backend.h"
#include "npu_worker/kv.h"
#include "npu_worker/manifest.h"
#include "npu_worker/npu.h"
#include "npu_worker/xrt_load.h"
#include "npu_worker/xrt_probe.h"
#include "npu_worker/xrt_products.h"
#include "proto/chunk.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/sandbox.h"
#include "proto/util.h"
#include "stage/positions.h"
#include "stage/single.h"

#define CHUNK 128
#define POSITIONS_MAX (1u << 20)

static int get_positions(const struct single *s, size_t n, uint32_t **ret, uint32_t *ret_context, struct err *err)
{
    uint32_t *p = NULL, top = 0;
    size_t listed = n;
    int r = 0;
    if (s->positions) {
        r = positions_parse("--positions", s->positions, POSITIONS_MAX, POSITIONS_MAX, &p, &listed, err);
    } else {
        p = calloc(n, sizeof(*p));
        r = p && n <= POSITIONS_MAX ? 0 : err_set(err, -E2BIG, "'%s' has %zu rows; expected at most %u", s->in, n, POSITIONS_MAX);
        for (size_t i = 0; r == 0 && i < n; i++)
            p[i] = (uint32_t)i;
    }
    if (r == 0 && listed != n)
        r = err_set(err, -EINVAL, "--positions '%s' lists %zu positions; '%s' has %zu rows", s->positions, listed, s->in, n);
    if (r < 0) {
        free(p);
        return r;
    }
    for (size_t i = 0; i < n; i++)
        top = MAX(top, p[i]);
    *ret = p;
    *ret_context = top + 1;
    return 0;
}

/* The next chunk of one sequence; what is below every position still to come counts as committed. */
static void make_chunk(struct chunk *c, const uint32_t *positions, size_t at, size_t n, uint32_t max)
{
    uint32_t lowest = positions[at];
    for (size_t i = at; i < n; i++)
        lowest = MIN(lowest, positions[i]);
    memset(&c->h, 0, sizeof(c->h));
    c->h.n_seqs = 1;
    c->seqs[0] = (struct chunk_seq){.committed_pos = lowest};
    while (c->h.n_tokens < max && at + c->h.n_tokens < n) {
        uint32_t i = c->h.n_tokens;
        if (i && positions[at + i] != positions[at + i - 1] + 1)
            break;
        c->tokens[c->h.n_tokens++] = (struct chunk_token){.pos = positions[at + i]};
    }
}

static int all_chunks(struct single *s, const struct attn_open *b, uint32_t layer, const uint32_t *positions, const float *x,
                      float *h, size_t n, uint32_t max, struct err *err)
{
    auto_free struct chunk *c = calloc(1, sizeof(*c));
    size_t width = s->hparams.hidden;
    if (!c)
        return err_set(err, -ENOMEM, "out of memory");
    for (size_t at = 0; at < n; at += c->h.n_tokens) {
        make_chunk(c, positions, at, n, max);
        if (s->dump && c->h.n_tokens != n)
            return err_set(err, -EINVAL, "--dump: '%s' has %zu rows; expected at most %d at consecutive positions", s->in, n,
                           CHUNK_MAX_TOKENS);
        int r = b->backend->run(b->device, layer, c, x + at * width, h + at * width, s->dump ? single_dump : NULL, s, err);
        if (r < 0)
            return r;
    }
    return npy_write(s->out, h, n, width, err);
}

static struct attn_device_options device_options(const struct config *c)
{
    return (struct attn_device_options){
        .manifest = c->xrt.manifest, .index = c->xrt.index, .many = c->xrt.many, .timeout_ms = c->xrt.timeout_ms};
}

/* A driver that crashes or hangs when it is opened does so in a child. */
static int probe_first(const struct config *c, const char **backend, struct err *err)
{
    struct xrt_probe_answer a;
    bool any = strcmp(*backend, "auto") == 0;
    if (strcmp(*backend, "xrt") == 0 && !c->xrt.manifest[0])
        return err_set(err, -EINVAL, "backend 'xrt' needs 'npu.manifest', a manifest of operators (docs/NPU.md)");
    if (!c->xrt.manifest[0] || (!any && strcmp(*backend, "xrt") != 0))
        return 0;
    int r = xrt_probe(NULL, c->xrt.index, XRT_PROBE_MS, &a, err);
    if (r < 0 && any) {
        log_warn("npu", "backend 'xrt' is not used: %s", err->text);
        *backend = "cpu";
        r = 0;
    }
    return r;
}

static int run_rows(struct single *s, uint32_t layer, const uint32_t *positions, uint32_t context, const float *x, float *h,
                    size_t n, struct err *err)
{
    struct attn_open b = {0};
    void *data = NULL;
    struct arena *arena = NULL;
    struct kv *kv = NULL;
    struct segment_layout l;
    uint32_t weights = OFFSETS_NONE, chunk = s->config->chunk_tokens ? s->config->chunk_tokens : CHUNK;
    chunk = (uint32_t)MIN(s->dump ? CHUNK_MAX_TOKENS : chunk, n);
    uint32_t threads = s->config->npu.threads ? s->config->npu.threads : (uint32_t)cpu_count();
    struct kv_options k = {.hparams = &s->hparams,
                           .budget = &s->budget,
                           .context = context,
                           .sequences = 1,
                           .chunk_tokens = chunk,
                           .ring_slots = 1,
                           .kv_type = s->config->kv_type};
    int r = kv_make_arena(&k, s->config->npu.memory / 5 * 4, &arena, err);
    k.arena = arena;
    if (r == 0)
        r = kv_open(&k, &kv, err);
    const struct attn_backend_options o = {.hparams = &s->hparams,
                                           .budget = &s->budget,
                                           .arena = arena,
                                           .kv = kv,
                                           .types = s->types,
                                           .context = s->config->context,
                                           .n_threads = threads,
                                           .chunk_tokens = chunk,
                                           .ring_slots = 1,
                                           .kv_type = s->config->kv_type,
                                           .variant = s->variant,
                                           .device = device_options(s->config)};
    const char *backend = s->backend ? s->backend : s->config->npu.backend;
    if (r == 0)
        r = probe_first(s->config, &backend, err);
    if (r == 0)
        r = attn_open(backend, &o, &b, err);
    if (r == 0)
        r = single_segment(s, SEGMENT_ATTN, layer, &l, &data, err);
    if (r == 0)
        r = arena_reserve(arena, ARENA_WEIGHTS, l.bytes, &weights, err);
    if (r == 0)
        r = b.backend->load_segment(b.device, layer, &l, data, err);
    if (r == 0)
        r = all_chunks(s, &b, layer, positions, x, h, n, chunk, err);
    if (b.backend)
        b.backend->close(b.device);
    kv_close(kv);
    if (arena)
        arena_give(arena, ARENA_WEIGHTS, weights);
    arena_close(arena);
    single_free_segment(s, &l, data);
    return r;
}

static int run(struct single *s, struct err *err)
{
    auto_free float *x = NULL, *h = NULL;
    auto_free uint32_t *positions = NULL;
    uint32_t layer = 0, context = 0;
    size_t n = 0;
    int r = single_layer(s, &layer, err);
    if (r == 0)
        r = single_rows(s, &x, &n, err);
    if (r == 0)
        r = get_positions(s, n, &positions, &context, err);
    if (r < 0)
        return r;
    h = malloc(n * s->hparams.hidden * sizeof(float));
    if (!h)
        return err_set(err, -ENOMEM, "out of memory for %zu rows", n);
    return run_rows(s, layer, positions, context, x, h, n, err);
}

static int open_products(const struct config *c, struct manifest **ret_manifest, struct xrt_products *ret, struct err *err)
{
    struct gguf *g = NULL;
    struct hparams h;
    int r = manifest_open(c->xrt.manifest, ret_manifest, err);
    if (r == 0)
        r = gguf_open(c->model, false, &g, err);
    if (r == 0)
        r = gemma3_hparams(g, &h, err);
    if (r == 0)
        r = xrt_products_choose(*ret_manifest, &h, c->context, ret, err);
    gguf_close(g);
    return r;
}

/* What is asked from here on is answered as the stage will find it: of the user's files it may open those of the manifest's folder.
 */
static void as_in_stage(const struct config *c)
{
    struct sandbox s = {.profile = SANDBOX_DRIVER, .off = !c->sandbox};
    sandbox_begin(&s, c->xrt.manifest);
}

static int choose_device(const struct config *c, struct err *err)
{
    struct manifest *m = NULL;
    struct xrt_products p;
    int r = c->xrt.manifest[0] && c->model ? open_products(c, &m, &p, err) : 0;
    if (m)
        as_in_stage(c);
    if (r == 0 && m)
        r = xrt_products_check_files(&p, err);
    if (r == 0 && m)
        r = xrt_products_sizes(&p, stdout, err);
    manifest_close(m);
    return r < 0 ? r : xrt_load_choose(c->xrt.index, stdout, err);
}

/* The table of one model, with its products' shapes also where the manifest has an operator for none: r, of choosing. */
static void print_operators(const struct config *c, const struct manifest *m, const struct xrt_products *p, int r, struct err *none)
{
    struct xrt_probe_answer a;
    if (r == 0 && strcmp(c->npu.backend, "cpu") == 0)
        r = err_set(none, -ENODEV, "'npu.backend' is cpu");
    if (r == 0)
        r = xrt_probe(NULL, c->xrt.index, XRT_PROBE_MS, &a, none);
    as_in_stage(c); /* from now on nothing can be run */
    manifest_print(m, stdout);
    if (r == 0)
        r = xrt_products_check_files(p, none);
    putchar('\n');
    xrt_products_print(p, m, c->xrt.many, r < 0 ? none->text : NULL, stdout);
}

static int list_operators(const struct config *c, struct err *err)
{
    struct manifest *m = NULL;
    struct xrt_products p = {0};
    if (!c->xrt.manifest[0])
        return err_set(err, -EINVAL,
                       "no manifest of operators is named; expected --set npu.manifest=FILE, or the key in --config FILE");
    int r = c->model ? open_products(c, &m, &p, err) : manifest_open(c->xrt.manifest, &m, err);
    struct err none = r < 0 ? *err : (struct err){0};
    if (m && p.rows[ATTN_Q]) {
        print_operators(c, m, &p, r, &none);
    } else if (m) { /* no model, or one that cannot be read */
        as_in_stage(c);
        manifest_print(m, stdout);
    }
    manifest_close(m);
    return r;
}

static int list(struct single *s, enum single_list what, struct err *err)
{
    return what == SINGLE_LIST_CHOOSE      ? choose_device(s->config, err)
           : what == SINGLE_LIST_OPERATORS ? list_operators(s->config, err)
                                           : xrt_load_list(stdout, err);
}

int main(int argc, char **argv)
{
    static const struct single_program program = {.name = "npu_worker",
                                                  .summary = "computes h = x + post_norm(Attention(norm(x))) of a layer",
                                                  .options = SINGLE_LAYER | SINGLE_IN | SINGLE_DUMP | SINGLE_POSITIONS |
                                                             SINGLE_BACKEND | SINGLE_OPERATORS,
                                                  .ops = &npu_ops,
                                                  .run = run,
                                                  .list = list};
    return single_main(&program, argc, argv);
}
