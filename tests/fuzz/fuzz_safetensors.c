/* SPDX-License-Identifier: MIT
 * One safetensors file: opened, every tensor found by its name and read at its ends. */
#include "model/safetensors.h"
#include "proto/err.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[32];
    struct err err = {0};
    struct safetensors *s;
    int fd = fuzz_file(data, size, path);
    int r = safetensors_open_file(path, &s, &err);
    fuzz_check(r, err.text);
    for (uint32_t i = 0; r == 0 && i < safetensors_n(s); i++) {
        const struct safetensors_tensor *t = safetensors_at(s, i);
        uint8_t b;
        if (safetensors_find(s, t->name) != t || t->offset + t->bytes > size)
            abort();
        if (t->bytes && (safetensors_read(s, t, 0, &b, 1, NULL) < 0 || safetensors_read(s, t, t->bytes - 1, &b, 1, NULL) < 0))
            abort();
        if (safetensors_read(s, t, t->bytes, &b, 1, NULL) == 0)
            abort();
    }
    if (r == 0)
        safetensors_close(s);
    close(fd);
    return 0;
}
