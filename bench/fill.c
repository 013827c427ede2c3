/* SPDX-License-Identifier: MIT
 * How fast segments are filled from a model file, beside plain O_DIRECT reads of the same file: both in turns, each over the same
 * layers, so that a neighbour's load meets both. Segments go into two slots, as when weights are streamed. Plain reads of which
 * nobody looks at a byte are more than anybody can use: the third figure is of readers that load one word of every line. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "loader/fill.h"
#include "model/gguf.h"
#include "model/segment.h"
#include "proto/budget.h"
#include "proto/err.h"
#include "proto/io.h"
#include "proto/shm.h"
#include "proto/util.h"

#define SLOTS 2
#define READ_BYTES ((size_t)2 << 20)
#define READERS 3

struct bench {
    struct gguf *gguf;
    struct hparams h;
    struct fill *fill;
    void *slots[SLOTS];
    size_t slot_bytes;
    uint64_t begin, end; /* of the file: what plain reads read */
    _Atomic uint64_t at, sum;
    int fd;
    bool look; /* plain reads: at every line */
};

static int layout(const struct bench *b, enum segment_kind kind, uint32_t layer, struct segment_layout *ret, struct err *err)
{
    uint8_t types[SEGMENT_MAX_TENSORS];
    int r = segment_types(b->gguf, kind, layer, types, err);
    return r < 0 ? r : segment_layout_init(ret, &b->h, kind, types, err);
}

static void *read_plain(void *arg)
{
    struct bench *b = arg;
    uint64_t *buf = aligned_alloc(READ_BYTES, READ_BYTES), sum = 0;
    madvise(buf, READ_BYTES, MADV_HUGEPAGE); /* one piece of memory for the disk: twice as fast here */
    for (;;) {
        uint64_t at = atomic_fetch_add(&b->at, READ_BYTES);
        if (at + READ_BYTES > b->end || pread(b->fd, buf, READ_BYTES, (off_t)at) != (ssize_t)READ_BYTES)
            break;
        for (size_t i = 0; b->look && i < READ_BYTES / sizeof(*buf); i += 64 / sizeof(*buf))
            sum += buf[i];
    }
    atomic_fetch_add(&b->sum, sum);
    free(buf);
    return NULL;
}

static double plain(struct bench *b, bool look)
{
    pthread_t threads[READERS];
    b->look = look;
    uint64_t start = util_now_ns();
    atomic_store(&b->at, b->begin);
    for (int i = 0; i < READERS; i++)
        pthread_create(&threads[i], NULL, read_plain, b);
    for (int i = 0; i < READERS; i++)
        pthread_join(threads[i], NULL);
    return (double)(b->end - b->begin) / ((double)(util_now_ns() - start) / 1e9) / 1e6;
}

struct half { /* the segments that go into one slot */
    struct bench *b;
    uint32_t slot;
    int result;
    struct err err;
};

static void *fill_half(void *arg)
{
    struct half *f = arg;
    for (uint32_t i = f->slot; f->result == 0 && i < 2 * f->b->h.n_layers; i += SLOTS) {
        struct segment_layout l;
        f->result = layout(f->b, i % 2 ? SEGMENT_FFN : SEGMENT_ATTN, i / 2, &l, &f->err);
        if (f->result == 0)
            f->result = fill_run(f->b->fill, i / 2, &l, f->b->slots[f->slot], &f->err);
    }
    return NULL;
}

static int filled(struct bench *b, double *ret, struct err *err)
{
    pthread_t threads[SLOTS];
    struct half halves[SLOTS] = {{0}};
    uint64_t bytes = fill_bytes_read(b->fill), start = util_now_ns();
    for (uint32_t i = 0; i < SLOTS; i++) {
        halves[i] = (struct half){.b = b, .slot = i};
        pthread_create(&threads[i], NULL, fill_half, &halves[i]);
    }
    int r = 0;
    for (uint32_t i = 0; i < SLOTS; i++) {
        pthread_join(threads[i], NULL);
        if (halves[i].result < 0)
            r = err_set(err, halves[i].result, "%s", halves[i].err.text);
    }
    *ret = (double)(fill_bytes_read(b->fill) - bytes) / ((double)(util_now_ns() - start) / 1e9) / 1e6;
    return r;
}

static int prepare(struct bench *b, const char *path, struct err *err)
{
    uint64_t least = 0;
    int r = gguf_open(path, true, &b->gguf, err);
    if (r == 0)
        r = gemma3_hparams(b->gguf, &b->h, err);
    for (uint32_t i = 0; r == 0 && i < 2 * b->h.n_layers; i++) {
        struct segment_layout l;
        r = layout(b, i % 2 ? SEGMENT_FFN : SEGMENT_ATTN, i / 2, &l, err);
        if (r == 0) {
            least = MAX(least, segment_bounce_min(&l));
            b->slot_bytes = MAX(b->slot_bytes, l.bytes);
        }
    }
    for (uint32_t i = 0; r == 0 && i < SLOTS; i++) {
        auto_fd fd = shm_make("bench-slot", b->slot_bytes, true, err);
        r = fd < 0 ? fd : shm_map(fd, b->slot_bytes, true, &b->slots[i], err);
    }
    static struct budget budget;
    budget_init(&budget, "bench_fill", 0);
    if (r == 0)
        r = fill_open(b->gguf, &budget, least, true, &b->fill, err);
    if (r < 0)
        return r;
    b->end = io_size(gguf_io(b->gguf, 0));
    b->begin = b->end / 8 / READ_BYTES * READ_BYTES;
    b->fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    return b->fd < 0 ? err_set_errno(err, -errno, "'%s' with O_DIRECT", path) : 0;
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct err err = {0};
    double best[3] = {0};
    int rounds = argc > 2 ? atoi(argv[2]) : 4;
    if (argc < 2 || rounds < 1) {
        fprintf(stderr, "usage: bench_fill MODEL.gguf [ROUNDS]\n");
        return 2;
    }
    int r = prepare(&b, argv[1], &err);
    for (int i = 0; r == 0 && i < rounds; i++) {
        double f = 0, p = plain(&b, false), l = plain(&b, true);
        r = filled(&b, &f, &err);
        printf("round %d: plain reads %.0f MB/s, looked at %.0f, segments filled %.0f (%.0f%% of plain reads)%s\n", i, p, l, f,
               100 * f / p, i == 0 ? ", checksums compared if there are some" : "");
        best[0] = MAX(best[0], p);
        best[1] = MAX(best[1], l);
        best[2] = MAX(best[2], f);
    }
    if (r < 0)
        fprintf(stderr, "bench_fill: %s\n", err.text);
    else
        printf("best: plain reads %.0f MB/s, looked at %.0f, segments filled %.0f (%.0f%%)\n", best[0], best[1], best[2],
               100 * best[2] / best[0]);
    fill_close(b.fill);
    gguf_close(b.gguf);
    return r < 0;
}
