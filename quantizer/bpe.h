/* SPDX-License-Identifier: MIT
 * A byte-pair vocabulary with its list of merges, in compact arrays, and the scores that make a SentencePiece reader (which merges
 * the neighbours whose union has the highest score) give the ids that the list gives (which merges the neighbours with the lowest
 * rank). docs/QUANTIZATION.md has the argument. Threads: one. */
#ifndef TANDEM_QUANTIZER_BPE_H
#define TANDEM_QUANTIZER_BPE_H

#include <stddef.h>
#include <stdint.h>

struct bpe;
struct err;

#define BPE_PIECE_MAX 1024u       /* bytes */
#define BPE_TEXTS_MAX (16u << 20) /* bytes of all pieces: Gemma 3 has 2.2 MiB */
#define BPE_MERGES_MAX (1u << 22) /* Gemma 3 has 514,906 */

/* n: ids are below it. */
int bpe_open(uint32_t n, struct bpe **ret, struct err *err);
void bpe_close(struct bpe *b);           /* NULL is fine */
uint32_t bpe_count(const struct bpe *b); /* one more than the highest id so far */

/* A piece of the vocabulary: 1 to 1024 bytes of UTF-8 without NUL, text and id not there yet; its type becomes SPM_BYTE for <0x..>,
 * else SPM_NORMAL. The text is copied. */
int bpe_add_piece(struct bpe *b, const char *text, size_t n, uint32_t id, struct err *err);
int64_t bpe_find(const struct bpe *b, const char *text, size_t n);     /* -1: none */
void bpe_set_type(struct bpe *b, uint32_t id, int type);               /* enum spm_type */
int bpe_type(const struct bpe *b, uint32_t id);                        /* 0: no piece has this id */
const char *bpe_text(const struct bpe *b, uint32_t id, size_t *ret_n); /* borrowed until the next piece; not terminated */
/* Hands the block of texts on: returned owned, addresses from bpe_text stay valid. Nothing but closing may follow. */
char *bpe_take_texts(struct bpe *b);

/* The next merge in order of rank. Both pieces and their union must be in the vocabulary. */
int bpe_add_merge(struct bpe *b, const char *left, size_t n_left, const char *right, size_t n_right, struct err *err);

/* After types and merges. scores: one per id, 0 for bytes and anything special. Makes space runs user-defined where the list joins
 * them like user-defined symbols. -ENOTSUP, naming a piece, when no scores can say what the list says. */
int bpe_scores(struct bpe *b, float *scores, struct err *err);

#endif
