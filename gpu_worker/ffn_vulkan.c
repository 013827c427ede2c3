/* SPDX-License-Identifier: MIT
 * FFN and head on a Vulkan device. The weights keep the CPU's layout (kernels/repack.h) and integer types its arithmetic: int8
 * activations in blocks of 32. One command buffer per layer and number of tokens, recorded at its first use and submitted again
 * ever after; rows go in and come out through mapped buffers.
 *
 * Owns device, buffers, kernels and recorded commands. open, load_segment and close run on the main thread, run and head on the
 * data thread. Never aborts: a lost device is a return value. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_worker/ffn_backend.h"
#include "gpu_worker/ffn_vulkan.h"
#include "gpu_worker/vk_crossover.h"
#include "gpu_worker/vk_profile.h"
#include "gpu_worker/vk_weights.h"
#include "kernels/quant.h"
#include "model/work_plan.h"
#include "proto/budget.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

static void free_buffers(struct ffn *f)
{
    for (uint32_t i = 0; f->layers && i < f->hparams.n_layers; i++)
        vk_weights_free(&f->memory, &f->layers[i]);
    vk_weights_free(&f->memory, &f->head);
    vk_weights_unshare(&f->memory, &f->shared);
    struct vk_buffer *own[] = {&f->staging, &f->in, &f->out, &f->out_logits};
    for (size_t i = 0; i < ARRAY_LEN(own); i++)
        vk_buffer_free(&f->memory, own[i]);
    for (size_t i = 0; i < BUFFERS; i++)
        vk_buffer_free(&f->memory, &f->buffers[i]);
}

static struct ffn *volatile abandoned; /* its device may still read and write there */

static void vulkan_close(void *b)
{
    struct ffn *f = b;
    if (!f)
        return;
    if (!vk_queue_settle(f->queue)) {
        log_warn("vulkan", "device '%s' still does not answer; what it holds is freed when this process ends", f->device->name);
        abandoned = f;
        return;
    }
    vk_profile_close(f->profile);
    for (size_t i = 0; i < SHAPES; i++) {
        vk_recorder_close(f->queue, f->shapes[i].recorder);
        free(f->shapes[i].layers);
    }
    vk_recorder_close(f->queue, f->head_recorder);
    vk_queue_close(f->queue);
    for (uint32_t i = 0; i < f->n_kernels; i++) {
        vk_kernel_free(f->device, &f->kernels[i]->kernel);
        free(f->kernels[i]);
    }
    free_buffers(f);
    vk_cache_close(f->cache);
    vk_device_close(f->device);
    free(f->layers);
    free(f->streamed);
    free(f);
}

/* From so many tokens on those for many. */
static uint32_t *threshold(struct ffn *f)
{
    return f->many == UINT32_MAX ? &f->tiled : &f->many;
}

/* As many tokens at once as buffers can hold, at most `want`; 0 when not even one fits. Below FEW: a power of two. */
static uint32_t fitting(const struct ffn *f, uint64_t bytes, uint32_t want)
{
    uint64_t n = MIN(f->device->max_range, f->device->max_bytes) / bytes;
    uint32_t fit = (uint32_t)MIN(n, (uint64_t)want);
    if (fit >= FEW)
        return fit / FEW * FEW;
    while (fit & (fit - 1))
        fit &= fit - 1;
    return fit;
}

