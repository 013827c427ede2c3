/* SPDX-License-Identifier: MIT
 * Rings and bells: refused headers, wrapping indices, hostile indices, and no lost wake-up between two threads and between two
 * processes. A side may be killed at any moment: the survivor is woken by whoever poisons the ring. Waits have no timeout, so a
 * lost wake-up shows as a test that does not end (ctest's limit). */
#include "tests/proto/proto_test.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "proto/ring.h"
#include "proto/shm.h"
#include "proto/util.h"

#define HEAD_OFFSET 64 /* layout of proto/ring.c, part of the format */
#define TAIL_OFFSET 128
#define NEAR_WRAP (UINT32_MAX - 5)

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define ROUNDS 10000u
#else
#define ROUNDS 30000u
#endif

struct pair {
    int ring_fd, bell_fds[2];
    struct bell *bells[2]; /* by enum ring_side */
    struct ring *rings[2];
};

static void pair_open(struct pair *p, uint32_t n_slots, size_t slot_bytes, uint32_t index)
{
    p->ring_fd = ring_make_at("test", n_slots, slot_bytes, 7, index, NULL);
    assert_true(p->ring_fd >= 0);
    for (int i = 0; i < 2; i++) {
        p->bell_fds[i] = bell_make(NULL);
        assert_ok(bell_map(p->bell_fds[i], &p->bells[i], err));
    }
    for (int i = 0; i < 2; i++)
        assert_ok(ring_attach(p->ring_fd, (enum ring_side)i, 7, p->bells[i], p->bells[1 - i], &p->rings[i], err));
}

static void pair_close(struct pair *p)
{
    for (int i = 0; i < 2; i++) {
        ring_detach(p->rings[i]);
        bell_unmap(p->bells[i]);
        close(p->bell_fds[i]);
    }
    close(p->ring_fd);
    ring_detach(NULL);
    bell_unmap(NULL);
}

static void test_fill_and_wrap(void **state)
{
    (void)state;
    struct pair p;
    uint32_t put = 0, got = 0;
    pair_open(&p, 4, 100, NEAR_WRAP);
    assert_int_equal(ring_n_slots(p.rings[0]), 4);
    assert_int_equal(ring_slot_bytes(p.rings[1]), 4096);
    assert_null(ring_peek(p.rings[RING_CONSUMER]));
    for (int round = 0; round < 10; round++) {
        uint32_t n = 1 + (uint32_t)round % 4;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t *slot = ring_reserve(p.rings[RING_PRODUCER]);
            assert_non_null(slot);
            assert_ptr_equal(slot, ring_reserve(p.rings[RING_PRODUCER]));
            *slot = put++;
            uint32_t before = bell_read(p.bells[RING_CONSUMER]);
            ring_commit(p.rings[RING_PRODUCER]);
            assert_int_not_equal(bell_read(p.bells[RING_CONSUMER]), before);
        }
        assert_int_equal(ring_fill(p.rings[0]), n);
        assert_int_equal(ring_fill(p.rings[1]), n);
        struct ring_sight seen;
        assert_ok(ring_look(p.ring_fd, &seen, err));
        assert_int_equal(seen.fill, n);
        assert_int_equal(seen.head - seen.tail, n);
        assert_int_equal(seen.tail, NEAR_WRAP + got);
        assert_int_equal(seen.n_slots, 4);
        if (n == 4)
            assert_null(ring_reserve(p.rings[RING_PRODUCER]));
        for (uint32_t i = 0; i < n; i++) {
            uint32_t *slot = ring_peek(p.rings[RING_CONSUMER]);
            assert_non_null(slot);
            assert_int_equal(*slot, got++);
            uint32_t before = bell_read(p.bells[RING_PRODUCER]);
            ring_release(p.rings[RING_CONSUMER]);
            assert_int_not_equal(bell_read(p.bells[RING_PRODUCER]), before);
        }
        assert_null(ring_peek(p.rings[RING_CONSUMER]));
    }
    assert_int_equal(got, 23);
    pair_close(&p);
}

