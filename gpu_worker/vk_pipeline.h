/* SPDX-License-Identifier: MIT
 * Compute pipelines from the embedded shaders (shaders.h), and the driver's pipeline cache on disk: $XDG_CACHE_HOME/tandem or
 * ~/.cache/tandem, one file per device, driver and program. A file that is damaged or of another driver is ignored and replaced.
 * Threads: main thread. */
#ifndef TANDEM_GPU_WORKER_VK_PIPELINE_H
#define TANDEM_GPU_WORKER_VK_PIPELINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu_worker/vk_device.h"

struct err;
struct vk_cache;

#define VK_KERNEL_BINDINGS 5
#define VK_KERNEL_CONSTANTS 8

struct vk_kernel {
    VkPipeline pipeline;
    VkPipelineLayout layout;
    VkDescriptorSetLayout set_layout;
    uint32_t n_bindings, push_bytes;
};

/* folder: where the file lies; NULL: where the user's caches are; "": no file. Never fails for the file's sake. */
int vk_cache_open(const struct vk_device *d, const char *folder, struct vk_cache **ret, struct err *err);
/* Whether the file was there and good. */
bool vk_cache_warm(const struct vk_cache *c);
/* Where the file lies, for others of its kind; "": nowhere. */
const char *vk_cache_folder(const struct vk_cache *c);
/* Checksum of all embedded shaders. */
uint64_t vk_cache_shaders(const struct vk_cache *c);
/* Writes the file when the driver has more to keep than was read (to a temporary name, then renamed), and frees. NULL is fine. */
void vk_cache_close(struct vk_cache *c);

/* shader: a name of shaders.h; constants by number from 0 (constant 0 is the workgroup's size). subgroup: lanes to ask for; 0:
 * those of the device. */
int vk_kernel_make(const struct vk_device *d, struct vk_cache *c, const char *shader, uint32_t n_bindings, uint32_t push_bytes,
                   const uint32_t *constants, uint32_t n_constants, uint32_t subgroup, struct vk_kernel *ret, struct err *err);
void vk_kernel_free(const struct vk_device *d, struct vk_kernel *k); /* a zeroed one is fine */

#endif
