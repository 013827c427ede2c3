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
#include "gpu_worker/shaders.h"
#include "gpu_worker/vk_crossover.h"
#include "gpu_worker/vk_profile.h"
#include "gpu_worker/vk_weights.h"
#include "kernels/quant.h"
#include "model/work_plan.h"
#include "proto/budget.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

#define FEW ((uint32_t)WORK_PLAN_VULKAN_GROUP) /* tokens that a matrix-vector shader takes at once */
#define KERNELS_MAX 96
#define MANY_ROWS 256u                                /* what a workgroup of a matrix-matrix shader may write of y at most: rows, */
#define MANY_TOKENS ((uint32_t)WORK_PLAN_VULKAN_TILE) /* tokens */
#define MANY_ROW(blocks) ((4u * (blocks) + 1) * 16)   /* bytes of shared memory of a row or a token, of so many blocks in a step */
#define MANY_SHARED(blocks) (256u * MANY_ROW(blocks)) /* of a workgroup at most */
#define PARTS_MAX 4u                                  /* of a product that is split along its columns to fill the device */
#define COMMANDS (4 + 1024 / FEW)                     /* 1, 2, 4, 8, and whole groups of 8 */
#define MARKS_FEW 12u                                 /* kernels for FEW tokens at most */

struct named_kernel {
    char shader[32];
    uint32_t constants[VK_KERNEL_CONSTANTS], n_constants;
    struct vk_kernel kernel;
};

/* Buffers of `group` tokens. */
enum { X, ACT, NORM, GATE, UP, ACT_FFN, FFN, DOWN, LOGITS, SCALES, HALVES, BUFFERS };

struct ffn {
    struct hparams hparams;
    struct vk_device *device;
    struct vk_memory memory;
    struct vk_cache *cache;
    struct vk_queue *queue;
    struct vk_profile *profile; /* NULL: nobody asked */
    struct named_kernel kernels[KERNELS_MAX];
    uint32_t n_kernels;
    struct vk_buffer staging, in, out, out_logits, buffers[BUFFERS];
    uint32_t chunk_tokens, logits_rows, group; /* group: tokens of one pass through the buffers, a multiple of 8 */
    uint32_t head_group;
    struct vk_weights *layers, head;                                /* [n_layers] */
    VkCommandBuffer (*commands)[COMMANDS], head_commands[COMMANDS]; /* [n_layers] */
    uint32_t many;                 /* from so many tokens on by cooperative matrices; UINT32_MAX: never */
    uint32_t tiled;                /* from so many tokens on by the tiled shaders, where there are none; UINT32_MAX: never */
    bool need_floats, need_quants; /* forms of activations that the file's types take */
    bool said, unmeasured;         /* unmeasured: `many` or `tiled` is to be found with the first layer */
    char name[64];
};

static void free_buffers(struct ffn *f)
{
    for (uint32_t i = 0; f->layers && i < f->hparams.n_layers; i++)
        vk_weights_free(&f->memory, &f->layers[i]);
    vk_weights_free(&f->memory, &f->head);
    struct vk_buffer *own[] = {&f->staging, &f->in, &f->out, &f->out_logits};
    for (size_t i = 0; i < ARRAY_LEN(own); i++)
        vk_buffer_free(&f->memory, own[i]);
    for (size_t i = 0; i < BUFFERS; i++)
        vk_buffer_free(&f->memory, &f->buffers[i]);
}

static void vulkan_close(void *b)
{
    struct ffn *f = b;
    if (!f)
        return;
    vk_profile_close(f->profile);
    vk_queue_close(f->queue);
    for (uint32_t i = 0; f->device && i < f->n_kernels; i++)
        vk_kernel_free(f->device, &f->kernels[i].kernel);
    free_buffers(f);
    vk_cache_close(f->cache);
    vk_device_close(f->device);
    free(f->layers);
    free(f->commands);
    free(f);
}

/* From so many tokens on those for many. */
static uint32_t *threshold(struct ffn *f)
{
    return f->many == UINT32_MAX ? &f->tiled : &f->many;
}

static uint64_t act_bytes(uint32_t n)
{
    return 4 * (uint64_t)shaders_act_words(n);
}

/* Rows of y are padded where cooperative matrices write them. */
static uint32_t padded(const struct ffn *f, uint32_t rows)
{
    return f->many == UINT32_MAX ? rows : (uint32_t)util_round_up(rows, MANY_ROWS);
}

