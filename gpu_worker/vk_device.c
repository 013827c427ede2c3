/* SPDX-License-Identifier: MIT
 * Opens the Vulkan loader, an instance, and one device with a compute queue; asks once for everything that is optional and switches
 * on what is there. Owns instance and device until close. Main thread. Never chooses silently: what was found, what was taken and
 * why is in the description. */
#include "gpu_worker/vk_device.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

#define MAX_DEVICES 32
#define VALIDATION "VK_LAYER_KHRONOS_validation"
#define COOPMAT "VK_KHR_cooperative_matrix" /* younger than Debian 12's headers */
#define COOPMAT_FEATURES ((VkStructureType)1000506000)

struct coopmat_features {
    VkStructureType type;
    void *next;
    VkBool32 matrix, robust;
};

/* VkCooperativeMatrixPropertiesKHR and its function. */
struct coopmat_shape {
    VkStructureType type;
    void *next;
    uint32_t m, n, k, a, b, c, result;
    VkBool32 saturating;
    uint32_t scope;
};
typedef VkResult(VKAPI_PTR *coopmat_shapes_fn)(VkPhysicalDevice, uint32_t *, struct coopmat_shape *);
#define COOPMAT_SHAPE ((VkStructureType)1000506001)
#define COOPMAT_F16 0u
#define COOPMAT_F32 1u
#define SCOPE_SUBGROUP 3u

static const char *const feature_names[VK_FEATURES] = {"int_dot",       "fp16",        "storage16",     "storage8",
                                                       "coopmat",       "host_import", "subgroup_size", "subgroup_sum",
                                                       "memory_budget", "timestamps"};

const char *vk_feature_name(enum vk_feature f)
{
    return (unsigned)f < VK_FEATURES ? feature_names[f] : "?";
}

static void features_text(uint32_t features, bool there, char *buf, size_t bytes)
{
    size_t at = 0;
    buf[0] = '\0';
    for (int i = 0; i < VK_FEATURES; i++) {
        if ((features >> i & 1) == there && at + 1 < bytes) {
            int w = snprintf(buf + at, bytes - at, "%s%s", at ? ", " : "", feature_names[i]);
            at += w > 0 ? (size_t)w : 0;
        }
    }
    if (!at)
        snprintf(buf, bytes, "nothing");
}

int vk_features_parse(const char *names, uint32_t *ret, struct err *err)
{
    *ret = 0;
    for (const char *p = names ? names : ""; *p;) {
        size_t n = strcspn(p, ", ");
        uint32_t bits = n == 3 && memcmp(p, "all", 3) == 0 ? (UINT32_C(1) << VK_FEATURES) - 1 : 0;
        for (int i = 0; i < VK_FEATURES; i++) {
            if (strlen(feature_names[i]) == n && memcmp(feature_names[i], p, n) == 0)
                bits = UINT32_C(1) << i;
        }
        if (n && !bits) {
            char known[128];
            features_text(UINT32_MAX, true, known, sizeof(known));
            return err_set(err, -EINVAL, "gpu.without: no feature '%.*s'; known are all, %s", (int)MIN(n, (size_t)40), p, known);
        }
        *ret |= bits;
        p += n + (p[n] != '\0');
    }
    return 0;
}

static VKAPI_ATTR VkBool32 VKAPI_CALL complain(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                               VkDebugUtilsMessageTypeFlagsEXT types,
                                               const VkDebugUtilsMessengerCallbackDataEXT *data, void *ctx)
{
    (void)types;
    if (severity >= VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT) {
        (*(uint32_t *)ctx)++;
        log_warn("vulkan", "validation: %s", data->pMessage);
    }
    return VK_FALSE;
}

static bool layer_there(const char *name)
{
    VkLayerProperties p[64];
    uint32_t n = ARRAY_LEN(p);
    VkResult r = vkEnumerateInstanceLayerProperties(&n, p);
    for (uint32_t i = 0; (r == VK_SUCCESS || r == VK_INCOMPLETE) && i < n; i++) {
        if (strcmp(p[i].layerName, name) == 0)
            return true;
    }
    return false;
}

