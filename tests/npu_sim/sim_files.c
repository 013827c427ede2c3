/* SPDX-License-Identifier: MIT
 * Operators from words to instruction streams, instruction files and a manifest. For sim_make and the tests; one thread. */
#include "tests/npu_sim/sim_files.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/util.h"
#include "tests/npu_sim/sim_stream.h"
#include "tests/npu_sim/sim_xclbin.h"

#define DIMS_MAX 6u
#define GEMM_ROWS 4u

static const struct {
    const char *name, *arguments, *dtypes;
    unsigned n_dims;
    const char *dims[DIMS_MAX];
} kinds[SIM_OPERATORS] = {
    [SIM_GEMM] = {"gemm", "a, b, c", NULL, 3, {"m", "k", "n"}},
    [SIM_GEMV] = {"gemv", "a, x, y", NULL, 2, {"m", "k"}},
    [SIM_RMS_NORM] = {"rms_norm", "x, w, y", NULL, 2, {"rows", "width"}},
    [SIM_ROPE] = {"rope", "x, angles, y", NULL, 2, {"rows", "width"}},
    [SIM_ATTENTION] = {"attention",
                       "q, k, v, positions, o",
                       "bf16, bf16, bf16, i32, bf16",
                       6,
                       {"tokens", "keys", "heads", "kv_heads", "head_dim", "window"}},
};

struct parsed {
    unsigned kind;
    uint32_t dims[DIMS_MAX];
    char extra[32]; /* behind the second colon */
};

static int parse(const char *text, struct parsed *ret, struct err *err)
{
    size_t n = strcspn(text, ":");
    memset(ret, 0, sizeof(*ret));
    while (ret->kind < SIM_OPERATORS && (strlen(kinds[ret->kind].name) != n || strncmp(kinds[ret->kind].name, text, n) != 0))
        ret->kind++;
    if (ret->kind == SIM_OPERATORS || !text[n])
        return err_set(err, -EINVAL, "operator '%s': expected KIND:DIMxDIM... of gemm, gemv, rms_norm, rope or attention", text);
    const char *p = text + n + 1;
    for (unsigned i = 0; i < kinds[ret->kind].n_dims; i++) {
        char *end;
        ret->dims[i] = (uint32_t)strtoul(p, &end, 10);
        if (end == p || (i + 1 < kinds[ret->kind].n_dims && *end != 'x'))
            return err_set(err, -EINVAL, "operator '%s': expected %u dimensions", text, kinds[ret->kind].n_dims);
        p = end + (*end == 'x');
    }
    if (*p == ':')
        snprintf(ret->extra, sizeof(ret->extra), "%s", p + 1);
    return *p && *p != ':' ? err_set(err, -EINVAL, "operator '%s': '%s' means nothing", text, p) : 0;
}

/* The largest of the usual tiles whose `times` divides n; 0: none. */
static uint32_t tile(uint32_t n, uint32_t times)
{
    for (uint32_t t = 64; t >= 8; t /= 2) {
        if (n % (t * times) == 0)
            return t;
    }
    return 0;
}

static int gemm_words(const struct parsed *p, uint32_t *w, const char *text, struct err *err)
{
    w[3] = strcmp(p->extra, "nk") == 0;
    w[4] = tile(p->dims[0], GEMM_ROWS);
    w[5] = tile(p->dims[1], 1);
    for (w[7] = 4; w[7] > 1 && !tile(p->dims[2], w[7]); w[7] /= 2)
        ;
    w[6] = tile(p->dims[2], w[7]);
    if (!w[4] || !w[5] || !w[6])
        return err_set(err, -EINVAL, "operator '%s': m has to be a multiple of 32, k and n of 8", text);
    return 0;
}

static int gemv_words(const struct parsed *p, uint32_t *w, const char *text, struct err *err)
{
    for (w[3] = 4; w[3] > 1 && !tile(p->dims[0], w[3]); w[3] /= 2)
        ;
    w[2] = tile(p->dims[0], w[3]);
    if (!w[2] || p->dims[1] % 16)
        return err_set(err, -EINVAL, "operator '%s': m has to be a multiple of 8, k of 16", text);
    return 0;
}

