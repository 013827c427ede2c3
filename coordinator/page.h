/* SPDX-License-Identifier: MIT
 * The files of the web page at `/`, which are part of the program. Threads: constants. */
#ifndef TANDEM_COORDINATOR_PAGE_H
#define TANDEM_COORDINATOR_PAGE_H

#include <stddef.h>

struct page_file {
    const char *path, *type;
    const char *begin, *end;
};

/* Everything comes from the server itself, and no markup can hold code. */
#define PAGE_POLICY                                                                                                 \
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; " \
    "form-action 'none'; frame-ancestors 'none'"

const struct page_file *page_find(const char *path); /* NULL: none */

#endif
