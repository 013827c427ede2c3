/* SPDX-License-Identifier: MIT
 * The stage skeleton with a tiny stage behind it: this program runs itself again as the stage (argument --stage) and plays the
 * coordinator: handshake, segments, chunks through rings, failures, draining, pauses, and every way to end. */
#include "tests/proto/proto_test.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "proto/budget.h"
#include "proto/chunk.h"
#include "proto/conn.h"
#include "proto/ring.h"
#include "proto/shm.h"
#include "proto/stage.h"
#include "proto/status.h"
#include "proto/util.h"

#define EPOCH 5
#define HIDDEN 16
#define SEGMENT_BYTES 8192
#define SLOTS 2

/* Chunk ids with a meaning to the tiny stage. */
enum { ID_FAIL = 1000, ID_SLEEP = 1001, ID_SILENT_FAIL = 1002 };

/* ---- the stage ---- */

struct tiny {
    uint64_t segment_sum;
    const uint8_t *streamed[8]; /* by layer: where it lies */
    uint32_t first_streamed;
    char backend[32];
};

static int tiny_open(void **ret_state, struct err *err)
{
    *ret_state = calloc(1, sizeof(struct tiny));
    return *ret_state ? 0 : err_set(err, -ENOMEM, "tiny: out of memory");
}

static int tiny_configure(void *state, struct stage_io *io, const struct msg_configure *c, struct err *err)
{
    struct tiny *t = state;
    snprintf(t->backend, sizeof(t->backend), "tiny %.20s", c->variant);
    int r = budget_take(stage_budget(io), BUDGET_KV, 1000, err);
    return r;
}

static int worker_configure(void *state, struct stage_io *io, const struct msg_configure *c, struct err *err)
{
    int r = tiny_configure(state, io, c, err);
    for (uint32_t layer = 0; r == 0 && layer < c->n_layers; layer++)
        r = layer < c->n_layers - c->streamed ? stage_want_segment(io, 0, layer, SEGMENT_BYTES, err)
                                              : stage_stream_segment(io, 0, layer, layer % c->stream_slots, SEGMENT_BYTES, err);
    ((struct tiny *)state)->first_streamed = c->n_layers - c->streamed;
    return r;
}

static int tiny_segment(void *state, uint32_t kind, uint32_t layer, const void *data, uint64_t bytes, struct err *err)
{
    struct tiny *t = state;
    const uint8_t *p = data;
    (void)kind;
    if (layer >= t->first_streamed)
        t->streamed[layer] = p;
    for (uint64_t i = 0; i < bytes; i++)
        t->segment_sum += p[i];
    return p[0] == 255 ? err_set(err, -EILSEQ, "tiny: layer %u is not to its taste", layer) : 0;
}

static int tiny_fill(void *state, uint32_t kind, uint32_t layer, uint32_t slot, int fd, uint64_t bytes, struct err *err)
{
    void *p;
    (void)state;
    (void)slot;
    if (layer == 13)
        return err_set(err, -EIO, "tiny: 'layer 13' cannot be read");
    if (layer == 14)
        sleep(60);
    int r = shm_map(fd, bytes, true, &p, err);
    if (r < 0)
        return r;
    memset(p, (int)(layer * 16 + kind), bytes);
    shm_unmap(p, bytes);
    return 0;
}

static int tiny_process(void *state, struct stage_io *io, uint32_t input, struct chunk *c, const void *payload, struct err *err)
{
    if (c->h.id == ID_FAIL)
        return err_set(err, -ERANGE, "tiny: chunk %" PRIu64 " of input %u does not please", c->h.id, input);
    if (c->h.id == ID_SILENT_FAIL)
        return -EDOM;
    if (c->h.id == ID_SLEEP)
        sleep(60);
    const float *x = payload;
    float *y = stage_reserve(io, 0, c);
    if (!y)
        return -ECANCELED;
    for (uint32_t i = 0; i < c->h.n_tokens * HIDDEN; i++)
        y[i] = x[i] + 1 + (float)input;
    const uint8_t *w = ((struct tiny *)state)->streamed[c->h.layer];
    if (w)
        y[0] = w[0] == w[SEGMENT_BYTES - 1] ? w[0] : -1;
    stage_commit(io, 0);
    return 0;
}

static void tiny_stats(void *state, struct msg_stats *ret)
{
    ret->bytes_read = ((struct tiny *)state)->segment_sum;
}

static const char *tiny_backend(void *state)
{
    return ((struct tiny *)state)->backend;
}

static void tiny_close(void *state)
{
    free(state);
}

static const struct stage_ops stages[MSG_ROLES] = {
    [MSG_ROLE_LOADER] = {MSG_ROLE_LOADER, 1, 1, tiny_open, tiny_configure, NULL, tiny_fill, tiny_process, NULL, NULL, tiny_close},
    [MSG_ROLE_NPU] = {MSG_ROLE_NPU, 2, 1, tiny_open, worker_configure, tiny_segment, NULL, tiny_process, tiny_stats, tiny_backend,
                      tiny_close},
    [MSG_ROLE_GPU] = {MSG_ROLE_GPU, 1, 2, tiny_open, tiny_configure, NULL, NULL, tiny_process, NULL, tiny_backend, tiny_close},
};

/* ---- the coordinator ---- */

static uint32_t epoch; /* of rings and chunks */

struct boss {
    uv_loop_t loop;
    struct conn *conn;
    pid_t pid;
    bool closed, exited;
    int status;
    enum msg_role role;
    struct msg queue[64];
    int fds[64]; /* of segment_new */
    uint32_t n_queued, n_taken;
    int bell_fds[2]; /* ours, the stage's */
    int page_fd;     /* status page */
    struct bell *bells[2];
    int ring_fds[2][2]; /* direction, index */
    struct ring *rings[2][2];
};

static void on_message(void *ctx, struct conn *c, const struct msg *m, int *fds, int n_fds)
{
    struct boss *b = ctx;
    (void)c;
    assert_true(b->n_queued < ARRAY_LEN(b->queue));
    b->fds[b->n_queued] = n_fds ? take_fd(&fds[0]) : -1;
    b->queue[b->n_queued++] = *m;
}