static int open_instance(struct vk_device *d, bool validate, struct err *err)
{
    if (volkInitialize() != VK_SUCCESS)
        return err_set(err, -ENODEV, "no Vulkan loader: libvulkan.so.1 was not found (Debian: libvulkan1)");
    if (volkGetInstanceVersion() < VK_API_VERSION_1_2)
        return err_set(err, -ENODEV, "the Vulkan loader speaks version %u.%u; expected 1.2 or newer",
                       VK_API_VERSION_MAJOR(volkGetInstanceVersion()), VK_API_VERSION_MINOR(volkGetInstanceVersion()));
    if (validate && !layer_there(VALIDATION))
        return err_set(err, -ENODEV, "the layer " VALIDATION " is not installed (Debian: vulkan-validationlayers)");
    d->complaints = calloc(1, sizeof(*d->complaints));
    if (!d->complaints)
        return err_set(err, -ENOMEM, "vulkan: out of memory");
    const char *layers[] = {VALIDATION}, *extensions[] = {VK_EXT_DEBUG_UTILS_EXTENSION_NAME};
    const VkDebugUtilsMessengerCreateInfoEXT messenger = {.sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
                                                          .messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT |
                                                                             VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
                                                          .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT,
                                                          .pfnUserCallback = complain,
                                                          .pUserData = d->complaints};
    const VkApplicationInfo app = {
        .sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .pApplicationName = "tandem", .apiVersion = VK_API_VERSION_1_3};
    const VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                       .pNext = validate ? &messenger : NULL,
                                       .pApplicationInfo = &app,
                                       .enabledLayerCount = validate,
                                       .ppEnabledLayerNames = layers,
                                       .enabledExtensionCount = validate,
                                       .ppEnabledExtensionNames = extensions};
    VkResult r = vkCreateInstance(&info, NULL, &d->instance);
    if (r == VK_ERROR_INCOMPATIBLE_DRIVER)
        return err_set(err, -ENODEV, "no Vulkan driver is installed (Debian: mesa-vulkan-drivers, or the vendor's)");
    if (r != VK_SUCCESS)
        return vk_fail(NULL, r, "vkCreateInstance", err);
    volkLoadInstance(d->instance);
    if (validate)
        vkCreateDebugUtilsMessengerEXT(d->instance, &messenger, NULL, &d->messenger);
    return 0;
}

static int queue_family(VkPhysicalDevice p)
{
    VkQueueFamilyProperties f[32];
    uint32_t n = ARRAY_LEN(f);
    int found = -1;
    vkGetPhysicalDeviceQueueFamilyProperties(p, &n, f);
    for (uint32_t i = 0; i < n; i++) {
        bool computes = f[i].queueFlags & VK_QUEUE_COMPUTE_BIT, draws = f[i].queueFlags & VK_QUEUE_GRAPHICS_BIT;
        if (computes && (found < 0 || !draws)) /* one that only computes is not shared with the desktop */
            found = (int)i;
        if (computes && !draws)
            break;
    }
    return found;
}

static uint32_t stamp_bits(VkPhysicalDevice p)
{
    VkQueueFamilyProperties f[32];
    uint32_t n = ARRAY_LEN(f);
    int family = queue_family(p);
    vkGetPhysicalDeviceQueueFamilyProperties(p, &n, f);
    return family < 0 ? 0 : f[family].timestampValidBits;
}

