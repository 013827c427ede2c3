/* SPDX-License-Identifier: MIT
 * Makes pipelines and keeps what the driver compiled. The file is a header of ours (magic, versions, UUID, checksum) and the
 * driver's bytes behind it: drivers trust what they are given, so nothing unchecked reaches them. Owns the VkPipelineCache. */
#include "gpu_worker/vk_pipeline.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "gpu_worker/shaders.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

#define FILE_MAX ((size_t)64 << 20)

struct cache_header {
    char magic[8];
    uint32_t vendor, device, driver, header_bytes;
    uint8_t uuid[VK_UUID_SIZE];
    uint64_t shaders;         /* checksum of all embedded shaders */
    uint64_t bytes, checksum; /* of what follows */
};

struct vk_cache {
    const struct vk_device *device;
    VkPipelineCache cache;
    char folder[3500], path[4096]; /* "": none */
    struct cache_header header;    /* expected; bytes and checksum unset */
    size_t read;                   /* bytes that the driver was given */
    bool made;
};

static uint64_t checksum_of_shaders(void)
{
    uint64_t h = 0;
    for (size_t i = 0; i < shaders_count; i++)
        h = XXH3_64bits_withSeed(shaders_table[i].words, shaders_table[i].bytes, h);
    return h;
}

static void find_path(struct vk_cache *c, const char *folder)
{
    const struct cache_header *h = &c->header;
    char base[3500];
    int n = folder ? snprintf(base, sizeof(base), "%s", folder) : 0;
    if (!folder && util_cache_folder(base, sizeof(base)) < 0)
        return;
    if (folder && (n <= 0 || n >= (int)sizeof(base) || (mkdir(base, 0700) < 0 && errno != EEXIST)))
        return;
    memcpy(c->folder, base, sizeof(base));
    snprintf(c->path, sizeof(c->path), "%s/vulkan-%08x-%08x-%08x-%016llx.cache", base, h->vendor, h->device, h->driver,
             (unsigned long long)h->shaders);
}

/* The driver's part of the file, malloc'ed; NULL when there is none that can be trusted. */
static void *read_file(const struct vk_cache *c, size_t *ret_bytes)
{
    struct stat st;
    struct cache_header h;
    if (!c->path[0])
        return NULL;
    auto_fd fd = open(c->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        return NULL;
    const char *wrong = NULL;
    void *data = NULL;
    if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || (size_t)st.st_size < sizeof(h) || (size_t)st.st_size > FILE_MAX ||
        pread(fd, &h, sizeof(h), 0) != (ssize_t)sizeof(h))
        wrong = "not a file of ours";
    else if (memcmp(&h, &c->header, offsetof(struct cache_header, bytes)) != 0)
        wrong = "of another driver or program";
    else if (h.bytes != (uint64_t)st.st_size - sizeof(h) || !(data = malloc(h.bytes + 1)) ||
             pread(fd, data, h.bytes, sizeof(h)) != (ssize_t)h.bytes || XXH3_64bits(data, h.bytes) != h.checksum)
        wrong = "damaged";
    if (wrong) {
        log_warn("vulkan", "pipeline cache '%s' is %s: ignored, and replaced at the end", c->path, wrong);
        free(data);
        return NULL;
    }
    *ret_bytes = h.bytes;
    return data;
}

int vk_cache_open(const struct vk_device *d, const char *folder, struct vk_cache **ret, struct err *err)
{
    struct vk_cache *c = calloc(1, sizeof(*c));
    if (!c)
        return err_set(err, -ENOMEM, "vulkan: out of memory");
    c->device = d;
    c->header = (struct cache_header){.vendor = d->properties.vendorID,
                                      .device = d->properties.deviceID,
                                      .driver = d->properties.driverVersion,
                                      .header_bytes = sizeof(c->header),
                                      .shaders = checksum_of_shaders()};
    memcpy(c->header.magic, "TANDEMV1", sizeof(c->header.magic));
    memcpy(c->header.uuid, d->properties.pipelineCacheUUID, VK_UUID_SIZE);
    find_path(c, folder);
    size_t bytes = 0;
    void *data = read_file(c, &bytes);
    const VkPipelineCacheCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO, .initialDataSize = data ? bytes : 0, .pInitialData = data};
    VkResult r = vkCreatePipelineCache(d->device, &info, NULL, &c->cache);
    c->read = data && r == VK_SUCCESS ? bytes : 0;
    free(data);
    if (r != VK_SUCCESS) {
        free(c);
        return vk_fail(d, r, "vkCreatePipelineCache", err);
    }
    *ret = c;
    return 0;
}

const char *vk_cache_folder(const struct vk_cache *c)
{
    return c->folder;
}

uint64_t vk_cache_shaders(const struct vk_cache *c)
{
    return c->header.shaders;
}

bool vk_cache_warm(const struct vk_cache *c)
{
    return c->read > 0;
}

static int write_file(const struct vk_cache *c, void *data, size_t bytes)
{
    char temporary[sizeof(c->path) + 16];
    struct cache_header h = c->header;
    h.bytes = bytes;
    h.checksum = XXH3_64bits(data, bytes);
    snprintf(temporary, sizeof(temporary), "%s.%d", c->path, (int)getpid());
    auto_fd fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    int r = util_write_all(fd, &h, sizeof(h));
    if (r == 0)
        r = util_write_all(fd, data, bytes);
    if (r == 0 && rename(temporary, c->path) < 0)
        r = -errno;
    if (r < 0)
        unlink(temporary);
    return r;
}

