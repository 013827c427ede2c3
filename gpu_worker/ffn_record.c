/* SPDX-License-Identifier: MIT
 * Which kernels a layer and the head take, for each number of tokens: few by matrix-vector shaders in groups of eight, many by
 * cooperative matrices or by tiles. Owns nothing: kernels and commands belong to struct ffn. Any one thread. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "gpu_worker/ffn_vulkan.h"
#include "gpu_worker/shaders.h"
#include "gpu_worker/vk_profile.h"
#include "kernels/quant.h"
#include "proto/err.h"
#include "proto/util.h"

uint64_t ffn_record_act_bytes(uint32_t n)
{
    return 4 * (uint64_t)shaders_act_words(n);
}

/* Rows of y are padded where cooperative matrices write them. */
uint32_t ffn_record_padded(const struct ffn *f, uint32_t rows)
{
    return f->many == UINT32_MAX ? rows : (uint32_t)util_round_up(rows, MANY_ROWS);
}

/* Bytes of a buffer for one token. */
uint64_t ffn_record_token_bytes(const struct ffn *f, int which)
{
    const struct hparams *h = &f->hparams;
    bool apart = f->many == UINT32_MAX;
    uint64_t parts = apart ? 1 : PARTS_MAX, wide = apart ? 1 : PARTS_WIDE;
    const uint64_t bytes[BUFFERS] = {[X] = 4 * (uint64_t)h->hidden,
                                     [ACT] = ffn_record_act_bytes(h->hidden),
                                     [NORM] = 4 * (uint64_t)h->hidden,
                                     [GATE] = 4 * (uint64_t)ffn_record_padded(f, h->ffn) * wide,
                                     [UP] = 4 * (uint64_t)ffn_record_padded(f, h->ffn) * wide,
                                     [ACT_FFN] = ffn_record_act_bytes(h->ffn),
                                     [FFN] = 4 * (uint64_t)h->ffn,
                                     [DOWN] = 4 * (uint64_t)ffn_record_padded(f, h->hidden) * parts,
                                     [LOGITS] = 4 * (uint64_t)h->vocab,
                                     [SCALES] = 4,
                                     [HALVES] = apart ? 4 : 2 * ((uint64_t)MAX(h->hidden, h->ffn) + MANY_PAD)};
    return bytes[which];
}

/* The kernel of that name with these constants, made at its first use. */
static int get(struct ffn *f, const char *shader, uint32_t n_bindings, uint32_t push_bytes, const uint32_t *constants, uint32_t n,
               uint32_t subgroup, const struct vk_kernel **ret, struct err *err)
{
    for (uint32_t i = 0; i < f->n_kernels; i++) {
        const struct named_kernel *k = f->kernels[i];
        if (strcmp(k->shader, shader) == 0 && k->n_constants == n && memcmp(k->constants, constants, 4 * n) == 0) {
            *ret = &k->kernel;
            return 0;
        }
    }
    if (f->n_kernels == KERNELS_MAX)
        return err_set(err, -E2BIG, "vulkan: more than %d kernels", KERNELS_MAX);
    struct named_kernel *k = calloc(1, sizeof(*k));
    if (!k)
        return err_set(err, -ENOMEM, "vulkan: out of memory");
    int r = vk_kernel_make(f->device, f->cache, shader, n_bindings, push_bytes, constants, n, subgroup, &k->kernel, err);
    if (r < 0) {
        free(k);
        return r;
    }
    snprintf(k->shader, sizeof(k->shader), "%s", shader);
    memcpy(k->constants, constants, 4 * n);
    k->n_constants = n;
    f->kernels[f->n_kernels++] = k;
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

uint32_t ffn_record_norm_shared(const struct ffn *f)
{
    uint32_t n = f->hparams.hidden, threads = threads_for(f, n), hold = (n / 4 + threads - 1) / threads;
    return (2 * hold + 1) * threads * 4;
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
    mark(s, VK_PROFILE_NORM, 4 * (uint64_t)n, s->tokens * (4 * (uint64_t)n * (1 + floats) + quants * ffn_record_act_bytes(n)));
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
        const struct vk_profile_work work = {
            .weights = matrix_bytes(gate) + matrix_bytes(up),
            .rows = n * (16 * (uint64_t)stride + (quantize ? ffn_record_act_bytes(ffn) : 4 * (uint64_t)ffn)),
            .flops = 4 * (uint64_t)ffn * gate->n_cols * n};
        vk_profile_mark(f->profile, s->cmd, VK_PROFILE_GATE_UP, &work);
    }
    vk_barrier(s->cmd);
    return r;
}

