/* SPDX-License-Identifier: MIT
 * Ring slot contents: what is written is read back, and every lie that a slot can tell is refused. */
#include "tests/proto/proto_test.h"

#include <errno.h>
#include <stdlib.h>

#include "proto/chunk.h"
#include "proto/util.h"

#define SLOT 8192
static const struct chunk_limits limits = {
    .epoch = 3, .max_tokens = 8, .max_seqs = 4, .context = 100, .n_layers = 6, .vocab = 50, .hidden = 16};

static struct chunk *good(void)
{
    static struct chunk c;
    memset(&c, 0, sizeof(c));
    c.h = (struct chunk_header){.magic = CHUNK_MAGIC,
                                .epoch = 3,
                                .id = 77,
                                .kind = CHUNK_HIDDEN,
                                .layer = 5,
                                .n_tokens = 5,
                                .n_seqs = 3,
                                .payload_bytes = 5 * 16 * 4,
                                .times = {.npu_ns = 11, .hops = 4}};
    c.tokens[0] = (struct chunk_token){.seq = 3, .pos = 97};
    c.tokens[1] = (struct chunk_token){.seq = 3, .pos = 98, .flags = CHUNK_WANT_LOGITS};
    c.tokens[2] = (struct chunk_token){.seq = 3, .pos = 99, .flags = CHUNK_WANT_LOGITS};
    c.tokens[3] = (struct chunk_token){.seq = 0, .pos = 0};
    c.tokens[4] = (struct chunk_token){.seq = 0, .pos = 1, .flags = CHUNK_WANT_LOGITS};
    c.seqs[0] = (struct chunk_seq){.seq = 0};
    c.seqs[1] = (struct chunk_seq){.seq = 3, .committed_pos = 97};
    c.seqs[2] = (struct chunk_seq){.seq = 1, .flags = CHUNK_SEQ_FREE};
    return &c;
}

static _Alignas(64) uint8_t slot[SLOT];

static int write_read(const struct chunk *c, size_t slot_bytes, const struct chunk_limits *lim, struct chunk *ret, struct err *err)
{
    const void *payload = NULL;
    if (!chunk_write(slot, SLOT, c))
        return -ENOSPC;
    int r = chunk_read(slot, slot_bytes, lim, ret, &payload, err);
    if (r == 0)
        assert_ptr_equal(payload, slot + chunk_payload_offset(c->h.n_tokens, c->h.n_seqs));
    return r;
}

static void test_round_trip(void **state)
{
    (void)state;
    static struct chunk back;
    struct chunk *c = good();
    assert_ok(write_read(c, SLOT, &limits, &back, err));
    assert_memory_equal(&back.h, &c->h, sizeof(c->h));
    assert_memory_equal(back.tokens, c->tokens, 5 * sizeof(c->tokens[0]));
    assert_memory_equal(back.seqs, c->seqs, 3 * sizeof(c->seqs[0]));
    assert_int_equal(chunk_n_logits(&back), 3);
    assert_int_equal(chunk_payload_offset(5, 3) % 64, 0);
}

static void test_kinds(void **state)
{
    (void)state;
    static struct chunk back;
    struct chunk *c = good();
    c->h.kind = CHUNK_TOKENS;
    c->h.payload_bytes = 20;
    assert_ok(write_read(c, SLOT, &limits, &back, err));
    c->h.kind = CHUNK_DONE;
    c->h.payload_bytes = 0;
    assert_ok(write_read(c, SLOT, &limits, &back, err));
    c->h.kind = CHUNK_FAILED;
    c->h.payload_bytes = 256;
    assert_ok(write_read(c, SLOT, &limits, &back, err));
    c->h.payload_bytes = 257;
    assert_err(write_read(c, SLOT, &limits, &back, err), -EPROTO, "payload of 257 bytes");
    c = good();
    c->h.kind = CHUNK_LOGITS;
    c->h.first_row = 1;
    c->h.n_rows = 2;
    c->h.payload_bytes = 2 * 50 * 4;
    assert_ok(write_read(c, SLOT, &limits, &back, err));
    c->h.first_row = 2;
    assert_err(write_read(c, SLOT, &limits, &back, err), -EPROTO, "3 tokens want logits");
    c->h.first_row = UINT32_MAX;
    assert_err(write_read(c, SLOT, &limits, &back, err), -EPROTO, "3 tokens want logits");
    c = good(); /* nothing but a freed sequence */
    c->h.n_tokens = c->h.n_seqs = c->h.payload_bytes = 0;
    assert_ok(write_read(c, SLOT, &limits, &back, err));
}

