/* SPDX-License-Identifier: MIT
 * What structured fuzz targets draw from their input: bytes in order (zeros behind the end), any message with fields inside their
 * bounds, and descriptors of every wrong kind. */
#ifndef TANDEM_TESTS_FUZZ_INPUT_H
#define TANDEM_TESTS_FUZZ_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/msg.h"

struct fuzz_input {
    const uint8_t *at, *end;
};
static inline bool fuzz_more(const struct fuzz_input *in)
{
    return in->at < in->end;
}
static inline uint8_t fuzz_u8(struct fuzz_input *in)
{
    return in->at < in->end ? *in->at++ : 0;
}
/* Mostly small; sometimes any, often at a border. */
uint32_t fuzz_u32(struct fuzz_input *in);
uint64_t fuzz_u64(struct fuzz_input *in);
/* A message of any type, as a decoder may hand it over. */
void fuzz_message(struct fuzz_input *in, struct msg *ret);

#define FUZZ_FD_GOOD                                                                                             \
    6 /* what a stage that keeps the protocol would send; the kinds below it are pipes, unsealed, too small, ... \
       */
int fuzz_fd(uint8_t kind, size_t bytes); /* owned */
/* Ends the process when more descriptors are open than at the first call. Every so many calls it looks. */
void fuzz_check_fds(void);

#endif