/* Bytes of a buffer for one token. */
static uint64_t token_bytes(const struct ffn *f, int which)
{
    const struct hparams *h = &f->hparams;
    const uint64_t bytes[BUFFERS] = {[X] = 4 * (uint64_t)h->hidden,
                                     [ACT] = act_bytes(h->hidden),
                                     [NORM] = 4 * (uint64_t)h->hidden,
                                     [GATE] = 4 * (uint64_t)padded(f, h->ffn),
                                     [UP] = 4 * (uint64_t)padded(f, h->ffn),
                                     [ACT_FFN] = act_bytes(h->ffn),
                                     [FFN] = 4 * (uint64_t)h->ffn,
                                     [DOWN] = 4 * (uint64_t)padded(f, h->hidden) * (f->many == UINT32_MAX ? 1 : PARTS_MAX),
                                     [LOGITS] = 4 * (uint64_t)h->vocab,
                                     [SCALES] = 4,
                                     [HALVES] = f->many == UINT32_MAX ? 4 : 2 * (uint64_t)MAX(h->hidden, h->ffn)};
    return bytes[which];
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
    uint64_t widest = MAX(token_bytes(f, GATE), act_bytes(h->ffn)), row = 4 * (uint64_t)h->hidden;
    f->group = fitting(f, MAX(MAX(widest, row), token_bytes(f, DOWN)), want);
    if (f->many != UINT32_MAX && f->group < MANY_TOKENS) { /* buffers too small for whole workgroups */
        f->many = UINT32_MAX;
        return make_buffers(f, err);
    }
    f->group = f->group / tile * tile;
    f->head_group = MIN(fitting(f, token_bytes(f, LOGITS), MAX((uint32_t)util_round_up(f->logits_rows, FEW), FEW)), FEW);
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
        r = vk_buffer_make(&f->memory, VK_MEMORY_READBACK, f->head_group * token_bytes(f, LOGITS), "logits", &f->out_logits, err);
    for (int i = 0; r == 0 && i < BUFFERS; i++) {
        uint32_t n = i == LOGITS ? f->head_group : i == ACT || i == NORM ? MAX(f->group, f->head_group) : f->group;
        r = vk_buffer_make(&f->memory, VK_MEMORY_DEVICE, n * token_bytes(f, i), "scratch", &f->buffers[i], err);
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
        fprintf(f, "%s\t%llu\t%s\n", d->unified ? "unified" : "own", (unsigned long long)vk_device_room(d), d->name);
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
    f->commands = calloc(f->hparams.n_layers, sizeof(*f->commands));
    int r = f->layers && f->commands ? 0 : err_set(err, -ENOMEM, "FFN: out of memory");
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
        f->many = vk_has(f->device, VK_FEATURE_COOPMAT) && f->device->max_shared >= MANY_SHARED(1) ? 4 * FEW : UINT32_MAX;
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
    if (r == 0 && !head && f->unmeasured) {
        r = find_crossover(f, layer, err);
        f->unmeasured = r < 0;
    }
    return r;
}

/* The kernel of that name with these constants, made at its first use. */
static int get(struct ffn *f, const char *shader, uint32_t n_bindings, uint32_t push_bytes, const uint32_t *constants, uint32_t n,
               uint32_t subgroup, const struct vk_kernel **ret, struct err *err)
{
    for (uint32_t i = 0; i < f->n_kernels; i++) {
        const struct named_kernel *k = &f->kernels[i];
        if (strcmp(k->shader, shader) == 0 && k->n_constants == n && memcmp(k->constants, constants, 4 * n) == 0) {
            *ret = &k->kernel;
            return 0;
        }
    }
    if (f->n_kernels == KERNELS_MAX)
        return err_set(err, -E2BIG, "vulkan: more than %d kernels", KERNELS_MAX);
    struct named_kernel *k = &f->kernels[f->n_kernels];
    int r = vk_kernel_make(f->device, f->cache, shader, n_bindings, push_bytes, constants, n, subgroup, &k->kernel, err);
    if (r < 0)
        return r;
    snprintf(k->shader, sizeof(k->shader), "%s", shader);
    memcpy(k->constants, constants, 4 * n);
    k->n_constants = n;
    f->n_kernels++;
    *ret = &k->kernel;
    return 0;
}

/* What is being recorded: `tokens` tokens of which the first lies at `at` in the buffers of rows; 0 in all others. */
struct step {
    struct ffn *f;
    VkCommandBuffer cmd;
    struct vk_range from, to; /* rows h and x; whole buffers */
    uint32_t at, tokens;
    struct err *err;
};

static struct vk_range whole(const struct vk_buffer *b)
{
    return (struct vk_range){b->buffer, 0, 0};
}

static void mark(const struct step *s, enum vk_profile_kernel kernel, uint64_t weights, uint64_t rows)
{
    const struct vk_profile_work w = {.weights = weights, .rows = rows};
    vk_profile_mark(s->f->profile, s->cmd, kernel, &w);
}

static uint64_t matrix_bytes(const struct vk_matrix *m)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < m->n_pieces; i++)
        bytes += m->pieces[i].range.bytes;
    return bytes;
}

