/* SPDX-License-Identifier: MIT
 * Cleanup attributes, checked arithmetic, clock, and the one table of environment variables. */
#ifndef TANDEM_PROTO_UTIL_H
#define TANDEM_PROTO_UTIL_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void util_close_fd(int *fd)
{
    if (*fd >= 0) {
        int saved = errno;
        close(*fd);
        errno = saved;
    }
}
static inline void util_free_ptr(void *p)
{
    int saved = errno;
    free(*(void **)p);
    errno = saved;
}
static inline void util_fclose(FILE **f)
{
    if (*f)
        fclose(*f);
}
#define auto_fd __attribute__((cleanup(util_close_fd))) int
#define auto_free __attribute__((cleanup(util_free_ptr)))
#define auto_file __attribute__((cleanup(util_fclose))) FILE *

/* Hand a resource on: returns the value and leaves -1 / NULL behind, so that the cleanup attribute does nothing. */
static inline int take_fd(int *fd)
{
    int r = *fd;
    *fd = -1;
    return r;
}
static inline void *take_ptr(void *pp)
{
    void *r = *(void **)pp;
    *(void **)pp = NULL;
    return r;
}

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#undef MIN /* <sys/param.h> defines them where libuv includes it */
#undef MAX
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

static inline size_t util_round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}
/* False on overflow, *ret untouched then. */
static inline bool util_mul(size_t a, size_t b, size_t *ret)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *ret = r;
    return true;
}
static inline bool util_add(size_t a, size_t b, size_t *ret)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *ret = r;
    return true;
}

uint64_t util_now_ns(void); /* CLOCK_MONOTONIC */
/* "1.5 GiB", "12 KiB", "7 B"; buf of at least 16 bytes is returned. */
char *util_format_bytes(char *buf, size_t buf_size, uint64_t bytes);
/* "512MiB", "2GiB", "64KiB", "100" -> bytes. 0 or -EINVAL / -ERANGE. */
int util_parse_bytes(const char *s, uint64_t *ret_bytes);
/* Edit distance, for "did you mean". Strings up to 63 bytes are compared, longer are unlike anything. */
unsigned util_distance(const char *a, const char *b);

/* The only environment variables the programs read. */
enum util_env { UTIL_ENV_LOG, UTIL_ENV_TRACE, UTIL_ENV_CPU, UTIL_ENV_RUNTIME_DIR, UTIL_ENV_CAPS, UTIL_ENV_MAX };
const char *util_env(enum util_env which); /* NULL when unset or empty */
void util_env_help(FILE *f);               /* one line each, for --help */

/* The folder for what is worth keeping between runs, $XDG_CACHE_HOME/tandem or ~/.cache/tandem; made where it is not there. 0, or a
 * negative errno. */
int util_cache_folder(char *buf, size_t size);
/* Likewise the folder for what a user may miss, $XDG_STATE_HOME/tandem or ~/.local/state/tandem. */
int util_state_folder(char *buf, size_t size);

/* A file's name as a shell would take it: "~/" is the home folder. -ENAMETOOLONG, or -ENOENT where there is none. */
int util_expand_home(const char *path, char *buf, size_t size);

/* Write all, or a negative errno. */
int util_write_all(int fd, const void *data, size_t n);

#endif
