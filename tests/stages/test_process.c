/* SPDX-License-Identifier: MIT
 * The five functions of loader, npu_worker and gpu_worker, driven without processes: this file stands in for the stage skeleton
 * (it defines stage_reserve and the like itself, so the linker leaves proto/stage out) and carries slots from stage to stage. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "gpu_worker/gpu.h"
#include "kernels/quant.h"
#include "loader/loader.h"
#include "model/gguf.h"
#include "model/segment.h"
#include "model/work_plan.h"
#include "npu_worker/npu.h"
#include "proto/chunk.h"
#include "proto/err.h"
#include "proto/shm.h"
#include "proto/stage.h"
#include "proto/util.h"
#include "tests/stages/rig.h"

#define CHUNK 20
#define LOGITS_ROWS 3
#define SLOTS 16
#define SEGMENTS 64

enum { LOADER, NPU, GPU, STAGES };

struct slots {
    void *data[SLOTS];
    uint32_t n;
};

struct segment {
    uint32_t kind, layer;
    uint64_t bytes;
    int fd;
    void *data;
};

struct stage_io {
    const struct stage_ops *ops;
    void *state;
    struct budget budget;
    struct slots out[2];
    size_t slot_bytes;
    bool closing;
    struct segment segments[SEGMENTS];
    uint32_t n_segments;
};

static struct stage_io stages[STAGES];
static struct msg_configure config;
static struct chunk_limits limits;
static struct chunk *current;
static bool began_on_device;
static uint64_t device_memory; /* > 0: gpu_worker begins on a device of so many bytes and has to give it up */

int stage_want_segment(struct stage_io *io, uint32_t kind, uint32_t layer, uint64_t bytes, struct err *err)
{
    int r = budget_take(&io->budget, BUDGET_WEIGHTS, bytes, err);
    if (r < 0)
        return r;
    assert_true(io->n_segments < SEGMENTS);
    struct segment *s = &io->segments[io->n_segments];
    *s = (struct segment){.kind = kind, .layer = layer, .bytes = bytes, .fd = shm_make("test", bytes, true, err)};
    if (s->fd < 0)
        return s->fd;
    io->n_segments++;
    return 0;
}

int stage_stream_segment(struct stage_io *io, uint32_t kind, uint32_t layer, uint32_t slot, uint64_t bytes, struct err *err)
{
    (void)io;
    (void)slot;
    return err_set(err, -ENOTSUP, "kind %u, layer %u, %llu bytes: nothing is streamed here", kind, layer,
                   (unsigned long long)bytes);
}

void stage_lease(struct stage_io *io, uint32_t n)
{
    (void)io;
    (void)n;
}

struct budget *stage_budget(struct stage_io *io)
{
    return &io->budget;
}

struct trace *stage_trace(struct stage_io *io)
{
    (void)io;
    return NULL;
}

void *stage_reserve(struct stage_io *io, uint32_t output, struct chunk *c)
{
    struct slots *s = &io->out[output];
    assert_true(output < io->ops->n_outputs);
    if (io->closing)
        return NULL;
    assert_true(s->n < SLOTS);
    if (!s->data[s->n])
        s->data[s->n] = aligned_alloc(4096, util_round_up(io->slot_bytes, 4096));
    c->h.magic = CHUNK_MAGIC;
    void *payload = chunk_write(s->data[s->n], io->slot_bytes, c);
    assert_non_null(payload);
    return payload;
}

void stage_commit(struct stage_io *io, uint32_t output)
{
    io->out[output].n++;
}

int stage_run(const struct stage_ops *ops, int fd, const char *token)
{
    (void)ops;
    (void)token;
    (void)fd;
    fail_msg("no stage runs here");
    return 1;
}

static void must(int r, const struct err *err)
{
    if (r < 0)
        fail_msg("%s", err->text);
}

