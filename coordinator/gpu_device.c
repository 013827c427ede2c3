/* SPDX-License-Identifier: MIT
 * Runs `gpu_worker --choose-device` and reads its one line. A child that crashes or hangs is an answer. */
#include "coordinator/gpu_device.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/device_ask.h"
#include "coordinator/child.h"
#include "proto/config.h"
#include "proto/err.h"
#include "proto/util.h"

/* "unified\t123\t45\tname\n", or own. */
static bool parse(const struct device_ask *a, struct gpu_device *d)
{
    const char *unified = device_ask_line(a, "unified"), *line = unified ? unified : device_ask_line(a, "own");
    d->unified = unified;
    return line && sscanf(line, "%" SCNu64 "\t%" SCNu64 "\t%255[^\n]", &d->room, &d->importable, d->name) == 3;
}

int gpu_device_find(const struct config *c, const char *stage_dir, struct gpu_device *ret, struct err *err)
{
    const struct config_device *o = &c->device;
    char path[PATH_MAX], device[160], without[160], buffer[64], subgroup[64], allow[64];
    struct device_ask a;
    memset(ret, 0, sizeof(*ret));
    if (strcmp(c->gpu.backend, "cpu") == 0)
        return 0;
    int r = child_path(stage_dir, "gpu_worker", path, sizeof(path), err);
    if (r < 0)
        return r;
    snprintf(device, sizeof(device), "gpu.device=%s", o->name);
    snprintf(without, sizeof(without), "gpu.without=%s", o->without);
    snprintf(allow, sizeof(allow), "gpu.allow_cpu_device=%s", o->allow_cpu ? "true" : "false");
    snprintf(subgroup, sizeof(subgroup), o->subgroup ? "gpu.subgroup=%u" : "gpu.subgroup=auto", o->subgroup);
    snprintf(buffer, sizeof(buffer), o->max_buffer ? "gpu.max_buffer=%" PRIu64 : "gpu.max_buffer=auto", o->max_buffer);
    const char *const words[] = {
        path,  "--choose-device", "--set",  device,  "--set", without, "--set",
        allow, "--set",           subgroup, "--set", buffer,  "--set", c->sandbox ? "sandbox=auto" : "sandbox=off",
        NULL};
    if (device_ask(words, &a)) {
        ret->vulkan = parse(&a, ret);
        if (ret->vulkan)
            return 0;
        *ret = (struct gpu_device){0};
        snprintf(a.reason, sizeof(a.reason), "gpu_worker's answer was not understood; are all programs of one build?");
    }
    snprintf(ret->reason, sizeof(ret->reason), "%s", a.reason);
    ret->surprise = a.crashed || strcmp(o->name, "auto") != 0 || o->without[0] || o->subgroup || o->max_buffer;
    if (strcmp(c->gpu.backend, "auto") == 0)
        return 0;
    return err_set(err, -ENODEV, "'gpu.backend' is vulkan, but %s; 'gpu_worker --list-devices' shows what is there", ret->reason);
}
