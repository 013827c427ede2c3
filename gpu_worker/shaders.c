/* SPDX-License-Identifier: MIT
 * Finds an embedded shader by its name. The table itself is made at build time (cmake/shaders.cmake). Called when a device is
 * opened; never on the data thread. */
#include "gpu_worker/shaders.h"

#include <string.h>

const struct shaders_code *shaders_find(const char *name)
{
    for (size_t i = 0; i < shaders_count; i++) {
        if (strcmp(shaders_table[i].name, name) == 0)
            return &shaders_table[i];
    }
    return NULL;
}
