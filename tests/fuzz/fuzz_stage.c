/* SPDX-License-Identifier: MIT
 * The skeleton of a stage against a coordinator and neighbours that may do anything. A tiny stage of one of the three roles runs in
 * this process: its control thread is this one, its data thread is real. The input is a list of acts: the next message that the
 * protocol wants, or any with descriptors of every kind; chunks that are right or lie; indices, marks, bells and the status page
 * written over. In the end the stage is told to go, and must. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/conn.h"
#include "proto/log.h"
#include "proto/ring.h"
#include "proto/shm.h"
#include "proto/stage_impl.h"
#include "proto/status.h"
#include "proto/util.h"
#include "tests/fuzz/fuzz_input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define HIDDEN 16
#define LAYERS 3
#define SLOTS 2
#define SLOT_BYTES 4096
#define SEGMENT_BYTES 4096
#define FDS 32
#define END_NS UINT64_C(20000000000) /* of SHUTDOWN */
#define AT_SLOTS 4096
enum { AT_N_SLOTS = 12, AT_POISONED = 24, AT_HEAD = 64, AT_TAIL = 128 };

/* ---- the stage ---- */

struct tiny {
    const uint8_t *weights[LAYERS];
};

static int tiny_open(void **ret_state, struct err *err)
{
    *ret_state = calloc(1, sizeof(struct tiny));
    return *ret_state ? 0 : err_set(err, -ENOMEM, "tiny: out of memory");
}

static int tiny_configure(void *state, struct stage_io *io, const struct msg_configure *c, struct err *err)
{
    int r = 0;
    (void)state;
    if (c->hidden != HIDDEN || c->n_layers != LAYERS || c->streamed > LAYERS || (c->streamed && !c->stream_slots))
        return err_set(err, -EINVAL, "tiny: not of its size");
    for (uint32_t layer = 0; r == 0 && io->ops->segment && layer < c->n_layers; layer++)
        r = layer < c->n_layers - c->streamed ? stage_want_segment(io, 0, layer, SEGMENT_BYTES, err)
                                              : stage_stream_segment(io, 0, layer, layer % c->stream_slots, SEGMENT_BYTES, err);
    if (c->device_index & 1)
        stage_lease(io, 1);
    return r;
}

static int tiny_segment(void *state, uint32_t kind, uint32_t layer, const void *data, uint64_t bytes, struct err *err)
{
    (void)kind;
    (void)err;
    if (layer >= LAYERS || bytes != SEGMENT_BYTES)
        abort();
    ((struct tiny *)state)->weights[layer] = data;
    return 0;
}

static int tiny_fill(void *state, uint32_t kind, uint32_t layer, uint32_t slot, int fd, uint64_t bytes, struct err *err)
{
    void *p;
    (void)state;
    (void)slot;
    int r =
        bytes <= 1 << 20 ? shm_map(fd, bytes, true, &p, err) : err_set(err, -EINVAL, "tiny: %llu bytes", (unsigned long long)bytes);
    if (r < 0)
        return r;
    memset(p, (int)(layer + kind), bytes);
    shm_unmap(p, bytes);
    return 0;
}

static int tiny_process(void *state, struct stage_io *io, uint32_t input, struct chunk *c, const void *payload, struct err *err)
{
    const struct tiny *t = state;
    uint8_t sum = (uint8_t)input;
    if (c->h.layer >= LAYERS || c->h.n_tokens > io->config.chunk_tokens)
        abort();
    const uint8_t *w = t->weights[c->h.layer];
    for (uint32_t i = 0; i < c->h.payload_bytes; i++)
        sum = (uint8_t)(sum + ((const uint8_t *)payload)[i] + (w ? w[i % SEGMENT_BYTES] : 0));
    if (c->h.id == 3)
        return err_set(err, -ERANGE, "tiny: chunk 3 does not please");
    if (c->h.id == 4)
        return err_set(err, -ENODEV, "tiny: its device is gone");
    uint8_t *to = stage_reserve(io, io->ops->n_outputs - 1, c);
    if (!to)
        return -ECANCELED;
    memset(to, sum, c->h.payload_bytes);
    stage_commit(io, io->ops->n_outputs - 1);
    return 0;
}

static int tiny_collect(void *state, double *area, uint64_t bytes, struct err *err)
{
    (void)state;
    if (bytes < sizeof(*area))
        return err_set(err, -EINVAL, "tiny: %llu bytes", (unsigned long long)bytes);
    area[0] = 1;
    return 0;
}

static void tiny_close(void *state)
{
    free(state);
}