/* y = m times activations of in_bytes a token. */
static void mark_product(const struct step *s, const struct vk_matrix *m, const struct vk_buffer *y, uint32_t tokens,
                         uint64_t in_bytes, uint32_t parts)
{
    const struct vk_buffer *b = s->f->buffers;
    const struct vk_profile_work w = {.weights = matrix_bytes(m),
                                      .rows = tokens * (in_bytes + 4 * (uint64_t)m->n_rows * parts),
                                      .flops = 2 * (uint64_t)m->n_rows * m->n_cols * tokens};
    vk_profile_mark(s->f->profile, s->cmd,
                    y == &b[GATE]   ? VK_PROFILE_GATE
                    : y == &b[UP]   ? VK_PROFILE_UP
                    : y == &b[DOWN] ? VK_PROFILE_DOWN
                                    : VK_PROFILE_HEAD,
                    &w);
}

static uint32_t threads_for(const struct ffn *f, uint32_t n)
{
    uint32_t t = (uint32_t)util_round_up((n / 4 + 1) / 2, 32);
    return MIN(MAX(t, 32u), f->device->max_threads / 32 * 32);
}

static int norm(const struct step *s, const struct vk_weights *w, bool floats, bool quants)
{
    struct ffn *f = s->f;
    const struct vk_kernel *k;
    uint32_t n = f->hparams.hidden, threads = threads_for(f, n);
    const uint32_t constants[] = {threads, floats, quants, (n / 4 + threads - 1) / threads};
    const struct shaders_norm push = {
        .n = n, .eps = f->hparams.eps, .x_at = s->at * (n / 4), .w_at = w->norm_at[0], .act_stride = shaders_act_words(n) / 4};
    int r =
        get(f, vk_has(f->device, VK_FEATURE_SUBGROUP_SUM) ? "norm" : "norm_plain", 4, sizeof(push), constants, 4, 0, &k, s->err);
    if (r == 0)
        r = vk_dispatch(f->queue, s->cmd, k,
                        (struct vk_range[]){s->from, w->norms[0], whole(&f->buffers[NORM]), whole(&f->buffers[ACT])}, &push,
                        s->tokens, 1, 1, s->err);
    mark(s, VK_PROFILE_NORM, 4 * (uint64_t)n, s->tokens * (4 * (uint64_t)n * (1 + floats) + quants * act_bytes(n)));
    vk_barrier(s->cmd);
    return r;
}

static const char *shader_of(const struct ffn *f, const char *family, int type, char buf[32])
{
    bool plain = quant_is_integer(type) && !vk_has(f->device, VK_FEATURE_INT_DOT);
    snprintf(buf, 32, "%s_%s%s", family, quant_name(type), plain ? "_plain" : "");
    return buf;
}

/* Activations of one form, and how a shader of few tokens steps through them. */
struct acts {
    const struct vk_buffer *quants, *floats;
    uint32_t n;
};

static const struct vk_buffer *acts_of(const struct acts *a, int type, uint32_t *ret_stride)
{
    bool integer = quant_is_integer(type);
    *ret_stride = (integer ? shaders_act_words(a->n) : a->n) / 4;
    return integer ? a->quants : a->floats;
}

static void set_matrix(struct shaders_matvec *push, const struct vk_matrix *m, const struct vk_piece *p)
{
    push->n_rows = p->n_rows;
    push->n_units = push->part_units = quant_is_integer(m->type) ? m->n_cols / QUANT_BLOCK : m->n_cols / 4;
    push->tile_vec4 = m->tile_bytes / 16;
}

