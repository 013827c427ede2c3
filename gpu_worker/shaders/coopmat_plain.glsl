// SPDX-License-Identifier: MIT
// The product of coopmat.glsl in plain arithmetic: c += a * b, of the tiles a_tile and b_tile.
float plain_half(uvec4 w, uint i)
{
    return unpackHalf2x16(w[i / 2])[i % 2];
}

mat_c plain_mul_add(mat_operand a, mat_operand b, mat_c c)
{
    for (uint k = 0; k < 16; k++) {
        uint row = MAT_ROW;
        float x = a.by_column ? plain_half(a_tile[a.at + k * a.stride + row / 8], row % 8)
                              : plain_half(a_tile[a.at + row * a.stride + k / 8], k % 8);
        for (uint e = 0; e < 8; e++)
            c.v[e] = fma(x, plain_half(b_tile[b.at + MAT_COLUMN(e) * b.stride + k / 8], k % 8), c.v[e]);
    }
    return c;
}
