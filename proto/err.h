/* SPDX-License-Identifier: MIT
 * An error value: a negative errno and one sentence that travels up to whoever decides.
 * Cold paths take `struct err *err` as last argument; it may be NULL. Thread: any, one owner at a time.
 * A message names the thing in single quotes, the place, what was found, what was expected and the remedy. */
#ifndef TANDEM_PROTO_ERR_H
#define TANDEM_PROTO_ERR_H

#define ERR_TEXT_MAX 768

struct err {
    int code; /* negative errno, 0 = none */
    char text[ERR_TEXT_MAX];
};

/* Store code (negative errno) and text (truncated, always terminated); returns code. Overwrites what was there. */
int err_set(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* As err_set with ": <strerror(-code)>" appended. */
int err_set_errno(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Prefix "context: " to the text; returns err->code (or code when err is NULL). */
int err_wrap(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