/* parts 0: gate and up were made for few tokens, whole and without scales. */
static int geglu(const struct step *s, bool floats, bool quants, uint32_t stride, uint32_t parts)
{
    struct ffn *f = s->f;
    const struct vk_kernel *k = NULL;
    uint32_t n = f->hparams.ffn;
    const uint32_t constants[] = {32, floats, quants, parts > 0};
    const struct shaders_geglu push = {.n = n,
                                       .n_parts = MAX(parts, 1u),
                                       .part = stride / 4 * (uint32_t)util_round_up(s->tokens, MANY_TOKENS),
                                       .stride = stride / 4,
                                       .act_stride = shaders_act_words(n) / 4};
    int r = get(f, "geglu", 5, sizeof(push), constants, 4, 0, &k, s->err);
    if (r == 0)
        r = vk_dispatch(f->queue, s->cmd, k,
                        (struct vk_range[]){whole(&f->buffers[GATE]), whole(&f->buffers[UP]), whole(&f->buffers[FFN]),
                                            whole(&f->buffers[ACT_FFN]), whole(&f->buffers[SCALES])},
                        &push, (n / 32 + 31) / 32, s->tokens, 1, s->err);
    mark(s, VK_PROFILE_GEGLU, 0, s->tokens * (4 * (uint64_t)n * (2 * MAX(parts, 1u) + floats) + quants * ffn_record_act_bytes(n)));
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
    return r < 0 ? r : geglu(s, both_forms || !integer, both_forms || integer, f->hparams.ffn, 0);
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
    const struct shaders_scale push = {.n = a->n, .act_stride = stride, .n_padded = a->n + MANY_PAD};
    int r = get(f, "scale", 3, sizeof(push), constants, 2, 0, &k, s->err);
    if (r == 0)
        r = vk_dispatch(f->queue, s->cmd, k,
                        (struct vk_range[]){whole(act), whole(&f->buffers[SCALES]), whole(&f->buffers[HALVES])}, &push, s->tokens,
                        1, 1, s->err);
    mark(s, VK_PROFILE_SCALE, 0, s->tokens * (16 * (uint64_t)stride + 4 + 2 * (uint64_t)a->n));
    vk_barrier(s->cmd);
    return r;
}

/* A workgroup of matmul_cm_T. */
struct tile {
    uint32_t threads, rows, halves; /* halves: sixteens of columns of a step */
};

/* The first that the device has room for; of 64 rows x 64 tokens a subgroup. In bench/README: how they compare. */
static bool tile_of(const struct vk_device *d, struct tile *ret)
{
    static const struct tile tiles[] = {{256, 256, 3}, {128, 128, 4}, {128, 128, 2}, {128, 128, 1}};
    for (size_t i = 0; i < ARRAY_LEN(tiles); i++) {
        const struct tile *t = &tiles[i];
        /* A row of integer weights or of activations is a little longer than its columns, the columns of float weights than theirs
         */
        uint32_t row = (2 * t->halves | 1) * 16, a = MAX(t->rows * row, 16 * t->halves * (t->rows / 8 + 1) * 16);
        *ret = *t;
        if (d->max_threads >= t->threads && d->max_shared >= a + MANY_TOKENS * row)
            return true;
    }
    return false;
}

bool ffn_record_has_tile(const struct vk_device *d)
{
    struct tile t;
    return tile_of(d, &t);
}

/* Parts that leave fewest of the device's units idle, of so many matrices that are multiplied at the same time. A workgroup of the
 * large tile fills a unit; of a device that does not tell its units we want 128 workgroups. Each part is one more sum to read. */
static uint32_t parts_for(const struct ffn *f, uint32_t rows, uint32_t tokens, uint32_t units, uint32_t matrices, uint32_t most)
{
    struct tile t;
    tile_of(f->device, &t);
    uint32_t groups = matrices * ((rows + t.rows - 1) / t.rows) * ((tokens + MANY_TOKENS - 1) / MANY_TOKENS), parts = 1;
    uint32_t n = f->device->n_units;
    double best = 0;
    for (uint32_t p = 1; p <= most && (p == 1 || units / p >= 16); p++) {
        double rounds = n ? (double)((groups * p + n - 1) / n) : groups * p < 128 ? 1 : (double)(groups * p) / 128;
        double cost = rounds / p + 0.02 * p;
        if (p == 1 || cost < best) {
            best = cost;
            parts = p;
        }
    }
    return parts;
}

