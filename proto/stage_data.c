/* SPDX-License-Identifier: MIT
 * The data thread: takes chunks from the input rings in order of priority, calls process, passes failures on. It never touches a
 * socket, never allocates and never logs above debug. Starting and stopping it is the main thread's. */
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "proto/conn.h"
#include "proto/fault.h"
#include "proto/ring.h"
#include "proto/stage_impl.h"
#include "proto/status.h"
#include "proto/util.h"

#define JOIN_MS 1000

static uint64_t *wait_counter(struct stage_io *io)
{
    struct chunk_times *t = &io->chunk.h.times;
    return io->ops->role == MSG_ROLE_NPU ? &t->npu_wait_ns : io->ops->role == MSG_ROLE_GPU ? &t->gpu_wait_ns : NULL;
}

static uint64_t *busy_counter(struct chunk_times *t, enum msg_role role)
{
    return role == MSG_ROLE_NPU ? &t->npu_ns : role == MSG_ROLE_GPU ? &t->gpu_ns : &t->loader_ns;
}

void *stage_reserve(struct stage_io *io, uint32_t output, struct chunk *c)
{
    struct ring *ring = io->outputs[output].ring;
    void *slot;
    uint64_t start = 0;
    for (;;) {
        uint32_t seen = bell_read(io->bell);
        if (atomic_load_explicit(&io->stop, memory_order_acquire) || atomic_load(&io->hold) || ring_poisoned(ring))
            return NULL;
        slot = ring_reserve(ring);
        if (slot)
            break;
        if (!start)
            start = util_now_ns();
        status_waits(io->page, STATUS_SPACE);
        bell_wait(io->bell, seen, 0, BELL_AGAIN_NS);
    }
    if (start) {
        status_goes_on(io->page);
        uint64_t waited = util_now_ns() - start;
        io->process_blocked_ns += waited;
        atomic_fetch_add_explicit(&io->blocked_ns, waited, memory_order_relaxed);
        trace_span(io->trace, TRACE_DATA, TRACE_WAIT_SPACE, start, start + waited);
    }
    c->h.epoch = io->limits.epoch;
    c->h.magic = CHUNK_MAGIC;
    void *payload = chunk_write(slot, ring_slot_bytes(ring), c);
    io->out_slot[output] = slot;
    if (!payload)
        io->misfit = chunk_payload_offset(c->h.n_tokens, c->h.n_seqs) + c->h.payload_bytes;
    return payload;
}

void stage_commit(struct stage_io *io, uint32_t output)
{
    struct chunk_header *h = io->out_slot[output];
    if (io->faults && fault_slot(io->faults))
        h->magic = ~CHUNK_MAGIC;
    uint64_t now = util_now_ns();
    *busy_counter(&h->times, io->ops->role) += now - io->process_start_ns - io->process_blocked_ns;
    h->times.committed_at_ns = now;
    ring_commit(io->outputs[output].ring);
}

/* Tell the coordinator, through the pipeline, that a chunk could not be done. */
static int forward_failure(struct stage_io *io, const struct err *err)
{
    struct chunk *c = &io->chunk;
    uint32_t output = io->ops->role == MSG_ROLE_GPU ? 1 : 0;
    c->h.kind = CHUNK_FAILED;
    c->h.status = err->code;
    c->h.payload_bytes = (uint32_t)MIN(strlen(err->text) + 1, 256);
    char *p = stage_reserve(io, output, c);
    if (!p)
        return -ECANCELED;
    memcpy(p, err->text, c->h.payload_bytes);
    p[c->h.payload_bytes - 1] = '\0';
    stage_commit(io, output);
    return 0;
}

static int pass_on(struct stage_io *io, const void *payload)
{
    struct err e = {.code = io->chunk.h.status < 0 ? io->chunk.h.status : -EIO};
    snprintf(e.text, sizeof(e.text), "%.*s", (int)io->chunk.h.payload_bytes, (const char *)payload);
    return forward_failure(io, &e);
}

/* Chunks that cost about the same: by tokens, and in the last layer by rows of logits, in powers of two. */
static uint32_t kind_of(const struct stage_io *io)
{
    const struct chunk *c = &io->chunk;
    bool last = c->h.layer + 1 == io->config.n_layers;
    uint32_t n = last ? chunk_n_logits(c) : c->h.n_tokens, kind = last ? STAGE_WORK_KINDS / 2 : 0;
    for (; n > 1 && kind + 1 < (last ? STAGE_WORK_KINDS : STAGE_WORK_KINDS / 2); n /= 2)
        kind++;
    return kind;
}