static int make_buffers(struct ffn *f, struct err *err)
{
    const struct hparams *h = &f->hparams;
    uint32_t tile = f->many == UINT32_MAX ? FEW : MANY_TOKENS, want = (uint32_t)util_round_up(f->chunk_tokens, tile);
    uint64_t widest = MAX(ffn_record_token_bytes(f, GATE), ffn_record_act_bytes(h->ffn)), row = 4 * (uint64_t)h->hidden;
    f->group = fitting(f, MAX(MAX(widest, row), ffn_record_token_bytes(f, DOWN)), want);
    if (f->many != UINT32_MAX && f->group < MANY_TOKENS) { /* buffers too small for whole workgroups */
        f->many = UINT32_MAX;
        return make_buffers(f, err);
    }
    f->group = f->group / tile * tile;
    if (ffn_record_norm_shared(f) > f->device->max_shared)
        return err_set(err, -ENOTSUP, "device '%s': rows of %u floats need %u bytes of a workgroup's memory; it has %u",
                       f->device->name, h->hidden, ffn_record_norm_shared(f), f->device->max_shared);
    f->head_group = MIN(fitting(f, ffn_record_token_bytes(f, LOGITS), MAX((uint32_t)util_round_up(f->logits_rows, FEW), FEW)), FEW);
    if (f->group < FEW || f->head_group == 0 || fitting(f, row, want) < want)
        return err_set(err, -ENOTSUP,
                       "device '%s': buffers of at most %llu bytes hold neither %u tokens of %u floats nor one row of %u logits",
                       f->device->name, (unsigned long long)MIN(f->device->max_range, f->device->max_bytes), want, h->ffn,
                       h->vocab);
    int r = vk_buffer_make(&f->memory, VK_MEMORY_STAGING, MIN(WORK_PLAN_VULKAN_STAGING, f->device->max_bytes), "staging",
                           &f->staging, err);
    if (r == 0)
        r = vk_buffer_make(&f->memory, VK_MEMORY_STAGING, want * row, "rows", &f->in, err);
    if (r == 0)
        r = vk_buffer_make(&f->memory, VK_MEMORY_READBACK, want * row, "rows", &f->out, err);
    if (r == 0)
        r = vk_buffer_make(&f->memory, VK_MEMORY_READBACK, f->head_group * ffn_record_token_bytes(f, LOGITS), "logits",
                           &f->out_logits, err);
    for (int i = 0; r == 0 && i < BUFFERS; i++) {
        uint32_t n = i == LOGITS ? f->head_group : i == ACT || i == NORM ? MAX(f->group, f->head_group) : f->group;
        r = vk_buffer_make(&f->memory, VK_MEMORY_DEVICE, n * ffn_record_token_bytes(f, i), "scratch", &f->buffers[i], err);
    }
    return r;
}

static void see_types(struct ffn *f, const uint8_t *types)
{
    uint32_t first = segment_n_tensors(SEGMENT_ATTN), n = f->hparams.n_layers * GEMMA3_LAYER_TENSORS;
    for (uint32_t l = 0; l < f->hparams.n_layers; l++) {
        for (uint32_t i = first; i < GEMMA3_LAYER_TENSORS; i++) {
            bool norm = gemma3_is_norm((enum gemma3_tensor)i), integer = quant_is_integer(types[l * GEMMA3_LAYER_TENSORS + i]);
            f->need_quants |= !norm && integer;
            f->need_floats |= !norm && !integer;
        }
    }
    bool integer = quant_is_integer(types[n + 1]);
    f->need_quants |= integer;
    f->need_floats |= !integer;
}

static int vk_options_of(const struct ffn_device_options *o, struct vk_options *ret, struct err *err)
{
    *ret = (struct vk_options){.device = o->name ? o->name : "auto",
                               .allow_cpu = o->allow_cpu,
                               .validate = o->validate,
                               .max_buffer = o->max_buffer,
                               .subgroup = o->subgroup};
    return vk_features_parse(o->without, &ret->without, err);
}

int ffn_vulkan_list(const struct ffn_device_options *o, FILE *f, struct err *err)
{
    struct vk_options vk;
    int r = vk_options_of(o, &vk, err);
    return r < 0 ? r : vk_device_list(&vk, f, err);
}

int ffn_vulkan_choose(const struct ffn_device_options *o, FILE *f, struct err *err)
{
    struct vk_options vk;
    struct vk_device *d = NULL;
    int r = vk_options_of(o, &vk, err);
    if (r == 0)
        r = vk_device_open(&vk, &d, err);
    if (r == 0)
        fprintf(f, "%s\t%llu\t%llu\t%s\n", d->unified ? "unified" : "own", (unsigned long long)vk_device_room(d),
                (unsigned long long)vk_buffer_importable(d), d->name);
    vk_device_close(d);
    return r;
}

