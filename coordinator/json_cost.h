/* SPDX-License-Identifier: MIT
 * What the tree of a JSON text takes at most, told from the text before it is parsed: `[{},{},...]` becomes 80 times as large.
 * Threads: any. */
#ifndef TANDEM_COORDINATOR_JSON_COST_H
#define TANDEM_COORDINATOR_JSON_COST_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of the heap, above what jansson 2.14 takes for any text with glibc's malloc (test_json_cost.c measures it). The text need
 * not be JSON: then the parser ends sooner. */
uint64_t json_cost(const char *text, size_t n);

#endif
