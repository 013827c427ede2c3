/* SPDX-License-Identifier: MIT
 * Gemma's SentencePiece tokenizer, rebuilt from a GGUF's tokenizer.ggml.* into a ModelProto (BPE, byte fallback, identity
 * normalizer, no dummy prefix) and run by libsentencepiece. Control pieces are never produced from text; turn markers in user
 * content stay text (tokenizer_encode with markers = false), only the chat template and raw prompts may produce them.
 * Threads: immutable after open and bound. C++ is behind this header; no exception crosses it. */
#ifndef TANDEM_COORDINATOR_TOKENIZER_H
#define TANDEM_COORDINATOR_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct err;
struct gguf;
struct tokenizer;

int tokenizer_open(const struct gguf *g, struct tokenizer **ret, struct err *err);
void tokenizer_close(struct tokenizer *t);

/* Bytes, as sentencepiece sees them (neighbours.h), that may follow each other without a place to cut at. The most that its Encode
 * had allocated at once, measured with 0.1.97, is 252 bytes for each of them, where each becomes a token; where letters merge by
 * two 140. So it is 4 MiB in all, which the plan has for the coordinator. */
#define TOKENIZER_STRETCH ((size_t)16 << 10)

/* From here on a text is refused with -E2BIG, its memory bounded, where it goes on after more tokens than `tokens`, or has more
 * bytes than `stretch` without a place to cut at. Without a call there is no bound: a long stretch takes the memory that it takes.
 */
struct tokenizer_bounds {
    size_t tokens;        /* the context */
    size_t stretch, part; /* 0: TOKENIZER_STRETCH, and what is encoded at once of a text that can be cut */
};
void tokenizer_bound(struct tokenizer *t, const struct tokenizer_bounds *b);
/* What encoding takes at most for a moment, under the bound of so many tokens. */
uint64_t tokenizer_encode_bytes(uint32_t tokens);

uint32_t tokenizer_vocab(const struct tokenizer *t);
uint32_t tokenizer_bos(const struct tokenizer *t);
/* True for <eos>, <end_of_turn> (tokenizer.ggml.eos_token_id, eot_token_id, and the piece "<end_of_turn>"). */
bool tokenizer_is_end(const struct tokenizer *t, uint32_t id);
/* Piece text as stored ("▁upon", "<0x0A>"), borrowed; NULL when out of range. */
const char *tokenizer_piece(const struct tokenizer *t, uint32_t id);

/* text may hold any bytes. Without <bos>. markers: user-defined pieces such as <start_of_turn> in the text become their ids
 * (what SentencePiece does); without: <...> markers stay text, newlines and space runs remain pieces.
 * *ret is malloc'ed, returned owned. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, bool markers, uint32_t **ret, size_t *ret_n,
                     struct err *err);

/* Chat template of Gemma 3: <bos>, then per message <start_of_turn>role\n text <end_of_turn>\n, then the model's turn opened.
 * A leading system message is folded into the first user turn. Content is trimmed and never yields markers. Includes <bos>. */
struct tokenizer_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
};
int tokenizer_chat(const struct tokenizer *t, const struct tokenizer_message *m, size_t n, uint32_t **ret, size_t *ret_n,
                   struct err *err);

/* What the template leaves of a message's n bytes: moves *text, returns the length. */
size_t tokenizer_trim(const char **text, size_t n);
/* The bytes that a token adds to a text, at most `room` of them; returns their number. */
size_t tokenizer_bytes(const struct tokenizer *t, uint32_t id, char *buf, size_t room);

/* Streaming detokenizer: bytes of ids, held back until they form whole UTF-8 characters; invalid bytes come out as U+FFFD.
 * Control pieces give nothing. */
struct detokenizer;
int detokenizer_open(const struct tokenizer *t, struct detokenizer **ret);
void detokenizer_close(struct detokenizer *d);
/* Text that is complete with this id, borrowed until the next call; may be "". */
const char *detokenizer_push(struct detokenizer *d, uint32_t id);
const char *detokenizer_finish(struct detokenizer *d); /* the rest, incomplete bytes replaced */
/* Whole text of ids, malloc'ed, returned owned; *ret_n without the NUL. */
int tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t n, char **ret, size_t *ret_n, struct err *err);

#ifdef __cplusplus
}
#endif
#endif