static void make_config(const char *model)
{
    struct err err = {0};
    struct gguf *g;
    struct hparams h;
    must(gguf_open(rig_model_path(model), false, &g, &err), &err);
    must(gemma3_hparams(g, &h, &err), &err);
    memset(&config, 0, sizeof(config));
    hparams_to_msg(&h, &config);
    config.epoch = 5;
    config.context = 200;
    config.sequences = 2;
    config.chunk_tokens = CHUNK;
    config.ring_slots = 2;
    config.kv_type = QUANT_F32;
    config.logits_rows = LOGITS_ROWS;
    config.threads = 2;
    strcpy(config.backend, "cpu");
    strcpy(config.device, "auto");
    if (device_memory) {
        strcpy(config.backend, "auto");
        strcpy(config.device_without, "host_import");
        config.device_flags = 1;
        config.device_memory = device_memory;
    }
    strcpy(config.variant, "auto");
    snprintf(config.model, sizeof(config.model), "%s", rig_model_path(model));
    uint8_t *types = rig_types(g, &h);
    config.types_len = h.n_layers * GEMMA3_LAYER_TENSORS + 2;
    memcpy(config.types, types, config.types_len);
    free(types);
    gguf_close(g);
    limits = (struct chunk_limits){.epoch = 5,
                                   .max_tokens = CHUNK,
                                   .max_seqs = 2,
                                   .context = 200,
                                   .n_layers = h.n_layers,
                                   .vocab = h.vocab,
                                   .hidden = h.hidden};
}

static struct stage_io *io_init(int i, uint64_t limit)
{
    static const struct stage_ops *const ops[STAGES] = {&loader_ops, &npu_ops, &gpu_ops};
    struct stage_io *io = &stages[i];
    struct err err = {0};
    memset(io, 0, sizeof(*io));
    io->ops = ops[i];
    budget_init(&io->budget, msg_role_name(ops[i]->role), limit);
    size_t payload = (size_t)MAX(CHUNK * config.hidden, LOGITS_ROWS * config.vocab) * sizeof(float);
    io->slot_bytes = chunk_slot_bytes(CHUNK, 2, payload);
    must(io->ops->open(&io->state, &err), &err);
    return io;
}

static void give_back(struct stage_io *io, struct segment *s)
{
    shm_unmap(s->data, s->bytes);
    close(take_fd(&s->fd));
    budget_give(&io->budget, BUDGET_WEIGHTS, s->bytes);
}

static void io_fini(struct stage_io *io)
{
    io->ops->close(io->state);
    for (uint32_t i = 0; i < io->n_segments; i++) {
        if (io->segments[i].fd >= 0)
            give_back(io, &io->segments[i]);
    }
    for (int o = 0; o < 2; o++) {
        for (int k = 0; k < SLOTS; k++)
            free(io->out[o].data[k]);
    }
    assert_int_equal(io->budget.total, 0);
}

static int open_stages(void **state)
{
    struct err err = {0};
    make_config(state && *state ? *state : "tiny-27b-f32");
    current = calloc(1, sizeof(*current));
    for (int i = 0; i < STAGES; i++)
        must(io_init(i, 0)->ops->configure(stages[i].state, &stages[i], &config, &err), &err);
    assert_int_equal(stages[NPU].n_segments, config.n_layers);
    assert_int_equal(stages[GPU].n_segments, config.n_layers + 1);
    began_on_device = strncmp(stages[GPU].ops->backend(stages[GPU].state), "vulkan ", 7) == 0;
    for (int i = NPU; i <= GPU; i++) {
        for (uint32_t k = 0; k < stages[i].n_segments; k++) {
            struct segment *s = &stages[i].segments[k];
            must(loader_ops.fill(stages[LOADER].state, s->kind, s->layer, STAGE_NO_SLOT, s->fd, s->bytes, &err), &err);
            must(shm_seal_write(s->fd, &err), &err);
            must(shm_map(s->fd, s->bytes, false, &s->data, &err), &err);
            int r = stages[i].ops->segment(stages[i].state, s->kind, s->layer, s->data, s->bytes, &err);
            must(r, &err);
            if (r == STAGE_SEGMENT_COPIED)
                give_back(&stages[i], s);
        }
        assert_int_equal(strncmp(stages[i].ops->backend(stages[i].state), "cpu ", 4), 0);
    }
    return 0;
}

static int close_stages(void **state)
{
    (void)state;
    for (int i = 0; i < STAGES; i++)
        io_fini(&stages[i]);
    free(current);
    return 0;
}

