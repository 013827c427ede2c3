// SPDX-License-Identifier: MIT
// gelu_tanh(g) = g / (1 + exp(-2 sqrt(2 / pi) (g + 0.044715 g^3))), as kernels/vec.h; the exponent is bounded so that nothing
// overflows (beyond it the result is below 1e-30 in magnitude).
vec4 gelu(vec4 g)
{
    return g / (1.0 + exp(min((g + g * g * g * 0.044715) * -1.5957691216, vec4(80.0))));
}