static void on_closed(void *ctx, struct conn *c, const struct err *err)
{
    struct boss *b = ctx;
    (void)c;
    if (err->code)
        print_error("connection: %s\n", err->text);
    b->closed = true;
}

/* The next message, which must be of type t. */
static const struct msg *expect(struct boss *b, enum msg_type t)
{
    while (b->n_taken == b->n_queued && !b->closed)
        uv_run(&b->loop, UV_RUN_ONCE);
    assert_true(b->n_taken < b->n_queued);
    const struct msg *m = &b->queue[b->n_taken++];
    if (m->type != t)
        msg_print(stderr, m);
    assert_int_equal(m->type, t);
    return m;
}

static pid_t spawn(enum msg_role role, int *ret_fd)
{
    int fds[2];
    char number[16];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    snprintf(number, sizeof(number), "%d", (int)role);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (fds[1] == 3 ? fcntl(3, F_SETFD, 0) == 0 : dup2(fds[1], 3) == 3)
            execl("/proc/self/exe", "stage", "--stage", number, (char *)NULL);
        _exit(127);
    }
    close(fds[1]);
    *ret_fd = fds[0];
    return pid;
}

static void boss_open(struct boss *b, enum msg_role role)
{
    static const struct conn_handlers handlers = {.message = on_message, .closed = on_closed};
    int fd;
    memset(b, 0, sizeof(*b));
    b->role = role;
    epoch = EPOCH;
    assert_true((b->page_fd = status_make(NULL)) >= 0);
    for (int i = 0; i < 2; i++) {
        assert_true((b->bell_fds[i] = bell_make(NULL)) >= 0);
        assert_ok(bell_map(b->bell_fds[i], &b->bells[i], err));
        b->ring_fds[0][i] = b->ring_fds[1][i] = -1;
    }
    assert_int_equal(uv_loop_init(&b->loop), 0);
    b->pid = spawn(role, &fd);
    assert_ok(conn_open(&b->loop, fd, "stage", &handlers, b, &b->conn, err));
    const struct msg *m = expect(b, MSG_TYPE_hello);
    assert_int_equal(m->hello.role, role);
    assert_int_equal(m->hello.pid, b->pid);
    assert_string_equal(m->hello.build, TANDEM_VERSION);
    assert_string_equal(m->hello.backends, "cpu");
}

static void tell(struct boss *b, const struct msg *m, const int *fds, int n_fds)
{
    assert_ok(conn_send(b->conn, m, fds, n_fds, err));
}

static void tell_type(struct boss *b, enum msg_type t)
{
    tell(b, &(struct msg){.type = t}, NULL, 0);
}

static struct msg configure_msg(void)
{
    struct msg m = {.type = MSG_TYPE_configure};
    m.configure = (struct msg_configure){.n_layers = 2,
                                         .hidden = HIDDEN,
                                         .ffn = 16,
                                         .n_heads = 1,
                                         .n_kv_heads = 1,
                                         .head_dim = 16,
                                         .vocab = 50,
                                         .window = 4,
                                         .global_every = 6,
                                         .context_max = 100,
                                         .eps = 1e-6f,
                                         .rope_base_global = 1,
                                         .rope_base_local = 1,
                                         .rope_factor_global = 1,
                                         .attn_scale = 1,
                                         .budget = 1 << 20,
                                         .epoch = EPOCH,
                                         .context = 100,
                                         .sequences = 4,
                                         .chunk_tokens = 8,
                                         .ring_slots = SLOTS,
                                         .logits_rows = 4,
                                         .threads = 1,
                                         .backend = "auto",
                                         .variant = "ref"};
    return m;
}

static void attach(struct boss *b, uint32_t direction, uint32_t index, size_t slot_bytes)
{
    int fd = ring_make("test", SLOTS, slot_bytes, epoch, NULL);
    assert_true(fd >= 0);
    assert_ok(ring_attach(fd, direction ? RING_CONSUMER : RING_PRODUCER, epoch, b->bells[0], b->bells[1],
                          &b->rings[direction][index], err));
    b->ring_fds[direction][index] = fd;
    struct msg m = {.type = MSG_TYPE_attach_ring, .attach_ring = {.direction = direction, .index = index, .epoch = epoch}};
    tell(b, &m, (int[]){fd, b->bell_fds[0]}, 2);
}

static void attach_all(struct boss *b)
{
    for (uint32_t i = 0; i < stages[b->role].n_inputs; i++)
        attach(b, 0, i, 4096);
    for (uint32_t i = 0; i < stages[b->role].n_outputs; i++)
        attach(b, 1, i, 4096);
}

static void configure(struct boss *b)
{
    struct msg m = configure_msg();
    tell(b, &m, (int[]){b->bell_fds[1], b->page_fd}, 2);
}

/* What the loader would do with the segments that the stage announces. */
static void fill_segments(struct boss *b, uint8_t value, bool seal)
{
    uint32_t n = b->role == MSG_ROLE_NPU ? 2 : 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct msg *m = expect(b, MSG_TYPE_segment_new);
        assert_int_equal(m->segment_new.layer, i);
        assert_int_equal(m->segment_new.bytes, SEGMENT_BYTES);
        int fd = b->fds[b->n_taken - 1];
        void *p;
        assert_ok(shm_map(fd, SEGMENT_BYTES, true, &p, err));
        memset(p, value + (int)i, SEGMENT_BYTES);
        shm_unmap(p, SEGMENT_BYTES);
        if (seal)
            assert_ok(shm_seal_write(fd, err));
    }
    assert_int_equal(expect(b, MSG_TYPE_segment_end)->segment_end.count, n);
    for (uint32_t i = 0; i < n; i++)
        tell(b, &(struct msg){.type = MSG_TYPE_segment_filled, .segment_filled = {.layer = i}}, NULL, 0);
}

