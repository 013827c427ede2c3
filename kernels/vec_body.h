/* SPDX-License-Identifier: MIT
 * The element-wise kernels, once, on sixteen lanes; vec_ref.c, vec_avx2.c and vec_avx512.c include it after their lanes header.
 * A row that is no multiple of 16 ends in a padded vector whose extra lanes are zero. */
#include <math.h>
#include <string.h>

#include "kernels/exp_body.h"
#include "kernels/vec.h"

static inline v16 load_tail(const float *p, size_t n)
{
    float t[16] = {0};
    memcpy(t, p, n * sizeof(float));
    return v16_load(t);
}

static inline void store_tail(float *p, v16 x, size_t n)
{
    float t[16];
    v16_store(t, x);
    memcpy(p, t, n * sizeof(float));
}

/* i walks the row by vectors; m = lanes in use. */
#define FOR_EACH_VECTOR(n) for (size_t i = 0, m; i < (n) && (m = (n)-i < 16 ? (n)-i : 16); i += 16)
#define LOAD(p) (m == 16 ? v16_load((p) + i) : load_tail((p) + i, m))
#define STORE(p, x) (m == 16 ? v16_store((p) + i, x) : store_tail((p) + i, x, m))

static float inverse_rms(const float *x, size_t n, float eps)
{
    v16 sum = v16_set(0);
    FOR_EACH_VECTOR(n)
    {
        v16 v = LOAD(x);
        sum = v16_fma(v, v, sum);
    }
    return 1.0f / sqrtf(sum16(sum) / (float)n + eps);
}

static void rmsnorm(const float *x, const float *w, size_t n, float eps, float *y)
{
    v16 s = v16_set(inverse_rms(x, n, eps));
    FOR_EACH_VECTOR(n)
    STORE(y, v16_mul(v16_mul(LOAD(x), s), LOAD(w)));
}

static void rmsnorm_add(const float *x, const float *w, size_t n, float eps, const float *r, float *y)
{
    v16 s = v16_set(inverse_rms(x, n, eps));
    FOR_EACH_VECTOR(n)
    STORE(y, v16_add(LOAD(r), v16_mul(v16_mul(LOAD(x), s), LOAD(w))));
}

static void rope(float *head, size_t n, const float *cos, const float *sin)
{
    float *a = head, *b = head + n / 2;
    FOR_EACH_VECTOR(n / 2)
    {
        v16 c = LOAD(cos), s = LOAD(sin), x = LOAD(a), y = LOAD(b), zero = v16_set(0);
        STORE(a, v16_fma(x, c, v16_sub(zero, v16_mul(y, s))));
        STORE(b, v16_fma(y, c, v16_mul(x, s)));
    }
}

static void geglu(const float *gate, const float *up, size_t n, float *y)
{
    FOR_EACH_VECTOR(n)
    {
        v16 g = LOAD(gate), u = LOAD(up);
        v16 cubic = v16_mul(v16_mul(v16_mul(g, g), g), v16_set(0.044715f));
        v16 e = exp16(v16_mul(v16_add(g, cubic), v16_set(-1.5957691216f))); /* -2 sqrt(2 / pi) */
        STORE(y, v16_mul(v16_div(g, v16_add(v16_set(1.0f), e)), u));
    }
}

static void scale(const float *x, float s, size_t n, float *y)
{
    FOR_EACH_VECTOR(n)
    STORE(y, v16_mul(LOAD(x), v16_set(s)));
}

const struct vec_ops LANES_VARIANT(vec) = {
    .name = LANES_NAME, .rmsnorm = rmsnorm, .rmsnorm_add = rmsnorm_add, .rope = rope, .geglu = geglu, .scale = scale};
