/* SPDX-License-Identifier: MIT
 * The loader stage: input 0 tokens, output 0 x0; fills weight segments. */
#ifndef TANDEM_LOADER_LOADER_H
#define TANDEM_LOADER_LOADER_H

#include "proto/stage.h"

extern const struct stage_ops loader_ops;

#endif
