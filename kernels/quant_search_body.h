/* SPDX-License-Identifier: MIT
 * The search of quant_search.h on sixteen lanes; a lane is a block, or a sub-block of a K type, and walks its elements in their
 * order, so that all variants take the same decisions. Three steps: inverse scales on a grid, scored by the error that a least-
 * squares fit to their quants would leave; from the best one, fits in turn with new quants, with scales as the format rounds them;
 * last, in double, the reference result wins unless the found one is better. Included after quant_k_body.h. */
#include <stdbool.h>

#include "kernels/quant_search.h"

#define S_FITS 4 /* turns of fit and new quants */

static inline v16 s_f16(v16 x)
{
    uint16_t h[16];
    v16_store_f16(h, x);
    return v16_load_f16(h);
}

static inline v16 s_clamp(v16 x, float lo, float hi)
{
    return v16_min(v16_max(x, v16_set(lo)), v16_set(hi));
}

/* 1 / d; 0 where d is 0. */
static inline v16 s_inverse(v16 d)
{
    return v16_zero_unless_less(v16_set(0), v16_abs(d), v16_div(v16_set(1), d));
}

/* Where a < b, *x becomes y. */
static inline void s_take(v16 a, v16 b, v16 *x, v16 y)
{
    *x = v16_select_less(a, b, y, *x);
}

/* Sixteen groups of n elements: values, weights, their products. */
struct s_group {
    int n;
    v16 x[32], w[32], wx[32];
    v16 largest; /* element of largest magnitude */
};

static void s_load(struct s_group *g, const float *src, const float *weights, int n, int n_lanes)
{
    v16 amax = v16_set(0);
    g->n = n;
    g->largest = amax;
    k_gather(src, n, n_lanes, g->x);
    if (weights)
        k_gather(weights, n, n_lanes, g->w);
    for (int i = 0; i < n; i++) {
        if (!weights)
            g->w[i] = v16_set(1);
        g->wx[i] = v16_mul(g->w[i], g->x[i]);
        s_take(amax, v16_abs(g->x[i]), &g->largest, g->x[i]);
        amax = v16_max(v16_abs(g->x[i]), amax);
    }
}

/* ---- x = d * q, lo <= q <= hi ---- */

struct s_range {
    float lo, hi;
    float from, to; /* largest quant over which the grid's inverse scales spread the largest element, of -lo */
    int steps;
};

/* Quants that follow from an inverse scale: the scale that fits them best, and what it explains of sum w x^2. */
static inline v16 s_score(const struct s_group *g, const struct s_range *r, v16 inverse, v16 *ret_d)
{
    v16 a = v16_set(0), b = a;
    for (int i = 0; i < g->n; i++) {
        v16 q = s_clamp(v16_round(v16_mul(g->x[i], inverse)), r->lo, r->hi);
        a = v16_fma(g->wx[i], q, a);
        b = v16_fma(v16_mul(g->w[i], q), q, b);
    }
    v16 d = v16_div(a, b);
    *ret_d = d;
    return v16_mul(d, a);
}

/* Error with the scale d as it is, and the scale that fits the quants best. */
static inline v16 s_error(const struct s_group *g, const struct s_range *r, v16 d, v16 *ret_next)
{
    v16 a = v16_set(0), b = a, e = a, inverse = s_inverse(d), minus = v16_sub(a, d);
    for (int i = 0; i < g->n; i++) {
        v16 q = s_clamp(v16_round(v16_mul(g->x[i], inverse)), r->lo, r->hi);
        v16 diff = v16_fma(minus, q, g->x[i]);
        a = v16_fma(g->wx[i], q, a);
        b = v16_fma(v16_mul(g->w[i], q), q, b);
        e = v16_fma(v16_mul(g->w[i], diff), diff, e);
    }
    *ret_next = v16_div(a, b);
    return e;
}

