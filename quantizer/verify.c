/* SPDX-License-Identifier: MIT
 * Owns one buffer and a hash state for the length of a call; memory does not depend on the model. Called by the command `verify`.
 */
#include "quantizer/verify.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "model/checksums.h"
#include "model/gguf.h"
#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"
#include "quantizer/plan.h"

#define PIECE (4u << 20)

static int hash_tensor(const struct gguf *g, const struct gguf_tensor *t, uint8_t *buf, XXH3_state_t *x, uint64_t *ret,
                       struct err *err)
{
    XXH3_64bits_reset(x);
    for (uint64_t at = 0; at < t->bytes; at += PIECE) {
        size_t n = (size_t)MIN(t->bytes - at, PIECE), skip;
        int r = io_read_extent(gguf_io(g, t->file), t->offset + at, n, buf, &skip, err);
        if (r < 0)
            return err_wrap(err, r, "tensor '%s'", t->name);
        XXH3_64bits_update(x, buf + skip, n);
    }
    *ret = XXH3_64bits_digest(x);
    return 0;
}

static int check_all(const struct gguf *g, const void *sums, FILE *f, struct verify_result *ret, struct err *err)
{
    uint8_t *buf = aligned_alloc(IO_ALIGN, PIECE + 2 * IO_ALIGN);
    XXH3_state_t *x = XXH3_createState();
    int r = buf && x ? 0 : err_set(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; r == 0 && i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        uint64_t want = checksums_at(sums, i), got = 0;
        r = hash_tensor(g, t, buf, x, &got, err);
        if (r == 0 && got != want) {
            fprintf(f,
                    "tensor '%s' has changed: its checksum is %016" PRIx64 "; expected %016" PRIx64 " (file '%s', offset %" PRIu64
                    ", %" PRIu64 " bytes)\n",
                    t->name, got, want, gguf_file(g, t->file), t->offset, t->bytes);
            ret->n_bad++;
        }
        ret->bytes += t->bytes;
        ret->n_tensors++;
    }
    free(buf);
    XXH3_freeState(x);
    return r;
}

/* A part ends with the padding of its last tensor. */
static int check_ends(const struct gguf *g, struct err *err)
{
    uint32_t alignment = 32;
    int r = gguf_get_u32(g, "general.alignment", &alignment, err);
    if (r < 0 && r != -ENOENT)
        return r;
    for (uint32_t i = 0; i < gguf_n_files(g); i++) {
        uint64_t end = 0, size = io_size(gguf_io(g, i));
        for (uint32_t k = 0; k < gguf_n_tensors(g); k++) {
            const struct gguf_tensor *t = gguf_tensor_at(g, k);
            end = t->file == i ? MAX(end, util_round_up(t->offset + t->bytes, alignment)) : end;
        }
        if (end && end != size)
            return err_set(err, -EBADMSG, "'%s' has %" PRIu64 " bytes; expected %" PRIu64 ": it was cut or added to; convert again",
                           gguf_file(g, i), size, end);
    }
    return 0;
}

int verify_run(const char *path, FILE *f, struct verify_result *ret, struct err *err)
{
    struct gguf *g;
    const void *sums = NULL;
    const char *why;
    struct verify_result result = {0};
    int r = gguf_open(path, true, &g, err);
    if (r < 0)
        return r;
    r = checksums_find(g, &sums, &why, err);
    if (r == 0 && !sums)
        r = err_set(err, -ENOENT, "%s", why);
    if (r == 0)
        r = check_all(g, sums, f, &result, err);
    if (r == 0)
        r = check_ends(g, err);
    gguf_close(g);
    if (r < 0)
        return err_wrap(err, r, "model '%s'", path);
    *ret = result;
    return 0;
}