/* y[token][row] = m times activations by tiles, of few tokens where there are few: a tile costs the same full or not. */
static int multiply_tiled(const struct step *s, const struct vk_matrix *m, const struct acts *a, const struct vk_buffer *y)
{
    struct ffn *f = s->f;
    const struct vk_kernel *k = NULL;
    char name[32];
    uint32_t n = s->tokens, units = m->n_cols / QUANT_BLOCK, rows = 64, stride;
    uint32_t tokens = n <= 16 ? 16 : n < 128 && util_round_up(n, 32) < util_round_up(n, 64) ? 32 : 64;
    uint32_t fours = tokens == 64 ? 2 : 1; /* of a thread's rows */
    const uint32_t constants[] = {rows * tokens / 16 / fours, rows, tokens, fours, 1};
    const struct vk_buffer *act = acts_of(a, m->type, &stride);
    int r = get(f, shader_of(f, quant_is_integer(m->type) ? "matmul_dot" : "matmul_fma", m->type, name), 3,
                sizeof(struct shaders_matmul), constants, ARRAY_LEN(constants), 0, &k, s->err);
    for (uint32_t i = 0; r == 0 && i < m->n_pieces; i++) {
        const struct vk_piece *p = &m->pieces[i];
        const struct shaders_matmul push = {.n_rows = p->n_rows,
                                            .n_units = units,
                                            .tile_vec4 = m->tile_bytes / 16,
                                            .part_units = units,
                                            .act_stride = stride,
                                            .y_at = p->first_row,
                                            .y_stride = m->n_rows,
                                            .n_tokens = n};
        r = vk_dispatch(f->queue, s->cmd, k, (struct vk_range[]){p->range, whole(act), whole(y)}, &push, (n + tokens - 1) / tokens,
                        (p->n_rows + rows - 1) / rows, 1, s->err);
    }
    mark_product(s, m, y, n, 16 * (uint64_t)stride, 1);
    return r;
}

/* y[token][row] = m times activations, eight tokens at a time. */
static int multiply_few(const struct step *s, const struct vk_matrix *m, const struct acts *a, const struct vk_buffer *y)
{
    struct ffn *f = s->f;
    const struct vk_kernel *k = NULL;
    char name[32];
    int r = 0;
    uint32_t threads = MIN(256u, f->device->max_threads / 32 * 32), stride;
    const struct vk_buffer *act = acts_of(a, m->type, &stride);
    for (uint32_t t = 0, n; r == 0 && t < s->tokens; t += n) {
        n = MIN(s->tokens - t, FEW);
        r = get(f, shader_of(f, "matvec", m->type, name), 3, sizeof(struct shaders_matvec), (uint32_t[]){threads, n, 1, 1}, 4, 0,
                &k, s->err);
        for (uint32_t i = 0; r == 0 && i < m->n_pieces; i++) {
            const struct vk_piece *p = &m->pieces[i];
            struct shaders_matvec push = {
                .act_at = t * stride, .act_stride = stride, .y_at = t * m->n_rows + p->first_row, .y_stride = m->n_rows};
            set_matrix(&push, m, p);
            r = vk_dispatch(f->queue, s->cmd, k, (struct vk_range[]){p->range, whole(act), whole(y)}, &push, (p->n_rows + 15) / 16,
                            1, 1, s->err);
        }
        mark_product(s, m, y, n, 16 * (uint64_t)stride, 1);
    }
    return r;
}

static int multiply(const struct step *s, const struct vk_matrix *m, const struct acts *a, const struct vk_buffer *y)
{
    return s->tokens >= s->f->tiled ? multiply_tiled(s, m, a, y) : multiply_few(s, m, a, y);
}

static bool same_cuts(const struct vk_matrix *a, const struct vk_matrix *b)
{
    return a->type == b->type && a->n_pieces == b->n_pieces && a->tile_bytes == b->tile_bytes;
}