/* Best scale of the grid, over both signs. */
static v16 s_grid(const struct s_group *g, const struct s_range *r)
{
    v16 best = v16_set(0), best_d = best, d, unit = v16_div(v16_set(r->lo), g->largest);
    for (int s = 0; s <= 2 * r->steps + 1; s++) {
        float f = r->from + (r->to - r->from) / (float)r->steps * (float)(s / 2);
        v16 score = s_score(g, r, v16_mul(unit, v16_set(s % 2 ? -f : f)), &d);
        s_take(best, score, &best_d, d);
        s_take(best, score, &best, score);
    }
    return best_d;
}

/* Scale in f16 of each of sixteen blocks. */
static v16 s_symmetric(const struct s_group *g, const struct s_range *r)
{
    v16 d = s_f16(s_grid(g, r)), best_d = d, best = v16_set(INFINITY), next;
    for (int i = 0; i < S_FITS; i++) {
        v16 e = s_error(g, r, d, &next);
        s_take(e, best, &best_d, d);
        s_take(e, best, &best, e);
        d = s_f16(next);
    }
    return best_d;
}

static void s_quants(const struct s_group *g, const struct s_range *r, v16 d, float add, v16 *ret_q)
{
    v16 inverse = s_inverse(d);
    for (int i = 0; i < g->n; i++)
        ret_q[i] = v16_add(s_clamp(v16_round(v16_mul(g->x[i], inverse)), r->lo, r->hi), v16_set(add));
}

/* Keeps in dst (the reference result) what is not beaten by `found`. */
static void s_choose(int type, const float *src, const float *weights, const uint8_t *found, uint8_t *dst, size_t n)
{
    size_t elems = quant_block_elems(type), bytes = quant_block_bytes(type);
    for (size_t i = 0; i < n / elems; i++) {
        const float *w = weights ? weights + i * elems : NULL;
        double old = quant_search_error(type, src + i * elems, w, dst + i * bytes, elems);
        if (quant_search_error(type, src + i * elems, w, found + i * bytes, elems) < old)
            memcpy(dst + i * bytes, found + i * bytes, bytes);
    }
}

/* Up to sixteen blocks of 32. */
static void s_blocks(int type, const float *src, const float *weights, int n_blocks, uint8_t *dst)
{
    static const struct s_range q4 = {-8, 7, 0.8f, 2.0f, 30}, q5 = {-16, 15, 0.8f, 1.6f, 40}, q8 = {-127, 127, 0.99f, 1.05f, 20};
    const struct s_range *r = type == QUANT_Q4_0 ? &q4 : type == QUANT_Q5_0 ? &q5 : &q8;
    size_t bytes = quant_block_bytes(type);
    struct s_group g;
    v16 q[32];
    uint16_t d[16];
    uint8_t quants[16 * 32], found[16 * 34];
    s_load(&g, src, weights, 32, n_blocks);
    v16 scale = s_symmetric(&g, r);
    v16_store_f16(d, scale);
    s_quants(&g, r, scale, type == QUANT_Q8_0 ? 128 : -r->lo, q);
    k_scatter(q, 32, n_blocks, quants);
    for (int j = 0; j < n_blocks; j++) {
        uint8_t *b = found + (size_t)j * bytes, *p = quants + 32 * j;
        memcpy(b, &d[j], 2);
        for (int i = 0; type == QUANT_Q8_0 && i < 32; i++)
            b[2 + i] = p[i] ^ 128;
        if (type != QUANT_Q8_0)
            quant_put_32(p, type == QUANT_Q5_0 ? b + 2 : NULL, type == QUANT_Q5_0 ? b + 6 : b + 2);
    }
    s_choose(type, src, weights, found, dst, (size_t)n_blocks * 32);
}

/* ---- q6_K: x = d * sc * q ---- */

