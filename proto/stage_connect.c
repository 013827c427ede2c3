/* SPDX-License-Identifier: MIT
 * Connects to the coordinator's socket, then reads the token: what stands there now is what the listener wrote. Called once by the
 * main() of a stage, before anything else is opened. Owns the socket until it hands it on. Whether the coordinator runs as the same
 * user is checked by the connection (conn.c), as on a socket that was inherited. */
#include "proto/stage_connect.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "proto/err.h"
#include "proto/util.h"

#define PAUSE_MS 20

static int try_once(const struct sockaddr_un *a, int *ret_fd)
{
    auto_fd fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)a, sizeof(*a)) < 0)
        return -errno;
    *ret_fd = take_fd(&fd);
    return 0;
}

static int read_token(const char *socket, char token[STAGE_TOKEN_CHARS + 1], struct err *err)
{
    char path[PATH_MAX], text[STAGE_TOKEN_CHARS + 2];
    struct stat st;
    snprintf(path, sizeof(path), "%s" STAGE_TOKEN_SUFFIX, socket);
    auto_fd fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set_errno(err, -errno, "stage token '%s': cannot be read; a coordinator that waits for stages writes it", path);
    if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077))
        return err_set(err, -EPERM, "stage token '%s' is not a file of this user with mode 0600", path);
    ssize_t n = read(fd, text, sizeof(text));
    text[n == STAGE_TOKEN_CHARS ? n : 0] = '\0';
    if (strspn(text, "0123456789abcdef") != STAGE_TOKEN_CHARS)
        return err_set(err, -EINVAL, "stage token '%s' has %zd bytes; expected %d hexadecimal digits", path, n, STAGE_TOKEN_CHARS);
    memcpy(token, text, STAGE_TOKEN_CHARS + 1);
    return 0;
}

int stage_connect(const char *path, int wait_ms, char token[STAGE_TOKEN_CHARS + 1], struct err *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct stat st;
    auto_fd fd = -1;
    int r;
    if (*path == '\0' || strlen(path) >= sizeof(a.sun_path))
        return err_set(err, -ENAMETOOLONG, "--stage-socket '%.40s': %zu bytes; expected the path of a socket of 1 to %zu bytes",
                       path, strlen(path), sizeof(a.sun_path) - 1);
    memcpy(a.sun_path, path, strlen(path) + 1);
    if (stat(path, &st) == 0 && !S_ISSOCK(st.st_mode))
        return err_set(err, -ENOTSOCK, "--stage-socket '%s' is not a socket; expected that of a coordinator", path);
    for (int waited = 0;; waited += PAUSE_MS) {
        r = try_once(&a, &fd);
        if ((r != -ENOENT && r != -ECONNREFUSED) || waited >= wait_ms)
            break;
        nanosleep(&(struct timespec){.tv_nsec = PAUSE_MS * 1000000}, NULL);
    }
    if (r == -ENOENT || r == -ECONNREFUSED)
        return err_set_errno(err, r, "--stage-socket '%s': nobody listens there, for %d ms; start the coordinator", path, wait_ms);
    if (r < 0)
        return err_set_errno(err, r, "--stage-socket '%s'", path);
    r = read_token(path, token, err);
    return r < 0 ? r : take_fd(&fd);
}
