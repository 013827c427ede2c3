/* SPDX-License-Identifier: MIT
 * A synthetic Gemma 3 checkpoint of one layer in a folder of the test, with one thing wrong or unusual at a time. One thread. */
#ifndef TANDEM_TESTS_CHECKPOINT_H
#define TANDEM_TESTS_CHECKPOINT_H

#include <stdint.h>

struct checkpoint {
    const char *config; /* keys added to config.json: ",\"key\":1" */
    const char *skip;   /* name of a tensor that is left out */
    const char *extra;  /* name of a tensor that is added: one BF16 */
    const char *poke;   /* name of a tensor whose last element becomes poke_bits (BF16) */
    uint16_t poke_bits;
    const char *f64; /* name of a tensor that is stored as F64 */
    enum { CHECKPOINT_NO_HEAD, CHECKPOINT_SAME_HEAD, CHECKPOINT_OTHER_HEAD } head;
    unsigned cols;                /* of hidden; 0: 32 */
    const char *tokenizer_config; /* whole text; NULL: none */
};

/* Writes config.json, tokenizer.model (that of tiny-27b, 512 pieces) and model.safetensors into `folder`, which it makes. */
void checkpoint_make(const char *folder, const struct checkpoint *c);

#endif
