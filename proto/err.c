/* SPDX-License-Identifier: MIT
 * Formats the sentence that travels with a negative errno. Owns nothing, allocates nothing, never logs; any thread. */
#include "proto/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int err_set(struct err *err, int code, const char *fmt, ...)
{
    if (!err)
        return code;
    char text[ERR_TEXT_MAX]; /* the arguments may point into err itself */
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
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
