/* SPDX-License-Identifier: MIT
 * tokenizer.model: pieces lie inside the input. */
#include "proto/err.h"
#include "quantizer/spm.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = {0};
    struct spm s;
    int r = spm_parse(data, size, &s, &err);
    fuzz_check(r, err.text);
    if (r < 0)
        return 0;
    for (uint32_t i = 0; i < s.n; i++) {
        const uint8_t *p = (const uint8_t *)s.pieces[i].text;
        if (p < data || p + s.pieces[i].n > data + size || s.pieces[i].n == 0)
            abort();
    }
    spm_fini(&s);
    return 0;
}
