/* SPDX-License-Identifier: MIT
 * Buffers of a device: every byte goes through the process's budget (category device) and below the device's limits.
 * Threads: main thread, before or after the data thread runs. */
#ifndef TANDEM_GPU_WORKER_VK_MEMORY_H
#define TANDEM_GPU_WORKER_VK_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "gpu_worker/vk_device.h"

struct budget;
struct err;

enum vk_memory_kind {
    VK_MEMORY_DEVICE,  /* fast for the device; mapped too where memory is unified */
    VK_MEMORY_STAGING, /* mapped, coherent; written by the host and read by the device */
    VK_MEMORY_READBACK /* mapped, coherent, cached by the host where that exists; written by the device */
};

struct vk_buffer {
    VkBuffer buffer;
    VkDeviceMemory memory;
    void *map;      /* NULL: the host does not see it */
    uint64_t bytes; /* that may be used */
    uint64_t taken; /* counted */
    enum vk_memory_kind kind;
};

struct vk_memory {
    const struct vk_device *device; /* borrowed */
    struct budget *budget;          /* borrowed */
    uint64_t limit, used, peak;     /* bytes of device memory; limit 0: none */
};

/* -ENOMEM names what it was for, the bytes, the limit and the remedy. *ret is zeroed on failure. */
int vk_buffer_make(struct vk_memory *m, enum vk_memory_kind kind, uint64_t bytes, const char *what, struct vk_buffer *ret,
                   struct err *err);
/* Host memory [p, p + bytes), both multiples of the device's import_align, used in place: nothing is copied, nothing is charged.
 * -ENOTSUP where the driver does not take it (that is no error to the user; err is untouched). The memory must outlive the buffer.
 */
int vk_buffer_import(struct vk_memory *m, void *p, uint64_t bytes, struct vk_buffer *ret);
/* Bytes of a sealed memfd, mapped read-only, that the device can use in place; 0: none. Tries it with one. */
uint64_t vk_buffer_importable(const struct vk_device *d);
void vk_buffer_free(struct vk_memory *m, struct vk_buffer *b); /* a zeroed one is fine */

#endif