/* Integer scales of the lanes for a common d: of the three nearest to what fits, the one with the smallest error. */
static v16 s_round_scales(const struct s_group *g, const struct s_range *r, v16 d, v16 fit, v16 *ret_scale, v16 *ret_a, v16 *ret_b)
{
    v16 best = v16_set(INFINITY), middle = v16_round(v16_mul(fit, s_inverse(d))), next;
    *ret_scale = v16_set(0);
    for (int k = -1; k <= 1; k++) {
        v16 s = s_clamp(v16_add(middle, v16_set((float)k)), -128, 127), e = s_error(g, r, v16_mul(d, s), &next);
        s_take(e, best, ret_scale, s);
        s_take(e, best, &best, e);
    }
    v16 a = v16_set(0), b = a, inverse = s_inverse(v16_mul(d, *ret_scale));
    for (int i = 0; i < g->n; i++) { /* of d: sum w x (sc q), sum w (sc q)^2 */
        v16 q = s_clamp(v16_round(v16_mul(g->x[i], inverse)), r->lo, r->hi);
        v16 t = v16_mul(*ret_scale, q);
        a = v16_fma(g->wx[i], t, a);
        b = v16_fma(v16_mul(g->w[i], t), t, b);
    }
    *ret_a = a;
    *ret_b = b;
    return best;
}

/* Sum of n lanes from `first` on, one after the other. */
static float s_sum(v16 x, int first, int n)
{
    float t[16], sum = 0;
    v16_store(t, x);
    for (int i = 0; i < n; i++)
        sum += t[first + i];
    return sum;
}

static float s_f16_scalar(float f)
{
    return quant_f16_to_f32(quant_f32_to_f16(f));
}

static void s_super_6(const float *src, const float *weights, uint8_t *dst)
{
    static const struct s_range r = {-32, 31, 0.9f, 1.3f, 24};
    static const float tops[] = {-128, -127, -124, -120, 127, 124, 120};
    struct s_group g;
    uint8_t found[210], quants[QUANT_SUPER_BLOCK];
    float scales[16], max = 0, amax = 0, best = INFINITY, best_d = 0;
    v16 q[16], sc, best_sc = v16_set(0), a, b;
    s_load(&g, src, weights, 16, 16);
    v16 fit = s_grid(&g, &r);
    v16_store(scales, fit);
    for (int j = 0; j < 16; j++) {
        if (fabsf(scales[j]) > amax) {
            amax = fabsf(scales[j]);
            max = scales[j];
        }
    }
    for (size_t k = 0; k < sizeof(tops) / sizeof(tops[0]); k++) {
        float d = s_f16_scalar(max / tops[k]);
        for (int turn = 0; turn < 3; turn++) {
            float e = s_sum(s_round_scales(&g, &r, v16_set(d), fit, &sc, &a, &b), 0, 16);
            if (!(e < best) && turn > 0)
                break;
            if (e < best) {
                best = e;
                best_d = d;
                best_sc = sc;
            }
            d = s_f16_scalar(s_sum(a, 0, 16) / s_sum(b, 0, 16));
        }
    }
    v16_store(scales, best_sc);
    for (int j = 0; j < 16; j++)
        found[192 + j] = (uint8_t)(int8_t)scales[j];
    s_quants(&g, &r, v16_mul(v16_set(best_d), best_sc), 32, q);
    k_scatter(q, 16, 16, quants);
    quant_k_put_6(quants, found, found + 128);
    k_put_f16(found + 208, best_d);
    s_choose(QUANT_Q6_K, src, weights, found, dst, QUANT_SUPER_BLOCK);
}

/* ---- q4_K, q5_K: x = d * sc * q - dmin * m ---- */

struct s_affine {
    v16 scale, min; /* x = scale * q - min */
};

/* Quants of a scale and minimum. */
static inline v16 s_affine_quant(v16 x, v16 inverse, v16 min, float top)
{
    return s_clamp(v16_round(v16_mul(v16_add(x, min), inverse)), 0, top);
}

