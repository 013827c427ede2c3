/* SPDX-License-Identifier: MIT
 * The FFN of whole layers for a few tokens, as the worker will record it: norm with preparation, gate and up with GeGLU and
 * preparation, down in parts, post norm with residual; one command buffer over several layers of distinct weights. Measured in
 * variants of the workgroups, then once more with a time stamp after each operation. */
#include <stdio.h>
#include <string.h>

#include "bench/vulkan/data.h"
#include "bench/vulkan/speed.h"
#include "gpu_worker/shaders.h"
#include "kernels/quant.h"
#include "kernels/repack.h"
#include "proto/util.h"

#define MAX_LAYERS 64
#define OPERATIONS 5
#define MAX_TOKENS 8

enum fusion { FUSED_QUANTIZED, FUSED_FLOAT, APART };
static const char *const fusions[] = {"gate_up quantizing", "gate_up, then prepared", "gate and up apart"};

struct chain {
    const struct speed_options *o;
    struct device *d;
    struct speed_weights gate, up, down;
    struct buffer x, norm, act, product, product2, act_down, y; /* x: tokens, in place */
    uint32_t tokens;
};

struct plan {
    enum fusion fusion;
    uint32_t norm_threads, post_threads, geglu_threads;
    uint32_t gate[4], down[4]; /* threads, slots, tiles, parts */
    struct pipeline p_norm, p_gate, p_geglu, p_down, p_post;
};

static uint32_t hold(const struct chain *c, uint32_t threads)
{
    return (c->o->hidden / 4 + threads - 1) / threads;
}

static void plan_open(struct chain *c, struct plan *p)
{
    struct device *d = c->d;
    char name[64];
    const char *type = quant_name(c->gate.type), *plain = d->int_dot ? "" : "_plain";
    uint32_t matvec = sizeof(struct shaders_matvec);
    p->p_norm = device_pipeline(d, "norm", 4, sizeof(struct shaders_norm),
                                (uint32_t[]){p->norm_threads, 0, 1, hold(c, p->norm_threads)}, 4);
    p->p_post =
        device_pipeline(d, "post", 5, sizeof(struct shaders_post), (uint32_t[]){p->post_threads, hold(c, p->post_threads), 0}, 3);
    snprintf(name, sizeof(name), "matvec_%s%s", type, plain);
    p->p_down = device_pipeline(d, name, 3, matvec, (uint32_t[]){p->down[0], c->tokens, p->down[1], p->down[2]}, 4);
    if (p->fusion == APART)
        p->p_gate = device_pipeline(d, name, 3, matvec, (uint32_t[]){p->gate[0], c->tokens, p->gate[1], p->gate[2]}, 4);
    snprintf(name, sizeof(name), "gate_up_%s%s", type, plain);
    if (p->fusion != APART)
        p->p_gate =
            device_pipeline(d, name, 4, matvec, (uint32_t[]){p->gate[0], c->tokens, p->gate[1], p->fusion == FUSED_QUANTIZED}, 4);
    p->p_geglu = device_pipeline(d, "geglu", 5, sizeof(struct shaders_geglu), (uint32_t[]){p->geglu_threads, 0, 1, 0}, 4);
}

static void plan_close(struct device *d, struct plan *p)
{
    struct pipeline *all[] = {&p->p_norm, &p->p_gate, &p->p_geglu, &p->p_down, &p->p_post};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        device_free_pipeline(d, all[i]);
}

static void operation(struct device *d, const struct pipeline *p, const struct range *r, const void *push, uint32_t x, uint32_t y)
{
    device_dispatch(d, p, device_set(d, p, r), push, x, y);
}

static struct range weights_of(const struct speed_weights *w, uint32_t layer)
{
    return (struct range){&w->buffer, layer % w->n * w->bytes, w->bytes};
}

static void record_gate(struct chain *c, const struct plan *p, uint32_t layer)
{
    const struct speed_options *o = c->o;
    uint32_t n_tiles = c->gate.rows / 16, parts = p->fusion == APART ? p->gate[3] : 1;
    uint32_t each = p->gate[1] * (p->fusion == APART ? p->gate[2] : 1), words = shaders_act_words(o->ffn);
    struct shaders_matvec g = {.n_rows = o->ffn,
                               .n_units = c->gate.units,
                               .tile_vec4 = c->gate.tile_vec4,
                               .part_units = (c->gate.units + parts - 1) / parts,
                               .act_stride = shaders_act_words(o->hidden) / 4,
                               .y_stride = p->fusion == FUSED_QUANTIZED ? words : o->ffn,
                               .y_part = o->ffn * c->tokens,
                               .pairs_at = o->ffn / 8};
    const struct buffer *out = p->fusion == FUSED_QUANTIZED ? &c->act_down : &c->product;
    operation(c->d, &p->p_gate,
              (struct range[]){weights_of(&c->gate, layer), {&c->act, 0, 0}, {out, 0, 0}, weights_of(&c->up, layer)}, &g,
              (n_tiles + each - 1) / each, parts);
    if (p->fusion == APART)
        operation(c->d, &p->p_gate, (struct range[]){weights_of(&c->up, layer), {&c->act, 0, 0}, {&c->product2, 0, 0}}, &g,
                  (n_tiles + each - 1) / each, parts);
}

