/* SPDX-License-Identifier: MIT
 * All commands share one set of time stamps, since one runs at a time and is read before the next: command c writes numbers 0 (its
 * start) to n (the end of its kernel n). What each mark of each command stands for is kept beside. Owns the marks, the sums and,
 * while it is timed, the copy's kernel and buffers; never the commands. */
#include "gpu_worker/vk_profile.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "proto/budget.h"
#include "proto/err.h"
#include "proto/util.h"

#define COPY_BYTES (UINT64_C(256) << 20)    /* a buffer; more than caches of GPUs hold */
#define COPY_BYTES_CPU (UINT64_C(32) << 20) /* where the processor computes */
#define COPY_BYTES_LEAST (UINT64_C(256) << 10)
#define COPY_BYTES_THREAD 64u /* shaders/copy.comp */
#define COPY_GROUPS_MAX 65535u
#define COPY_RUNS 8 /* the first two touch the memory */

static const char *const names[VK_PROFILE_KERNELS] = {"norm",  "gate_up", "gate", "up",          "geglu",
                                                      "scale", "down",    "post", "head_matrix", "copies"};

struct mark {
    enum vk_profile_kernel kernel;
    struct vk_profile_work work;
};

struct recording {
    VkCommandBuffer cmd;
    struct mark *marks;
    size_t room;
    uint32_t n;
};

struct sum {
    uint64_t calls;
    double seconds, least;
    struct vk_profile_work work;
};

struct vk_profile {
    const struct vk_device *device;
    struct vk_queue *queue;
    uint32_t most; /* marks of a command; 0: the device has no time stamps */
    struct recording *recordings;
    size_t n_recordings, room_recordings, current; /* current: what is being recorded */
    struct sum sums[VK_PROFILE_KERNELS];
    uint64_t runs, lost; /* lost: kernels without a time of their own */
    double wall;         /* seconds from submit to wake */
};

/* What the device's memory gives. */
struct rate {
    uint64_t bytes; /* of a buffer; 0: not measured */
    bool small;     /* caches may hold it */
    double best;    /* bytes a second, read and written */
};

int vk_profile_open(const struct vk_device *d, struct vk_queue *q, uint32_t marks, struct vk_profile **ret, struct err *err)
{
    struct vk_profile *p = calloc(1, sizeof(*p));
    if (!p)
        return err_set(err, -ENOMEM, "vulkan: out of memory");
    p->device = d;
    p->queue = q;
    p->most = vk_has(d, VK_FEATURE_TIMESTAMPS) ? marks : 0;
    int r = p->most ? vk_stamps_make(q, p->most + 1, err) : 0;
    if (r < 0) {
        vk_profile_close(p);
        return r;
    }
    *ret = p;
    return 0;
}

void vk_profile_close(struct vk_profile *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n_recordings; i++)
        free(p->recordings[i].marks);
    free(p->recordings);
    free(p);
}

static bool make_room(void **array, size_t *room, size_t n, size_t size)
{
    if (n < *room)
        return true;
    size_t more = MAX(2 * *room, (size_t)64);
    void *p = realloc(*array, more * size);
    if (!p)
        return false;
    *array = p;
    *room = more;
    return true;
}

/* n_recordings: it is not there. */
static size_t find(const struct vk_profile *p, VkCommandBuffer cmd)
{
    size_t i = 0;
    while (i < p->n_recordings && p->recordings[i].cmd != cmd)
        i++;
    return i;
}

int vk_profile_begin(struct vk_profile *p, VkCommandBuffer cmd, struct err *err)
{
    if (!p || !p->most)
        return 0;
    p->current = find(p, cmd);
    if (p->current == p->n_recordings) {
        if (!make_room((void **)&p->recordings, &p->room_recordings, p->n_recordings, sizeof(*p->recordings)))
            return err_set(err, -ENOMEM, "vulkan: out of memory");
        p->recordings[p->n_recordings++] = (struct recording){.cmd = cmd};
    }
    p->recordings[p->current].n = 0;
    vk_stamps_reset(p->queue, cmd);
    vk_stamp(p->queue, cmd, 0);
    return 0;
}

void vk_profile_mark(struct vk_profile *p, VkCommandBuffer cmd, enum vk_profile_kernel kernel, const struct vk_profile_work *w)
{
    struct recording *c = p && p->n_recordings ? &p->recordings[p->current] : NULL;
    if (!c || c->cmd != cmd)
        return;
    if (c->n == p->most || !make_room((void **)&c->marks, &c->room, c->n, sizeof(*c->marks))) {
        p->lost++;
        return;
    }
    c->marks[c->n++] = (struct mark){kernel, *w};
    vk_stamp(p->queue, cmd, c->n);
}