/* Scale and minimum that fit the quants of `from` best, and the error that they leave; min >= 0. */
static inline v16 s_affine_fit(const struct s_group *g, struct s_affine from, float top, v16 sum_w, v16 sum_wx, v16 sum_wx2,
                               struct s_affine *ret)
{
    v16 zero = v16_set(0), l = zero, l2 = zero, xl = zero, inverse = s_inverse(from.scale);
    for (int i = 0; i < g->n; i++) {
        v16 q = s_affine_quant(g->x[i], inverse, from.min, top), wq = v16_mul(g->w[i], q);
        l = v16_add(l, wq);
        l2 = v16_fma(wq, q, l2);
        xl = v16_fma(g->wx[i], q, xl);
    }
    v16 det = v16_sub(v16_mul(sum_w, l2), v16_mul(l, l));
    v16 scale = v16_div(v16_sub(v16_mul(sum_w, xl), v16_mul(sum_wx, l)), det);
    v16 min = v16_div(v16_sub(v16_mul(l, xl), v16_mul(l2, sum_wx)), det);
    s_take(min, zero, &scale, v16_div(xl, l2));
    s_take(min, zero, &min, zero);
    ret->scale = scale;
    ret->min = min;
    return v16_add(v16_sub(sum_wx2, v16_mul(scale, xl)), v16_mul(min, sum_wx));
}

static struct s_affine s_affine_grid(const struct s_group *g, float top)
{
    v16 zero = v16_set(0), min = zero, max = zero, sum_w = zero, sum_wx = zero, sum_wx2 = zero, best = v16_set(INFINITY);
    struct s_affine result = {zero, zero};
    for (int i = 0; i < g->n; i++) {
        min = v16_min(g->x[i], min);
        max = i ? v16_max(g->x[i], max) : g->x[i];
        sum_w = v16_add(sum_w, g->w[i]);
        sum_wx = v16_add(sum_wx, g->wx[i]);
        sum_wx2 = v16_fma(g->wx[i], g->x[i], sum_wx2);
    }
    v16 range = v16_sub(max, min);
    for (int s = 0; s <= 40; s++) { /* the range spread over 0.8 to 1.6 times the levels there are */
        float levels = top * (0.8f + 0.02f * (float)s);
        struct s_affine c = {v16_mul(range, v16_set(1 / levels)), v16_sub(zero, min)};
        for (int turn = 0; turn < 3; turn++) {
            v16 e = s_affine_fit(g, c, top, sum_w, sum_wx, sum_wx2, &c);
            s_take(e, best, &result.scale, c.scale);
            s_take(e, best, &result.min, c.min);
            s_take(e, best, &best, e);
        }
    }
    return result;
}

/* Error of exact scales and minima; sums for the fit of d and dmin are taken over t = sc * q and m. */
static inline v16 s_affine_error(const struct s_group *g, v16 scale, v16 min, float top)
{
    v16 e = v16_set(0), inverse = s_inverse(scale), minus = v16_sub(e, scale);
    for (int i = 0; i < g->n; i++) {
        v16 q = s_affine_quant(g->x[i], inverse, min, top), diff = v16_fma(minus, q, v16_add(g->x[i], min));
        e = v16_fma(v16_mul(g->w[i], diff), diff, e);
    }
    return e;
}

/* Integer scales and minima of the lanes for given d and dmin: around what fits, the pair with the smallest error. */
static v16 s_affine_round(const struct s_group *g, v16 d, v16 dmin, struct s_affine fit, v16 sum_w, v16 sum_wx, float top,
                          v16 *ret_sc, v16 *ret_m)
{
    v16 best = v16_set(INFINITY), zero = v16_set(0), inv_d = s_inverse(d), inv_min = s_inverse(dmin);
    *ret_sc = *ret_m = zero;
    for (int k = -1; k <= 1; k++) {
        v16 sc = s_clamp(v16_add(v16_round(v16_mul(fit.scale, inv_d)), v16_set((float)k)), 0, 63), scale = v16_mul(d, sc);
        v16 l = zero, inverse = s_inverse(scale);
        for (int i = 0; i < g->n; i++)
            l = v16_fma(g->w[i], s_affine_quant(g->x[i], inverse, fit.min, top), l);
        v16 min = v16_div(v16_sub(v16_mul(scale, l), sum_wx), sum_w); /* what fits these quants */
        v16 middle = v16_round(v16_mul(min, inv_min));
        for (int j = -1; j <= 1; j++) {
            v16 m = s_clamp(v16_add(middle, v16_set((float)j)), 0, 63), e = s_affine_error(g, scale, v16_mul(dmin, m), top);
            s_take(e, best, ret_sc, sc);
            s_take(e, best, ret_m, m);
            s_take(e, best, &best, e);
        }
    }
    return best;
}