/* stamps: NULL, or one per operation. */
static void record(struct chain *c, const struct plan *p, uint32_t layer, uint32_t *stamps)
{
    const struct speed_options *o = c->o;
    struct device *d = c->d;
    uint32_t words = shaders_act_words(o->ffn), parts = p->down[3], each = p->down[1] * p->down[2], s = 0;
    struct shaders_norm n = {.n = o->hidden, .eps = 1e-6f, .act_stride = shaders_act_words(o->hidden) / 4};
    operation(d, &p->p_norm, (struct range[]){{&c->x, 0, 0}, {&c->norm, 0, 0}, {&c->product, 0, 0}, {&c->act, 0, 0}}, &n, c->tokens,
              1);
    device_barrier(d);
    if (stamps)
        stamps[s++] = device_stamp(d);
    record_gate(c, p, layer);
    device_barrier(d);
    if (stamps)
        stamps[s++] = device_stamp(d);
    if (p->fusion != FUSED_QUANTIZED) {
        struct shaders_geglu g = {.n = o->ffn,
                                  .n_parts = p->fusion == APART ? p->gate[3] : 1,
                                  .part = o->ffn * c->tokens / 4,
                                  .stride = o->ffn / 4,
                                  .act_stride = words / 4};
        operation(
            d, &p->p_geglu,
            (struct range[]){{&c->product, 0, 0}, {&c->product2, 0, 0}, {&c->y, 0, 0}, {&c->act_down, 0, 0}, {&c->norm, 0, 0}}, &g,
            (o->ffn / 32 + p->geglu_threads - 1) / p->geglu_threads, c->tokens);
        device_barrier(d);
    }
    if (stamps)
        stamps[s++] = device_stamp(d);
    struct shaders_matvec m = {.n_rows = o->hidden,
                               .n_units = c->down.units,
                               .tile_vec4 = c->down.tile_vec4,
                               .part_units = (c->down.units + parts - 1) / parts,
                               .act_stride = words / 4,
                               .y_stride = o->hidden,
                               .y_part = o->hidden * c->tokens};
    operation(d, &p->p_down, (struct range[]){weights_of(&c->down, layer), {&c->act_down, 0, 0}, {&c->y, 0, 0}}, &m,
              (o->hidden / 16 + each - 1) / each, parts);
    device_barrier(d);
    if (stamps)
        stamps[s++] = device_stamp(d);
    struct shaders_post q = {
        .n = o->hidden, .eps = 1e-6f, .n_parts = parts, .x_part = o->hidden * c->tokens / 4, .x_stride = o->hidden / 4};
    operation(d, &p->p_post, (struct range[]){{&c->y, 0, 0}, {&c->norm, 0, 0}, {&c->x, 0, 0}, {&c->x, 0, 0}, {&c->norm, 0, 0}}, &q,
              c->tokens, 1);
    device_barrier(d);
    if (stamps)
        stamps[s++] = device_stamp(d);
}

/* Seconds of a layer; ret: of each operation, or NULL. */
static double chain_run(struct chain *c, struct plan *p, double *ret)
{
    struct device *d = c->d;
    double best = 1e9;
    uint32_t stamps[MAX_LAYERS][OPERATIONS], layers = c->o->layers;
    double begin = speed_now();
    for (uint32_t r = 0; speed_more(c->o, begin, r); r++) {
        device_reset_sets(d);
        device_begin(d);
        uint32_t from = device_stamp(d);
        for (uint32_t l = 0; l < layers; l++)
            record(c, p, l, ret ? stamps[l] : NULL);
        uint32_t to = device_stamp(d);
        device_submit(d);
        double t = device_seconds(d, from, to) / layers;
        if (t >= best)
            continue;
        best = t;
        for (int i = 0; ret && i < OPERATIONS; i++) {
            ret[i] = 0;
            for (uint32_t l = 1; l < layers; l++)
                ret[i] += device_seconds(d, i ? stamps[l][i - 1] : stamps[l - 1][OPERATIONS - 1], stamps[l][i]) / (layers - 1);
        }
    }
    return best;
}

static void print_plan(const struct plan *p)
{
    printf("%s %u/%u/%u/%u, down %u/%u/%u/%u, norm %u, post %u", fusions[p->fusion], p->gate[0], p->gate[1], p->gate[2], p->gate[3],
           p->down[0], p->down[1], p->down[2], p->down[3], p->norm_threads, p->post_threads);
}

