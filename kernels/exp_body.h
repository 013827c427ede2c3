/* SPDX-License-Identifier: MIT
 * exp on sixteen lanes, on top of a lanes_*.h header: range reduction by n ln 2 in two parts
 * (Cody and Waite), the polynomial of Cephes' expf, 2^n in two factors so that neither end of the range overflows early. */
__attribute__((unused)) static inline v16 exp16(v16 x)
{
    v16 clamped = v16_min(v16_max(x, v16_set(-87.33654f)), v16_set(89.0f));
    v16 n = v16_round(v16_mul(clamped, v16_set(1.44269504f)));
    v16 r = v16_fma(n, v16_set(-0.693359375f), clamped);
    r = v16_fma(n, v16_set(2.12194440e-4f), r);
    v16 p = v16_set(1.9875691500e-4f);
    p = v16_fma(p, r, v16_set(1.3981999507e-3f));
    p = v16_fma(p, r, v16_set(8.3334519073e-3f));
    p = v16_fma(p, r, v16_set(4.1665795894e-2f));
    p = v16_fma(p, r, v16_set(1.6666665459e-1f));
    p = v16_fma(p, r, v16_set(5.0000001201e-1f));
    p = v16_fma(v16_mul(p, r), r, v16_add(r, v16_set(1.0f)));
    v16 half = v16_round(v16_mul(n, v16_set(0.5f)));
    p = v16_mul(v16_mul(p, v16_exp2i(half)), v16_exp2i(v16_sub(n, half)));
    return v16_zero_unless_less(v16_set(-87.33654f), x, p);
}