/* Lanes first..first + 7: d and dmin that fit their quants best. */
struct s_normal {
    v16 tt, tm, mm, xt, xm; /* t = sc * q */
};

static void s_affine_sums(const struct s_group *g, v16 d, v16 dmin, v16 sc, v16 m, v16 sum_w, v16 sum_wx, float top,
                          struct s_normal *ret)
{
    v16 l = v16_set(0), l2 = l, xl = l, inverse = s_inverse(v16_mul(d, sc)), min = v16_mul(dmin, m);
    for (int i = 0; i < g->n; i++) {
        v16 q = s_affine_quant(g->x[i], inverse, min, top), wq = v16_mul(g->w[i], q);
        l = v16_add(l, wq);
        l2 = v16_fma(wq, q, l2);
        xl = v16_fma(g->wx[i], q, xl);
    }
    ret->tt = v16_mul(v16_mul(sc, sc), l2);
    ret->tm = v16_mul(v16_mul(sc, m), l);
    ret->mm = v16_mul(v16_mul(m, m), sum_w);
    ret->xt = v16_mul(sc, xl);
    ret->xm = v16_mul(m, sum_wx);
}

/* x = d t - dmin m: normal equations of one super-block. */
static void s_solve(const struct s_normal *n, int first, float *d, float *dmin)
{
    float tt = s_sum(n->tt, first, 8), tm = s_sum(n->tm, first, 8), mm = s_sum(n->mm, first, 8), xt = s_sum(n->xt, first, 8),
          xm = s_sum(n->xm, first, 8), det = tt * mm - tm * tm;
    if (mm > 0 && det > 0) {
        *d = (mm * xt - tm * xm) / det;
        *dmin = (tm * xt - tt * xm) / det;
    } else {
        *d = xt / tt;
    }
}

