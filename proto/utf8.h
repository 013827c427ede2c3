/* SPDX-License-Identifier: MIT
 * UTF-8 as RFC 3629 has it: no overlong form, no surrogate, nothing above U+10FFFF. Threads: any. */
#ifndef TANDEM_PROTO_UTF8_H
#define TANDEM_PROTO_UTF8_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Length of the character at p[0..n), n > 0: > 0; 0: the n bytes are the beginning of one; < 0: minus so many bytes are not part
 * of any. */
int utf8_length(const char *p, size_t n);
/* All n bytes are whole characters. */
bool utf8_valid(const char *p, size_t n);

#ifdef __cplusplus
}
#endif

#endif
