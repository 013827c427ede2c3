/* SPDX-License-Identifier: MIT
 * Owns a kernel, its instructions, its buffers, two runs, and their blocks in the pool. */
#include "npu_worker/xrt_operator.h"

#include <errno.h>
#include <stdlib.h>

#include "npu_worker/arena.h"
#include "proto/err.h"
#include "proto/trace.h"
#include "proto/util.h"

uint64_t xrt_operator_argument_bytes(const struct manifest_operator *op, enum manifest_role role)
{
    return util_round_up(manifest_bytes(op, (unsigned)manifest_argument(op, role)), XRT_DEVICE_ALIGN);
}

int xrt_operator_fixed_bytes(const struct manifest_operator *op, uint64_t *ret, struct err *err)
{
    uint32_t *words = NULL;
    size_t n = 0;
    int r = manifest_instructions(op, &words, &n, err);
    free(words);
    *ret = XRT_DEVICE_ALIGN + util_round_up(n * sizeof(*words), XRT_DEVICE_ALIGN);
    return r;
}

static int make_instructions(struct xrt_operator *x, struct err *err)
{
    uint32_t *words = NULL;
    size_t n = 0;
    int r = manifest_instructions(x->o.op, &words, &n, err);
    if (r == 0)
        r = arena_reserve(x->o.arena, ARENA_INSTRUCTIONS, n * sizeof(*words), &x->instructions_block, err);
    if (r == 0)
        r = x->o.ops->make_instructions(x->kernel, words, n, &x->instructions, err);
    free(words);
    return r;
}

int xrt_operator_open(struct xrt_operator *x, const struct xrt_operator_options *o, uint64_t buffer_bytes, struct err *err)
{
    *x = (struct xrt_operator){.o = *o, .tiles_block = OFFSETS_NONE, .instructions_block = OFFSETS_NONE};
    int r = o->ops->load_kernel(o->device, o->op->xclbin, o->op->kernel, &x->kernel, err);
    if (r == 0)
        r = make_instructions(x, err);
    return r < 0 ? r : arena_reserve(o->arena, ARENA_TILES, buffer_bytes + XRT_DEVICE_ALIGN, &x->tiles_block, err);
}

void xrt_operator_close(struct xrt_operator *x)
{
    for (int i = 0; i < 2; i++)
        x->o.ops->free_run(x->runs[i]);
    for (uint32_t i = 0; i < x->n_buffers; i++)
        x->o.ops->free_buffer(x->buffers[i]);
    x->o.ops->free_buffer(x->instructions);
    x->o.ops->free_kernel(x->kernel);
    arena_give(x->o.arena, ARENA_TILES, x->tiles_block);
    arena_give(x->o.arena, ARENA_INSTRUCTIONS, x->instructions_block);
}

int xrt_operator_make_buffer(struct xrt_operator *x, enum manifest_role role, struct xrt_buffer **ret, struct err *err)
{
    unsigned argument = (unsigned)manifest_argument(x->o.op, role);
    if (x->n_buffers == XRT_OPERATOR_BUFFERS)
        return err_set(err, -EINVAL, "operator of line %u of the manifest: more than %u buffers", x->o.op->line, x->n_buffers);
    int r = x->o.ops->make_buffer(x->kernel, argument, manifest_bytes(x->o.op, argument), ret, err);
    if (r == 0)
        x->buffers[x->n_buffers++] = *ret;
    return r;
}

int xrt_operator_make_run(struct xrt_operator *x, int which, struct xrt_buffer *const buffers[MANIFEST_ROLES], struct err *err)
{
    struct xrt_buffer *arguments[MANIFEST_ARGUMENTS_MAX];
    for (unsigned i = 0; i < x->o.op->n_arguments; i++)
        arguments[i] = buffers[x->o.op->arguments[i]];
    return x->o.ops->make_run(x->kernel, x->instructions, arguments, x->o.op->n_arguments, &x->runs[which], err);
}

static int named(const struct xrt_operator *x, int r, struct err *err)
{
    return r < 0 ? err_wrap(err, r, "%s of line %u of the manifest", manifest_kind_name(x->o.op->kind), x->o.op->line) : 0;
}

int xrt_operator_sync_part(struct xrt_operator *x, struct xrt_buffer *b, enum xrt_device_direction to, size_t offset, size_t bytes,
                           struct err *err)
{
    return named(x, x->o.ops->sync(b, to, offset, bytes, err), err);
}

int xrt_operator_sync(struct xrt_operator *x, struct xrt_buffer *b, enum manifest_role role, enum xrt_device_direction to,
                      struct err *err)
{
    return xrt_operator_sync_part(x, b, to, 0, manifest_bytes(x->o.op, (unsigned)manifest_argument(x->o.op, role)), err);
}

int xrt_operator_set(struct xrt_operator *x, int which, enum manifest_role role, struct xrt_buffer *b, struct err *err)
{
    return named(x, x->o.ops->set_argument(x->runs[which], (unsigned)manifest_argument(x->o.op, role), b, err), err);
}

int xrt_operator_start(struct xrt_operator *x, int which, struct err *err)
{
    x->started_ns[which] = trace_now(x->o.trace);
    int r = x->o.ops->start(x->runs[which], err);
    x->under_way[which] = r == 0;
    return named(x, r, err);
}

/* Runs follow one another: one that was started while another was under way began when that ended. */
int xrt_operator_wait(struct xrt_operator *x, int which, struct err *err)
{
    int r = x->o.ops->wait(x->runs[which], x->o.timeout_ms, err);
    uint64_t now = trace_now(x->o.trace);
    trace_span(x->o.trace, TRACE_DEVICE, TRACE_DEVICE_RUN, MAX(x->started_ns[which], x->ended_ns), now);
    x->ended_ns = now;
    x->under_way[which] = false;
    return named(x, r, err);
}

void xrt_operator_settle(struct xrt_operator *x)
{
    for (int which = 0; which < 2; which++) {
        struct err none = {0};
        if (x->under_way[which])
            xrt_operator_wait(x, which, &none);
    }
}