static int vulkan_open(const struct ffn_backend_options *o, void **ret, struct err *err)
{
    if (o->hparams->hidden % QUANT_BLOCK || o->hparams->ffn % QUANT_BLOCK)
        return err_set(err, -ENOTSUP, "vulkan: hidden %u and FFN %u; expected multiples of %d", o->hparams->hidden, o->hparams->ffn,
                       QUANT_BLOCK);
    struct vk_options vk;
    struct ffn *f = calloc(1, sizeof(*f));
    if (!f)
        return err_set(err, -ENOMEM, "FFN: out of memory");
    f->hparams = *o->hparams;
    f->chunk_tokens = o->chunk_tokens;
    f->logits_rows = o->logits_rows;
    f->layers = calloc(f->hparams.n_layers, sizeof(*f->layers));
    int r = f->layers ? 0 : err_set(err, -ENOMEM, "FFN: out of memory");
    if (r == 0)
        r = vk_options_of(&o->device, &vk, err);
    if (r == 0)
        r = vk_device_open(&vk, &f->device, err);
    if (r == 0) {
        uint64_t room = vk_device_room(f->device);
        f->memory = (struct vk_memory){
            .device = f->device, .budget = o->budget, .limit = o->device.memory ? MIN(o->device.memory, room) : room};
        snprintf(f->name, sizeof(f->name), "vulkan %.55s", f->device->name);
        see_types(f, o->types);
        r = vk_cache_open(f->device, NULL, &f->cache, err);
    }
    if (r == 0)
        r = vk_queue_open(f->device, &f->queue, err);
    if (r == 0) {
        vk_queue_trace(f->queue, o->trace);
        r = vk_recorder_open(f->queue, HEAD_SHAPES, &f->head_recorder, err);
    }
    if (r == 0) {
        f->many = vk_has(f->device, VK_FEATURE_COOPMAT) && ffn_record_has_tile(f->device) ? 4 * FEW : UINT32_MAX;
        r = make_buffers(f, err);
        f->tiled = f->many == UINT32_MAX ? 2 * FEW : UINT32_MAX;
        f->unmeasured = o->device.many == 0;
        if (o->device.many)
            *threshold(f) = o->device.many;
    }
    if (r == 0 && o->device.profile)
        r = vk_profile_open(f->device, f->queue, MARKS_FEW * (f->chunk_tokens / FEW + 2), &f->profile, err);
    if (r < 0) {
        vulkan_close(f);
        return r;
    }
    *ret = f;
    return 0;
}

static const char *vulkan_describe(void *b)
{
    return ((struct ffn *)b)->name;
}

static bool vulkan_copies(void *b, uint64_t largest)
{
    const struct ffn *f = b;
    return vk_buffer_importable(f->device) < largest;
}

static int find_crossover(struct ffn *f, uint32_t layer, struct err *err);

static int vulkan_load_segment(void *b, uint32_t layer, const struct segment_layout *l, const void *data, struct err *err)
{
    struct ffn *f = b;
    bool head = l->kind == SEGMENT_HEAD;
    if (!head && (l->kind != SEGMENT_FFN || layer >= f->hparams.n_layers))
        return err_set(err, -EINVAL, "FFN: unexpected segment (kind %d, layer %u)", (int)l->kind, layer);
    struct vk_weights *w = head ? &f->head : &f->layers[layer];
    int r = vk_weights_load(&f->memory, f->queue, &f->staging, l, data, w, err);
    if (r == 0 && !f->said) {
        log_info("vulkan", "weights are %s",
                 w->in_place          ? "used in place: segments are imported"
                 : f->device->unified ? "copied: this driver does not import segments"
                                      : "copied to the device");
        f->said = true;
    }
    if (r == 0 && head) /* what it cannot do is known before the first token, and there is an answer: auto */
        r = ffn_record_head(f, 0, 1, &f->head_commands[0], err);
    if (r == 0 && !head && f->unmeasured) {
        r = find_crossover(f, layer, err);
        f->unmeasured = r < 0;
    }
    return r == 0 && !w->in_place ? FFN_COPIED : r;
}

/* Streamed layers: all are announced before the first is placed, because the buffers that they share must hold the largest. */
static int vulkan_announce(void *b, uint32_t layer, const struct segment_layout *l, const void *data, struct err *err)
{
    struct ffn *f = b;
    if (layer >= f->hparams.n_layers)
        return err_set(err, -EINVAL, "FFN: layer %u does not exist", layer);
    if (!f->streamed && !(f->streamed = calloc(f->hparams.n_layers, sizeof(*f->streamed))))
        return err_set(err, -ENOMEM, "FFN: out of memory");
    f->streamed[layer] = (struct streamed){.layout = *l, .data = data};
    return vk_weights_share(f->device, l, &f->shared, err);
}

