/* SPDX-License-Identifier: MIT
 * The coordinator against stages that may do anything: supervisor, recovery, liveness and schedule as they are, over stages without
 * processes (fake_child.c). The input is a list of acts: a stage says what the protocol wants, or anything at all with descriptors
 * of every kind; ends; goes silent; writes chunks that lie, indices and status pages; requests come and are cancelled; time passes.
 * Then the stages keep to the protocol, or say nothing any more, and every request must come to its end: with its tokens, with an
 * error, or because a stage was given up. Time is the target's own (--wrap=util_now_ns). */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/rings.h"
#include "coordinator/schedule.h"
#include "coordinator/segments.h"
#include "coordinator/slots.h"
#include "coordinator/supervise_impl.h"
#include "proto/chunk.h"
#include "proto/log.h"
#include "proto/ring.h"
#include "proto/status.h"
#include "proto/util.h"
#include "tests/fuzz/fake_child.h"
#include "tests/fuzz/fuzz_input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
uint64_t __wrap_util_now_ns(void);

#define VOCAB 16
#define HIDDEN 16
#define SEQUENCES 3
#define CHUNK 8
#define FLIGHTS 2
#define SLOTS 4 /* of the token and of the output ring */
#define CONTEXT 64
#define REQUESTS 4
#define SEGMENT_BYTES 4096
#define TICK_NS UINT64_C(250000000)
#define TICKS_MAX 3000 /* until everything has come to its end */
#define AT_SLOTS 4096
enum { AT_N_SLOTS = 12, AT_POISONED = 24, AT_HEAD = 64, AT_TAIL = 128 };

static uint64_t now_ns = 1000000000;
uint64_t __wrap_util_now_ns(void)
{
    return ++now_ns;
}

struct world {
    uv_loop_t loop;
    struct config config;
    struct plan plan;
    struct supervise *supervise;
    struct schedule *schedule;
    bool ready, was_ready, failed, broken;
    struct request *requests[REQUESTS];
    uint32_t n_requests, n_running;
    size_t out_slot, token_slot;
};

static struct world w;

/* ---- what engine.c does ---- */

static void on_ready(void *ctx, const struct supervise_recovery *r)
{
    struct ring *tokens = supervise_token_ring(w.supervise), *output = supervise_output_ring(w.supervise);
    (void)ctx;
    if (w.ready || w.failed || r->first == w.was_ready)
        abort();
    if (r->first)
        schedule_attach(w.schedule, tokens, output, supervise_epoch(w.supervise));
    else
        schedule_restart(w.schedule, tokens, output, supervise_epoch(w.supervise), r->kv_lost);
    w.ready = w.was_ready = true;
    schedule_pump(w.schedule);
}

static void on_lost(void *ctx, enum msg_role role)
{
    (void)ctx, (void)role;
    if (!w.ready)
        abort();
    w.ready = w.broken = false;
    schedule_pause(w.schedule, true);
}

static void on_failed(void *ctx, const struct err *err)
{
    (void)ctx;
    if (w.failed || !err->code || !err->text[0])
        abort();
    w.failed = true;
    schedule_fail(w.schedule, err);
}

static uint64_t on_progress(void *ctx)
{
    (void)ctx;
    return schedule_progress(w.schedule);
}

static uint32_t on_in_flight(void *ctx, uint32_t *ret_done)
{
    (void)ctx;
    return schedule_in_flight(w.schedule, ret_done);
}

static bool on_give_up(void *ctx, const char *limit, const struct err *why)
{
    (void)ctx;
    return schedule_give_up(w.schedule, limit, why) > 0;
}

static void on_token(void *ctx, uint32_t id, uint32_t index)
{
    (void)ctx;
    if (id >= VOCAB || index >= CONTEXT)
        abort();
}

static void on_logits(void *ctx, uint32_t pos, const float *row, uint32_t vocab)
{
    (void)ctx;
    if (pos >= CONTEXT || vocab != VOCAB || !(row[0] - row[0] == 0))
        abort();
}

