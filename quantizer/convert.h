/* SPDX-License-Identifier: MIT
 * A checkpoint or a GGUF in, a GGUF out (one file or parts), in one pass and a fixed memory. The output appears under its name
 * complete or not at all; what was done before a failure stays beside it (".partial") and the same call goes on from there.
 * Same input and arguments: same bytes, whatever the threads, the memory, and how often it was killed.
 * Threads: one caller; it makes the others itself. */
#ifndef TANDEM_QUANTIZER_CONVERT_H
#define TANDEM_QUANTIZER_CONVERT_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "model/hparams.h"
#include "quantizer/recipe.h"

struct err;

struct convert_options {
    const char *in, *out; /* in: a checkpoint's folder or a GGUF file */
    struct recipe_options recipe;
    uint64_t fit;          /* choose the types so that the output has at most so many bytes; 0: as the recipe says */
    const char *imatrix;   /* file of an importance matrix; may be NULL */
    const char *name;      /* general.name; NULL: none, or that of a GGUF input */
    int n_threads;         /* >= 1 */
    uint32_t alignment;    /* of tensor data: 32, the default of the format, or 4096 */
    uint64_t memory;       /* most that the process may use; 0: CONVERT_MEMORY */
    uint64_t split_bytes;  /* most for one output file; 0: no limit */
    bool split_layers;     /* one output file per layer */
    bool allow_requantize; /* from types that are quantized already */
    bool no_search;
    bool restart;                             /* drop what an earlier run with other arguments left */
    bool dry_run;                             /* only say what would be done */
    FILE *table;                              /* the plan tensor by tensor; may be NULL */
    uint64_t group_bytes;                     /* of output between two entries of the journal; 0: by time */
    const volatile sig_atomic_t *stop;        /* looked at several times a second; may be NULL */
    void (*say)(void *ctx, const char *line); /* the plan in sentences; may be NULL */
    void (*progress)(void *ctx, uint64_t done, uint64_t total, const char *tensor); /* bytes of the output; may be NULL */
    void *ctx;
};

#define CONVERT_MEMORY (192ull << 20)

struct convert_result {
    struct hparams h;
    uint32_t n_tensors, n_vision_skipped, n_files;
    uint64_t bytes_in, bytes_out, bytes_kept; /* kept: of the output, from an earlier run */
};

/* -ECANCELED when *stop was set; -ENOSPC also when the memory is too little (the message says which). */
int convert_run(const struct convert_options *o, struct convert_result *ret, struct err *err);

#endif
