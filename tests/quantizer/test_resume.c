/* SPDX-License-Identifier: MIT
 * Conversions that fail in the middle: every read, write and sync cut short or failed once or from then on, what is left then, and
 * that the next run gives the bytes of an undisturbed one. Then what a resumed run must notice: changed input, other arguments,
 * changed or missing partial files, a torn journal, a second run. */
#include "tests/unit/unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/io.h"
#include "quantizer/convert.h"
#include "tests/unit/checkpoint.h"

/* ---- faults ---- */

enum call { CALL_READ, CALL_WRITE, CALL_SYNC };
enum fault { FAULT_SHORT, FAULT_ERROR, FAULT_BROKEN }; /* broken: this call and all later ones of its kind */

static struct {
    enum call call;
    enum fault fault;
    int code;
    long at;
    _Atomic long seen;
} plan;

static bool strikes(enum call call)
{
    if (call != plan.call)
        return false;
    long n = atomic_fetch_add(&plan.seen, 1);
    return n == plan.at || (n > plan.at && plan.fault == FAULT_BROKEN);
}

static ssize_t give_error(void)
{
    errno = plan.code;
    return -1;
}

static ssize_t faulty_pread(int fd, void *buf, size_t n, off_t at)
{
    bool hit = strikes(CALL_READ);
    if (hit && plan.fault != FAULT_SHORT)
        return give_error();
    return pread(fd, buf, hit ? (n + 1) / 2 : n, at);
}

static ssize_t faulty_pwrite(int fd, const void *buf, size_t n, off_t at)
{
    bool hit = strikes(CALL_WRITE);
    if (hit && plan.fault != FAULT_SHORT)
        return give_error();
    return pwrite(fd, buf, hit ? (n + 1) / 2 : n, at);
}

static int faulty_sync(int fd)
{
    (void)fd; /* no power is lost here, and thousands of syncs take minutes */
    return strikes(CALL_SYNC) ? (int)give_error() : 0;
}

static const struct io_system faulty = {faulty_pread, faulty_pwrite, faulty_sync};

static void no_faults(void)
{
    plan.at = LONG_MAX;
    plan.seen = 0;
}

/* ---- conversions ---- */

static int convert(const char *out, const char *type, uint64_t split, bool restart, uint64_t *ret_kept, struct err *e)
{
    struct convert_result res = {0};
    const struct convert_options o = {.in = unit_path("in"),
                                      .out = unit_path(out),
                                      .recipe = {.type = type},
                                      .n_threads = 2,
                                      .alignment = 32,
                                      .split_bytes = split,
                                      .restart = restart,
                                      .group_bytes = 4096};
    int r = convert_run(&o, &res, e);
    if (ret_kept)
        *ret_kept = res.bytes_kept;
    return r;
}

static void make_input(void)
{
    checkpoint_make(unit_path("in"), &(struct checkpoint){0});
}

static bool exists(const char *name)
{
    return access(unit_path(name), F_OK) == 0;
}

static void assert_same(const char *a, const char *b)
{
    struct bytes x = unit_read(unit_path(a)), y = unit_read(unit_path(b));
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.data, y.data, x.n);
    unit_free(&x);
    unit_free(&y);
}

/* One run with the fault, then one without. True when the fault struck. */
static bool one_fault(uint64_t split, const char *const *files, const char *const *wanted)
{
    struct err e = {0};
    uint64_t kept = 0;
    long at = plan.at;
    plan.seen = 0;
    int r = convert("f.gguf", "f32", split, false, NULL, &e);
    bool struck = plan.seen > at;
    no_faults();
    if (struck && plan.fault == FAULT_SHORT && r < 0)
        fail_msg("call %ld cut short: %s", at, e.text);
    if (r < 0 && (!struck || !e.text[0]))
        fail_msg("call %ld: %d '%s'", at, r, e.text);
    if (struck && plan.fault == FAULT_BROKEN && r == 0)
        fail_msg("calls from %ld on fail, but the run does not", at);
    if (r < 0) {
        for (int i = 0; files[i]; i++) /* a name never means half a file */
            assert_false(exists(files[i]) && !exists("f.gguf.partial.journal"));
        assert_ok(convert("f.gguf", "f32", split, false, &kept, err));
    }
    for (int i = 0; files[i]; i++) {
        assert_same(files[i], wanted[i]);
        unlink(unit_path(files[i]));
    }
    assert_false(exists("f.gguf.partial.journal"));
    return struck;
}

