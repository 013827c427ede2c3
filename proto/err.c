/* SPDX-License-Identifier: MIT
 * Formats the sentence that travels with a negative errno. Owns nothing, allocates nothing, never logs; any thread. */
#include "proto/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Length of the UTF-8 sequence at s, 0 when it is none (RFC 3629, without a check of overlong three- and four-byte forms). */
static size_t sequence(const unsigned char *s)
{
    size_t n = s[0] < 0x80                    ? 1
               : s[0] >= 0xc2 && s[0] <= 0xdf ? 2
               : s[0] >= 0xe0 && s[0] <= 0xef ? 3
               : s[0] >= 0xf0 && s[0] <= 0xf4 ? 4
                                              : 0;
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    }
    return n;
}

/* Messages quote names from files and other processes: what would confuse a terminal or a reader of UTF-8 becomes '?'. */
static void make_printable(char *text)
{
    for (unsigned char *s = (unsigned char *)text; *s;) {
        size_t n = sequence(s);
        if (n == 0 || *s < 0x20 || *s == 0x7f) {
            *s = '?';
            n = 1;
        }
        s += n;
    }
}

int err_set(struct err *err, int code, const char *fmt, ...)
{
    if (!err)
        return code;
    char text[ERR_TEXT_MAX]; /* the arguments may point into err itself */
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    make_printable(text);
    err->code = code;
    memcpy(err->text, text, sizeof(text));
    return code;
}

int err_set_errno(struct err *err, int code, const char *fmt, ...)
{
    if (!err)
        return code;
    char text[ERR_TEXT_MAX], buf[128];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return err_set(err, code, "%s: %s", text, strerror_r(-code, buf, sizeof(buf)));
}

int err_wrap(struct err *err, int code, const char *fmt, ...)
{
    if (!err)
        return code;
    char context[ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(context, sizeof(context), fmt, ap);
    va_end(ap);
    return err_set(err, err->code ? err->code : code, "%s: %s", context, err->text);
}
