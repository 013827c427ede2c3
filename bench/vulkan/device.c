/* SPDX-License-Identifier: MIT
 * Minimal Vulkan for bench_vulkan. Owns what it makes until the matching free or device_close. Everything that the device offers
 * is switched on, but for robust access, which costs time. Called by the one thread of the benchmark; any failing call ends the
 * program, since a benchmark has nothing to fall back to. */
#include "bench/vulkan/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_worker/shaders.h"

#define STAGING_BYTES ((size_t)16 << 20)

void device_require(VkResult r, const char *call)
{
    if (r == VK_SUCCESS)
        return;
    fprintf(stderr, "bench_vulkan: %s: VkResult %d\n", call, (int)r);
    exit(1);
}

static bool has_extension(const VkExtensionProperties *e, uint32_t n, const char *name)
{
    for (uint32_t i = 0; i < n; i++) {
        if (strcmp(e[i].extensionName, name) == 0)
            return true;
    }
    return false;
}

static void open_instance(struct device *d, bool validate)
{
    if (volkInitialize() != VK_SUCCESS) {
        fputs("bench_vulkan: no Vulkan loader (libvulkan.so.1)\n", stderr);
        exit(1);
    }
    VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .apiVersion = VK_API_VERSION_1_3};
    const char *layers[] = {"VK_LAYER_KHRONOS_validation"};
    VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                 .pApplicationInfo = &app,
                                 .enabledLayerCount = validate,
                                 .ppEnabledLayerNames = layers};
    device_require(vkCreateInstance(&info, NULL, &d->instance), "vkCreateInstance");
    volkLoadInstance(d->instance);
}

static void choose(struct device *d, int index)
{
    VkPhysicalDevice all[16];
    uint32_t n = 16;
    vkEnumeratePhysicalDevices(d->instance, &n, all);
    if (n == 0 || index >= (int)n) {
        fprintf(stderr, "bench_vulkan: %u Vulkan devices; asked for number %d\n", n, index);
        exit(1);
    }
    d->physical = all[index < 0 ? 0 : index];
    for (uint32_t i = 0; i < n; i++) {
        VkPhysicalDeviceProperties p;
        vkGetPhysicalDeviceProperties(all[i], &p);
        if (index < 0 && p.deviceType == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU) {
            d->physical = all[i];
            break;
        }
    }
    vkGetPhysicalDeviceMemoryProperties(d->physical, &d->memory);
    d->subgroup.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES;
    VkPhysicalDeviceProperties2 p = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &d->subgroup};
    vkGetPhysicalDeviceProperties2(d->physical, &p);
    d->properties = p.properties;
}

/* VK_KHR_cooperative_matrix is younger than Debian 12's headers. */
#define COOPMAT_FEATURES ((VkStructureType)1000506000)
struct coopmat_features {
    VkStructureType type;
    void *next;
    VkBool32 matrix, robust;
};

