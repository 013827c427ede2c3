/* SPDX-License-Identifier: MIT
 * API keys: read once from a file, one a line ('#' begins a comment), and compared in a time that does not depend on how much of a
 * key is right. Keys are never printed, and wiped when closed. Thread: any, one at a time. */
#ifndef TANDEM_COORDINATOR_HTTP_AUTH_H
#define TANDEM_COORDINATOR_HTTP_AUTH_H

#include <stdbool.h>

struct err;
struct http_auth;

/* A key has 8 to 255 printable characters without spaces. A file that everybody may read is refused. what: the key or option that
 * named the file, for messages. */
int http_auth_open(const char *what, const char *path, struct http_auth **ret, struct err *err);
void http_auth_close(struct http_auth *a); /* NULL is fine */
/* header: the value of Authorization, or NULL. True for "Bearer KEY" with one of the keys. */
bool http_auth_check(const struct http_auth *a, const char *header);
const char *http_auth_first(const struct http_auth *a); /* the first key of the file, for who has to say one; borrowed */

#endif
