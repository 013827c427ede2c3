/* SPDX-License-Identifier: MIT
 * loader/fill: what several threads read and repack is what one would; a tensor that is not what its checksum says, and a file
 * that cannot be read, are told by name. */
#include "tests/unit/unit_test.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "kernels/quant.h"
#include "loader/fill.h"
#include "model/checksums.h"
#include "model/gemma3.h"
#include "model/gguf.h"
#include "model/gguf_write.h"
#include "proto/budget.h"
#include "proto/io.h"
#include "proto/util.h"
#include "quantizer/convert.h"

static struct budget budget;

static void convert(const char *out, int type)
{
    struct convert_result res;
    const struct convert_options o = {.in = unit_source("models/demo"),
                                      .out = out,
                                      .recipe = {.type = quant_name(type), .pure = true},
                                      .n_threads = 2,
                                      .alignment = 32};
    assert_ok(convert_run(&o, &res, err));
}

static void layout_of(const struct gguf *g, enum segment_kind kind, uint32_t layer, struct segment_layout *ret)
{
    struct hparams h;
    uint8_t types[SEGMENT_MAX_TENSORS];
    assert_ok(gemma3_hparams(g, &h, err));
    assert_ok(segment_types(g, kind, layer, types, err));
    assert_ok(segment_layout_init(ret, &h, kind, types, err));
}

struct one { /* a segment, by one of several threads */
    struct fill *fill;
    uint32_t layer;
    struct segment_layout layout;
    uint8_t *got, *want;
    int result;
    struct err err;
};

static void *run_one(void *arg)
{
    struct one *o = arg;
    o->result = fill_run(o->fill, o->layer, &o->layout, o->got, &o->err);
    return NULL;
}

static void prepare(struct one *o, const struct gguf *g, enum segment_kind kind, uint32_t layer)
{
    *o = (struct one){.layer = layer};
    layout_of(g, kind, layer, &o->layout);
    size_t n = segment_bounce_min(&o->layout);
    auto_free void *bounce = aligned_alloc(4096, n);
    o->got = aligned_alloc(4096, o->layout.bytes);
    o->want = aligned_alloc(4096, o->layout.bytes);
    memset(o->got, 0, o->layout.bytes);
    memset(o->want, 0, o->layout.bytes);
    assert_ok(segment_fill(g, layer, &o->layout, o->want, bounce, n, err));
}

/* Every segment of the model, many callers at once, and again. */
static void equal_to_one_thread(void **state)
{
    (void)state;
    static const int types[] = {QUANT_F32, QUANT_Q8_0, QUANT_Q4_0, QUANT_Q6_K};
    for (size_t k = 0; k < sizeof(types) / sizeof(types[0]); k++) {
        struct gguf *g;
        struct hparams h;
        struct one all[32];
        pthread_t threads[32];
        struct fill *f;
        uint32_t n = 0;
        uint64_t bytes = 0;
        convert(unit_path("m.gguf"), types[k]);
        assert_ok(gguf_open(unit_path("m.gguf"), k % 2, &g, err));
        assert_ok(gemma3_hparams(g, &h, err));
        for (uint32_t layer = 0; layer < h.n_layers; layer++) {
            prepare(&all[n++], g, SEGMENT_ATTN, layer);
            prepare(&all[n++], g, SEGMENT_FFN, layer);
        }
        prepare(&all[n++], g, SEGMENT_HEAD, 0);
        budget_init(&budget, "test", 0);
        assert_ok(fill_open(g, &budget, 64 << 10, true, &f, err));
        for (int round = 0; round < 2; round++) {
            for (uint32_t i = 0; i < n; i++) {
                all[i].fill = f;
                assert_int_equal(pthread_create(&threads[i], NULL, run_one, &all[i]), 0);
            }
            for (uint32_t i = 0; i < n; i++) {
                pthread_join(threads[i], NULL);
                if (all[i].result < 0)
                    fail_msg("%s", all[i].err.text);
                assert_memory_equal(all[i].got, all[i].want, all[i].layout.bytes);
                memset(all[i].got, 0, all[i].layout.bytes);
                for (uint32_t t = 0; t < all[i].layout.n_tensors; t++) {
                    const struct gguf_tensor *src;
                    assert_ok(gemma3_find(g, all[i].layout.tensors[t].role, all[i].layer, &src, err));
                    bytes += src->bytes;
                }
            }
        }
        assert_int_equal(fill_bytes_read(f), bytes);
        fill_close(f);
        assert_int_equal(budget.total, 0);
        for (uint32_t i = 0; i < n; i++) {
            free(all[i].got);
            free(all[i].want);
        }
        gguf_close(g);
    }
}