/* Up to READY. */
static void start(struct boss *b, enum msg_role role)
{
    boss_open(b, role);
    configure(b);
    attach_all(b);
    fill_segments(b, 1, true);
    tell_type(b, MSG_TYPE_start);
    const struct msg *m = expect(b, MSG_TYPE_ready);
    assert_string_equal(m->ready.backend, role == MSG_ROLE_LOADER ? "cpu" : "tiny ref");
}

static int wait_exit(struct boss *b)
{
    if (!b->exited)
        assert_int_equal(waitpid(b->pid, &b->status, 0), b->pid);
    b->exited = true;
    return b->status;
}

static void drop_rings(struct boss *b)
{
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 2; k++) {
            ring_detach(take_ptr(&b->rings[i][k]));
            util_close_fd(&b->ring_fds[i][k]);
            b->ring_fds[i][k] = -1;
        }
    }
}

/* Takes everything away; the stage must have been told to end, or ends because of it. */
static void boss_close(struct boss *b)
{
    conn_close(b->conn);
    uv_run(&b->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&b->loop), 0);
    wait_exit(b);
    drop_rings(b);
    for (int i = 0; i < 2; i++) {
        bell_unmap(b->bells[i]);
        close(b->bell_fds[i]);
    }
    close(b->page_fd);
    for (uint32_t i = 0; i < b->n_queued; i++) {
        if (b->fds[i] >= 0)
            close(b->fds[i]);
    }
}

static void end(struct boss *b)
{
    tell_type(b, MSG_TYPE_shutdown);
    assert_int_equal(wait_exit(b), 0);
    boss_close(b);
}

static void expect_error(struct boss *b, int code, const char *part)
{
    const struct msg *m = expect(b, MSG_TYPE_error);
    if (m->error.code != code || !strstr(m->error.text, part))
        print_error("%d: %s\n", m->error.code, m->error.text);
    assert_int_equal(m->error.code, code);
    assert_non_null(strstr(m->error.text, part));
    int status = wait_exit(b);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
    boss_close(b);
}

/* ---- chunks ---- */

static struct chunk chunk_of(uint64_t id, float **ret_x)
{
    static float x[2 * HIDDEN];
    struct chunk c;
    memset(&c, 0, sizeof(c));
    c.h = (struct chunk_header){.magic = CHUNK_MAGIC,
                                .epoch = epoch,
                                .id = id,
                                .kind = CHUNK_HIDDEN,
                                .layer = 1,
                                .n_tokens = 2,
                                .n_seqs = 1,
                                .payload_bytes = sizeof(x),
                                .times = {.committed_at_ns = util_now_ns(), .hops = 2}};
    c.tokens[1].pos = 1;
    for (size_t i = 0; i < ARRAY_LEN(x); i++)
        x[i] = (float)id + (float)i;
    *ret_x = x;
    return c;
}

static void put_chunk(struct boss *b, uint32_t input, const struct chunk *c, const void *payload)
{
    struct ring *r = b->rings[0][input];
    void *slot;
    uint32_t seen;
    while (seen = bell_read(b->bells[0]), !(slot = ring_reserve(r)))
        bell_wait(b->bells[0], seen, 0, -1);
    void *p = chunk_write(slot, ring_slot_bytes(r), c);
    assert_non_null(p);
    memcpy(p, payload, c->h.payload_bytes);
    ring_commit(r);
}

static void put(struct boss *b, uint32_t input, uint64_t id)
{
    float *x;
    struct chunk c = chunk_of(id, &x);
    put_chunk(b, input, &c, x);
}

/* The next chunk of an output; *ret_payload is valid until the caller releases. */
static void get(struct boss *b, uint32_t output, struct chunk *ret, const void **ret_payload)
{
    const struct chunk_limits limits = {
        .epoch = epoch, .max_tokens = 8, .max_seqs = 4, .context = 100, .n_layers = 6, .vocab = 50, .hidden = HIDDEN};
    struct ring *r = b->rings[1][output];
    void *slot;
    uint32_t seen;
    while (seen = bell_read(b->bells[0]), !(slot = ring_peek(r))) {
        assert_false(ring_poisoned(r));
        bell_wait(b->bells[0], seen, 0, -1);
    }
    assert_ok(chunk_read(slot, ring_slot_bytes(r), &limits, ret, ret_payload, err));
}

static void expect_chunk(struct boss *b, uint32_t output, uint64_t id, float added)
{
    struct chunk c;
    const void *payload;
    get(b, output, &c, &payload);
    assert_int_equal(c.h.id, id);
    assert_int_equal(c.h.kind, CHUNK_HIDDEN);
    for (uint32_t i = 0; i < 2 * HIDDEN; i++) {
        float v;
        memcpy(&v, (const uint8_t *)payload + 4 * i, 4);
        assert_true(v == (float)id + (float)i + added);
    }
    assert_int_equal(c.h.times.hops, 3);
    assert_true(c.h.times.committed_at_ns > 0 && c.h.times.committed_at_ns <= util_now_ns());
    assert_true((c.h.times.npu_ns > 0) == (b->role == MSG_ROLE_NPU));
    assert_true((c.h.times.gpu_ns > 0) == (b->role == MSG_ROLE_GPU));
    assert_true((c.h.times.loader_ns > 0) == (b->role == MSG_ROLE_LOADER));
    assert_true((c.h.times.npu_wait_ns > 0) == (b->role == MSG_ROLE_NPU));
    assert_true((c.h.times.gpu_wait_ns > 0) == (b->role == MSG_ROLE_GPU));
    ring_release(b->rings[1][output]);
}

static void expect_failure(struct boss *b, uint32_t output, uint64_t id, int code, const char *part)
{
    struct chunk c;
    const void *payload;
    get(b, output, &c, &payload);
    assert_int_equal(c.h.id, id);
    assert_int_equal(c.h.kind, CHUNK_FAILED);
    assert_int_equal(c.h.status, code);
    char text[257];
    snprintf(text, sizeof(text), "%.*s", (int)c.h.payload_bytes, (const char *)payload);
    assert_non_null(strstr(text, part));
    ring_release(b->rings[1][output]);
}