static int find_devices(const struct vk_device *d, VkPhysicalDevice *all, struct vk_candidate *c, uint32_t *ret_n, struct err *err)
{
    uint32_t n = MAX_DEVICES;
    VkResult r = vkEnumeratePhysicalDevices(d->instance, &n, all);
    if (r != VK_SUCCESS && r != VK_INCOMPLETE)
        return vk_fail(NULL, r, "vkEnumeratePhysicalDevices", err);
    for (uint32_t i = 0; i < n; i++) {
        VkPhysicalDeviceProperties p;
        vkGetPhysicalDeviceProperties(all[i], &p);
        c[i] = (struct vk_candidate){.type = p.deviceType};
        snprintf(c[i].name, sizeof(c[i].name), "%.*s", (int)sizeof(c[i].name) - 1, p.deviceName);
        if (p.apiVersion < VK_API_VERSION_1_2)
            snprintf(c[i].unfit, sizeof(c[i].unfit), "its driver speaks Vulkan %u.%u; expected 1.2 or newer",
                     VK_API_VERSION_MAJOR(p.apiVersion), VK_API_VERSION_MINOR(p.apiVersion));
        else if (queue_family(all[i]) < 0)
            snprintf(c[i].unfit, sizeof(c[i].unfit), "it has no queue that computes");
    }
    *ret_n = n;
    return 0;
}

/* Everything that vkGetPhysicalDeviceFeatures2 fills, chained; the same chain switches it on. */
struct probe {
    VkPhysicalDeviceFeatures2 features;
    VkPhysicalDeviceVulkan11Features v11;
    VkPhysicalDeviceVulkan12Features v12;
    VkPhysicalDeviceShaderIntegerDotProductFeatures int_dot;
    VkPhysicalDeviceSubgroupSizeControlFeatures subgroup;
    struct coopmat_features coopmat;
    VkPhysicalDeviceSubgroupProperties subgroup_now;
    VkPhysicalDeviceSubgroupSizeControlProperties subgroup_sizes;
    VkPhysicalDeviceMaintenance3Properties sizes;
    VkPhysicalDeviceExternalMemoryHostPropertiesEXT import;
    VkPhysicalDeviceDriverProperties driver;
    VkPhysicalDeviceShaderSMBuiltinsPropertiesNV units_nv;
    VkPhysicalDeviceShaderCorePropertiesAMD units_amd;
    VkPhysicalDeviceProperties2 properties;
    const char *extensions[8];
    uint32_t n_extensions;
    bool budget;
};

static bool has_extension(const VkExtensionProperties *e, uint32_t n, const char *name)
{
    for (uint32_t i = 0; i < n; i++) {
        if (strcmp(e[i].extensionName, name) == 0)
            return true;
    }
    return false;
}

static bool take_extension(struct probe *p, const VkExtensionProperties *e, uint32_t n, const char *name)
{
    bool has = has_extension(e, n, name);
    if (has)
        p->extensions[p->n_extensions++] = name;
    return has;
}

#define CHAIN(tail, member, type_) \
    do {                           \
        (member).sType = (type_);  \
        *(tail) = &(member);       \
        (tail) = &(member).pNext;  \
    } while (0)