static const struct stage_ops stages[MSG_ROLES] = {
    {MSG_ROLE_LOADER, 1, 1, tiny_open, tiny_configure, NULL, tiny_fill, tiny_process, NULL, NULL, tiny_close, NULL, NULL},
    {MSG_ROLE_NPU, 2, 1, tiny_open, tiny_configure, tiny_segment, NULL, tiny_process, NULL, NULL, tiny_close, tiny_collect, NULL},
    {MSG_ROLE_GPU, 1, 2, tiny_open, tiny_configure, tiny_segment, NULL, tiny_process, NULL, NULL, tiny_close, tiny_collect, NULL},
};

/* ---- who plays with it ---- */

struct boss {
    struct stage_io *io;
    struct conn *conn;
    enum msg_role role;
    uint32_t step, epoch, n_fds;
    bool paused;
    int fds[FDS]; /* of memfds that it announced, and to be filled when `want` says so */
    struct msg want[FDS];
    int bell_fd, page_fd;
    uint32_t *bell, *page;
    uint8_t *rings[2][2];
    uint64_t id;
};

static struct boss b;

static void on_message(void *ctx, struct conn *c, const struct msg *m, int *fds, int n_fds)
{
    (void)ctx;
    (void)c;
    if (n_fds && b.n_fds < FDS) {
        b.fds[b.n_fds] = take_fd(&fds[0]);
        b.want[b.n_fds++] = *m;
    }
    for (uint32_t i = 0; m->type == MSG_TYPE_slot_want && i < b.n_fds; i++) {
        if ((b.want[i].type == MSG_TYPE_slot_new && b.want[i].slot_new.slot == m->slot_want.slot) ||
            (b.want[i].type == MSG_TYPE_slot_want && b.want[i].slot_want.slot == m->slot_want.slot))
            b.want[i] = *m;
    }
    b.paused &= m->type != MSG_TYPE_paused;
}

static void on_closed(void *ctx, struct conn *c, const struct err *err)
{
    (void)ctx;
    (void)err;
    conn_close(c);
    b.conn = NULL;
}

static void *map_page(int fd)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        abort();
    return p;
}

static void run(void)
{
    for (int i = 0; i < 3; i++)
        uv_run(&b.io->loop, UV_RUN_NOWAIT);
}

static void tell(const struct msg *m, const int *fds, int n_fds)
{
    struct err err = {0};
    if (b.conn && !b.io->finished)
        conn_send(b.conn, m, fds, n_fds, &err);
    run();
}

static void tell_type(enum msg_type t)
{
    tell(&(struct msg){.type = t}, NULL, 0);
}

static void configure(uint8_t how)
{
    struct msg m = {.type = MSG_TYPE_configure};
    m.configure = (struct msg_configure){.n_layers = LAYERS,
                                         .hidden = HIDDEN,
                                         .ffn = 16,
                                         .n_heads = 1,
                                         .n_kv_heads = 1,
                                         .head_dim = 16,
                                         .vocab = 16,
                                         .window = 4,
                                         .global_every = 6,
                                         .context_max = 100,
                                         .budget = 1 << 20,
                                         .epoch = b.epoch,
                                         .context = 100,
                                         .sequences = 4,
                                         .chunk_tokens = 8,
                                         .ring_slots = SLOTS,
                                         .logits_rows = 4,
                                         .threads = 1,
                                         .streamed = how % 4,
                                         .stream_slots = 1 + how / 4 % 2,
                                         .device_index = how / 8 % 2,
                                         .backend = "cpu",
                                         .variant = "ref"};
    tell(&m, (int[]){b.bell_fd, b.page_fd}, 2);
}

static void unmap_rings(void)
{
    for (int i = 0; i < 4; i++) {
        if (b.rings[i / 2][i % 2])
            munmap(b.rings[i / 2][i % 2], AT_SLOTS + SLOTS * SLOT_BYTES);
        b.rings[i / 2][i % 2] = NULL;
    }
}

