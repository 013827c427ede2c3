/* SPDX-License-Identifier: MIT
 * One Vulkan device with one compute queue: found, judged, chosen, opened. What is optional is probed here and nowhere else; a
 * feature that the options take away counts as absent, so that tests can make any device a poor one and users can avoid what a
 * driver does badly. The loader (libvulkan.so.1) is opened at run time: without it, open returns -ENODEV.
 * Threads: open and close on the main thread; the fields are immutable in between. */
#ifndef TANDEM_GPU_WORKER_VK_DEVICE_H
#define TANDEM_GPU_WORKER_VK_DEVICE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#ifndef VK_NO_PROTOTYPES
#define VK_NO_PROTOTYPES
#endif
#include <volk.h>

struct err;

/* What is used where a device has it. */
enum vk_feature {
    VK_FEATURE_INT_DOT,       /* shaderIntegerDotProduct: four 8-bit products in one instruction */
    VK_FEATURE_FP16,          /* shaderFloat16 */
    VK_FEATURE_STORAGE16,     /* storageBuffer16BitAccess; reported only, as the next: shaders read and write words of 32 bits */
    VK_FEATURE_STORAGE8,      /* storageBuffer8BitAccess */
    VK_FEATURE_COOPMAT,       /* VK_KHR_cooperative_matrix: 16x16x16, f16 x f16 -> f32, in subgroups of 32 */
    VK_FEATURE_HOST_IMPORT,   /* VK_EXT_external_memory_host */
    VK_FEATURE_SUBGROUP_SIZE, /* subgroupSizeControl */
    VK_FEATURE_SUBGROUP_SUM,  /* subgroup arithmetic in compute shaders */
    VK_FEATURE_BUDGET,        /* VK_EXT_memory_budget */
    VK_FEATURE_TIMESTAMPS,    /* the queue can write them */
    VK_FEATURES
};
const char *vk_feature_name(enum vk_feature f); /* "int_dot" */
/* "int_dot,coopmat" or "all" -> bits 1 << enum vk_feature; NULL and "": 0. -EINVAL names what is not known, and what is. */
int vk_features_parse(const char *names, uint32_t *ret, struct err *err);

struct vk_options {
    const char *device;  /* "auto", a number as --list-devices shows it, or part of a name; borrowed during open */
    bool allow_cpu;      /* auto may take a device that is the processor itself (lavapipe) */
    bool validate;       /* VK_LAYER_KHRONOS_validation, its messages counted and logged */
    uint32_t without;    /* bits 1 << enum vk_feature: treated as absent */
    uint64_t max_buffer; /* bytes of a buffer and of an allocation at most; 0: as the device says */
    uint32_t subgroup;   /* 0: as the driver likes; else asked for where VK_FEATURE_SUBGROUP_SIZE is there */
};

/* What choosing looks at. */
struct vk_candidate {
    char name[VK_MAX_PHYSICAL_DEVICE_NAME_SIZE];
    VkPhysicalDeviceType type;
    char unfit[128]; /* why it cannot be used at all, or "" */
};
/* Discrete before integrated before virtual before others, the first of equals. A CPU device only by name or number, or when
 * nothing better is there and allow_cpu. *why: a sentence for the user. Returns the index, or -ENODEV with a message. */
int vk_choose(const struct vk_candidate *c, uint32_t n, const char *wanted, bool allow_cpu, char *why, size_t why_bytes,
              struct err *err);

struct vk_device {
    VkInstance instance;
    VkDebugUtilsMessengerEXT messenger;
    VkPhysicalDevice physical;
    VkDevice device;
    VkQueue queue;
    uint32_t family;
    char name[VK_MAX_PHYSICAL_DEVICE_NAME_SIZE], driver[VK_MAX_DRIVER_INFO_SIZE + VK_MAX_DRIVER_NAME_SIZE];
    VkPhysicalDeviceProperties properties;
    VkPhysicalDeviceMemoryProperties memory;
    uint32_t features;          /* bits 1 << enum vk_feature */
    bool unified;               /* all device-local memory is visible to the host: integrated GPUs and lavapipe */
    uint64_t max_range;         /* bytes of a storage buffer's range, a multiple of 256 */
    uint64_t max_bytes;         /* of an allocation */
    uint64_t range_align;       /* offsets of ranges */
    uint64_t import_align;      /* of imported host memory; 0: none */
    uint32_t subgroup;          /* lanes */
    uint32_t subgroup_required; /* to be asked for in pipelines; 0: none */
    uint32_t coopmat_subgroup;  /* to be asked for in pipelines of cooperative matrices; 0: nothing to ask */
    bool coopmat_plain;         /* VK_FEATURE_COOPMAT is simulated: TANDEM_VULKAN_COOPMAT=plain, for tests */
    uint32_t max_threads;       /* of a workgroup */
    uint32_t max_shared;        /* bytes of shared memory of a workgroup */
    uint32_t n_units;           /* multiprocessors or compute units; 0: the driver does not tell */
    uint32_t stamp_bits;        /* of a time stamp that count; 0: none */
    uint32_t *complaints;       /* of the validation layer, counted; owned */
};

int vk_device_open(const struct vk_options *o, struct vk_device **ret, struct err *err);
void vk_device_close(struct vk_device *d); /* NULL is fine */
/* One line: name, driver, what is there and what is not. */
void vk_device_describe(const struct vk_device *d, char *buf, size_t bytes);
/* Every device with type, driver, memory, limits that matter, and which one these options choose, and why. */
int vk_device_list(const struct vk_options *o, FILE *f, struct err *err);
/* Device-local bytes: free now where the driver tells (VK_FEATURE_BUDGET), else the size of the heap. */
uint64_t vk_device_room(const struct vk_device *d);

static inline bool vk_has(const struct vk_device *d, enum vk_feature f)
{
    return d->features >> f & 1;
}

/* "VK_ERROR_DEVICE_LOST" */
const char *vk_result_name(VkResult r);
/* Negative errno of a failed call with a sentence: -ENODEV lost, -ENOMEM out of memory, -ETIMEDOUT, else -EIO. */
int vk_fail(const struct vk_device *d, VkResult r, const char *call, struct err *err);

#endif
