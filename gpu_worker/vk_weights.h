/* SPDX-License-Identifier: MIT
 * A segment's tensors where the device reads them: in place where memory is unified and the driver imports host memory, else
 * copied. Matrices are cut by rows into pieces that a storage buffer may hold.
 * Threads: main thread, while the data thread does not run. */
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

struct vk_weights {
    struct vk_matrix matrices[3]; /* in the order of the segment */
    uint32_t n_matrices;
    struct vk_range norms[2]; /* in the order of the segment; floats from `norm_at` of each */
    uint32_t norm_at[2];      /* in vec4 */
    struct vk_buffer *buffers;
    uint32_t n_buffers;
    bool in_place;
};

/* data: the segment at a page; used in place, it must outlive the weights. staging: for copies. */
int vk_weights_load(struct vk_memory *m, struct vk_queue *q, const struct vk_buffer *staging, const struct segment_layout *l,
                    const void *data, struct vk_weights *ret, struct err *err);
void vk_weights_free(struct vk_memory *m, struct vk_weights *w); /* a zeroed one is fine */

#endif