static const struct msg_stats *stats(struct boss *b, uint64_t serial)
{
    tell(b, &(struct msg){.type = MSG_TYPE_stats_request, .stats_request = {.serial = serial}}, NULL, 0);
    const struct msg *m = expect(b, MSG_TYPE_stats);
    assert_int_equal(m->stats.serial, serial);
    return &m->stats;
}

/* ---- tests ---- */

static void test_life(void **state)
{
    (void)state;
    struct boss b;
    start(&b, MSG_ROLE_NPU);
    const struct msg_stats *s = stats(&b, 42);
    assert_int_equal(s->weights, 2 * SEGMENT_BYTES);
    assert_int_equal(s->kv, 1000);
    assert_int_equal(s->total_peak, 2 * SEGMENT_BYTES + 1000);
    assert_int_equal(s->weights_peak, 2 * SEGMENT_BYTES);
    assert_int_equal(s->kv_peak, 1000);
    assert_int_equal(s->scratch_peak, 0);
    assert_int_equal(s->bytes_read, SEGMENT_BYTES * (1 + 2)); /* the sum of what it saw in the segments */
    assert_int_equal(s->chunks, 0);
    for (uint64_t id = 1; id <= 20; id++) {
        put(&b, id % 2, id);
        expect_chunk(&b, 0, id, 1 + (float)(id % 2));
    }
    tell_type(&b, MSG_TYPE_drain);
    expect(&b, MSG_TYPE_drained);
    s = stats(&b, 43);
    assert_int_equal(s->chunks, 20);
    assert_int_equal(s->tokens, 40);
    assert_true(s->busy_ns > 0);
    for (uint64_t id = 21; s->idle_ns == 0 && id < 70; id++) { /* on a busy machine each chunk may lie there before it looks */
        usleep(1000);
        put(&b, 0, id);
        expect_chunk(&b, 0, id, 1);
        s = stats(&b, 43 + id);
    }
    assert_true(s->idle_ns > 0);
    end(&b);
}

/* What waits on input 0 goes before what waits on input 1. */
static void test_priority(void **state)
{
    (void)state;
    struct boss b;
    boss_open(&b, MSG_ROLE_NPU);
    configure(&b);
    attach_all(&b);
    fill_segments(&b, 1, true);
    put(&b, 1, 1);
    put(&b, 0, 2);
    tell_type(&b, MSG_TYPE_start);
    expect(&b, MSG_TYPE_ready);
    expect_chunk(&b, 0, 2, 1);
    expect_chunk(&b, 0, 1, 2);
    end(&b);
}

/* A chunk that fails is reported towards the coordinator, and the stage goes on; so does one that failed before it. */
static void test_failed_chunks(void **state)
{
    (void)state;
    for (int role = 0; role < MSG_ROLES; role++) {
        struct boss b;
        uint32_t to_boss = role == MSG_ROLE_GPU ? 1 : 0;
        float *x;
        start(&b, (enum msg_role)role);
        put(&b, 0, ID_FAIL);
        expect_failure(&b, to_boss, ID_FAIL, -ERANGE, "tiny: chunk 1000 of input 0 does not please");
        put(&b, 0, ID_SILENT_FAIL);
        expect_failure(&b, to_boss, ID_SILENT_FAIL, -EDOM, msg_role_name((enum msg_role)role));
        struct chunk c = chunk_of(9, &x);
        c.h.kind = CHUNK_FAILED;
        c.h.status = -EXDEV;
        c.h.payload_bytes = 8;
        put_chunk(&b, 0, &c, "up there");
        expect_failure(&b, to_boss, 9, -EXDEV, "up there");
        put(&b, 0, 3);
        expect_chunk(&b, 0, 3, 1);
        end(&b);
    }
}

static void test_stale_epoch(void **state)
{
    (void)state;
    struct boss b;
    float *x;
    start(&b, MSG_ROLE_NPU);
    struct chunk c = chunk_of(1, &x);
    c.h.epoch = EPOCH - 1;
    put_chunk(&b, 0, &c, x);
    put(&b, 0, 2);
    expect_chunk(&b, 0, 2, 1);
    tell_type(&b, MSG_TYPE_drain); /* the dropped one leaves no error behind */
    expect(&b, MSG_TYPE_drained);
    end(&b);
}

/* More chunks than the output takes: the stage waits, says so, and loses none. Whether it is waiting cannot be seen from outside,
 * so it is given ever more time to get there. */
static void test_blocked(void **state)
{
    (void)state;
    struct boss b;
    const struct msg_stats *s;
    uint64_t n = 0;
    start(&b, MSG_ROLE_NPU);
    do {
        for (uint64_t id = 1; id <= 2 * SLOTS; id++)
            put(&b, 0, id);
        usleep(1000u << n);
        for (uint64_t id = 1; id <= 2 * SLOTS; id++)
            expect_chunk(&b, 0, id, 1);
        tell_type(&b, MSG_TYPE_drain);
        expect(&b, MSG_TYPE_drained);
        s = stats(&b, ++n);
        assert_int_equal(s->chunks, n * 2 * SLOTS);
    } while (s->blocked_ns == 0 && n < 12);
    assert_true(s->blocked_ns > 0);
    for (uint64_t id = 1; id <= 2 * SLOTS; id++)
        put(&b, 0, id);
    end(&b); /* while it waits for space */
}

static void test_broken_chunk(void **state)
{
    (void)state;
    struct boss b;
    float *x;
    start(&b, MSG_ROLE_NPU);
    struct chunk c = chunk_of(1, &x);
    c.h.layer = 2;
    put_chunk(&b, 1, &c, x);
    expect_error(&b, -EPROTO, "input ring 1: chunk 1: layer 2; the model has 2");
}

static void test_hostile_ring(void **state)
{
    (void)state;
    struct boss b;
    void *m;
    start(&b, MSG_ROLE_NPU);
    assert_ok(shm_map(b.ring_fds[0][0], 4096, true, &m, err));
    *(uint32_t *)(void *)((uint8_t *)m + 64) = 1000; /* head */
    bell_ring(b.bells[1]);
    shm_unmap(m, 4096);
    expect_error(&b, -EPROTO, "input ring 0 is poisoned");
}

