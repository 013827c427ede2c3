/* SPDX-License-Identifier: MIT
 * Vocabularies: GGUF files whose metadata reach the tokenizer. It opens, and then encodes and decodes, or refuses with an error. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "coordinator/tokenizer.h"
#include "model/gguf.h"
#include "proto/err.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const struct tokenizer *t)
{
    static const char text[] = "Once upon <start_of_turn>\n\n a  time\xe2\x96\x81 \xff<bos>";
    for (int markers = 0; markers < 2; markers++) {
        uint32_t *ids;
        size_t n, text_n;
        char *back;
        if (tokenizer_encode(t, text, strlen(text), markers, &ids, &n, NULL) < 0)
            continue;
        for (size_t i = 0; i < n; i++) {
            if (!tokenizer_piece(t, ids[i]))
                abort();
        }
        if (tokenizer_decode(t, ids, n, &back, &text_n, NULL) == 0)
            free(back);
        free(ids);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = {0};
    struct gguf *g;
    struct tokenizer *t;
    char path[64];
    int fd = memfd_create("fuzz_vocab", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (gguf_open(path, false, &g, &err) == 0) {
        int r = tokenizer_open(g, &t, &err);
        if (r < 0 && (err.code != r || !err.text[0]))
            abort();
        gguf_close(g);
        if (r == 0) {
            use(t);
            tokenizer_close(t);
        }
    }
    close(fd);
    return 0;
}
