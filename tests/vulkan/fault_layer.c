/* SPDX-License-Identifier: MIT
 * A Vulkan layer that makes one kind of call fail, for tests of what a failing device does to gpu_worker. TANDEM_FAULT=CALL:N, in
 * every process anew: from the Nth vkQueueSubmit on, lost (VK_ERROR_DEVICE_LOST) or silent (no semaphore ever tells of an end);
 * the Nth call alone, memory (vkAllocateMemory: VK_ERROR_OUT_OF_DEVICE_MEMORY), buffer (vkCreateBuffer) or pipeline
 * (vkCreateComputePipelines), both VK_ERROR_OUT_OF_HOST_MEMORY. One instance and one device; any thread may call. */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <vulkan/vk_layer.h>

#define EXPORT __attribute__((visibility("default")))

static PFN_vkGetInstanceProcAddr next_instance_proc;
static PFN_vkGetDeviceProcAddr next_device_proc;
static PFN_vkQueueSubmit next_submit;
static PFN_vkWaitSemaphores next_wait;
static PFN_vkAllocateMemory next_allocate;
static PFN_vkCreateBuffer next_buffer;
static PFN_vkCreateComputePipelines next_pipelines;
static PFN_vkGetSemaphoreCounterValue next_counter;
static atomic_ulong calls;
static atomic_bool silent;

static bool fails(const char *call, bool from_then_on)
{
    const char *fault = getenv("TANDEM_FAULT");
    size_t n = strlen(call);
    if (!fault || strncmp(fault, call, n) != 0 || fault[n] != ':')
        return false;
    unsigned long which = strtoul(fault + n + 1, NULL, 10), now = atomic_fetch_add(&calls, 1) + 1;
    return from_then_on ? now >= which : now == which;
}

static VKAPI_ATTR VkResult VKAPI_CALL submit(VkQueue queue, uint32_t n, const VkSubmitInfo *infos, VkFence fence)
{
    if (fails("lost", true))
        return VK_ERROR_DEVICE_LOST;
    if (fails("silent", true))
        atomic_store(&silent, true);
    return next_submit(queue, n, infos, fence);
}

static VKAPI_ATTR VkResult VKAPI_CALL wait(VkDevice device, const VkSemaphoreWaitInfo *info, uint64_t ns)
{
    return atomic_load(&silent) ? VK_TIMEOUT : next_wait(device, info, ns);
}

static VKAPI_ATTR VkResult VKAPI_CALL counter(VkDevice device, VkSemaphore semaphore, uint64_t *ret)
{
    VkResult r = next_counter(device, semaphore, ret);
    if (atomic_load(&silent))
        *ret = 0;
    return r;
}

static VKAPI_ATTR VkResult VKAPI_CALL allocate(VkDevice device, const VkMemoryAllocateInfo *info, const VkAllocationCallbacks *a,
                                               VkDeviceMemory *ret)
{
    return fails("memory", false) ? VK_ERROR_OUT_OF_DEVICE_MEMORY : next_allocate(device, info, a, ret);
}

static VKAPI_ATTR VkResult VKAPI_CALL buffer(VkDevice device, const VkBufferCreateInfo *info, const VkAllocationCallbacks *a,
                                             VkBuffer *ret)
{
    return fails("buffer", false) ? VK_ERROR_OUT_OF_HOST_MEMORY : next_buffer(device, info, a, ret);
}

