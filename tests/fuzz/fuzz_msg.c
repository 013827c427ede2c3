/* SPDX-License-Identifier: MIT
 * Bodies of control messages: whatever the bytes, decoding gives a message within its bounds or an error. What was accepted is
 * encoded and decoded again and must be the same. */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/msg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct msg m, again;
    struct err err = {0};
    uint32_t unknown = 0;
    uint8_t *body = NULL;
    size_t n = 0;
    int r = msg_decode(data, size, &m, &unknown, &err);
    if (r < 0) {
        if (err.code != r || !err.text[0] || (r != -EPROTO && r != -ENOTSUP))
            abort();
        return 0;
    }
    if (msg_encode(&m, &body, &n, &err) < 0 || msg_decode(body, n, &again, &unknown, &err) < 0 || again.type != m.type ||
        memcmp(&again.hello, &m.hello, sizeof(m) - offsetof(struct msg, hello)) != 0)
        abort();
    free(body);
    return 0;
}