static void every_fault(uint64_t split, const char *const *files, const char *const *wanted)
{
    static const struct {
        enum call call;
        enum fault fault;
        int code;
    } cases[] = {
        {CALL_READ, FAULT_SHORT, 0},      {CALL_READ, FAULT_ERROR, EIO},      {CALL_READ, FAULT_ERROR, EINTR},
        {CALL_READ, FAULT_BROKEN, EIO},   {CALL_WRITE, FAULT_SHORT, 0},       {CALL_WRITE, FAULT_ERROR, EIO},
        {CALL_WRITE, FAULT_ERROR, EINTR}, {CALL_WRITE, FAULT_BROKEN, ENOSPC}, {CALL_SYNC, FAULT_ERROR, EIO},
        {CALL_SYNC, FAULT_BROKEN, EIO},   {CALL_SYNC, FAULT_ERROR, EINVAL},
    };
    unsigned struck = 0;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        plan.call = cases[i].call;
        plan.fault = cases[i].fault;
        plan.code = cases[i].code;
        long at = 0;
        do
            plan.at = at++;
        while (one_fault(split, files, wanted));
        struck += (unsigned)at;
    }
    if (struck < 200)
        fail_msg("only %u faults struck", struck);
}

static void faults_in_one_file(void **state)
{
    (void)state;
    static const char *const files[] = {"f.gguf", NULL}, *const wanted[] = {"whole.gguf", NULL};
    make_input();
    assert_ok(convert("whole.gguf", "f32", 0, false, NULL, err));
    every_fault(0, files, wanted);
}

static void faults_in_parts(void **state)
{
    (void)state;
    static const char *const files[] = {"f-00001-of-00002.gguf", "f-00002-of-00002.gguf", NULL};
    static const char *const wanted[] = {"w-00001-of-00002.gguf", "w-00002-of-00002.gguf", NULL};
    make_input();
    assert_ok(convert("w.gguf", "f32", 100 << 10, false, NULL, err));
    every_fault(100 << 10, files, wanted);
}

/* ---- what a resumed run notices ---- */

static void fail_after(enum call call, long at, int code)
{
    plan.call = call;
    plan.fault = FAULT_BROKEN;
    plan.code = code;
    plan.at = at;
    plan.seen = 0;
    struct err e = {0};
    int r = convert("f.gguf", "f32", 0, false, NULL, &e);
    no_faults();
    assert_int_equal(r, -code);
    assert_non_null(strstr(e.text, "start again with the same arguments to continue"));
    assert_true(exists("f.gguf.partial") && exists("f.gguf.partial.journal") && !exists("f.gguf"));
}

static void setup_failed(void)
{
    make_input();
    assert_ok(convert("whole.gguf", "f32", 0, false, NULL, err));
    fail_after(CALL_WRITE, 24, ENOSPC);
}

static void goes_on(void **state)
{
    (void)state;
    uint64_t kept;
    setup_failed();
    assert_ok(convert("f.gguf", "f32", 0, false, &kept, err));
    assert_true(kept >= 4096);
    assert_same("f.gguf", "whole.gguf");
    assert_int_equal(unit_count_files(), 3); /* the checkpoint, two files */
}

static void flip(const char *name, long at)
{
    struct bytes b = unit_read(unit_path(name));
    assert_true(at < (long)b.n);
    b.data[at < 0 ? (long)b.n + at : at] ^= 1;
    int fd = open(unit_path(name), O_WRONLY);
    assert_int_equal(write(fd, b.data, b.n), (ssize_t)b.n);
    close(fd);
    unit_free(&b);
}

static void changed_partial(void **state)
{
    (void)state;
    uint64_t kept;
    setup_failed();
    flip("f.gguf.partial", 6000);
    assert_ok(convert("f.gguf", "f32", 0, false, &kept, err));
    assert_int_equal(kept, 4096); /* the first group is good, the second is made again */
    assert_same("f.gguf", "whole.gguf");
}

static void missing_partial(void **state)
{
    (void)state;
    uint64_t kept;
    setup_failed();
    unlink(unit_path("f.gguf.partial"));
    assert_ok(convert("f.gguf", "f32", 0, false, &kept, err));
    assert_int_equal(kept, 0);
    assert_same("f.gguf", "whole.gguf");
}