static int words_of(const struct parsed *p, const char *text, uint32_t *ret, size_t *ret_n, struct err *err)
{
    uint32_t *w = ret + SIM_STREAM_HEADER;
    float value = strtof(p->extra, NULL);
    int r = 0;
    memset(ret, 0, SIM_STREAM_WORDS_MAX * sizeof(*ret));
    ret[0] = SIM_STREAM_MAGIC;
    ret[1] = SIM_STREAM_VERSION;
    ret[2] = p->kind;
    ret[3] = sim_stream_params[p->kind];
    memcpy(w, p->dims, kinds[p->kind].n_dims * sizeof(*w));
    if (p->kind == SIM_GEMM)
        r = gemm_words(p, w, text, err);
    else if (p->kind == SIM_GEMV)
        r = gemv_words(p, w, text, err);
    else if (p->kind == SIM_ROPE)
        w[2] = strcmp(p->extra, "interleaved") == 0;
    else if (!(value > 0))
        r = err_set(err, -EINVAL, "operator '%s': expected a number above 0 at its end", text);
    else
        memcpy(w + kinds[p->kind].n_dims, &value, sizeof(value));
    *ret_n = SIM_STREAM_HEADER + ret[3];
    return r;
}

int sim_files_words(const char *operator_text, uint32_t *ret, size_t *ret_n, struct err *err)
{
    struct parsed p;
    int r = parse(operator_text, &p, err);
    return r < 0 ? r : words_of(&p, operator_text, ret, ret_n, err);
}

static int write_words(const char *path, bool hex, const uint32_t *words, size_t n, struct err *err)
{
    auto_file f = fopen(path, "wb");
    if (!f)
        return err_set_errno(err, -errno, "'%s'", path);
    for (size_t i = 0; i < n; i++) {
        uint8_t b[4] = {(uint8_t)words[i], (uint8_t)(words[i] >> 8), (uint8_t)(words[i] >> 16), (uint8_t)(words[i] >> 24)};
        if (hex)
            fprintf(f, "%08x\n", words[i]);
        else
            fwrite(b, 1, sizeof(b), f);
    }
    return fflush(f) == 0 ? 0 : err_set(err, -EIO, "'%s' cannot be written", path);
}

static void write_entry(FILE *f, const struct parsed *p, const uint32_t *w, const char *file)
{
    fprintf(f, "  - kind: %s\n    xclbin: npu.xclbin\n    instructions: %s\n    arguments: [%s]\n", kinds[p->kind].name, file,
            kinds[p->kind].arguments);
    if (kinds[p->kind].dtypes)
        fprintf(f, "    dtypes: [%s]\n", kinds[p->kind].dtypes);
    fprintf(f, "    shape: {");
    for (unsigned i = 0; i < kinds[p->kind].n_dims; i++)
        fprintf(f, "%s%s: %u", i ? ", " : "", kinds[p->kind].dims[i], p->dims[i]);
    fprintf(f, "}\n");
    if (p->kind == SIM_GEMM)
        fprintf(f, "    multiple_of: {m: %u, k: %u, n: %u}\n    b_layout: %s\n", GEMM_ROWS * w[4], w[5], w[6] * w[7],
                w[3] ? "nk" : "kn");
    else if (p->kind == SIM_GEMV)
        fprintf(f, "    multiple_of: {m: %u, k: 16}\n", w[2] * w[3]);
    else if (p->kind == SIM_RMS_NORM)
        fprintf(f, "    epsilon: %s\n", p->extra);
    else if (p->kind == SIM_ROPE)
        fprintf(f, "    method: %s\n", w[2] ? "interleaved" : "halves");
    else
        fprintf(f, "    scale: %s\n", p->extra);
}

static int write_operator(FILE *manifest, const char *folder, size_t i, const char *text, struct err *err)
{
    char path[4096], name[32];
    uint32_t words[SIM_STREAM_WORDS_MAX];
    struct parsed p;
    size_t n;
    int r = parse(text, &p, err);
    if (r == 0)
        r = words_of(&p, text, words, &n, err);
    if (r < 0)
        return r;
    snprintf(name, sizeof(name), "%zu.%s", i, i % 2 ? "txt" : "bin");
    snprintf(path, sizeof(path), "%.4000s/%s", folder, name);
    write_entry(manifest, &p, words + SIM_STREAM_HEADER, name);
    return write_words(path, i % 2, words, n, err);
}

int sim_files_write(const char *folder, const char *const *operators, size_t n, struct err *err)
{
    char path[4096];
    snprintf(path, sizeof(path), "%.4000s/npu.xclbin", folder);
    int r = sim_xclbin_write(path, "MLIR_AIE", "operators");
    if (r < 0)
        return err_set_errno(err, r, "'%s'", path);
    snprintf(path, sizeof(path), "%.4000s/manifest.yaml", folder);
    auto_file f = fopen(path, "w");
    if (!f)
        return err_set_errno(err, -errno, "'%s'", path);
    fprintf(f, "version: 1\noperators:\n");
    for (size_t i = 0; r == 0 && i < n; i++)
        r = write_operator(f, folder, i, operators[i], err);
    if (r == 0 && fflush(f) != 0)
        r = err_set(err, -EIO, "'%s' cannot be written", path);
    return r;
}
