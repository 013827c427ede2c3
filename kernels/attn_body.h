/* SPDX-License-Identifier: MIT
 * Tiled attention, once, on sixteen lanes. For one KV head: a tile of 64 positions is used by all rows (queries x heads of the
 * group) while it is in the cache, converted to f32 once when they are many. Per row the order is fixed: scores walk d upwards,
 * each lane one position; the running maximum and sum are updated per tile; outputs walk the visible positions upwards, each lane
 * one dimension. Rows are handled several at a time where a tile is visible to all of them; that changes nothing for any row. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/attn.h"
#include "kernels/exp_body.h"
#include "kernels/quant.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16") for

#define NARROW_ROWS 6 /* up to here entries are converted on the way to the registers, above it once per tile */

struct row {
    const float *q;
    float *o;     /* [head_dim] */
    float *p;     /* [64]: scores, then weights */
    float *lanes; /* [16]: sum of weights by lane */
    float *state; /* [0] running maximum */
    uint32_t pos;
};

/* One head's part of a page. Scales (q8_0) are those of a block of 32 dimensions of one position. */
struct tile {
    const void *k, *v;    /* [head_dim][64], [64][head_dim] */
    const float *ks, *vs; /* scales as f32: [head_dim / 32][64], [64][head_dim / 32] */
    const uint8_t *next;  /* the same head in the next page; NULL: none, or nothing is fetched ahead */
};

/* Memory to be fetched while other things are computed, a line or a few at each step. */
struct fetch {
    const uint8_t *at, *end;
};

INLINE size_t entry_bytes(int type)
{
    return type == QUANT_F32 ? 4 : type == QUANT_F16 ? 2 : 1;
}

/* One position's 32 values as int8, and their scale: the f16 that is kept, so that no value is further off than half of it. Values
 * that are no numbers give a scale that is none. */
static uint16_t quantize(const float *x, int8_t *ret)
{
    v16 a = v16_load(x), b = v16_load(x + 16);
    float most = max16(v16_max(v16_abs(a), v16_abs(b))) / 127.0f;
    bool finite = sum16(v16_add(v16_abs(a), v16_abs(b))) < INFINITY;
    uint16_t scale = finite ? quant_f32_to_f16(most < 65504.0f ? most : 65504.0f) : 0x7e00;
    float d = quant_f16_to_f32(scale);
    v16 inverse = v16_set(d > 0 ? 1.0f / d : 0.0f), limit = v16_set(127.0f);
    v16_store_i8(ret, v16_max(v16_min(v16_round(v16_mul(a, inverse)), limit), v16_set(-127.0f)));
    v16_store_i8(ret + 16, v16_max(v16_min(v16_round(v16_mul(b, inverse)), limit), v16_set(-127.0f)));
    return scale;
}

static void store_q8(const struct attn_shape *s, uint8_t *head, uint32_t slot, const float *k, const float *v)
{
    size_t d = s->head_dim, half = d * ATTN_PAGE;
    uint16_t *ks = (uint16_t *)(void *)head, *vs = ks + half / 32 + slot * (d / 32);
    int8_t *pk = (int8_t *)(ks + half / 16), *pv = pk + half + slot * d, t[32];
    for (size_t i = 0; i < d; i += 32) {
        ks[i / 32 * ATTN_PAGE + slot] = quantize(k + i, t);
        for (size_t j = 0; j < 32; j++)
            pk[(i + j) * ATTN_PAGE + slot] = t[j];
        vs[i / 32] = quantize(v + i, pv + i);
    }
}

