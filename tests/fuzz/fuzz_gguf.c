/* SPDX-License-Identifier: MIT
 * GGUF files, as far as a Gemma 3 model: opened, every key and tensor touched, hyper-parameters read, a segment filled. */
#include "kernels/quant.h"
#include "model/gemma3.h"
#include "model/gguf.h"
#include "model/segment.h"
#include "proto/err.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SEGMENT_MAX (16u << 20)

static void fill(const struct gguf *g, const struct hparams *h, enum segment_kind kind)
{
    struct err err = {0};
    struct segment_layout l;
    uint8_t types[SEGMENT_MAX_TENSORS];
    if (segment_types(g, kind, 0, types, &err) < 0 || segment_layout_init(&l, h, kind, types, &err) < 0)
        return;
    size_t bounce_bytes = segment_bounce_min(&l);
    if (l.bytes > SEGMENT_MAX || bounce_bytes > SEGMENT_MAX)
        return;
    void *dst = aligned_alloc(4096, l.bytes), *bounce = aligned_alloc(4096, bounce_bytes);
    if (dst && bounce)
        fuzz_check(segment_fill(g, 0, &l, dst, bounce, bounce_bytes, &err), err.text);
    free(dst);
    free(bounce);
}

static void touch(const struct gguf *g)
{
    static const char *const keys[] = {"general.architecture",  "general.alignment",     "gemma3.rope.freq_base",
                                       "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.add_bos_token"};
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        uint32_t u;
        float f;
        bool b;
        const char *s;
        const void *a;
        size_t n;
        uint64_t count;
        gguf_get_u32(g, keys[i], &u, NULL);
        gguf_get_f32(g, keys[i], &f, NULL);
        gguf_get_bool(g, keys[i], &b, NULL);
        if (gguf_get_string(g, keys[i], &s, &n, NULL) == 0 && s[n] != '\0')
            abort();
        gguf_get_array(g, keys[i], GGUF_F32, &a, &count, NULL);
        for (uint64_t k = 0; gguf_get_string_at(g, keys[i], k, &s, &n, NULL) == 0; k++) {
            if (s[n] != '\0')
                abort();
        }
    }
    for (uint32_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        uint8_t buf[64];
        struct err err = {0};
        if (gguf_find(g, t->name) != t || t->offset + t->bytes > gguf_file_bytes(g))
            abort();
        fuzz_check(gguf_read(g, t, t->bytes / 2, buf, t->bytes < 2 * sizeof(buf) ? t->bytes / 2 : sizeof(buf), &err), err.text);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[32];
    struct err err = {0};
    struct gguf *g;
    struct hparams h;
    int fd = fuzz_file(data, size, path);
    int r = gguf_open(path, false, &g, &err);
    fuzz_check(r, err.text);
    if (r == 0) {
        touch(g);
        r = gemma3_hparams(g, &h, &err);
        fuzz_check(r, err.text);
        for (int kind = SEGMENT_ATTN; r == 0 && kind <= SEGMENT_HEAD; kind++)
            fill(g, &h, (enum segment_kind)kind);
        gguf_close(g);
    }
    close(fd);
    return 0;
}