/* One or two super-blocks. */
static void s_super_45(int type, const float *src, const float *weights, int n_super, uint8_t *dst)
{
    static const float tops[] = {63, 61, 58};
    float top = type == QUANT_Q4_K ? 15 : 31;
    size_t bytes = quant_block_bytes(type);
    struct s_group g;
    s_load(&g, src, weights, 32, 8 * n_super);
    struct s_affine fit = s_affine_grid(&g, top);
    v16 zero = v16_set(0), sum_w = zero, sum_wx = zero, best_d = zero, best_dmin = zero, best_sc = zero, best_m = zero, sc, m;
    float scales[16], mins[16], max_scale[2] = {0}, max_min[2] = {0}, best[2] = {INFINITY, INFINITY};
    for (int i = 0; i < 32; i++) {
        sum_w = v16_add(sum_w, g.w[i]);
        sum_wx = v16_add(sum_wx, g.wx[i]);
    }
    v16_store(scales, fit.scale);
    v16_store(mins, fit.min);
    for (int j = 0; j < 16; j++) {
        max_scale[j / 8] = scales[j] > max_scale[j / 8] ? scales[j] : max_scale[j / 8];
        max_min[j / 8] = mins[j] > max_min[j / 8] ? mins[j] : max_min[j / 8];
    }
    for (size_t k = 0; k < sizeof(tops) / sizeof(tops[0]); k++) {
        float d[2], dmin[2];
        bool going[2] = {true, true}; /* each for itself: a neighbour changes nothing */
        for (int s = 0; s < 2; s++) {
            d[s] = max_scale[s] / tops[k];
            dmin[s] = max_min[s] / tops[k];
        }
        for (int turn = 0; turn < 3 && (going[0] || going[1]); turn++) {
            struct s_normal normal;
            for (int s = 0; s < 2; s++) {
                d[s] = s_f16_scalar(d[s]);
                dmin[s] = s_f16_scalar(dmin[s]);
            }
            v16 vd = v16_select_range(v16_set(d[0]), v16_set(d[1]), 0, 8);
            v16 vmin = v16_select_range(v16_set(dmin[0]), v16_set(dmin[1]), 0, 8);
            v16 e = s_affine_round(&g, vd, vmin, fit, sum_w, sum_wx, top, &sc, &m);
            bool better[2];
            for (int s = 0; s < 2; s++) {
                float sum = s_sum(e, 8 * s, 8);
                better[s] = going[s] && sum < best[s];
                best[s] = better[s] ? sum : best[s];
                going[s] = going[s] && (better[s] || turn == 0);
            }
            int from = better[0] ? 0 : 8, to = better[1] ? 16 : 8;
            best_d = v16_select_range(vd, best_d, from, to);
            best_dmin = v16_select_range(vmin, best_dmin, from, to);
            best_sc = v16_select_range(sc, best_sc, from, to);
            best_m = v16_select_range(m, best_m, from, to);
            s_affine_sums(&g, vd, vmin, sc, m, sum_w, sum_wx, top, &normal);
            for (int s = 0; s < 2; s++)
                s_solve(&normal, 8 * s, &d[s], &dmin[s]);
        }
    }
    v16 q[32], scale = v16_mul(best_d, best_sc), inverse = s_inverse(scale), min = v16_mul(best_dmin, best_m);
    for (int i = 0; i < 32; i++)
        q[i] = s_affine_quant(g.x[i], inverse, min, top);
    uint8_t quants[2 * QUANT_SUPER_BLOCK], found[2 * 176], s8[16], m8[16];
    float d[16], dmin[16];
    k_scatter(q, 32, 8 * n_super, quants);
    v16_store(scales, best_sc);
    v16_store(mins, best_m);
    v16_store(d, best_d);
    v16_store(dmin, best_dmin);
    for (int j = 0; j < 16; j++) {
        s8[j] = (uint8_t)scales[j];
        m8[j] = (uint8_t)mins[j];
    }
    for (int s = 0; s < n_super; s++) {
        uint8_t *b = found + (size_t)s * bytes;
        k_put_f16(b, d[8 * s]);
        k_put_f16(b + 2, dmin[8 * s]);
        quant_k_put_scales(s8 + 8 * s, m8 + 8 * s, b + 4);
        quant_k_put_45(quants + QUANT_SUPER_BLOCK * s, type == QUANT_Q5_K ? b + 16 : NULL, type == QUANT_Q5_K ? b + 48 : b + 16);
    }
    s_choose(type, src, weights, found, dst, (size_t)n_super * QUANT_SUPER_BLOCK);
}

static void s_search(int type, const float *src, const float *weights, void *dst, size_t n)
{
    uint8_t *out = dst;
    size_t elems = quant_block_elems(type), bytes = quant_block_bytes(type), blocks = elems ? n / elems : 0, step = 1;
    switch (type) {
    case QUANT_Q4_K:
    case QUANT_Q5_K:
    case QUANT_Q6_K:
        k_quantize_row(type, src, dst, n);
        step = type == QUANT_Q6_K ? 1 : 2;
        break;
    case QUANT_Q4_0:
    case QUANT_Q5_0:
    case QUANT_Q8_0:
        quant_quantize_row(type, src, dst, n);
        step = 16;
        break;
    default:
        quant_quantize_row(type, src, dst, n);
        return;
    }
    for (size_t i = 0; i < blocks; i += step) {
        int here = (int)(blocks - i < step ? blocks - i : step);
        const float *x = src + i * elems, *w = weights ? weights + i * elems : NULL;
        if (type == QUANT_Q6_K)
            s_super_6(x, w, out + i * bytes);
        else if (step == 2)
            s_super_45(type, x, w, here, out + i * bytes);
        else
            s_blocks(type, x, w, here, out + i * bytes);
    }
}
