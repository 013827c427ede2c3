// SPDX-License-Identifier: MIT
// Cooperative matrices 16 x 16 x 16, f16 x f16 -> f32, of a subgroup. Two ways to the same instructions, and one without them:
// default: SPV_KHR_cooperative_matrix as intrinsics (numbers from the SPIR-V specification). The compiler of Debian 12 cannot name a
// type among the operands of another, so that the component type is written as a marker, 0xf00000nn for the float of nn bits,
// which cmake/spirv_types.c replaces at build time.  COOPMAT_NV: GL_NV_cooperative_matrix, which the compiler knows.
// COOPMAT_PLAIN: simulated, for tests on devices that have none. Operands stay where they are in shared memory until they are
// multiplied; each of 32 invocations makes eight of the sums. The includer includes coopmat_plain.glsl after a_tile and b_tile.
#ifdef COOPMAT_PLAIN
struct mat_operand {
    uint at, stride;
    bool by_column;
};
struct mat_c {
    float v[8];
};
#define mat_a mat_operand
#define mat_b mat_operand
#define MAT_SUBGROUP (gl_LocalInvocationID.x / 32)
#define MAT_ROW (gl_LocalInvocationID.x % 32 / 2)
#define MAT_COLUMN(e) (gl_LocalInvocationID.x % 2 * 8 + e)
#define MAT_ZERO mat_c(float[8](0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
#define MAT_LOAD_A(m, array, at, stride, by_column) m = mat_operand(at, stride, by_column)
#define MAT_LOAD_B(m, array, at, stride, by_column) m = mat_operand(at, stride, by_column)
#define MAT_STORE_C(m, array, at, stride, by_column) \
    for (uint e = 0; e < 8; e++)                     \
    array[by_column ? at + MAT_COLUMN(e) * stride + MAT_ROW : at + MAT_ROW * stride + MAT_COLUMN(e)] = m.v[e]
#define MAT_MUL_ADD(a, b, c) plain_mul_add(a, b, c)
#else
#define MAT_SUBGROUP gl_SubgroupID
#pragma use_vulkan_memory_model
#extension GL_KHR_memory_scope_semantics : require
#ifdef COOPMAT_NV
#extension GL_NV_cooperative_matrix : require
#define mat_a fcoopmatNV<16, gl_ScopeSubgroup, 16, 16>
#define mat_b fcoopmatNV<16, gl_ScopeSubgroup, 16, 16>
#define mat_c fcoopmatNV<32, gl_ScopeSubgroup, 16, 16>
#define MAT_ZERO mat_c(0.0)
#define MAT_LOAD_A(m, array, at, stride, by_column) coopMatLoadNV(m, array, at, stride, by_column)
#define MAT_LOAD_B(m, array, at, stride, by_column) coopMatLoadNV(m, array, at, stride, by_column)
#define MAT_STORE_C(m, array, at, stride, by_column) coopMatStoreNV(m, array, at, stride, by_column)
#define MAT_MUL_ADD(a, b, c) coopMatMulAddNV(a, b, c)
#else
#extension GL_EXT_spirv_intrinsics : require
const int MAT_SCOPE = 3, MAT_DIM = 16, MAT_USE_A = 0, MAT_USE_B = 1, MAT_USE_C = 2;
#define MAT_TYPE(component, use)                                                                                                       \
    spirv_type(extensions = ["SPV_KHR_cooperative_matrix"], capabilities = [6022], id = 4456, component, MAT_SCOPE, MAT_DIM, MAT_DIM, \
               use)
#define mat_a MAT_TYPE(0xf0000010u, MAT_USE_A)
#define mat_b MAT_TYPE(0xf0000010u, MAT_USE_B)
#define mat_c MAT_TYPE(0xf0000020u, MAT_USE_C)
#define MAT_NON_PRIVATE 0x20u // memory operand: ordered by barriers
spirv_instruction(id = 4457) mat_a mat_load_a(spirv_by_reference uvec4 p, int layout_id, uint stride, spirv_literal uint operands);
spirv_instruction(id = 4457) mat_b mat_load_b(spirv_by_reference uvec4 p, int layout_id, uint stride, spirv_literal uint operands);
spirv_instruction(id = 4458) void mat_store_c(spirv_by_reference float p, mat_c c, int layout_id, uint stride,
                                              spirv_literal uint operands);
spirv_instruction(id = 4459) mat_c mat_mul_add(mat_a a, mat_b b, mat_c c);
spirv_instruction(id = 80) mat_c mat_fill(float x);
#define MAT_ZERO mat_fill(0.0)
#define MAT_LOAD_A(m, array, at, stride, by_column) m = mat_load_a(array[at], by_column ? 1 : 0, stride, MAT_NON_PRIVATE)
#define MAT_LOAD_B(m, array, at, stride, by_column) m = mat_load_b(array[at], by_column ? 1 : 0, stride, MAT_NON_PRIVATE)
#define MAT_STORE_C(m, array, at, stride, by_column) mat_store_c(array[at], m, by_column ? 1 : 0, stride, MAT_NON_PRIVATE)
#define MAT_MUL_ADD(a, b, c) mat_mul_add(a, b, c)
#endif
#endif