static int probe(VkPhysicalDevice device, uint32_t without, struct probe *p, struct err *err)
{
    uint32_t n = 0;
    memset(p, 0, sizeof(*p));
    VkResult r = vkEnumerateDeviceExtensionProperties(device, NULL, &n, NULL);
    auto_free VkExtensionProperties *e = calloc(n + 1u, sizeof(*e));
    if (!e)
        return err_set(err, -ENOMEM, "vulkan: out of memory");
    if (r == VK_SUCCESS)
        r = vkEnumerateDeviceExtensionProperties(device, NULL, &n, e);
    if (r != VK_SUCCESS && r != VK_INCOMPLETE)
        return vk_fail(NULL, r, "vkEnumerateDeviceExtensionProperties", err);
    VkPhysicalDeviceProperties plain;
    vkGetPhysicalDeviceProperties(device, &plain);
    bool v13 = plain.apiVersion >= VK_API_VERSION_1_3;
    bool dot = v13 || take_extension(p, e, n, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME);
    bool subgroup = v13 || take_extension(p, e, n, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME);
    bool coopmat = !(without >> VK_FEATURE_COOPMAT & 1) && take_extension(p, e, n, COOPMAT);
    bool import = !(without >> VK_FEATURE_HOST_IMPORT & 1) && take_extension(p, e, n, VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME);
    p->budget = take_extension(p, e, n, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    void **f = &p->features.pNext, **q = &p->properties.pNext;
    p->features.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
    p->properties.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2;
    CHAIN(f, p->v11, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES);
    CHAIN(f, p->v12, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES);
    CHAIN(q, p->subgroup_now, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES);
    CHAIN(q, p->sizes, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES);
    CHAIN(q, p->driver, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES);
    if (dot)
        CHAIN(f, p->int_dot, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES);
    if (subgroup) {
        CHAIN(f, p->subgroup, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES);
        CHAIN(q, p->subgroup_sizes, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES);
    }
    if (import)
        CHAIN(q, p->import, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_MEMORY_HOST_PROPERTIES_EXT);
    if (has_extension(e, n, VK_NV_SHADER_SM_BUILTINS_EXTENSION_NAME))
        CHAIN(q, p->units_nv, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_SM_BUILTINS_PROPERTIES_NV);
    if (has_extension(e, n, VK_AMD_SHADER_CORE_PROPERTIES_EXTENSION_NAME))
        CHAIN(q, p->units_amd, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_CORE_PROPERTIES_AMD);
    if (coopmat) {
        p->coopmat.type = COOPMAT_FEATURES;
        *f = &p->coopmat;
        f = &p->coopmat.next;
    }
    vkGetPhysicalDeviceFeatures2(device, &p->features);
    vkGetPhysicalDeviceProperties2(device, &p->properties);
    return 0;
}

/* The one shape that the shaders use. */
static bool has_shape(const struct vk_device *d)
{
    coopmat_shapes_fn get =
        (coopmat_shapes_fn)vkGetInstanceProcAddr(d->instance, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
    struct coopmat_shape s[128];
    uint32_t n = ARRAY_LEN(s);
    for (uint32_t i = 0; i < n; i++)
        s[i] = (struct coopmat_shape){.type = COOPMAT_SHAPE};
    VkResult r = get ? get(d->physical, &n, s) : VK_ERROR_EXTENSION_NOT_PRESENT;
    for (uint32_t i = 0; (r == VK_SUCCESS || r == VK_INCOMPLETE) && i < n; i++) {
        if (s[i].m == 16 && s[i].n == 16 && s[i].k == 16 && s[i].a == COOPMAT_F16 && s[i].b == COOPMAT_F16 &&
            s[i].c == COOPMAT_F32 && s[i].result == COOPMAT_F32 && s[i].scope == SCOPE_SUBGROUP)
            return true;
    }
    return false;
}

/* Cooperative matrices need subgroups of 32: by nature, or on request; and what they are made of. */
static bool can_multiply(struct vk_device *d, const struct probe *p, uint32_t without)
{
    const uint32_t lanes = 32;
    bool asked = p->subgroup.subgroupSizeControl && !(without >> VK_FEATURE_SUBGROUP_SIZE & 1) &&
                 p->subgroup_sizes.minSubgroupSize <= lanes && p->subgroup_sizes.maxSubgroupSize >= lanes &&
                 p->subgroup_sizes.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT;
    d->coopmat_subgroup = asked ? lanes : 0;
    return p->coopmat.matrix && p->v12.shaderFloat16 && !(without >> VK_FEATURE_FP16 & 1) && p->v12.vulkanMemoryModel &&
           (asked || p->subgroup_now.subgroupSize == lanes) && has_shape(d);
}

static void judge(struct vk_device *d, const struct vk_options *o, const struct probe *p)
{
    const bool there[VK_FEATURES] = {[VK_FEATURE_INT_DOT] = p->int_dot.shaderIntegerDotProduct,
                                     [VK_FEATURE_FP16] = p->v12.shaderFloat16,
                                     [VK_FEATURE_STORAGE16] = p->v11.storageBuffer16BitAccess,
                                     [VK_FEATURE_STORAGE8] = p->v12.storageBuffer8BitAccess,
                                     [VK_FEATURE_COOPMAT] = can_multiply(d, p, o->without),
                                     [VK_FEATURE_HOST_IMPORT] = p->import.minImportedHostPointerAlignment > 0,
                                     [VK_FEATURE_SUBGROUP_SIZE] = p->subgroup.subgroupSizeControl,
                                     [VK_FEATURE_SUBGROUP_SUM] =
                                         p->subgroup_now.supportedOperations & VK_SUBGROUP_FEATURE_ARITHMETIC_BIT &&
                                         p->subgroup_now.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT,
                                     [VK_FEATURE_BUDGET] = p->budget,
                                     [VK_FEATURE_TIMESTAMPS] = stamp_bits(d->physical) > 0};
    const VkPhysicalDeviceLimits *l = &p->properties.properties.limits;
    for (int i = 0; i < VK_FEATURES; i++)
        d->features |= there[i] && !(o->without >> i & 1) ? UINT32_C(1) << i : 0;
    const char *simulated = getenv("TANDEM_VULKAN_COOPMAT");
    d->coopmat_plain = simulated && strcmp(simulated, "plain") == 0 && vk_has(d, VK_FEATURE_FP16);
    if (d->coopmat_plain) {
        d->features |= UINT32_C(1) << VK_FEATURE_COOPMAT;
        d->coopmat_subgroup = 0;
        log_warn("vulkan", "cooperative matrices are simulated in plain arithmetic (TANDEM_VULKAN_COOPMAT)");
    }
    d->properties = p->properties.properties;
    d->max_range = l->maxStorageBufferRange;
    d->max_bytes = p->sizes.maxMemoryAllocationSize;
    if (o->max_buffer) {
        d->max_range = MIN(d->max_range, o->max_buffer);
        d->max_bytes = MIN(d->max_bytes, o->max_buffer);
    }
    d->max_range &= ~UINT64_C(255);
    d->range_align = MAX(l->minStorageBufferOffsetAlignment, UINT64_C(16));
    d->import_align = vk_has(d, VK_FEATURE_HOST_IMPORT) ? p->import.minImportedHostPointerAlignment : 0;
    d->subgroup = p->subgroup_now.subgroupSize;
    if (o->subgroup && o->subgroup != d->subgroup && vk_has(d, VK_FEATURE_SUBGROUP_SIZE))
        d->subgroup = d->subgroup_required = o->subgroup;
    d->max_threads = MIN(l->maxComputeWorkGroupInvocations, l->maxComputeWorkGroupSize[0]);
    d->max_shared = l->maxComputeSharedMemorySize;
    d->n_units = p->units_nv.shaderSMCount ? p->units_nv.shaderSMCount
                                           : p->units_amd.shaderEngineCount * p->units_amd.shaderArraysPerEngineCount *
                                                 p->units_amd.computeUnitsPerShaderArray;
    d->stamp_bits = vk_has(d, VK_FEATURE_TIMESTAMPS) ? stamp_bits(d->physical) : 0;
    snprintf(d->name, sizeof(d->name), "%s", d->properties.deviceName);
    snprintf(d->driver, sizeof(d->driver), "%s %s", p->driver.driverName, p->driver.driverInfo);
    vkGetPhysicalDeviceMemoryProperties(d->physical, &d->memory);
    d->unified = true;
    for (uint32_t h = 0; h < d->memory.memoryHeapCount; h++) {
        bool visible = false;
        for (uint32_t t = 0; t < d->memory.memoryTypeCount; t++)
            visible |= d->memory.memoryTypes[t].heapIndex == h &&
                       d->memory.memoryTypes[t].propertyFlags & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT;
        d->unified &= visible || !(d->memory.memoryHeaps[h].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT);
    }
    d->unified &= d->properties.deviceType != VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU;
}

static int open_queue(struct vk_device *d, struct probe *p, struct err *err)
{
    float priority = 1.0f;
    d->family = (uint32_t)queue_family(d->physical);
    const VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                           .queueFamilyIndex = d->family,
                                           .queueCount = 1,
                                           .pQueuePriorities = &priority};
    p->features.features = (VkPhysicalDeviceFeatures){0}; /* nothing of 1.0 is needed; robust access costs time */
    p->coopmat.robust = VK_FALSE;
    const VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                     .pNext = &p->features,
                                     .queueCreateInfoCount = 1,
                                     .pQueueCreateInfos = &queue,
                                     .enabledExtensionCount = p->n_extensions,
                                     .ppEnabledExtensionNames = p->extensions};
    VkResult r = vkCreateDevice(d->physical, &info, NULL, &d->device);
    if (r != VK_SUCCESS)
        return vk_fail(d, r, "vkCreateDevice", err);
    volkLoadDevice(d->device);
    vkGetDeviceQueue(d->device, d->family, 0, &d->queue);
    return 0;
}