/* gelu(gate) * up in one go, prepared for down where that is of an integer type. */
static int fused(const struct step *s, const struct vk_weights *w)
{
    struct ffn *f = s->f;
    const struct vk_matrix *gate = &w->matrices[0], *up = &w->matrices[1];
    const struct vk_kernel *k = NULL;
    char name[32];
    int r = 0;
    bool quantize = quant_is_integer(w->matrices[2].type);
    uint32_t ffn = f->hparams.ffn, words = shaders_act_words(ffn), stride, threads = MIN(128u, f->device->max_threads / 32 * 32);
    const struct acts a = {&f->buffers[ACT], &f->buffers[NORM], f->hparams.hidden};
    const struct vk_buffer *act = acts_of(&a, gate->type, &stride), *y = &f->buffers[quantize ? ACT_FFN : FFN];
    for (uint32_t t = 0, n; r == 0 && t < s->tokens; t += n) {
        n = MIN(s->tokens - t, FEW);
        r = get(f, shader_of(f, "gate_up", gate->type, name), 4, sizeof(struct shaders_matvec),
                (uint32_t[]){threads, n, 2, quantize}, 4, 0, &k, s->err);
        for (uint32_t i = 0; r == 0 && i < gate->n_pieces; i++) {
            const struct vk_piece *p = &gate->pieces[i];
            uint32_t block = p->first_row / QUANT_BLOCK;
            struct shaders_matvec push = {.act_at = t * stride, .act_stride = stride};
            set_matrix(&push, gate, p);
            push.y_stride = quantize ? words : ffn;
            push.y_at = t * push.y_stride + (quantize ? 8 * block : p->first_row);
            push.pairs_at = t * (words / 2) + ffn / 8 + block;
            r = vk_dispatch(f->queue, s->cmd, k, (struct vk_range[]){p->range, whole(act), whole(y), up->pieces[i].range}, &push,
                            ((p->n_rows + 15) / 16 + 1) / 2, 1, 1, s->err);
        }
        const struct vk_profile_work work = {.weights = matrix_bytes(gate) + matrix_bytes(up),
                                             .rows = n * (16 * (uint64_t)stride + (quantize ? act_bytes(ffn) : 4 * (uint64_t)ffn)),
                                             .flops = 4 * (uint64_t)ffn * gate->n_cols * n};
        vk_profile_mark(f->profile, s->cmd, VK_PROFILE_GATE_UP, &work);
    }
    vk_barrier(s->cmd);
    return r;
}

static int geglu(const struct step *s, bool floats, bool quants, uint32_t stride, bool scaled)
{
    struct ffn *f = s->f;
    const struct vk_kernel *k = NULL;
    uint32_t n = f->hparams.ffn;
    const uint32_t constants[] = {32, floats, quants, scaled};
    const struct shaders_geglu push = {.n = n, .n_parts = 1, .stride = stride / 4, .act_stride = shaders_act_words(n) / 4};
    int r = get(f, "geglu", 5, sizeof(push), constants, 4, 0, &k, s->err);
    if (r == 0)
        r = vk_dispatch(f->queue, s->cmd, k,
                        (struct vk_range[]){whole(&f->buffers[GATE]), whole(&f->buffers[UP]), whole(&f->buffers[FFN]),
                                            whole(&f->buffers[ACT_FFN]), whole(&f->buffers[SCALES])},
                        &push, (n / 32 + 31) / 32, s->tokens, 1, s->err);
    mark(s, VK_PROFILE_GEGLU, 0, s->tokens * (4 * (uint64_t)n * (2 + floats) + quants * act_bytes(n)));
    vk_barrier(s->cmd);
    return r;
}

static int gate_up_apart(const struct step *s, const struct vk_weights *w, bool both_forms)
{
    struct ffn *f = s->f;
    const struct acts a = {&f->buffers[ACT], &f->buffers[NORM], f->hparams.hidden};
    bool integer = quant_is_integer(w->matrices[2].type);
    int r = multiply(s, &w->matrices[0], &a, &f->buffers[GATE]);
    if (r == 0)
        r = multiply(s, &w->matrices[1], &a, &f->buffers[UP]);
    vk_barrier(s->cmd);
    return r < 0 ? r : geglu(s, both_forms || !integer, both_forms || integer, f->hparams.ffn, false);
}

static int down(const struct step *s, const struct vk_weights *w)
{
    struct ffn *f = s->f;
    const struct acts a = {&f->buffers[ACT_FFN], &f->buffers[FFN], f->hparams.ffn};
    int r = multiply(s, &w->matrices[2], &a, &f->buffers[DOWN]);
    vk_barrier(s->cmd);
    return r;
}

