/* SPDX-License-Identifier: MIT
 * The stage skeleton with a tiny stage behind it (boss.h): handshake, chunks through rings, failures, draining, pauses, and every
 * way to end. Its weights have test_stage_weights.c. */
#include "tests/proto/boss.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/ring.h"
#include "proto/shm.h"
#include "proto/status.h"
#include "proto/util.h"
#include "tests/proto/proto_test.h"

static void test_life(void **state)
{
    (void)state;
    struct boss b;
    boss_start(&b, MSG_ROLE_NPU);
    const struct msg_stats *s = boss_stats(&b, 42);
    assert_int_equal(s->weights, 2 * SEGMENT_BYTES);
    assert_int_equal(s->kv, 1000);
    assert_int_equal(s->total_peak, 2 * SEGMENT_BYTES + 1000);
    assert_int_equal(s->weights_peak, 2 * SEGMENT_BYTES);
    assert_int_equal(s->kv_peak, 1000);
    assert_int_equal(s->scratch_peak, 0);
    assert_int_equal(s->bytes_read, SEGMENT_BYTES * (1 + 2)); /* the sum of what it saw in the segments */
    assert_int_equal(s->chunks, 0);
    for (uint64_t id = 1; id <= 20; id++) {
        boss_put(&b, id % 2, id);
        boss_expect_chunk(&b, 0, id, 1 + (float)(id % 2));
    }
    boss_tell_type(&b, MSG_TYPE_drain);
    boss_expect(&b, MSG_TYPE_drained);
    s = boss_stats(&b, 43);
    assert_int_equal(s->chunks, 20);
    assert_int_equal(s->tokens, 40);
    assert_true(s->busy_ns > 0);
    for (uint64_t id = 21; s->idle_ns == 0 && id < 70; id++) { /* on a busy machine each chunk may lie there before it looks */
        usleep(1000);
        boss_put(&b, 0, id);
        boss_expect_chunk(&b, 0, id, 1);
        s = boss_stats(&b, 43 + id);
    }
    assert_true(s->idle_ns > 0);
    boss_end(&b);
}

/* What waits on input 0 goes before what waits on input 1. */
static void test_priority(void **state)
{
    (void)state;
    struct boss b;
    boss_open(&b, MSG_ROLE_NPU);
    boss_configure(&b);
    boss_attach_all(&b);
    boss_fill_segments(&b, 1, true);
    boss_put(&b, 1, 1);
    boss_put(&b, 0, 2);
    boss_tell_type(&b, MSG_TYPE_start);
    boss_expect(&b, MSG_TYPE_ready);
    boss_expect_chunk(&b, 0, 2, 1);
    boss_expect_chunk(&b, 0, 1, 2);
    boss_end(&b);
}

/* A chunk that fails is reported towards the coordinator, and the stage goes on; so does one that failed before it. */
static void test_failed_chunks(void **state)
{
    (void)state;
    for (int role = 0; role < MSG_ROLES; role++) {
        struct boss b;
        uint32_t to_boss = role == MSG_ROLE_GPU ? 1 : 0;
        float *x;
        boss_start(&b, (enum msg_role)role);
        boss_put(&b, 0, ID_FAIL);
        boss_expect_failure(&b, to_boss, ID_FAIL, -ERANGE, "tiny: chunk 1000 of input 0 does not please");
        boss_put(&b, 0, ID_SILENT_FAIL);
        boss_expect_failure(&b, to_boss, ID_SILENT_FAIL, -EDOM, msg_role_name((enum msg_role)role));
        struct chunk c = boss_chunk(9, &x);
        c.h.kind = CHUNK_FAILED;
        c.h.status = -EXDEV;
        c.h.payload_bytes = 8;
        boss_put_chunk(&b, 0, &c, "up there");
        boss_expect_failure(&b, to_boss, 9, -EXDEV, "up there");
        boss_put(&b, 0, 3);
        boss_expect_chunk(&b, 0, 3, 1);
        boss_end(&b);
    }
}

static void test_stale_epoch(void **state)
{
    (void)state;
    struct boss b;
    float *x;
    boss_start(&b, MSG_ROLE_NPU);
    struct chunk c = boss_chunk(1, &x);
    c.h.epoch = EPOCH - 1;
    boss_put_chunk(&b, 0, &c, x);
    boss_put(&b, 0, 2);
    boss_expect_chunk(&b, 0, 2, 1);
    boss_tell_type(&b, MSG_TYPE_drain); /* the dropped one leaves no error behind */
    boss_expect(&b, MSG_TYPE_drained);
    boss_end(&b);
}

