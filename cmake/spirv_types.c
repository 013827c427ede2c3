/* SPDX-License-Identifier: MIT
 * Build tool: completes SPIR-V whose cooperative matrix types carry a marker 0xf00000nn instead of the id of their component type
 * (gpu_worker/shaders/coopmat.glsl says why), and writes it as a C initializer. usage: spirv_types <in.spv> <out.inc>.
 * The float types are moved before all other types, so that each is declared before its use. Layout of instructions and numbers
 * of opcodes: SPIR-V specification, SPV_KHR_cooperative_matrix. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_WORDS ((size_t)1 << 20)
#define HEADER 5
#define OP_TYPE_VOID 19
#define OP_TYPE_FLOAT 22
#define OP_TYPE_COOPERATIVE_MATRIX_KHR 4456
#define MARKER 0xf0000000u

static uint32_t in[MAX_WORDS], out[MAX_WORDS];

static int fail(const char *name, const char *why)
{
    fprintf(stderr, "spirv_types: '%s': %s\n", name, why);
    return 1;
}

static uint32_t length(const uint32_t *w)
{
    return *w >> 16;
}

static uint32_t opcode(const uint32_t *w)
{
    return *w & 0xffff;
}

/* Id of the float type of that many bits, 0 when there is none. */
static uint32_t float_type(const uint32_t *w, size_t n, uint32_t bits)
{
    for (size_t i = HEADER; i < n; i += length(w + i)) {
        if (opcode(w + i) == OP_TYPE_FLOAT && w[i + 2] == bits)
            return w[i + 1];
    }
    return 0;
}

static int convert(const char *name, size_t n, size_t *ret)
{
    size_t m = HEADER;
    int moved = 0;
    memcpy(out, in, HEADER * sizeof(*in));
    for (size_t i = HEADER; i < n; i += length(in + i)) {
        uint32_t op = opcode(in + i), len = length(in + i);
        if (op == OP_TYPE_VOID && !moved) {
            moved = 1;
            for (size_t k = HEADER; k < n; k += length(in + k)) {
                if (opcode(in + k) == OP_TYPE_FLOAT) {
                    memcpy(out + m, in + k, length(in + k) * sizeof(*in));
                    m += length(in + k);
                }
            }
        }
        if (op == OP_TYPE_FLOAT && moved)
            continue;
        memcpy(out + m, in + i, len * sizeof(*in));
        if (op == OP_TYPE_COOPERATIVE_MATRIX_KHR) {
            uint32_t id = (in[i + 2] & MARKER) == MARKER ? float_type(in, n, in[i + 2] & 0xff) : 0;
            if (!id)
                return fail(name, "component type of a cooperative matrix is no marker of a float type that the module declares");
            out[m + 2] = id;
        }
        m += len;
    }
    *ret = m;
    return 0;
}

static int check(const char *name, size_t n)
{
    if (n < HEADER || n == MAX_WORDS || in[0] != 0x07230203)
        return fail(name, "not SPIR-V of this machine's byte order, or too long");
    for (size_t i = HEADER; i < n; i += length(in + i)) {
        if (length(in + i) == 0 || length(in + i) > n - i)
            return fail(name, "an instruction has no length, or ends after the file");
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return fail("usage", "spirv_types <in.spv> <out.inc>");
    FILE *f = fopen(argv[1], "rb");
    if (!f)
        return fail(argv[1], strerror(errno));
    size_t n = fread(in, 4, MAX_WORDS, f), m = 0;
    fclose(f);
    if (check(argv[1], n) || convert(argv[1], n, &m))
        return 1;
    f = fopen(argv[2], "w");
    if (!f)
        return fail(argv[2], strerror(errno));
    fputs("{", f);
    for (size_t i = 0; i < m; i++)
        fprintf(f, "%s0x%08x", i ? "," : "", out[i]);
    fputs("}\n", f);
    return fclose(f) ? fail(argv[2], strerror(errno)) : 0;
}
