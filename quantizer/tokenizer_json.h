/* SPDX-License-Identifier: MIT
 * Reads tokenizer.json (the format of Hugging Face's `tokenizers`, version 1.0) where a checkpoint has no tokenizer.model: a BPE
 * with byte fallback as Gemma 3 ships it, made into the pieces, scores and types that tokenizer.model would have given. Everything
 * is untrusted. Read as a stream: memory is that of the pieces and merges, not of the text. Threads: any; no state. */
#ifndef TANDEM_QUANTIZER_TOKENIZER_JSON_H
#define TANDEM_QUANTIZER_TOKENIZER_JSON_H

#include <stdbool.h>
#include <stdint.h>

#include "quantizer/spm.h"

struct err;

struct tokenizer_json {
    struct spm spm;        /* pieces in order of id; texts lie in `texts` */
    char *texts;           /* owned */
    bool add_bos, add_eos; /* what the post-processor puts around a text */
};

/* n_rows: of the embedding. A piece beyond them is an error, an added token beyond them is left out, as in checkpoints of text
 * models that still list <image_soft_token>. Added tokens are SPM_CONTROL (special) or SPM_USER_DEFINED.
 * -ENOENT: no such file. -ENOTSUP: a setting that would change ids and that GGUF cannot express. */
int tokenizer_json_load(const char *path, uint32_t n_rows, struct tokenizer_json *ret, struct err *err);
void tokenizer_json_fini(struct tokenizer_json *t);

#endif