static int vulkan_load_streamed(void *b, uint32_t layer, struct err *err)
{
    struct ffn *f = b;
    const struct streamed *s = &f->streamed[layer];
    int r = vk_weights_place(&f->memory, &s->layout, s->data, &f->shared, &f->layers[layer], err);
    if (r == 0 && f->unmeasured) {
        r = find_crossover(f, layer, err);
        f->unmeasured = r < 0;
    }
    return r;
}

static int vulkan_refill(void *b, uint32_t layer, struct err *err)
{
    struct ffn *f = b;
    const struct vk_weights *w = &f->layers[layer];
    if (w->in_place)
        return 0;
    int r = vk_weights_copy(f->queue, &f->staging, &f->streamed[layer].layout, f->streamed[layer].data, w, err);
    return r < 0 ? err_wrap(err, r, "streamed weights of layer %u", layer) : FFN_COPIED;
}

#define TIMED_ENOUGH 0.02 /* seconds: no run need be repeated */

struct timed {
    struct ffn *f;
    uint32_t layer;
};

/* The best of three runs after a first, or the first where that is long. */
static int time_layer(void *ctx, uint32_t tokens, bool by_many, double *ret, struct err *err)
{
    const struct timed *t = ctx;
    struct ffn *f = t->f;
    VkCommandBuffer cmd;
    uint32_t kept = *threshold(f);
    *threshold(f) = by_many ? 1 : VK_CROSSOVER_NEVER;
    int r = ffn_record_layer(f, NULL, t->layer, tokens, &cmd, err);
    *threshold(f) = kept;
    *ret = 0;
    for (int i = 0; r == 0 && i < 4; i++) {
        uint64_t begin = util_now_ns();
        r = vk_run(f->queue, cmd, err);
        double seconds = (double)(util_now_ns() - begin) * 1e-9;
        *ret = i < 2 ? seconds : MIN(*ret, seconds);
        if (i == 0 && seconds > TIMED_ENOUGH)
            break;
    }
    return r;
}

static int find_crossover(struct ffn *f, uint32_t layer, struct err *err)
{
    const struct vk_matrix *m = f->layers[layer].matrices;
    uint32_t tokens = MIN(MIN(f->chunk_tokens, f->group), VK_CROSSOVER_LAST), found = 0;
    while (tokens & (tokens - 1)) /* to a power of two, as all that are measured */
        tokens &= tokens - 1;
    const struct vk_crossover c = {.device = f->device,
                                   .shaders = vk_cache_shaders(f->cache),
                                   .family = f->many == UINT32_MAX ? "tiled" : "cooperative",
                                   .hidden = f->hparams.hidden,
                                   .ffn = f->hparams.ffn,
                                   .types = {m[0].type, m[1].type, m[2].type},
                                   .tokens = tokens,
                                   .fallback = *threshold(f)};
    struct timed t = {f, layer};
    float *rows = f->in.map;
    if (tokens < FEW)
        return 0;
    for (size_t i = 0; i < (size_t)tokens * f->hparams.hidden; i++)
        rows[i] = (float)(i % 251) * 0x1p-7f - 1.0f;
    int r = vk_crossover_find(&c, vk_cache_folder(f->cache), time_layer, &t, &found, err);
    if (r == 0)
        *threshold(f) = found;
    return r < 0 ? err_wrap(err, r, "measuring layer %u", layer) : 0;
}

/* 1, 2, 4 or 8 tokens, or a multiple of 8: rows beyond the real ones are computed and dropped. */
static uint32_t padded(uint32_t n)
{
    uint32_t t = 1;
    while (t < FEW && t < n)
        t *= 2;
    return n <= t ? t : (n + FEW - 1) / FEW * FEW;
}

static int forget(struct ffn *f, struct shape *s, struct err *err)
{
    s->tokens = 0;
    s->used = 0;
    memset(s->layers, 0, f->hparams.n_layers * sizeof(*s->layers));
    return vk_recorder_reset(f->queue, s->recorder, err);
}

static struct shape *least_used(struct ffn *f, uint32_t *ret_sets)
{
    struct shape *least = NULL;
    *ret_sets = 0;
    for (size_t i = 0; i < SHAPES; i++) {
        struct shape *s = &f->shapes[i];
        *ret_sets += vk_recorder_sets(s->recorder);
        if (s->tokens && (!least || s->used < least->used))
            least = s;
    }
    return least;
}

