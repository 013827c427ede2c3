/* SPDX-License-Identifier: MIT
 * Manifests and instruction files: whatever the bytes, operators within their bounds or one error that names the file. The same
 * bytes are read as instructions of both forms. */
#include <string.h>

#include "npu_worker/manifest.h"
#include "proto/err.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_operator(const struct manifest *m, const struct manifest_operator *o)
{
    const struct manifest_operator *found = NULL;
    struct err err = {0};
    if (o->kind >= MANIFEST_KINDS || !o->xclbin || !o->instructions || !o->kernel[0] || o->n_arguments < 3 ||
        o->n_arguments > MANIFEST_ARGUMENTS_MAX)
        abort();
    for (unsigned i = 0; i < o->n_arguments; i++) {
        size_t bytes = manifest_bytes(o, i);
        if (bytes == 0 || bytes > (size_t)4 << 30 || manifest_argument(o, o->arguments[i]) != (int)i)
            abort();
    }
    if (manifest_find(m, o->kind, o->dims, NULL, &found, NULL, &err) < 0 || found->kind != o->kind) /* at least itself */
        abort();
}

static void check_instructions(char *path, bool hex)
{
    const struct manifest_operator o = {.manifest = path, .instructions = path, .hex = hex};
    struct err err = {0};
    uint32_t *words = NULL;
    size_t n = 0;
    fuzz_check(manifest_instructions(&o, &words, &n, &err), err.text);
    if ((words != NULL) != (n > 0))
        abort();
    free(words);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct manifest *m = NULL;
    struct err err = {0};
    char path[32], *text = NULL;
    size_t bytes;
    int fd = fuzz_file(data, size, path), r = manifest_open(path, &m, &err);
    fuzz_check(r, err.text);
    for (size_t i = 0; r == 0 && i < manifest_count(m); i++)
        check_operator(m, manifest_get(m, i));
    FILE *f = open_memstream(&text, &bytes);
    if (r == 0 && f)
        manifest_print(m, f);
    if (f)
        fclose(f);
    free(text);
    manifest_close(m);
    check_instructions(path, false);
    check_instructions(path, true);
    close(fd);
    return 0;
}
