/* SPDX-License-Identifier: MIT
 * Holds the keys in slots of one size, so that every comparison goes over the same bytes. Called by http.c. */
#include "coordinator/http_auth.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/err.h"
#include "proto/util.h"

#define KEY_BYTES 256u
#define KEY_MIN 8u
#define MAX_KEYS 256u
#define FILE_MAX_BYTES (64u << 10)

struct http_auth {
    uint32_t n;
    unsigned char keys[MAX_KEYS][KEY_BYTES]; /* zeroes behind the end */
};

static int add_line(struct http_auth *a, const char *line, size_t n, unsigned number, const char *what, const char *path,
                    struct err *err)
{
    while (n && (line[n - 1] == ' ' || line[n - 1] == '\t' || line[n - 1] == '\r'))
        n--;
    if (n == 0 || line[0] == '#')
        return 0;
    bool printable = true;
    for (size_t i = 0; i < n; i++)
        printable = printable && line[i] > ' ' && line[i] < 0x7F;
    if (!printable || n < KEY_MIN || n >= KEY_BYTES)
        return err_set(err, -EINVAL,
                       "%s: file '%s', line %u: a key of %zu bytes%s; expected %u to %u printable characters "
                       "without spaces, such as from `openssl rand -hex 32`",
                       what, path, number, n, printable ? "" : " with others than printable ones", KEY_MIN, KEY_BYTES - 1);
    if (a->n == MAX_KEYS)
        return err_set(err, -E2BIG, "%s: file '%s': expected at most %u keys", what, path, MAX_KEYS);
    memcpy(a->keys[a->n++], line, n);
    return 0;
}

static int read_file(const char *what, const char *path, char *buf, size_t *ret_n, struct err *err)
{
    struct stat st;
    auto_fd fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK); /* opening a FIFO would wait for its writer */
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set_errno(err, -errno, "%s: file '%s': cannot be opened", what, path);
    if (!S_ISREG(st.st_mode) || st.st_size > (off_t)FILE_MAX_BYTES)
        return err_set(err, -EINVAL, "%s: '%s': expected a file of at most %u bytes", what, path, FILE_MAX_BYTES);
    if (st.st_mode & 07)
        return err_set(err, -EACCES, "%s: file '%s' may be read by everybody; `chmod 600` it", what, path);
    for (*ret_n = 0; *ret_n < FILE_MAX_BYTES;) {
        ssize_t got = read(fd, buf + *ret_n, FILE_MAX_BYTES - *ret_n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set_errno(err, -errno, "%s: file '%s': cannot be read", what, path);
        if (got == 0)
            break;
        *ret_n += (size_t)got;
    }
    return 0;
}

int http_auth_open(const char *what, const char *path, struct http_auth **ret, struct err *err)
{
    size_t n = 0;
    char *text = malloc(FILE_MAX_BYTES);
    struct http_auth *a = calloc(1, sizeof(*a));
    int r = text && a ? read_file(what, path, text, &n, err) : err_set(err, -ENOMEM, "%s: out of memory", what);
    unsigned number = 1;
    for (size_t at = 0; r == 0 && at < n; number++) {
        const char *end = memchr(text + at, '\n', n - at);
        size_t length = end ? (size_t)(end - text) - at : n - at;
        r = add_line(a, text + at, length, number, what, path, err);
        at += length + 1;
    }
    if (r == 0 && a->n == 0)
        r = err_set(err, -EINVAL, "%s: file '%s' has no key; expected one a line", what, path);
    if (text)
        explicit_bzero(text, FILE_MAX_BYTES);
    free(text);
    if (r < 0)
        http_auth_close(a);
    else
        *ret = a;
    return r;
}

void http_auth_close(struct http_auth *a)
{
    if (a)
        explicit_bzero(a, sizeof(*a));
    free(a);
}

const char *http_auth_first(const struct http_auth *a)
{
    return (const char *)a->keys[0];
}

bool http_auth_check(const struct http_auth *a, const char *header)
{
    unsigned char given[KEY_BYTES] = {0};
    unsigned found = 0;
    if (!header || strncasecmp(header, "Bearer ", 7) != 0)
        return false;
    header += 7 + strspn(header + 7, " ");
    size_t n = strlen(header);
    if (n == 0 || n >= KEY_BYTES)
        return false;
    memcpy(given, header, n);
    for (uint32_t k = 0; k < a->n; k++) {
        volatile unsigned char differs = 0;
        for (uint32_t i = 0; i < KEY_BYTES; i++)
            differs |= given[i] ^ a->keys[k][i];
        found |= differs == 0;
    }
    explicit_bzero(given, sizeof(given));
    return found != 0;
}
