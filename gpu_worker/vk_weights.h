/* SPDX-License-Identifier: MIT
 * A segment's tensors where the device reads them: in place where memory is unified and the driver imports host memory, else
 * copied. Matrices are cut by rows into pieces that a storage buffer may hold.
 * Threads: main thread, while the data thread does not run; vk_weights_copy of streamed layers the data thread. */
#ifndef TANDEM_GPU_WORKER_VK_WEIGHTS_H
#define TANDEM_GPU_WORKER_VK_WEIGHTS_H

#include "gpu_worker/vk_submit.h"
#include "model/segment.h"

struct vk_piece {
    struct vk_range range;
    uint32_t first_row, n_rows; /* first_row: a multiple of 256 */
};

struct vk_matrix {
    int type;
    uint32_t n_rows, n_cols, tile_bytes;
    uint32_t n_pieces;
    struct vk_piece *pieces;
};

/* Buffers into which several layers are copied in turns: the i-th of each layer goes into the i-th, which has room for the largest.
 */
struct vk_shared {
    struct vk_buffer *buffers;
    uint64_t *bytes;
    uint32_t n;
};

struct vk_weights {
    struct vk_matrix matrices[3]; /* in the order of the segment */
    uint32_t n_matrices;
    struct vk_range norms[2]; /* in the order of the segment; floats from `norm_at` of each */
    uint32_t norm_at[2];      /* in vec4 */
    struct vk_buffer *buffers;
    uint32_t n_buffers;
    bool in_place;
    struct vk_shared *shared; /* who has the buffers; NULL: these weights */
};

/* data: the segment at a page; used in place, it must outlive the weights. staging: for copies. */
int vk_weights_load(struct vk_memory *m, struct vk_queue *q, const struct vk_buffer *staging, const struct segment_layout *l,
                    const void *data, struct vk_weights *ret, struct err *err);
/* The same without copying, where in-place use does not go; shared (borrowed): all of its layers were given to vk_weights_share
 * before. */
int vk_weights_place(struct vk_memory *m, const struct segment_layout *l, const void *data, struct vk_shared *shared,
                     struct vk_weights *ret, struct err *err);
/* Of weights that are not in place. */
int vk_weights_copy(struct vk_queue *q, const struct vk_buffer *staging, const struct segment_layout *l, const void *data,
                    const struct vk_weights *w, struct err *err);
int vk_weights_share(const struct vk_device *d, const struct segment_layout *l, struct vk_shared *s, struct err *err);
void vk_weights_unshare(struct vk_memory *m, struct vk_shared *s); /* after the weights; a zeroed one is fine */
void vk_weights_free(struct vk_memory *m, struct vk_weights *w);   /* a zeroed one is fine */

#endif
