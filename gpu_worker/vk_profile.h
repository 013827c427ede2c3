/* SPDX-License-Identifier: MIT
 * Where a device's time goes, kernel by kernel: time stamps between the kernels of recorded commands, read after each run and
 * summed, and a table of them beside what a copy gets from the device's memory. A kernel's time reaches from the end of the one
 * before it to its own end, so that all of them add up to the command; two without a barrier between them may overlap, and then
 * the second's share is too small. A device without time stamps leaves the time from submit to wake alone.
 * Borrows queue and device. All but open and print take NULL: nothing is recorded, vk_profile_run is vk_run.
 * Threads: begin, mark and run where commands are recorded and run; open, print and close on the main thread. */
#ifndef TANDEM_GPU_WORKER_VK_PROFILE_H
#define TANDEM_GPU_WORKER_VK_PROFILE_H

#include <stdint.h>

#include "gpu_worker/vk_submit.h"

struct vk_profile;

enum vk_profile_kernel {
    VK_PROFILE_NORM,
    VK_PROFILE_GATE_UP,
    VK_PROFILE_GATE,
    VK_PROFILE_UP,
    VK_PROFILE_GEGLU,
    VK_PROFILE_SCALE,
    VK_PROFILE_DOWN,
    VK_PROFILE_POST,
    VK_PROFILE_HEAD,
    VK_PROFILE_COPY,
    VK_PROFILE_KERNELS
};

/* What one call cannot do without: bytes of weights, bytes of rows read and written, multiplications and additions of a product. */
struct vk_profile_work {
    uint64_t weights, rows, flops;
};

typedef void (*vk_profile_line_fn)(void *ctx, const char *line);

/* marks: of one command at most. */
int vk_profile_open(const struct vk_device *d, struct vk_queue *q, uint32_t marks, struct vk_profile **ret, struct err *err);
void vk_profile_close(struct vk_profile *p);

/* Right after vk_begin. Marks of other commands than the one begun last are ignored. */
int vk_profile_begin(struct vk_profile *p, VkCommandBuffer cmd, struct err *err);
/* Right after the kernel's dispatches. */
void vk_profile_mark(struct vk_profile *p, VkCommandBuffer cmd, enum vk_profile_kernel kernel, const struct vk_profile_work *w);
int vk_profile_run(struct vk_profile *p, struct vk_queue *q, VkCommandBuffer cmd, struct err *err);

/* Times a copy, for which it takes memory (as much as there is, up to what caches cannot hold), and hands the table over line by
 * line. Fails when the device does not answer any more. */
int vk_profile_print(struct vk_profile *p, struct vk_memory *m, struct vk_cache *c, vk_profile_line_fn line, void *ctx,
                     struct err *err);

#endif
