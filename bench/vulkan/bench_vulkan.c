/* SPDX-License-Identifier: MIT
 * Proves the compute shaders of gpu_worker against the CPU kernels and measures them: `check` and `speed` (default: both). Needs
 * nothing but libvulkan.so.1 and a driver. One thread; never run by ctest. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/vulkan/check.h"
#include "bench/vulkan/device.h"
#include "bench/vulkan/matmul.h"
#include "bench/vulkan/speed.h"
#include "proto/util.h"

static const char help[] = "usage: bench_vulkan [options] [check | memory | matmul | ffn | matvec] (default: all)\n"
                           "  --device N    which Vulkan device (default: the first discrete one, or the first)\n"
                           "  --type T      only this weight type; ops: no weights\n"
                           "  --seconds S   begin nothing new after that time (default 130)\n"
                           "  --small       small shapes and buffers, for a device that is a processor\n"
                           "  --validate    with the validation layer\n";

static void describe(const struct device *d)
{
    const VkPhysicalDeviceProperties *p = &d->properties;
    printf("device '%s', Vulkan %u.%u.%u, driver %#x, subgroup %u, workgroup <= %u, shared %u KiB, storage range %u MiB\n",
           p->deviceName, VK_API_VERSION_MAJOR(p->apiVersion), VK_API_VERSION_MINOR(p->apiVersion),
           VK_API_VERSION_PATCH(p->apiVersion), p->driverVersion, d->subgroup.subgroupSize,
           p->limits.maxComputeWorkGroupInvocations, p->limits.maxComputeSharedMemorySize >> 10,
           p->limits.maxStorageBufferRange >> 20);
    printf("int dot %d, cooperative matrix %d (NV %d), fp16 %d, storage16 %d, memory model %d\n", d->int_dot, d->coopmat,
           d->coopmat_nv, d->fp16, d->storage16, d->memory_model);
}

static bool is(const char *part, const char *name)
{
    return !*part || strcmp(part, name) == 0;
}

static void elapsed(double begin)
{
    printf("[%.0f s]\n", speed_now() - begin);
    fflush(stdout);
}

/* VkCooperativeMatrixPropertiesKHR, younger than Debian 12's headers. */
struct coopmat_shape {
    VkStructureType type;
    void *next;
    uint32_t m, n, k, a, b, c, result;
    VkBool32 saturating;
    uint32_t scope;
};
typedef VkResult(VKAPI_PTR *coopmat_shapes_fn)(VkPhysicalDevice, uint32_t *, struct coopmat_shape *);

static void describe_coopmat(const struct device *d)
{
    struct coopmat_shape s[64];
    uint32_t n = ARRAY_LEN(s);
    coopmat_shapes_fn get =
        (coopmat_shapes_fn)vkGetInstanceProcAddr(d->instance, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
    for (uint32_t i = 0; i < n; i++)
        s[i] = (struct coopmat_shape){.type = (VkStructureType)1000506001};
    if (!d->coopmat || !get || get(d->physical, &n, s) < 0)
        return;
    printf("cooperative matrices (MxNxK, component types A B C as VkComponentTypeKHR, scope):");
    for (uint32_t i = 0; i < n; i++)
        printf(" %ux%ux%u %u %u %u s%u", s[i].m, s[i].n, s[i].k, s[i].a, s[i].b, s[i].c, s[i].scope);
    printf("\n");
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {{"device", required_argument, NULL, 'd'},
                                                 {"type", required_argument, NULL, 't'},
                                                 {"seconds", required_argument, NULL, 'n'},
                                                 {"small", no_argument, NULL, 's'},
                                                 {"validate", no_argument, NULL, 'v'},
                                                 {"help", no_argument, NULL, 'h'},
                                                 {0}};
    int index = -1, failed = 0;
    double seconds = 130;
    bool validate = false;
    struct speed_options o = {
        .bytes = (size_t)1200 << 20, .layers = 8, .repeats = 3, .settle = 0.2, .hidden = 5376, .ffn = 21504, .vocab = 262144};
    const char *type = NULL;
    for (int c; (c = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
        if (c == 'd')
            index = atoi(optarg);
        else if (c == 't')
            type = optarg;
        else if (c == 'n')
            seconds = atof(optarg);
        else if (c == 's')
            o = (struct speed_options){.bytes = 8 << 20, .layers = 2, .repeats = 1, .hidden = 512, .ffn = 2048, .vocab = 4096};
        else if (c == 'v')
            validate = true;
        else {
            fputs(help, c == 'h' ? stdout : stderr);
            return c == 'h' ? 0 : 2;
        }
    }
    const char *part = optind < argc ? argv[optind] : "";
    static struct device d;
    double begin = speed_now();
    device_open(&d, index, validate);
    describe(&d);
    if (strcmp(part, "matmul") == 0)
        describe_coopmat(&d);
    if (is(part, "check"))
        failed = check_run(&d, type);
    o.type = type;
    o.deadline = begin + seconds;
    double copy = 0;
    if (!is(part, "check") || !*part)
        copy = speed_memory(&d, &o);
    if (is(part, "memory"))
        speed_latency(&d, &o);
    elapsed(begin);
    if (is(part, "matmul"))
        failed += matmul_check(&d, type), matmul_speed(&d, &o);
    elapsed(begin);
    if (is(part, "ffn"))
        speed_ffn(&d, &o, copy);
    elapsed(begin);
    if (is(part, "matvec"))
        speed_matvec(&d, &o, copy);
    elapsed(begin);
    device_close(&d);
    return failed ? 1 : 0;
}
