/* SPDX-License-Identifier: MIT
 * The queue: pools for commands and descriptor sets that grow by blocks while recording, one timeline semaphore, waits that poll
 * for the time of a short chunk and then sleep. Owns all of it until close; called by one thread at a time. */
#include "gpu_worker/vk_submit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/trace.h"
#include "proto/util.h"

#define SETS_A_POOL 512
#define POOLS_MAX 256
#define POLL_NS 300000 /* decode steps of a layer end within it; waking a sleeper costs some 50 us */

struct vk_recorder {
    VkCommandPool commands;
    VkCommandBuffer *buffers;
    uint32_t n_buffers;
    VkDescriptorPool pools[POOLS_MAX]; /* filled one after the other */
    uint32_t n_pools, begun, in_pool;  /* made; of these begun; sets of the last begun */
};

struct vk_queue {
    const struct vk_device *device;
    struct trace *trace;                  /* NULL: off */
    struct vk_recorder *once, *recording; /* recording: where the commands that are begun belong */
    VkSemaphore done;
    uint64_t value; /* of `done` after what was submitted last */
    bool first;
    VkQueryPool stamps;
    uint32_t n_stamps;
};

int vk_recorder_open(const struct vk_queue *q, uint32_t n, struct vk_recorder **ret, struct err *err)
{
    VkDevice d = q->device->device;
    const VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                          .queueFamilyIndex = q->device->family};
    struct vk_recorder *rec = calloc(1, sizeof(*rec));
    if (rec)
        rec->buffers = calloc(n, sizeof(*rec->buffers));
    if (!rec || !rec->buffers) {
        vk_recorder_close(q, rec);
        return err_set(err, -ENOMEM, "vulkan: out of memory");
    }
    VkResult r = vkCreateCommandPool(d, &pool, NULL, &rec->commands);
    if (r == VK_SUCCESS) {
        const VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                                  .commandPool = rec->commands,
                                                  .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                                  .commandBufferCount = n};
        r = vkAllocateCommandBuffers(d, &info, rec->buffers);
    }
    if (r != VK_SUCCESS) {
        vk_recorder_close(q, rec);
        return vk_fail(q->device, r, "vkAllocateCommandBuffers", err);
    }
    rec->n_buffers = n;
    *ret = rec;
    return 0;
}

void vk_recorder_close(const struct vk_queue *q, struct vk_recorder *rec)
{
    if (!rec)
        return;
    for (uint32_t i = 0; i < rec->n_pools; i++)
        vkDestroyDescriptorPool(q->device->device, rec->pools[i], NULL);
    if (rec->commands)
        vkDestroyCommandPool(q->device->device, rec->commands, NULL);
    free(rec->buffers);
    free(rec);
}

uint32_t vk_recorder_sets(const struct vk_recorder *rec)
{
    return rec ? rec->begun * SETS_A_POOL : 0;
}

int vk_recorder_reset(const struct vk_queue *q, struct vk_recorder *rec, struct err *err)
{
    VkResult r = vkResetCommandPool(q->device->device, rec->commands, 0);
    for (uint32_t i = 0; r == VK_SUCCESS && i < rec->begun; i++)
        r = vkResetDescriptorPool(q->device->device, rec->pools[i], 0);
    rec->begun = rec->in_pool = 0;
    return r == VK_SUCCESS ? 0 : vk_fail(q->device, r, "vkResetCommandPool", err);
}

int vk_queue_open(const struct vk_device *d, struct vk_queue **ret, struct err *err)
{
    struct vk_queue *q = calloc(1, sizeof(*q));
    if (!q)
        return err_set(err, -ENOMEM, "vulkan: out of memory");
    q->device = d;
    q->first = true;
    const VkSemaphoreTypeCreateInfo timeline = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                                .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    const VkSemaphoreCreateInfo semaphore = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &timeline};
    int r = vk_recorder_open(q, 1, &q->once, err);
    if (r == 0) {
        VkResult v = vkCreateSemaphore(d->device, &semaphore, NULL, &q->done);
        r = v == VK_SUCCESS ? 0 : vk_fail(d, v, "vkCreateSemaphore", err);
    }
    if (r < 0) {
        vk_queue_close(q);
        return r;
    }
    *ret = q;
    return 0;
}

