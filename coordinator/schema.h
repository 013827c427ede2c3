/* SPDX-License-Identifier: MIT
 * From a JSON schema to a grammar of the JSON texts that fit it (docs/HTTP.md names what is understood). Texts are compact, with
 * at most a space behind ':' and ','; properties come in the schema's order. What is not understood is refused by its name, never
 * ignored. Thread: any. */
#ifndef TANDEM_COORDINATOR_SCHEMA_H
#define TANDEM_COORDINATOR_SCHEMA_H

#include <jansson.h>
#include <stdint.h>

struct err;
struct grammar;

/* schema NULL: any object. */
int schema_compile(const json_t *schema, struct grammar **ret, uint32_t *ret_rule, struct err *err);

#endif
