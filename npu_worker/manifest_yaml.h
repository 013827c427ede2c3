/* SPDX-License-Identifier: MIT
 * A manifest's text as strings with the line of each: what YAML allows and the schema does not is refused here, what the strings
 * mean is manifest.c's business. Thread: any. */
#ifndef TANDEM_NPU_WORKER_MANIFEST_YAML_H
#define TANDEM_NPU_WORKER_MANIFEST_YAML_H

#include "npu_worker/manifest.h"

enum manifest_yaml_key {
    MANIFEST_YAML_KIND,
    MANIFEST_YAML_XCLBIN,
    MANIFEST_YAML_INSTRUCTIONS,
    MANIFEST_YAML_FORMAT,
    MANIFEST_YAML_KERNEL,
    MANIFEST_YAML_ARGUMENTS,
    MANIFEST_YAML_DTYPES,
    MANIFEST_YAML_SHAPE,
    MANIFEST_YAML_MULTIPLE_OF,
    MANIFEST_YAML_B_LAYOUT,
    MANIFEST_YAML_EPSILON,
    MANIFEST_YAML_METHOD,
    MANIFEST_YAML_SCALE,
    MANIFEST_YAML_KEYS
};

struct manifest_yaml_dims {
    char *dim[MANIFEST_DIMS]; /* NULL = not given */
};

struct manifest_yaml_operator {
    char *kind, *xclbin, *instructions, *format, *kernel, *b_layout, *epsilon, *method, *scale; /* NULL = not given */
    char **arguments, **dtypes;
    unsigned n_arguments, n_dtypes;
    struct manifest_yaml_dims shape, multiple_of;
};

struct manifest_yaml_lines {
    unsigned at; /* of the operator */
    unsigned keys[MANIFEST_YAML_KEYS], shape[MANIFEST_DIMS], multiple_of[MANIFEST_DIMS];
};

struct manifest_yaml {
    char *version;
    struct manifest_yaml_operator *operators;
    unsigned n_operators;
    struct manifest_yaml_lines *lines; /* of each */
    unsigned version_line;
};

extern const char *const manifest_yaml_dims[MANIFEST_DIMS];
const char *manifest_yaml_key(enum manifest_yaml_key k);
/* "manifest '...', line 12", cut from the left. */
char *manifest_yaml_place(char buf[160], const char *path, unsigned line);

int manifest_yaml_open(const char *path, struct manifest_yaml **ret, struct err *err);
void manifest_yaml_close(struct manifest_yaml *y); /* NULL is fine */

#endif