/* A reader that lies: what has no place any more must not be lost without a word. */
static void test_hostile_reader(void **state)
{
    (void)state;
    struct boss b;
    void *m;
    start(&b, MSG_ROLE_NPU);
    assert_ok(shm_map(b.ring_fds[1][0], 4096, true, &m, err));
    *(uint32_t *)(void *)((uint8_t *)m + 128) = 1000; /* tail */
    shm_unmap(m, 4096);
    put(&b, 0, 1);
    expect_error(&b, -EPROTO, "input ring 0: output ring 0 is poisoned");
}

/* A neighbour that spoils the count of waiters in a bell keeps nobody asleep for ever. */
static void test_hostile_bell(void **state)
{
    (void)state;
    struct boss b;
    void *m;
    struct chunk c;
    const void *y;
    start(&b, MSG_ROLE_NPU);
    usleep(20000); /* it sleeps; where it does not yet, the test is only weaker */
    assert_ok(shm_map(b.bell_fds[1], 4096, true, &m, err));
    *(uint32_t *)(void *)((uint8_t *)m + 68) = 0; /* waiters */
    shm_unmap(m, 4096);
    put(&b, 0, 2);
    get(&b, 0, &c, &y);
    ring_release(b.rings[1][0]);
    assert_int_equal(c.h.id, 2);
    end(&b);
}

static void test_small_output_slots(void **state)
{
    (void)state;
    struct boss b;
    float *x;
    boss_open(&b, MSG_ROLE_LOADER);
    struct msg m = configure_msg();
    m.configure.hidden = 512;
    tell(&b, &m, (int[]){b.bell_fds[1], b.page_fd}, 2);
    attach(&b, 0, 0, 65536);
    attach(&b, 1, 0, 4096);
    expect(&b, MSG_TYPE_segment_end);
    tell_type(&b, MSG_TYPE_start);
    expect(&b, MSG_TYPE_ready);
    struct chunk c = chunk_of(1, &x);
    static float big[4 * 512];
    c.h.payload_bytes = 2 * 512 * sizeof(float);
    put_chunk(&b, 0, &c, big);
    expect_error(&b, -EMSGSIZE, "chunk 1 of 2 tokens needs a slot of");
}

static void test_fill(void **state)
{
    (void)state;
    struct boss b;
    int fds[3];
    start(&b, MSG_ROLE_LOADER);
    for (uint32_t i = 0; i < 3; i++) {
        fds[i] = shm_make("test", SEGMENT_BYTES, true, NULL);
        struct msg m = {.type = MSG_TYPE_segment_fill, .segment_fill = {.kind = i, .layer = i + 1, .bytes = SEGMENT_BYTES}};
        tell(&b, &m, &fds[i], 1);
    }
    for (uint32_t seen = 0, n = 0; n < 3; n++) { /* two are filled at a time, and the second may be ready first */
        const struct msg *m = expect(&b, MSG_TYPE_segment_filled);
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
    put(&b, 0, 1); /* the data thread works beside it */
    expect_chunk(&b, 0, 1, 1);
    end(&b);
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
        start(&b, MSG_ROLE_LOADER);
        int fd = shm_make("test", SEGMENT_BYTES, true, NULL);
        struct msg m = {.type = MSG_TYPE_segment_fill, .segment_fill = {.layer = cases[i].layer, .bytes = cases[i].bytes}};
        for (int k = 0; k < 3; k++) /* those behind it are given up */
            tell(&b, &m, &fd, 1);
        close(fd);
        expect_error(&b, cases[i].code, cases[i].part);
    }
}

/* What the loader would do: whatever is wanted next must be `layer`; the slot then holds `value`. */
static void fill_slot(struct boss *b, const int *slots, uint32_t layer, uint8_t value, uint64_t lag)
{
    const struct msg_slot_want w = expect(b, MSG_TYPE_slot_want)->slot_want;
    void *p;
    assert_int_equal(w.layer, layer);
    assert_int_equal(w.slot, layer % 2);
    assert_int_equal(w.bytes, SEGMENT_BYTES);
    assert_ok(shm_map(slots[w.slot], SEGMENT_BYTES, true, &p, err));
    memset(p, value, SEGMENT_BYTES);
    shm_unmap(p, SEGMENT_BYTES);
    struct msg m = {.type = MSG_TYPE_slot_filled,
                    .slot_filled = {.kind = w.kind, .slot = w.slot, .layer = w.layer, .serial = w.serial - lag}};
    tell(b, &m, NULL, 0);
}

static void configure_streaming(struct boss *b, int *ret_slots)
{
    boss_open(b, MSG_ROLE_NPU);
    struct msg m = configure_msg();
    m.configure.n_layers = 6;
    m.configure.streamed = 4; /* layers 2 to 5, in slots 0, 1, 0, 1 */
    m.configure.stream_slots = 2;
    tell(b, &m, (int[]){b->bell_fds[1], b->page_fd}, 2);
    attach_all(b);
    for (uint32_t i = 0; i < 2; i++) {
        const struct msg *s = expect(b, MSG_TYPE_slot_new);
        assert_int_equal(s->slot_new.slot, i);
        assert_int_equal(s->slot_new.bytes, SEGMENT_BYTES);
        ret_slots[i] = b->fds[b->n_taken - 1];
    }
    fill_segments(b, 1, true);
}

static void start_streaming(struct boss *b, int *ret_slots)
{
    configure_streaming(b, ret_slots);
    tell_type(b, MSG_TYPE_start);
    expect(b, MSG_TYPE_ready);
}

static void put_layer(struct boss *b, uint32_t input, uint64_t id, uint32_t layer, uint32_t index, uint32_t count)
{
    float *x;
    struct chunk c = chunk_of(id, &x);
    c.h.layer = layer;
    c.h.pass_index = index;
    c.h.pass_count = count;
    put_chunk(b, input, &c, x);
}

