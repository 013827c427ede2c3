/* SPDX-License-Identifier: MIT
 * From how many tokens on the shaders for many tokens are faster than those for few, which depends on device, driver and model:
 * both are timed once, and what was found is kept in a small text file beside the pipeline cache. A file that is damaged or of
 * anything else is ignored, and replaced after measuring again. Threads: main thread. */
#ifndef TANDEM_GPU_WORKER_VK_CROSSOVER_H
#define TANDEM_GPU_WORKER_VK_CROSSOVER_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct vk_device;

#define VK_CROSSOVER_FIRST 8u               /* tokens; measured are this, twice this, ... */
#define VK_CROSSOVER_LAST 128u              /* at most; faster not even there: */
#define VK_CROSSOVER_NEVER (UINT32_MAX - 1) /* never */
#define VK_CROSSOVER_NS UINT64_C(250000000) /* nothing is begun that would last longer, but for the first number of tokens */

/* What the answer depends on. */
struct vk_crossover {
    const struct vk_device *device;
    uint64_t shaders;     /* checksum of the program's shaders */
    const char *family;   /* for many tokens */
    uint32_t hidden, ffn; /* of the model */
    int types[3];         /* gate, up, down */
    uint32_t tokens;      /* measured at most */
    uint32_t fallback;    /* the answer where time is too short to find it */
};

/* Seconds that `tokens` tokens take by either family. */
typedef int (*vk_crossover_time_fn)(void *ctx, uint32_t tokens, bool by_many, double *ret, struct err *err);

/* folder: where the file lies; "": no file. Never fails for the file's sake, only where `time` does. */
int vk_crossover_find(const struct vk_crossover *c, const char *folder, vk_crossover_time_fn time, void *ctx, uint32_t *ret,
                      struct err *err);

#endif
