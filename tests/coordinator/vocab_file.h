/* SPDX-License-Identifier: MIT
 * GGUF files that hold a vocabulary and nothing else, for the tests of the tokenizer. */
#ifndef TANDEM_TESTS_COORDINATOR_VOCAB_FILE_H
#define TANDEM_TESTS_COORDINATOR_VOCAB_FILE_H

#include <stddef.h>
#include <stdint.h>

struct vocab_piece {
    char text[64];
    size_t n;
    float score;
    int32_t type;
};

struct vocab {
    struct vocab_piece *pieces;
    size_t n, n_scores, n_types; /* the last two may differ on purpose */
    const char *kind;            /* tokenizer.ggml.model, NULL = left out */
    int64_t bos, eos;            /* < 0 = left out */
    int space_prefix;            /* < 0 = left out */
};

/* The pieces of a tokenizer.model as llama.cpp's converter stores them: markers as control pieces, user-defined space runs with
 * plain spaces. Freed by vocab_free. */
struct vocab vocab_of_model(const char *path);
void vocab_free(struct vocab *v);
void vocab_write(const struct vocab *v, const char *path);

#endif
