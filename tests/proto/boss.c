/* SPDX-License-Identifier: MIT
 * A tiny stage and the coordinator's side of it; used by test_stage.c and test_stage_weights.c. */
#include "tests/proto/boss.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/budget.h"
#include "proto/conn.h"
#include "proto/ring.h"
#include "proto/shm.h"
#include "proto/stage.h"
#include "proto/status.h"
#include "proto/util.h"
#include "tests/proto/proto_test.h"

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

uint32_t boss_epoch;

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

const struct msg *boss_expect(struct boss *b, enum msg_type t)
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

void boss_open(struct boss *b, enum msg_role role)
{
    static const struct conn_handlers handlers = {.message = on_message, .closed = on_closed};
    int fd;
    memset(b, 0, sizeof(*b));
    b->role = role;
    boss_epoch = EPOCH;
    assert_true((b->page_fd = status_make(NULL)) >= 0);
    for (int i = 0; i < 2; i++) {
        assert_true((b->bell_fds[i] = bell_make(NULL)) >= 0);
        assert_ok(bell_map(b->bell_fds[i], &b->bells[i], err));
        b->ring_fds[0][i] = b->ring_fds[1][i] = -1;
    }
    assert_int_equal(uv_loop_init(&b->loop), 0);
    b->pid = spawn(role, &fd);
    assert_ok(conn_open(&b->loop, fd, "stage", &handlers, b, &b->conn, err));
    const struct msg *m = boss_expect(b, MSG_TYPE_hello);
    assert_int_equal(m->hello.role, role);
    assert_int_equal(m->hello.pid, b->pid);
    assert_string_equal(m->hello.build, TANDEM_VERSION);
    assert_string_equal(m->hello.backends, "cpu");
}

void boss_tell(struct boss *b, const struct msg *m, const int *fds, int n_fds)
{
    assert_ok(conn_send(b->conn, m, fds, n_fds, err));
}

void boss_tell_type(struct boss *b, enum msg_type t)
{
    boss_tell(b, &(struct msg){.type = t}, NULL, 0);
}

struct msg boss_configure_msg(void)
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

void boss_attach(struct boss *b, uint32_t direction, uint32_t index, size_t slot_bytes)
{
    int fd = ring_make("test", SLOTS, slot_bytes, boss_epoch, NULL);
    assert_true(fd >= 0);
    assert_ok(ring_attach(fd, direction ? RING_CONSUMER : RING_PRODUCER, boss_epoch, b->bells[0], b->bells[1],
                          &b->rings[direction][index], err));
    b->ring_fds[direction][index] = fd;
    struct msg m = {.type = MSG_TYPE_attach_ring, .attach_ring = {.direction = direction, .index = index, .epoch = boss_epoch}};
    boss_tell(b, &m, (int[]){fd, b->bell_fds[0]}, 2);
}

void boss_attach_all(struct boss *b)
{
    for (uint32_t i = 0; i < stages[b->role].n_inputs; i++)
        boss_attach(b, 0, i, 4096);
    for (uint32_t i = 0; i < stages[b->role].n_outputs; i++)
        boss_attach(b, 1, i, 4096);
}

void boss_configure(struct boss *b)
{
    struct msg m = boss_configure_msg();
    boss_tell(b, &m, (int[]){b->bell_fds[1], b->page_fd}, 2);
}

void boss_fill_segments(struct boss *b, uint8_t value, bool seal)
{
    uint32_t n = b->role == MSG_ROLE_NPU ? 2 : 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct msg *m = boss_expect(b, MSG_TYPE_segment_new);
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
    assert_int_equal(boss_expect(b, MSG_TYPE_segment_end)->segment_end.count, n);
    for (uint32_t i = 0; i < n; i++)
        boss_tell(b, &(struct msg){.type = MSG_TYPE_segment_filled, .segment_filled = {.layer = i}}, NULL, 0);
}

void boss_start(struct boss *b, enum msg_role role)
{
    boss_open(b, role);
    boss_configure(b);
    boss_attach_all(b);
    boss_fill_segments(b, 1, true);
    boss_tell_type(b, MSG_TYPE_start);
    const struct msg *m = boss_expect(b, MSG_TYPE_ready);
    assert_string_equal(m->ready.backend, role == MSG_ROLE_LOADER ? "cpu" : "tiny ref");
}

int boss_wait_exit(struct boss *b)
{
    if (!b->exited)
        assert_int_equal(waitpid(b->pid, &b->status, 0), b->pid);
    b->exited = true;
    return b->status;
}

void boss_drop_rings(struct boss *b)
{
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 2; k++) {
            ring_detach(take_ptr(&b->rings[i][k]));
            util_close_fd(&b->ring_fds[i][k]);
            b->ring_fds[i][k] = -1;
        }
    }
}

