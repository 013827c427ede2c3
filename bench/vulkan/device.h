/* SPDX-License-Identifier: MIT
 * The least of Vulkan that a benchmark of shaders needs: one device, one compute queue, buffers, pipelines, one command buffer
 * recorded at a time. A failing call ends the program with its name. One thread. */
#ifndef TANDEM_BENCH_VULKAN_DEVICE_H
#define TANDEM_BENCH_VULKAN_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef VK_NO_PROTOTYPES
#define VK_NO_PROTOTYPES
#endif
#include <volk.h>

#define DEVICE_QUERIES 4096

struct device {
    VkInstance instance;
    VkPhysicalDevice physical;
    VkDevice device;
    VkQueue queue;
    VkCommandPool commands;
    VkCommandBuffer cmd;
    VkDescriptorPool sets;
    VkQueryPool queries;
    VkFence fence;
    VkPhysicalDeviceProperties properties;
    VkPhysicalDeviceMemoryProperties memory;
    VkPhysicalDeviceSubgroupProperties subgroup;
    bool int_dot, coopmat, coopmat_nv, fp16, storage16, subgroup_control, memory_model;
    uint32_t n_queries;
};

struct buffer {
    VkBuffer buffer;
    VkDeviceMemory memory;
    void *map; /* NULL: not visible to the host */
    size_t bytes;
};

/* One binding of a set: bytes 0 = to the end. */
struct range {
    const struct buffer *buffer;
    size_t at, bytes;
};

struct pipeline {
    VkPipeline pipeline;
    VkPipelineLayout layout;
    VkDescriptorSetLayout set_layout;
    uint32_t n_bindings, push_bytes;
    char text[64]; /* specialization, for lines of results */
};

void device_open(struct device *d, int index, bool validate);
void device_close(struct device *d);
void device_require(VkResult r, const char *call);

struct buffer device_buffer(struct device *d, size_t bytes, bool host);
void device_free(struct device *d, struct buffer *b);
void device_upload(struct device *d, const struct buffer *b, size_t at, const void *data, size_t bytes);
void device_download(struct device *d, const struct buffer *b, size_t at, void *data, size_t bytes);
/* Copies the first `bytes` over the rest of the buffer. */
void device_repeat(struct device *d, const struct buffer *b, size_t bytes);

struct pipeline device_pipeline(struct device *d, const char *shader, uint32_t n_bindings, uint32_t push_bytes,
                                const uint32_t *constants, uint32_t n_constants);
void device_free_pipeline(struct device *d, struct pipeline *p);
VkDescriptorSet device_set(struct device *d, const struct pipeline *p, const struct range *ranges);
void device_reset_sets(struct device *d);

void device_begin(struct device *d);
void device_dispatch(struct device *d, const struct pipeline *p, VkDescriptorSet set, const void *push, uint32_t x, uint32_t y);
void device_dispatch3(struct device *d, const struct pipeline *p, VkDescriptorSet set, const void *push, uint32_t x, uint32_t y,
                      uint32_t z);
void device_barrier(struct device *d);
/* Returns the number of the time stamp. */
uint32_t device_stamp(struct device *d);
/* Ends, submits and waits; seconds between two stamps afterwards through device_seconds. */
void device_submit(struct device *d);
double device_seconds(struct device *d, uint32_t from, uint32_t to);

#endif