static int check_subgroup(const struct vk_device *d, uint32_t wanted, const struct probe *p, struct err *err)
{
    const VkPhysicalDeviceSubgroupSizeControlProperties *s = &p->subgroup_sizes;
    bool choice = vk_has(d, VK_FEATURE_SUBGROUP_SIZE) && s->requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT;
    uint32_t least = choice ? s->minSubgroupSize : p->subgroup_now.subgroupSize;
    uint32_t most = choice ? s->maxSubgroupSize : p->subgroup_now.subgroupSize;
    if (wanted == 0 || wanted == p->subgroup_now.subgroupSize ||
        (choice && wanted >= least && wanted <= most && (wanted & (wanted - 1)) == 0))
        return 0;
    return err_set(err, -EINVAL, "'gpu.subgroup' is %u; device '%s' has subgroups of %u to %u lanes (a power of two, or auto)",
                   wanted, d->name, least, most);
}

int vk_device_open(const struct vk_options *o, struct vk_device **ret, struct err *err)
{
    VkPhysicalDevice all[MAX_DEVICES];
    struct vk_candidate c[MAX_DEVICES];
    uint32_t n = 0;
    char why[160];
    struct vk_device *d = calloc(1, sizeof(*d));
    auto_free struct probe *p = calloc(1, sizeof(*p));
    int r = d && p ? open_instance(d, o->validate, err) : err_set(err, -ENOMEM, "vulkan: out of memory");
    if (r == 0)
        r = find_devices(d, all, c, &n, err);
    if (r == 0)
        r = vk_choose(c, n, o->device, o->allow_cpu, why, sizeof(why), err);
    if (r >= 0) {
        d->physical = all[r];
        r = probe(d->physical, o->without, p, err);
    }
    if (r == 0) {
        judge(d, o, p);
        r = open_queue(d, p, err);
    }
    if (r == 0)
        r = check_subgroup(d, o->subgroup, p, err);
    if (r == 0 && (d->max_range < 65536 || d->max_bytes < 65536))
        r = err_set(err, -ENODEV, "device '%s' takes buffers of %" PRIu64 " bytes at most; expected at least 65536", d->name,
                    MIN(d->max_range, d->max_bytes));
    if (r < 0) {
        vk_device_close(d);
        return r;
    }
    char text[512];
    vk_device_describe(d, text, sizeof(text));
    log_info("vulkan", "%s; chosen of %u because %s", text, n, why);
    *ret = d;
    return 0;
}

