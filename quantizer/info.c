/* SPDX-License-Identifier: MIT
 * Prints metadata as text. What comes from the file is untrusted: control characters are escaped and long values cut. Called by
 * the command `info`; owns nothing but the open file for the length of the call. */
#include "quantizer/info.h"

#include <inttypes.h>
#include <string.h>

#include "kernels/quant.h"
#include "model/gguf.h"
#include "proto/err.h"
#include "proto/util.h"

#define MAX_TEXT 60u
#define MAX_ELEMENTS 6u
#define MAX_TYPES 64

static const char *const type_names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};
static const uint8_t type_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static void print_text(FILE *f, const char *s, uint64_t n)
{
    fputc('\'', f);
    for (uint64_t i = 0; i < MIN(n, MAX_TEXT); i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '\n')
            fputs("\\n", f);
        else if (c < 32 || c == 127)
            fprintf(f, "\\x%02x", c);
        else
            fputc(c, f);
    }
    fputs(n > MAX_TEXT ? "...'" : "'", f);
    if (n > MAX_TEXT)
        fprintf(f, " (%" PRIu64 " bytes)", n);
}

static void print_number(FILE *f, enum gguf_value_type type, const void *data)
{
    union {
        uint64_t u64;
        int64_t i64;
        double f64;
        float f32;
        uint32_t u32;
        int32_t i32;
        uint16_t u16;
        int16_t i16;
        uint8_t u8;
        int8_t i8;
    } v = {0};
    memcpy(&v, data, type_bytes[type]);
    const int64_t integers[] = {v.u8, v.i8, v.u16, v.i16, v.u32, v.i32, 0, v.u8, 0, 0, 0, v.i64, 0};
    if (type == GGUF_F32)
        fprintf(f, "%.9g", (double)v.f32);
    else if (type == GGUF_F64)
        fprintf(f, "%.17g", v.f64);
    else if (type == GGUF_U64)
        fprintf(f, "%" PRIu64, v.u64);
    else if (type == GGUF_BOOL)
        fputs(v.u8 ? "true" : "false", f);
    else
        fprintf(f, "%" PRId64, integers[type]);
}

static void print_array(FILE *f, const struct gguf_key *k)
{
    fputc('[', f);
    for (uint64_t i = 0; i < MIN(k->n, MAX_ELEMENTS); i++) {
        fputs(i ? ", " : "", f);
        if (k->element == GGUF_STRING)
            print_text(f, (const char *)k->data + k->offsets[i], k->offsets[i + 1] - k->offsets[i] - 1);
        else
            print_number(f, k->element, (const uint8_t *)k->data + i * type_bytes[k->element]);
    }
    fprintf(f, k->n > MAX_ELEMENTS ? ", ...] (%" PRIu64 ")" : "] (%" PRIu64 ")", k->n);
}

static void print_keys(const struct gguf *g, FILE *f)
{
    for (uint32_t i = 0; i < gguf_n_keys(g); i++) {
        struct gguf_key k;
        gguf_key_at(g, i, &k);
        fprintf(f, "%-44s %-12s ", k.name, k.type == GGUF_ARRAY ? type_names[k.element] : type_names[k.type]);
        if (k.type == GGUF_ARRAY)
            print_array(f, &k);
        else if (k.type == GGUF_STRING)
            print_text(f, k.data, k.n);
        else
            print_number(f, k.type, k.data);
        fputc('\n', f);
    }
}

static const char *type_name(int type)
{
    const char *name = quant_ggml_name(type);
    return name ? name : "?";
}

static void print_tensors(const struct gguf *g, FILE *f)
{
    fprintf(f, "%-40s %-24s %-6s %4s %13s %13s\n", "tensor", "shape (row length first)", "type", "file", "offset", "bytes");
    for (uint32_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char shape[96];
        int n = snprintf(shape, sizeof(shape), "%" PRIu64, t->dims[0]);
        for (uint32_t d = 1; d < t->n_dims; d++)
            n += snprintf(shape + n, sizeof(shape) - (size_t)n, " x %" PRIu64, t->dims[d]);
        fprintf(f, "%-40s %-24s %-6s %4u %13" PRIu64 " %13" PRIu64 "\n", t->name, shape, type_name(t->type), t->file + 1, t->offset,
                t->bytes);
    }
}

/* "q4_K: 84 tensors, 6.1 MiB" for each type that there is. */
static void print_types(const struct gguf *g, FILE *f)
{
    for (int type = 0; type < MAX_TYPES; type++) {
        uint32_t n = 0;
        uint64_t bytes = 0;
        char text[16];
        for (uint32_t i = 0; i < gguf_n_tensors(g); i++) {
            const struct gguf_tensor *t = gguf_tensor_at(g, i);
            n += t->type == type;
            bytes += t->type == type ? t->bytes : 0;
        }
        if (n)
            fprintf(f, "%s: %u tensors, %s\n", type_name(type), n, util_format_bytes(text, sizeof(text), bytes));
    }
}

int info_run(const char *path, FILE *f, struct err *err)
{
    struct gguf *g;
    char bytes[16];
    int r = gguf_open(path, false, &g, err);
    if (r < 0)
        return r;
    fprintf(f, "'%s': %u file%s, %s, %u keys, %u tensors\n\n", path, gguf_n_files(g), gguf_n_files(g) > 1 ? "s" : "",
            util_format_bytes(bytes, sizeof(bytes), gguf_file_bytes(g)), gguf_n_keys(g), gguf_n_tensors(g));
    print_keys(g, f);
    fputc('\n', f);
    print_tensors(g, f);
    fputc('\n', f);
    print_types(g, f);
    gguf_close(g);
    return 0;
}
