/* SPDX-License-Identifier: MIT
 * Owns nothing. Files of a manifest are opened in a stage too, where the sandbox (proto/sandbox.h) leaves of the user's files the
 * manifest's folder alone. Landlock refuses with the errno of a file whose mode forbids it; access, which it does not hold back,
 * tells the two apart. Called when a backend is chosen, listed or opened, on the main thread. */
#include "npu_worker/manifest_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/err.h"
#include "proto/util.h"

int manifest_file_open(const char *what, const char *path, const char *manifest, struct err *err)
{
    struct stat st;
    const char *slash = strrchr(manifest, '/');
    auto_fd fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    int e = errno;
    if (fd < 0 && e == EACCES && access(path, R_OK) == 0)
        return err_set(
            err, -e,
            "%s '%s': the sandbox keeps npu_worker from reading it; expected it, and what it points to if it is a link, below "
            "the manifest's folder '%.*s' (copy it there), or 'sandbox: off'",
            what, path, slash ? MAX((int)(slash - manifest), 1) : 1, slash ? manifest : ".");
    if (fd < 0)
        return err_set_errno(err, -e, "%s '%s': cannot be opened", what, path);
    if (fstat(fd, &st) < 0)
        return err_set_errno(err, -errno, "%s '%s': cannot be looked at", what, path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, -EINVAL, "%s '%s': is %s; expected a regular file", what, path,
                       S_ISDIR(st.st_mode)    ? "a folder"
                       : S_ISFIFO(st.st_mode) ? "a FIFO"
                                              : "no file");
    return take_fd(&fd);
}