void vk_device_close(struct vk_device *d)
{
    if (!d)
        return;
    if (d->device)
        vkDestroyDevice(d->device, NULL);
    if (d->messenger)
        vkDestroyDebugUtilsMessengerEXT(d->instance, d->messenger, NULL);
    if (d->instance)
        vkDestroyInstance(d->instance, NULL);
    free(d->complaints);
    free(d);
}

void vk_device_describe(const struct vk_device *d, char *buf, size_t bytes)
{
    char with[128], without[128], range[16], most[16];
    features_text(d->features, true, with, sizeof(with));
    features_text(d->features, false, without, sizeof(without));
    snprintf(buf, bytes,
             "device '%s' (%s), Vulkan %u.%u, %s memory, subgroup %u; has %s; lacks %s; buffers to %s, allocations to %s", d->name,
             d->driver, VK_API_VERSION_MAJOR(d->properties.apiVersion), VK_API_VERSION_MINOR(d->properties.apiVersion),
             d->unified ? "unified" : "own", d->subgroup, with, without, util_format_bytes(range, sizeof(range), d->max_range),
             util_format_bytes(most, sizeof(most), d->max_bytes));
}

uint64_t vk_device_room(const struct vk_device *d)
{
    VkPhysicalDeviceMemoryBudgetPropertiesEXT b = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 m = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
                                           .pNext = vk_has(d, VK_FEATURE_BUDGET) ? &b : NULL};
    uint64_t best = 0;
    vkGetPhysicalDeviceMemoryProperties2(d->physical, &m);
    for (uint32_t h = 0; h < d->memory.memoryHeapCount; h++) {
        uint64_t room = d->memory.memoryHeaps[h].size;
        if (vk_has(d, VK_FEATURE_BUDGET))
            room = b.heapBudget[h] > b.heapUsage[h] ? b.heapBudget[h] - b.heapUsage[h] : 0;
        if (d->memory.memoryHeaps[h].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT)
            best = MAX(best, room);
    }
    return best;
}

