/* SPDX-License-Identifier: MIT
 * Reads a GGUF (whole or in parts) and compares each tensor's data with the checksum that the conversion stored. Threads: one. */
#ifndef TANDEM_QUANTIZER_VERIFY_H
#define TANDEM_QUANTIZER_VERIFY_H

#include <stdint.h>
#include <stdio.h>

struct err;

struct verify_result {
    uint32_t n_tensors, n_bad;
    uint64_t bytes;
};

/* Names each tensor that differs on f. 0 also when some do; -ENOENT: the file has no checksums. */
int verify_run(const char *path, FILE *f, struct verify_result *ret, struct err *err);

#endif
