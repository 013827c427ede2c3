/* SPDX-License-Identifier: MIT
 * A fuzz input as a file with a path, for parsers that open files: a memfd, named through /proc. */
#ifndef TANDEM_TESTS_FUZZ_FILE_H
#define TANDEM_TESTS_FUZZ_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* The fd, to be closed by the caller; path: at least 32 bytes. A machine that cannot make one ends the run. */
static inline int fuzz_file(const uint8_t *data, size_t size, char *path)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || (size && write(fd, data, size) != (ssize_t)size)) {
        perror("memfd");
        abort();
    }
    snprintf(path, 32, "/proc/self/fd/%d", fd);
    return fd;
}

/* What every parser promises: success without a message, or failure with one. */
static inline void fuzz_check(int result, const char *text)
{
    if ((result < 0) != (text[0] != '\0'))
        abort();
}

#endif
