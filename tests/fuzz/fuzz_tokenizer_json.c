/* SPDX-License-Identifier: MIT
 * tokenizer.json: what is taken has every id, texts of the allowed length, one unknown piece, all bytes, and scores that differ
 * among normal pieces. */
#include <math.h>

#include "proto/err.h"
#include "quantizer/tokenizer_json.h"
#include "tests/fuzz/fuzz_file.h"

#define ROWS 600

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct tokenizer_json *t)
{
    unsigned of_type[SPM_BYTE + 1] = {0};
    uint8_t seen[ROWS] = {0};
    if (t->spm.n == 0 || t->spm.n > ROWS)
        abort();
    for (uint32_t i = 0; i < t->spm.n; i++) {
        const struct spm_piece *p = &t->spm.pieces[i];
        if (p->n == 0 || p->n > 1024 || p->type < SPM_NORMAL || p->type > SPM_BYTE || !isfinite(p->score))
            abort();
        of_type[p->type]++;
        if (p->type != SPM_NORMAL)
            continue;
        if (p->score > 0 || p->score <= -(float)ROWS || seen[(unsigned)-p->score]++)
            abort();
    }
    if (of_type[SPM_UNKNOWN] != 1 || of_type[SPM_BYTE] != 256)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[32];
    struct err err = {0};
    struct tokenizer_json t;
    int fd = fuzz_file(data, size, path);
    int r = tokenizer_json_load(path, ROWS, &t, &err);
    fuzz_check(r, err.text);
    if (r == 0) {
        check(&t);
        tokenizer_json_fini(&t);
    }
    close(fd);
    return 0;
}
