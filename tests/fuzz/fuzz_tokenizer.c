/* SPDX-License-Identifier: MIT
 * Tokenizer input: any bytes become ids within the vocabulary, with and without markers; the text of these ids is a fixed point
 * (encoding and decoding it again gives it back); a stream of arbitrary ids gives the same text as the whole of them. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "coordinator/tokenizer.h"
#include "model/gguf.h"
#include "tests/coordinator/vocab_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct tokenizer *open_demo(void)
{
    struct tokenizer *t = NULL;
    struct gguf *g;
    char path[64];
    struct vocab v = vocab_of_model(TANDEM_SOURCE_DIR "/models/demo/tokenizer.model");
    int fd = memfd_create("fuzz_tokenizer", MFD_CLOEXEC);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    vocab_write(&v, path);
    vocab_free(&v);
    if (gguf_open(path, false, &g, NULL) < 0 || tokenizer_open(g, &t, NULL) < 0)
        abort();
    gguf_close(g);
    close(fd);
    return t;
}

static char *again(const struct tokenizer *t, const char *text, size_t n, bool markers, size_t *ret_n)
{
    uint32_t *ids;
    size_t n_ids;
    char *back;
    if (tokenizer_encode(t, text, n, markers, &ids, &n_ids, NULL) < 0)
        abort();
    for (size_t i = 0; i < n_ids; i++) {
        if (ids[i] >= tokenizer_vocab(t) || ids[i] == tokenizer_bos(t))
            abort();
    }
    if (tokenizer_decode(t, ids, n_ids, &back, ret_n, NULL) < 0)
        abort();
    free(ids);
    return back;
}

static void check_stream(const struct tokenizer *t, const uint8_t *data, size_t size)
{
    struct detokenizer *d;
    size_t n = size / 2, whole_n, at = 0;
    uint32_t *ids = malloc((n + 1) * sizeof(*ids));
    char *whole;
    for (size_t i = 0; i < n; i++)
        ids[i] = (uint32_t)data[2 * i] | (uint32_t)data[2 * i + 1] << 8;
    if (tokenizer_decode(t, ids, n, &whole, &whole_n, NULL) < 0 || detokenizer_open(t, &d) < 0)
        abort();
    for (size_t i = 0; i <= n; i++) {
        const char *s = i < n ? detokenizer_push(d, ids[i]) : detokenizer_finish(d);
        if (strncmp(whole + at, s, strlen(s)) != 0)
            abort();
        at += strlen(s);
    }
    if (at != whole_n)
        abort();
    detokenizer_close(d);
    free(whole);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *t; /* lives as long as the process */
    if (!t)
        t = open_demo();
    for (int markers = 0; markers < 2; markers++) {
        size_t n, m;
        char *once = again(t, (const char *)data, size, markers, &n), *twice = again(t, once, n, markers, &m);
        if (n != m || memcmp(once, twice, n) != 0)
            abort();
        free(once);
        free(twice);
    }
    check_stream(t, data, size);
    return 0;
}
