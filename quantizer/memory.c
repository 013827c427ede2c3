/* SPDX-License-Identifier: MIT
 * Reads /proc/self/status, because getrusage counts what the parent had before exec. Owns nothing. Under a sanitizer, whose shadow
 * would be counted too, a fixed value stands for the program. */
#include "quantizer/memory.h"

#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/util.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif
#define PROGRAM (16u << 20) /* under a sanitizer */

static uint64_t field(const char *name)
{
    char text[4096];
    auto_fd fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (n < 0)
        return PROGRAM;
    text[n] = '\0';
    const char *at = strstr(text, name);
    return at ? strtoull(at + strlen(name), NULL, 10) * 1024 : PROGRAM;
}

void memory_trim(void)
{
    if (!SANITIZED)
        malloc_trim(0);
}

uint64_t memory_now(void)
{
    if (SANITIZED)
        return PROGRAM;
    memory_trim();
    return field("VmRSS:");
}

uint64_t memory_peak(void)
{
    return SANITIZED ? PROGRAM : field("VmHWM:");
}
