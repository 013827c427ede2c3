/* SPDX-License-Identifier: MIT
 * The tokenizer of a checkpoint as GGUF keys, the way llama.cpp's converter writes them (convert_hf_to_gguf.py,
 * _create_vocab_sentencepiece; gguf-py, SpecialVocab): tokenizer.model, or tokenizer.json where it is missing, gives pieces,
 * tokenizer_config.json says which of them are control tokens and which ids begin and end a text, and carries the chat template.
 * Threads: one. */
#ifndef TANDEM_QUANTIZER_VOCABULARY_H
#define TANDEM_QUANTIZER_VOCABULARY_H

#include <stdint.h>

struct err;
struct gguf_write;
struct vocabulary;

/* n_rows: rows of the embedding; ids that the tokenizer does not have become unused tokens, more pieces than rows are an error. */
int vocabulary_load(const char *folder, uint32_t n_rows, struct vocabulary **ret, struct err *err);
void vocabulary_close(struct vocabulary *v); /* NULL is fine */
/* Every tokenizer.* key. Out of memory is reported by gguf_write_begin. */
int vocabulary_write(const struct vocabulary *v, struct gguf_write *w, struct err *err);

#endif
