/* SPDX-License-Identifier: MIT
 * libsentencepiece on a tokenizer.model file, behind a C face: what our tokenizer must agree with. */
#ifndef TANDEM_TESTS_COORDINATOR_ORACLE_H
#define TANDEM_TESTS_COORDINATOR_ORACLE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct oracle;

struct oracle *oracle_open(const char *path); /* NULL on failure */
void oracle_close(struct oracle *o);
uint32_t oracle_size(const struct oracle *o);
const char *oracle_piece(const struct oracle *o, uint32_t id);
float oracle_score(const struct oracle *o, uint32_t id);
int oracle_type(const struct oracle *o, uint32_t id); /* numbers of sentencepiece_model.proto; user-defined counts as normal */
/* Ids into ret[max]; returns their number. */
size_t oracle_encode(const struct oracle *o, const char *text, size_t n, uint32_t *ret, size_t max);

#ifdef __cplusplus
}
#endif
#endif
