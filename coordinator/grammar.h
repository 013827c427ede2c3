/* SPDX-License-Identifier: MIT
 * A context-free grammar over bytes, and the state of a text that is read by it from the left: which bytes may come next, and
 * whether it may end. Rules have alternates of symbols: a byte, one of a set of bytes, another rule. Thread: a grammar is immutable
 * once built; a state has one. */
#ifndef TANDEM_COORDINATOR_GRAMMAR_H
#define TANDEM_COORDINATOR_GRAMMAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct grammar;
struct grammar_matcher;
struct grammar_state;

#define GRAMMAR_MAX_SYMBOLS 65536u
#define GRAMMAR_MAX_RULES 8192u

/* Building. Failures (memory, limits) stay in the grammar until grammar_finish tells. */
int grammar_open(struct grammar **ret);
void grammar_close(struct grammar *g); /* NULL is fine */
uint32_t grammar_rule(struct grammar *g);
uint32_t grammar_byte(unsigned char b);
uint32_t grammar_set(struct grammar *g, const char *ranges); /* "az09" is a to z and 0 to 9 */
uint32_t grammar_call(uint32_t rule);
void grammar_add(struct grammar *g, uint32_t rule, const uint32_t *symbols, size_t n); /* an alternate; n may be 0 */
/* 0; -ENOMEM; -E2BIG: above the limits; -ELOOP: a rule comes to itself without reading anything. */
int grammar_finish(struct grammar *g);

/* g, borrowed; at the beginning of `rule`. */
int grammar_state_open(const struct grammar *g, uint32_t rule, struct grammar_state **ret);
void grammar_state_close(struct grammar_state *s); /* NULL is fine */
/* False: the text is not the beginning of any; the state is of no more use. */
bool grammar_state_feed(struct grammar_state *s, const char *text, size_t n);
bool grammar_state_complete(const struct grammar_state *s);

/* The strings that may follow, out of a sorted list: words[i] shares its first same[i] bytes with words[i - 1]. */
struct grammar_words {
    uint32_t n;
    const char *bytes;
    const uint32_t *offset; /* [n + 1] */
    const uint8_t *same;    /* [n]; 255: 255 or more */
};
int grammar_matcher_open(struct grammar_matcher **ret); /* scratch of grammar_state_match, for any state */
void grammar_matcher_close(struct grammar_matcher *m);  /* NULL is fine */
/* Calls `refuse` for each word that may not follow, empty ones among them. The state stays as it was. */
void grammar_state_match(struct grammar_state *s, struct grammar_matcher *m, const struct grammar_words *w,
                         void (*refuse)(void *ctx, uint32_t i), void *ctx);

#endif