/* More chunks than the output takes: the stage waits, says so, and loses none. Whether it is waiting cannot be seen from outside,
 * so it is given ever more time to get there. */
static void test_blocked(void **state)
{
    (void)state;
    struct boss b;
    const struct msg_stats *s;
    uint64_t n = 0;
    boss_start(&b, MSG_ROLE_NPU);
    do {
        for (uint64_t id = 1; id <= 2 * SLOTS; id++)
            boss_put(&b, 0, id);
        usleep(1000u << n);
        for (uint64_t id = 1; id <= 2 * SLOTS; id++)
            boss_expect_chunk(&b, 0, id, 1);
        boss_tell_type(&b, MSG_TYPE_drain);
        boss_expect(&b, MSG_TYPE_drained);
        s = boss_stats(&b, ++n);
        assert_int_equal(s->chunks, n * 2 * SLOTS);
    } while (s->blocked_ns == 0 && n < 12);
    assert_true(s->blocked_ns > 0);
    for (uint64_t id = 1; id <= 2 * SLOTS; id++)
        boss_put(&b, 0, id);
    boss_end(&b); /* while it waits for space */
}

static void test_broken_chunk(void **state)
{
    (void)state;
    struct boss b;
    float *x;
    boss_start(&b, MSG_ROLE_NPU);
    struct chunk c = boss_chunk(1, &x);
    c.h.layer = 2;
    boss_put_chunk(&b, 1, &c, x);
    boss_expect_bad_ring(&b, 2, 0, "input ring 1: chunk 1: layer 2; the model has 2");
}

static void test_hostile_ring(void **state)
{
    (void)state;
    struct boss b;
    void *m;
    boss_start(&b, MSG_ROLE_NPU);
    assert_ok(shm_map(b.ring_fds[0][0], 4096, true, &m, err));
    *(uint32_t *)(void *)((uint8_t *)m + 64) = 1000; /* head */
    bell_ring(b.bells[1]);
    shm_unmap(m, 4096);
    boss_expect_bad_ring(&b, 1, 0, "input ring 0 is poisoned");
}

/* A reader that lies: what has no place any more must not be lost without a word. */
static void test_hostile_reader(void **state)
{
    (void)state;
    struct boss b;
    void *m;
    boss_start(&b, MSG_ROLE_NPU);
    assert_ok(shm_map(b.ring_fds[1][0], 4096, true, &m, err));
    *(uint32_t *)(void *)((uint8_t *)m + 128) = 1000; /* tail */
    shm_unmap(m, 4096);
    boss_put(&b, 0, 1);
    boss_expect_bad_ring(&b, 0, 1, "output ring 0 is poisoned");
}

/* A neighbour that spoils the count of waiters in a bell keeps nobody asleep for ever. */
static void test_hostile_bell(void **state)
{
    (void)state;
    struct boss b;
    void *m;
    struct chunk c;
    const void *y;
    boss_start(&b, MSG_ROLE_NPU);
    usleep(20000); /* it sleeps; where it does not yet, the test is only weaker */
    assert_ok(shm_map(b.bell_fds[1], 4096, true, &m, err));
    *(uint32_t *)(void *)((uint8_t *)m + 68) = 0; /* waiters */
    shm_unmap(m, 4096);
    boss_put(&b, 0, 2);
    boss_get(&b, 0, &c, &y);
    ring_release(b.rings[1][0]);
    assert_int_equal(c.h.id, 2);
    boss_end(&b);
}

static void test_small_output_slots(void **state)
{
    (void)state;
    struct boss b;
    float *x;
    boss_open(&b, MSG_ROLE_LOADER);
    struct msg m = boss_configure_msg();
    m.configure.hidden = 512;
    boss_tell(&b, &m, (int[]){b.bell_fds[1], b.page_fd}, 2);
    boss_attach(&b, 0, 0, 65536);
    boss_attach(&b, 1, 0, 4096);
    boss_expect(&b, MSG_TYPE_segment_end);
    boss_tell_type(&b, MSG_TYPE_start);
    boss_expect(&b, MSG_TYPE_ready);
    struct chunk c = boss_chunk(1, &x);
    static float big[4 * 512];
    c.h.payload_bytes = 2 * 512 * sizeof(float);
    boss_put_chunk(&b, 0, &c, big);
    boss_expect_error(&b, -EMSGSIZE, "chunk 1 of 2 tokens needs a slot of");
}