static void add(struct vk_profile *p, const struct recording *c)
{
    for (uint32_t i = 0; i < c->n; i++) {
        const struct mark *m = &c->marks[i];
        struct sum *s = &p->sums[m->kernel];
        double seconds = vk_stamp_seconds(p->queue, i, i + 1);
        if (seconds < 0) {
            p->lost++;
            continue;
        }
        s->least = s->calls ? MIN(s->least, seconds) : seconds;
        s->seconds += seconds;
        s->calls++;
        s->work.weights += m->work.weights;
        s->work.rows += m->work.rows;
        s->work.flops += m->work.flops;
    }
}

int vk_profile_run(struct vk_profile *p, struct vk_queue *q, VkCommandBuffer cmd, struct err *err)
{
    uint64_t begin = p ? util_now_ns() : 0;
    int r = vk_run(q, cmd, err);
    if (!p || r < 0)
        return r;
    p->wall += (double)(util_now_ns() - begin) * 1e-9;
    p->runs++;
    size_t i = find(p, cmd);
    if (i < p->n_recordings)
        add(p, &p->recordings[i]);
    return 0;
}

static int record_copy(struct vk_profile *p, struct vk_recorder *rec, uint32_t number, const struct vk_kernel *k,
                       const struct vk_buffer *from, const struct vk_buffer *to, uint32_t groups, VkCommandBuffer *ret,
                       struct err *err)
{
    const struct vk_range ranges[] = {{from->buffer, 0, 0}, {to->buffer, 0, 0}};
    int r = vk_begin(p->queue, rec, number, ret, err);
    if (r < 0)
        return r;
    vk_stamps_reset(p->queue, *ret);
    vk_stamp(p->queue, *ret, 0);
    r = vk_dispatch(p->queue, *ret, k, ranges, NULL, groups, 1, 1, err);
    vk_stamp(p->queue, *ret, 1);
    return r < 0 ? r : vk_end(p->queue, *ret, err);
}

/* There and back, so that both buffers were written before they are read. */
static int time_copy(struct vk_profile *p, const struct vk_kernel *k, const struct vk_buffer b[2], uint32_t threads,
                     struct rate *rate, struct err *err)
{
    VkCommandBuffer cmds[2];
    struct vk_recorder *rec = NULL;
    uint64_t group = (uint64_t)threads * COPY_BYTES_THREAD, groups = MIN(b[0].bytes / group, (uint64_t)COPY_GROUPS_MAX);
    int r = vk_recorder_open(p->queue, 2, &rec, err);
    if (r == 0)
        r = record_copy(p, rec, 0, k, &b[0], &b[1], (uint32_t)groups, &cmds[0], err);
    if (r == 0)
        r = record_copy(p, rec, 1, k, &b[1], &b[0], (uint32_t)groups, &cmds[1], err);
    for (int i = 0; r == 0 && i < COPY_RUNS; i++) {
        r = vk_run(p->queue, cmds[i % 2], err);
        double seconds = vk_stamp_seconds(p->queue, 0, 1);
        if (r == 0 && i >= 2 && seconds > 0)
            rate->best = MAX(rate->best, 2.0 * (double)(groups * group) / seconds);
    }
    rate->bytes = groups * group;
    if (vk_idle(p->queue))
        vk_recorder_close(p->queue, rec);
    return r;
}

/* Under a cap no more than buffers held before: what the plan leaves besides belongs to libraries and driver, and the kernel would
 * end the process. */
static uint64_t copy_bytes_most(const struct vk_device *d, const struct vk_memory *m)
{
    uint64_t most = MIN(d->max_range, d->max_bytes);
    return d->unified && m->budget->limit ? MIN(most, (m->peak - m->used) / 2) : most;
}

