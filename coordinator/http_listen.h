/* SPDX-License-Identifier: MIT
 * The listening socket of the HTTP server: "127.0.0.1:8080", "[::1]:8080", "localhost:8080"; port 0 is any free one. Names other
 * than localhost are not looked up. Thread: any. */
#ifndef TANDEM_COORDINATOR_HTTP_LISTEN_H
#define TANDEM_COORDINATOR_HTTP_LISTEN_H

#include <stdbool.h>
#include <stddef.h>

struct err;

/* A listening descriptor, owned by the caller, or a negative errno. ret_address: as bound. */
int http_listen(const char *text, bool *ret_loopback, char *ret_address, size_t address_size, struct err *err);
/* Without opening anything: whether it is an address, and of the loopback. */
int http_listen_check(const char *text, bool *ret_loopback, struct err *err);

#endif