/* Activations as f16 and the power of two by which each token was divided. */
static int scale(const struct step *s, const struct acts *a, int type)
{
    struct ffn *f = s->f;
    const struct vk_kernel *k = NULL;
    bool floats = !quant_is_integer(type);
    uint32_t stride;
    const struct vk_buffer *act = acts_of(a, type, &stride);
    const uint32_t constants[] = {MIN(256u, f->device->max_threads), floats};
    const struct shaders_scale push = {.n = a->n, .act_stride = stride};
    int r = get(f, "scale", 3, sizeof(push), constants, 2, 0, &k, s->err);
    if (r == 0)
        r = vk_dispatch(f->queue, s->cmd, k,
                        (struct vk_range[]){whole(act), whole(&f->buffers[SCALES]), whole(&f->buffers[HALVES])}, &push, s->tokens,
                        1, 1, s->err);
    mark(s, VK_PROFILE_SCALE, 0, s->tokens * (16 * (uint64_t)stride + 4 + 2 * (uint64_t)a->n));
    vk_barrier(s->cmd);
    return r;
}

/* Parts that fill a large device: about two workgroups for each of its units, which it does not tell. */
static uint32_t parts_for(uint32_t rows, uint32_t tokens, uint32_t units)
{
    uint32_t groups = (rows + 127) / 128 * ((tokens + MANY_TOKENS - 1) / MANY_TOKENS), parts = 1;
    while (parts < PARTS_MAX && groups * parts < 128 && units / (parts + 1) >= 16)
        parts++;
    return parts;
}

/* y[part][token][padded row] by cooperative matrices, of what scale() left; to be multiplied by the token's scale. */
static int multiply_many(const struct step *s, const struct vk_matrix *m, const struct vk_buffer *y, uint32_t parts)
{
    struct ffn *f = s->f;
    const struct vk_kernel *k = NULL;
    char name[32];
    const uint32_t blocks = f->device->max_shared >= MANY_SHARED(2) ? 2 : 1, rows = 128;
    const uint32_t constants[] = {128, rows, MANY_TOKENS, 64, 64, blocks};
    uint32_t tiles = (s->tokens + MANY_TOKENS - 1) / MANY_TOKENS, width = padded(f, m->n_rows), units = m->n_cols / QUANT_BLOCK;
    snprintf(name, sizeof(name), "matmul_cm_%s", quant_name(m->type));
    int r =
        get(f, name, 3, sizeof(struct shaders_matmul), constants, ARRAY_LEN(constants), f->device->coopmat_subgroup, &k, s->err);
    for (uint32_t i = 0; r == 0 && i < m->n_pieces; i++) {
        const struct vk_piece *p = &m->pieces[i];
        const struct shaders_matmul push = {.n_rows = p->n_rows,
                                            .n_units = units,
                                            .tile_vec4 = m->tile_bytes / 16,
                                            .part_units = (uint32_t)util_round_up((units + parts - 1) / parts, blocks),
                                            .act_stride = m->n_cols / 8,
                                            .y_at = p->first_row,
                                            .y_stride = width,
                                            .y_part = width * tiles * MANY_TOKENS,
                                            .n_tokens = s->tokens};
        r = vk_dispatch(f->queue, s->cmd, k, (struct vk_range[]){p->range, whole(&f->buffers[HALVES]), whole(y)}, &push, tiles,
                        (p->n_rows + rows - 1) / rows, parts, s->err);
    }
    mark_product(s, m, y, s->tokens, 2 * (uint64_t)m->n_cols, parts);
    return r;
}

/* Both take activations of one form, so that one set of scales serves both. */
static bool alike(const struct vk_weights *w)
{
    return quant_is_integer(w->matrices[0].type) == quant_is_integer(w->matrices[1].type);
}

/* Gate, up, GeGLU and down for many tokens; ret: parts that down left. */
static int many(const struct step *s, const struct vk_weights *w, uint32_t *ret_parts)
{
    struct ffn *f = s->f;
    const struct hparams *h = &f->hparams;
    const struct acts in = {&f->buffers[ACT], &f->buffers[NORM], h->hidden}, out = {&f->buffers[ACT_FFN], &f->buffers[FFN], h->ffn};
    bool integer = quant_is_integer(w->matrices[2].type);
    int r = scale(s, &in, w->matrices[0].type);
    if (r == 0)
        r = multiply_many(s, &w->matrices[0], &f->buffers[GATE], 1);
    if (r == 0)
        r = multiply_many(s, &w->matrices[1], &f->buffers[UP], 1);
    vk_barrier(s->cmd);
    if (r == 0)
        r = geglu(s, !integer, integer, padded(f, h->ffn), true);
    if (r == 0)
        r = scale(s, &out, w->matrices[2].type);
    *ret_parts = parts_for(h->hidden, s->tokens, h->ffn / QUANT_BLOCK);
    if (r == 0)
        r = multiply_many(s, &w->matrices[2], &f->buffers[DOWN], *ret_parts);
    vk_barrier(s->cmd);
    return r;
}