static int process(struct stage_io *io, uint32_t input, const void *payload, struct err *err)
{
    struct chunk *c = &io->chunk;
    uint64_t *usual = &io->usual_ns[kind_of(io)];
    status_busy(io->page, &(struct status_work){.since_ns = io->process_blocked_ns ? util_now_ns() : io->process_start_ns,
                                                .chunk = c->h.id,
                                                .layer = c->h.layer,
                                                .n_tokens = c->h.n_tokens,
                                                .usual_ns = *usual});
    int r = io->faults ? fault_chunk(io->faults, c->h.layer, err) : 0;
    if (r == 0 && io->faults && fault_drops(io->faults))
        r = -ECANCELED;
    if (r == 0)
        r = io->ops->process(io->state, io, input, c, payload, err);
    status_waits(io->page, STATUS_INPUT);
    uint64_t took = util_now_ns() - io->process_start_ns - io->process_blocked_ns;
    *usual = *usual ? *usual + took / 8 - *usual / 8 : MAX(took, 1u);
    return r;
}

/* Of the chunk's tokens; those of one sequence are consecutive. */
static uint32_t count_sequences(const struct chunk *c)
{
    uint32_t n = c->h.n_tokens > 0;
    for (uint32_t i = 1; i < c->h.n_tokens && c->tokens[0].seq != c->tokens[c->h.n_tokens - 1].seq; i++)
        n += c->tokens[i].seq != c->tokens[i - 1].seq;
    return n;
}

/* What will be said of the chunk at hand, as it came. */
static void note_chunk(struct stage_io *io, uint32_t input)
{
    const struct chunk_header *h = &io->chunk.h;
    uint32_t n_seqs = count_sequences(&io->chunk);
    uint32_t flags = (h->times.decode ? TRACE_DECODE : 0) | (h->kind == CHUNK_FAILED ? TRACE_FAILED : 0) |
                     (n_seqs > 1 ? TRACE_MANY : 0) | (input ? TRACE_SECOND : 0);
    trace_set_chunk(io->trace, &(struct trace_event){.id = trace_flow(h->epoch, h->id),
                                                     .layer = (uint16_t)h->layer,
                                                     .tokens = (uint16_t)h->n_tokens,
                                                     .flags = (uint8_t)flags,
                                                     .seq = (uint8_t)(n_seqs > 1 ? n_seqs : n_seqs * io->chunk.tokens[0].seq),
                                                     .fill = (uint8_t)MIN(ring_fill(io->inputs[input].ring), 255u)});
}

/* A chunk that finds no place because of that would be lost without a word. */
static int check_outputs(struct stage_io *io, struct err *err)
{
    for (uint32_t i = 0; i < io->ops->n_outputs; i++) {
        if (!ring_poisoned(io->outputs[i].ring))
            continue;
        io->bad_output = i + 1;
        return err_set(err, -EPROTO, "output ring %u is poisoned: its reader wrote an impossible index, or closed it", i);
    }
    return 0;
}

static int take_chunk(struct stage_io *io, uint32_t input, const void *slot, struct err *err)
{
    const void *payload;
    struct chunk *c = &io->chunk;
    struct err why = {0};
    io->process_start_ns = util_now_ns();
    io->process_blocked_ns = 0;
    int r = chunk_read(slot, ring_slot_bytes(io->inputs[input].ring), &io->limits, c, &payload, err);
    if (r == -ESTALE)
        return 0;
    if (r < 0) {
        io->bad_input = input + 1;
        return err_wrap(err, r, "input ring %u", input);
    }
    c->h.times.hops++;
    uint64_t *waited = wait_counter(io);
    if (waited && io->process_start_ns > c->h.times.committed_at_ns)
        *waited += io->process_start_ns - c->h.times.committed_at_ns;
    if (io->trace)
        note_chunk(io, input);
    uint32_t n = c->h.n_tokens;
    bool last_of_pass = c->h.pass_index + 1 >= c->h.pass_count;
    if (input && input + 1 == io->ops->n_inputs)
        io->pass_open = !last_of_pass;
    if (c->h.kind == CHUNK_FAILED) {
        r = pass_on(io, payload);
    } else {
        r = stage_stream_enter(io, c->h.layer, &why);
        if (r == 0)
            r = process(io, input, payload, &why);
    }
    stage_stream_leave(io, last_of_pass);
    trace_span(io->trace, TRACE_DATA, TRACE_CHUNK, io->process_start_ns, trace_now(io->trace));
    if (r == -ENODEV)
        return err_set(err, why.code ? why.code : r, "%s", why.text[0] ? why.text : "the device is gone");
    if (r < 0 && r != -ECANCELED) {
        if (!why.code)
            err_set(&why, r, "%s could not process a chunk (code %d)", msg_role_name(io->ops->role), r);
        r = forward_failure(io, &why);
    }
    if (r == -ECANCELED && (r = check_outputs(io, err)) < 0)
        return r;
    if (io->misfit)
        return err_set(err, -EMSGSIZE, "chunk %" PRIu64 " of %u tokens needs a slot of %zu bytes in an output ring; it has less",
                       c->h.id, n, io->misfit);
    atomic_fetch_add_explicit(&io->chunks, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&io->tokens, n, memory_order_relaxed);
    atomic_fetch_add_explicit(&io->busy_ns, util_now_ns() - io->process_start_ns - io->process_blocked_ns, memory_order_relaxed);
    return 0;
}