static void on_finished(void *ctx, const struct request_result *r)
{
    struct request **q = ctx;
    if (!*q || (r->finish == ENGINE_FINISH_ERROR) != (r->err != NULL))
        abort();
    *q = NULL;
    w.n_running--;
}

static void drain(void)
{
    struct err err = {0};
    for (int i = 0; i < 64 && w.ready && !w.broken && !w.failed; i++) {
        if (schedule_drain(w.schedule, &err) < 0) {
            w.broken = true;
            supervise_kill(w.supervise, MSG_ROLE_GPU, &err);
        } else if (!ring_fill(supervise_output_ring(w.supervise))) {
            return;
        }
    }
}

/* Stages that were killed are gone; those that wait for their time are started. */
static void settle(void)
{
    for (int i = 0; i < MSG_ROLES; i++) {
        struct child *c = fake_children[i];
        struct stage *st = &w.supervise->stages[i];
        if (c && c->why.code)
            fake_child_end(c, 0);
        if (st->delay_open && uv_is_active((uv_handle_t *)&st->delay)) {
            uv_timer_stop(&st->delay);
            st->delay.timer_cb(&st->delay);
        }
    }
}

/* ---- stages that keep to the protocol ---- */

static void say(struct child *c, const struct msg *m)
{
    fake_child_say(c, m, NULL);
}

static void announce(struct child *c)
{
    struct msg m = {.type = MSG_TYPE_segment_new, .segment_new = {.kind = c->role == MSG_ROLE_NPU ? 0 : 1, .bytes = SEGMENT_BYTES}};
    int fd = fuzz_fd(FUZZ_FD_GOOD, SEGMENT_BYTES);
    fake_child_say(c, &m, &fd);
    util_close_fd(&fd);
}

/* One segment, one slot at a time. */
static bool fill(struct child *c)
{
    struct supervise *s = w.supervise;
    for (uint32_t i = 0; i < segments_count(s->segments); i++) {
        const struct held_segment *g = segments_at(s->segments, i);
        if (g->filled)
            continue;
        if (fcntl(g->fd, F_ADD_SEALS, F_SEAL_WRITE) < 0 && !handshake_is_sealed(g))
            abort(); /* it let a worker give it a trap */
        say(c, &(struct msg){.type = MSG_TYPE_segment_filled, .segment_filled = {.kind = g->kind, .layer = g->layer}});
        return true;
    }
    for (uint32_t i = 0; i < slots_count(s->slots); i++) {
        const struct held_slot *h = slots_at(s->slots, i);
        if (!h->serial)
            continue;
        say(c, &(struct msg){.type = MSG_TYPE_slot_filled,
                             .slot_filled = {.kind = h->kind, .slot = h->slot, .layer = h->layer, .serial = h->serial}});
        return true;
    }
    return false;
}

/* The next message that is due, if one is. */
static void keep_to_it(enum msg_role role)
{
    struct child *c = fake_children[role];
    const struct stage *st = &w.supervise->stages[role];
    struct msg hello = {.type = MSG_TYPE_hello, .hello = {.role = role, .pid = 1, .build = TANDEM_VERSION}};
    if (!c || !c->running || c->silent || c->mute)
        return;
    if (!st->configured)
        say(c, &hello);
    else if (c->told_pause) {
        c->told_pause = false;
        say(c, &(struct msg){.type = MSG_TYPE_paused, .paused = {.epoch = c->epoch}});
    } else if (!st->segments_known && role != MSG_ROLE_LOADER && st->n_segments == 0)
        announce(c);
    else if (!st->segments_known)
        say(c, &(struct msg){.type = MSG_TYPE_segment_end, .segment_end = {.count = st->n_segments}});
    else if (role == MSG_ROLE_LOADER && fill(c))
        return;
    else if (c->told_start && !st->ready)
        say(c, &(struct msg){.type = MSG_TYPE_ready, .ready = {.backend = "cpu fuzz"}});
}

static uint32_t *word(uint8_t *ring, size_t at)
{
    return (uint32_t *)(void *)(ring + at);
}