/* One memory for several segments, as a streaming slot: they follow one another, so what stays is one of them and no mixture. */
static void one_slot(void **state)
{
    (void)state;
    struct gguf *g;
    struct fill *f;
    struct one all[4];
    pthread_t threads[4];
    convert(unit_path("m.gguf"), QUANT_Q8_0);
    assert_ok(gguf_open(unit_path("m.gguf"), true, &g, err));
    budget_init(&budget, "test", 0);
    assert_ok(fill_open(g, &budget, 4096, true, &f, err));
    for (uint32_t i = 0; i < 4; i++)
        prepare(&all[i], g, SEGMENT_FFN, i);
    for (int round = 0; round < 50; round++) {
        struct one at_once[4];
        for (uint32_t i = 0; i < 4; i++) {
            at_once[i] = all[i];
            at_once[i].fill = f;
            at_once[i].got = all[0].got;
            assert_int_equal(pthread_create(&threads[i], NULL, run_one, &at_once[i]), 0);
        }
        bool whole = false;
        for (uint32_t i = 0; i < 4; i++) {
            pthread_join(threads[i], NULL);
            assert_int_equal(at_once[i].result, 0);
        }
        for (uint32_t i = 0; i < 4; i++)
            whole = whole || memcmp(all[0].got, all[i].want, all[i].layout.bytes) == 0;
        assert_true(whole);
    }
    fill_close(f);
    for (uint32_t i = 0; i < 4; i++) {
        free(all[i].got);
        free(all[i].want);
    }
    gguf_close(g);
}

/* A bit that fell: refused by name on the first read; not looked for where the config says so, and not where the checksums are of
 * other tensors. */
static void damage(void **state)
{
    (void)state;
    struct gguf *g;
    struct fill *f;
    struct one o;
    const struct gguf_tensor *t;
    convert(unit_path("m.gguf"), QUANT_Q4_0);
    assert_ok(gguf_open(unit_path("m.gguf"), true, &g, err));
    prepare(&o, g, SEGMENT_FFN, 3);
    assert_ok(gemma3_find(g, GEMMA3_FFN_UP, 3, &t, err));
    struct bytes b = unit_read(unit_path("m.gguf"));
    b.data[t->offset + t->bytes / 2] ^= 16;
    unit_write(unit_path("bad.gguf"), b.data, b.n);
    gguf_close(g);

    for (int verify = 0; verify < 2; verify++) {
        assert_ok(gguf_open(unit_path("bad.gguf"), true, &g, err));
        budget_init(&budget, "test", 0);
        assert_ok(fill_open(g, &budget, 4096, verify, &f, err));
        if (verify)
            assert_err(fill_run(f, 3, &o.layout, o.got, err), -EBADMSG, "tensor 'blk.3.ffn_up.weight' is damaged: its checksum is");
        else
            assert_ok(fill_run(f, 3, &o.layout, o.got, err));
        assert_ok(fill_run(f, 2, &o.layout, o.got, err)); /* others go on */
        fill_close(f);
        gguf_close(g);
    }

    /* types that are not those of the file: as a program leaves them that copies all keys */
    static const char types_key[] = CHECKSUMS_TYPES_KEY;
    uint8_t *at = memmem(b.data, b.n, types_key, strlen(types_key));
    assert_non_null(at);
    at[strlen(types_key) + 4 + 4 + 8]++; /* type of the value, of its elements, their number; the first element */
    unit_write(unit_path("other.gguf"), b.data, b.n);
    assert_ok(gguf_open(unit_path("other.gguf"), true, &g, err));
    const void *sums;
    const char *why;
    assert_ok(checksums_find(g, &sums, &why, err));
    assert_null(sums);
    assert_non_null(strstr(why, "of other types"));
    assert_ok(fill_open(g, &budget, 4096, true, &f, err));
    assert_ok(fill_run(f, 3, &o.layout, o.got, err));
    fill_close(f);
    gguf_close(g);
    unit_free(&b);
    free(o.got);
    free(o.want);
}

static _Atomic int good_reads;

static ssize_t failing_pread(int fd, void *buf, size_t n, off_t at)
{
    if (good_reads-- <= 0) {
        errno = EIO;
        return -1;
    }
    return pread(fd, buf, n, at);
}

/* A disk that fails, after some reads or at once, ends one segment with file and offset, and nothing hangs. */
static void broken_disk(void **state)
{
    (void)state;
    static const struct io_system broken = {failing_pread, pwrite, fsync};
    struct gguf *g;
    struct fill *f;
    struct one o;
    convert(unit_path("m.gguf"), QUANT_Q8_0);
    assert_ok(gguf_open(unit_path("m.gguf"), true, &g, err));
    prepare(&o, g, SEGMENT_FFN, 0);
    budget_init(&budget, "test", 0);
    assert_ok(fill_open(g, &budget, 4096, true, &f, err));
    for (int n = 0; n < 5; n++) {
        good_reads = n;
        io_set_system(&broken);
        assert_err(fill_run(f, 0, &o.layout, o.got, err), -EIO, "m.gguf': cannot read");
        io_set_system(NULL);
    }
    assert_ok(fill_run(f, 0, &o.layout, o.got, err));
    assert_memory_equal(o.got, o.want, o.layout.bytes);
    fill_close(f);
    gguf_close(g);
    free(o.got);
    free(o.want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(equal_to_one_thread), UNIT_TEST(one_slot), UNIT_TEST(damage),
                                       UNIT_TEST(broken_disk)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
