/* SPDX-License-Identifier: MIT
 * What a module of an earlier build looks like: the symbol is there, its version and size are others. */
#include <stdint.h>

struct old_table {
    uint32_t abi, bytes;
};
extern const struct old_table xrt_device_table;
__attribute__((visibility("default"))) const struct old_table xrt_device_table = {0, sizeof(struct old_table)};
