/* SPDX-License-Identifier: MIT
 * A Vulkan driver that aborts as soon as it is asked anything. For tests of what a crashing driver does to others: nothing. */
#include <stdint.h>
#include <stdlib.h>

__attribute__((visibility("default"))) int vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version);
__attribute__((visibility("default"))) void *vk_icdGetInstanceProcAddr(void *instance, const char *name);

int vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version)
{
    (void)version;
    abort();
}

void *vk_icdGetInstanceProcAddr(void *instance, const char *name)
{
    (void)instance;
    (void)name;
    abort();
}
