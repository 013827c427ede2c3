/* SPDX-License-Identifier: MIT
 * What xclbin_check lets through to XRT: a header whose table of sections, and every section, lie in the file. */
#include <string.h>

#include "npu_worker/xclbin.h"
#include "proto/err.h"
#include "tests/fuzz/fuzz_file.h"

#define TABLE 456u
#define SECTION 40u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t number(const uint8_t *p, size_t bytes)
{
    uint64_t n = 0;
    memcpy(&n, p, bytes); /* little-endian, as every machine that has an NPU */
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[32];
    struct err err = {0};
    int fd = fuzz_file(data, size, path);
    int r = xclbin_check(path, &err);
    fuzz_check(r, err.text);
    close(fd);
    if (r < 0)
        return 0;
    if (size < TABLE || number(data + 448, 4) > (size - TABLE) / SECTION)
        abort();
    for (const uint8_t *s = data + TABLE, *end = s + number(data + 448, 4) * SECTION; s < end; s += SECTION) {
        if (number(s + 24, 8) > size || number(s + 32, 8) > size - number(s + 24, 8))
            abort();
    }
    return 0;
}
