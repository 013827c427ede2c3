/* SPDX-License-Identifier: MIT
 * Which device gpu_worker would compute on, asked of the program itself before the plan is made: a driver that hangs or crashes
 * while it is asked takes a short-lived process with it and nothing else. Thread: main, before the loop runs. */
#ifndef TANDEM_COORDINATOR_GPU_DEVICE_H
#define TANDEM_COORDINATOR_GPU_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

struct config;
struct err;

struct gpu_device {
    bool vulkan;         /* else the cpu backend */
    bool unified;        /* its memory is the processor's */
    uint64_t room;       /* bytes free */
    uint64_t importable; /* bytes of a segment that it can use in place; larger ones are copied */
    bool surprise;       /* not vulkan, though the config says something of a device, or its driver hangs or crashes */
    char name[256];
    char reason[768]; /* why not vulkan; "" where the config says cpu */
};

/* By gpu.backend: cpu asks nobody; auto takes what there is, and says in `reason` why not; vulkan without a device is an error.
 * stage_dir: where gpu_worker lies; NULL: see proto/place.h. */
int gpu_device_find(const struct config *c, const char *stage_dir, struct gpu_device *ret, struct err *err);

#endif
