/* SPDX-License-Identifier: MIT
 * Segments that this stage fills (the loader): a queue of memfds, filled on libuv's worker threads, sealed, reported. Two are given
 * to the stage at once, so that it may begin the second while it ends the first. Everything but fill_work runs on the main thread.
 *
 * A slot may be asked for again under the number of a request that was heard already, by somebody who waits for the answer. What is
 * filled then is not touched again, since it may be in use: it is the answer that is given again. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "proto/conn.h"
#include "proto/shm.h"
#include "proto/stage_impl.h"
#include "proto/util.h"

struct fill_job {
    uv_work_t work;
    struct fill_job *next;
    struct stage_io *io;
    struct stage_fill what;
    int fd, result;
    bool begun;
    struct err err;
};

#define FILLING_MAX 2

static void fill_work(uv_work_t *w)
{
    struct fill_job *j = w->data;
    const struct stage_fill *f = &j->what;
    j->result = j->io->ops->fill(j->io->state, f->kind, f->layer, f->slot, j->fd, f->bytes, &j->err);
    if (j->result == 0 && f->slot == STAGE_NO_SLOT)
        j->result = shm_seal_write(j->fd, &j->err);
}

static void fill_next(struct stage_io *io);

static int report(struct stage_io *io, const struct stage_fill *f, struct err *err)
{
    struct msg m = {.type = MSG_TYPE_segment_filled, .segment_filled = {.kind = f->kind, .layer = f->layer}};
    if (f->slot != STAGE_NO_SLOT) {
        m.type = MSG_TYPE_slot_filled;
        m.slot_filled = (struct msg_slot_filled){.kind = f->kind, .slot = f->slot, .layer = f->layer, .serial = f->serial};
        io->slots_filled[f->kind][f->slot] = f->serial;
    }
    return conn_send(io->conn, &m, NULL, 0, err);
}

static void fill_after(uv_work_t *w, int status)
{
    struct fill_job *j = w->data, **p;
    struct stage_io *io = j->io;
    for (p = &io->jobs; *p != j; p = &(*p)->next)
        ;
    *p = j->next;
    if (!*p)
        io->jobs_end = p;
    io->n_filling--;
    struct err err = {0};
    int r = status < 0 ? err_set(&err, status, "fill: %s", uv_strerror(status)) : j->result;
    if (status == 0 && r < 0)
        err = j->err;
    if (r == 0 && !io->finished)
        r = report(io, &j->what, &err);
    close(j->fd);
    free(j);
    if (io->finished)
        return;
    if (r < 0)
        stage_fail(io, &err);
    else
        fill_next(io);
}

/* A slot is filled by one at a time, in the order of the requests. */
static bool has_its_turn(const struct stage_io *io, const struct fill_job *j)
{
    for (const struct fill_job *i = io->jobs; i != j; i = i->next) {
        if (i->what.slot != STAGE_NO_SLOT && i->what.slot == j->what.slot && i->what.kind == j->what.kind)
            return false;
    }
    return true;
}

static void fill_next(struct stage_io *io)
{
    for (struct fill_job *j = io->jobs; j && io->n_filling < FILLING_MAX; j = j->next) {
        if (j->begun || !has_its_turn(io, j))
            continue;
        j->begun = true;
        io->n_filling++;
        uv_queue_work(&io->loop, &j->work, fill_work, fill_after);
    }
}

/* It is in the queue, or under way. */
static bool is_known(const struct stage_io *io, const struct stage_fill *f)
{
    for (const struct fill_job *j = io->jobs; j; j = j->next) {
        if (j->what.kind == f->kind && j->what.slot == f->slot && j->what.serial == f->serial)
            return true;
    }
    return false;
}

int stage_fill_add(struct stage_io *io, const struct stage_fill *what, int *fd, struct err *err)
{
    if (!io->configured || !io->ops->fill)
        return err_set(err, -EPROTO, "unexpected SEGMENT_FILL");
    if (what->slot != STAGE_NO_SLOT && is_known(io, what))
        return 0;
    if (what->slot != STAGE_NO_SLOT && what->serial && what->serial == io->slots_filled[what->kind][what->slot])
        return report(io, what, err);
    struct fill_job *j = calloc(1, sizeof(*j));
    if (!j)
        return err_set(err, -ENOMEM, "SEGMENT_FILL: out of memory");
    j->io = io;
    j->what = *what;
    j->fd = take_fd(fd);
    j->work.data = j;
    *io->jobs_end = j;
    io->jobs_end = &j->next;
    fill_next(io);
    return 0;
}

void stage_fill_close(struct stage_io *io)
{
    while (io->jobs) {
        struct fill_job *j = io->jobs;
        io->jobs = j->next;
        close(j->fd);
        free(j);
    }
}
