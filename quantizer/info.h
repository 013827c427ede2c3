/* SPDX-License-Identifier: MIT
 * What is in a GGUF: every key with its value, every tensor with shape, type and place. Threads: one. */
#ifndef TANDEM_QUANTIZER_INFO_H
#define TANDEM_QUANTIZER_INFO_H

#include <stdio.h>

struct err;

int info_run(const char *path, FILE *f, struct err *err);

#endif
