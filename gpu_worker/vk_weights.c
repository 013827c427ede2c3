/* SPDX-License-Identifier: MIT
 * Where weights lie for the device. One import of the whole segment, or one buffer per piece of a matrix and one for the norms,
 * which layers that come and go have in common. Owns the buffers in struct vk_weights; never the segment. */
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

/* The next buffer of these weights: their own, or the one that all who share this place have. */
static int next_buffer(struct vk_memory *m, uint64_t bytes, const char *what, struct vk_weights *w, struct vk_buffer **ret,
                       struct err *err)
{
    struct vk_shared *s = w->shared;
    uint32_t i = w->n_buffers;
    int r = 0;
    if (!s)
        r = vk_buffer_make(m, VK_MEMORY_DEVICE, bytes, what, &w->buffers[i], err);
    else if (i >= s->n || bytes > s->bytes[i])
        r = err_set(err, -EINVAL, "vulkan: streamed weights of %llu bytes have no room", (unsigned long long)bytes);
    else if (!s->buffers[i].buffer)
        r = vk_buffer_make(m, VK_MEMORY_DEVICE, s->bytes[i], what, &s->buffers[i], err);
    if (r < 0)
        return r;
    if (s)
        w->buffers[i] = s->buffers[i];
    *ret = &w->buffers[i];
    w->n_buffers++;
    return 0;
}

static int place(struct vk_memory *m, const struct segment_tensor *t, struct vk_weights *w, struct vk_matrix *x, struct err *err)
{
    int r = cut(m->device, t, w->in_place, x, err);
    for (uint32_t i = 0; r == 0 && i < x->n_pieces; i++) {
        struct vk_range *range = &x->pieces[i].range;
        struct vk_buffer *b;
        if (w->in_place) {
            range->buffer = w->buffers[0].buffer;
            range->offset += t->offset;
            continue;
        }
        r = next_buffer(m, range->bytes, "weights", w, &b, err);
        if (r < 0)
            break;
        range->buffer = b->buffer;
        range->offset = 0;
    }
    return r;
}

/* Norms together in one buffer, each at a multiple of 256 bytes. */
static uint64_t norms_bytes(const struct segment_layout *l)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < l->n_tensors; i++)
        bytes += is_norm(&l->tensors[i]) ? util_round_up(l->tensors[i].bytes, 256) : 0;
    return bytes;
}

static int place_norms(struct vk_memory *m, const struct segment_layout *l, struct vk_weights *w, struct err *err)
{
    const struct vk_device *d = m->device;
    struct vk_buffer *b = NULL;
    uint64_t at = 0;
    uint32_t n = 0;
    int r = w->in_place || norms_bytes(l) == 0 ? 0 : next_buffer(m, norms_bytes(l), "norms", w, &b, err);
    for (uint32_t i = 0; r == 0 && i < l->n_tensors; i++) {
        const struct segment_tensor *t = &l->tensors[i];
        if (!is_norm(t) || n == ARRAY_LEN(w->norms))
            continue;
        if (w->in_place) {
            uint64_t from = t->offset / d->range_align * d->range_align;
            w->norms[n] = (struct vk_range){w->buffers[0].buffer, from, util_round_up(t->offset - from + t->bytes, 16)};
            w->norm_at[n] = (uint32_t)((t->offset - from) / 16);
        } else {
            w->norms[n] = (struct vk_range){b->buffer, at, util_round_up(t->bytes, 16)};
        }
        at += util_round_up(t->bytes, 256);
        n++;
    }
    return r;
}

static int copy(struct vk_queue *q, const struct vk_buffer *staging, const struct vk_buffer *b, uint64_t at, const uint8_t *from,
                uint64_t bytes, struct err *err)
{
    if (!b->map)
        return vk_upload(q, staging, b->buffer, at, from, bytes, err);
    memcpy((uint8_t *)b->map + at, from, bytes);
    return 0;
}