static int measure_copy(struct vk_profile *p, struct vk_memory *m, struct vk_cache *c, struct rate *rate, struct err *err)
{
    const struct vk_device *d = p->device;
    uint32_t threads = MIN(256u, d->max_threads / 32 * 32);
    uint64_t want = d->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU ? COPY_BYTES_CPU : COPY_BYTES;
    struct vk_buffer b[2] = {0};
    struct vk_kernel k = {0};
    int r = -ENOMEM;
    for (uint64_t bytes = MIN(want, copy_bytes_most(d, m)); r == -ENOMEM && bytes >= COPY_BYTES_LEAST; bytes /= 2) {
        r = vk_buffer_make(m, VK_MEMORY_DEVICE, bytes, "a copy", &b[0], err);
        if (r == 0)
            r = vk_buffer_make(m, VK_MEMORY_DEVICE, bytes, "a copy", &b[1], err);
        if (r < 0)
            vk_buffer_free(m, &b[0]);
    }
    rate->small = b[0].bytes < want;
    if (r == 0)
        r = vk_kernel_make(d, c, "copy", 2, 0, &threads, 1, 0, &k, err);
    if (r == 0)
        r = time_copy(p, &k, b, threads, rate, err);
    if (vk_idle(p->queue)) {
        vk_kernel_free(d, &k);
        vk_buffer_free(m, &b[0]);
        vk_buffer_free(m, &b[1]);
    }
    return r;
}

static void print_kernel(const char *name, const struct sum *s, const struct rate *rate, vk_profile_line_fn line, void *ctx)
{
    char text[200], share[16] = "-", flops[16] = "-";
    double bytes = s->seconds > 0 ? (double)(s->work.weights + s->work.rows) / s->seconds : 0;
    if (rate->best > 0)
        snprintf(share, sizeof(share), "%.1f%%", 100 * bytes / rate->best);
    if (s->work.flops && s->seconds > 0)
        snprintf(flops, sizeof(flops), "%.1f", (double)s->work.flops / s->seconds * 1e-9);
    snprintf(text, sizeof(text), "%-11s %7llu %12.1f %10.2f %10.2f %14llu %14llu %8.2f %8s %9s", name, (unsigned long long)s->calls,
             s->seconds * 1e6, s->seconds * 1e6 / (double)s->calls, s->least * 1e6, (unsigned long long)s->work.weights,
             (unsigned long long)s->work.rows, bytes * 1e-9, share, flops);
    line(ctx, text);
}

static void print_kernels(const struct vk_profile *p, const struct rate *rate, vk_profile_line_fn line, void *ctx)
{
    char text[200], bytes[16];
    snprintf(text, sizeof(text), "%-11s %7s %12s %10s %10s %14s %14s %8s %8s %9s", "kernel", "calls", "total us", "mean us",
             "least us", "weight bytes", "row bytes", "GB/s", "of copy", "GFLOP/s");
    line(ctx, text);
    for (int i = 0; i < VK_PROFILE_KERNELS; i++) {
        if (p->sums[i].calls)
            print_kernel(names[i], &p->sums[i], rate, line, ctx);
    }
    if (rate->bytes)
        snprintf(text, sizeof(text), "copy: %.2f GB/s read and written, from one buffer of %s to another%s", rate->best * 1e-9,
                 util_format_bytes(bytes, sizeof(bytes), rate->bytes),
                 rate->small ? ": limits or memory give no more, and caches may hold that" : "");
    else
        snprintf(text, sizeof(text), "copy: not measured: no memory for two buffers of %s",
                 util_format_bytes(bytes, sizeof(bytes), COPY_BYTES_LEAST));
    line(ctx, text);
}

int vk_profile_print(struct vk_profile *p, struct vk_memory *m, struct vk_cache *c, vk_profile_line_fn line, void *ctx,
                     struct err *err)
{
    char text[400];
    struct rate rate = {0};
    double device = 0;
    int r = vk_idle(p->queue) ? 0 : err_set(err, -EIO, "profile: device '%s' does not answer any more", p->device->name);
    if (r == 0 && p->most)
        r = measure_copy(p, m, c, &rate, err);
    if (r < 0 && r != -ENOMEM)
        return r;
    snprintf(text, sizeof(text), "profile of device '%s'", p->device->name);
    line(ctx, text);
    if (p->most)
        print_kernels(p, &rate, line, ctx);
    for (int i = 0; i < VK_PROFILE_KERNELS; i++)
        device += p->sums[i].seconds;
    if (p->most)
        snprintf(text, sizeof(text), "device: %.1f us of %.1f us from submit to wake (%.1f%%), %llu runs", device * 1e6,
                 p->wall * 1e6, p->wall > 0 ? 100 * device / p->wall : 0.0, (unsigned long long)p->runs);
    else
        snprintf(text, sizeof(text), "its queue has no time stamps: %.1f us from submit to wake, %llu runs", p->wall * 1e6,
                 (unsigned long long)p->runs);
    line(ctx, text);
    if (p->lost) {
        snprintf(text, sizeof(text), "%llu kernels have no time of their own", (unsigned long long)p->lost);
        line(ctx, text);
    }
    return 0;
}