/* An onlooker is told at most what a ring can hold, whatever a hostile peer writes into it. */
static void test_look(void **state)
{
    (void)state;
    struct pair p;
    struct ring_sight seen;
    uint32_t *m;
    pair_open(&p, 4, 100, NEAR_WRAP);
    assert_ok(shm_map(p.ring_fd, 4096, true, (void **)&m, err));
    m[16] += 1000; /* head */
    assert_ok(ring_look(p.ring_fd, &seen, err));
    assert_int_equal(seen.fill, 4);
    m[3] = UINT32_MAX; /* n_slots */
    assert_ok(ring_look(p.ring_fd, &seen, err));
    assert_int_equal(seen.n_slots, RING_MAX_SLOTS);
    shm_unmap(m, 4096);
    assert_true(ring_look(p.bell_fds[0] + 1000, &seen, NULL) < 0);
    pair_close(&p);
}

static void test_make_refused(void **state)
{
    (void)state;
    static const struct {
        uint32_t n;
        size_t bytes;
    } bad[] = {{0, 4096}, {3, 4096}, {RING_MAX_SLOTS * 2, 4096}, {UINT32_MAX, 4096}, {4, 0}, {4, SIZE_MAX}, {4, SIZE_MAX / 4}};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_true(ring_make("test", bad[i].n, bad[i].bytes, 1, NULL) < 0);
    int fd = ring_make("test", RING_MAX_SLOTS, 1, 1, NULL);
    assert_true(fd >= 0);
    assert_ok(shm_check(fd, ring_bytes(RING_MAX_SLOTS, 1), err));
    close(fd);
}

static void test_attach_refused(void **state)
{
    (void)state;
    static const struct {
        size_t offset;
        uint32_t value;
        int code;
        const char *part;
    } lies[] = {
        {0, 0, -EPROTO, "magic"},
        {4, 2, -EPROTO, "version 2"},
        {8, 8, -ESTALE, "epoch 8; expected 7"},
        {12, 0, -EPROTO, "0 slots"},
        {12, 3, -EPROTO, "3 slots"},
        {12, 2048, -EPROTO, "2048 slots"},
        {12, 8, -EPROTO, "expected at least"},
        {16, 0, -EPROTO, "slots of 0 bytes"},
        {16, 4095, -EPROTO, "slots of 4095 bytes"},
        {16, 8192, -EPROTO, "expected at least"},
        {20, UINT32_MAX, -EPROTO, "slots of"},
    };
    struct bell *b;
    int bell = bell_make(NULL);
    assert_ok(bell_map(bell, &b, err));
    for (size_t i = 0; i < ARRAY_LEN(lies); i++) {
        auto_fd fd = ring_make("test", 4, 4096, 7, NULL);
        void *p;
        struct ring *r = NULL;
        assert_ok(shm_map(fd, 4096, true, &p, err));
        memcpy((uint8_t *)p + lies[i].offset, &lies[i].value, 4);
        shm_unmap(p, 4096);
        assert_err(ring_attach(fd, RING_CONSUMER, 7, b, b, &r, err), lies[i].code, lies[i].part);
        assert_null(r);
        struct bell *none = NULL;
        assert_err(bell_map(fd, &none, err), -EPROTO, "bell: wrong magic");
        assert_null(none);
    }
    struct ring *r = NULL;
    assert_err(ring_attach(bell, RING_CONSUMER, 7, b, b, &r, err), -EPROTO, "ring: magic");
    auto_fd open_end = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(open_end, 1 << 20), 0);
    assert_err(ring_attach(open_end, RING_CONSUMER, 7, b, b, &r, err), -EPROTO, "sealed against shrinking");
    auto_fd small = shm_make("test", 100, false, NULL);
    assert_err(ring_attach(small, RING_CONSUMER, 7, b, b, &r, err), -EPROTO, "expected at least 4096");
    bell_unmap(b);
    close(bell);
}

