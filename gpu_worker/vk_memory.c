/* SPDX-License-Identifier: MIT
 * One VkDeviceMemory per buffer: there are a few hundred, and each stays below what a driver allows for one allocation. Owns
 * nothing itself; buffers belong to the caller. */
#include "gpu_worker/vk_memory.h"

#include <errno.h>
#include <inttypes.h>

#include "proto/budget.h"
#include "proto/err.h"
#include "proto/shm.h"
#include "proto/util.h"

#define USAGE (VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT)
#define VISIBLE (VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT)

/* The first memory type that has all of `want` and nothing of `avoid`; -1. */
static int find_type(const struct vk_device *d, uint32_t bits, VkMemoryPropertyFlags want, VkMemoryPropertyFlags avoid)
{
    for (uint32_t i = 0; i < d->memory.memoryTypeCount; i++) {
        VkMemoryPropertyFlags f = d->memory.memoryTypes[i].propertyFlags;
        if (bits >> i & 1 && (f & want) == want && !(f & avoid))
            return (int)i;
    }
    return -1;
}

static int choose_type(const struct vk_device *d, uint32_t bits, enum vk_memory_kind kind)
{
    int t = -1;
    if (kind == VK_MEMORY_DEVICE && d->unified)
        t = find_type(d, bits, VISIBLE | VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0);
    else if (kind == VK_MEMORY_DEVICE)
        t = find_type(d, bits, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT);
    else if (kind == VK_MEMORY_READBACK)
        t = find_type(d, bits, VISIBLE | VK_MEMORY_PROPERTY_HOST_CACHED_BIT, 0);
    if (t < 0)
        t = find_type(d, bits, kind == VK_MEMORY_DEVICE ? VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT : VISIBLE, 0);
    return t;
}

/* A device's own memory is no memory of this process: it counts against gpu.memory alone. */
static bool is_ours(const struct vk_memory *m, enum vk_memory_kind kind)
{
    return m->device->unified || kind != VK_MEMORY_DEVICE;
}

static int charge(struct vk_memory *m, enum vk_memory_kind kind, uint64_t bytes, const char *what, struct err *err)
{
    char a[16], b[16], c[16];
    if (m->limit && bytes > m->limit - MIN(m->used, m->limit))
        return err_set(err, -ENOMEM,
                       "%s: %s of device memory for %s do not fit: %s are used of %s, which gpu.memory or what was free allows",
                       m->budget->process, util_format_bytes(a, sizeof(a), bytes), what, util_format_bytes(b, sizeof(b), m->used),
                       util_format_bytes(c, sizeof(c), m->limit));
    int r = is_ours(m, kind) ? budget_take(m->budget, BUDGET_DEVICE, bytes, err) : 0;
    if (r < 0)
        return err_wrap(err, r, "device memory for %s", what);
    m->used += bytes;
    m->peak = MAX(m->peak, m->used);
    return 0;
}

static void refund(struct vk_memory *m, enum vk_memory_kind kind, uint64_t bytes)
{
    if (is_ours(m, kind))
        budget_give(m->budget, BUDGET_DEVICE, bytes);
    m->used -= bytes;
}

static VkResult make_buffer(const struct vk_device *d, uint64_t bytes, const void *next, VkBuffer *ret)
{
    const VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO, .pNext = next, .size = bytes, .usage = USAGE};
    return vkCreateBuffer(d->device, &info, NULL, ret);
}

static VkResult allocate(const struct vk_device *d, struct vk_buffer *b, uint64_t bytes, uint32_t type, const void *next)
{
    const VkMemoryAllocateInfo info = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .pNext = next, .allocationSize = bytes, .memoryTypeIndex = type};
    VkResult r = vkAllocateMemory(d->device, &info, NULL, &b->memory);
    return r == VK_SUCCESS ? vkBindBufferMemory(d->device, b->buffer, b->memory, 0) : r;
}

static void destroy(const struct vk_device *d, struct vk_buffer *b)
{
    vkDestroyBuffer(d->device, b->buffer, NULL);
    vkFreeMemory(d->device, b->memory, NULL);
    *b = (struct vk_buffer){0};
}