static void open_queue(struct device *d)
{
    VkQueueFamilyProperties families[16];
    uint32_t n_families = 16, family = 0;
    vkGetPhysicalDeviceQueueFamilyProperties(d->physical, &n_families, families);
    while (family + 1 < n_families && !(families[family].queueFlags & VK_QUEUE_COMPUTE_BIT))
        family++;
    static VkExtensionProperties e[512];
    uint32_t n = 512, n_names = 0;
    vkEnumerateDeviceExtensionProperties(d->physical, NULL, &n, e);
    const char *names[4];
    bool v13 = d->properties.apiVersion >= VK_API_VERSION_1_3;
    bool dot = has_extension(e, n, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME);
    bool khr = has_extension(e, n, "VK_KHR_cooperative_matrix"), nv = has_extension(e, n, "VK_NV_cooperative_matrix");
    if (dot)
        names[n_names++] = VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME;
    if (khr)
        names[n_names++] = "VK_KHR_cooperative_matrix";
    if (nv)
        names[n_names++] = "VK_NV_cooperative_matrix";
    struct coopmat_features coopmat = {.type = COOPMAT_FEATURES};
    VkPhysicalDeviceCooperativeMatrixFeaturesNV coopmat_nv = {.sType =
                                                                  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_NV};
    VkPhysicalDeviceShaderIntegerDotProductFeatures int_dot = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES};
    VkPhysicalDeviceSubgroupSizeControlFeatures control = {.sType =
                                                               VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES};
    VkPhysicalDeviceVulkan12Features v12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
    VkPhysicalDeviceVulkan11Features v11 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES, .pNext = &v12};
    VkPhysicalDeviceFeatures2 f = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &v11};
    void **tail = &v12.pNext;
    if (v13 || dot) {
        *tail = &int_dot;
        tail = &int_dot.pNext;
    }
    if (v13) {
        *tail = &control;
        tail = &control.pNext;
    }
    if (khr) {
        *tail = &coopmat;
        tail = &coopmat.next;
    }
    if (nv)
        *tail = &coopmat_nv;
    vkGetPhysicalDeviceFeatures2(d->physical, &f);
    f.features.robustBufferAccess = VK_FALSE;
    coopmat.robust = VK_FALSE;
    coopmat_nv.cooperativeMatrixRobustBufferAccess = VK_FALSE;
    d->int_dot = int_dot.shaderIntegerDotProduct;
    d->coopmat = coopmat.matrix;
    d->coopmat_nv = coopmat_nv.cooperativeMatrix;
    d->fp16 = v12.shaderFloat16;
    d->storage16 = v11.storageBuffer16BitAccess;
    d->memory_model = v12.vulkanMemoryModel;
    d->subgroup_control = control.subgroupSizeControl;
    float priority = 1;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                     .queueFamilyIndex = family,
                                     .queueCount = 1,
                                     .pQueuePriorities = &priority};
    VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &f,
                               .queueCreateInfoCount = 1,
                               .pQueueCreateInfos = &queue,
                               .enabledExtensionCount = n_names,
                               .ppEnabledExtensionNames = names};
    device_require(vkCreateDevice(d->physical, &info, NULL, &d->device), "vkCreateDevice");
    volkLoadDevice(d->device);
    vkGetDeviceQueue(d->device, family, 0, &d->queue);
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                    .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                    .queueFamilyIndex = family};
    device_require(vkCreateCommandPool(d->device, &pool, NULL, &d->commands), "vkCreateCommandPool");
}

void device_open(struct device *d, int index, bool validate)
{
    memset(d, 0, sizeof(*d));
    open_instance(d, validate);
    choose(d, index);
    open_queue(d);
    VkCommandBufferAllocateInfo cmd = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                       .commandPool = d->commands,
                                       .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                       .commandBufferCount = 1};
    device_require(vkAllocateCommandBuffers(d->device, &cmd, &d->cmd), "vkAllocateCommandBuffers");
    VkDescriptorPoolSize size = {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 8192};
    VkDescriptorPoolCreateInfo sets = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO, .maxSets = 2048, .poolSizeCount = 1, .pPoolSizes = &size};
    device_require(vkCreateDescriptorPool(d->device, &sets, NULL, &d->sets), "vkCreateDescriptorPool");
    VkQueryPoolCreateInfo queries = {
        .sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO, .queryType = VK_QUERY_TYPE_TIMESTAMP, .queryCount = DEVICE_QUERIES};
    device_require(vkCreateQueryPool(d->device, &queries, NULL, &d->queries), "vkCreateQueryPool");
    VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    device_require(vkCreateFence(d->device, &fence, NULL, &d->fence), "vkCreateFence");
}

void device_close(struct device *d)
{
    vkDestroyFence(d->device, d->fence, NULL);
    vkDestroyQueryPool(d->device, d->queries, NULL);
    vkDestroyDescriptorPool(d->device, d->sets, NULL);
    vkDestroyCommandPool(d->device, d->commands, NULL);
    vkDestroyDevice(d->device, NULL);
    vkDestroyInstance(d->instance, NULL);
}

static uint32_t memory_type(const struct device *d, uint32_t bits, VkMemoryPropertyFlags want)
{
    for (uint32_t i = 0; i < d->memory.memoryTypeCount; i++) {
        if (bits >> i & 1 && (d->memory.memoryTypes[i].propertyFlags & want) == want)
            return i;
    }
    device_require(VK_ERROR_FEATURE_NOT_PRESENT, "memory type");
    return 0;
}

struct buffer device_buffer(struct device *d, size_t bytes, bool host)
{
    struct buffer b = {.bytes = (bytes + 255) / 256 * 256};
    VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                               .size = b.bytes,
                               .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                                        VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    device_require(vkCreateBuffer(d->device, &info, NULL, &b.buffer), "vkCreateBuffer");
    VkMemoryRequirements need;
    vkGetBufferMemoryRequirements(d->device, b.buffer, &need);
    VkMemoryPropertyFlags visible = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    VkMemoryAllocateInfo alloc = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                  .allocationSize = need.size,
                                  .memoryTypeIndex =
                                      memory_type(d, need.memoryTypeBits, host ? visible : VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT)};
    device_require(vkAllocateMemory(d->device, &alloc, NULL, &b.memory), "vkAllocateMemory");
    device_require(vkBindBufferMemory(d->device, b.buffer, b.memory, 0), "vkBindBufferMemory");
    if (host)
        device_require(vkMapMemory(d->device, b.memory, 0, VK_WHOLE_SIZE, 0, &b.map), "vkMapMemory");
    return b;
}

