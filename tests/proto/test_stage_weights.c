/* SPDX-License-Identifier: MIT
 * Weights and the stage skeleton (boss.h): segments that a worker announces or inherits, what the loader fills, and layers that
 * pass through slots. */
#include "tests/proto/boss.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "proto/ring.h"
#include "proto/shm.h"
#include "proto/util.h"
#include "tests/proto/proto_test.h"

static void test_fill(void **state)
{
    (void)state;
    struct boss b;
    int fds[3];
    boss_start(&b, MSG_ROLE_LOADER);
    for (uint32_t i = 0; i < 3; i++) {
        fds[i] = shm_make("test", SEGMENT_BYTES, true, NULL);
        struct msg m = {.type = MSG_TYPE_segment_fill, .segment_fill = {.kind = i, .layer = i + 1, .bytes = SEGMENT_BYTES}};
        boss_tell(&b, &m, &fds[i], 1);
    }
    for (uint32_t seen = 0, n = 0; n < 3; n++) { /* two are filled at a time, and the second may be ready first */
        const struct msg *m = boss_expect(&b, MSG_TYPE_segment_filled);
        uint32_t i = m->segment_filled.kind;
        assert_true(i < 3 && !(seen >> i & 1));
        seen |= 1u << i;
        assert_int_equal(m->segment_filled.layer, i + 1);
        assert_true(fcntl(fds[i], F_GET_SEALS) & F_SEAL_WRITE);
        void *p;
        assert_ok(shm_map(fds[i], SEGMENT_BYTES, false, &p, err));
        assert_int_equal(((uint8_t *)p)[SEGMENT_BYTES - 1], (i + 1) * 16 + i);
        shm_unmap(p, SEGMENT_BYTES);
        close(fds[i]);
    }
    boss_put(&b, 0, 1); /* the data thread works beside it */
    boss_expect_chunk(&b, 0, 1, 1);
    boss_end(&b);
}

