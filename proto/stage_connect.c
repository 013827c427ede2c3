/* SPDX-License-Identifier: MIT
 * Connects to the coordinator's socket. Called once by the main() of a stage, before anything else is opened. Owns the socket until
 * it hands it on. Whether the coordinator runs as the same user is checked by the connection (conn.c), as on a socket that was
 * inherited. */
#include "proto/stage_connect.h"

#include <errno.h>
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

int stage_connect(const char *path, int wait_ms, struct err *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct stat st;
    int fd = -1, r;
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
    return r < 0 ? err_set_errno(err, r, "--stage-socket '%s'", path) : fd;
}
