/* SPDX-License-Identifier: MIT
 * Configuration files: whatever the bytes, a configuration within its bounds or one error that names the file. The first line,
 * when it begins with "#set ", is an override as of --set. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/config.h"
#include "proto/err.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int within_bounds(const struct config *c)
{
    return c->model && c->model[0] == '/' && c->context >= 1 && c->context <= 1048576 && c->sequences >= 1 && c->sequences <= 64 &&
           c->chunk_tokens <= 1024 && (c->kv_type == 0 || c->kv_type == 1) && c->npu.threads <= 1024 && c->gpu.threads <= 1024;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = {0};
    struct config *c = NULL;
    char path[64], override[256];
    const char *sets = NULL;
    int fd = memfd_create("fuzz_config", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (size > 5 && memcmp(data, "#set ", 5) == 0) {
        size_t n = 5;
        while (n < size && data[n] != '\n')
            n++;
        snprintf(override, sizeof(override), "%.*s", (int)(n - 5), (const char *)data + 5);
        sets = override;
    }
    int r = config_load(path, &sets, sets ? 1 : 0, &c, &err);
    if (r == 0 ? !within_bounds(c) : (err.code != r || !err.text[0]))
        abort();
    if (r == 0)
        config_free(c);
    close(fd);
    return 0;
}
