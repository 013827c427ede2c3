/* SPDX-License-Identifier: MIT
 * A Vulkan driver that aborts as soon as it is asked anything, or with CRASHING_ICD=hang never answers. For tests of what such a
 * driver does to others: nothing. */
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

__attribute__((visibility("default"))) int vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version);
__attribute__((visibility("default"))) void *vk_icdGetInstanceProcAddr(void *instance, const char *name);

int vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version)
{
    (void)version;
    const char *how = getenv("CRASHING_ICD");
    while (how && strcmp(how, "hang") == 0)
        pause();
    abort();
}

void *vk_icdGetInstanceProcAddr(void *instance, const char *name)
{
    (void)instance;
    (void)name;
    abort();
}