void boss_close(struct boss *b)
{
    conn_close(b->conn);
    uv_run(&b->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&b->loop), 0);
    boss_wait_exit(b);
    boss_drop_rings(b);
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

void boss_end(struct boss *b)
{
    boss_tell_type(b, MSG_TYPE_shutdown);
    assert_int_equal(boss_wait_exit(b), 0);
    boss_close(b);
}

static void expect_error(struct boss *b, int code, uint32_t input, uint32_t output, const char *part)
{
    const struct msg *m = boss_expect(b, MSG_TYPE_error);
    if (m->error.code != code || !strstr(m->error.text, part))
        print_error("%d: %s\n", m->error.code, m->error.text);
    assert_int_equal(m->error.code, code);
    assert_non_null(strstr(m->error.text, part));
    assert_int_equal(m->error.bad_input, input);
    assert_int_equal(m->error.bad_output, output);
    int status = boss_wait_exit(b);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
    boss_close(b);
}

void boss_expect_error(struct boss *b, int code, const char *part)
{
    expect_error(b, code, 0, 0, part);
}

void boss_expect_bad_ring(struct boss *b, uint32_t input, uint32_t output, const char *part)
{
    expect_error(b, -EPROTO, input, output, part);
}

/* ---- chunks ---- */

struct chunk boss_chunk(uint64_t id, float **ret_x)
{
    static float x[2 * HIDDEN];
    struct chunk c;
    memset(&c, 0, sizeof(c));
    c.h = (struct chunk_header){.magic = CHUNK_MAGIC,
                                .epoch = boss_epoch,
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

void boss_put_chunk(struct boss *b, uint32_t input, const struct chunk *c, const void *payload)
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

void boss_put(struct boss *b, uint32_t input, uint64_t id)
{
    float *x;
    struct chunk c = boss_chunk(id, &x);
    boss_put_chunk(b, input, &c, x);
}

void boss_get(struct boss *b, uint32_t output, struct chunk *ret, const void **ret_payload)
{
    const struct chunk_limits limits = {
        .epoch = boss_epoch, .max_tokens = 8, .max_seqs = 4, .context = 100, .n_layers = 6, .vocab = 50, .hidden = HIDDEN};
    struct ring *r = b->rings[1][output];
    void *slot;
    uint32_t seen;
    while (seen = bell_read(b->bells[0]), !(slot = ring_peek(r))) {
        assert_false(ring_poisoned(r));
        bell_wait(b->bells[0], seen, 0, -1);
    }
    assert_ok(chunk_read(slot, ring_slot_bytes(r), &limits, ret, ret_payload, err));
}

void boss_expect_chunk(struct boss *b, uint32_t output, uint64_t id, float added)
{
    struct chunk c;
    const void *payload;
    boss_get(b, output, &c, &payload);
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

void boss_expect_failure(struct boss *b, uint32_t output, uint64_t id, int code, const char *part)
{
    struct chunk c;
    const void *payload;
    boss_get(b, output, &c, &payload);
    assert_int_equal(c.h.id, id);
    assert_int_equal(c.h.kind, CHUNK_FAILED);
    assert_int_equal(c.h.status, code);
    char text[257];
    snprintf(text, sizeof(text), "%.*s", (int)c.h.payload_bytes, (const char *)payload);
    assert_non_null(strstr(text, part));
    ring_release(b->rings[1][output]);
}

void boss_put_layer(struct boss *b, uint32_t input, uint64_t id, uint32_t layer, uint32_t index, uint32_t count)
{
    float *x;
    struct chunk c = boss_chunk(id, &x);
    c.h.layer = layer;
    c.h.pass_index = index;
    c.h.pass_count = count;
    boss_put_chunk(b, input, &c, x);
}

void boss_expect_layer(struct boss *b, uint64_t id, float value)
{
    struct chunk c;
    const void *payload;
    boss_get(b, 0, &c, &payload);
    assert_int_equal(c.h.id, id);
    assert_true(((const float *)payload)[0] == value);
    ring_release(b->rings[1][0]);
}

const struct msg_stats *boss_stats(struct boss *b, uint64_t serial)
{
    boss_tell(b, &(struct msg){.type = MSG_TYPE_stats_request, .stats_request = {.serial = serial}}, NULL, 0);
    const struct msg *m = boss_expect(b, MSG_TYPE_stats);
    assert_int_equal(m->stats.serial, serial);
    return &m->stats;
}

bool boss_is_stage(int argc, char **argv, int *ret_status)
{
    if (argc == 3 && strcmp(argv[1], "--stage") == 0) {
        *ret_status = stage_run(&stages[atoi(argv[2]) % MSG_ROLES], 3, NULL);
        return true;
    }
    uv_loop_t loop; /* the first one makes two descriptors that libuv keeps */
    if (uv_loop_init(&loop) == 0)
        uv_loop_close(&loop);
    return false;
}