/* Without its first word a journal might be anybody's file, and so might what lies beside it: nothing is touched. */
static void torn_journal(void **state)
{
    (void)state;
    setup_failed();
    struct bytes b = unit_read(unit_path("f.gguf.partial.journal")), partial = unit_read(unit_path("f.gguf.partial"));
    for (size_t n = 0; n <= b.n; n++) {
        uint64_t kept;
        unit_write(unit_path("f.gguf.partial.journal"), b.data, n);
        unit_write(unit_path("f.gguf.partial"), partial.data, partial.n);
        if (n < 8) {
            assert_err(convert("f.gguf", "f32", 0, true, &kept, err), -EEXIST, "remove it");
            struct bytes now = unit_read(unit_path("f.gguf.partial"));
            assert_int_equal(now.n, partial.n);
            assert_memory_equal(now.data, partial.data, now.n);
            unit_free(&now);
            continue;
        }
        assert_ok(convert("f.gguf", "f32", 0, false, &kept, err));
        assert_same("f.gguf", "whole.gguf");
        assert_true(n < b.n || kept >= 4096);
    }
    for (size_t i = 8; i < b.n; i += 7) {
        b.data[i] ^= 0x10;
        unit_write(unit_path("f.gguf.partial.journal"), b.data, b.n);
        unit_write(unit_path("f.gguf.partial"), partial.data, partial.n);
        b.data[i] ^= 0x10;
        assert_ok(convert("f.gguf", "f32", 0, false, NULL, err));
        assert_same("f.gguf", "whole.gguf");
    }
    unit_free(&b);
    unit_free(&partial);
}

static void other_arguments(void **state)
{
    (void)state;
    setup_failed();
    assert_err(convert("f.gguf", "bf16", 0, false, NULL, err), -ESTALE, "begun with other arguments; start with those");
    assert_err(convert("f.gguf", "f32", 100 << 10, false, NULL, err), -ESTALE, "begun with other arguments");
    assert_ok(convert("f.gguf", "bf16", 0, true, NULL, err));
    assert_false(exists("f.gguf.partial"));
}

static void changed_input(void **state)
{
    (void)state;
    setup_failed();
    const struct timespec times[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    assert_int_equal(utimensat(AT_FDCWD, unit_path("in/model.safetensors"), times, 0), 0);
    assert_err(convert("f.gguf", "f32", 0, false, NULL, err), -ESTALE, "from an input that has changed since");
    assert_true(exists("f.gguf.partial"));
    assert_ok(convert("f.gguf", "f32", 0, true, NULL, err));
    assert_same("f.gguf", "whole.gguf");
}

static void touch_input(void *ctx, uint64_t done, uint64_t total, const char *tensor)
{
    const struct timespec times[2] = {{.tv_sec = 2000}, {.tv_sec = 2000}};
    (void)ctx, (void)total, (void)tensor;
    if (done > 0)
        utimensat(AT_FDCWD, unit_path("in/model.safetensors"), times, 0);
}

/* What was read before the change is kept; with the file as it was, the run goes on to the same bytes. */
static void changed_while_read(void **state)
{
    (void)state;
    struct convert_result res;
    struct stat st;
    make_input();
    assert_ok(convert("whole.gguf", "f32", 0, false, NULL, err));
    assert_int_equal(stat(unit_path("in/model.safetensors"), &st), 0);
    struct convert_options o = {.in = unit_path("in"),
                                .out = unit_path("f.gguf"),
                                .recipe = {.type = "f32"},
                                .n_threads = 1,
                                .alignment = 32,
                                .progress = touch_input};
    assert_err(convert_run(&o, &res, err), -ESTALE, "model.safetensors' has changed while it was read");
    assert_true(exists("f.gguf.partial"));
    assert_true(exists("f.gguf.partial.journal"));
    assert_false(exists("f.gguf"));
    o.progress = NULL;
    assert_err(convert_run(&o, &res, err), -ESTALE, "an input that has changed since");
    assert_int_equal(utimensat(AT_FDCWD, unit_path("in/model.safetensors"), (struct timespec[]){st.st_mtim, st.st_mtim}, 0), 0);
    assert_ok(convert_run(&o, &res, err));
    assert_same("f.gguf", "whole.gguf");
}

static void second_run(void **state)
{
    (void)state;
    setup_failed();
    int fd = open(unit_path("f.gguf.partial.journal"), O_RDWR | O_CLOEXEC);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    assert_err(convert("f.gguf", "f32", 0, false, NULL, err), -EBUSY, "is being written by another quantizer");
    close(fd);
    fd = open(unit_path("f.gguf.partial"),
              O_RDWR | O_CLOEXEC); /* under another name of the output, which has a journal of its own */
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    assert_err(convert("f.gguf", "f32", 0, false, NULL, err), -EBUSY, "f.gguf.partial' is being written by another quantizer");
    close(fd);
    assert_ok(convert("f.gguf", "f32", 0, false, NULL, err));
    assert_same("f.gguf", "whole.gguf");
}

/* Names that the quantizer makes up are no licence to overwrite what has them. */
static void foreign_files(void **state)
{
    (void)state;
    static const char *const names[] = {"f.gguf.partial", "f.gguf.partial.journal"};
    make_input();
    unit_write(unit_path("victim"), "precious", 8);
    char victim[4096];
    snprintf(victim, sizeof(victim), "%s", unit_path("victim"));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(symlink(victim, unit_path(names[i])), 0);
        assert_err(convert("f.gguf", "f32", 0, i, NULL, err), i ? -ELOOP : -EEXIST, "remove it");
        unlink(unit_path(names[i]));
        unit_write(unit_path(names[i]), "precious", 8);
        assert_err(convert("f.gguf", "f32", 0, i, NULL, err), -EEXIST, "remove it");
        struct bytes b = unit_read(unit_path(names[i]));
        assert_int_equal(b.n, 8);
        unit_free(&b);
        unlink(unit_path(names[i]));
    }
    struct bytes b = unit_read(victim);
    assert_int_equal(b.n, 8);
    unit_free(&b);
    assert_int_equal(unit_count_files(), 2);
}