/* A pass that begins is taken whole before the chunks that come back for its second layer. */
static void test_pass_begins_whole(void **state)
{
    (void)state;
    struct boss b;
    float *x;
    boss_start(&b, MSG_ROLE_NPU);
    struct chunk c = boss_chunk(1, &x);
    c.h.layer = 0;
    c.h.pass_count = 2;
    boss_put_chunk(&b, 1, &c, x);
    boss_expect_chunk(&b, 0, 1, 2);
    boss_put(&b, 0, 5); /* came back early */
    usleep(20000);
    assert_null(ring_peek(b.rings[1][0]));
    c.h.id = 2;
    c.h.pass_index = 1;
    float *y;
    boss_chunk(2, &y);
    boss_put_chunk(&b, 1, &c, y);
    boss_expect_chunk(&b, 0, 2, 2);
    boss_chunk(5, &y);
    boss_expect_chunk(&b, 0, 5, 1);
    boss_end(&b);
}

/* Messages out of turn. */
static void test_handshake_order(void **state)
{
    (void)state;
    struct boss b;
    boss_open(&b, MSG_ROLE_NPU);
    boss_tell_type(&b, MSG_TYPE_start);
    boss_expect_error(&b, -EPROTO, "START before ring 0 was attached");

    boss_open(&b, MSG_ROLE_NPU);
    boss_configure(&b);
    boss_attach_all(&b);
    boss_tell_type(&b, MSG_TYPE_start);
    boss_expect(&b, MSG_TYPE_segment_new);
    boss_expect(&b, MSG_TYPE_segment_new);
    boss_expect(&b, MSG_TYPE_segment_end);
    boss_expect_error(&b, -EPROTO, "START with 0 of 2 segments");

    boss_open(&b, MSG_ROLE_GPU);
    boss_configure(&b);
    boss_expect(&b, MSG_TYPE_segment_end);
    boss_configure(&b);
    boss_expect_error(&b, -EPROTO, "CONFIGURE came twice");

    boss_open(&b, MSG_ROLE_GPU);
    boss_attach(&b, 0, 0, 4096);
    boss_expect_error(&b, -EPROTO, "unexpected ATTACH_RING");

    boss_open(&b, MSG_ROLE_GPU);
    boss_configure(&b);
    boss_attach(&b, 0, 1, 4096);
    boss_expect(&b, MSG_TYPE_segment_end);
    boss_expect_error(&b, -EPROTO, "unexpected ATTACH_RING (direction 0, index 1 of 1)");

    boss_open(&b, MSG_ROLE_GPU);
    boss_tell_type(&b, MSG_TYPE_drained);
    boss_expect_error(&b, -EPROTO, "sent a drained message");

    boss_start(&b, MSG_ROLE_GPU);
    boss_tell_type(&b, MSG_TYPE_start);
    boss_expect_error(&b, -EPROTO, "START");

    boss_start(&b, MSG_ROLE_GPU);
    boss_tell(&b, &(struct msg){.type = MSG_TYPE_segment_filled}, NULL, 0);
    boss_expect_error(&b, -EPROTO, "unexpected SEGMENT_FILLED");
}

