/* SPDX-License-Identifier: MIT
 * The stage: fills weight segments and looks up embeddings. Owns the model file, what fills, and the embedding. configure, stats
 * and close run on the main thread, fill on worker threads, process on the data thread; fill and process share nothing but the
 * immutable file metadata. The pages of a segment are charged to the consumer that made them, so what is
 * mapped here is not counted here. */
#include "loader/loader.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>

#include "loader/embed.h"
#include "loader/fill.h"
#include "model/gguf.h"
#include "model/segment.h"
#include "model/work_plan.h"
#include "proto/budget.h"
#include "proto/chunk.h"
#include "proto/err.h"
#include "proto/shm.h"
#include "proto/util.h"

struct mapped {
    void *data;
    uint64_t bytes;
    ino_t inode;
};

struct loader {
    struct hparams hparams;
    struct budget *budget;
    struct gguf *gguf;
    struct embed *embed;
    struct fill *fill;
    pthread_mutex_t slots_mutex;
    struct mapped slots[SEGMENT_HEAD + 1][STAGE_SLOTS_MAX];
};

static int loader_open(void **ret_state, struct err *err)
{
    struct loader *l = calloc(1, sizeof(*l));
    if (!l)
        return err_set(err, -ENOMEM, "loader: out of memory");
    pthread_mutex_init(&l->slots_mutex, NULL);
    *ret_state = l;
    return 0;
}

static int layout(const struct loader *l, enum segment_kind kind, uint32_t layer, struct segment_layout *ret, struct err *err)
{
    uint8_t types[SEGMENT_MAX_TENSORS];
    int r = segment_types(l->gguf, kind, layer, types, err);
    return r < 0 ? r : segment_layout_init(ret, &l->hparams, kind, types, err);
}

static int least_piece(const struct loader *l, size_t *ret, struct err *err)
{
    size_t n = 0;
    for (uint32_t layer = 0; layer < l->hparams.n_layers; layer++) {
        for (int kind = SEGMENT_ATTN; kind <= SEGMENT_HEAD; kind++) {
            struct segment_layout s;
            if (kind == SEGMENT_HEAD && layer)
                continue;
            int r = layout(l, (enum segment_kind)kind, layer, &s, err);
            if (r < 0)
                return r;
            n = MAX(n, segment_bounce_min(&s));
        }
    }
    *ret = n;
    return 0;
}

/* A restarted loader opens the path again: it must be what its predecessor read. */
static int same_file(const struct msg_configure *c, struct err *err)
{
    struct stat st;
    if (c->model_bytes == 0)
        return 0;
    if (stat(c->model, &st) < 0)
        return err_set_errno(err, -errno, "model '%s'", c->model);
    uint64_t time_ns = (uint64_t)st.st_mtim.tv_sec * 1000000000 + (uint64_t)st.st_mtim.tv_nsec;
    if ((uint64_t)st.st_size == c->model_bytes && st.st_ino == c->model_inode && time_ns == c->model_time_ns)
        return 0;
    return err_set(err, -EBADMSG,
                   "model '%s' was replaced or written to since the start (%" PRIu64 " bytes, now %" PRIu64
                   "); expected the file that the answers began with: start again",
                   c->model, c->model_bytes, (uint64_t)st.st_size);
}

static int loader_configure(void *state, struct stage_io *io, const struct msg_configure *c, struct err *err)
{
    struct loader *l = state;
    struct hparams expected;
    size_t least = 0;
    hparams_from_msg(c, &expected);
    l->budget = stage_budget(io);
    int r = same_file(c, err);
    if (r == 0)
        r = gguf_open(c->model, true, &l->gguf, err);
    if (r == 0)
        r = gemma3_hparams(l->gguf, &l->hparams, err);
    if (r == 0 && memcmp(&expected, &l->hparams, sizeof(expected)) != 0)
        r = err_set(err, -ESTALE, "model '%s' is not the one that was planned for (it changed while starting); start again",
                    c->model);
    if (r == 0)
        r = least_piece(l, &least, err);
    if (r == 0)
        r = fill_open(l->gguf, l->budget, least, c->checksums, &l->fill, err);
    if (r == 0)
        fill_trace(l->fill, stage_trace(io));
    return r < 0 ? r : embed_open(l->gguf, &l->hparams, l->budget, &l->embed, err);
}