/* Takes the oldest slot of an output, as the reader on the other side would. */
static const void *take(struct stage_io *io, uint32_t output, struct chunk *c)
{
    struct slots *s = &io->out[output];
    struct err err = {0};
    const void *payload;
    assert_true(s->n > 0);
    must(chunk_read(s->data[0], io->slot_bytes, &limits, c, &payload, &err), &err);
    return payload;
}

static void drop(struct stage_io *io, uint32_t output)
{
    struct slots *s = &io->out[output];
    void *first = s->data[0];
    memmove(s->data, s->data + 1, (SLOTS - 1) * sizeof(s->data[0]));
    s->data[SLOTS - 1] = first;
    s->n--;
}

static int step(int to, uint32_t input, int from, uint32_t output, struct err *err)
{
    const void *payload = take(&stages[from], output, current);
    int r = stages[to].ops->process(stages[to].state, &stages[to], input, current, payload, err);
    drop(&stages[from], output);
    return r;
}

/* From the loader to the last layer; what came out lies in gpu_worker's output 1. */
static int push(const struct chunk *c, const uint32_t *ids, struct err *err)
{
    *current = *c;
    current->h.kind = CHUNK_TOKENS;
    current->h.epoch = 5;
    int r = loader_ops.process(stages[LOADER].state, &stages[LOADER], 0, current, ids, err);
    if (r == 0)
        r = step(NPU, 1, LOADER, 0, err);
    while (r == 0 && stages[NPU].out[0].n) {
        r = step(GPU, 0, NPU, 0, err);
        if (r == 0 && stages[GPU].out[0].n)
            r = step(NPU, 0, GPU, 0, err);
    }
    return r;
}

/* All rows that came, then DONE. */
static uint32_t collect(float *logits)
{
    uint32_t rows = 0;
    for (;;) {
        const void *payload = take(&stages[GPU], 1, current);
        if (current->h.kind == CHUNK_DONE)
            break;
        assert_int_equal(current->h.kind, CHUNK_LOGITS);
        assert_int_equal(current->h.first_row, rows);
        assert_true(current->h.n_rows >= 1 && current->h.n_rows <= LOGITS_ROWS);
        memcpy(logits + (size_t)rows * config.vocab, payload, current->h.payload_bytes);
        rows += current->h.n_rows;
        drop(&stages[GPU], 1);
    }
    drop(&stages[GPU], 1);
    assert_int_equal(stages[GPU].out[1].n, 0);
    return rows;
}

static struct chunk *chunk_of(uint32_t pos, uint32_t n, uint32_t flags)
{
    static struct chunk c;
    rig_chunk(&c, 1, pos, n, pos);
    c.h.id = 77;
    c.h.payload_bytes = n * (uint32_t)sizeof(uint32_t);
    for (uint32_t i = 0; i < n; i++)
        c.tokens[i].flags = flags;
    return &c;
}

static void test_logits_equal_goldens(void **state)
{
    (void)state;
    struct err err = {0};
    struct golden *g = rig_golden("tiny-27b/golden.safetensors");
    size_t n, n_logits;
    uint32_t *ids = (uint32_t *)(void *)rig_golden_read(g, "ids", &n);
    float *want = rig_golden_read(g, "logits", &n_logits), *got = calloc(n_logits, sizeof(float));
    for (uint32_t at = 0; at < n; at += CHUNK) {
        must(push(chunk_of(at, CHUNK, CHUNK_WANT_LOGITS), ids + at, &err), &err);
        assert_int_equal(collect(got + (size_t)at * config.vocab), CHUNK);
        assert_int_equal(current->h.id, 77);
    }
    rig_close_to("logits", got, want, n_logits, 1e-3f);
    free(ids);
    free(want);
    free(got);
    rig_golden_close(g);
}

/* The last layer is computed only for the tokens that want logits; their logits are the same to the bit. */
static void test_only_wanted_rows(void **state)
{
    (void)state;
    struct err err = {0};
    uint32_t ids[CHUNK];
    float *all = calloc(CHUNK, config.vocab * sizeof(float)), *some = calloc(CHUNK, config.vocab * sizeof(float));
    rig_ids(ids, CHUNK, config.vocab, 4);
    must(push(chunk_of(0, CHUNK, CHUNK_WANT_LOGITS), ids, &err), &err);
    assert_int_equal(collect(all), CHUNK);
    struct chunk *c = chunk_of(0, CHUNK, 0);
    c->tokens[3].flags = c->tokens[11].flags = c->tokens[19].flags = CHUNK_WANT_LOGITS;
    must(push(c, ids, &err), &err);
    assert_int_equal(collect(some), 3);
    size_t row = config.vocab * sizeof(float);
    assert_memory_equal(some, all + 3 * config.vocab, row);
    assert_memory_equal(some + config.vocab, all + 11 * config.vocab, row);
    assert_memory_equal(some + 2 * config.vocab, all + 19 * config.vocab, row);
    must(push(chunk_of(0, CHUNK, 0), ids, &err), &err);
    assert_int_equal(collect(some), 0);
    free(all);
    free(some);
}