static void store(const struct attn_shape *s, void *page, uint32_t slot, const float *k, const float *v)
{
    size_t d = s->head_dim, half = d * ATTN_PAGE;
    for (uint32_t h = 0; h < s->n_kv_heads; h++, k += d, v += d) {
        if (s->kv_type == QUANT_Q8_0) {
            store_q8(s, (uint8_t *)page + h * attn_page_bytes(s) / s->n_kv_heads, slot, k, v);
        } else if (s->kv_type == QUANT_F16) {
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

/* One head's K and V of a page. */
static const uint8_t *page_head(const struct attn_shape *s, const void *page, uint32_t kv_head)
{
    return (const uint8_t *)page + kv_head * (attn_page_bytes(s) / s->n_kv_heads);
}

static void widen(const uint16_t *half, size_t n, float *ret)
{
    for (size_t i = 0; i < n; i += 16)
        v16_store(ret + i, v16_load_f16(half + i));
}

/* int8 times an f16 is exact in f32, so it does not matter where that is done. The scales of V lie where K will, until it does. */
static void widen_q8(const int8_t *k, const uint16_t *ks, size_t d, float *ret)
{
    const size_t half = d * ATTN_PAGE, block = 32 * ATTN_PAGE;
    widen(ks + half / 32, half / 32, ret);
    for (size_t b = 0; b < half / 32; b++) {
        for (size_t i = half + b * 32; i < half + (b + 1) * 32; i += 16)
            v16_store(ret + i, v16_mul(v16_load_i8(k + i), v16_set(ret[b])));
    }
    for (size_t b = 0; b < d / 32; b++) {
        for (size_t j = 0; j < ATTN_PAGE; j += 16) {
            v16 scale = v16_load_f16(ks + b * ATTN_PAGE + j);
            for (size_t i = b * block + j; i < (b + 1) * block; i += ATTN_PAGE)
                v16_store(ret + i, v16_mul(v16_load_i8(k + i), scale));
        }
    }
}

static void widen_head(const struct attn_shape *s, const void *head, float *ret)
{
    size_t half = (size_t)ATTN_PAGE * s->head_dim;
    const uint16_t *halves = head;
    if (s->kv_type == QUANT_F16)
        widen(halves, 2 * half, ret);
    else
        widen_q8((const int8_t *)(halves + half / 16), halves, s->head_dim, ret);
}

/* Sixteen entries at index i of a tile, those of q8_0 without their scale. */
INLINE v16 entries(int type, const void *p, size_t i)
{
    return type == QUANT_F16    ? v16_load_f16((const uint16_t *)p + i)
           : type == QUANT_Q8_0 ? v16_load_i8((const int8_t *)p + i)
                                : v16_load((const float *)p + i);
}

/* As many lines as an entry has bytes: after d steps all of K, or of V. */
INLINE void fetch_step(int type, struct fetch *f)
{
    for (size_t line = 0; line < entry_bytes(type) && f->at < f->end; line++, f->at += 64)
        __builtin_prefetch(f->at);
}

/* Scores of 64 positions for n rows, a constant at the call. */
INLINE void scores(int type, int n, const struct row *r, const struct tile *t, struct fetch *fetch, size_t d, float scale)
{
    const int vectors = LANES_VECTORS(n);
    for (size_t j0 = 0; j0 < ATTN_PAGE; j0 += 16 * (size_t)vectors) {
        v16 acc[LANES_ROWS][4];
        UNROLL(int i = 0; i < n; i++)
        {
            UNROLL(int j = 0; j < vectors; j++)
            acc[i][j] = v16_set(0);
        }
        v16 of_block[4] = {v16_set(0), v16_set(0), v16_set(0), v16_set(0)};
        for (size_t x = 0; x < d; x++) {
            v16 kv[4];
            if (type == QUANT_Q8_0 && x % 32 == 0) {
                UNROLL(int j = 0; j < vectors; j++)
                of_block[j] = v16_load(t->ks + x / 32 * ATTN_PAGE + j0 + 16 * (size_t)j);
            }
            fetch_step(type, fetch);
            UNROLL(int j = 0; j < vectors; j++)
            kv[j] = entries(type, t->k, x * ATTN_PAGE + j0 + 16 * (size_t)j);
            if (type == QUANT_Q8_0) {
                UNROLL(int j = 0; j < vectors; j++)
                kv[j] = v16_mul(kv[j], of_block[j]);
            }
            UNROLL(int i = 0; i < n; i++)
            {
                v16 q = v16_set(r[i].q[x]);
                UNROLL(int j = 0; j < vectors; j++)
                acc[i][j] = v16_fma(kv[j], q, acc[i][j]);
            }
        }
        UNROLL(int i = 0; i < n; i++)
        {
            UNROLL(int j = 0; j < vectors; j++)
            v16_store(r[i].p + j0 + 16 * (size_t)j, v16_mul(acc[i][j], v16_set(scale)));
        }
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

/* Dimensions x.. of positions lo..hi-1 of V, weighted, onto the outputs of n rows; n and the number of vectors are constants. */
INLINE void weigh_vectors(int type, int n, int vectors, const struct row *r, const struct tile *tile, struct fetch *fetch, size_t d,
                          size_t x, int lo, int hi)
{
    v16 acc[LANES_ROWS][4];
    UNROLL(int i = 0; i < n; i++)
    {
        UNROLL(int j = 0; j < vectors; j++)
        acc[i][j] = v16_load(r[i].o + x + 16 * (size_t)j);
    }
    for (int t = lo; t < hi; t++) {
        v16 value[4];
        fetch_step(type, fetch);
        UNROLL(int j = 0; j < vectors; j++)
        value[j] = entries(type, tile->v, (size_t)t * d + x + 16 * (size_t)j);
        if (type == QUANT_Q8_0) {
            UNROLL(int j = 0; j < vectors; j++)
            value[j] = v16_mul(value[j], v16_set(tile->vs[((size_t)t * d + x + 16 * (size_t)j) / 32]));
        }
        UNROLL(int i = 0; i < n; i++)
        {
            v16 p = v16_set(r[i].p[t]);
            UNROLL(int j = 0; j < vectors; j++)
            acc[i][j] = v16_fma(value[j], p, acc[i][j]);
        }
    }
    UNROLL(int i = 0; i < n; i++)
    {
        UNROLL(int j = 0; j < vectors; j++)
        v16_store(r[i].o + x + 16 * (size_t)j, acc[i][j]);
    }
}

INLINE void weigh(int type, int n, const struct row *r, const struct tile *t, struct fetch *fetch, size_t d, int lo, int hi)
{
    size_t x = 0;
    for (const size_t step = 16 * LANES_VECTORS(n); x + step <= d; x += step)
        weigh_vectors(type, n, LANES_VECTORS(n), r, t, fetch, d, x, lo, hi);
    for (; x < d; x += 16)
        weigh_vectors(type, n, 1, r, t, fetch, d, x, lo, hi);
}

struct range {
    int lo, hi; /* lo <= position in the tile < hi; empty when equal */
};

static struct range visible(const struct attn_shape *s, uint32_t pos, uint32_t base)
{
    uint32_t from = s->window && pos + 1 > s->window ? pos + 1 - s->window : 0;
    if (pos < base || from >= base + ATTN_PAGE)
        return (struct range){0, 0};
    return (struct range){from > base ? (int)(from - base) : 0, pos - base < ATTN_PAGE ? (int)(pos - base) + 1 : ATTN_PAGE};
}

static bool sees(const struct attn_shape *s, uint32_t pos, uint32_t base)
{
    return visible(s, pos, base).hi > 0;
}

/* n rows that all see part of the tile. Positions seen by all are weighed together, those before and after row by row: each row
 * still walks its own range upwards. */
INLINE void tile_block(int type, int n, const struct attn_shape *s, const struct row *r, uint32_t base, const struct tile *t,
                       struct fetch *v, struct fetch *next)
{
    struct fetch none = {NULL, NULL};
    struct range seen[LANES_ROWS], all = {0, ATTN_PAGE};
    scores(type, n, r, t, v, s->head_dim, s->scale);
    for (int i = 0; i < n; i++) {
        seen[i] = visible(s, r[i].pos, base);
        soften(&r[i], s->head_dim, seen[i].lo, seen[i].hi);
        all.lo = seen[i].lo > all.lo ? seen[i].lo : all.lo;
        all.hi = seen[i].hi < all.hi ? seen[i].hi : all.hi;
    }
    if (all.lo > all.hi)
        all.lo = all.hi = ATTN_PAGE;
    for (int i = 0; i < n; i++) {
        int end = seen[i].hi < all.lo ? seen[i].hi : all.lo;
        if (seen[i].lo < end)
            weigh(type, 1, &r[i], t, &none, s->head_dim, seen[i].lo, end);
    }
    if (all.lo < all.hi)
        weigh(type, n, r, t, next, s->head_dim, all.lo, all.hi);
    for (int i = 0; i < n; i++) {
        if (all.hi < seen[i].hi)
            weigh(type, 1, &r[i], t, &none, s->head_dim, all.hi, seen[i].hi);
    }
}

INLINE void tile_rows(int type, const struct attn_shape *s, const struct row *r, uint32_t n, uint32_t base, const struct tile *t)
{
    struct fetch v = {NULL, NULL}, next = {NULL, NULL};
    size_t half = ATTN_PAGE * s->head_dim * entry_bytes(type), scales = type == QUANT_Q8_0 ? half / 8 : 0;
    if (n <= NARROW_ROWS) {
        v = (struct fetch){t->v, (const uint8_t *)t->v + half};
        if (t->next)
            next = (struct fetch){t->next, t->next + scales + half};
    }
    for (uint32_t i = 0, m; i < n; i += m) {
        for (m = 0; m < LANES_ROWS && i + m < n && sees(s, r[i + m].pos, base);)
            m++;
        m = m >= 6 ? 6 : m >= 4 ? 4 : m >= 2 ? 2 : 1;
        if (!sees(s, r[i].pos, base))
            continue;
        if (m == 6)
            tile_block(type, LANES_ROWS >= 6 ? 6 : 1, s, r + i, base, t, &v, &next);
        else if (m == 4)
            tile_block(type, LANES_ROWS >= 4 ? 4 : 1, s, r + i, base, t, &v, &next);
        else if (m == 2)
            tile_block(type, LANES_ROWS >= 2 ? 2 : 1, s, r + i, base, t, &v, &next);
        else
            tile_block(type, 1, s, r + i, base, t, &v, &next);
    }
}

static void tile_f16(const struct attn_shape *s, const struct row *r, uint32_t n, uint32_t base, const struct tile *t)
{
    tile_rows(QUANT_F16, s, r, n, base, t);
}

static void tile_q8(const struct attn_shape *s, const struct row *r, uint32_t n, uint32_t base, const struct tile *t)
{
    tile_rows(QUANT_Q8_0, s, r, n, base, t);
}

static void tile_f32(const struct attn_shape *s, const struct row *r, uint32_t n, uint32_t base, const struct tile *t)
{
    tile_rows(QUANT_F32, s, r, n, base, t);
}

/* One head of a page; `wide` is scratch for K and V, or for scales, as f32. */
static void run_tile(const struct attn_shape *s, const struct row *r, uint32_t n, uint32_t base, const uint8_t *head,
                     const uint8_t *next, float *wide)
{
    size_t half = (size_t)ATTN_PAGE * s->head_dim;
    const uint16_t *halves = (const uint16_t *)(const void *)head;
    const int8_t *bytes = (const int8_t *)(halves + half / 16); /* q8_0: behind the scales */
    if (s->kv_type == QUANT_F32) {
        tile_f32(s, r, n, base, &(struct tile){.k = head, .v = head + half * sizeof(float), .next = next});
    } else if (n > NARROW_ROWS) {
        widen_head(s, head, wide);
        tile_f32(s, r, n, base, &(struct tile){.k = wide, .v = wide + half});
    } else if (s->kv_type == QUANT_F16) {
        tile_f16(s, r, n, base, &(struct tile){.k = halves, .v = halves + half, .next = next});
    } else {
        widen(halves, half / 16, wide);
        tile_q8(s, r, n, base, &(struct tile){.k = bytes, .v = bytes + half, .ks = wide, .vs = wide + half / 32, .next = next});
    }
}

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
        const uint8_t *next = page < last / ATTN_PAGE ? page_head(s, pages[page + 1], kv_head) : NULL;
        run_tile(s, r, n, page * ATTN_PAGE, page_head(s, pages[page], kv_head), next, wide);
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
    struct row rows[ATTN_ROWS];
    for (uint32_t i = 0; i < n_queries; i++) {
        for (uint32_t g = 0; g < group; g++) {
            size_t at = i * stride + (size_t)(kv_head * group + g) * d;
            float *f = free_floats + (size_t)n * (ATTN_PAGE + 32);
            rows[n++] = (struct row){
                .q = q + at, .o = out + at, .p = f, .lanes = f + ATTN_PAGE, .state = f + ATTN_PAGE + 16, .pos = pos0 + i};
            if (n == ATTN_ROWS || (i + 1 == n_queries && g + 1 == group)) {
                run_rows(s, kv_head, rows, n, pages, wide);
                n = 0;
            }
        }
    }
}

static void load(const struct attn_shape *s, const void *page, uint32_t kv_head, float *ret)
{
    const uint8_t *head = page_head(s, page, kv_head);
    size_t half = (size_t)ATTN_PAGE * s->head_dim;
    if (s->kv_type == QUANT_F32)
        memcpy(ret, head, 2 * half * sizeof(float));
    else
        widen_head(s, head, ret);
}

const struct attn_ops LANES_VARIANT(attn) = {.name = LANES_NAME, .store = store, .load = load, .run = run};