void vk_cache_close(struct vk_cache *c)
{
    if (!c)
        return;
    size_t bytes = 0;
    void *data = NULL;
    if (c->path[0] && c->made && vkGetPipelineCacheData(c->device->device, c->cache, &bytes, NULL) == VK_SUCCESS && bytes &&
        bytes != c->read && bytes <= FILE_MAX - sizeof(c->header) && (data = malloc(bytes)) &&
        vkGetPipelineCacheData(c->device->device, c->cache, &bytes, data) == VK_SUCCESS) {
        int r = write_file(c, data, bytes);
        if (r < 0)
            log_warn("vulkan", "pipeline cache '%s' was not written: %s", c->path, strerror(-r));
    }
    free(data);
    vkDestroyPipelineCache(c->device->device, c->cache, NULL);
    free(c);
}

static VkResult make_layouts(const struct vk_device *d, struct vk_kernel *k)
{
    VkDescriptorSetLayoutBinding b[VK_KERNEL_BINDINGS];
    for (uint32_t i = 0; i < k->n_bindings; i++)
        b[i] = (VkDescriptorSetLayoutBinding){i, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1, VK_SHADER_STAGE_COMPUTE_BIT, NULL};
    const VkDescriptorSetLayoutCreateInfo sets = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = k->n_bindings, .pBindings = b};
    VkResult r = vkCreateDescriptorSetLayout(d->device, &sets, NULL, &k->set_layout);
    if (r != VK_SUCCESS)
        return r;
    const VkPushConstantRange push = {VK_SHADER_STAGE_COMPUTE_BIT, 0, k->push_bytes};
    const VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                               .setLayoutCount = 1,
                                               .pSetLayouts = &k->set_layout,
                                               .pushConstantRangeCount = k->push_bytes > 0,
                                               .pPushConstantRanges = &push};
    return vkCreatePipelineLayout(d->device, &layout, NULL, &k->layout);
}

static VkResult make_pipeline(const struct vk_device *d, VkPipelineCache cache, const struct shaders_code *code,
                              const uint32_t *constants, uint32_t n, uint32_t lanes, struct vk_kernel *k)
{
    VkSpecializationMapEntry map[VK_KERNEL_CONSTANTS];
    VkShaderModule module;
    for (uint32_t i = 0; i < n; i++)
        map[i] = (VkSpecializationMapEntry){i, i * 4, 4};
    const VkSpecializationInfo special = {n, map, 4 * (size_t)n, constants};
    const VkShaderModuleCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = code->bytes, .pCode = code->words};
    VkResult r = vkCreateShaderModule(d->device, &info, NULL, &module);
    if (r != VK_SUCCESS)
        return r;
    const VkPipelineShaderStageRequiredSubgroupSizeCreateInfo subgroup = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO, .requiredSubgroupSize = lanes};
    const VkComputePipelineCreateInfo pipeline = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
                                                  .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                                                            .pNext = lanes ? &subgroup : NULL,
                                                            .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                                                            .module = module,
                                                            .pName = "main",
                                                            .pSpecializationInfo = &special},
                                                  .layout = k->layout};
    r = vkCreateComputePipelines(d->device, cache, 1, &pipeline, NULL, &k->pipeline);
    vkDestroyShaderModule(d->device, module, NULL);
    return r;
}

int vk_kernel_make(const struct vk_device *d, struct vk_cache *c, const char *shader, uint32_t n_bindings, uint32_t push_bytes,
                   const uint32_t *constants, uint32_t n_constants, uint32_t subgroup, struct vk_kernel *ret, struct err *err)
{
    const struct shaders_code *code = shaders_find(shader);
    *ret = (struct vk_kernel){.n_bindings = n_bindings, .push_bytes = push_bytes};
    if (!code || n_bindings > VK_KERNEL_BINDINGS || n_constants > VK_KERNEL_CONSTANTS)
        return err_set(err, -EINVAL, "vulkan: no shader '%s' with %u bindings and %u constants", shader, n_bindings, n_constants);
    VkResult r = make_layouts(d, ret);
    if (r == VK_SUCCESS)
        r = make_pipeline(d, c->cache, code, constants, n_constants, subgroup ? subgroup : d->subgroup_required, ret);
    if (r != VK_SUCCESS) {
        vk_kernel_free(d, ret);
        int e = vk_fail(d, r, "vkCreateComputePipelines", err);
        return err_wrap(err, e, "shader '%s'", shader);
    }
    c->made = true;
    return 0;
}

void vk_kernel_free(const struct vk_device *d, struct vk_kernel *k)
{
    if (k->pipeline)
        vkDestroyPipeline(d->device, k->pipeline, NULL);
    if (k->layout)
        vkDestroyPipelineLayout(d->device, k->layout, NULL);
    if (k->set_layout)
        vkDestroyDescriptorSetLayout(d->device, k->set_layout, NULL);
    *k = (struct vk_kernel){0};
}
