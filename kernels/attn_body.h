/* SPDX-License-Identifier: MIT
 * Tiled attention, once, on sixteen lanes. For one KV head: every tile of 64 positions is converted to f32 once and used by all
 * rows (queries x heads of the group). Per row the order is fixed: scores walk d upwards, each lane one position; the
 * running maximum and sum are updated per tile; outputs walk the visible positions upwards, each lane one dimension. Rows
 * are handled LANES_QUERIES at a time where a tile is visible to all of them; that changes nothing for any row. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/attn.h"
#include "kernels/exp_body.h"
#include "kernels/quant.h"

struct row {
    const float *q;
    float *o;     /* [head_dim] */
    float *p;     /* [64]: scores, then weights */
    float *lanes; /* [16]: sum of weights by lane */
    float *state; /* [0] running maximum */
    uint32_t pos;
};

static inline size_t entry_bytes(const struct attn_shape *s)
{
    return s->kv_type == QUANT_F16 ? 2 : 4;
}

static void store(const struct attn_shape *s, void *page, uint32_t slot, const float *k, const float *v)
{
    size_t d = s->head_dim, half = d * ATTN_PAGE;
    for (uint32_t h = 0; h < s->n_kv_heads; h++, k += d, v += d) {
        if (s->kv_type == QUANT_F16) {
            uint16_t *pk = (uint16_t *)page + h * 2 * half, *pv = pk + half + slot * d, t[16];
            for (size_t i = 0; i < d; i += 16) {
                v16_store_f16(t, v16_load(k + i));
                for (size_t j = 0; j < 16; j++)
                    pk[(i + j) * ATTN_PAGE + slot] = t[j];
                v16_store_f16(pv + i, v16_load(v + i));
            }
        } else {
            float *pk = (float *)page + h * 2 * half;
            for (size_t i = 0; i < d; i++)
                pk[i * ATTN_PAGE + slot] = k[i];
            memcpy(pk + half + slot * d, v, d * sizeof(float));
        }
    }
}

/* The head's K and V of a page as f32: [head_dim][64], [64][head_dim]. */
static void widen(const struct attn_shape *s, const void *page, uint32_t kv_head, float *scratch, const float **ret_k, const float **ret_v)
{
    size_t half = (size_t)s->head_dim * ATTN_PAGE;
    const uint8_t *p = (const uint8_t *)page + kv_head * 2 * half * entry_bytes(s);
    if (s->kv_type == QUANT_F32) {
        *ret_k = (const float *)(const void *)p;
    } else {
        for (size_t i = 0; i < 2 * half; i += 16)
            v16_store(scratch + i, v16_load_f16((const uint16_t *)(const void *)p + i));
        *ret_k = scratch;
    }
    *ret_v = *ret_k + half;
}

/* n rows (a constant at every call): scores of 64 positions each. */
static inline __attribute__((always_inline)) void scores(int n, const struct row *r, const float *k, size_t d, float scale)
{
    v16 acc[LANES_QUERIES][4];
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < 4; j++)
            acc[i][j] = v16_set(0);
    }
    for (size_t x = 0; x < d; x++, k += ATTN_PAGE) {
        for (int j = 0; j < 4; j++) {
            v16 kv = v16_load(k + 16 * j);
            for (int i = 0; i < n; i++)
                acc[i][j] = v16_fma(kv, v16_set(r[i].q[x]), acc[i][j]);
        }
    }
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < 4; j++)
            v16_store(r[i].p + 16 * j, v16_mul(acc[i][j], v16_set(scale)));
    }
}

/* Scores become weights; the running maximum, sum and output are rescaled. lo <= visible position < hi. */
static void soften(const struct row *r, size_t d, int lo, int hi)
{
    v16 masked = v16_set(-INFINITY), top = masked, p[4];
    for (int j = 0; j < 4; j++) {
        p[j] = v16_select_range(v16_load(r->p + 16 * j), masked, lo - 16 * j, hi - 16 * j);
        top = v16_max(p[j], top);
    }
    float old = r->state[0], m = max16(top);
    m = m > old ? m : old;
    r->state[0] = m;
    v16 sum = v16_set(0);
    for (int j = 0; j < 4; j++) {
        p[j] = v16_select_range(exp16(v16_sub(p[j], v16_set(m))), v16_set(0), lo - 16 * j, hi - 16 * j);
        v16_store(r->p + 16 * j, p[j]);
        sum = v16_add(sum, p[j]);
    }
    if (m == old) {
        v16_store(r->lanes, v16_add(v16_load(r->lanes), sum));
        return;
    }
    v16 correct = exp16(v16_set(old - m));
    v16_store(r->lanes, v16_fma(v16_load(r->lanes), correct, sum));
    for (size_t x = 0; x < d; x += 16)
        v16_store(r->o + x, v16_mul(v16_load(r->o + x), correct));
}