static VKAPI_ATTR VkResult VKAPI_CALL pipelines(VkDevice device, VkPipelineCache cache, uint32_t n,
                                                const VkComputePipelineCreateInfo *infos, const VkAllocationCallbacks *a,
                                                VkPipeline *ret)
{
    return fails("pipeline", false) ? VK_ERROR_OUT_OF_HOST_MEMORY : next_pipelines(device, cache, n, infos, a, ret);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *a,
                                                      VkInstance *ret)
{
    VkLayerInstanceCreateInfo *chain = (VkLayerInstanceCreateInfo *)(uintptr_t)info->pNext;
    while (chain && !(chain->sType == VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO && chain->function == VK_LAYER_LINK_INFO))
        chain = (VkLayerInstanceCreateInfo *)(uintptr_t)chain->pNext;
    if (!chain)
        return VK_ERROR_INITIALIZATION_FAILED;
    next_instance_proc = chain->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    chain->u.pLayerInfo = chain->u.pLayerInfo->pNext;
    return ((PFN_vkCreateInstance)next_instance_proc(NULL, "vkCreateInstance"))(info, a, ret);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *a, VkDevice *ret)
{
    VkLayerDeviceCreateInfo *chain = (VkLayerDeviceCreateInfo *)(uintptr_t)info->pNext;
    while (chain && !(chain->sType == VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO && chain->function == VK_LAYER_LINK_INFO))
        chain = (VkLayerDeviceCreateInfo *)(uintptr_t)chain->pNext;
    if (!chain)
        return VK_ERROR_INITIALIZATION_FAILED;
    PFN_vkGetInstanceProcAddr instance_proc = chain->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    next_device_proc = chain->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    chain->u.pLayerInfo = chain->u.pLayerInfo->pNext;
    VkResult r = ((PFN_vkCreateDevice)instance_proc(NULL, "vkCreateDevice"))(physical, info, a, ret);
    if (r != VK_SUCCESS)
        return r;
    next_submit = (PFN_vkQueueSubmit)next_device_proc(*ret, "vkQueueSubmit");
    next_wait = (PFN_vkWaitSemaphores)next_device_proc(*ret, "vkWaitSemaphores");
    next_counter = (PFN_vkGetSemaphoreCounterValue)next_device_proc(*ret, "vkGetSemaphoreCounterValue");
    next_allocate = (PFN_vkAllocateMemory)next_device_proc(*ret, "vkAllocateMemory");
    next_buffer = (PFN_vkCreateBuffer)next_device_proc(*ret, "vkCreateBuffer");
    next_pipelines = (PFN_vkCreateComputePipelines)next_device_proc(*ret, "vkCreateComputePipelines");
    return VK_SUCCESS;
}

static PFN_vkVoidFunction own(const char *name);

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL device_proc(VkDevice device, const char *name)
{
    PFN_vkVoidFunction f = own(name);
    return f ? f : next_device_proc(device, name);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL instance_proc(VkInstance instance, const char *name)
{
    PFN_vkVoidFunction f = own(name);
    return f ? f : next_instance_proc ? next_instance_proc(instance, name) : NULL;
}

static PFN_vkVoidFunction own(const char *name)
{
    static const struct {
        const char *name;
        PFN_vkVoidFunction f;
    } all[] = {{"vkGetInstanceProcAddr", (PFN_vkVoidFunction)instance_proc},
               {"vkGetDeviceProcAddr", (PFN_vkVoidFunction)device_proc},
               {"vkCreateInstance", (PFN_vkVoidFunction)create_instance},
               {"vkCreateDevice", (PFN_vkVoidFunction)create_device},
               {"vkQueueSubmit", (PFN_vkVoidFunction)submit},
               {"vkWaitSemaphores", (PFN_vkVoidFunction)wait},
               {"vkGetSemaphoreCounterValue", (PFN_vkVoidFunction)counter},
               {"vkAllocateMemory", (PFN_vkVoidFunction)allocate},
               {"vkCreateBuffer", (PFN_vkVoidFunction)buffer},
               {"vkCreateComputePipelines", (PFN_vkVoidFunction)pipelines}};
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
        if (strcmp(all[i].name, name) == 0)
            return all[i].f;
    }
    return NULL;
}

EXPORT VkResult vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *v);
EXPORT VkResult vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *v)
{
    if (v->loaderLayerInterfaceVersion < 2)
        return VK_ERROR_INITIALIZATION_FAILED;
    v->loaderLayerInterfaceVersion = 2;
    v->pfnGetInstanceProcAddr = instance_proc;
    v->pfnGetDeviceProcAddr = device_proc;
    v->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
