/* SPDX-License-Identifier: MIT
 * Where weights lie for the device. One import of the whole segment, or one buffer per piece of a matrix and one for the norms.
 * Owns the buffers in struct vk_weights; never the segment. */
#include "gpu_worker/vk_weights.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/repack.h"
#include "proto/err.h"
#include "proto/util.h"

#define PIECE_ROWS 256 /* whole workgroups of every shader; a piece then begins at a multiple of 256 bytes */

static bool is_norm(const struct segment_tensor *t)
{
    return t->n_rows <= 1;
}

static uint32_t piece_rows(const struct vk_device *d, uint32_t tile_bytes, bool in_place)
{
    uint64_t most = in_place ? d->max_range : MIN(d->max_range, d->max_bytes);
    uint64_t rows = most / tile_bytes * REPACK_ROWS / PIECE_ROWS * PIECE_ROWS;
    return (uint32_t)MIN(rows, (uint64_t)UINT32_MAX / PIECE_ROWS * PIECE_ROWS);
}

static int cut(const struct vk_device *d, const struct segment_tensor *t, bool in_place, struct vk_matrix *m, struct err *err)
{
    *m = (struct vk_matrix){
        .type = t->type, .n_rows = t->n_rows, .n_cols = t->n_cols, .tile_bytes = (uint32_t)repack_tile_bytes(t->type, t->n_cols)};
    uint32_t rows = piece_rows(d, m->tile_bytes, in_place);
    if (rows == 0)
        return err_set(err, -ENOTSUP, "device '%s': %d rows of a matrix take %u bytes, a buffer at most %llu", d->name, PIECE_ROWS,
                       m->tile_bytes * (PIECE_ROWS / REPACK_ROWS), (unsigned long long)MIN(d->max_range, d->max_bytes));
    m->n_pieces = (m->n_rows + rows - 1) / rows;
    m->pieces = calloc(m->n_pieces, sizeof(*m->pieces));
    if (!m->pieces)
        return err_set(err, -ENOMEM, "vulkan: out of memory");
    for (uint32_t i = 0; i < m->n_pieces; i++) {
        struct vk_piece *p = &m->pieces[i];
        p->first_row = i * rows;
        p->n_rows = MIN(rows, m->n_rows - p->first_row);
        p->range.offset = (uint64_t)(p->first_row / REPACK_ROWS) * m->tile_bytes; /* within the matrix, so far */
        p->range.bytes = repack_n_tiles(p->n_rows) * m->tile_bytes;
    }
    return 0;
}

static int place(struct vk_memory *m, struct vk_queue *q, const struct vk_buffer *staging, const struct segment_tensor *t,
                 const uint8_t *data, struct vk_weights *w, struct vk_matrix *x, struct err *err)
{
    int r = cut(m->device, t, w->in_place, x, err);
    for (uint32_t i = 0; r == 0 && i < x->n_pieces; i++) {
        struct vk_range *range = &x->pieces[i].range;
        if (w->in_place) {
            range->buffer = w->buffers[0].buffer;
            range->offset += t->offset;
            continue;
        }
        struct vk_buffer *b = &w->buffers[w->n_buffers];
        r = vk_buffer_make(m, VK_MEMORY_DEVICE, range->bytes, "weights", b, err);
        if (r < 0)
            break;
        w->n_buffers++;
        if (b->map)
            memcpy(b->map, data + t->offset + range->offset, range->bytes);
        else
            r = vk_upload(q, staging, b->buffer, 0, data + t->offset + range->offset, range->bytes, err);
        range->buffer = b->buffer;
        range->offset = 0;
    }
    return r;
}

/* Norms together in one buffer, each at a multiple of 256 bytes. */
static int place_norms(struct vk_memory *m, struct vk_queue *q, const struct vk_buffer *staging, const struct segment_layout *l,
                       const uint8_t *data, struct vk_weights *w, struct err *err)
{
    const struct vk_device *d = m->device;
    uint64_t at[2], bytes = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < l->n_tensors; i++) {
        const struct segment_tensor *t = &l->tensors[i];
        if (!is_norm(t) || n == ARRAY_LEN(at))
            continue;
        if (w->in_place) {
            uint64_t from = t->offset / d->range_align * d->range_align;
            w->norms[n] = (struct vk_range){w->buffers[0].buffer, from, util_round_up(t->offset - from + t->bytes, 16)};
            w->norm_at[n] = (uint32_t)((t->offset - from) / 16);
        }
        at[n++] = bytes;
        bytes += util_round_up(t->bytes, 256);
    }
    if (w->in_place || n == 0)
        return 0;
    struct vk_buffer *b = &w->buffers[w->n_buffers];
    int r = vk_buffer_make(m, VK_MEMORY_DEVICE, bytes, "norms", b, err);
    if (r < 0)
        return r;
    w->n_buffers++;
    n = 0;
    for (uint32_t i = 0; r == 0 && i < l->n_tensors; i++) {
        const struct segment_tensor *t = &l->tensors[i];
        if (!is_norm(t))
            continue;
        if (b->map)
            memcpy((uint8_t *)b->map + at[n], data + t->offset, t->bytes);
        else
            r = vk_upload(q, staging, b->buffer, at[n], data + t->offset, t->bytes, err);
        w->norms[n] = (struct vk_range){b->buffer, at[n], util_round_up(t->bytes, 16)};
        n++;
    }
    return r;
}

static uint32_t count_pieces(const struct vk_device *d, const struct segment_layout *l)
{
    uint32_t n = 1;
    for (uint32_t i = 0; i < l->n_tensors; i++) {
        const struct segment_tensor *t = &l->tensors[i];
        uint32_t rows = is_norm(t) ? 0 : piece_rows(d, (uint32_t)repack_tile_bytes(t->type, t->n_cols), false);
        n += rows ? (t->n_rows + rows - 1) / rows : 0;
    }
    return n;
}

int vk_weights_load(struct vk_memory *m, struct vk_queue *q, const struct vk_buffer *staging, const struct segment_layout *l,
                    const void *data, struct vk_weights *ret, struct err *err)
{
    *ret = (struct vk_weights){.buffers = calloc(count_pieces(m->device, l), sizeof(*ret->buffers))};
    if (!ret->buffers)
        return err_set(err, -ENOMEM, "vulkan: out of memory");
    void *p = (void *)(uintptr_t)data; /* the device only reads */
    if (m->device->unified && vk_buffer_import(m, p, l->bytes, &ret->buffers[0]) == 0) {
        ret->in_place = true;
        ret->n_buffers = 1;
    }
    int r = place_norms(m, q, staging, l, data, ret, err);
    for (uint32_t i = 0; r == 0 && i < l->n_tensors; i++) {
        if (!is_norm(&l->tensors[i]) && ret->n_matrices < ARRAY_LEN(ret->matrices))
            r = place(m, q, staging, &l->tensors[i], data, ret, &ret->matrices[ret->n_matrices++], err);
    }
    if (r < 0)
        vk_weights_free(m, ret);
    return r;
}

void vk_weights_free(struct vk_memory *m, struct vk_weights *w)
{
    for (uint32_t i = 0; i < w->n_matrices; i++)
        free(w->matrices[i].pieces);
    for (uint32_t i = 0; i < w->n_buffers; i++)
        vk_buffer_free(m, &w->buffers[i]);
    free(w->buffers);
    *w = (struct vk_weights){0};
}