void device_free(struct device *d, struct buffer *b)
{
    vkDestroyBuffer(d->device, b->buffer, NULL);
    vkFreeMemory(d->device, b->memory, NULL);
    *b = (struct buffer){0};
}

static void copy(struct device *d, VkBuffer from, size_t from_at, VkBuffer to, size_t to_at, size_t bytes)
{
    VkBufferCopy c = {from_at, to_at, bytes};
    vkCmdCopyBuffer(d->cmd, from, to, 1, &c);
}

void device_upload(struct device *d, const struct buffer *b, size_t at, const void *data, size_t bytes)
{
    struct buffer s = device_buffer(d, bytes < STAGING_BYTES ? bytes : STAGING_BYTES, true);
    for (size_t done = 0, n; done < bytes; done += n) {
        n = bytes - done < STAGING_BYTES ? bytes - done : STAGING_BYTES;
        memcpy(s.map, (const char *)data + done, n);
        device_begin(d);
        copy(d, s.buffer, 0, b->buffer, at + done, n);
        device_submit(d);
    }
    device_free(d, &s);
}

void device_download(struct device *d, const struct buffer *b, size_t at, void *data, size_t bytes)
{
    struct buffer s = device_buffer(d, bytes, true);
    device_begin(d);
    copy(d, b->buffer, at, s.buffer, 0, bytes);
    device_submit(d);
    memcpy(data, s.map, bytes);
    device_free(d, &s);
}

void device_repeat(struct device *d, const struct buffer *b, size_t bytes)
{
    for (size_t done = bytes; done < b->bytes; done *= 2) {
        device_begin(d);
        copy(d, b->buffer, 0, b->buffer, done, done < b->bytes - done ? done : b->bytes - done);
        device_submit(d);
    }
}

struct pipeline device_pipeline(struct device *d, const char *shader, uint32_t n_bindings, uint32_t push_bytes,
                                const uint32_t *constants, uint32_t n_constants)
{
    struct pipeline p = {.n_bindings = n_bindings, .push_bytes = push_bytes};
    const struct shaders_code *code = shaders_find(shader);
    VkDescriptorSetLayoutBinding bindings[8];
    VkSpecializationMapEntry map[16];
    if (!code || n_bindings > 8 || n_constants > 16) {
        fprintf(stderr, "bench_vulkan: no shader '%s', or too many bindings\n", shader);
        exit(1);
    }
    for (uint32_t i = 0; i < n_bindings; i++)
        bindings[i] = (VkDescriptorSetLayoutBinding){i, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1, VK_SHADER_STAGE_COMPUTE_BIT, NULL};
    for (uint32_t i = 0, at = 0; i < n_constants; i++) {
        map[i] = (VkSpecializationMapEntry){i, i * 4, 4};
        at += (uint32_t)snprintf(p.text + at, sizeof(p.text) - at, "%s%u", i ? "/" : "", constants[i]);
        at = at < sizeof(p.text) ? at : sizeof(p.text) - 1;
    }
    VkDescriptorSetLayoutCreateInfo sets = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = n_bindings, .pBindings = bindings};
    device_require(vkCreateDescriptorSetLayout(d->device, &sets, NULL, &p.set_layout), "vkCreateDescriptorSetLayout");
    VkPushConstantRange push = {VK_SHADER_STAGE_COMPUTE_BIT, 0, push_bytes};
    VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                         .setLayoutCount = 1,
                                         .pSetLayouts = &p.set_layout,
                                         .pushConstantRangeCount = push_bytes > 0,
                                         .pPushConstantRanges = &push};
    device_require(vkCreatePipelineLayout(d->device, &layout, NULL, &p.layout), "vkCreatePipelineLayout");
    VkShaderModuleCreateInfo module = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = code->bytes, .pCode = code->words};
    VkShaderModule m;
    device_require(vkCreateShaderModule(d->device, &module, NULL, &m), shader);
    VkSpecializationInfo special = {n_constants, map, 4 * n_constants, constants};
    VkComputePipelineCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
                                        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                                                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                                                  .module = m,
                                                  .pName = "main",
                                                  .pSpecializationInfo = &special},
                                        .layout = p.layout};
    device_require(vkCreateComputePipelines(d->device, VK_NULL_HANDLE, 1, &info, NULL, &p.pipeline), shader);
    vkDestroyShaderModule(d->device, m, NULL);
    return p;
}

