/* SPDX-License-Identifier: MIT
 * Which of several devices: arithmetic on names and types, without a driver. Owns nothing; any thread. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "gpu_worker/vk_device.h"
#include "proto/err.h"

static const char *type_name(VkPhysicalDeviceType t)
{
    return t == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU     ? "a discrete GPU"
           : t == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU ? "an integrated GPU"
           : t == VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU    ? "a virtual GPU"
           : t == VK_PHYSICAL_DEVICE_TYPE_CPU            ? "the processor"
                                                         : "of another kind";
}

static int rank(VkPhysicalDeviceType t)
{
    return t == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU     ? 0
           : t == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU ? 1
           : t == VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU    ? 2
           : t == VK_PHYSICAL_DEVICE_TYPE_CPU            ? 4
                                                         : 3;
}

static void list(const struct vk_candidate *c, uint32_t n, char *buf, size_t bytes)
{
    size_t at = 0;
    buf[0] = '\0';
    for (uint32_t i = 0; i < n && at + 1 < bytes; i++) {
        int w = snprintf(buf + at, bytes - at, "%s%u '%s'", i ? ", " : "", i, c[i].name);
        at += w > 0 ? (size_t)w : 0;
    }
}

static int choose_auto(const struct vk_candidate *c, uint32_t n, bool allow_cpu, char *why, size_t why_bytes, struct err *err)
{
    int best = -1, cpu = -1;
    const char *unfit = NULL;
    for (uint32_t i = 0; i < n; i++) {
        if (c[i].unfit[0]) {
            unfit = c[i].unfit;
        } else if (c[i].type == VK_PHYSICAL_DEVICE_TYPE_CPU) {
            cpu = cpu < 0 ? (int)i : cpu;
        } else if (best < 0 || rank(c[i].type) < rank(c[best].type)) {
            best = (int)i;
        }
    }
    if (best < 0 && cpu >= 0 && !allow_cpu)
        return err_set(err, -ENODEV,
                       "the only Vulkan device is '%s', which is the processor; name it in gpu.device, or set gpu.allow_cpu_device",
                       c[cpu].name);
    if (best < 0 && cpu < 0)
        return err_set(err, -ENODEV, "none of %u Vulkan devices can be used%s%s", n, unfit ? ": " : "", unfit ? unfit : "");
    best = best < 0 ? cpu : best;
    snprintf(why, why_bytes, "it is %s%s", type_name(c[best].type), best == cpu ? ", and nothing better is there" : "");
    return best;
}

int vk_choose(const struct vk_candidate *c, uint32_t n, const char *wanted, bool allow_cpu, char *why, size_t why_bytes,
              struct err *err)
{
    char known[512];
    if (n == 0)
        return err_set(err, -ENODEV, "no Vulkan device: no driver found one (Debian: mesa-vulkan-drivers, or the vendor's)");
    if (wanted[0] == '\0' || strcmp(wanted, "auto") == 0)
        return choose_auto(c, n, allow_cpu, why, why_bytes, err);
    list(c, n, known, sizeof(known));
    int found = -1;
    if (wanted[strspn(wanted, "0123456789")] == '\0') {
        unsigned long i = strtoul(wanted, NULL, 10);
        if (i >= n)
            return err_set(err, -ENODEV, "gpu.device %s: there are %u devices: %s", wanted, n, known);
        found = (int)i;
    }
    for (uint32_t i = 0; found < 0 && i < n; i++) {
        if (strcasestr(c[i].name, wanted))
            found = (int)i;
    }
    if (found < 0)
        return err_set(err, -ENODEV, "gpu.device '%.64s': no device has that in its name; there are: %s", wanted, known);
    if (c[found].unfit[0])
        return err_set(err, -ENODEV, "device '%s' cannot be used: %s", c[found].name, c[found].unfit);
    snprintf(why, why_bytes, "gpu.device '%.64s' names it", wanted);
    return found;
}