/* A slot comes again and again: it stays mapped, until another memfd has its number. Stage threads that fill are two. */
static int map_slot(struct loader *l, uint32_t kind, uint32_t slot, int fd, uint64_t bytes, void **ret, struct err *err)
{
    struct mapped *m = &l->slots[kind][slot];
    struct stat st;
    int r = fstat(fd, &st) < 0 ? err_set_errno(err, -errno, "loader: slot %u", slot) : shm_check(fd, bytes, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&l->slots_mutex);
    if (!m->data || m->inode != st.st_ino || m->bytes != (uint64_t)st.st_size) {
        shm_unmap(m->data, m->bytes);
        *m = (struct mapped){.inode = st.st_ino, .bytes = (uint64_t)st.st_size};
        r = shm_map(fd, m->bytes, true, &m->data, err);
    }
    *ret = m->data;
    pthread_mutex_unlock(&l->slots_mutex);
    return r;
}

static int loader_fill(void *state, uint32_t kind, uint32_t layer, uint32_t slot, int fd, uint64_t bytes, struct err *err)
{
    struct loader *l = state;
    struct segment_layout s;
    void *data = NULL;
    bool keeps = slot != STAGE_NO_SLOT;
    if (kind > SEGMENT_HEAD || layer >= l->hparams.n_layers || (keeps && slot >= STAGE_SLOTS_MAX))
        return err_set(err, -EPROTO, "loader: segment of kind %u, layer %u does not exist", kind, layer);
    int r = layout(l, (enum segment_kind)kind, layer, &s, err);
    if (r == 0 && bytes != s.bytes)
        r = err_set(err, -EPROTO, "loader: segment of kind %u, layer %u is %" PRIu64 " bytes; expected %zu", kind, layer, bytes,
                    s.bytes);
    if (r == 0)
        r = keeps ? map_slot(l, kind, slot, fd, bytes, &data, err) : shm_map(fd, s.bytes, true, &data, err);
    if (r < 0)
        return r;
    r = fill_run(l->fill, layer, &s, data, err);
    if (!keeps)
        shm_unmap(data, s.bytes);
    return r < 0 ? err_wrap(err, r, "filling layer %u", layer) : 0;
}

static int loader_process(void *state, struct stage_io *io, uint32_t input, struct chunk *c, const void *payload, struct err *err)
{
    struct loader *l = state;
    (void)input;
    if (c->h.kind != CHUNK_TOKENS)
        return err_set(err, -EPROTO, "loader: chunk of kind %u; expected token ids", c->h.kind);
    c->h.kind = CHUNK_HIDDEN;
    c->h.layer = 0;
    c->h.payload_bytes = (uint32_t)((size_t)c->h.n_tokens * l->hparams.hidden * sizeof(float));
    float *x = stage_reserve(io, 0, c);
    if (!x)
        return -ECANCELED;
    int r = embed_rows(l->embed, payload, c->h.n_tokens, x, err);
    if (r == 0)
        stage_commit(io, 0);
    return r;
}

static void loader_stats(void *state, struct msg_stats *ret)
{
    const struct loader *l = state;
    if (l->embed)
        ret->bytes_read = embed_bytes_read(l->embed) + fill_bytes_read(l->fill);
}

static void loader_close(void *state)
{
    struct loader *l = state;
    if (!l)
        return;
    embed_close(l->embed);
    fill_close(l->fill);
    for (uint32_t i = 0; i < (SEGMENT_HEAD + 1) * STAGE_SLOTS_MAX; i++) {
        struct mapped *m = &l->slots[i / STAGE_SLOTS_MAX][i % STAGE_SLOTS_MAX];
        shm_unmap(m->data, m->bytes);
    }
    pthread_mutex_destroy(&l->slots_mutex);
    gguf_close(l->gguf);
    free(l);
}

const struct stage_ops loader_ops = {.role = MSG_ROLE_LOADER,
                                     .n_inputs = 1,
                                     .n_outputs = 1,
                                     .open = loader_open,
                                     .configure = loader_configure,
                                     .fill = loader_fill,
                                     .process = loader_process,
                                     .stats = loader_stats,
                                     .close = loader_close};
