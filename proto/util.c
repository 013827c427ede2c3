/* SPDX-License-Identifier: MIT
 * Clock, byte sizes, edit distance, and the table of environment variables: the only getenv of the project is here.
 * Owns nothing; any thread. */
#include "proto/util.h"

#include <ctype.h>
#include <inttypes.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>

uint64_t util_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

char *util_format_bytes(char *buf, size_t buf_size, uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    size_t u = 0;
    while (v >= 1024 && u + 1 < ARRAY_LEN(units)) {
        v /= 1024;
        u++;
    }
    snprintf(buf, buf_size, u ? "%.1f %s" : "%.0f %s", v, units[u]);
    return buf;
}

int util_parse_bytes(const char *s, uint64_t *ret_bytes)
{
    static const struct {
        const char *name;
        unsigned shift;
    } units[] = {{"", 0}, {"B", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
    if (!isdigit((unsigned char)*s))
        return -EINVAL;
    char *end;
    errno = 0;
    uintmax_t v = strtoumax(s, &end, 10);
    if (errno)
        return -ERANGE;
    while (*end == ' ')
        end++;
    for (size_t i = 0; i < ARRAY_LEN(units); i++) {
        if (strcasecmp(end, units[i].name) != 0)
            continue;
        if (v > UINT64_MAX >> units[i].shift)
            return -ERANGE;
        *ret_bytes = (uint64_t)v << units[i].shift;
        return 0;
    }
    return -EINVAL;
}

unsigned util_distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    unsigned row[64];
    if (n > 63 || m > 63)
        return 64;
    for (size_t j = 0; j <= m; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= n; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= m; j++) {
            unsigned up = row[j], best = diagonal + (a[i - 1] != b[j - 1]);
            best = MIN(best, up + 1);
            best = MIN(best, row[j - 1] + 1);
            diagonal = up;
            row[j] = best;
        }
    }
    return row[m];
}

static const struct {
    const char *name, *help;
} env_table[UTIL_ENV_MAX] = {
    [UTIL_ENV_LOG] = {"TANDEM_LOG",
                      "what is logged: a level (error, warn, info, debug), then topic:level with globs, e.g. info,npu.*:debug"},
    [UTIL_ENV_TRACE] = {"TANDEM_TRACE", "msg: print every control message"},
    [UTIL_ENV_CPU] = {"TANDEM_CPU", "force a CPU kernel variant: ref, avx2 or avx512"},
    [UTIL_ENV_RUNTIME_DIR] = {"TANDEM_RUNTIME_DIR", "where the runtime folder goes instead of /run/user/<uid>, /run or /tmp"},
    [UTIL_ENV_CAPS] = {"TANDEM_CAPS", "watched: make no cgroups; the coordinator watches memory and ends who passes its cap"},
};

const char *util_env(enum util_env which)
{
    const char *v = getenv(env_table[which].name);
    return v && *v ? v : NULL;
}

void util_env_help(FILE *f)
{
    for (size_t i = 0; i < UTIL_ENV_MAX; i++)
        fprintf(f, "  %-20s %s\n", env_table[i].name, env_table[i].help);
}

/* The folder that the variable names, or the one below the home folder; made where it is not there. */
static int user_folder(const char *variable, const char *below_home, char *buf, size_t size)
{
    const char *xdg = getenv(variable), *home = getenv("HOME");
    int n = -1;
    if (xdg && xdg[0] == '/')
        n = snprintf(buf, size, "%s/tandem", xdg);
    else if (home && home[0] == '/')
        n = snprintf(buf, size, "%s/%s/tandem", home, below_home);
    if (n <= 0 || (size_t)n >= size)
        return -ENOENT;
    for (char *slash = buf + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        mkdir(buf, 0700);
        *slash = '/';
    }
    return mkdir(buf, 0700) < 0 && errno != EEXIST ? -errno : 0;
}

int util_cache_folder(char *buf, size_t size)
{
    return user_folder("XDG_CACHE_HOME", ".cache", buf, size);
}

int util_state_folder(char *buf, size_t size)
{
    return user_folder("XDG_STATE_HOME", ".local/state", buf, size);
}

int util_expand_home(const char *path, char *buf, size_t size)
{
    bool home = path[0] == '~' && path[1] == '/';
    const char *folder = home ? getenv("HOME") : "";
    if (!folder)
        return -ENOENT;
    return (size_t)snprintf(buf, size, "%s%s", folder, home ? path + 1 : path) < size ? 0 : -ENAMETOOLONG;
}

int util_write_all(int fd, const void *data, size_t n)
{
    const char *p = data;
    while (n) {
        ssize_t w = write(fd, p, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            return -errno;
        p += w;
        n -= (size_t)w;
    }
    return 0;
}