/* rings[k]: tokens, x0, h, x, output, as the stage that writes or reads them has them. NULL: not there. */
static uint8_t *ring_of(int k)
{
    struct child *l = fake_children[MSG_ROLE_LOADER], *n = fake_children[MSG_ROLE_NPU], *g = fake_children[MSG_ROLE_GPU];
    uint8_t *all[] = {l->rings[0][0].p, l->rings[1][0].p, n->rings[1][0].p, g->rings[1][0].p, g->rings[1][1].p};
    return all[k % 5];
}

static bool put(uint8_t *output, const struct chunk *c, const void *payload)
{
    uint32_t head = *word(output, AT_HEAD);
    if (head - *word(output, AT_TAIL) >= SLOTS)
        drain();
    if (head - *word(output, AT_TAIL) >= SLOTS)
        return false;
    void *to = chunk_write(output + AT_SLOTS + (head % SLOTS) * w.out_slot, w.out_slot, c);
    if (!to)
        return false;
    if (c->h.payload_bytes)
        memcpy(to, payload, c->h.payload_bytes);
    *word(output, AT_HEAD) = head + 1;
    return true;
}

static void pass_on(int k)
{
    uint8_t *r = ring_of(k);
    ++*word(r, AT_HEAD);
    ++*word(r, AT_TAIL);
}

/* All three stages do one chunk. lie: 0, or what is wrong with its answer. False: there is none. */
static bool answer(struct fuzz_input *in, uint8_t lie)
{
    static struct chunk c;
    struct chunk_limits lim = {.epoch = supervise_epoch(w.supervise),
                               .max_tokens = CHUNK,
                               .max_seqs = SEQUENCES,
                               .context = CONTEXT,
                               .n_layers = 1,
                               .vocab = VOCAB,
                               .hidden = HIDDEN};
    struct err err = {0};
    const void *payload;
    float row[VOCAB] = {0};
    for (int k = 0; k < 5; k++) {
        if (!ring_of(k))
            return false;
    }
    uint8_t *tokens = ring_of(0), *output = ring_of(4);
    uint32_t tail = *word(tokens, AT_TAIL), fill = *word(tokens, AT_HEAD) - tail;
    if (fill == 0 || !w.ready)
        return false;
    for (int i = 0; i < MSG_ROLES; i++) {
        if (fake_children[i]->silent || fake_children[i]->mute || fake_children[i]->why.code)
            return false;
    }
    int r = fill > SLOTS || *word(tokens, AT_POISONED)
                ? err_set(&err, -EPROTO, "poisoned")
                : chunk_read(tokens + AT_SLOTS + (tail % SLOTS) * w.token_slot, w.token_slot, &lim, &c, &payload, &err);
    if (r < 0) { /* what a stage that reads this says last */
        struct msg m = {.type = MSG_TYPE_error, .error = {.code = r, .bad_input = 1}};
        snprintf(m.error.text, sizeof(m.error.text), "%s", err.text);
        say(fake_children[MSG_ROLE_LOADER], &m);
        return false;
    }
    *word(tokens, AT_TAIL) = tail + 1;
    if (lie == 1)
        return true; /* swallowed */
    pass_on(1);
    if (lie == 2)
        return true;
    pass_on(2);
    uint32_t n = chunk_n_logits(&c);
    for (uint32_t i = 0; i < n; i++) {
        c.h.kind = CHUNK_LOGITS;
        c.h.first_row = lie == 3 ? fuzz_u32(in) : i;
        c.h.n_rows = lie == 4 ? fuzz_u8(in) % 4 : 1;
        c.h.payload_bytes = lie == 4 ? c.h.n_rows * VOCAB * 4 : sizeof(row);
        row[(c.h.id + i) % VOCAB] = lie == 5 ? (float)NAN : 4;
        float rows[4 * VOCAB];
        for (int k = 0; k < 4; k++)
            memcpy(rows + (size_t)k * VOCAB, row, sizeof(row));
        put(output, &c, rows);
    }
    c.h.kind = lie == 6 ? CHUNK_FAILED : CHUNK_DONE;
    c.h.status = lie == 6 ? (int32_t)fuzz_u32(in) : 0;
    c.h.first_row = c.h.n_rows = 0;
    c.h.payload_bytes = lie == 6 ? 5 : 0;
    if (lie == 7)
        return true;
    for (int i = 0; i < 1 + (lie == 8); i++)
        put(output, &c, "text");
    return true;
}