int vk_buffer_make(struct vk_memory *m, enum vk_memory_kind kind, uint64_t bytes, const char *what, struct vk_buffer *ret,
                   struct err *err)
{
    const struct vk_device *d = m->device;
    VkMemoryRequirements need;
    char a[16], b[16];
    *ret = (struct vk_buffer){0};
    bytes = MAX(util_round_up(bytes, 256), (size_t)256);
    if (bytes > d->max_bytes)
        return err_set(err, -ENOMEM, "device '%s' allocates at most %s at once; expected %s for %s", d->name,
                       util_format_bytes(a, sizeof(a), d->max_bytes), util_format_bytes(b, sizeof(b), bytes), what);
    VkResult v = make_buffer(d, bytes, NULL, &ret->buffer);
    if (v != VK_SUCCESS)
        return vk_fail(d, v, "vkCreateBuffer", err);
    vkGetBufferMemoryRequirements(d->device, ret->buffer, &need);
    int type = choose_type(d, need.memoryTypeBits, kind), r = 0;
    if (type < 0)
        r = err_set(err, -ENOTSUP, "device '%s' has no memory for %s", d->name, what);
    if (r == 0)
        r = charge(m, kind, need.size, what, err);
    if (r < 0) {
        destroy(d, ret);
        return r;
    }
    v = allocate(d, ret, need.size, (uint32_t)type, NULL);
    if (v == VK_SUCCESS && d->memory.memoryTypes[type].propertyFlags & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT)
        v = vkMapMemory(d->device, ret->memory, 0, VK_WHOLE_SIZE, 0, &ret->map);
    if (v != VK_SUCCESS) {
        refund(m, kind, need.size);
        destroy(d, ret);
        r = vk_fail(d, v, "vkAllocateMemory", err);
        return err_wrap(err, r, "%s for %s", util_format_bytes(a, sizeof(a), need.size), what);
    }
    ret->bytes = bytes;
    ret->taken = need.size;
    ret->kind = kind;
    return 0;
}

int vk_buffer_import(struct vk_memory *m, void *p, uint64_t bytes, struct vk_buffer *ret)
{
    const struct vk_device *d = m->device;
    const VkExternalMemoryHandleTypeFlagBits host = VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT;
    VkMemoryHostPointerPropertiesEXT host_types = {.sType = VK_STRUCTURE_TYPE_MEMORY_HOST_POINTER_PROPERTIES_EXT};
    VkMemoryRequirements need;
    *ret = (struct vk_buffer){0};
    if (!d->import_align || bytes == 0 || (uintptr_t)p % d->import_align || bytes % d->import_align || bytes > d->max_bytes)
        return -ENOTSUP;
    if (vkGetMemoryHostPointerPropertiesEXT(d->device, host, p, &host_types) != VK_SUCCESS || !host_types.memoryTypeBits)
        return -ENOTSUP;
    const VkExternalMemoryBufferCreateInfo external = {.sType = VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO,
                                                       .handleTypes = host};
    const VkImportMemoryHostPointerInfoEXT import = {
        .sType = VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT, .handleType = host, .pHostPointer = p};
    if (make_buffer(d, bytes, &external, &ret->buffer) != VK_SUCCESS)
        return -ENOTSUP;
    vkGetBufferMemoryRequirements(d->device, ret->buffer, &need);
    int type = find_type(d, need.memoryTypeBits & host_types.memoryTypeBits, 0, 0);
    if (type < 0 || need.size > bytes || allocate(d, ret, bytes, (uint32_t)type, &import) != VK_SUCCESS) {
        destroy(d, ret);
        return -ENOTSUP;
    }
    ret->map = p;
    ret->bytes = bytes;
    return 0;
}

uint64_t vk_buffer_importable(const struct vk_device *d)
{
    struct vk_memory m = {.device = d};
    struct vk_buffer b = {0};
    struct err err = {0};
    void *p = NULL;
    if (!d->unified || !d->import_align)
        return 0;
    size_t bytes = util_round_up(4096, d->import_align);
    int fd = shm_make("tandem-probe", bytes, true, &err), r = fd;
    if (r >= 0)
        r = shm_seal_write(fd, &err);
    if (r == 0)
        r = shm_map(fd, bytes, false, &p, &err);
    if (r == 0)
        r = vk_buffer_import(&m, p, bytes, &b);
    vk_buffer_free(&m, &b);
    shm_unmap(p, bytes);
    util_close_fd(&fd);
    return r == 0 ? d->max_bytes : 0;
}

void vk_buffer_free(struct vk_memory *m, struct vk_buffer *b)
{
    if (!b->buffer)
        return;
    if (b->taken)
        refund(m, b->kind, b->taken);
    destroy(m->device, b);
}