/* parts 0: down was made for few tokens, whole and without scales. */
static int post(const struct step *s, const struct vk_weights *w, uint32_t parts)
{
    struct ffn *f = s->f;
    const struct vk_kernel *k = NULL;
    uint32_t n = f->hparams.hidden, threads = threads_for(f, n);
    const uint32_t constants[] = {threads, (n / 4 + threads - 1) / threads, parts > 0};
    const uint32_t width = parts ? padded(f, n) : n;
    const struct shaders_post push = {.n = n,
                                      .eps = f->hparams.eps,
                                      .n_parts = MAX(parts, 1u),
                                      .x_part = width / 4 * (uint32_t)util_round_up(s->tokens, MANY_TOKENS),
                                      .x_stride = width / 4,
                                      .w_at = w->norm_at[1],
                                      .r_at = s->at * (n / 4),
                                      .y_at = s->at * (n / 4)};
    int r =
        get(f, vk_has(f->device, VK_FEATURE_SUBGROUP_SUM) ? "post" : "post_plain", 5, sizeof(push), constants, 3, 0, &k, s->err);
    if (r == 0)
        r = vk_dispatch(f->queue, s->cmd, k,
                        (struct vk_range[]){whole(&f->buffers[DOWN]), w->norms[1], s->from, s->to, whole(&f->buffers[SCALES])},
                        &push, s->tokens, 1, 1, s->err);
    mark(s, VK_PROFILE_POST, 4 * (uint64_t)n, s->tokens * 4 * (uint64_t)n * (MAX(parts, 1u) + 2));
    vk_barrier(s->cmd);
    return r;
}

/* Rows in device memory for a device that has its own; elsewhere the mapped ones. */
static int bring(struct step *s, uint32_t tokens)
{
    struct ffn *f = s->f;
    uint64_t row = 4 * (uint64_t)f->hparams.hidden;
    if (f->device->unified || tokens > f->group) {
        s->from = whole(&f->in);
        return 0;
    }
    vk_copy(s->cmd, f->in.buffer, 0, f->buffers[X].buffer, 0, tokens * row);
    mark(s, VK_PROFILE_COPY, 0, 2 * tokens * row);
    vk_barrier(s->cmd);
    s->from = whole(&f->buffers[X]);
    return 0;
}