/* Room for the commands of one more number of tokens. */
static int make_shape(struct ffn *f, struct shape **ret, struct err *err)
{
    struct shape *s = NULL, *least;
    uint32_t sets;
    int r = 0;
    while (r == 0 && (least = least_used(f, &sets)) && sets > SETS_MAX)
        r = forget(f, least, err);
    for (size_t i = 0; i < SHAPES && !s; i++)
        s = f->shapes[i].tokens ? NULL : &f->shapes[i];
    if (r == 0 && !s) {
        s = least;
        r = forget(f, s, err);
    }
    if (r == 0 && !s->layers && !(s->layers = calloc(f->hparams.n_layers, sizeof(*s->layers))))
        r = err_set(err, -ENOMEM, "out of memory");
    if (r == 0 && !s->recorder)
        r = vk_recorder_open(f->queue, f->hparams.n_layers, &s->recorder, err);
    *ret = s;
    return r;
}

/* Commands for so many tokens: those that are there, or room for them. */
static int find_shape(struct ffn *f, uint32_t tokens, struct shape **ret, struct err *err)
{
    struct shape *s = NULL;
    for (size_t i = 0; i < SHAPES && !s; i++)
        s = f->shapes[i].tokens == tokens ? &f->shapes[i] : NULL;
    int r = s ? 0 : make_shape(f, &s, err);
    if (r < 0)
        return r;
    s->tokens = tokens;
    s->used = ++f->runs;
    *ret = s;
    return 0;
}

static uint32_t vulkan_dump_most(void *b)
{
    const struct ffn *f = b;
    uint64_t fit = f->staging.bytes / (4 * (uint64_t)MAX(f->hparams.ffn, f->hparams.hidden));
    return (uint32_t)MAX(MIN(fit, (uint64_t)f->group), 1u);
}

/* What a recorded step left in a buffer, for the caller's eyes. */
static int dump_rows(struct ffn *f, const struct vk_buffer *b, const char *name, uint32_t n, uint32_t width, ffn_dump_fn dump,
                     void *ctx, struct err *err)
{
    VkCommandBuffer cmd;
    uint64_t bytes = 4 * (uint64_t)width * n;
    if (bytes > f->staging.bytes)
        return err_set(err, -E2BIG, "dump of '%s': %u rows of %u floats at once; this device takes %llu: give fewer rows", name, n,
                       width, (unsigned long long)(f->staging.bytes / (4 * (uint64_t)width)));
    int r = vk_begin(f->queue, NULL, 0, &cmd, err);
    if (r < 0)
        return r;
    vk_barrier(cmd);
    vk_copy(cmd, b->buffer, 0, f->staging.buffer, 0, bytes);
    r = vk_end(f->queue, cmd, err);
    if (r == 0)
        r = vk_run(f->queue, cmd, err);
    if (r == 0)
        dump(ctx, name, f->staging.map, n, width);
    return r;
}

/* The layer step by step, every intermediate as floats; slow, and recorded anew each time. */
static int dump_layer(struct ffn *f, uint32_t layer, uint32_t n, ffn_dump_fn dump, void *ctx, struct err *err)
{
    const struct hparams *h = &f->hparams;
    VkCommandBuffer cmd;
    if (n > vulkan_dump_most(f))
        return err_set(err, -E2BIG, "dump: %u rows at once; this device takes %u: give fewer rows", n, vulkan_dump_most(f));
    int r = ffn_record_dump(f, layer, n, &cmd, err);
    if (r == 0)
        r = vk_run(f->queue, cmd, err);
    const struct {
        const char *name;
        int buffer;
        uint32_t width;
    } rows[] = {{"pre_ffn_norm", NORM, h->hidden},
                {"gate", GATE, h->ffn},
                {"up", UP, h->ffn},
                {"act", FFN, h->ffn},
                {"down", DOWN, h->hidden}};
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(rows); i++)
        r = dump_rows(f, &f->buffers[rows[i].buffer], rows[i].name, n, rows[i].width, dump, ctx, err);
    if (r < 0)
        return r;
    float *y = f->staging.map; /* x - h: the residual is all that was added */
    const float *x = f->out.map, *in = f->in.map;
    for (size_t i = 0; i < (size_t)n * h->hidden; i++)
        y[i] = x[i] - in[i];
    dump(ctx, "post_ffn_norm", y, n, h->hidden);
    return 0;
}