/* Tries every choice of one operation with the others as they are. */
static struct plan search(struct chain *c, double *ret)
{
    static const uint32_t fused[][4] = {{64, 2, 1, 1},  {64, 1, 1, 1},  {128, 1, 1, 1}, {128, 2, 1, 1}, {256, 1, 1, 1},
                                        {256, 2, 1, 1}, {256, 4, 1, 1}, {512, 2, 1, 1}, {512, 4, 1, 1}};
    static const uint32_t downs[][4] = {{64, 1, 1, 1},  {64, 1, 1, 2},  {64, 1, 1, 4},  {64, 1, 1, 8},  {128, 1, 1, 1},
                                        {128, 1, 1, 2}, {128, 1, 1, 4}, {128, 1, 1, 8}, {256, 1, 1, 1}, {256, 1, 1, 2},
                                        {256, 1, 1, 4}, {128, 1, 2, 4}, {128, 1, 2, 8}, {256, 1, 2, 4}, {256, 2, 1, 4},
                                        {512, 1, 1, 1}, {512, 1, 1, 2}};
    static const uint32_t threads[][2] = {{128, 128}, {256, 256}, {512, 512}, {672, 672}, {1024, 1024}};
    struct plan best = {.fusion = FUSED_QUANTIZED,
                        .norm_threads = 512,
                        .post_threads = 512,
                        .geglu_threads = 32,
                        .gate = {128, 2, 1, 1},
                        .down = {128, 1, 1, 4}};
    double t_best = 1e9;
    for (int pass = 0; pass < 3; pass++) {
        size_t n = pass == 0 ? 3 * ARRAY_LEN(fused) : pass == 1 ? ARRAY_LEN(downs) : ARRAY_LEN(threads);
        struct plan from = best;
        for (size_t i = 0; i < n; i++) {
            struct plan p = from;
            if (pass == 0) {
                p.fusion = (enum fusion)(i / ARRAY_LEN(fused));
                memcpy(p.gate, fused[i % ARRAY_LEN(fused)], sizeof(p.gate));
                if (p.fusion == FUSED_QUANTIZED && p.gate[1] % 2)
                    continue;
            } else if (pass == 1) {
                memcpy(p.down, downs[i], sizeof(p.down));
            } else {
                p.norm_threads = threads[i][0];
                p.post_threads = threads[i][1];
            }
            plan_open(c, &p);
            double t = chain_run(c, &p, NULL);
            plan_close(c->d, &p);
            if (t < t_best) {
                t_best = t;
                best = p;
            }
        }
    }
    *ret = t_best;
    return best;
}

static void ffn_type(struct device *d, const struct speed_options *o, int type, double copy)
{
    size_t one = repack_bytes(type, o->ffn, o->hidden);
    struct chain c = {.o = o, .d = d, .tokens = 1};
    c.gate = speed_weights_make(d, type, o->ffn, o->hidden, one * (o->layers - 1));
    c.up = speed_weights_make(d, type, o->ffn, o->hidden, one * (o->layers - 1));
    c.down = speed_weights_make(d, type, o->hidden, o->ffn, one * (o->layers - 1));
    c.x = speed_floats(d, (size_t)o->hidden * MAX_TOKENS);
    c.norm = speed_floats(d, o->hidden);
    struct buffer *rest[] = {&c.act, &c.product, &c.product2, &c.act_down, &c.y};
    for (size_t i = 0; i < ARRAY_LEN(rest); i++)
        *rest[i] = device_buffer(d, 4 * (size_t)o->ffn * MAX_TOKENS * 8, false);
    double t, each[OPERATIONS], bytes = 3 * (double)one;
    struct plan p = search(&c, &t);
    printf("FFN %s, %.0f MB, 1 token: %.1f us a layer = %.0f GB/s, %.0f%% of copy; ", quant_name(type), bytes * 1e-6, t * 1e6,
           bytes / t * 1e-9, 100 * bytes / t / copy);
    print_plan(&p);
    printf("\n");
    for (c.tokens = 1; c.tokens <= MAX_TOKENS; c.tokens *= 2) {
        plan_open(&c, &p);
        double plain = chain_run(&c, &p, NULL), stamped = chain_run(&c, &p, each);
        printf("  %u tokens: %.1f us; with stamps %.1f: norm %.1f, gate up %.1f, geglu %.1f, down %.1f, post %.1f\n", c.tokens,
               plain * 1e6, stamped * 1e6, each[0] * 1e6, each[1] * 1e6, each[2] * 1e6, each[3] * 1e6, each[4] * 1e6);
        plan_close(d, &p);
    }
    for (int f = 0; f < 3; f++) { /* what each way of fusing gives with the same shapes of workgroups */
        struct plan q = p;
        q.fusion = (enum fusion)f;
        c.tokens = 1;
        if (q.gate[1] % 2)
            q.gate[1] = 2;
        plan_open(&c, &q);
        printf("  %s: %.1f us\n", fusions[f], chain_run(&c, &q, NULL) * 1e6);
        plan_close(d, &q);
    }
    fflush(stdout);
    device_free(d, &c.gate.buffer);
    device_free(d, &c.up.buffer);
    device_free(d, &c.down.buffer);
    device_free(d, &c.x);
    device_free(d, &c.norm);
    for (size_t i = 0; i < ARRAY_LEN(rest); i++)
        device_free(d, rest[i]);
}

void speed_ffn(struct device *d, const struct speed_options *o, double copy)
{
    static const int types[] = {QUANT_Q4_0, QUANT_Q8_0, QUANT_Q4_K};
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        if ((!o->type || strcmp(o->type, quant_name(types[i])) == 0) && speed_now() < o->deadline)
            ffn_type(d, o, types[i], copy);
    }
}