/* Buffers come in the order in which they were made: norms, then the pieces of each matrix. */
int vk_weights_copy(struct vk_queue *q, const struct vk_buffer *staging, const struct segment_layout *l, const void *data,
                    const struct vk_weights *w, struct err *err)
{
    const uint8_t *from = data;
    const struct vk_buffer *b = w->buffers;
    uint32_t matrix = 0, norm = 0;
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < l->n_tensors; i++) {
        if (is_norm(&l->tensors[i]) && norm < ARRAY_LEN(w->norms))
            r = copy(q, staging, b, w->norms[norm++].offset, from + l->tensors[i].offset, l->tensors[i].bytes, err);
    }
    b += norm > 0;
    for (uint32_t i = 0; r == 0 && i < l->n_tensors; i++) {
        const struct segment_tensor *t = &l->tensors[i];
        if (is_norm(t) || matrix == w->n_matrices)
            continue;
        const struct vk_matrix *x = &w->matrices[matrix++];
        for (uint32_t k = 0; r == 0 && k < x->n_pieces; k++, b++) {
            const struct vk_piece *p = &x->pieces[k];
            r = copy(q, staging, b, 0, from + t->offset + (uint64_t)(p->first_row / REPACK_ROWS) * x->tile_bytes, p->range.bytes,
                     err);
        }
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

static int share_size(struct vk_shared *s, uint32_t i, uint64_t bytes)
{
    if (i == s->n) {
        uint64_t *sizes = realloc(s->bytes, (i + 1) * sizeof(*sizes));
        struct vk_buffer *buffers = sizes ? realloc(s->buffers, (i + 1) * sizeof(*buffers)) : NULL;
        s->bytes = sizes ? sizes : s->bytes;
        if (!buffers)
            return -ENOMEM;
        buffers[i] = (struct vk_buffer){0};
        sizes[i] = 0;
        s->buffers = buffers;
        s->n++;
    }
    s->bytes[i] = MAX(s->bytes[i], bytes);
    return 0;
}

int vk_weights_share(const struct vk_device *d, const struct segment_layout *l, struct vk_shared *s, struct err *err)
{
    uint32_t n = 0;
    int r = norms_bytes(l) ? share_size(s, n++, norms_bytes(l)) : 0;
    for (uint32_t i = 0; r == 0 && i < l->n_tensors; i++) {
        struct vk_matrix x = {0};
        if (is_norm(&l->tensors[i]))
            continue;
        r = cut(d, &l->tensors[i], false, &x, err);
        for (uint32_t k = 0; r == 0 && k < x.n_pieces; k++)
            r = share_size(s, n++, x.pieces[k].range.bytes);
        free(x.pieces);
    }
    return r == -ENOMEM ? err_set(err, r, "vulkan: out of memory") : r;
}

void vk_weights_unshare(struct vk_memory *m, struct vk_shared *s)
{
    for (uint32_t i = 0; i < s->n; i++)
        vk_buffer_free(m, &s->buffers[i]);
    free(s->buffers);
    free(s->bytes);
    *s = (struct vk_shared){0};
}

int vk_weights_place(struct vk_memory *m, const struct segment_layout *l, const void *data, struct vk_shared *shared,
                     struct vk_weights *ret, struct err *err)
{
    *ret = (struct vk_weights){.buffers = calloc(count_pieces(m->device, l), sizeof(*ret->buffers)), .shared = shared};
    if (!ret->buffers)
        return err_set(err, -ENOMEM, "vulkan: out of memory");
    void *p = (void *)(uintptr_t)data; /* the device only reads */
    if (m->device->unified && vk_buffer_import(m, p, l->bytes, &ret->buffers[0]) == 0) {
        ret->in_place = true;
        ret->n_buffers = 1;
        ret->shared = NULL;
    }
    int r = place_norms(m, l, ret, err);
    for (uint32_t i = 0; r == 0 && i < l->n_tensors; i++) {
        if (!is_norm(&l->tensors[i]) && ret->n_matrices < ARRAY_LEN(ret->matrices))
            r = place(m, &l->tensors[i], ret, &ret->matrices[ret->n_matrices++], err);
    }
    if (r < 0)
        vk_weights_free(m, ret);
    return r;
}

int vk_weights_load(struct vk_memory *m, struct vk_queue *q, const struct vk_buffer *staging, const struct segment_layout *l,
                    const void *data, struct vk_weights *ret, struct err *err)
{
    int r = vk_weights_place(m, l, data, NULL, ret, err);
    if (r == 0 && !ret->in_place)
        r = vk_weights_copy(q, staging, l, data, ret, err);
    if (r < 0)
        vk_weights_free(m, ret);
    return r;
}

void vk_weights_free(struct vk_memory *m, struct vk_weights *w)
{
    for (uint32_t i = 0; i < w->n_matrices; i++)
        free(w->matrices[i].pieces);
    for (uint32_t i = 0; !w->shared && i < w->n_buffers; i++)
        vk_buffer_free(m, &w->buffers[i]);
    free(w->buffers);
    *w = (struct vk_weights){0};
}