static void attach(uint32_t direction, uint32_t index)
{
    struct msg m = {.type = MSG_TYPE_attach_ring, .attach_ring = {.direction = direction, .index = index, .epoch = b.epoch}};
    int fd = ring_make("fuzz", SLOTS, SLOT_BYTES, b.epoch, NULL);
    if (fd < 0)
        abort();
    if (!b.rings[direction][index]) {
        b.rings[direction][index] = mmap(NULL, AT_SLOTS + SLOTS * SLOT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (b.rings[direction][index] == MAP_FAILED)
            abort();
    }
    tell(&m, (int[]){fd, b.bell_fd}, 2);
    close(fd);
}

static void attach_all(void)
{
    unmap_rings();
    for (uint32_t i = 0; i < stages[b.role].n_inputs; i++)
        attach(0, i);
    for (uint32_t i = 0; i < stages[b.role].n_outputs; i++)
        attach(1, i);
}

/* What the loader would do with all that was announced or wanted. */
static void fill_all(void)
{
    for (uint32_t i = 0; i < b.n_fds; i++) {
        struct msg *m = &b.want[i];
        if (m->type == MSG_TYPE_segment_new) {
            fcntl(b.fds[i], F_ADD_SEALS, F_SEAL_WRITE);
            struct msg filled = {.type = MSG_TYPE_segment_filled,
                                 .segment_filled = {.kind = m->segment_new.kind, .layer = m->segment_new.layer}};
            m->type = MSG_NONE;
            tell(&filled, NULL, 0);
        } else if (m->type == MSG_TYPE_slot_want) {
            const struct msg_slot_want *w = &m->slot_want;
            tell(&(struct msg){.type = MSG_TYPE_slot_filled,
                               .slot_filled = {.kind = w->kind, .slot = w->slot, .layer = w->layer, .serial = w->serial}},
                 NULL, 0);
        }
    }
}

static void keep_to_it(uint8_t how)
{
    if (b.step == 0)
        configure(how);
    else if (b.step == 1)
        attach_all();
    else if (b.step == 2)
        fill_all();
    else if (b.step == 3)
        tell_type(MSG_TYPE_start);
    else
        fill_all();
    b.step++;
}

static void say_anything(struct fuzz_input *in)
{
    static struct msg m;
    int fds[MSG_MAX_FDS];
    fuzz_message(in, &m);
    m.configure.sandbox = m.type == MSG_TYPE_configure ? 0 : m.configure.sandbox; /* it is this process's */
    if (m.type == MSG_TYPE_configure)
        m.configure.faults[0] = '\0'; /* likewise */
    uint8_t kinds = fuzz_u8(in);
    int n = msg_n_fds(m.type);
    for (int i = 0; i < n; i++)
        fds[i] = fuzz_fd((uint8_t)(kinds >> (4 * i)), SEGMENT_BYTES);
    tell(&m, fds, n);
    for (int i = 0; i < n; i++)
        util_close_fd(&fds[i]);
}

static void ring_bell(void)
{
    struct bell *bell;
    if (bell_map(b.bell_fd, &bell, NULL) < 0)
        return;
    bell_ring(bell);
    bell_unmap(bell);
}

static uint32_t *word(uint8_t *p, size_t at)
{
    return (uint32_t *)(void *)(p + at);
}

static void put_chunk(struct fuzz_input *in, bool lies)
{
    static struct chunk c;
    uint8_t *r = b.rings[0][fuzz_u8(in) % 2];
    if (!r)
        return;
    memset(&c, 0, sizeof(c));
    c.h = (struct chunk_header){.magic = CHUNK_MAGIC,
                                .epoch = b.epoch,
                                .id = ++b.id == 4 ? 0 : b.id,
                                .kind = CHUNK_HIDDEN,
                                .layer = fuzz_u8(in) % LAYERS,
                                .n_tokens = 1 + fuzz_u8(in) % 8,
                                .n_seqs = 1,
                                .pass_count = fuzz_u8(in) % 3};
    if (lies) {
        c.h.kind = fuzz_u8(in) % 7;
        c.h.epoch += fuzz_u8(in) % 8 == 0;
        c.h.id = fuzz_u64(in);
        c.h.n_seqs = fuzz_u8(in) % 5;
        c.h.pass_index = fuzz_u8(in) % 4;
        c.h.n_rows = fuzz_u8(in) % 4;
    }
    c.h.payload_bytes = c.h.kind == CHUNK_HIDDEN   ? c.h.n_tokens * HIDDEN * 4
                        : c.h.kind == CHUNK_TOKENS ? c.h.n_tokens * 4
                        : c.h.kind == CHUNK_LOGITS ? c.h.n_rows * 64
                        : c.h.kind == CHUNK_FAILED ? 9
                                                   : 0;
    for (uint32_t i = 0; i < c.h.n_seqs; i++)
        c.seqs[i].seq = i;
    for (uint32_t i = 0; i < c.h.n_tokens; i++)
        c.tokens[i] = (struct chunk_token){.pos = i, .flags = 1};
    if (lies && fuzz_u8(in) % 4 == 0)
        ((uint8_t *)&c.h)[fuzz_u8(in) % sizeof(c.h)] ^= fuzz_u8(in);
    uint32_t head = *word(r, AT_HEAD);
    if (head - *word(r, AT_TAIL) >= SLOTS || !chunk_write(r + AT_SLOTS + head % SLOTS * SLOT_BYTES, SLOT_BYTES, &c))
        return;
    __atomic_store_n(word(r, AT_HEAD), head + 1, __ATOMIC_RELEASE);
    ring_bell();
}

static void play(struct fuzz_input *in)
{
    static const uint16_t places[] = {AT_HEAD, AT_TAIL, AT_HEAD, AT_TAIL, AT_POISONED, AT_N_SLOTS, 16, AT_SLOTS, AT_SLOTS + 24};
    uint8_t which = fuzz_u8(in), *r = b.rings[which & 1][which >> 1 & 1];
    uint16_t at = places[fuzz_u8(in) % ARRAY_LEN(places)];
    if (r)
        *word(r, at) += fuzz_u32(in);
    if (which & 4)
        ring_bell();
}

static void take_output(void)
{
    for (int i = 0; i < 2; i++) {
        uint8_t *r = b.rings[1][i];
        if (r && *word(r, AT_HEAD) != *word(r, AT_TAIL))
            ++*word(r, AT_TAIL);
    }
    ring_bell();
}

static void wait_a_little(void)
{
    for (int i = 0; i < 20; i++) {
        sched_yield();
        uv_run(&b.io->loop, UV_RUN_NOWAIT);
    }
}

static void act(struct fuzz_input *in)
{
    uint8_t what = fuzz_u8(in);
    switch (what % 24) {
    case 0:
    case 1:
    case 2:
        say_anything(in);
        break;
    case 3:
    case 4:
        keep_to_it(what / 24);
        break;
    case 5:
        while (b.step < 4)
            keep_to_it(what / 24);
        break;
    case 6:
    case 7:
    case 8:
        put_chunk(in, false);
        break;
    case 9:
    case 10:
        put_chunk(in, true);
        break;
    case 11:
    case 12:
        play(in);
        break;
    case 13:
    case 14:
        take_output();
        break;
    case 15:
        b.bell[16 + fuzz_u8(in) % 2] = fuzz_u32(in);
        break;
    case 16:
        b.page[fuzz_u8(in) % 12] = fuzz_u32(in);
        break;
    case 17:
        tell(&(struct msg){.type = MSG_TYPE_pause, .pause = {.epoch = ++b.epoch}}, NULL, 0);
        b.step = 1;
        break;
    case 18:
        tell_type(what & 128 ? MSG_TYPE_drain : MSG_TYPE_ping);
        break;
    case 19:
        tell(&(struct msg){.type = MSG_TYPE_stats_request}, NULL, 0);
        break;
    case 20:
        fill_all();
        break;
    default:
        wait_a_little();
        break;
    }
    run();
}

static void set_up(uint8_t how)
{
    static const struct conn_handlers handlers = {.message = on_message, .closed = on_closed};
    struct err err = {0};
    int pair[2];
    memset(&b, 0, sizeof(b));
    b.role = how % MSG_ROLES;
    b.epoch = 5;
    b.bell_fd = bell_make(&err);
    b.page_fd = status_make(&err);
    b.bell = map_page(b.bell_fd);
    b.page = map_page(b.page_fd);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0 || !(b.io = stage_open(&stages[b.role], pair[1], NULL)) ||
        conn_open(&b.io->loop, pair[0], "stage", &handlers, &b, &b.conn, &err) < 0)
        abort();
    run();
}

static void tear_down(void)
{
    uint64_t end = util_now_ns() + END_NS;
    tell_type(MSG_TYPE_shutdown);
    while (!b.io->finished) {
        uv_run(&b.io->loop, UV_RUN_NOWAIT);
        if (util_now_ns() > end) {
            fprintf(stderr, "the stage does not end\n");
            abort();
        }
    }
    conn_close(b.conn);
    stage_stop(b.io);
    stage_free(b.io);
    unmap_rings();
    for (uint32_t i = 0; i < b.n_fds; i++)
        util_close_fd(&b.fds[i]);
    munmap(b.bell, 4096);
    munmap(b.page, 4096);
    close(b.bell_fd);
    close(b.page_fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool begun;
    struct fuzz_input in = {data, data + MIN(size, (size_t)1024)};
    if (!begun)
        log_init("fuzz", "error");
    begun = true;
    set_up(fuzz_u8(&in));
    while (fuzz_more(&in) && !b.io->finished)
        act(&in);
    tear_down();
    fuzz_check_fds();
    return 0;
}
