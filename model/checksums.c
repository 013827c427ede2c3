/* SPDX-License-Identifier: MIT
 * Finds the checksums of a file and judges whether they are of this file. Computes none. */
#include "model/checksums.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "model/gguf.h"
#include "proto/err.h"

int checksums_find(const struct gguf *g, const void **ret, const char **ret_why, struct err *err)
{
    const void *sums, *types;
    uint64_t n, n_types;
    *ret = NULL;
    *ret_why = "";
    int r = gguf_get_array(g, CHECKSUMS_KEY, GGUF_U64, &sums, &n, err);
    if (r == -ENOENT) {
        *ret_why = "has no key '" CHECKSUMS_KEY "': only files that Tandem's quantizer wrote have checksums";
        return 0;
    }
    if (r < 0)
        return r;
    if (n != gguf_n_tensors(g))
        return err_set(err, -EPROTO, "key '" CHECKSUMS_KEY "' has %" PRIu64 " elements; expected %u, one for each tensor", n,
                       gguf_n_tensors(g));
    r = gguf_get_array(g, CHECKSUMS_TYPES_KEY, GGUF_U8, &types, &n_types, err);
    if (r < 0 && r != -ENOENT)
        return r;
    for (uint32_t i = 0; r == 0 && i < n; i++) {
        if (n_types == n && ((const uint8_t *)types)[i] == gguf_tensor_at(g, i)->type)
            continue;
        *ret_why = "has checksums of tensors of other types: another program made this file and kept the keys";
        return 0;
    }
    *ret = sums;
    return 0;
}

uint64_t checksums_at(const void *sums, uint32_t i)
{
    uint64_t v;
    memcpy(&v, (const uint8_t *)sums + i * sizeof(v), sizeof(v));
    return v;
}
