/* SPDX-License-Identifier: MIT
 * What the programs loader, npu_worker and gpu_worker have in common: their command line, and single-stage mode, where one stage
 * works in process on .npy files without a coordinator. Thread: main. */
#ifndef TANDEM_STAGE_SINGLE_H
#define TANDEM_STAGE_SINGLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/hparams.h"
#include "model/segment.h"
#include "proto/budget.h"
#include "proto/config.h"

struct err;
struct gguf;
struct single;
struct stage_ops;

/* Options that not every program has. */
enum {
    SINGLE_LAYER = 1,
    SINGLE_IN = 2,
    SINGLE_DUMP = 4,
    SINGLE_POSITIONS = 8,
    SINGLE_HEAD = 16,
    SINGLE_IDS = 32,
    SINGLE_DEVICE = 64, /* --compare, --profile */
    SINGLE_LIST = 128,  /* of every program that has `list` */
    SINGLE_BACKEND = 256,
    SINGLE_OPERATORS = 512
};

enum single_list { SINGLE_LIST_NONE, SINGLE_LIST_DEVICES, SINGLE_LIST_CHOOSE, SINGLE_LIST_OPERATORS };

struct single_program {
    const char *name;    /* "npu_worker" */
    const char *summary; /* one sentence for --help */
    unsigned options;    /* SINGLE_*: accepted */
    const struct stage_ops *ops;
    int (*run)(struct single *s, struct err *err);
    /* NULL, or --list-devices, --choose-device and, with SINGLE_OPERATORS, --list-operators. s->config is never NULL, but names no
     * model where no file was given. */
    int (*list)(struct single *s, enum single_list what, struct err *err);
};

struct single {
    const struct single_program *program;
    /* from the command line; NULL / -1 when absent */
    const char *config_path, *in, *out, *dump, *positions, *ids, *backend, *compare;
    int64_t layer;
    bool head, profile;
    /* open while run is called */
    struct config *config;
    struct gguf *gguf;
    struct hparams hparams;
    uint8_t *types; /* of all layers and the head, as CONFIGURE carries them */
    struct budget budget;
    const char *variant; /* CPU kernels */
    struct err *dump_err;
};

/* The whole main(): --help, --version, --stage-fd N (as a stage), or single-stage mode. Returns the exit status. */
int single_main(const struct single_program *p, int argc, char **argv);

/* --layer, checked against the model. */
int single_layer(const struct single *s, uint32_t *ret, struct err *err);
/* --in: rows of `hidden` floats, malloc'ed. */
int single_rows(const struct single *s, float **ret, size_t *ret_n, struct err *err);
/* Build a segment as the loader would. Give it back with single_free_segment. */
int single_segment(struct single *s, enum segment_kind kind, uint32_t layer, struct segment_layout *ret_layout, void **ret_data,
                   struct err *err);
void single_free_segment(struct single *s, const struct segment_layout *l, void *data); /* data NULL is fine */
/* An attn_dump_fn / ffn_dump_fn: ctx is the struct single; writes <dump>/<name>.npy. The first failure is kept in dump_err. */
void single_dump(void *ctx, const char *name, const float *rows, uint32_t n_rows, uint32_t width);

#endif