/* Positions lo..hi-1 of V, weighted, onto the outputs of n rows. */
static inline __attribute__((always_inline)) void weigh(int n, const struct row *r, const float *v, size_t d, int lo, int hi)
{
    for (size_t x = 0; x < d; x += 64) {
        int vectors = d - x < 64 ? (int)((d - x) / 16) : 4;
        v16 acc[LANES_QUERIES][4];
        for (int i = 0; i < n; i++) {
            for (int j = 0; j < vectors; j++)
                acc[i][j] = v16_load(r[i].o + x + 16 * j);
        }
        for (int t = lo; t < hi; t++) {
            const float *row = v + (size_t)t * d + x;
            for (int j = 0; j < vectors; j++) {
                v16 value = v16_load(row + 16 * j);
                for (int i = 0; i < n; i++)
                    acc[i][j] = v16_fma(value, v16_set(r[i].p[t]), acc[i][j]);
            }
        }
        for (int i = 0; i < n; i++) {
            for (int j = 0; j < vectors; j++)
                v16_store(r[i].o + x + 16 * j, acc[i][j]);
        }
    }
}

/* Visible positions of a row within the tile at `base`; false when there are none. */
static bool visible(const struct attn_shape *s, uint32_t pos, uint32_t base, int *ret_lo, int *ret_hi)
{
    uint32_t from = s->window && pos + 1 > s->window ? pos + 1 - s->window : 0;
    if (pos < base || from >= base + ATTN_PAGE)
        return false;
    *ret_lo = from > base ? (int)(from - base) : 0;
    *ret_hi = pos - base < ATTN_PAGE ? (int)(pos - base) + 1 : ATTN_PAGE;
    return true;
}

static void tile_row(const struct attn_shape *s, const struct row *r, uint32_t base, const float *k, const float *v)
{
    int lo, hi;
    if (!visible(s, r->pos, base, &lo, &hi))
        return;
    scores(1, r, k, s->head_dim, s->scale);
    soften(r, s->head_dim, lo, hi);
    weigh(1, r, v, s->head_dim, lo, hi);
}

static void tile_rows(const struct attn_shape *s, const struct row *r, uint32_t n, uint32_t base, const float *k, const float *v)
{
    uint32_t i = 0;
    for (; LANES_QUERIES > 1 && i + LANES_QUERIES <= n; i += LANES_QUERIES) {
        int lo, hi;
        bool whole = true;
        for (int j = 0; whole && j < LANES_QUERIES; j++)
            whole = visible(s, r[i + j].pos, base, &lo, &hi) && lo == 0 && hi == ATTN_PAGE;
        if (!whole) {
            for (int j = 0; j < LANES_QUERIES; j++)
                tile_row(s, &r[i + j], base, k, v);
            continue;
        }
        scores(LANES_QUERIES, r + i, k, s->head_dim, s->scale);
        for (int j = 0; j < LANES_QUERIES; j++)
            soften(&r[i + j], s->head_dim, 0, ATTN_PAGE);
        weigh(LANES_QUERIES, r + i, v, s->head_dim, 0, ATTN_PAGE);
    }
    for (; i < n; i++)
        tile_row(s, &r[i], base, k, v);
}

#define ROWS_MAX 64

static void run_rows(const struct attn_shape *s, uint32_t kv_head, struct row *r, uint32_t n, void *const *pages, float *wide)
{
    uint32_t first = r[0].pos, last = r[0].pos;
    for (uint32_t i = 0; i < n; i++) {
        first = r[i].pos < first ? r[i].pos : first;
        last = r[i].pos > last ? r[i].pos : last;
        memset(r[i].o, 0, s->head_dim * sizeof(float));
        memset(r[i].lanes, 0, 16 * sizeof(float));
        r[i].state[0] = -INFINITY;
    }
    uint32_t from = s->window && first + 1 > s->window ? first + 1 - s->window : 0;
    for (uint32_t page = from / ATTN_PAGE; page <= last / ATTN_PAGE; page++) {
        const float *k, *v;
        widen(s, pages[page], kv_head, wide, &k, &v);
        tile_rows(s, r, n, page * ATTN_PAGE, k, v);
    }
    for (uint32_t i = 0; i < n; i++) {
        v16 inverse = v16_set(1.0f / sum16(v16_load(r[i].lanes)));
        for (size_t x = 0; x < s->head_dim; x += 16)
            v16_store(r[i].o + x, v16_mul(v16_load(r[i].o + x), inverse));
    }
}

static void run(const struct attn_shape *s, uint32_t kv_head, const float *q, size_t stride, uint32_t pos0, uint32_t n_queries,
                void *const *pages, float *out, void *scratch)
{
    uint32_t group = s->n_heads / s->n_kv_heads, d = s->head_dim, n = 0;
    float *wide = scratch, *free_floats = wide + 2 * (size_t)ATTN_PAGE * d;
    struct row rows[ROWS_MAX];
    for (uint32_t i = 0; i < n_queries; i++) {
        for (uint32_t g = 0; g < group; g++) {
            size_t at = i * stride + (size_t)(kv_head * group + g) * d;
            float *f = free_floats + (size_t)n * (ATTN_PAGE + 32);
            rows[n++] = (struct row){.q = q + at, .o = out + at, .p = f, .lanes = f + ATTN_PAGE, .state = f + ATTN_PAGE + 16, .pos = pos0 + i};
            if (n == ROWS_MAX || (i + 1 == n_queries && g + 1 == group)) {
                run_rows(s, kv_head, rows, n, pages, wide);
                n = 0;
            }
        }
    }
}

const struct attn_ops LANES_VARIANT(attn) = {.name = LANES_NAME, .store = store, .run = run};
