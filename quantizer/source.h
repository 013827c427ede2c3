/* SPDX-License-Identifier: MIT
 * Where tensors come from: a Hugging Face folder or a GGUF file (whole or split), both seen as the Gemma 3 text model that will
 * be written: names and order of GGUF, with the place of each tensor's bytes. Everything is checked at open, so that an input
 * that cannot be converted costs no time. Threads: one; the files' reads (proto/io) from any. */
#ifndef TANDEM_QUANTIZER_SOURCE_H
#define TANDEM_QUANTIZER_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "model/gemma3.h"
#include "model/hparams.h"

struct err;
struct gguf_write;
struct io_file;
struct source;

struct source_tensor {
    char name[64];      /* in GGUF */
    const char *origin; /* in the input; borrows from the source */
    enum gemma3_tensor role;
    uint32_t layer; /* of roles below GEMMA3_LAYER_TENSORS */
    uint32_t rows, cols;
    int type;
    struct io_file *file; /* borrows */
    uint64_t offset, bytes;
    float add; /* GGUF stores a norm's factor, Hugging Face its distance from 1 */
};

/* A folder is a checkpoint, a file a GGUF. */
int source_open(const char *path, struct source **ret, struct err *err);
void source_close(struct source *s); /* NULL is fine */
const struct hparams *source_hparams(const struct source *s);
uint32_t source_n(const struct source *s);
const struct source_tensor *source_at(const struct source *s, uint32_t i); /* in the order of the output */
uint32_t source_n_skipped(const struct source *s);                         /* tensors of the vision part */
uint64_t source_bytes(const struct source *s);                             /* of all tensors */
bool source_is_gguf(const struct source *s);
/* Every file that tensors are read from is as it was when it was opened; -ESTALE names the one that is not. */
int source_unchanged(const struct source *s, struct err *err);
/* Whether `path` is one of the input's files, under whatever name; tensors are read from it, or the tokenizer and shapes. */
bool source_has(const struct source *s, const char *path);
/* XXH3 of every file's name, size and time of change, and of every tensor's name, type, shape and place. */
uint64_t source_identity(const struct source *s);
/* Every key but alignment, split and what is ours; name NULL: as in the input, if there is one. */
int source_write_keys(const struct source *s, const char *name, uint32_t file_type, struct gguf_write *w, struct err *err);
/* Frees what only source_write_keys needs. */
void source_forget_keys(struct source *s);

#endif
