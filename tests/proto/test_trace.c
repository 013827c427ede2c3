/* SPDX-License-Identifier: MIT
 * Lanes of events: order across many wraps, what is dropped when nobody reads, a writer that dies or lies, two threads at once
 * (under TSan too), and that a reader is never told what is no event. */
#include "tests/proto/proto_test.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/wait.h>

#include "proto/shm.h"
#include "proto/trace.h"

#define DATA_ROOM 16384u /* layout of proto/trace.c: docs/PROTOCOL.md */
#define FILL_ROOM 256u
#define LANE_LINES 128u
#define HEAD_OFFSET(lane) (64u + (lane)*LANE_LINES)
#define EVENTS_OFFSET 4096u

struct pair {
    int fd;
    struct trace *writer, *reader;
};

static void pair_open(struct pair *p)
{
    p->fd = trace_make(NULL);
    assert_true(p->fd >= 0);
    assert_ok(trace_map(p->fd, &p->writer, err));
    assert_ok(trace_map(p->fd, &p->reader, err));
}

static void pair_close(struct pair *p)
{
    trace_unmap(p->writer);
    trace_unmap(p->reader);
    close(p->fd);
}

static struct trace_event number(uint64_t n)
{
    return (struct trace_event){.start_ns = n, .end_ns = n + 1, .id = ~n, .kind = TRACE_CHUNK, .layer = (uint16_t)n};
}

static void assert_number(const struct trace_event *e, uint64_t n)
{
    assert_int_equal(e->start_ns, n);
    assert_int_equal(e->end_ns, n + 1);
    assert_int_equal(e->id, ~n);
    assert_int_equal(e->layer, (uint16_t)n);
}

static void test_order_and_wrap(void **state)
{
    (void)state;
    struct pair p;
    struct trace_event e;
    uint64_t put = 0, taken = 0;
    pair_open(&p);
    assert_false(trace_take(p.reader, TRACE_DATA, &e));
    for (uint32_t round = 0; round < 40; round++) {
        uint32_t n = round % 3 == 2 ? DATA_ROOM : 1 + round * 97;
        for (uint32_t i = 0; i < n; i++) {
            e = number(put++);
            trace_put(p.writer, TRACE_DATA, &e);
        }
        while (trace_take(p.reader, TRACE_DATA, &e))
            assert_number(&e, taken++);
        assert_int_equal(taken, put);
        assert_int_equal(trace_lost(p.reader, TRACE_DATA), 0);
    }
    for (int lane = TRACE_DEVICE; lane < TRACE_LANES; lane++)
        assert_false(trace_take(p.reader, (enum trace_lane)lane, &e));
    pair_close(&p);
}

/* The oldest stay, the newest are dropped, and the reader is told how many, once. */
static void test_overflow(void **state)
{
    (void)state;
    struct pair p;
    struct trace_event e;
    pair_open(&p);
    enum trace_lane last = TRACE_LANES - 1;
    for (uint64_t i = 0; i < FILL_ROOM + 7; i++) {
        e = number(i);
        trace_put(p.writer, last, &e);
        trace_put(p.writer, TRACE_FILL, &e);
    }
    for (uint64_t i = 0; i < FILL_ROOM; i++) {
        assert_true(trace_take(p.reader, last, &e));
        assert_number(&e, i);
    }
    assert_false(trace_take(p.reader, last, &e));
    assert_int_equal(trace_lost(p.reader, last), 7);
    assert_int_equal(trace_lost(p.reader, last), 0);
    e = number(1000);
    trace_put(p.writer, last, &e);
    assert_true(trace_take(p.reader, last, &e));
    assert_number(&e, 1000);
    assert_int_equal(trace_lost(p.reader, TRACE_FILL), 7);
    assert_true(trace_take(p.reader, TRACE_FILL, &e));
    assert_number(&e, 0);
    pair_close(&p);
}

/* Off is a NULL pointer; a span says what the chunk at hand is. */
static void test_spans(void **state)
{
    (void)state;
    struct pair p;
    struct trace_event e;
    pair_open(&p);
    assert_int_equal(trace_now(NULL), 0);
    trace_span(NULL, TRACE_DATA, TRACE_CHUNK, 1, 2);
    trace_add(NULL, TRACE_DATA, &(struct trace_event){0});
    assert_true(trace_now(p.writer) > 0);
    trace_set_chunk(p.writer, &(struct trace_event){.id = trace_flow(3, (UINT64_C(1) << 32) + 7), .layer = 5, .tokens = 9});
    trace_span(p.writer, TRACE_DEVICE, TRACE_DEVICE_RUN, 10, 20);
    assert_true(trace_take(p.reader, TRACE_DEVICE, &e));
    assert_int_equal(e.kind, TRACE_DEVICE_RUN);
    assert_int_equal(e.id, (UINT64_C(3) << 32) + 7);
    assert_int_equal(e.layer, 5);
    assert_int_equal(e.tokens, 9);
    assert_int_equal(e.end_ns - e.start_ns, 10);
    trace_unmap(NULL);
    pair_close(&p);
}

