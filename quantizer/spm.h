/* SPDX-License-Identifier: MIT
 * Reads a SentencePiece model (sentencepiece_model.proto, message ModelProto) from memory: pieces with score and type, and the
 * settings that decide whether GGUF can express it. Protobuf's wire format: a varint key (field << 3 | wire type), then a varint
 * (0), 8 bytes (1), a length and bytes (2) or 4 bytes (5). Everything is untrusted. Threads: any; no state. */
#ifndef TANDEM_QUANTIZER_SPM_H
#define TANDEM_QUANTIZER_SPM_H

#include <stddef.h>
#include <stdint.h>

struct err;

enum spm_type { SPM_NORMAL = 1, SPM_UNKNOWN, SPM_CONTROL, SPM_USER_DEFINED, SPM_UNUSED, SPM_BYTE };

struct spm_piece {
    const char *text; /* borrows the model's bytes; not NUL-terminated */
    uint32_t n;
    float score;
    uint32_t type; /* enum spm_type */
};

struct spm {
    struct spm_piece *pieces;
    uint32_t n;
    int64_t unk, bos, eos, pad; /* ids as trained; -1: none */
};

/* Refused with -ENOTSUP: anything but BPE with the identity normalizer, without dummy prefix and without removal of spaces: the
 * GGUF keys of a Gemma tokenizer mean exactly that. data must live as long as ret. */
int spm_parse(const uint8_t *data, size_t n, struct spm *ret, struct err *err);
void spm_fini(struct spm *s);

#endif
