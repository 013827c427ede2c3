/* SPDX-License-Identifier: MIT
 * One .npy file: whole, and as large as it says. */
#include "model/npy.h"
#include "proto/err.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[32];
    struct err err = {0};
    float *values;
    size_t rows, cols;
    int fd = fuzz_file(data, size, path);
    int r = npy_read(path, &values, &rows, &cols, &err);
    fuzz_check(r, err.text);
    if (r == 0) {
        volatile float last = values[rows * cols - 1];
        (void)last;
        if (rows * cols * sizeof(float) >= size)
            abort();
        free(values);
    }
    close(fd);
    return 0;
}