static void test_wrong_rings(void **state)
{
    (void)state;
    static const struct {
        uint32_t ring_epoch, said_epoch;
        int code;
        const char *part;
    } cases[] = {
        {EPOCH, EPOCH + 1, -ESTALE, "CONFIGURE or PAUSE said 5"},
        {EPOCH + 1, EPOCH, -ESTALE, "epoch 6; expected 5"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct boss b;
        boss_open(&b, MSG_ROLE_GPU);
        boss_configure(&b);
        boss_expect(&b, MSG_TYPE_segment_end);
        int fd = ring_make("test", SLOTS, 4096, cases[i].ring_epoch, NULL);
        struct msg m = {.type = MSG_TYPE_attach_ring, .attach_ring = {.epoch = cases[i].said_epoch}};
        boss_tell(&b, &m, (int[]){fd, b.bell_fds[0]}, 2);
        close(fd);
        boss_expect_error(&b, cases[i].code, cases[i].part);
    }
    struct boss b;
    boss_open(&b, MSG_ROLE_GPU);
    struct msg m = boss_configure_msg();
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    boss_tell(&b, &m, (int[]){fd, b.page_fd}, 2);
    boss_expect_error(&b, -EPROTO, "bell: received memfd has seals");
    boss_open(&b, MSG_ROLE_GPU);
    boss_tell(&b, &m, (int[]){b.bell_fds[1], fd}, 2);
    close(fd);
    boss_expect_error(&b, -EPROTO, "status page: received memfd has seals");
}

/* New rings under another epoch, in every state of the data thread: idle, with chunks before it, waiting for space. */
static void test_pause(void **state)
{
    (void)state;
    for (int when = 0; when < 4; when++) {
        struct boss b;
        boss_start(&b, MSG_ROLE_NPU);
        for (uint64_t id = 1; when == 2 && id <= 2 * SLOTS; id++)
            boss_put(&b, 0, id);
        for (uint32_t round = 0; round < 15; round++) {
            if (when == 1) {
                boss_put(&b, 0, 1);
                boss_put(&b, 1, 2);
            }
            for (int twice = 0; twice <= (when == 3); twice++) { /* the second overtakes the first, or follows it */
                struct msg m = {.type = MSG_TYPE_pause, .pause = {.epoch = ++boss_epoch}};
                boss_tell(&b, &m, NULL, 0);
            }
            while (boss_expect(&b, MSG_TYPE_paused)->paused.epoch != boss_epoch)
                assert_int_equal(when, 3);
            boss_drop_rings(&b);
            boss_attach_all(&b);
            boss_tell_type(&b, MSG_TYPE_start);
            boss_expect(&b, MSG_TYPE_ready);
            boss_put(&b, round % 2, 7);
            boss_expect_chunk(&b, 0, 7, 1 + (float)(round % 2));
        }
        assert_int_equal(boss_stats(&b, 1)->weights, 2 * SEGMENT_BYTES);
        boss_end(&b);
    }
}

static void test_pause_out_of_turn(void **state)
{
    (void)state;
    struct boss b;
    struct msg m = {.type = MSG_TYPE_pause, .pause = {.epoch = EPOCH + 1}};
    boss_open(&b, MSG_ROLE_GPU);
    boss_tell(&b, &m, NULL, 0);
    boss_expect_error(&b, -EPROTO, "PAUSE before CONFIGURE");

    boss_open(&b, MSG_ROLE_GPU); /* before it has rings, and with some of them */
    boss_configure(&b);
    boss_expect(&b, MSG_TYPE_segment_end);
    boss_tell(&b, &m, NULL, 0);
    assert_int_equal(boss_expect(&b, MSG_TYPE_paused)->paused.epoch, EPOCH + 1);
    boss_epoch = EPOCH + 1;
    boss_attach(&b, 0, 0, 4096);
    m.pause.epoch = ++boss_epoch;
    boss_tell(&b, &m, NULL, 0);
    boss_expect(&b, MSG_TYPE_paused);
    boss_drop_rings(&b);
    boss_attach_all(&b);
    boss_tell_type(&b, MSG_TYPE_start);
    boss_expect(&b, MSG_TYPE_ready);
    boss_drop_rings(&b);
    boss_attach(&b, 0, 0, 4096);
    boss_expect_error(&b, -EPROTO, "unexpected ATTACH_RING");

    boss_start(&b, MSG_ROLE_GPU); /* the old epoch is over */
    m.pause.epoch = EPOCH + 1;
    boss_tell(&b, &m, NULL, 0);
    boss_expect(&b, MSG_TYPE_paused);
    boss_drop_rings(&b);
    boss_attach(&b, 0, 0, 4096);
    boss_expect_error(&b, -ESTALE, "ATTACH_RING of epoch 5; CONFIGURE or PAUSE said 6");

    boss_start(&b, MSG_ROLE_NPU); /* while it is paused, everything ends it as ever */
    boss_tell(&b, &m, NULL, 0);
    boss_expect(&b, MSG_TYPE_paused);
    boss_end(&b);
    boss_start(&b, MSG_ROLE_NPU);
    boss_put(&b, 0, ID_SLEEP);
    boss_tell(&b, &m, NULL, 0);
    boss_tell_type(&b, MSG_TYPE_shutdown); /* while it cannot answer */
    assert_true(WIFEXITED(boss_wait_exit(&b)));
    boss_close(&b);
}

/* What the page says of a chunk that takes for ever, and that the control thread answers meanwhile. */
static void test_status_page(void **state)
{
    (void)state;
    struct boss b;
    struct status *page;
    struct status_work w;
    boss_start(&b, MSG_ROLE_NPU);
    assert_ok(status_map(b.page_fd, &page, err));
    for (uint64_t id = 1; id <= 3; id++) {
        boss_put(&b, 0, id);
        boss_expect_chunk(&b, 0, id, 1);
    }
    boss_tell_type(&b, MSG_TYPE_drain);
    boss_expect(&b, MSG_TYPE_drained);
    status_read(page, &w);
    assert_int_equal(w.since_ns, 0);
    uint64_t before = util_now_ns();
    boss_put(&b, 0, ID_SLEEP);
    do {
        usleep(1000);
        status_read(page, &w);
    } while (w.since_ns == 0);
    assert_in_range(w.since_ns, before, util_now_ns());
    assert_int_equal(w.chunk, ID_SLEEP);
    assert_int_equal(w.layer, 1);
    assert_int_equal(w.n_tokens, 2);
    assert_true(w.usual_ns > 0); /* there were others of its kind */
    boss_tell(&b, &(struct msg){.type = MSG_TYPE_ping, .ping = {.serial = 99}}, NULL, 0);
    assert_int_equal(boss_expect(&b, MSG_TYPE_pong)->pong.serial, 99);
    status_unmap(page);
    boss_close(&b);
}

/* The end of the socket ends the stage: before CONFIGURE, idle, and blocked on a full output. */
static void test_socket_end(void **state)
{
    (void)state;
    for (int when = 0; when < 3; when++) {
        struct boss b;
        if (when == 0)
            boss_open(&b, MSG_ROLE_NPU);
        else
            boss_start(&b, MSG_ROLE_NPU);
        for (uint64_t id = 0; when == 2 && id < 2 * SLOTS; id++)
            boss_put(&b, 0, id);
        boss_close(&b);
        assert_int_equal(b.status, 0);
    }
}

/* A computation or a read that does not come back does not keep the process. */
static void test_stuck(void **state)
{
    (void)state;
    struct boss b;
    boss_start(&b, MSG_ROLE_NPU);
    boss_put(&b, 0, ID_SLEEP);
    usleep(50000); /* it ends in time whether it got there or not */
    uint64_t before = util_now_ns();
    boss_close(&b);
    assert_true(WIFEXITED(b.status));
    assert_true(util_now_ns() - before < 30ull * 1000000000);

    boss_start(&b, MSG_ROLE_LOADER);
    int fd = shm_make("test", SEGMENT_BYTES, true, NULL);
    struct msg m = {.type = MSG_TYPE_segment_fill, .segment_fill = {.layer = 14, .bytes = SEGMENT_BYTES}};
    boss_tell(&b, &m, &fd, 1);
    close(fd);
    boss_stats(&b, 1); /* so that the fill has been queued */
    boss_close(&b);
    assert_true(WIFEXITED(b.status));
    assert_true(util_now_ns() - before < 30ull * 1000000000);
}

static void test_signals(void **state)
{
    (void)state;
    struct boss b;
    boss_start(&b, MSG_ROLE_NPU);
    kill(b.pid, SIGINT);
    boss_put(&b, 0, 1);
    boss_expect_chunk(&b, 0, 1, 1);
    kill(b.pid, SIGTERM);
    assert_int_equal(boss_wait_exit(&b), 0);
    boss_close(&b);
}

/* kill -9 of the coordinator: here a process in between, whose stage then becomes our child. */
static void test_coordinator_killed(void **state)
{
    (void)state;
    int report[2], status;
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    assert_int_equal(pipe2(report, O_CLOEXEC), 0);
    pid_t middle = fork();
    assert_true(middle >= 0);
    if (middle == 0) {
        struct boss b;
        boss_start(&b, MSG_ROLE_NPU);
        boss_put(&b, 0, ID_SLEEP); /* busy, so that only the kernel can end it at once */
        util_write_all(report[1], &b.pid, sizeof(b.pid));
        pause();
        _exit(0);
    }
    pid_t stage = 0;
    close(report[1]);
    assert_int_equal(read(report[0], &stage, sizeof(stage)), sizeof(stage));
    close(report[0]);
    kill(middle, SIGKILL);
    assert_int_equal(waitpid(middle, &status, 0), middle);
    assert_int_equal(waitpid(stage, &status, 0), stage);
    assert_true(WIFSIGNALED(status) &&
                WTERMSIG(status) == SIGKILL); /* not by the end of its socket, which it would come to later */
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
}

int main(int argc, char **argv)
{
    int status;
    if (boss_is_stage(argc, argv, &status))
        return status;
    const struct CMUnitTest tests[] = {
        FD_TEST(test_life),
        FD_TEST(test_priority),
        FD_TEST(test_failed_chunks),
        FD_TEST(test_stale_epoch),
        FD_TEST(test_blocked),
        FD_TEST(test_broken_chunk),
        FD_TEST(test_hostile_ring),
        FD_TEST(test_hostile_reader),
        FD_TEST(test_hostile_bell),
        FD_TEST(test_small_output_slots),
        FD_TEST(test_pass_begins_whole),
        FD_TEST(test_handshake_order),
        FD_TEST(test_wrong_rings),
        FD_TEST(test_pause),
        FD_TEST(test_pause_out_of_turn),
        FD_TEST(test_status_page),
        FD_TEST(test_socket_end),
        FD_TEST(test_stuck),
        FD_TEST(test_signals),
        FD_TEST(test_coordinator_killed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
