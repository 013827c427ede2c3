/* SPDX-License-Identifier: MIT
 * The queue: pools for commands and descriptor sets that grow by blocks while recording, one timeline semaphore, waits that poll
 * for the time of a short chunk and then sleep. Owns all of it until close; called by one thread at a time. */
#include "gpu_worker/vk_submit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/util.h"

#define SETS_A_POOL 512
#define POOLS_MAX 256
#define POLL_NS 300000 /* decode steps of a layer end within it; waking a sleeper costs some 50 us */

struct vk_queue {
    const struct vk_device *device;
    VkCommandPool commands, transient;
    VkCommandBuffer upload; /* of `transient` */
    VkDescriptorPool pools[POOLS_MAX];
    uint32_t n_pools, in_pool;
    VkSemaphore done;
    uint64_t value; /* of `done` after what was submitted last */
    bool first;
    VkQueryPool stamps;
    uint32_t n_stamps;
};

int vk_queue_open(const struct vk_device *d, struct vk_queue **ret, struct err *err)
{
    struct vk_queue *q = calloc(1, sizeof(*q));
    if (!q)
        return err_set(err, -ENOMEM, "vulkan: out of memory");
    q->device = d;
    q->first = true;
    const VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO, .queueFamilyIndex = d->family};
    const VkSemaphoreTypeCreateInfo timeline = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                                .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    const VkSemaphoreCreateInfo semaphore = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &timeline};
    VkCommandPoolCreateInfo again = pool;
    again.flags = VK_COMMAND_POOL_CREATE_TRANSIENT_BIT | VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT;
    VkResult r = vkCreateCommandPool(d->device, &pool, NULL, &q->commands);
    if (r == VK_SUCCESS)
        r = vkCreateCommandPool(d->device, &again, NULL, &q->transient);
    if (r == VK_SUCCESS) {
        const VkCommandBufferAllocateInfo one = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                                 .commandPool = q->transient,
                                                 .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                                 .commandBufferCount = 1};
        r = vkAllocateCommandBuffers(d->device, &one, &q->upload);
    }
    if (r == VK_SUCCESS)
        r = vkCreateSemaphore(d->device, &semaphore, NULL, &q->done);
    if (r != VK_SUCCESS) {
        vk_queue_close(q);
        return vk_fail(d, r, "vkCreateSemaphore", err);
    }
    *ret = q;
    return 0;
}

static VkResult wait_value(struct vk_queue *q, uint64_t ns)
{
    const VkSemaphoreWaitInfo info = {
        .sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO, .semaphoreCount = 1, .pSemaphores = &q->done, .pValues = &q->value};
    return vkWaitSemaphores(q->device->device, &info, ns);
}

bool vk_queue_settle(struct vk_queue *q)
{
    return !q || q->value == 0 || wait_value(q, VK_WAIT_NS) != VK_TIMEOUT;
}

void vk_queue_close(struct vk_queue *q)
{
    if (!q)
        return;
    VkDevice d = q->device->device;
    for (uint32_t i = 0; i < q->n_pools; i++)
        vkDestroyDescriptorPool(d, q->pools[i], NULL);
    if (q->stamps)
        vkDestroyQueryPool(d, q->stamps, NULL);
    if (q->done)
        vkDestroySemaphore(d, q->done, NULL);
    if (q->transient)
        vkDestroyCommandPool(d, q->transient, NULL);
    if (q->commands)
        vkDestroyCommandPool(d, q->commands, NULL);
    free(q);
}

int vk_begin(struct vk_queue *q, VkCommandBuffer *ret, struct err *err)
{
    const VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                              .commandPool = q->commands,
                                              .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                              .commandBufferCount = 1};
    const VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    VkResult r = vkAllocateCommandBuffers(q->device->device, &info, ret);
    if (r == VK_SUCCESS)
        r = vkBeginCommandBuffer(*ret, &begin);
    return r == VK_SUCCESS ? 0 : vk_fail(q->device, r, "vkBeginCommandBuffer", err);
}

int vk_end(struct vk_queue *q, VkCommandBuffer cmd, struct err *err)
{
    vk_barrier(cmd);
    VkResult r = vkEndCommandBuffer(cmd);
    return r == VK_SUCCESS ? 0 : vk_fail(q->device, r, "vkEndCommandBuffer", err);
}