void vk_queue_trace(struct vk_queue *q, struct trace *t)
{
    q->trace = t;
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
    vk_recorder_close(q, q->once);
    if (q->stamps)
        vkDestroyQueryPool(d, q->stamps, NULL);
    if (q->done)
        vkDestroySemaphore(d, q->done, NULL);
    free(q);
}

int vk_begin(struct vk_queue *q, struct vk_recorder *rec, uint32_t number, VkCommandBuffer *ret, struct err *err)
{
    const VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    int e = rec ? 0 : vk_recorder_reset(q, q->once, err);
    if (e < 0)
        return e;
    q->recording = rec ? rec : q->once;
    *ret = q->recording->buffers[rec ? number : 0];
    VkResult r = vkBeginCommandBuffer(*ret, &begin);
    return r == VK_SUCCESS ? 0 : vk_fail(q->device, r, "vkBeginCommandBuffer", err);
}

int vk_end(struct vk_queue *q, VkCommandBuffer cmd, struct err *err)
{
    vk_barrier(cmd);
    VkResult r = vkEndCommandBuffer(cmd);
    return r == VK_SUCCESS ? 0 : vk_fail(q->device, r, "vkEndCommandBuffer", err);
}

static VkResult next_pool(struct vk_queue *q, struct vk_recorder *rec)
{
    const VkDescriptorPoolSize size = {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, SETS_A_POOL * VK_KERNEL_BINDINGS};
    const VkDescriptorPoolCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO, .maxSets = SETS_A_POOL, .poolSizeCount = 1, .pPoolSizes = &size};
    if (rec->begun == rec->n_pools) {
        if (rec->n_pools == POOLS_MAX)
            return VK_ERROR_OUT_OF_POOL_MEMORY;
        VkResult r = vkCreateDescriptorPool(q->device->device, &info, NULL, &rec->pools[rec->n_pools]);
        if (r != VK_SUCCESS)
            return r;
        rec->n_pools++;
    }
    rec->begun++;
    rec->in_pool = 0;
    return VK_SUCCESS;
}

static VkResult make_set(struct vk_queue *q, const struct vk_kernel *k, const struct vk_range *ranges, VkDescriptorSet *ret)
{
    VkDescriptorBufferInfo info[VK_KERNEL_BINDINGS];
    VkWriteDescriptorSet writes[VK_KERNEL_BINDINGS];
    struct vk_recorder *rec = q->recording;
    VkResult r = rec->begun == 0 || rec->in_pool == SETS_A_POOL ? next_pool(q, rec) : VK_SUCCESS;
    if (r != VK_SUCCESS)
        return r;
    const VkDescriptorSetAllocateInfo alloc = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                               .descriptorPool = rec->pools[rec->begun - 1],
                                               .descriptorSetCount = 1,
                                               .pSetLayouts = &k->set_layout};
    r = vkAllocateDescriptorSets(q->device->device, &alloc, ret);
    if (r != VK_SUCCESS)
        return r;
    rec->in_pool++;
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
    const uint32_t *most = q->device->properties.limits.maxComputeWorkGroupCount;
    VkDescriptorSet set;
    if (x > most[0] || y > most[1] || z > most[2])
        return err_set(err, -ENOTSUP, "device '%s' takes %u x %u x %u workgroups at once; this model needs %u x %u x %u",
                       q->device->name, most[0], most[1], most[2], x, y, z);
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
    trace_span(q->trace, TRACE_DEVICE, TRACE_DEVICE_RUN, begin, trace_now(q->trace));
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
    VkCommandBuffer cmd;
    int r = 0;
    for (uint64_t done = 0, n; r == 0 && done < bytes; done += n) {
        n = MIN(bytes - done, staging->bytes);
        memcpy(staging->map, (const uint8_t *)data + done, n);
        r = vk_begin(q, NULL, 0, &cmd, err);
        if (r < 0)
            return r;
        vk_copy(cmd, staging->buffer, 0, to, at + done, n);
        r = vk_end(q, cmd, err);
        if (r == 0)
            r = vk_run(q, cmd, err);
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