/* One chunk from the input of highest priority that has one; but a pass begins whole, before its first chunks come back for the
 * next layer. 1: done; 0: nothing there; negative: protocol broken. */
static int step(struct stage_io *io, struct err *err)
{
    for (uint32_t i = io->pass_open ? io->ops->n_inputs - 1 : 0; i < io->ops->n_inputs; i++) {
        struct ring *ring = io->inputs[i].ring;
        void *slot = ring_peek(ring);
        if (!slot && ring_poisoned(ring)) {
            io->bad_input = i + 1;
            return err_set(err, -EPROTO, "input ring %u is poisoned", i);
        }
        if (!slot)
            continue;
        int r = take_chunk(io, i, slot, err);
        ring_release(ring);
        return r < 0 ? r : 1;
    }
    return 0;
}

/* Keeps away from the rings until the main thread lets go. */
static void park(struct stage_io *io, uint32_t hold, uint32_t seen)
{
    uint64_t start = trace_now(io->trace);
    if (atomic_exchange(&io->parked, hold) != hold)
        uv_async_send(&io->report);
    bell_wait(io->bell, seen, 0, BELL_AGAIN_NS);
    trace_span(io->trace, TRACE_DATA, TRACE_PARKED, start, trace_now(io->trace));
}

static void *data_main(void *arg)
{
    struct stage_io *io = arg;
    pthread_setname_np(pthread_self(), "data");
    for (;;) {
        uint32_t seen = bell_read(io->bell); /* before looking at anything: what comes later rings it */
        if (atomic_load_explicit(&io->stop, memory_order_acquire))
            break;
        uint32_t hold = atomic_load(&io->hold);
        if (hold) {
            park(io, hold, seen);
            continue;
        }
        bool draining = atomic_load(&io->draining);
        int r = step(io, &io->data_err);
        if (r < 0) {
            atomic_store(&io->broken, true);
            uv_async_send(&io->report);
            break;
        }
        if (r > 0)
            continue;
        if (draining) {
            atomic_store(&io->draining, false);
            atomic_store(&io->drained, true);
            uv_async_send(&io->report);
        }
        uint64_t start = util_now_ns();
        bell_wait(io->bell, seen, 0, BELL_AGAIN_NS);
        uint64_t end = util_now_ns();
        atomic_fetch_add_explicit(&io->idle_ns, end - start, memory_order_relaxed);
        trace_span(io->trace, TRACE_DATA, TRACE_WAIT_INPUT, start, end);
    }
    atomic_store(&io->done, true);
    return NULL;
}

/* The first processor that this process may use: where the other worker's data thread is, too (kernels/cpu.h, cpu_order). */
static void pin_to_first(pthread_t thread)
{
    cpu_set_t may, one;
    if (sched_getaffinity(0, sizeof(may), &may) < 0)
        return;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &may))
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(thread, sizeof(one), &one);
        return;
    }
}

void stage_data_park(struct stage_io *io)
{
    if (!atomic_load(&io->hold))
        atomic_store(&io->hold, ++io->n_holds ? io->n_holds : ++io->n_holds);
    bell_ring(io->bell);
}

bool stage_data_runs(struct stage_io *io)
{
    uint32_t hold = atomic_load(&io->hold);
    return io->running && (hold == 0 || atomic_load(&io->parked) != hold);
}

int stage_data_start(struct stage_io *io, struct err *err)
{
    if (io->running) {
        atomic_store(&io->draining, false);
        atomic_store(&io->hold, 0);
        bell_ring(io->bell);
        return 0;
    }
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    io->pass_open = false;
    int r = pthread_create(&io->thread, NULL, data_main, io);
    if (r == 0 && io->config.pin)
        pin_to_first(io->thread);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r)
        return err_set_errno(err, -r, "data thread");
    io->running = true;
    return 0;
}

void stage_data_stop(struct stage_io *io)
{
    if (!io->running)
        return;
    atomic_store(&io->stop, true);
    for (int ms = 0; ms < JOIN_MS && !atomic_load(&io->done); ms++) {
        bell_ring(io->bell);
        uv_sleep(1);
    }
    if (!atomic_load(&io->done))
        _exit(io->status ? io->status : 1);
    pthread_join(io->thread, NULL);
    io->running = false;
}