/* A writer that lies: events that are none are counted as lost, an impossible index ends the lane, and that one alone. */
static void test_hostile(void **state)
{
    (void)state;
    struct pair p;
    struct trace_event e = number(1);
    uint8_t *m;
    pair_open(&p);
    assert_ok(shm_map(p.fd, trace_bytes(), true, (void **)&m, err));
    struct trace_event *events = (struct trace_event *)(void *)(m + EVENTS_OFFSET);
    for (int i = 0; i < 4; i++)
        trace_put(p.writer, TRACE_DATA, &e);
    events[0].kind = TRACE_KINDS;
    events[1].end_ns = 0;
    events[2].kind = TRACE_NONE;
    assert_true(trace_take(p.reader, TRACE_DATA, &e));
    assert_number(&e, 1);
    assert_false(trace_take(p.reader, TRACE_DATA, &e));
    assert_int_equal(trace_lost(p.reader, TRACE_DATA), 3);
    trace_put(p.writer, TRACE_FILL, &e);
    _Atomic uint32_t *head = (_Atomic uint32_t *)(void *)(m + HEAD_OFFSET(TRACE_DATA));
    atomic_store(head, atomic_load(head) + DATA_ROOM + 1);
    for (int i = 0; i < 3; i++)
        assert_false(trace_take(p.reader, TRACE_DATA, &e));
    assert_int_equal(trace_lost(p.reader, TRACE_DATA), 1);
    trace_put(p.writer, TRACE_DATA, &e);
    assert_false(trace_take(p.reader, TRACE_DATA, &e));
    assert_true(trace_take(p.reader, TRACE_FILL, &e));
    *(uint32_t *)(void *)m = 0;
    struct trace *t;
    assert_err(trace_map(p.fd, &t, err), -EPROTO, "magic 0x0");
    shm_unmap(m, trace_bytes());
    pair_close(&p);
}

static void test_wrong_memory(void **state)
{
    (void)state;
    struct trace *t;
    auto_fd small = shm_make("test", 4096, false, NULL);
    assert_true(small >= 0);
    assert_err(trace_map(small, &t, err), -EPROTO, "trace");
}

/* What another process recorded is there after a kill, and whole. */
static void test_killed_writer(void **state)
{
    (void)state;
    struct pair p;
    struct trace_event e;
    int status, ready[2];
    char c;
    pair_open(&p);
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        for (uint64_t n = 0;; n++) {
            e = number(n);
            trace_put(p.writer, TRACE_DATA, &e);
            if (n == 100 && write(ready[1], "x", 1) != 1)
                _exit(1);
        }
    }
    assert_int_equal(read(ready[0], &c, 1), 1);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    uint64_t n = 0;
    while (trace_take(p.reader, TRACE_DATA, &e))
        assert_number(&e, n++);
    assert_true(n > 100 && n <= DATA_ROOM);
    close(ready[0]);
    close(ready[1]);
    pair_close(&p);
}

struct race {
    struct pair p;
    _Atomic bool enough, done;
    uint64_t put;
};

static void *race_main(void *arg)
{
    struct race *r = arg;
    for (; !atomic_load(&r->enough); r->put++) {
        struct trace_event e = number(r->put);
        trace_put(r->p.writer, TRACE_FILL, &e);
    }
    atomic_store(&r->done, true);
    return NULL;
}

/* Nothing torn, nothing twice, in order; taken and lost make what was put. */
static void test_two_threads(void **state)
{
    (void)state;
    struct race r = {0};
    struct trace_event e;
    pthread_t thread;
    uint64_t taken = 0, lost = 0, next = 0;
    pair_open(&r.p);
    assert_int_equal(pthread_create(&thread, NULL, race_main, &r), 0);
    for (bool last = false;;) {
        while (trace_take(r.p.reader, TRACE_FILL, &e)) {
            assert_true(e.start_ns >= next);
            assert_number(&e, e.start_ns);
            next = e.start_ns + 1;
            taken++;
        }
        if (taken > 100 * FILL_ROOM)
            atomic_store(&r.enough, true);
        lost += trace_lost(r.p.reader, TRACE_FILL);
        if (last)
            break;
        last = atomic_load(&r.done);
    }
    pthread_join(thread, NULL);
    assert_int_equal(taken + lost, r.put);
    pair_close(&r.p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FD_TEST(test_order_and_wrap), FD_TEST(test_overflow),      FD_TEST(test_spans),       FD_TEST(test_hostile),
        FD_TEST(test_wrong_memory),   FD_TEST(test_killed_writer), FD_TEST(test_two_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