/* ---- and those that do not ---- */

static void say_anything(struct fuzz_input *in, struct child *c)
{
    static struct msg m;
    int fds[MSG_MAX_FDS];
    fuzz_message(in, &m);
    uint8_t kinds = fuzz_u8(in);
    uint64_t bytes = m.type == MSG_TYPE_segment_new ? m.segment_new.bytes : m.type == MSG_TYPE_slot_new ? m.slot_new.bytes : 4096;
    int n = msg_n_fds(m.type);
    for (int i = 0; i < n; i++)
        fds[i] = fuzz_fd((uint8_t)(kinds >> (4 * i)), bytes);
    fake_child_say(c, &m, fds);
    for (int i = 0; i < n; i++)
        util_close_fd(&fds[i]);
}

static void write_chunk(struct fuzz_input *in)
{
    static struct chunk c;
    static float payload[4 * VOCAB];
    uint8_t *output = ring_of(4);
    if (!output)
        return;
    memset(&c, 0, sizeof(c));
    c.h = (struct chunk_header){.magic = fuzz_u8(in) % 16 ? CHUNK_MAGIC : fuzz_u32(in),
                                .epoch = fuzz_u8(in) % 8 ? supervise_epoch(w.supervise) : fuzz_u32(in),
                                .id = fuzz_u64(in),
                                .kind = fuzz_u8(in) % 7,
                                .layer = fuzz_u8(in) % 2,
                                .n_tokens = fuzz_u8(in) % (CHUNK + 1),
                                .n_seqs = fuzz_u8(in) % (SEQUENCES + 1),
                                .first_row = fuzz_u32(in),
                                .n_rows = fuzz_u32(in),
                                .status = (int32_t)fuzz_u32(in),
                                .pass_index = fuzz_u8(in) % 3,
                                .pass_count = fuzz_u8(in) % 3};
    c.h.payload_bytes = c.h.kind == CHUNK_LOGITS ? MIN(c.h.n_rows, 4u) * VOCAB * 4 : c.h.kind == CHUNK_FAILED ? 7 : 0;
    for (uint32_t i = 0; i < c.h.n_seqs; i++)
        c.seqs[i].seq = i;
    for (uint32_t i = 0; i < c.h.n_tokens; i++)
        c.tokens[i] = (struct chunk_token){.seq = fuzz_u8(in) % 4 ? 0 : 1, .pos = i, .flags = fuzz_u8(in) & 1};
    if (fuzz_u8(in) % 8 == 0) /* any bytes in the header */
        ((uint8_t *)&c.h)[fuzz_u8(in) % sizeof(c.h)] ^= fuzz_u8(in);
    if (c.h.n_tokens <= CHUNK && c.h.n_seqs <= SEQUENCES && c.h.payload_bytes <= sizeof(payload))
        put(output, &c, payload);
}

static void play_with_ring(struct fuzz_input *in)
{
    static const uint16_t places[] = {AT_HEAD, AT_TAIL, AT_HEAD, AT_TAIL, AT_POISONED, AT_N_SLOTS, 0, 16};
    uint8_t *r = ring_of(fuzz_u8(in));
    uint16_t at = places[fuzz_u8(in) % ARRAY_LEN(places)];
    if (r)
        *word(r, at) += fuzz_u32(in);
}

static void lie_on_page(struct fuzz_input *in, struct child *c)
{
    static const uint8_t places[] = {2, 4, 6, 8, 9, 10};
    if (!c->page)
        return;
    uint8_t at = places[fuzz_u8(in) % ARRAY_LEN(places)];
    uint64_t v = at < 8 && fuzz_u8(in) % 4 == 0 ? now_ns - fuzz_u8(in) * TICK_NS : fuzz_u64(in);
    memcpy(c->page + at, &v, at < 8 ? 8 : 4);
}

