/* SPDX-License-Identifier: MIT
 * Checksums of tensors as the quantizer writes them into the metadata, beside the types that they were made for: a program that
 * makes other tensors and copies all keys (llama.cpp's quantizer does) leaves types that are not the file's. Threads: any. */
#ifndef TANDEM_MODEL_CHECKSUMS_H
#define TANDEM_MODEL_CHECKSUMS_H

#include <stdint.h>

struct err;
struct gguf;

#define CHECKSUMS_KEY "tandem.tensor_xxh3_64"     /* u64 array: XXH3-64 of the data of every tensor, in the order of the files */
#define CHECKSUMS_TYPES_KEY "tandem.tensor_types" /* u8 array: ggml type ids of the same tensors */

/* *ret: one packed u64 for each tensor, borrowed from g; NULL when the file has none (*ret_why says so, static). -EPROTO: there
 * are some, and they do not fit the file. */
int checksums_find(const struct gguf *g, const void **ret, const char **ret_why, struct err *err);
uint64_t checksums_at(const void *sums, uint32_t i);

#endif