static const char *const types[] = {"other", "integrated GPU", "discrete GPU", "virtual GPU", "CPU"};

static int list_one(struct vk_device *d, const struct vk_options *o, uint32_t index, const struct vk_candidate *c, bool chosen,
                    const char *why, FILE *f, struct err *err)
{
    auto_free struct probe *p = calloc(1, sizeof(*p));
    char with[128], without[128], a[16], b[16];
    if (!p)
        return err_set(err, -ENOMEM, "vulkan: out of memory");
    fprintf(f, "%u  %s (%s)%s%s%s\n", index, c->name, types[MIN((unsigned)c->type, 4u)], chosen ? "  <- chosen: " : "",
            chosen ? why : "", "");
    if (c->unfit[0]) {
        fprintf(f, "   cannot be used: %s\n", c->unfit);
        return 0;
    }
    int r = probe(d->physical, o->without, p, err);
    if (r < 0)
        return r;
    d->features = 0;
    d->subgroup_required = 0;
    judge(d, o, p);
    features_text(d->features, true, with, sizeof(with));
    features_text(d->features, false, without, sizeof(without));
    fprintf(f, "   driver      %s, Vulkan %u.%u\n", d->driver, VK_API_VERSION_MAJOR(d->properties.apiVersion),
            VK_API_VERSION_MINOR(d->properties.apiVersion));
    for (uint32_t h = 0; h < d->memory.memoryHeapCount; h++)
        fprintf(f, "   heap %u      %s%s\n", h, util_format_bytes(a, sizeof(a), d->memory.memoryHeaps[h].size),
                d->memory.memoryHeaps[h].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT ? ", the device's own" : "");
    fprintf(f, "   memory      %s; %s free\n",
            d->unified ? "unified: shared with the processor" : "its own: weights are copied there",
            util_format_bytes(a, sizeof(a), vk_device_room(d)));
    fprintf(f, "   limits      storage buffer %s, allocation %s, workgroup %u, subgroup %u\n",
            util_format_bytes(a, sizeof(a), d->max_range), util_format_bytes(b, sizeof(b), d->max_bytes), d->max_threads,
            d->subgroup);
    fprintf(f, "   has         %s\n   lacks       %s\n", with, without);
    return 0;
}

int vk_device_list(const struct vk_options *o, FILE *f, struct err *err)
{
    VkPhysicalDevice all[MAX_DEVICES];
    struct vk_candidate c[MAX_DEVICES];
    uint32_t n = 0;
    char why[160] = "";
    struct err none = {0};
    struct vk_device *d = calloc(1, sizeof(*d));
    int r = d ? open_instance(d, o->validate, err) : err_set(err, -ENOMEM, "vulkan: out of memory");
    if (r == 0)
        r = find_devices(d, all, c, &n, err);
    int chosen = r == 0 ? vk_choose(c, n, o->device, o->allow_cpu, why, sizeof(why), &none) : -1;
    for (uint32_t i = 0; r == 0 && i < n; i++) {
        d->physical = all[i];
        r = list_one(d, o, i, &c[i], chosen == (int)i, why, f, err);
    }
    if (r == 0 && chosen < 0)
        fprintf(f, "none chosen: %s\n", none.text);
    vk_device_close(d);
    return r;
}
