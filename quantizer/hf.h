/* SPDX-License-Identifier: MIT
 * What a Hugging Face checkpoint says about itself in JSON: config.json of Gemma3ForCausalLM and of
 * Gemma3ForConditionalGeneration (its text part), as transformers 4 and 5 write it. Defaults are those of transformers'
 * Gemma3TextConfig. Anything that GGUF or Tandem cannot express is refused, never ignored. Threads: any; no state. */
#ifndef TANDEM_QUANTIZER_HF_H
#define TANDEM_QUANTIZER_HF_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "model/hparams.h"

struct err;

struct hf_config {
    struct hparams h; /* vocab: rows of the embedding, which the tokenizer may not fill */
    bool tied;        /* the output matrix is the embedding */
};

/* Untrusted text of config.json. */
int hf_config_parse(const char *json, size_t n, struct hf_config *ret, struct err *err);
int hf_config_load(const char *folder, struct hf_config *ret, struct err *err);

/* A whole file of at most 64 MiB: malloc'ed with a NUL behind it, returned owned. -ENOENT when it does not exist. */
int hf_load_text(const char *folder, const char *name, char **ret, size_t *ret_n, struct err *err);
/* As above, parsed; always an object. Returned owned. */
int hf_load_json(const char *folder, const char *name, json_t **ret, struct err *err);

#endif