static void expect_layer(struct boss *b, uint64_t id, float value)
{
    struct chunk c;
    const void *payload;
    get(b, 0, &c, &payload);
    assert_int_equal(c.h.id, id);
    assert_true(((const float *)payload)[0] == value);
    ring_release(b->rings[1][0]);
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
    put_layer(&b, 0, 1, 2, 0, 2);
    expect_layer(&b, 1, 12);
    put_layer(&b, 0, 2, 2, 1, 2);
    expect_layer(&b, 2, 12);
    fill_slot(&b, slots, 4, 14, 0);
    for (uint32_t layer = 3; layer < 6; layer++) {
        put_layer(&b, 0, layer, layer, 0, 0);
        if (layer == 5) /* waits for what is filled only then: layer 5 was wanted when layer 3 was left */
            usleep(20000);
        if (layer == 5)
            fill_slot(&b, slots, 5, 15, 0);
        expect_layer(&b, layer, 10 + (float)layer);
    }
    fill_slot(&b, slots, 2, 22, 0); /* of the next pass */
    fill_slot(&b, slots, 3, 23, 0);
    put_layer(&b, 0, 9, 0, 0, 1); /* pinned */
    struct chunk c;
    const void *payload;
    get(&b, 0, &c, &payload);
    ring_release(b.rings[1][0]);
    put_layer(&b, 0, 10, 2, 0, 2);
    expect_layer(&b, 10, 22);
    /* the second chunk of this pass never comes (it failed elsewhere): the next layer's first one gives the slot away */
    put_layer(&b, 0, 11, 3, 0, 2);
    expect_layer(&b, 11, 23);
    fill_slot(&b, slots, 4, 24, 0);
    const struct msg_stats *s = stats(&b, 7);
    assert_int_equal(s->stream_visits, 6);
    assert_true(s->stream_hits <= 6 && (s->stream_hits == 6) == (s->stream_wait_ns == 0));
    assert_true(s->stream_wait_ns >= s->stream_wait_max_ns && (s->stream_wait_max_ns > 0) == (s->stream_wait_ns > 0));
    assert_int_equal(s->weights, 4 * SEGMENT_BYTES);
    end(&b);
}

/* An answer to nothing: the slot was never asked for. */
static void test_filled_too_early(void **state)
{
    (void)state;
    struct boss b;
    int slots[2];
    configure_streaming(&b, slots);
    tell(&b, &(struct msg){.type = MSG_TYPE_slot_filled, .slot_filled = {.slot = 1}}, NULL, 0);
    tell_type(&b, MSG_TYPE_start);
    expect(&b, MSG_TYPE_ready);
    fill_slot(&b, slots, 2, 12, 0);
    end(&b);
}

/* A layer out of turn, as after a restart, takes the place of what was wanted there; late answers to older requests are nothing. */
static void test_streaming_out_of_turn(void **state)
{
    (void)state;
    struct boss b;
    int slots[2];
    start_streaming(&b, slots);
    fill_slot(&b, slots, 2, 12, 0);
    expect(&b, MSG_TYPE_slot_want); /* layer 3: unanswered */
    put_layer(&b, 0, 1, 4, 0, 1);
    fill_slot(&b, slots, 4, 99, 2); /* an answer with the serial of an older request */
    usleep(20000);
    struct msg m = {.type = MSG_TYPE_slot_filled, .slot_filled = {.slot = 0, .layer = 4, .serial = 3}};
    tell(&b, &m, NULL, 0);
    expect_layer(&b, 1, 99);
    end(&b);

    start_streaming(&b, slots);
    fill_slot(&b, slots, 2, 12, 0);
    m.slot_filled.serial = 100;
    tell(&b, &m, NULL, 0);
    expect(&b, MSG_TYPE_slot_want);
    expect_error(&b, -EPROTO, "unexpected SLOT_FILLED (kind 0, slot 0, layer 4)");

    start_streaming(&b, slots);
    expect(&b, MSG_TYPE_slot_want);
    expect(&b, MSG_TYPE_slot_want);
    put_layer(&b, 0, 1, 2, 0, 1); /* waits for its layer: the end of the process must not wait with it */
    usleep(20000);
    end(&b);
}

/* A pass that begins is taken whole before the chunks that come back for its second layer. */
static void test_pass_begins_whole(void **state)
{
    (void)state;
    struct boss b;
    float *x;
    start(&b, MSG_ROLE_NPU);
    struct chunk c = chunk_of(1, &x);
    c.h.layer = 0;
    c.h.pass_count = 2;
    put_chunk(&b, 1, &c, x);
    expect_chunk(&b, 0, 1, 2);
    put(&b, 0, 5); /* came back early */
    usleep(20000);
    assert_null(ring_peek(b.rings[1][0]));
    c.h.id = 2;
    c.h.pass_index = 1;
    float *y;
    chunk_of(2, &y);
    put_chunk(&b, 1, &c, y);
    expect_chunk(&b, 0, 2, 2);
    chunk_of(5, &y);
    expect_chunk(&b, 0, 5, 1);
    end(&b);
}

static void test_unsealed_segment(void **state)
{
    (void)state;
    struct boss b;
    boss_open(&b, MSG_ROLE_NPU);
    configure(&b);
    fill_segments(&b, 1, false);
    expect_error(&b, -EPROTO, "segment kind 0 layer 0 is not sealed against writing");
}

static void test_segment_refused(void **state)
{
    (void)state;
    struct boss b;
    boss_open(&b, MSG_ROLE_NPU);
    configure(&b);
    fill_segments(&b, 255, true);
    expect_error(&b, -EILSEQ, "layer 0 is not to its taste");
}

static void test_budget(void **state)
{
    (void)state;
    struct boss b;
    boss_open(&b, MSG_ROLE_NPU);
    struct msg m = configure_msg();
    m.configure.budget = 1000 + SEGMENT_BYTES + 1;
    tell(&b, &m, (int[]){b.bell_fds[1], b.page_fd}, 2);
    expect(&b, MSG_TYPE_segment_new);
    expect_error(&b, -ENOMEM,
                 "weights of layer 1: npu_worker: 8192 bytes for weights do not fit: 9192 bytes are used of 9193 allowed");
}