static void test_forget(void **state)
{
    (void)state;
    struct err err = {0};
    uint32_t ids[CHUNK];
    rig_ids(ids, CHUNK, config.vocab, 5);
    must(push(chunk_of(0, CHUNK, 0), ids, &err), &err);
    collect(NULL);
    must(push(chunk_of(CHUNK, 1, 0), ids, &err), &err);
    collect(NULL);
    struct chunk *c = chunk_of(0, 0, 0); /* carries nothing but the request to forget */
    c->seqs[0].flags = CHUNK_SEQ_FREE;
    must(push(c, ids, &err), &err);
    assert_int_equal(collect(NULL), 0);
    assert_int_equal(push(chunk_of(CHUNK, 1, 0), ids, &err), -EINVAL);
    assert_non_null(strstr(err.text, "missing"));
}

static void test_bad_chunks(void **state)
{
    (void)state;
    struct err err = {0};
    uint32_t ids[CHUNK] = {2, 4, config.vocab};
    assert_int_equal(push(chunk_of(0, 3, 0), ids, &err), -EINVAL);
    assert_non_null(strstr(err.text, "expected less than 512"));
    for (int i = 0; i < STAGES; i++) {
        *current = *chunk_of(0, 1, 0);
        current->h.kind = i == LOADER ? CHUNK_HIDDEN : CHUNK_TOKENS;
        assert_int_equal(stages[i].ops->process(stages[i].state, &stages[i], 0, current, ids, &err), -EPROTO);
        assert_non_null(strstr(err.text, "expected"));
        assert_int_equal(stages[i].out[0].n + stages[i].out[1].n, 0);
    }
}

static void test_closing(void **state)
{
    (void)state;
    struct err err = {0};
    static float rows[CHUNK * 4096];
    for (int i = 0; i < STAGES; i++) {
        *current = *chunk_of(0, 1, 0);
        current->h.kind = i == LOADER ? CHUNK_TOKENS : CHUNK_HIDDEN;
        stages[i].closing = true;
        assert_int_equal(stages[i].ops->process(stages[i].state, &stages[i], 0, current, rows, &err), -ECANCELED);
    }
}

static void test_bad_segments(void **state)
{
    (void)state;
    struct err err = {0};
    struct segment *s = &stages[NPU].segments[0];
    void *npu = stages[NPU].state, *gpu = stages[GPU].state, *loader = stages[LOADER].state;
    assert_int_equal(npu_ops.segment(npu, SEGMENT_FFN, 0, s->data, s->bytes, &err), -EPROTO);
    assert_int_equal(npu_ops.segment(npu, SEGMENT_ATTN, config.n_layers, s->data, s->bytes, &err), -EPROTO);
    assert_int_equal(npu_ops.segment(npu, SEGMENT_ATTN, 0, s->data, s->bytes - 4096, &err), -EPROTO);
    assert_int_equal(gpu_ops.segment(gpu, SEGMENT_ATTN, 0, s->data, s->bytes, &err), -EPROTO);
    assert_int_equal(gpu_ops.segment(gpu, SEGMENT_FFN, 99, s->data, s->bytes, &err), -EPROTO);
    assert_int_equal(gpu_ops.segment(gpu, SEGMENT_HEAD, 0, s->data, 4096, &err), -EPROTO);
    assert_int_equal(loader_ops.fill(loader, SEGMENT_ATTN, 0, STAGE_SLOTS_MAX, s->fd, s->bytes, &err), -EPROTO);
    assert_int_equal(loader_ops.fill(loader, 3, 0, STAGE_NO_SLOT, s->fd, s->bytes, &err), -EPROTO);
    assert_int_equal(loader_ops.fill(loader, SEGMENT_ATTN, 99, STAGE_NO_SLOT, s->fd, s->bytes, &err), -EPROTO);
    assert_int_equal(loader_ops.fill(loader, SEGMENT_ATTN, 0, STAGE_NO_SLOT, s->fd, s->bytes + 4096, &err), -EPROTO);
}

