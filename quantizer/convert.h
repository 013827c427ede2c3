/* SPDX-License-Identifier: MIT
 * A Hugging Face checkpoint in, a GGUF file out, in one pass and a fixed small memory: rows are read, converted on a few threads
 * and written block by block. The file appears complete or not at all. Threads: one caller; it makes the others itself. */
#ifndef TANDEM_QUANTIZER_CONVERT_H
#define TANDEM_QUANTIZER_CONVERT_H

#include <signal.h>
#include <stdint.h>

#include "model/hparams.h"

struct err;

struct convert_options {
    const char *in, *out;              /* folder, file */
    int type;                          /* enum quant_type of the matrices; norms are always f32 */
    const char *name;                  /* general.name, or NULL for none */
    int n_threads;                     /* >= 1 */
    uint32_t alignment;                /* of tensor data: 4096 suits direct I/O, 32 is the default of the format */
    const volatile sig_atomic_t *stop; /* looked at between blocks; may be NULL */
    void (*progress)(void *ctx, uint64_t done, uint64_t total, const char *tensor); /* bytes of the checkpoint; may be NULL */
    void *progress_ctx;
};

struct convert_result {
    struct hparams h;
    uint32_t n_tensors, n_vision_skipped;
    uint64_t bytes_in, bytes_out;
};

/* -ECANCELED when *stop was set. */
int convert_run(const struct convert_options *o, struct convert_result *ret, struct err *err);

#endif