/* The other side writes an index that cannot be. */
static void hostile(enum ring_side victim, int32_t off)
{
    struct pair p;
    void *m;
    pair_open(&p, 4, 4096, NEAR_WRAP);
    for (int i = 0; i < 2; i++) {
        assert_non_null(ring_reserve(p.rings[RING_PRODUCER]));
        ring_commit(p.rings[RING_PRODUCER]);
    }
    assert_ok(shm_map(p.ring_fd, 4096, true, &m, err));
    uint32_t *index = (uint32_t *)(void *)((uint8_t *)m + (victim == RING_CONSUMER ? HEAD_OFFSET : TAIL_OFFSET));
    *index += (uint32_t)off;
    uint32_t before[2] = {bell_read(p.bells[0]), bell_read(p.bells[1])};
    assert_false(ring_poisoned(p.rings[0]));
    assert_null(victim == RING_CONSUMER ? ring_peek(p.rings[victim]) : ring_reserve(p.rings[victim]));
    for (int i = 0; i < 2; i++) {
        assert_true(ring_poisoned(p.rings[i]));
        assert_int_not_equal(bell_read(p.bells[i]), before[i]);
    }
    *index -= (uint32_t)off; /* for ever, */
    ((uint32_t *)m)[6] = 0;  /* even when the mark goes: who saw it remembers */
    assert_true(ring_poisoned(p.rings[victim]));
    assert_null(victim == RING_CONSUMER ? ring_peek(p.rings[victim]) : ring_reserve(p.rings[victim]));
    shm_unmap(m, 4096);
    pair_close(&p);
}

static void test_hostile_index(void **state)
{
    (void)state;
    hostile(RING_CONSUMER, 3);  /* five of four slots filled */
    hostile(RING_CONSUMER, -3); /* taken back */
    hostile(RING_CONSUMER, INT32_MIN);
    hostile(RING_PRODUCER, 3); /* released more than was committed */
    hostile(RING_PRODUCER, -3);
    hostile(RING_PRODUCER, INT32_MIN);
}

static void test_bell_timeout(void **state)
{
    (void)state;
    int fd = bell_make(NULL);
    struct bell *b;
    assert_ok(bell_map(fd, &b, err));
    uint32_t v = bell_read(b);
    assert_int_equal(bell_wait(b, v, 0, 1000000), -ETIMEDOUT);
    assert_int_equal(bell_wait(b, v, 100000, 0), -ETIMEDOUT);
    bell_ring(b);
    assert_int_equal(bell_wait(b, v, 0, -1), 0);
    assert_int_equal(bell_wait(b, v, 100000, -1), 0);
    bell_unmap(b);
    close(fd);
}

/* ---- streams ---- */

static void produce(struct ring *ring, struct bell *own, uint32_t rounds)
{
    for (uint32_t i = 0; i < rounds; i++) {
        uint32_t *slot, seen;
        for (;;) {
            seen = bell_read(own);
            slot = ring_reserve(ring);
            if (slot || ring_poisoned(ring))
                break;
            bell_wait(own, seen, 0, -1);
        }
        if (!slot)
            return;
        for (uint32_t k = 0; k < 16; k++)
            slot[k] = i * 16 + k;
        ring_commit(ring);
    }
}

/* How many slots came in order with the right contents, until `rounds`, poison or a wrong one. */
static uint32_t consume(struct ring *ring, struct bell *own, uint32_t rounds)
{
    for (uint32_t i = 0; i < rounds; i++) {
        uint32_t *slot, seen;
        for (;;) {
            seen = bell_read(own);
            slot = ring_peek(ring);
            if (slot || ring_poisoned(ring))
                break;
            bell_wait(own, seen, i % 3 ? 0 : 2000, -1);
        }
        if (!slot)
            return i;
        for (uint32_t k = 0; k < 16; k++) {
            if (slot[k] != i * 16 + k)
                return i;
        }
        ring_release(ring);
    }
    return rounds;
}

static void *produce_thread(void *arg)
{
    struct pair *p = arg;
    produce(p->rings[RING_PRODUCER], p->bells[RING_PRODUCER], ROUNDS);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    for (uint32_t n_slots = 1; n_slots <= 4; n_slots *= 2) {
        struct pair p;
        pthread_t t;
        pair_open(&p, n_slots, 64, NEAR_WRAP);
        assert_int_equal(pthread_create(&t, NULL, produce_thread, &p), 0);
        assert_int_equal(consume(p.rings[RING_CONSUMER], p.bells[RING_CONSUMER], ROUNDS), ROUNDS);
        pthread_join(t, NULL);
        assert_int_equal(ring_fill(p.rings[0]), 0);
        pair_close(&p);
    }
}

