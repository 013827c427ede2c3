/* SPDX-License-Identifier: MIT
 * A file for /load: what is taken are turns, the last the assistant's, and what /save makes of them is taken again and the same. */
#include "coordinator/conversation.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/err.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[32], again[64];
    struct err err = {0};
    struct conversation c = {0}, d = {0};
    int fd = fuzz_file(data, size, path);
    int r = conversation_load(&c, path, &err);
    fuzz_check(r, err.text);
    close(fd);
    if (r < 0 && c.n)
        abort();
    if (r == 0) {
        if (c.n < 2 || strcmp(c.messages[c.n - 1].role, "assistant") != 0)
            abort();
        snprintf(again, sizeof(again), "/tmp/tandem-fuzz-conversation-%d", (int)getpid());
        if (conversation_save(&c, "model", again, &err) < 0 || conversation_load(&d, again, &err) < 0 || c.n != d.n) {
            fprintf(stderr, "%s\n", err.text);
            abort();
        }
        for (size_t i = 0; i < c.n; i++) {
            if (c.messages[i].role != d.messages[i].role || strcmp(c.messages[i].content, d.messages[i].content) != 0)
                abort();
        }
        unlink(again);
    }
    conversation_fini(&c);
    conversation_fini(&d);
    return 0;
}
