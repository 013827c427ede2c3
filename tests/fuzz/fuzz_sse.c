/* SPDX-License-Identifier: MIT
 * A stream of server-sent events: the same events whether it comes whole or in pieces, whose length is the first byte. */
#include "coordinator/client/sse.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/util.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct sum {
    uint64_t hash;
    size_t events;
};

static int add(void *ctx, const char *text, size_t n, struct err *err)
{
    struct sum *s = ctx;
    (void)err;
    if (text[n] != '\0')
        abort();
    for (size_t i = 0; i <= n; i++)
        s->hash = (s->hash ^ (unsigned char)text[i]) * UINT64_C(1099511628211);
    s->events++;
    return 0;
}

static int feed(const char *bytes, size_t n, size_t step, struct sum *ret)
{
    struct sse s = {0};
    struct err err = {0};
    int r = 0;
    *ret = (struct sum){0};
    for (size_t at = 0; at < n && r == 0; at += step)
        r = sse_feed(&s, bytes + at, MIN(step, n - at), add, ret, &err);
    fuzz_check(r, err.text);
    sse_fini(&s);
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sum whole, pieces;
    if (size < 2)
        return 0;
    const char *bytes = (const char *)data + 1;
    int r = feed(bytes, size - 1, size, &whole);
    if (feed(bytes, size - 1, 1u + data[0] % 16u, &pieces) != r || memcmp(&whole, &pieces, sizeof(whole)) != 0)
        abort();
    return 0;
}