static void test_processes(void **state)
{
    (void)state;
    for (uint32_t n_slots = 1; n_slots <= 4; n_slots *= 4) {
        struct pair p;
        int status;
        pair_open(&p, n_slots, 64, NEAR_WRAP);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            produce(p.rings[RING_PRODUCER], p.bells[RING_PRODUCER], ROUNDS);
            _exit(0);
        }
        assert_int_equal(consume(p.rings[RING_CONSUMER], p.bells[RING_CONSUMER], ROUNDS), ROUNDS);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        pair_close(&p);
    }
}

/* There and back through two rings, two processes asleep in turn: the pattern that finds a lost wake-up soonest. */
static void test_ping_pong(void **state)
{
    (void)state;
    struct pair p;
    pair_open(&p, 1, 64, NEAR_WRAP);
    int back_fd = ring_make_at("back", 1, 64, 7, NEAR_WRAP, NULL), status;
    struct ring *back[2];
    for (int i = 0; i < 2; i++) /* the first process consumes here */
        assert_ok(ring_attach(back_fd, (enum ring_side)i, 7, p.bells[1 - i], p.bells[i], &back[i], err));
    uint32_t rounds = ROUNDS / 3;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        for (uint32_t i = 0; i < rounds; i++) {
            uint32_t seen;
            while (seen = bell_read(p.bells[RING_CONSUMER]), !ring_peek(p.rings[RING_CONSUMER]))
                bell_wait(p.bells[RING_CONSUMER], seen, 0, -1);
            uint32_t v = *(uint32_t *)ring_peek(p.rings[RING_CONSUMER]);
            *(uint32_t *)ring_reserve(back[RING_PRODUCER]) = v + 1;
            ring_release(p.rings[RING_CONSUMER]);
            ring_commit(back[RING_PRODUCER]);
        }
        _exit(0);
    }
    uint32_t v = 0;
    for (uint32_t i = 0; i < rounds; i++) {
        uint32_t seen, *slot;
        while (seen = bell_read(p.bells[RING_PRODUCER]), !(slot = ring_reserve(p.rings[RING_PRODUCER])))
            bell_wait(p.bells[RING_PRODUCER], seen, 0, -1);
        *slot = v;
        ring_commit(p.rings[RING_PRODUCER]);
        while (seen = bell_read(p.bells[RING_PRODUCER]), !(slot = ring_peek(back[RING_CONSUMER])))
            bell_wait(p.bells[RING_PRODUCER], seen, 0, -1);
        v = *slot;
        ring_release(back[RING_CONSUMER]);
    }
    assert_int_equal(v, rounds);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    ring_detach(back[0]);
    ring_detach(back[1]);
    close(back_fd);
    pair_close(&p);
}

/* ---- death of one side ---- */

struct survivor {
    struct pair *p;
    enum ring_side side;
};

static void *survive(void *arg)
{
    struct survivor *s = arg;
    if (s->side == RING_CONSUMER)
        consume(s->p->rings[RING_CONSUMER], s->p->bells[RING_CONSUMER], UINT32_MAX);
    else
        produce(s->p->rings[RING_PRODUCER], s->p->bells[RING_PRODUCER], UINT32_MAX);
    return NULL;
}

static void killed(enum ring_side dies)
{
    struct pair p;
    pthread_t t;
    int status;
    pair_open(&p, 4, 64, NEAR_WRAP);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct survivor s = {&p, dies};
        survive(&s);
        _exit(0);
    }
    struct survivor s = {&p, dies == RING_PRODUCER ? RING_CONSUMER : RING_PRODUCER};
    assert_int_equal(pthread_create(&t, NULL, survive, &s), 0);
    uint32_t seen = bell_read(p.bells[s.side]);
    while (bell_read(p.bells[s.side]) - seen < 1000) /* it works */
        usleep(1000);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    ring_poison(p.rings[dies]); /* the supervisor's mapping; the survivor sleeps or works */
    pthread_join(t, NULL);
    assert_true(ring_poisoned(p.rings[0]) && ring_poisoned(p.rings[1]));
    pair_close(&p);
}

static void test_killed(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++) {
        killed(RING_PRODUCER);
        killed(RING_CONSUMER);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FD_TEST(test_fill_and_wrap), FD_TEST(test_make_refused), FD_TEST(test_attach_refused), FD_TEST(test_hostile_index),
        FD_TEST(test_bell_timeout),  FD_TEST(test_threads),      FD_TEST(test_processes),      FD_TEST(test_ping_pong),
        FD_TEST(test_killed),        FD_TEST(test_look),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