/* One field each, one value just outside. */
static void test_header_lies(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t offset;
        int code;
        const char *part;
        uint32_t value;
    } lies[] = {
        {"magic", offsetof(struct chunk_header, magic), -EPROTO, "magic", 0},
        {"epoch", offsetof(struct chunk_header, epoch), -ESTALE, "epoch 2; expected 3", 2},
        {"kind", offsetof(struct chunk_header, kind), -EPROTO, "kind 0", 0},
        {"kind", offsetof(struct chunk_header, kind), -EPROTO, "kind 6", 6},
        {"layer", offsetof(struct chunk_header, layer), -EPROTO, "layer 6; the model has 6", 6},
        {"n_tokens", offsetof(struct chunk_header, n_tokens), -EPROTO, "9 tokens", 9},
        {"n_tokens", offsetof(struct chunk_header, n_tokens), -EPROTO, "4294967295 tokens", UINT32_MAX},
        {"n_seqs", offsetof(struct chunk_header, n_seqs), -EPROTO, "of 5 sequences", 5},
        {"n_seqs", offsetof(struct chunk_header, n_seqs), -EPROTO, "sequences", UINT32_MAX},
        {"payload", offsetof(struct chunk_header, payload_bytes), -EPROTO, "payload of 319 bytes", 319},
        {"payload", offsetof(struct chunk_header, payload_bytes), -EPROTO, "payload of 321 bytes", 321},
        {"payload", offsetof(struct chunk_header, payload_bytes), -EPROTO, "the slot has", UINT32_MAX},
    };
    static struct chunk back;
    for (size_t i = 0; i < ARRAY_LEN(lies); i++) {
        assert_ok(write_read(good(), SLOT, &limits, &back, err));
        memcpy(slot + lies[i].offset, &lies[i].value, 4);
        const void *payload;
        assert_err(chunk_read(slot, SLOT, &limits, &back, &payload, err), lies[i].code, lies[i].part);
    }
}

static void test_table_lies(void **state)
{
    (void)state;
    static struct chunk back;
    struct chunk *c;
#define REFUSED(change, part)                                                \
    do {                                                                     \
        c = good();                                                          \
        change;                                                              \
        assert_err(write_read(c, SLOT, &limits, &back, err), -EPROTO, part); \
    } while (0)
    REFUSED(c->tokens[0].seq = 2, "token 0 has slot 2");
    REFUSED(c->tokens[0].seq = UINT32_MAX, "token 0");
    REFUSED(c->tokens[4].seq = 64, "token 4");
    REFUSED(c->tokens[2].pos = 100, "position 100");
    REFUSED(c->tokens[1].pos = 97, "token 1 has position 97 after 97");
    REFUSED(c->tokens[1].pos = 99, "token 1 has position 99 after 97");
    REFUSED((c->tokens[4].seq = 3, c->tokens[4].pos = 50), "tokens of slot 3 are not together");
    REFUSED(c->seqs[2].seq = 4, "sequence entry 2 names slot 4");
    REFUSED(c->seqs[2].seq = UINT32_MAX, "sequence entry 2");
    REFUSED(c->seqs[2].seq = 0, "sequence entry 2");
    REFUSED(c->seqs[1].committed_pos = 101, "committed 101");
    c = good();
    c->seqs[1].committed_pos = 100;
    assert_ok(write_read(c, SLOT, &limits, &back, err));
}