static VkResult more_sets(struct vk_queue *q)
{
    const VkDescriptorPoolSize size = {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, SETS_A_POOL * VK_KERNEL_BINDINGS};
    const VkDescriptorPoolCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO, .maxSets = SETS_A_POOL, .poolSizeCount = 1, .pPoolSizes = &size};
    if (q->n_pools == POOLS_MAX)
        return VK_ERROR_OUT_OF_POOL_MEMORY;
    VkResult r = vkCreateDescriptorPool(q->device->device, &info, NULL, &q->pools[q->n_pools]);
    if (r == VK_SUCCESS) {
        q->n_pools++;
        q->in_pool = 0;
    }
    return r;
}

static VkResult make_set(struct vk_queue *q, const struct vk_kernel *k, const struct vk_range *ranges, VkDescriptorSet *ret)
{
    VkDescriptorBufferInfo info[VK_KERNEL_BINDINGS];
    VkWriteDescriptorSet writes[VK_KERNEL_BINDINGS];
    VkResult r = q->n_pools == 0 || q->in_pool == SETS_A_POOL ? more_sets(q) : VK_SUCCESS;
    if (r != VK_SUCCESS)
        return r;
    const VkDescriptorSetAllocateInfo alloc = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                               .descriptorPool = q->pools[q->n_pools - 1],
                                               .descriptorSetCount = 1,
                                               .pSetLayouts = &k->set_layout};
    r = vkAllocateDescriptorSets(q->device->device, &alloc, ret);
    if (r != VK_SUCCESS)
        return r;
    q->in_pool++;
    for (uint32_t i = 0; i < k->n_bindings; i++) {
        info[i] = (VkDescriptorBufferInfo){ranges[i].buffer, ranges[i].offset, ranges[i].bytes ? ranges[i].bytes : VK_WHOLE_SIZE};
        writes[i] = (VkWriteDescriptorSet){.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                           .dstSet = *ret,
                                           .dstBinding = i,
                                           .descriptorCount = 1,
                                           .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                           .pBufferInfo = &info[i]};
    }
    vkUpdateDescriptorSets(q->device->device, k->n_bindings, writes, 0, NULL);
    return VK_SUCCESS;
}

int vk_dispatch(struct vk_queue *q, VkCommandBuffer cmd, const struct vk_kernel *k, const struct vk_range *ranges, const void *push,
                uint32_t x, uint32_t y, uint32_t z, struct err *err)
{
    VkDescriptorSet set;
    VkResult r = make_set(q, k, ranges, &set);
    if (r != VK_SUCCESS)
        return vk_fail(q->device, r, "vkAllocateDescriptorSets", err);
    vkCmdBindPipeline(cmd, VK_PIPELINE_BIND_POINT_COMPUTE, k->pipeline);
    vkCmdBindDescriptorSets(cmd, VK_PIPELINE_BIND_POINT_COMPUTE, k->layout, 0, 1, &set, 0, NULL);
    if (k->push_bytes)
        vkCmdPushConstants(cmd, k->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, k->push_bytes, push);
    vkCmdDispatch(cmd, x, y, z);
    return 0;
}

void vk_barrier(VkCommandBuffer cmd)
{
    const VkPipelineStageFlags stages = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
    const VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
                               .dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT |
                                                VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT |
                                                VK_ACCESS_HOST_READ_BIT};
    vkCmdPipelineBarrier(cmd, stages, stages | VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &b, 0, NULL, 0, NULL);
}

void vk_copy(VkCommandBuffer cmd, VkBuffer from, uint64_t from_at, VkBuffer to, uint64_t to_at, uint64_t bytes)
{
    const VkBufferCopy c = {from_at, to_at, bytes};
    vkCmdCopyBuffer(cmd, from, to, 1, &c);
}