static int configure(int i, uint64_t limit, int fail_after, const struct msg_configure *c, struct err *err)
{
    struct stage_io *io = io_init(i, limit);
    io->budget.fail_after = fail_after;
    int r = io->ops->configure(io->state, io, c, err);
    io_fini(io);
    return r;
}

/* Every allocation fails once: an error, no leak; the budget that the stage took is exactly what it needs. */
static void test_budgets(void **state)
{
    (void)state;
    struct err err = {0};
    make_config("tiny-27b-f32");
    for (int i = 0; i < STAGES; i++) {
        int n = 0;
        for (; configure(i, 0, n, &config, &err) < 0; n++) {
            assert_int_equal(err.code, -ENOMEM);
            assert_non_null(strstr(err.text, msg_role_name(stages[i].ops->role)));
            assert_true(n < 200);
        }
        assert_true(n >= 2);
        uint64_t need = stages[i].budget.total_peak;
        assert_int_equal(configure(i, need, -1, &config, &err), 0);
        assert_int_equal(configure(i, need - 1, -1, &config, &err), -ENOMEM);
    }
}

static void test_bad_configurations(void **state)
{
    (void)state;
    struct err err = {0};
    make_config("tiny-27b-f32");
    const struct msg_configure good = config;
    for (int i = NPU; i <= GPU; i++) {
        struct msg_configure c = good;
        strcpy(c.backend, "vulcan");
        assert_int_equal(configure(i, 0, -1, &c, &err), -ENOTSUP);
        assert_non_null(strstr(err.text, "'vulcan'"));
        c = good;
        strcpy(c.variant, "mmx");
        assert_int_equal(configure(i, 0, -1, &c, &err), -ENOTSUP);
        assert_non_null(strstr(err.text, "'mmx'"));
        c = good;
        c.types_len = 20;
        assert_int_equal(configure(i, 0, -1, &c, &err), -EPROTO);
        c = good;
        c.types[1] = 99;
        c.types[GEMMA3_FFN_GATE] = 99;
        assert_int_equal(configure(i, 0, -1, &c, &err), -EINVAL);
    }
    struct msg_configure c = good;
    c.eps *= 2;
    assert_int_equal(configure(LOADER, 0, -1, &c, &err), -ESTALE);
    c = good;
    strcpy(c.model, "/nonexistent/model.gguf");
    assert_int_equal(configure(LOADER, 0, -1, &c, &err), -ENOENT);
    assert_non_null(strstr(err.text, "/nonexistent/model.gguf"));
}

/* The device has room for the backend's buffers and for some layers, but not for all. */
static int open_on_device(void **state)
{
    make_config("tiny-27b-f32");
    struct hparams h;
    hparams_from_msg(&config, &h);
    device_memory = work_plan_vulkan_bytes(&h, CHUNK) + 100000;
    return open_stages(state);
}

static void test_fall_back(void **state)
{
    if (!began_on_device) {
        print_message("left out: no Vulkan device\n");
        exit(77);
    }
    test_logits_equal_goldens(state);
}

static int run_fall_back(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_fall_back, open_on_device, close_stages)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "fall-back") == 0)
        return run_fall_back();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_logits_equal_goldens, open_stages, close_stages),
        cmocka_unit_test_setup_teardown(test_only_wanted_rows, open_stages, close_stages),
        cmocka_unit_test_prestate_setup_teardown(test_only_wanted_rows, open_stages, close_stages,
                                                 (void *)(uintptr_t) "tiny-27b-q4_0"),
        cmocka_unit_test_setup_teardown(test_forget, open_stages, close_stages),
        cmocka_unit_test_setup_teardown(test_bad_chunks, open_stages, close_stages),
        cmocka_unit_test_setup_teardown(test_closing, open_stages, close_stages),
        cmocka_unit_test_setup_teardown(test_bad_segments, open_stages, close_stages),
        cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_bad_configurations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
