// SPDX-License-Identifier: MIT
// Four products of signed bytes packed in 32 bits, summed. INT_DOT: SPIR-V's OpSDot, which the compiler of Debian 12 reaches only as
// an intrinsic (numbers from the SPIR-V specification, SPV_KHR_integer_dot_product). Without: plain arithmetic, same result.
#ifdef INT_DOT
#extension GL_EXT_spirv_intrinsics : require
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6018, 6019], id = 4450)
int packed_dot(uint a, uint b, spirv_literal uint packed_format);
int dot4(uint a, uint b)
{
    return packed_dot(a, b, 0);
}
#else
int dot4(uint a, uint b)
{
    int x = int(a), y = int(b), sum = 0;
    for (int i = 0; i < 32; i += 8)
        sum += bitfieldExtract(x, i, 8) * bitfieldExtract(y, i, 8);
    return sum;
}
#endif