int vk_run(struct vk_queue *q, VkCommandBuffer cmd, struct err *err)
{
    const struct vk_device *d = q->device;
    uint64_t value = q->value + 1, now = 0, begin = util_now_ns();
    const VkTimelineSemaphoreSubmitInfo timeline = {.sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
                                                    .signalSemaphoreValueCount = 1,
                                                    .pSignalSemaphoreValues = &value};
    const VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                               .pNext = &timeline,
                               .commandBufferCount = 1,
                               .pCommandBuffers = &cmd,
                               .signalSemaphoreCount = 1,
                               .pSignalSemaphores = &q->done};
    VkResult r = vkQueueSubmit(d->queue, 1, &info, VK_NULL_HANDLE);
    if (r != VK_SUCCESS)
        return vk_fail(d, r, "vkQueueSubmit", err);
    q->value = value;
    do
        r = vkGetSemaphoreCounterValue(d->device, q->done, &now);
    while (r == VK_SUCCESS && now < value && util_now_ns() - begin < POLL_NS);
    if (r == VK_SUCCESS && now < value)
        r = wait_value(q, q->first ? VK_WAIT_FIRST_NS : VK_WAIT_NS);
    q->first = false;
    if (r == VK_SUCCESS && *d->complaints)
        return err_set(err, -EPROTO, "device '%s': the validation layer complained %u times; see the log", d->name, *d->complaints);
    return r == VK_SUCCESS ? 0 : vk_fail(d, r, "vkWaitSemaphores", err);
}

bool vk_idle(const struct vk_queue *q)
{
    uint64_t now = 0;
    return vkGetSemaphoreCounterValue(q->device->device, q->done, &now) == VK_SUCCESS && now == q->value;
}

int vk_upload(struct vk_queue *q, const struct vk_buffer *staging, VkBuffer to, uint64_t at, const void *data, uint64_t bytes,
              struct err *err)
{
    const VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                            .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
    int r = 0;
    for (uint64_t done = 0, n; r == 0 && done < bytes; done += n) {
        n = MIN(bytes - done, staging->bytes);
        memcpy(staging->map, (const uint8_t *)data + done, n);
        VkResult v = vkBeginCommandBuffer(q->upload, &begin);
        if (v != VK_SUCCESS)
            return vk_fail(q->device, v, "vkBeginCommandBuffer", err);
        vk_copy(q->upload, staging->buffer, 0, to, at + done, n);
        r = vk_end(q, q->upload, err);
        if (r == 0)
            r = vk_run(q, q->upload, err);
    }
    return r;
}

int vk_stamps_make(struct vk_queue *q, uint32_t count, struct err *err)
{
    const VkQueryPoolCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO, .queryType = VK_QUERY_TYPE_TIMESTAMP, .queryCount = count};
    if (!q->device->stamp_bits)
        return err_set(err, -ENOTSUP, "device '%s' has no time stamps on its queue", q->device->name);
    VkResult r = vkCreateQueryPool(q->device->device, &info, NULL, &q->stamps);
    q->n_stamps = r == VK_SUCCESS ? count : 0;
    return r == VK_SUCCESS ? 0 : vk_fail(q->device, r, "vkCreateQueryPool", err);
}

void vk_stamps_reset(struct vk_queue *q, VkCommandBuffer cmd)
{
    if (q->n_stamps)
        vkCmdResetQueryPool(cmd, q->stamps, 0, q->n_stamps);
}

void vk_stamp(struct vk_queue *q, VkCommandBuffer cmd, uint32_t number)
{
    if (number < q->n_stamps)
        vkCmdWriteTimestamp(cmd, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, q->stamps, number);
}

double vk_stamp_seconds(struct vk_queue *q, uint32_t from, uint32_t to)
{
    uint64_t t[2];
    const VkQueryResultFlags flags = VK_QUERY_RESULT_64_BIT;
    if (from >= q->n_stamps || to >= q->n_stamps ||
        vkGetQueryPoolResults(q->device->device, q->stamps, from, 1, 8, &t[0], 8, flags) != VK_SUCCESS ||
        vkGetQueryPoolResults(q->device->device, q->stamps, to, 1, 8, &t[1], 8, flags) != VK_SUCCESS)
        return -1.0;
    return (double)((t[1] - t[0]) & UINT64_MAX >> (64 - q->device->stamp_bits)) *
           (double)q->device->properties.limits.timestampPeriod * 1e-9;
}