/* y[part][token][padded row] by cooperative matrices, of what scale() left; to be multiplied by the token's scale. */
static int multiply_many(const struct step *s, const struct vk_matrix *m, const struct vk_buffer *y, uint32_t parts)
{
    struct ffn *f = s->f;
    const struct vk_kernel *k = NULL;
    char name[32];
    struct tile t;
    tile_of(f->device, &t);
    const uint32_t constants[] = {t.threads, t.rows, MANY_TOKENS, 64, 64, t.halves};
    uint32_t tiles = (s->tokens + MANY_TOKENS - 1) / MANY_TOKENS, width = ffn_record_padded(f, m->n_rows),
             units = m->n_cols / QUANT_BLOCK;
    snprintf(name, sizeof(name), "matmul_%s_%s", f->device->coopmat_plain ? "plain" : "cm", quant_name(m->type));
    int r =
        get(f, name, 3, sizeof(struct shaders_matmul), constants, ARRAY_LEN(constants), f->device->coopmat_subgroup, &k, s->err);
    for (uint32_t i = 0; r == 0 && i < m->n_pieces; i++) {
        const struct vk_piece *p = &m->pieces[i];
        const struct shaders_matmul push = {.n_rows = p->n_rows,
                                            .n_units = units,
                                            .tile_vec4 = m->tile_bytes / 16,
                                            .part_units = (uint32_t)util_round_up((2 * units + parts - 1) / parts, t.halves),
                                            .act_stride = s->tokens,
                                            .y_at = p->first_row,
                                            .y_stride = width,
                                            .y_part = width * tiles * MANY_TOKENS,
                                            .n_tokens = s->tokens};
        r = vk_dispatch(f->queue, s->cmd, k, (struct vk_range[]){p->range, whole(&f->buffers[HALVES]), whole(y)}, &push, tiles,
                        (p->n_rows + t.rows - 1) / t.rows, parts, s->err);
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
    uint32_t parts = parts_for(f, h->ffn, s->tokens, h->hidden / QUANT_BLOCK, 2, PARTS_WIDE);
    int r = scale(s, &in, w->matrices[0].type);
    if (r == 0)
        r = multiply_many(s, &w->matrices[0], &f->buffers[GATE], parts);
    if (r == 0)
        r = multiply_many(s, &w->matrices[1], &f->buffers[UP], parts);
    vk_barrier(s->cmd);
    if (r == 0)
        r = geglu(s, !integer, integer, ffn_record_padded(f, h->ffn), parts);
    if (r == 0)
        r = scale(s, &out, w->matrices[2].type);
    *ret_parts = parts_for(f, h->hidden, s->tokens, h->ffn / QUANT_BLOCK, 1, PARTS_MAX);
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
    const uint32_t width = parts ? ffn_record_padded(f, n) : n;
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

int ffn_record_layer(struct ffn *f, struct vk_recorder *rec, uint32_t layer, uint32_t tokens, VkCommandBuffer *ret, struct err *err)
{
    const struct vk_weights *w = &f->layers[layer];
    struct step s = {.f = f, .to = whole(&f->out), .err = err};
    bool fuse = same_cuts(&w->matrices[0], &w->matrices[1]);
    int r = vk_begin(f->queue, rec, layer, &s.cmd, err);
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

int ffn_record_dump(struct ffn *f, uint32_t layer, uint32_t tokens, VkCommandBuffer *ret, struct err *err)
{
    const struct vk_weights *w = &f->layers[layer];
    struct step s = {.f = f, .to = whole(&f->out), .tokens = tokens, .err = err};
    int r = vk_begin(f->queue, NULL, 0, &s.cmd, err);
    if (r == 0)
        r = bring(&s, tokens);
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
        *ret = s.cmd;
    return r;
}

int ffn_record_head(struct ffn *f, uint32_t index, uint32_t tokens, VkCommandBuffer *ret, struct err *err)
{
    const struct vk_matrix *m = &f->head.matrices[0];
    const struct acts a = {&f->buffers[ACT], &f->buffers[NORM], f->hparams.hidden};
    struct step s = {.f = f, .tokens = tokens, .err = err};
    bool integer = quant_is_integer(m->type);
    int r = vk_begin(f->queue, f->head_recorder, index, &s.cmd, err);
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
        vk_copy(s.cmd, f->buffers[LOGITS].buffer, 0, f->out_logits.buffer, 0, tokens * ffn_record_token_bytes(f, LOGITS));
        mark(&s, VK_PROFILE_COPY, 0, 2 * tokens * ffn_record_token_bytes(f, LOGITS));
    }
    if (r == 0)
        r = vk_end(f->queue, s.cmd, err);
    if (r == 0)
        *ret = s.cmd;
    return r;
}
