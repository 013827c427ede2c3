/* SPDX-License-Identifier: MIT
 * Takes the files of coordinator/page into the program as they are, by the assembler: there is no build step of the page. Called by
 * api.c (which answers) and http_request.c (which asks for no key: there is nothing secret in them). */
#include "coordinator/page.h"

#include <string.h>

#include "proto/util.h"

#define EMBED(name, file)                                                     \
    __asm__(".section .rodata\n"                                              \
            ".global page_" name "_begin\n.global page_" name "_end\n"        \
            ".hidden page_" name "_begin\n.hidden page_" name "_end\n"        \
            "page_" name "_begin: .incbin \"" TANDEM_PAGE_DIR "/" file "\"\n" \
            "page_" name "_end: .byte 0\n"                                    \
            ".previous\n")
EMBED("html", "page.html");
EMBED("css", "page.css");
EMBED("js", "page.js");

extern const char page_html_begin[], page_html_end[], page_css_begin[], page_css_end[], page_js_begin[], page_js_end[];

static const struct page_file files[] = {
    {"/", "text/html; charset=utf-8", page_html_begin, page_html_end},
    {"/page.css", "text/css; charset=utf-8", page_css_begin, page_css_end},
    {"/page.js", "text/javascript; charset=utf-8", page_js_begin, page_js_end},
};

const struct page_file *page_find(const char *path)
{
    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        if (strcmp(files[i].path, path) == 0)
            return &files[i];
    }
    return NULL;
}
