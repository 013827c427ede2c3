/* SPDX-License-Identifier: MIT
 * The operators that a set of xclbins offers: a YAML file beside them, one entry per operator, since what the public flows build
 * (mlir-aie, IRON) changes its calling convention between commits. docs/NPU.md has the schema. Nothing here touches a device.
 * Threads: immutable after open. */
#ifndef TANDEM_NPU_WORKER_MANIFEST_H
#define TANDEM_NPU_WORKER_MANIFEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct err;
struct manifest;

#define MANIFEST_ARGUMENTS_MAX 5u
#define MANIFEST_OPERATORS_MAX 256u
#define MANIFEST_DIM_MAX (1u << 20)

enum manifest_kind {
    MANIFEST_GEMM,      /* c[m][n] = a[m][k] b */
    MANIFEST_GEMV,      /* y[m] = a[m][k] x[k] */
    MANIFEST_RMS_NORM,  /* y = x / sqrt(mean(x^2) + epsilon) * w by rows; w is multiplied as it is */
    MANIFEST_ROPE,      /* y = x turned by angles[rows][width], cosine and sine in turn */
    MANIFEST_ATTENTION, /* o = softmax(scale q k^T) v, causal, within the window; [heads][tokens][head_dim] */
    MANIFEST_KINDS
};
enum manifest_dim {
    MANIFEST_M,
    MANIFEST_K,
    MANIFEST_N,
    MANIFEST_ROWS,
    MANIFEST_WIDTH,
    MANIFEST_TOKENS,
    MANIFEST_KEYS,
    MANIFEST_HEADS,
    MANIFEST_KV_HEADS,
    MANIFEST_HEAD_DIM,
    MANIFEST_WINDOW, /* 0 = none */
    MANIFEST_DIMS
};
enum manifest_role {
    MANIFEST_ARG_A,
    MANIFEST_ARG_B,
    MANIFEST_ARG_C,
    MANIFEST_ARG_X,
    MANIFEST_ARG_W,
    MANIFEST_ARG_Y,
    MANIFEST_ARG_ANGLES,
    MANIFEST_ARG_Q,
    MANIFEST_ARG_K,
    MANIFEST_ARG_V,
    MANIFEST_ARG_POSITIONS, /* four i32: position of the first query, of the first key, number of queries, of keys */
    MANIFEST_ARG_O,
    MANIFEST_ROLES
};
enum manifest_dtype { MANIFEST_BF16, MANIFEST_F16, MANIFEST_F32, MANIFEST_I8, MANIFEST_I32, MANIFEST_DTYPES };

struct manifest_operator {
    enum manifest_kind kind;
    const char *manifest;        /* its path; lives as long as the manifest */
    char *xclbin, *instructions; /* absolute where the manifest's own path is */
    char kernel[64];             /* prefix of the kernel's name */
    bool hex;                    /* instructions are text, eight hexadecimal digits a word */
    unsigned n_arguments;
    enum manifest_role arguments[MANIFEST_ARGUMENTS_MAX]; /* as bo0, bo1, ... */
    enum manifest_dtype dtypes[MANIFEST_ARGUMENTS_MAX];
    uint32_t dims[MANIFEST_DIMS]; /* of the kind; 0 elsewhere */
    bool b_nk;                    /* gemm: b is [n][k], not [k][n] */
    bool interleaved;             /* rope: pairs are neighbours, not the two halves of a row */
    float epsilon, scale;
    unsigned line;
};

int manifest_open(const char *path, struct manifest **ret, struct err *err);
void manifest_close(struct manifest *m); /* NULL is fine */
size_t manifest_count(const struct manifest *m);
const struct manifest_operator *manifest_get(const struct manifest *m, size_t i);

/* The operator that needs the least work for want, padding included, then the fewest calls. want[d] 0: any. Rows (m, n, rows,
 * tokens) may be cut into several calls; k and keys may be padded with zeroes; the rest has to be equal, the window also where it
 * is 0. usable (NULL: all are): 0, or -errno with the reason why an operator is passed over, as one that its caller cannot drive
 * must not hide one that it can. *ret_calls (may be NULL): calls for all of want. -ENOTSUP with what there is; where all that would
 * fit were passed over, with the reason for the first. */
typedef int (*manifest_usable_fn)(const struct manifest_operator *o, struct err *err);
int manifest_find(const struct manifest *m, enum manifest_kind kind, const uint32_t want[MANIFEST_DIMS], manifest_usable_fn usable,
                  const struct manifest_operator **ret, uint64_t *ret_calls, struct err *err);

int manifest_argument(const struct manifest_operator *o, enum manifest_role role); /* its number, or -1 */
size_t manifest_bytes(const struct manifest_operator *o, unsigned argument);
size_t manifest_dtype_bytes(enum manifest_dtype t);
/* The instruction file as words, malloc'ed. */
int manifest_instructions(const struct manifest_operator *o, uint32_t **ret, size_t *ret_n, struct err *err);

/* Whether both files can be opened, by this process as it is: in the sandbox, as there. */
int manifest_check_files(const struct manifest_operator *o, struct err *err);

const char *manifest_kind_name(enum manifest_kind kind);
/* A line per operator, and one more where its files cannot be read, with the reason. */
void manifest_print(const struct manifest *m, FILE *out);

#endif