static void test_fill_fails(void **state)
{
    (void)state;
    struct boss b;
    static const struct {
        uint32_t layer;
        uint64_t bytes;
        int code;
        const char *part;
    } cases[] = {
        {13, SEGMENT_BYTES, -EIO, "'layer 13' cannot be read"},
        {1, SEGMENT_BYTES + 1, -EPROTO, "has 8192 bytes; expected at least 8193"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        boss_start(&b, MSG_ROLE_LOADER);
        int fd = shm_make("test", SEGMENT_BYTES, true, NULL);
        struct msg m = {.type = MSG_TYPE_segment_fill, .segment_fill = {.layer = cases[i].layer, .bytes = cases[i].bytes}};
        for (int k = 0; k < 3; k++) /* those behind it are given up */
            boss_tell(&b, &m, &fd, 1);
        close(fd);
        boss_expect_error(&b, cases[i].code, cases[i].part);
    }
}

static void test_unsealed_segment(void **state)
{
    (void)state;
    struct boss b;
    boss_open(&b, MSG_ROLE_NPU);
    boss_configure(&b);
    boss_fill_segments(&b, 1, false);
    boss_expect_error(&b, -EPROTO, "segment kind 0 layer 0 is not sealed against writing");
}

static void test_segment_refused(void **state)
{
    (void)state;
    struct boss b;
    boss_open(&b, MSG_ROLE_NPU);
    boss_configure(&b);
    boss_fill_segments(&b, 255, true);
    boss_expect_error(&b, -EILSEQ, "layer 0 is not to its taste");
}

static void test_budget(void **state)
{
    (void)state;
    struct boss b;
    boss_open(&b, MSG_ROLE_NPU);
    struct msg m = boss_configure_msg();
    m.configure.budget = 1000 + SEGMENT_BYTES + 1;
    boss_tell(&b, &m, (int[]){b.bell_fds[1], b.page_fd}, 2);
    boss_expect(&b, MSG_TYPE_segment_new);
    boss_expect_error(&b, -ENOMEM,
                      "weights of layer 1: npu_worker: 8192 bytes for weights do not fit: 9192 bytes are used of 9193 allowed");
}

/* Segments of a predecessor: right ones are used, wrong ones made anew, superfluous ones closed. */
static void test_held(void **state)
{
    (void)state;
    for (int wrong = 0; wrong < 5;
         wrong++) { /* 1: not sealed, 2: of another size, 3: smaller than it says, 4: right, and not filled yet */
        struct boss b;
        int unfilled = -1;
        boss_open(&b, MSG_ROLE_NPU);
        for (uint32_t layer = 0; layer < 3; layer++) {
            uint64_t bytes = wrong == 2 && layer == 1 ? 2 * SEGMENT_BYTES : SEGMENT_BYTES;
            int fd = shm_make("test", wrong == 3 && layer == 1 ? SEGMENT_BYTES / 2 : bytes, true, NULL);
            if ((wrong != 1 && wrong != 4) || layer != 1)
                assert_ok(shm_seal_write(fd, err));
            struct msg m = {.type = MSG_TYPE_segment_held,
                            .segment_held = {.layer = layer, .bytes = bytes, .filled = wrong != 4 || layer != 1}};
            boss_tell(&b, &m, &fd, 1);
            if (wrong == 4 && layer == 1)
                unfilled = fd;
            else
                close(fd);
        }
        boss_configure(&b);
        if (wrong && wrong != 4) {
            const struct msg *m = boss_expect(&b, MSG_TYPE_segment_new);
            assert_int_equal(m->segment_new.layer, 1);
            assert_ok(shm_seal_write(b.fds[b.n_taken - 1], err));
        }
        assert_int_equal(boss_expect(&b, MSG_TYPE_segment_end)->segment_end.count, 2);
        if (unfilled >= 0) {
            assert_ok(shm_seal_write(unfilled, err));
            close(unfilled);
        }
        if (wrong)
            boss_tell(&b, &(struct msg){.type = MSG_TYPE_segment_filled, .segment_filled = {.layer = 1}}, NULL, 0);
        boss_attach_all(&b);
        boss_tell_type(&b, MSG_TYPE_start);
        boss_expect(&b, MSG_TYPE_ready);
        assert_int_equal(boss_stats(&b, 1)->weights, 2 * SEGMENT_BYTES);
        boss_put(&b, 0, 1);
        boss_expect_chunk(&b, 0, 1, 1);
        if (wrong)
            boss_end(&b);
        else {
            int fd = shm_make("test", SEGMENT_BYTES, true, NULL);
            struct msg m = {.type = MSG_TYPE_segment_held, .segment_held = {.bytes = SEGMENT_BYTES, .filled = 1}};
            boss_tell(&b, &m, &fd, 1);
            close(fd);
            boss_expect_error(&b, -EPROTO, "SEGMENT_HELD after CONFIGURE");
        }
    }
}

static void answer(struct boss *b, const int *slots, const struct msg_slot_want *w, uint8_t value, uint64_t lag)
{
    void *p;
    assert_ok(shm_map(slots[w->slot], SEGMENT_BYTES, true, &p, err));
    memset(p, value, SEGMENT_BYTES);
    shm_unmap(p, SEGMENT_BYTES);
    struct msg m = {.type = MSG_TYPE_slot_filled,
                    .slot_filled = {.kind = w->kind, .slot = w->slot, .layer = w->layer, .serial = w->serial - lag}};
    boss_tell(b, &m, NULL, 0);
}

/* What the loader would do: whatever is wanted next must be `layer`; the slot then holds `value`. */
static void fill_slot(struct boss *b, const int *slots, uint32_t layer, uint8_t value, uint64_t lag)
{
    struct msg_slot_want w;
    do { /* on a slow machine, what has no answer yet is asked for again */
        w = boss_expect(b, MSG_TYPE_slot_want)->slot_want;
    } while (w.serial <= b->wanted);
    b->wanted = w.serial;
    assert_int_equal(w.layer, layer);
    assert_int_equal(w.slot, layer % 2);
    assert_int_equal(w.bytes, SEGMENT_BYTES);
    answer(b, slots, &w, value, lag);
}

static void configure_streaming(struct boss *b, int *ret_slots)
{
    boss_open(b, MSG_ROLE_NPU);
    struct msg m = boss_configure_msg();
    m.configure.n_layers = 6;
    m.configure.streamed = 4; /* layers 2 to 5, in slots 0, 1, 0, 1 */
    m.configure.stream_slots = 2;
    boss_tell(b, &m, (int[]){b->bell_fds[1], b->page_fd}, 2);
    boss_attach_all(b);
    for (uint32_t i = 0; i < 2; i++) {
        const struct msg *s = boss_expect(b, MSG_TYPE_slot_new);
        assert_int_equal(s->slot_new.slot, i);
        assert_int_equal(s->slot_new.bytes, SEGMENT_BYTES);
        ret_slots[i] = b->fds[b->n_taken - 1];
    }
    boss_fill_segments(b, 1, true);
}

static void start_streaming(struct boss *b, int *ret_slots)
{
    configure_streaming(b, ret_slots);
    boss_tell_type(b, MSG_TYPE_start);
    boss_expect(b, MSG_TYPE_ready);
}

/* Layers come and go: the slot of one that a pass has left is asked for the one after the next, also into the next pass, and no
 * chunk is processed before its layer is there. */
static void test_streaming(void **state)
{
    (void)state;
    struct boss b;
    int slots[2];
    start_streaming(&b, slots);
    fill_slot(&b, slots, 2, 12, 0); /* before anybody needs them */
    fill_slot(&b, slots, 3, 13, 0);
    boss_put_layer(&b, 0, 1, 2, 0, 2);
    boss_expect_layer(&b, 1, 12);
    boss_put_layer(&b, 0, 2, 2, 1, 2);
    boss_expect_layer(&b, 2, 12);
    fill_slot(&b, slots, 4, 14, 0);
    for (uint32_t layer = 3; layer < 6; layer++) {
        boss_put_layer(&b, 0, layer, layer, 0, 0);
        if (layer == 5) /* waits for what is filled only then: layer 5 was wanted when layer 3 was left */
            usleep(20000);
        if (layer == 5)
            fill_slot(&b, slots, 5, 15, 0);
        boss_expect_layer(&b, layer, 10 + (float)layer);
    }
    fill_slot(&b, slots, 2, 22, 0); /* of the next pass */
    fill_slot(&b, slots, 3, 23, 0);
    boss_put_layer(&b, 0, 9, 0, 0, 1); /* pinned */
    struct chunk c;
    const void *payload;
    boss_get(&b, 0, &c, &payload);
    ring_release(b.rings[1][0]);
    boss_put_layer(&b, 0, 10, 2, 0, 2);
    boss_expect_layer(&b, 10, 22);
    /* the second chunk of this pass never comes (it failed elsewhere): the next layer's first one gives the slot away */
    boss_put_layer(&b, 0, 11, 3, 0, 2);
    boss_expect_layer(&b, 11, 23);
    fill_slot(&b, slots, 4, 24, 0);
    const struct msg_stats *s = boss_stats(&b, 7);
    assert_int_equal(s->stream_visits, 6);
    assert_true(s->stream_hits <= 6 && (s->stream_hits == 6) == (s->stream_wait_ns == 0));
    assert_true(s->stream_wait_ns >= s->stream_wait_max_ns && (s->stream_wait_max_ns > 0) == (s->stream_wait_ns > 0));
    assert_int_equal(s->weights, 4 * SEGMENT_BYTES);
    boss_end(&b);
}

/* What has no answer is asked for again, under its number, and each time later. Two answers are as good as one, and an old one is
 * none. */
static void test_asked_again(void **state)
{
    (void)state;
    struct boss b;
    int slots[2];
    uint64_t before = util_now_ns();
    start_streaming(&b, slots);
    fill_slot(&b, slots, 2, 12, 0);
    const struct msg_slot_want w = boss_expect(&b, MSG_TYPE_slot_want)->slot_want;
    assert_int_equal(w.layer, 3);
    for (uint64_t ms = 500, sum = 0; ms <= 2000; ms *= 2) {
        const struct msg_slot_want again = boss_expect(&b, MSG_TYPE_slot_want)->slot_want;
        assert_memory_equal(&again, &w, sizeof(w));
        sum += ms;
        assert_true(util_now_ns() - before >= sum * 1000000);
    }
    b.wanted = w.serial;
    answer(&b, slots, &w, 13, 0);
    struct msg m = {.type = MSG_TYPE_slot_filled, .slot_filled = {.kind = w.kind, .slot = 1, .layer = 3, .serial = w.serial}};
    boss_tell(&b, &m, NULL, 0);
    boss_put_layer(&b, 0, 1, 2, 0, 1);
    boss_expect_layer(&b, 1, 12);
    fill_slot(&b, slots, 4, 14, 0);
    boss_put_layer(&b, 0, 2, 3, 0, 1);
    boss_expect_layer(&b, 2, 13);
    boss_tell(&b, &m, NULL, 0);
    boss_put_layer(&b, 0, 3, 5, 0, 1);
    usleep(20000);
    fill_slot(&b, slots, 5, 15, 0);
    boss_expect_layer(&b, 3, 15);
    boss_end(&b);
}

/* The loader fills a slot once for each number, however often it is asked, and gives the answer again. */
static void test_slot_filled_again(void **state)
{
    (void)state;
    struct boss b;
    int fds[2];
    boss_start(&b, MSG_ROLE_LOADER);
    for (int i = 0; i < 2; i++)
        fds[i] = shm_make("test", SEGMENT_BYTES, false, NULL);
    struct msg m = {.type = MSG_TYPE_slot_fill, .slot_fill = {.slot = 1, .layer = 3, .bytes = SEGMENT_BYTES, .serial = 7}};
    boss_tell(&b, &m, &fds[0], 1);
    boss_tell(&b, &m, &fds[1], 1); /* while it is in the queue, or just done */
    assert_int_equal(boss_expect(&b, MSG_TYPE_slot_filled)->slot_filled.serial, 7);
    for (int i = 0; i < 3; i++)
        boss_tell(&b, &m, &fds[1], 1);
    m.slot_fill.serial = 8;
    m.slot_fill.layer = 4;
    boss_tell(&b, &m, &fds[0], 1);
    uint32_t n = 0;
    for (uint64_t serial = 7; serial == 7; n++) {
        const struct msg_slot_filled *f = &boss_expect(&b, MSG_TYPE_slot_filled)->slot_filled;
        assert_int_equal(f->slot, 1);
        assert_int_equal(f->layer, f->serial == 7 ? 3 : 4);
        serial = f->serial;
    }
    assert_in_range(n, 4, 5); /* three, and that of the second, if it came too late; then the new one */
    for (int i = 0; i < 2; i++) {
        uint8_t *p;
        assert_ok(shm_map(fds[i], SEGMENT_BYTES, false, (void **)&p, err));
        assert_int_equal(p[SEGMENT_BYTES - 1], i == 0 ? 4 * 16 : 0); /* nobody wrote to the second memfd */
        shm_unmap(p, SEGMENT_BYTES);
        close(fds[i]);
    }
    boss_end(&b);
}

/* An answer to nothing: the slot was never asked for. */
static void test_filled_too_early(void **state)
{
    (void)state;
    struct boss b;
    int slots[2];
    configure_streaming(&b, slots);
    boss_tell(&b, &(struct msg){.type = MSG_TYPE_slot_filled, .slot_filled = {.slot = 1}}, NULL, 0);
    boss_tell_type(&b, MSG_TYPE_start);
    boss_expect(&b, MSG_TYPE_ready);
    fill_slot(&b, slots, 2, 12, 0);
    boss_end(&b);
}

/* A layer out of turn, as after a restart, takes the place of what was wanted there; late answers to older requests are nothing. */
static void test_streaming_out_of_turn(void **state)
{
    (void)state;
    struct boss b;
    int slots[2];
    start_streaming(&b, slots);
    fill_slot(&b, slots, 2, 12, 0);
    boss_expect(&b, MSG_TYPE_slot_want); /* layer 3: unanswered */
    boss_put_layer(&b, 0, 1, 4, 0, 1);
    fill_slot(&b, slots, 4, 99, 2); /* an answer with the serial of an older request */
    usleep(20000);
    struct msg m = {.type = MSG_TYPE_slot_filled, .slot_filled = {.slot = 0, .layer = 4, .serial = 3}};
    boss_tell(&b, &m, NULL, 0);
    boss_expect_layer(&b, 1, 99);
    boss_end(&b);

    start_streaming(&b, slots);
    fill_slot(&b, slots, 2, 12, 0);
    m.slot_filled.serial = 100;
    boss_tell(&b, &m, NULL, 0);
    boss_expect(&b, MSG_TYPE_slot_want);
    boss_expect_error(&b, -EPROTO, "unexpected SLOT_FILLED (kind 0, slot 0, layer 4)");

    start_streaming(&b, slots);
    boss_expect(&b, MSG_TYPE_slot_want);
    boss_expect(&b, MSG_TYPE_slot_want);
    boss_put_layer(&b, 0, 1, 2, 0, 1); /* waits for its layer: the end of the process must not wait with it */
    usleep(20000);
    boss_end(&b);
}

int main(int argc, char **argv)
{
    int status;
    if (boss_is_stage(argc, argv, &status))
        return status;
    const struct CMUnitTest tests[] = {
        FD_TEST(test_fill),
        FD_TEST(test_fill_fails),
        FD_TEST(test_unsealed_segment),
        FD_TEST(test_segment_refused),
        FD_TEST(test_budget),
        FD_TEST(test_held),
        FD_TEST(test_streaming),
        FD_TEST(test_asked_again),
        FD_TEST(test_slot_filled_again),
        FD_TEST(test_filled_too_early),
        FD_TEST(test_streaming_out_of_turn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
