/* SPDX-License-Identifier: MIT
 * What the unit tests of model/ and quantizer/ share: a folder of their own that is removed afterwards, whole files to and from
 * memory, and growing byte strings. One thread. */
#ifndef TANDEM_TESTS_UNIT_TEST_H
#define TANDEM_TESTS_UNIT_TEST_H

#include "tests/proto/proto_test.h"

#include <stdbool.h>
#include <stdlib.h>

struct bytes {
    uint8_t *data;
    size_t n;
};

int unit_setup(void **state);    /* makes the folder, counts fds */
int unit_teardown(void **state); /* removes it; fails when an fd leaked */
#define UNIT_TEST(f) cmocka_unit_test_setup_teardown(f, unit_setup, unit_teardown)

const char *unit_path(const char *name);   /* in the folder; one of sixteen rotating buffers */
const char *unit_source(const char *path); /* in the source tree, likewise */
unsigned unit_count_files(void);           /* in the folder */
void unit_write(const char *path, const void *data, size_t n);
void unit_copy(const char *from, const char *to);
struct bytes unit_read(const char *path);

void unit_put(struct bytes *b, const void *data, size_t n);
void unit_put_u32(struct bytes *b, uint32_t v);
void unit_put_u64(struct bytes *b, uint64_t v);
void unit_put_string(struct bytes *b, const char *s); /* as GGUF does: u64 length, bytes */
void unit_free(struct bytes *b);

#endif
