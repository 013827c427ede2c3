/* SPDX-License-Identifier: MIT
 * Names of VkResult and what they mean to a stage. Owns nothing; any thread. */
#include <errno.h>

#include "gpu_worker/vk_device.h"
#include "proto/err.h"

const char *vk_result_name(VkResult r)
{
#define NAME(x) \
    case x:     \
        return #x
    switch ((int)r) {
        NAME(VK_SUCCESS);
        NAME(VK_NOT_READY);
        NAME(VK_TIMEOUT);
        NAME(VK_INCOMPLETE);
        NAME(VK_ERROR_OUT_OF_HOST_MEMORY);
        NAME(VK_ERROR_OUT_OF_DEVICE_MEMORY);
        NAME(VK_ERROR_INITIALIZATION_FAILED);
        NAME(VK_ERROR_DEVICE_LOST);
        NAME(VK_ERROR_MEMORY_MAP_FAILED);
        NAME(VK_ERROR_LAYER_NOT_PRESENT);
        NAME(VK_ERROR_EXTENSION_NOT_PRESENT);
        NAME(VK_ERROR_FEATURE_NOT_PRESENT);
        NAME(VK_ERROR_INCOMPATIBLE_DRIVER);
        NAME(VK_ERROR_TOO_MANY_OBJECTS);
        NAME(VK_ERROR_FRAGMENTED_POOL);
        NAME(VK_ERROR_OUT_OF_POOL_MEMORY);
        NAME(VK_ERROR_INVALID_EXTERNAL_HANDLE);
        NAME(VK_ERROR_UNKNOWN);
    default:
        return "a VkResult without a name here";
    }
#undef NAME
}

int vk_fail(const struct vk_device *d, VkResult r, const char *call, struct err *err)
{
    const char *name = d && d->name[0] ? d->name : "none opened yet";
    switch ((int)r) {
    case VK_ERROR_DEVICE_LOST:
        return err_set(err, -ENODEV, "device '%s' was lost (%s: VK_ERROR_DEVICE_LOST): its driver reset it", name, call);
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
        return err_set(err, -ENOMEM,
                       "device '%s' is out of memory (%s: VK_ERROR_OUT_OF_DEVICE_MEMORY); close what uses it, or lower gpu.memory",
                       name, call);
    case VK_ERROR_OUT_OF_HOST_MEMORY:
        return err_set(err, -ENOMEM, "device '%s': %s: VK_ERROR_OUT_OF_HOST_MEMORY", name, call);
    case VK_TIMEOUT:
        return err_set(err, -ETIMEDOUT, "device '%s' does not answer (%s)", name, call);
    default:
        return err_set(err, -EIO, "device '%s': %s: %s (%d)", name, call, vk_result_name(r), (int)r);
    }
}