void device_free_pipeline(struct device *d, struct pipeline *p)
{
    vkDestroyPipeline(d->device, p->pipeline, NULL);
    vkDestroyPipelineLayout(d->device, p->layout, NULL);
    vkDestroyDescriptorSetLayout(d->device, p->set_layout, NULL);
    *p = (struct pipeline){0};
}

VkDescriptorSet device_set(struct device *d, const struct pipeline *p, const struct range *ranges)
{
    VkDescriptorSetAllocateInfo alloc = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                         .descriptorPool = d->sets,
                                         .descriptorSetCount = 1,
                                         .pSetLayouts = &p->set_layout};
    VkDescriptorSet set;
    device_require(vkAllocateDescriptorSets(d->device, &alloc, &set), "vkAllocateDescriptorSets");
    VkDescriptorBufferInfo info[8];
    VkWriteDescriptorSet writes[8];
    for (uint32_t i = 0; i < p->n_bindings; i++) {
        const struct range *r = &ranges[i];
        info[i] = (VkDescriptorBufferInfo){r->buffer->buffer, r->at, r->bytes ? r->bytes : VK_WHOLE_SIZE};
        writes[i] = (VkWriteDescriptorSet){.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                           .dstSet = set,
                                           .dstBinding = i,
                                           .descriptorCount = 1,
                                           .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                           .pBufferInfo = &info[i]};
    }
    vkUpdateDescriptorSets(d->device, p->n_bindings, writes, 0, NULL);
    return set;
}

void device_reset_sets(struct device *d)
{
    vkResetDescriptorPool(d->device, d->sets, 0);
}

void device_begin(struct device *d)
{
    VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    device_require(vkBeginCommandBuffer(d->cmd, &info), "vkBeginCommandBuffer");
    vkCmdResetQueryPool(d->cmd, d->queries, 0, DEVICE_QUERIES);
    d->n_queries = 0;
}

void device_dispatch(struct device *d, const struct pipeline *p, VkDescriptorSet set, const void *push, uint32_t x, uint32_t y)
{
    device_dispatch3(d, p, set, push, x, y, 1);
}

void device_dispatch3(struct device *d, const struct pipeline *p, VkDescriptorSet set, const void *push, uint32_t x, uint32_t y,
                      uint32_t z)
{
    vkCmdBindPipeline(d->cmd, VK_PIPELINE_BIND_POINT_COMPUTE, p->pipeline);
    vkCmdBindDescriptorSets(d->cmd, VK_PIPELINE_BIND_POINT_COMPUTE, p->layout, 0, 1, &set, 0, NULL);
    if (p->push_bytes)
        vkCmdPushConstants(d->cmd, p->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, p->push_bytes, push);
    vkCmdDispatch(d->cmd, x, y, z);
}

void device_barrier(struct device *d)
{
    VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                         .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                         .dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT};
    vkCmdPipelineBarrier(d->cmd, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0, 1, &b, 0, NULL, 0,
                         NULL);
}

uint32_t device_stamp(struct device *d)
{
    vkCmdWriteTimestamp(d->cmd, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, d->queries, d->n_queries);
    return d->n_queries++;
}

void device_submit(struct device *d)
{
    VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                         .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
                         .dstAccessMask = VK_ACCESS_HOST_READ_BIT | VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_SHADER_READ_BIT};
    vkCmdPipelineBarrier(d->cmd, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
                         VK_PIPELINE_STAGE_HOST_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT | VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0, 1,
                         &b, 0, NULL, 0, NULL);
    device_require(vkEndCommandBuffer(d->cmd), "vkEndCommandBuffer");
    VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &d->cmd};
    device_require(vkQueueSubmit(d->queue, 1, &info, d->fence), "vkQueueSubmit");
    device_require(vkWaitForFences(d->device, 1, &d->fence, VK_TRUE, 60000000000u), "vkWaitForFences (60 s)");
    device_require(vkResetFences(d->device, 1, &d->fence), "vkResetFences");
}

double device_seconds(struct device *d, uint32_t from, uint32_t to)
{
    uint64_t t[2];
    VkQueryResultFlags flags = VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT;
    device_require(vkGetQueryPoolResults(d->device, d->queries, from, 1, 8, &t[0], 8, flags), "vkGetQueryPoolResults");
    device_require(vkGetQueryPoolResults(d->device, d->queries, to, 1, 8, &t[1], 8, flags), "vkGetQueryPoolResults");
    return (double)(t[1] - t[0]) * (double)d->properties.limits.timestampPeriod * 1e-9;
}