static void submit(struct fuzz_input *in)
{
    uint32_t ids[CONTEXT], n = 1 + fuzz_u8(in) % 24, i = w.n_requests % REQUESTS;
    uint8_t how = fuzz_u8(in);
    struct err err = {0};
    if (w.requests[i] || w.failed)
        return;
    for (uint32_t k = 0; k < n; k++)
        ids[k] = k % VOCAB;
    struct request_params p = {.ids = ids,
                               .n_ids = n,
                               .max_tokens = how % 8,
                               .all_logits = how & 8,
                               .no_journal = true,
                               .token = on_token,
                               .logits = on_logits,
                               .finished = on_finished,
                               .ctx = &w.requests[i]};
    sample_params_default(&p.sample);
    p.sample.temperature = how & 16 ? 1 : 0;
    if (schedule_submit(w.schedule, &p, &w.requests[i], &err) < 0)
        abort();
    w.n_requests++;
    w.n_running++;
    if (w.ready)
        schedule_pump(w.schedule);
}

static void tick(void)
{
    now_ns += TICK_NS;
    liveness_look(w.supervise, now_ns);
    for (int i = 0; i < MSG_ROLES; i++) {
        struct child *c = fake_children[i];
        if (c->running && !c->silent && w.supervise->stages[i].configured)
            say(c, &(struct msg){.type = MSG_TYPE_pong});
    }
}

static void act(struct fuzz_input *in)
{
    uint8_t what = fuzz_u8(in);
    struct child *c = fake_children[what / 32 % MSG_ROLES];
    struct err err = {0};
    switch (what % 32) {
    case 0:
    case 1:
    case 2:
        say_anything(in, c);
        break;
    case 3:
    case 4:
        keep_to_it(c->role);
        break;
    case 5:
    case 6:
    case 7:
        for (int i = 0; i < 24 && !w.ready; i++) {
            keep_to_it((enum msg_role)(i % MSG_ROLES));
            settle();
        }
        break;
    case 8:
        fake_child_end(c, what & 128 ? SIGKILL : SIGSEGV);
        break;
    case 9:
        err_set(&err, -EPROTO, "the peer closed in the middle of a message");
        child_kill(c, &err);
        break;
    case 10:
    case 11:
        submit(in);
        break;
    case 12:
        if (w.requests[what / 32 % REQUESTS])
            schedule_cancel(w.schedule, w.requests[what / 32 % REQUESTS]);
        break;
    case 13:
    case 14:
        answer(in, 0);
        break;
    case 15:
    case 16:
        answer(in, fuzz_u8(in) % 9);
        break;
    case 17:
    case 18:
        write_chunk(in);
        break;
    case 19:
    case 20:
        play_with_ring(in);
        break;
    case 21:
        lie_on_page(in, c);
        break;
    case 22:
        for (int n = fuzz_u8(in) % 16; n >= 0; n--)
            tick();
        break;
    case 23:
        c->silent = true;
        break;
    case 24:
        supervise_request_stats(w.supervise, fuzz_u64(in), &err);
        break;
    case 25:
        for (int i = 0; i < SUPERVISE_RINGS; i++) {
            const char *name;
            uint32_t full, slots;
            supervise_look(w.supervise, i, &name, &full, &slots, NULL);
            if (full > slots || slots > RING_MAX_SLOTS)
                abort();
        }
        break;
    case 27:
        c->mute = true;
        break;
    case 26:
        supervise_no_restarts(w.supervise);
        break;
    default:
        drain();
        break;
    }
    settle();
}

