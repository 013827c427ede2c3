/* SPDX-License-Identifier: MIT
 * Command buffers of one queue, recorded once and submitted again and again, one at a time; a timeline semaphore says when one is
 * done, and no wait is without an end. Descriptor sets live as long as the commands that they are for.
 * Threads: record on the main thread or the data thread, never both at once; submit and wait likewise. No allocation in submit. */
#ifndef TANDEM_GPU_WORKER_VK_SUBMIT_H
#define TANDEM_GPU_WORKER_VK_SUBMIT_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu_worker/vk_memory.h"
#include "gpu_worker/vk_pipeline.h"

#define VK_WAIT_FIRST_NS (UINT64_C(60) * 1000000000) /* drivers may still compile */
#define VK_WAIT_NS (UINT64_C(10) * 1000000000)

struct trace;
struct vk_queue;
struct vk_recorder;

/* One binding of a set; bytes 0: to the end of the buffer. Offsets are multiples of the device's range_align. */
struct vk_range {
    VkBuffer buffer;
    uint64_t offset, bytes;
};

int vk_queue_open(const struct vk_device *d, struct vk_queue **ret, struct err *err);
/* Where to record runs; borrowed, NULL is fine. */
void vk_queue_trace(struct vk_queue *q, struct trace *t);
/* Waits for what was submitted, within VK_WAIT_NS. False: the device may still work on it; nothing that it uses may be freed. */
bool vk_queue_settle(struct vk_queue *q); /* NULL is fine */
void vk_queue_close(struct vk_queue *q);  /* settled; NULL is fine */

/* n command buffers with their descriptor sets, recorded one by one and forgotten together: what they hold is kept for those that
 * come after. */
int vk_recorder_open(const struct vk_queue *q, uint32_t n, struct vk_recorder **ret, struct err *err);
void vk_recorder_close(const struct vk_queue *q, struct vk_recorder *rec); /* NULL is fine */
/* Descriptor sets of what is recorded, rounded up to pools. */
uint32_t vk_recorder_sets(const struct vk_recorder *rec); /* NULL: 0 */
/* Forgets what was recorded; none of it may be running. Handles stay the same. */
int vk_recorder_reset(const struct vk_queue *q, struct vk_recorder *rec, struct err *err);

/* Begins to record command buffer `number`, until vk_end. rec NULL: for one run, which ends before the next such recording. */
int vk_begin(struct vk_queue *q, struct vk_recorder *rec, uint32_t number, VkCommandBuffer *ret, struct err *err);
int vk_end(struct vk_queue *q, VkCommandBuffer cmd, struct err *err);
/* ranges: [kernel->n_bindings]; push: kernel->push_bytes. */
int vk_dispatch(struct vk_queue *q, VkCommandBuffer cmd, const struct vk_kernel *k, const struct vk_range *ranges, const void *push,
                uint32_t x, uint32_t y, uint32_t z, struct err *err);
/* What was written by shaders and copies before is seen by shaders, copies and the host after. */
void vk_barrier(VkCommandBuffer cmd);
void vk_copy(VkCommandBuffer cmd, VkBuffer from, uint64_t from_at, VkBuffer to, uint64_t to_at, uint64_t bytes);

/* Runs it and waits. -ENODEV: the device was lost, -ETIMEDOUT: no answer within the time, -ENOMEM, -EIO. */
int vk_run(struct vk_queue *q, VkCommandBuffer cmd, struct err *err);
/* Whether all that was submitted is done; false when the device does not say, or was lost. */
bool vk_idle(const struct vk_queue *q);

/* Copies host bytes to a device buffer in pieces of the size of `staging` (mapped), and waits for the last. at: a multiple of 4. */
int vk_upload(struct vk_queue *q, const struct vk_buffer *staging, VkBuffer to, uint64_t at, const void *data, uint64_t bytes,
              struct err *err);

/* Time stamps for profiling: reserve [count] numbers at open; while recording, take all of them back once and write some; read
 * after vk_run. */
int vk_stamps_make(struct vk_queue *q, uint32_t count, struct err *err);
void vk_stamps_reset(struct vk_queue *q, VkCommandBuffer cmd);
void vk_stamp(struct vk_queue *q, VkCommandBuffer cmd, uint32_t number);
/* Seconds between two stamps of the last run; < 0: not available. */
double vk_stamp_seconds(struct vk_queue *q, uint32_t from, uint32_t to);

#endif