/* Another number of parts: what the old plan left goes, too. */
static void restart_in_other_parts(void **state)
{
    (void)state;
    uint64_t kept;
    setup_failed();
    unlink(unit_path("f.gguf.partial"));
    unlink(unit_path("f.gguf.partial.journal"));
    plan.call = CALL_WRITE;
    plan.fault = FAULT_BROKEN;
    plan.code = ENOSPC;
    plan.at = 24;
    plan.seen = 0;
    assert_err(convert("f.gguf", "f32", 100 << 10, false, NULL, err), -ENOSPC, "what is done is kept");
    no_faults();
    int before = (int)unit_count_files();
    assert_ok(convert("f.gguf", "f32", 0, true, &kept, err));
    assert_same("f.gguf", "whole.gguf");
    assert_true(before > 4);
    assert_int_equal(unit_count_files(), 3); /* the checkpoint, two files */
}

/* Killed between the last byte and the names: the checksums may be in the metadata already, some files may have their name. */
static void complete_but_unnamed(void **state)
{
    (void)state;
    make_input();
    assert_ok(convert("w.gguf", "f32", 100 << 10, false, NULL, err));
    for (int named = 0; named < 2; named++) {
        long at = -1;
        do { /* the first sync at which nothing but the end is left to do */
            plan.call = CALL_SYNC;
            plan.fault = FAULT_BROKEN;
            plan.code = EIO;
            plan.at = ++at;
            plan.seen = 0;
            struct err e = {0};
            int r = convert("f.gguf", "f32", 100 << 10, false, NULL, &e);
            no_faults();
            assert_int_equal(r, -EIO);
            if (strstr(e.text, "cannot sync the folder") && exists("f-00001-of-00002.gguf"))
                break;
            assert_ok(convert("f.gguf", "f32", 100 << 10, true, NULL, err));
            unlink(unit_path("f-00001-of-00002.gguf"));
            unlink(unit_path("f-00002-of-00002.gguf"));
        } while (at < 1000);
        assert_true(exists("f-00001-of-00002.gguf") && exists("f.gguf.partial.journal"));
        if (named) /* as if the second had not been renamed */
            assert_int_equal(rename(unit_path("f-00002-of-00002.gguf"), unit_path("f-00002-of-00002.gguf.partial")), 0);
        uint64_t kept;
        assert_ok(convert("f.gguf", "f32", 100 << 10, false, &kept, err));
        assert_true(kept > 100 << 10);
        assert_same("f-00001-of-00002.gguf", "w-00001-of-00002.gguf");
        assert_same("f-00002-of-00002.gguf", "w-00002-of-00002.gguf");
        assert_false(exists("f.gguf.partial.journal"));
        unlink(unit_path("f-00001-of-00002.gguf"));
        unlink(unit_path("f-00002-of-00002.gguf"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(faults_in_one_file),   UNIT_TEST(faults_in_parts), UNIT_TEST(goes_on),         UNIT_TEST(changed_partial),
        UNIT_TEST(missing_partial),      UNIT_TEST(torn_journal),    UNIT_TEST(other_arguments), UNIT_TEST(changed_input),
        UNIT_TEST(changed_while_read),   UNIT_TEST(second_run),      UNIT_TEST(foreign_files),   UNIT_TEST(restart_in_other_parts),
        UNIT_TEST(complete_but_unnamed),
    };
    no_faults();
    io_set_system(&faulty);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