/* From here on everybody keeps to the protocol, or says nothing. */
static void end_well(void)
{
    struct fuzz_input none = {0};
    static const uint32_t waits[2] = {0};
    for (int n = 0; w.n_running && !w.failed; n++) {
        if (n == TICKS_MAX) {
            uint32_t done, n_flight = schedule_in_flight(w.schedule, &done);
            fprintf(stderr, "%u requests have not come to an end: ready %d, broken %d, %u chunks in flight, %u done\n", w.n_running,
                    w.ready, w.broken, n_flight, done);
            for (int i = 0; i < MSG_ROLES; i++) {
                const struct stage *st = &w.supervise->stages[i];
                fprintf(stderr,
                        "%s: starts %d, silent %d, configured %d, attached %d, started %d, ready %d, pausing %d, %u of %u\n",
                        msg_role_name(st->role), fake_children[i]->starts, fake_children[i]->silent, st->configured, st->attached,
                        st->started, st->ready, st->pausing, st->n_filled, st->n_segments);
            }
            for (int k = 0; k < 5 && ring_of(k); k++)
                fprintf(stderr, "ring %d: head %u, tail %u, poisoned %u\n", k, *word(ring_of(k), AT_HEAD),
                        *word(ring_of(k), AT_TAIL), *word(ring_of(k), AT_POISONED));
            abort();
        }
        for (int i = 0; i < MSG_ROLES; i++) {
            if (fake_children[i]->page)
                memcpy(fake_children[i]->page + 2, waits, sizeof(waits));
            keep_to_it((enum msg_role)i);
        }
        for (int i = 0; i < 8 && answer(&none, 0); i++)
            drain();
        drain();
        tick();
        settle();
    }
    if (w.n_running)
        abort();
}

static char model[] = "model";

static void set_up(uint8_t how)
{
    struct plan *p = &w.plan;
    struct err err = {0};
    memset(&w, 0, sizeof(w));
    w.config.model = model;
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        w.config.spawn[i] = true;
    w.config.restarts = 1 + how % 4;
    w.config.restarts_per_minute = 20;
    w.config.heartbeat_s = 1 + how / 4 % 4;
    p->hparams =
        (struct hparams){.vocab = VOCAB, .hidden = HIDDEN, .n_layers = 1, .global_every = 1, .n_heads = 1, .n_kv_heads = 1};
    p->context = CONTEXT;
    p->sequences = SEQUENCES;
    p->chunk_tokens = CHUNK;
    p->ring_slots = FLIGHTS;
    p->token_slots = p->logits_slots = SLOTS;
    p->logits_rows = 3;
    p->kv_pages = 64;
    p->residency[CONFIG_NPU].n_streamed = how & 128 ? 1 : 0;
    p->worker_slot_bytes = chunk_slot_bytes(CHUNK, SEQUENCES, CHUNK * HIDDEN * 4);
    p->token_slot_bytes = chunk_slot_bytes(CHUNK, SEQUENCES, CHUNK * 4);
    p->out_slot_bytes = chunk_slot_bytes(CHUNK, SEQUENCES, 4 * VOCAB * 4);
    w.out_slot = util_round_up(p->out_slot_bytes, 4096);
    w.token_slot = util_round_up(p->token_slot_bytes, 4096);
    struct supervise_options o = {.loop = &w.loop,
                                  .config = &w.config,
                                  .plan = p,
                                  .ready = on_ready,
                                  .lost = on_lost,
                                  .progress = on_progress,
                                  .in_flight = on_in_flight,
                                  .give_up = on_give_up,
                                  .failed = on_failed};
    if (uv_loop_init(&w.loop) < 0 || schedule_open(p, &w.schedule, &err) < 0 || supervise_open(&o, &w.supervise, &err) < 0)
        abort();
}

static void tear_down(void)
{
    supervise_stop(w.supervise);
    for (int i = 0; i < MSG_ROLES; i++)
        fake_child_end(fake_children[i], SIGKILL);
    if (!supervise_stopped(w.supervise))
        abort();
    schedule_close(w.schedule);
    supervise_close(w.supervise);
    if (uv_loop_close(&w.loop) < 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool begun;
    struct fuzz_input in = {data, data + MIN(size, (size_t)4096)};
    if (!begun)
        log_init("fuzz", "error");
    begun = true;
    set_up(fuzz_u8(&in));
    while (fuzz_more(&in))
        act(&in);
    end_well();
    tear_down();
    fuzz_check_fds();
    return 0;
}
