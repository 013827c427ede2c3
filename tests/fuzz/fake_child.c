/* SPDX-License-Identifier: MIT
 * Owns the mappings of what it was sent, until it ends. One at a time of each role. Thread: the caller's. */
#include "tests/fuzz/fake_child.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct child *fake_children[MSG_ROLES];

int child_path(const char *stage_dir, const char *name, char *buf, size_t size, struct err *err)
{
    (void)err;
    return snprintf(buf, size, "%s/%s", stage_dir ? stage_dir : ".", name) < 0 ? -EINVAL : 0;
}

int child_open(uv_loop_t *loop, enum msg_role role, const char *stage_dir, bool spawn, const struct child_handlers *h, void *ctx,
               struct child **ret, struct err *err)
{
    (void)stage_dir, (void)spawn;
    struct child *c = calloc(1, sizeof(*c));
    if (!c)
        return err_set(err, -ENOMEM, "out of memory");
    *c = (struct child){.loop = loop, .role = role, .h = *h, .ctx = ctx};
    *ret = fake_children[role] = c;
    return 0;
}

int child_start(struct child *c, struct err *err)
{
    (void)err;
    if (c->running)
        abort();
    c->running = true;
    c->silent = c->mute = c->told_pause = c->told_start = false;
    c->why.code = 0;
    c->starts++;
    return 0;
}

static void unmap(struct child *c, int direction, int index)
{
    if (c->rings[direction][index].p)
        munmap(c->rings[direction][index].p, c->rings[direction][index].bytes);
    c->rings[direction][index].p = NULL;
}

static void keep_ring(struct child *c, const struct msg_attach_ring *m, int fd)
{
    struct stat st;
    if (m->direction > 1 || m->index > 1 || fstat(fd, &st) < 0 || st.st_size > FAKE_MAX_BYTES)
        abort();
    unmap(c, (int)m->direction, (int)m->index);
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        abort();
    c->rings[m->direction][m->index].p = p;
    c->rings[m->direction][m->index].bytes = (size_t)st.st_size;
}

int child_send(struct child *c, const struct msg *m, const int *fds, int n_fds, struct err *err)
{
    uint8_t *body;
    size_t n;
    if (!c->running || c->why.code)
        return 0;
    if (n_fds != msg_n_fds(m->type))
        abort();
    for (int i = 0; i < n_fds; i++) {
        struct stat st;
        if (fstat(fds[i], &st) < 0)
            abort();
    }
    int r = msg_encode(m, &body, &n, err);
    if (r < 0)
        abort();
    free(body);
    if (m->type == MSG_TYPE_attach_ring)
        keep_ring(c, &m->attach_ring, fds[0]);
    if (m->type == MSG_TYPE_configure) {
        void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
        if (p == MAP_FAILED || c->page)
            abort();
        c->page = p;
        c->epoch = m->configure.epoch;
    }
    if (m->type == MSG_TYPE_pause) {
        c->epoch = m->pause.epoch;
        c->told_pause = true;
        c->told_start = false;
    }
    c->told_start |= m->type == MSG_TYPE_start;
    return 0;
}

void child_kill(struct child *c, const struct err *why)
{
    if (!why->code || !why->text[0])
        abort();
    if (c->running && !c->why.code)
        c->why = *why;
}

void fake_child_say(struct child *c, const struct msg *m, int *fds)
{
    struct err err = {0};
    if (!c->running || c->why.code)
        return;
    if (c->h.message(c->ctx, m, fds, &err) < 0)
        child_kill(c, &err);
}

void fake_child_end(struct child *c, int signal)
{
    struct err why = c->why;
    if (!c->running)
        return;
    c->running = false;
    if (c->page)
        munmap(c->page, 4096);
    c->page = NULL;
    for (int i = 0; i < 4; i++)
        unmap(c, i / 2, i % 2);
    if (why.code)
        signal = 0;
    else
        err_set(&why, -ECHILD, "ended by signal %d", signal);
    c->h.ended(c->ctx, &why, signal);
}

int child_attach(struct child *c, struct conn *conn, int pid, const struct msg *hello, struct err *err)
{
    (void)c, (void)conn, (void)pid, (void)hello;
    return err_set(err, -ENOTSUP, "none of these is started by others");
}

bool child_spawned(const struct child *c)
{
    (void)c;
    return true;
}

bool child_running(const struct child *c)
{
    return c->running;
}

bool child_connected(const struct child *c)
{
    return c->running;
}

int child_pid(const struct child *c)
{
    return c->running ? 1000 + (int)c->role : 0;
}

void child_close(struct child *c)
{
    if (!c)
        return;
    for (int i = 0; i < 4; i++)
        unmap(c, i / 2, i % 2);
    fake_children[c->role] = NULL;
    free(c);
}