static int record_layer(struct ffn *f, uint32_t layer, uint32_t tokens, VkCommandBuffer *ret, struct err *err)
{
    const struct vk_weights *w = &f->layers[layer];
    struct step s = {.f = f, .to = whole(&f->out), .err = err};
    bool fuse = same_cuts(&w->matrices[0], &w->matrices[1]);
    int r = vk_begin(f->queue, &s.cmd, err);
    if (r == 0)
        r = vk_profile_begin(f->profile, s.cmd, err);
    if (r == 0)
        r = bring(&s, tokens);
    for (s.at = 0; r == 0 && s.at < tokens; s.at += s.tokens) {
        s.tokens = MIN(tokens - s.at, f->group);
        r = norm(&s, w, f->need_floats, f->need_quants);
        uint32_t parts = 0;
        if (r == 0 && s.tokens >= f->many && alike(w)) {
            r = many(&s, w, &parts);
        } else if (r == 0) {
            r = fuse && s.tokens < f->tiled ? fused(&s, w) : gate_up_apart(&s, w, false);
            r = r == 0 ? down(&s, w) : r;
        }
        if (r == 0)
            r = post(&s, w, parts);
    }
    if (r == 0)
        r = vk_end(f->queue, s.cmd, err);
    if (r == 0)
        *ret = s.cmd;
    return r;
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
    int r = record_layer(f, t->layer, tokens, &cmd, err);
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
static uint32_t shape_of(uint32_t n, uint32_t *ret_index)
{
    for (uint32_t i = 0, t = 1; t < FEW; i++, t *= 2) {
        if (n <= t) {
            *ret_index = i;
            return t;
        }
    }
    *ret_index = 2 + (n + FEW - 1) / FEW;
    return (n + FEW - 1) / FEW * FEW;
}

/* What a recorded step left in a buffer, for the caller's eyes. */
static int dump_rows(struct ffn *f, const struct vk_buffer *b, const char *name, uint32_t n, uint32_t width, ffn_dump_fn dump,
                     void *ctx, struct err *err)
{
    VkCommandBuffer cmd;
    uint64_t bytes = 4 * (uint64_t)width * n;
    if (bytes > f->staging.bytes)
        return err_set(err, -E2BIG, "dump of '%s': %u rows of %u floats at once; this device takes %llu", name, n, width,
                       (unsigned long long)(f->staging.bytes / (4 * (uint64_t)width)));
    int r = vk_begin(f->queue, &cmd, err);
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
    const struct vk_weights *w = &f->layers[layer];
    const struct hparams *h = &f->hparams;
    struct step s = {.f = f, .to = whole(&f->out), .tokens = n, .err = err};
    if (n > f->group)
        return err_set(err, -E2BIG, "dump: %u rows at once; this device takes %u", n, f->group);
    int r = vk_begin(f->queue, &s.cmd, err);
    if (r == 0)
        r = bring(&s, n);
    if (r == 0)
        r = norm(&s, w, true, f->need_quants);
    if (r == 0)
        r = gate_up_apart(&s, w, true);
    if (r == 0)
        r = down(&s, w);
    if (r == 0)
        r = post(&s, w, 0);
    if (r == 0)
        r = vk_end(f->queue, s.cmd, err);
    if (r == 0)
        r = vk_run(f->queue, s.cmd, err);
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
    uint32_t index, tokens = shape_of(n_tokens, &index);
    if (layer >= f->hparams.n_layers || !f->layers[layer].buffers)
        return err_set(err, -EINVAL, "FFN: layer %u has no weights", layer);
    if (n_tokens == 0 || n_tokens > f->chunk_tokens)
        return err_set(err, -EINVAL, "FFN: chunk of %u tokens; expected 1 to %u", n_tokens, f->chunk_tokens);
    VkCommandBuffer *cmd = &f->commands[layer][index];
    int r = 0;
    memcpy(f->in.map, h, bytes);
    if (dump)
        r = dump_layer(f, layer, n_tokens, dump, dump_ctx, err);
    else if (!*cmd)
        r = record_layer(f, layer, tokens, cmd, err);
    if (r == 0 && !dump)
        r = vk_profile_run(f->profile, f->queue, *cmd, err);
    if (r == 0)
        memcpy(x, f->out.map, bytes);
    return r < 0 ? err_wrap(err, r, "FFN of layer %u", layer) : 0;
}

static int record_head(struct ffn *f, uint32_t tokens, VkCommandBuffer *ret, struct err *err)
{
    const struct vk_matrix *m = &f->head.matrices[0];
    const struct acts a = {&f->buffers[ACT], &f->buffers[NORM], f->hparams.hidden};
    struct step s = {.f = f, .tokens = tokens, .err = err};
    bool integer = quant_is_integer(m->type);
    int r = vk_begin(f->queue, &s.cmd, err);
    if (r == 0)
        r = vk_profile_begin(f->profile, s.cmd, err);
    if (r == 0)
        r = bring(&s, tokens);
    if (r == 0)
        r = norm(&s, &f->head, true, integer);
    if (r == 0)
        r = multiply_few(&s, m, &a, f->device->unified ? &f->out_logits : &f->buffers[LOGITS]);
    vk_barrier(s.cmd);
    if (r == 0 && !f->device->unified) {
        vk_copy(s.cmd, f->buffers[LOGITS].buffer, 0, f->out_logits.buffer, 0, tokens * token_bytes(f, LOGITS));
        mark(&s, VK_PROFILE_COPY, 0, 2 * tokens * token_bytes(f, LOGITS));
    }
    if (r == 0)
        r = vk_end(f->queue, s.cmd, err);
    if (r == 0)
        *ret = s.cmd;
    return r;
}

static int head_rows(struct ffn *f, uint32_t n, const float *x, float *logits, ffn_dump_fn dump, void *dump_ctx, struct err *err)
{
    uint32_t index, tokens = shape_of(n, &index);
    VkCommandBuffer *cmd = &f->head_commands[index];
    int r = 0;
    memcpy(f->in.map, x, (size_t)n * f->hparams.hidden * sizeof(float));
    if (!*cmd)
        r = record_head(f, tokens, cmd, err);
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
                                       .load_segment = vulkan_load_segment,
                                       .run = vulkan_run,
                                       .head = vulkan_head,
                                       .profile = vulkan_profile,
                                       .close = vulkan_close};
