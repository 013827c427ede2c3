/* SPDX-License-Identifier: MIT
 * What the two kinds of source share with source.c: the list they fill at open and the functions they leave behind. */
#ifndef TANDEM_QUANTIZER_SOURCE_IMPL_H
#define TANDEM_QUANTIZER_SOURCE_IMPL_H

#include "quantizer/source.h"

struct source {
    const struct source_kind *kind;
    void *ctx; /* of the kind */
    struct hparams h;
    struct source_tensor *tensors;
    uint32_t n, cap, n_skipped;
    uint64_t bytes;
};

struct source_kind {
    /* Opens, checks and lists. What ctx holds is freed by close even after a failure. */
    int (*open)(struct source *s, const char *path, struct err *err);
    void (*close)(void *ctx);
    int (*write_keys)(const struct source *s, const char *name, uint32_t file_type, struct gguf_write *w, struct err *err);
    void (*forget_keys)(void *ctx);
};

extern const struct source_kind source_hf_kind, source_gguf_kind;

/* Adds a tensor with its name, role, shape (from s->h) and layer filled in; NULL when out of memory. */
struct source_tensor *source_add(struct source *s, enum gemma3_tensor role, uint32_t layer);

#endif