/* Messages out of turn. */
static void test_handshake_order(void **state)
{
    (void)state;
    struct boss b;
    boss_open(&b, MSG_ROLE_NPU);
    tell_type(&b, MSG_TYPE_start);
    expect_error(&b, -EPROTO, "START before ring 0 was attached");

    boss_open(&b, MSG_ROLE_NPU);
    configure(&b);
    attach_all(&b);
    tell_type(&b, MSG_TYPE_start);
    expect(&b, MSG_TYPE_segment_new);
    expect(&b, MSG_TYPE_segment_new);
    expect(&b, MSG_TYPE_segment_end);
    expect_error(&b, -EPROTO, "START with 0 of 2 segments");

    boss_open(&b, MSG_ROLE_GPU);
    configure(&b);
    expect(&b, MSG_TYPE_segment_end);
    configure(&b);
    expect_error(&b, -EPROTO, "CONFIGURE came twice");

    boss_open(&b, MSG_ROLE_GPU);
    attach(&b, 0, 0, 4096);
    expect_error(&b, -EPROTO, "unexpected ATTACH_RING");

    boss_open(&b, MSG_ROLE_GPU);
    configure(&b);
    attach(&b, 0, 1, 4096);
    expect(&b, MSG_TYPE_segment_end);
    expect_error(&b, -EPROTO, "unexpected ATTACH_RING (direction 0, index 1 of 1)");

    boss_open(&b, MSG_ROLE_GPU);
    tell_type(&b, MSG_TYPE_drained);
    expect_error(&b, -EPROTO, "sent a drained message");

    start(&b, MSG_ROLE_GPU);
    tell_type(&b, MSG_TYPE_start);
    expect_error(&b, -EPROTO, "START");

    start(&b, MSG_ROLE_GPU);
    tell(&b, &(struct msg){.type = MSG_TYPE_segment_filled}, NULL, 0);
    expect_error(&b, -EPROTO, "unexpected SEGMENT_FILLED");
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
        configure(&b);
        expect(&b, MSG_TYPE_segment_end);
        int fd = ring_make("test", SLOTS, 4096, cases[i].ring_epoch, NULL);
        struct msg m = {.type = MSG_TYPE_attach_ring, .attach_ring = {.epoch = cases[i].said_epoch}};
        tell(&b, &m, (int[]){fd, b.bell_fds[0]}, 2);
        close(fd);
        expect_error(&b, cases[i].code, cases[i].part);
    }
    struct boss b;
    boss_open(&b, MSG_ROLE_GPU);
    struct msg m = configure_msg();
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    tell(&b, &m, (int[]){fd, b.page_fd}, 2);
    expect_error(&b, -EPROTO, "bell: received memfd has seals");
    boss_open(&b, MSG_ROLE_GPU);
    tell(&b, &m, (int[]){b.bell_fds[1], fd}, 2);
    close(fd);
    expect_error(&b, -EPROTO, "status page: received memfd has seals");
}

/* New rings under another epoch, in every state of the data thread: idle, with chunks before it, waiting for space. */
static void test_pause(void **state)
{
    (void)state;
    for (int when = 0; when < 4; when++) {
        struct boss b;
        start(&b, MSG_ROLE_NPU);
        for (uint64_t id = 1; when == 2 && id <= 2 * SLOTS; id++)
            put(&b, 0, id);
        for (uint32_t round = 0; round < 15; round++) {
            if (when == 1) {
                put(&b, 0, 1);
                put(&b, 1, 2);
            }
            for (int twice = 0; twice <= (when == 3); twice++) { /* the second overtakes the first, or follows it */
                struct msg m = {.type = MSG_TYPE_pause, .pause = {.epoch = ++epoch}};
                tell(&b, &m, NULL, 0);
            }
            while (expect(&b, MSG_TYPE_paused)->paused.epoch != epoch)
                assert_int_equal(when, 3);
            drop_rings(&b);
            attach_all(&b);
            tell_type(&b, MSG_TYPE_start);
            expect(&b, MSG_TYPE_ready);
            put(&b, round % 2, 7);
            expect_chunk(&b, 0, 7, 1 + (float)(round % 2));
        }
        assert_int_equal(stats(&b, 1)->weights, 2 * SEGMENT_BYTES);
        end(&b);
    }
}

static void test_pause_out_of_turn(void **state)
{
    (void)state;
    struct boss b;
    struct msg m = {.type = MSG_TYPE_pause, .pause = {.epoch = EPOCH + 1}};
    boss_open(&b, MSG_ROLE_GPU);
    tell(&b, &m, NULL, 0);
    expect_error(&b, -EPROTO, "PAUSE before CONFIGURE");

    boss_open(&b, MSG_ROLE_GPU); /* before it has rings, and with some of them */
    configure(&b);
    expect(&b, MSG_TYPE_segment_end);
    tell(&b, &m, NULL, 0);
    assert_int_equal(expect(&b, MSG_TYPE_paused)->paused.epoch, EPOCH + 1);
    epoch = EPOCH + 1;
    attach(&b, 0, 0, 4096);
    m.pause.epoch = ++epoch;
    tell(&b, &m, NULL, 0);
    expect(&b, MSG_TYPE_paused);
    drop_rings(&b);
    attach_all(&b);
    tell_type(&b, MSG_TYPE_start);
    expect(&b, MSG_TYPE_ready);
    drop_rings(&b);
    attach(&b, 0, 0, 4096);
    expect_error(&b, -EPROTO, "unexpected ATTACH_RING");

    start(&b, MSG_ROLE_GPU); /* the old epoch is over */
    m.pause.epoch = EPOCH + 1;
    tell(&b, &m, NULL, 0);
    expect(&b, MSG_TYPE_paused);
    drop_rings(&b);
    attach(&b, 0, 0, 4096);
    expect_error(&b, -ESTALE, "ATTACH_RING of epoch 5; CONFIGURE or PAUSE said 6");

    start(&b, MSG_ROLE_NPU); /* while it is paused, everything ends it as ever */
    tell(&b, &m, NULL, 0);
    expect(&b, MSG_TYPE_paused);
    end(&b);
    start(&b, MSG_ROLE_NPU);
    put(&b, 0, ID_SLEEP);
    tell(&b, &m, NULL, 0);
    tell_type(&b, MSG_TYPE_shutdown); /* while it cannot answer */
    assert_true(WIFEXITED(wait_exit(&b)));
    boss_close(&b);
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
            tell(&b, &m, &fd, 1);
            if (wrong == 4 && layer == 1)
                unfilled = fd;
            else
                close(fd);
        }
        configure(&b);
        if (wrong && wrong != 4) {
            const struct msg *m = expect(&b, MSG_TYPE_segment_new);
            assert_int_equal(m->segment_new.layer, 1);
            assert_ok(shm_seal_write(b.fds[b.n_taken - 1], err));
        }
        assert_int_equal(expect(&b, MSG_TYPE_segment_end)->segment_end.count, 2);
        if (unfilled >= 0) {
            assert_ok(shm_seal_write(unfilled, err));
            close(unfilled);
        }
        if (wrong)
            tell(&b, &(struct msg){.type = MSG_TYPE_segment_filled, .segment_filled = {.layer = 1}}, NULL, 0);
        attach_all(&b);
        tell_type(&b, MSG_TYPE_start);
        expect(&b, MSG_TYPE_ready);
        assert_int_equal(stats(&b, 1)->weights, 2 * SEGMENT_BYTES);
        put(&b, 0, 1);
        expect_chunk(&b, 0, 1, 1);
        if (wrong)
            end(&b);
        else {
            int fd = shm_make("test", SEGMENT_BYTES, true, NULL);
            struct msg m = {.type = MSG_TYPE_segment_held, .segment_held = {.bytes = SEGMENT_BYTES, .filled = 1}};
            tell(&b, &m, &fd, 1);
            close(fd);
            expect_error(&b, -EPROTO, "SEGMENT_HELD after CONFIGURE");
        }
    }
}