static void test_slot_bounds(void **state)
{
    (void)state;
    static struct chunk back;
    struct chunk *c = good();
    size_t need = chunk_payload_offset(5, 3) + c->h.payload_bytes;
    assert_ok(write_read(c, need, &limits, &back, err));
    assert_err(write_read(c, need - 1, &limits, &back, err), -EPROTO, "the slot has");
    assert_err(write_read(c, sizeof(c->h) - 1, &limits, &back, err), -EPROTO, "smaller than a header");
    assert_err(write_read(c, 0, &limits, &back, err), -EPROTO, "smaller than a header");
    assert_non_null(chunk_write(slot, need, c));
    assert_null(chunk_write(slot, need - 1, c));
    assert_null(chunk_write(slot, 0, c));
    assert_true(chunk_slot_bytes(5, 3, c->h.payload_bytes) >= need);
    assert_true(chunk_slot_bytes(8, 4, 0) >= chunk_payload_offset(8, 4) + 256);
    c->h.n_tokens = CHUNK_MAX_TOKENS + 1;
    assert_null(chunk_write(slot, SIZE_MAX, c));
    c = good();
    c->h.n_seqs = CHUNK_MAX_SEQS + 1;
    assert_null(chunk_write(slot, SIZE_MAX, c));
}

static void test_unchecked_hidden(void **state)
{
    (void)state;
    static struct chunk back;
    struct chunk_limits lim = limits;
    lim.hidden = 0;
    assert_ok(write_read(good(), SLOT, &lim, &back, err));
}

/* Limits larger than the arrays of struct chunk must not let a slot overrun them. */
static void test_limits_above_arrays(void **state)
{
    (void)state;
    static struct chunk back;
    struct chunk_limits lim = {.epoch = 3,
                               .max_tokens = UINT32_MAX,
                               .max_seqs = UINT32_MAX,
                               .context = UINT32_MAX,
                               .n_layers = UINT32_MAX,
                               .vocab = UINT32_MAX,
                               .hidden = UINT32_MAX};
    static const uint32_t counts[][2] = {{CHUNK_MAX_TOKENS + 1, 0}, {0, CHUNK_MAX_SEQS + 1}, {UINT32_MAX, UINT32_MAX}};
    size_t bytes = (size_t)1 << 20;
    uint8_t *big = calloc(1, bytes);
    for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
        struct chunk_header h = good()->h;
        h.n_tokens = counts[i][0];
        h.n_seqs = counts[i][1];
        memcpy(big, &h, sizeof(h));
        const void *payload;
        assert_err(chunk_read(big, bytes, &lim, &back, &payload, err), -EPROTO, "expected at most 1024 of 64");
    }
    free(big);
}

/* Every single changed bit is either refused or leaves a chunk within the limits. */
static void test_flipped_bits(void **state)
{
    (void)state;
    static struct chunk back;
    size_t n = chunk_payload_offset(5, 3), refused = 0;
    for (size_t bit = 0; bit < n * 8; bit++) {
        const void *payload;
        assert_non_null(chunk_write(slot, SLOT, good()));
        slot[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (chunk_read(slot, SLOT, &limits, &back, &payload, NULL) < 0) {
            refused++;
            continue;
        }
        assert_true(back.h.n_tokens <= 8 && back.h.n_seqs <= 4 && back.h.layer < 6);
        for (uint32_t i = 0; i < back.h.n_tokens; i++)
            assert_true(back.tokens[i].seq < 4 && back.tokens[i].pos < 100);
    }
    assert_true(refused > 200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FD_TEST(test_round_trip),          FD_TEST(test_kinds),        FD_TEST(test_header_lies),
        FD_TEST(test_table_lies),          FD_TEST(test_slot_bounds),  FD_TEST(test_unchecked_hidden),
        FD_TEST(test_limits_above_arrays), FD_TEST(test_flipped_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