static int vulkan_run(void *b, uint32_t layer, uint32_t n_tokens, const float *h, float *x, ffn_dump_fn dump, void *dump_ctx,
                      struct err *err)
{
    struct ffn *f = b;
    size_t bytes = (size_t)n_tokens * f->hparams.hidden * sizeof(float);
    uint32_t tokens = padded(n_tokens);
    struct shape *s = NULL;
    if (layer >= f->hparams.n_layers || !f->layers[layer].buffers)
        return err_set(err, -EINVAL, "FFN: layer %u has no weights", layer);
    if (n_tokens == 0 || n_tokens > f->chunk_tokens)
        return err_set(err, -EINVAL, "FFN: chunk of %u tokens; expected 1 to %u", n_tokens, f->chunk_tokens);
    memcpy(f->in.map, h, bytes);
    int r = dump ? dump_layer(f, layer, n_tokens, dump, dump_ctx, err) : find_shape(f, tokens, &s, err);
    if (r == 0 && s && !s->layers[layer])
        r = ffn_record_layer(f, s->recorder, layer, tokens, &s->layers[layer], err);
    if (r == 0 && s)
        r = vk_profile_run(f->profile, f->queue, s->layers[layer], err);
    if (r == 0)
        memcpy(x, f->out.map, bytes);
    return r < 0 ? err_wrap(err, r, "FFN of layer %u", layer) : 0;
}

static int head_rows(struct ffn *f, uint32_t n, const float *x, float *logits, ffn_dump_fn dump, void *dump_ctx, struct err *err)
{
    uint32_t tokens = padded(n), index = (uint32_t)__builtin_ctz(tokens);
    VkCommandBuffer *cmd = &f->head_commands[index];
    int r = 0;
    memcpy(f->in.map, x, (size_t)n * f->hparams.hidden * sizeof(float));
    if (!*cmd)
        r = ffn_record_head(f, index, tokens, cmd, err);
    if (r == 0)
        r = vk_profile_run(f->profile, f->queue, *cmd, err);
    if (r == 0)
        memcpy(logits, f->out_logits.map, (size_t)n * f->hparams.vocab * sizeof(float));
    if (r == 0 && dump)
        r = dump_rows(f, &f->buffers[NORM], "final_norm", n, f->hparams.hidden, dump, dump_ctx, err);
    return r;
}

static int vulkan_head(void *b, uint32_t n_rows, const float *x, float *logits, ffn_dump_fn dump, void *dump_ctx, struct err *err)
{
    struct ffn *f = b;
    int r = 0;
    if (!f->head.buffers)
        return err_set(err, -EINVAL, "head: no weights");
    if (n_rows == 0 || n_rows > f->logits_rows)
        return err_set(err, -EINVAL, "head: %u rows; expected 1 to %u", n_rows, f->logits_rows);
    if (dump && n_rows > f->head_group)
        return err_set(err, -E2BIG, "dump: %u rows at once; this device takes %u", n_rows, f->head_group);
    for (uint32_t at = 0; r == 0 && at < n_rows; at += f->head_group) {
        uint32_t n = MIN(n_rows - at, f->head_group);
        r = head_rows(f, n, x + (size_t)at * f->hparams.hidden, logits + (size_t)at * f->hparams.vocab, dump, dump_ctx, err);
    }
    return r < 0 ? err_wrap(err, r, "output matrix") : 0;
}

static int vulkan_profile(void *b, ffn_line_fn line, void *ctx, struct err *err)
{
    struct ffn *f = b;
    if (vk_idle(f->queue)) /* room for the copy */
        free_buffers(f);
    return vk_profile_print(f->profile, &f->memory, f->cache, line, ctx, err);
}

const struct ffn_backend ffn_vulkan = {.name = "vulkan",
                                       .open = vulkan_open,
                                       .describe = vulkan_describe,
                                       .copies = vulkan_copies,
                                       .load_segment = vulkan_load_segment,
                                       .announce_streamed = vulkan_announce,
                                       .load_streamed = vulkan_load_streamed,
                                       .refill = vulkan_refill,
                                       .dump_most = vulkan_dump_most,
                                       .run = vulkan_run,
                                       .head = vulkan_head,
                                       .profile = vulkan_profile,
                                       .close = vulkan_close};