/* What the page says of a chunk that takes for ever, and that the control thread answers meanwhile. */
static void test_status_page(void **state)
{
    (void)state;
    struct boss b;
    struct status *page;
    struct status_work w;
    start(&b, MSG_ROLE_NPU);
    assert_ok(status_map(b.page_fd, &page, err));
    for (uint64_t id = 1; id <= 3; id++) {
        put(&b, 0, id);
        expect_chunk(&b, 0, id, 1);
    }
    tell_type(&b, MSG_TYPE_drain);
    expect(&b, MSG_TYPE_drained);
    status_read(page, &w);
    assert_int_equal(w.since_ns, 0);
    uint64_t before = util_now_ns();
    put(&b, 0, ID_SLEEP);
    do {
        usleep(1000);
        status_read(page, &w);
    } while (w.since_ns == 0);
    assert_in_range(w.since_ns, before, util_now_ns());
    assert_int_equal(w.chunk, ID_SLEEP);
    assert_int_equal(w.layer, 1);
    assert_int_equal(w.n_tokens, 2);
    assert_true(w.usual_ns > 0); /* there were others of its kind */
    tell(&b, &(struct msg){.type = MSG_TYPE_ping, .ping = {.serial = 99}}, NULL, 0);
    assert_int_equal(expect(&b, MSG_TYPE_pong)->pong.serial, 99);
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
            start(&b, MSG_ROLE_NPU);
        for (uint64_t id = 0; when == 2 && id < 2 * SLOTS; id++)
            put(&b, 0, id);
        boss_close(&b);
        assert_int_equal(b.status, 0);
    }
}

/* A computation or a read that does not come back does not keep the process. */
static void test_stuck(void **state)
{
    (void)state;
    struct boss b;
    start(&b, MSG_ROLE_NPU);
    put(&b, 0, ID_SLEEP);
    usleep(50000); /* it ends in time whether it got there or not */
    uint64_t before = util_now_ns();
    boss_close(&b);
    assert_true(WIFEXITED(b.status));
    assert_true(util_now_ns() - before < 30ull * 1000000000);

    start(&b, MSG_ROLE_LOADER);
    int fd = shm_make("test", SEGMENT_BYTES, true, NULL);
    struct msg m = {.type = MSG_TYPE_segment_fill, .segment_fill = {.layer = 14, .bytes = SEGMENT_BYTES}};
    tell(&b, &m, &fd, 1);
    close(fd);
    stats(&b, 1); /* so that the fill has been queued */
    boss_close(&b);
    assert_true(WIFEXITED(b.status));
    assert_true(util_now_ns() - before < 30ull * 1000000000);
}

static void test_signals(void **state)
{
    (void)state;
    struct boss b;
    start(&b, MSG_ROLE_NPU);
    kill(b.pid, SIGINT);
    put(&b, 0, 1);
    expect_chunk(&b, 0, 1, 1);
    kill(b.pid, SIGTERM);
    assert_int_equal(wait_exit(&b), 0);
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
        start(&b, MSG_ROLE_NPU);
        put(&b, 0, ID_SLEEP); /* busy, so that only the kernel can end it at once */
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
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--stage") == 0)
        return stage_run(&stages[atoi(argv[2]) % MSG_ROLES], 3, NULL);
    uv_loop_t loop; /* the first one makes two descriptors that libuv keeps */
    if (uv_loop_init(&loop) == 0)
        uv_loop_close(&loop);
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
        FD_TEST(test_filled_too_early),
        FD_TEST(test_small_output_slots),
        FD_TEST(test_fill),
        FD_TEST(test_fill_fails),
        FD_TEST(test_unsealed_segment),
        FD_TEST(test_segment_refused),
        FD_TEST(test_budget),
        FD_TEST(test_handshake_order),
        FD_TEST(test_wrong_rings),
        FD_TEST(test_socket_end),
        FD_TEST(test_stuck),
        FD_TEST(test_pause),
        FD_TEST(test_pause_out_of_turn),
        FD_TEST(test_held),
        FD_TEST(test_status_page),
        FD_TEST(test_signals),
        FD_TEST(test_coordinator_killed),
        FD_TEST(test_streaming),
        FD_TEST(test_streaming_out_of_turn),
        FD_TEST(test_pass_begins_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
