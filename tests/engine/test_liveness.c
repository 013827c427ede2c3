/* SPDX-License-Identifier: MIT
 * Who is taken for hanging, by a clock of the test's own: liveness_look over real rings and status pages, and children that only
 * note that they were killed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "coordinator/child.h"
#include "coordinator/segments.h"
#include "coordinator/slots.h"
#include "coordinator/supervise_impl.h"
#include "proto/config.h"
#include "proto/status.h"
#include "tests/engine/ring_world.h"

#define TICK UINT64_C(250000000)
#define SECOND UINT64_C(1000000000)

/* In place of a process; child.c is not linked. */
struct child {
    struct err why; /* code 0: it lives */
};

int child_pid(const struct child *c)
{
    (void)c;
    return 1;
}

void child_kill(struct child *c, const struct err *why)
{
    c->why = *why;
}

int child_send(struct child *c, const struct msg *m, const int *fds, int n_fds, struct err *err)
{
    (void)c, (void)m, (void)fds, (void)n_fds, (void)err;
    return 0;
}

struct world {
    struct supervise s;
    struct child children[MSG_ROLES];
    struct side sides[MSG_ROLES];
    uint32_t in_flight, done;
    uint64_t now;
};

static struct config config = {.heartbeat_s = 5, .deadlines = true};

static uint32_t count(void *ctx, uint32_t *ret_done)
{
    struct world *w = ctx;
    *ret_done = w->done;
    return w->in_flight;
}

static void world_open(struct world *w)
{
    memset(w, 0, sizeof(*w));
    w->now = 1000 * SECOND;
    w->s.o = (struct supervise_options){.config = &config, .plan = &ring_world_plan, .in_flight = count, .ctx = w};
    w->s.watched_ns = w->now;
    w->s.segments = segments_open();
    w->s.slots = slots_open();
    w->s.rings = ring_world_open(w->sides);
    for (int i = 0; i < MSG_ROLES; i++) {
        struct stage *st = &w->s.stages[i];
        int fd = status_make(NULL);
        *st = (struct stage){.owner = &w->s,
                             .role = (enum msg_role)i,
                             .child = &w->children[i],
                             .pid = 1,
                             .ready = true,
                             .lived = true,
                             .segments_known = true};
        assert_int_equal(status_map(fd, &st->page, NULL), 0);
        close(fd);
    }
}

static void world_close(struct world *w)
{
    for (int i = 0; i < MSG_ROLES; i++)
        status_unmap(w->s.stages[i].page);
    ring_world_close(w->s.rings, w->sides);
    segments_close(w->s.segments);
    slots_close(w->s.slots);
}

static void look(struct world *w, uint64_t seconds)
{
    for (uint64_t end = w->now + seconds * SECOND; w->now < end; w->now += TICK)
        liveness_look(&w->s, w->now);
}

static void expect_all_live(const struct world *w)
{
    for (int i = 0; i < MSG_ROLES; i++)
        assert_int_equal(w->children[i].why.code, 0);
}

/* A chunk for npu_worker, which has not taken it. */
static void begin_chunk(struct world *w)
{
    w->in_flight = 1;
    ring_put(w->sides[MSG_ROLE_LOADER].output[0]);
}

/* It was taken. */
static void pass_on(struct world *w)
{
    ring_put(w->sides[MSG_ROLE_NPU].output[0]);
    ring_take(w->sides[MSG_ROLE_GPU].input[0]);
    ring_put(w->sides[MSG_ROLE_GPU].output[1]);
    ring_take(rings_output(w->s.rings));
    w->in_flight = 0;
    w->done++;
}

static void test_idle_too_long(void **state)
{
    struct world w;
    (void)state;
    world_open(&w);
    begin_chunk(&w);
    look(&w, 7);
    expect_all_live(&w);
    look(&w, 1);
    assert_non_null(strstr(w.children[MSG_ROLE_NPU].why.text, "waits for a chunk that is there for 7."));
    assert_int_equal(w.children[MSG_ROLE_LOADER].why.code, 0);
    assert_int_equal(w.children[MSG_ROLE_GPU].why.code, 0);
    world_close(&w);
}

static void test_lost(void **state)
{
    struct world w;
    (void)state;
    world_open(&w);
    begin_chunk(&w);
    ring_take(w.sides[MSG_ROLE_NPU].input[1]);
    look(&w, 2);
    expect_all_live(&w);
    look(&w, 1);
    assert_non_null(strstr(w.children[MSG_ROLE_NPU].why.text, "lost 1 chunk: it took 1 and passed 0 on"));
    world_close(&w);
}

/* What was seen of one chunk is no beginning for the next one, however long nothing was asked for in between. */
static void test_pause_between_chunks(void **state)
{
    struct world w;
    (void)state;
    world_open(&w);
    for (int i = 0; i < 4; i++) {
        bool late = i < 2; /* looked at before it is taken, or before it is passed on */
        begin_chunk(&w);
        if (late)
            look(&w, 1);
        ring_take(w.sides[MSG_ROLE_NPU].input[1]);
        if (!late)
            look(&w, 1);
        pass_on(&w);
        look(&w, 100);
    }
    expect_all_live(&w);
    world_close(&w);
}

/* Each time that somebody looks, the next chunk waits already: a machine with much to do. */
static void test_always_one_waiting(void **state)
{
    struct world w;
    (void)state;
    world_open(&w);
    begin_chunk(&w);
    for (int i = 0; i < 100; i++) {
        begin_chunk(&w);
        look(&w, 1);
        ring_take(w.sides[MSG_ROLE_NPU].input[1]);
        pass_on(&w);
        w.in_flight = 1;
    }
    expect_all_live(&w);
    look(&w, 8); /* and this is none */
    assert_non_null(strstr(w.children[MSG_ROLE_NPU].why.text, "waits for a chunk that is there for 7."));
    world_close(&w);
}

/* This process itself did not run for a while: nobody else is to blame. */
static void test_late_itself(void **state)
{
    struct world w;
    (void)state;
    world_open(&w);
    begin_chunk(&w);
    look(&w, 6);
    w.now += 100 * SECOND;
    look(&w, 7);
    expect_all_live(&w);
    look(&w, 1);
    assert_int_not_equal(w.children[MSG_ROLE_NPU].why.code, 0);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_idle_too_long), cmocka_unit_test(test_lost),
                                       cmocka_unit_test(test_pause_between_chunks), cmocka_unit_test(test_always_one_waiting),
                                       cmocka_unit_test(test_late_itself)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
