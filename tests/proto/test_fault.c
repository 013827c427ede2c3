/* SPDX-License-Identifier: MIT
 * Faults on demand: what the words may be, which stage gets which, and at which chunks they come. What each event does to a run is
 * tested through the coordinator (tests/e2e/test_fault.py). */
#include "tests/proto/proto_test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "proto/fault.h"
#include "proto/io.h"

static void test_words(void **state)
{
    static const char *const good[] = {"loader:eio@1",
                                       "npu_worker:abort@100",
                                       "gpu_worker:segv@layer=3",
                                       "gpu_worker:hang@start",
                                       "npu_worker:slow@p=0.01,seed=7",
                                       "npu_worker:slow@p=1",
                                       "npu_worker:slow@p=.5:always",
                                       "npu_worker:device-lost@layer=511:always",
                                       "loader:short-read@18446744073709551615",
                                       "loader:corrupt-slot@2",
                                       "loader:corrupt-message@2",
                                       "loader:drop-message@start:always",
                                       "npu_worker:drop-chunk@3",
                                       "loader:oom@1",
                                       "loader:exit@1"};
    static const struct {
        const char *text, *part;
    } bad[] = {{"", "expected STAGE:EVENT@WHEN"},
               {"npu_worker", "expected STAGE:EVENT@WHEN"},
               {"npu_worker:abort", "expected STAGE:EVENT@WHEN"},
               {"npu_worker@abort:1", "expected STAGE:EVENT@WHEN"},
               {"npu_worker:abort @1", "expected STAGE:EVENT@WHEN"},
               {"npu:abort@1", "stage 'npu'; expected loader, npu_worker or gpu_worker"},
               {"coordinator:abort@1", "stage 'coordinator'"},
               {":abort@1", "stage ''"},
               {"loader:die@1", "event 'die'; expected abort"},
               {"loader:@1", "event ''"},
               {"loader:device-lost@1", "the loader has no device"},
               {"gpu_worker:eio@1", "only the loader reads files"},
               {"npu_worker:short-read@start", "only the loader reads files"},
               {"loader:exit@", "moment ''"},
               {"loader:exit@0", "moment '0'"},
               {"loader:exit@-1", "moment '-1'"},
               {"loader:exit@1x", "moment '1x'"},
               {"loader:exit@18446744073709551616", "moment '18446744073709551616'"},
               {"loader:exit@layer=", "moment 'layer='"},
               {"loader:exit@layer=512", "moment 'layer=512'"},
               {"loader:exit@p=0", "moment 'p=0'"},
               {"loader:exit@p=1.01", "moment 'p=1.01'"},
               {"loader:exit@p=nan", "moment 'p=nan'"},
               {"loader:exit@p=0.5,seed=", "moment 'p=0.5,seed='"},
               {"loader:exit@p=0.5,sead=3", "moment 'p=0.5,sead=3'"},
               {"loader:exit@p=0.5seed=3", "moment 'p=0.5seed=3'"},
               {"loader:exit@:always", "moment ''"},
               {"loader:exit@1:alway", "moment '1:alway'"},
               {"loader:exit@1:always:always", "moment '1:always'"},
               {"loader:exit@00000000000000000000000000000000000000000000000000000000001", "71 bytes; expected fewer than 64"}};
    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
        assert_ok(fault_check(good[i], err));
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        assert_err(fault_check(bad[i].text, err), -EINVAL, bad[i].part);
}

/* A layer that the stage never has a chunk of. */
static void test_layers(void **state)
{
    (void)state;
    assert_ok(fault_check_layer("gpu_worker:exit@layer=25", 26, err));
    assert_ok(fault_check_layer("loader:exit@layer=0", 26, err));
    assert_ok(fault_check_layer("gpu_worker:exit@99", 26, err));
    assert_err(fault_check_layer("gpu_worker:exit@layer=26", 26, err), -EINVAL, "layer 26; expected at most 25");
    assert_err(fault_check_layer("loader:exit@layer=1", 26, err), -EINVAL, "expected layer=0");
    assert_err(fault_check_layer("gpu_worker:exit@layer=", 26, err), -EINVAL, "moment");
}

static void test_list(void **state)
{
    static const char *const texts[] = {"loader:eio@1", "npu_worker:abort@3", "npu_worker:exit@layer=2:always"};
    char list[FAULT_LIST];
    (void)state;
    assert_ok(fault_list(texts, 3, "npu_worker", true, true, list, err));
    assert_string_equal(list, "npu_worker:abort@3 npu_worker:exit@layer=2:always");
    assert_ok(fault_list(texts, 3, "npu_worker", false, true, list, err)); /* it was restarted */
    assert_string_equal(list, "npu_worker:exit@layer=2:always");
    assert_ok(fault_list(texts, 3, "gpu_worker", true, true, list, err));
    assert_string_equal(list, "");
    static const char *const lost[] = {"gpu_worker:device-lost@9:always", "gpu_worker:abort@9:always"};
    assert_ok(fault_list(lost, 2, "gpu_worker", false, true, list, err));
    assert_string_equal(list, "gpu_worker:device-lost@9:always gpu_worker:abort@9:always");
    assert_ok(fault_list(lost, 2, "gpu_worker", false, false, list, err)); /* it went on with the processor */
    assert_string_equal(list, "gpu_worker:abort@9:always");
    assert_ok(fault_list(lost, 2, "gpu_worker", true, false, list, err)); /* it began there: a rehearsal without a device */
    assert_string_equal(list, "gpu_worker:device-lost@9:always gpu_worker:abort@9:always");
    const char *many[16];
    for (int i = 0; i < 16; i++)
        many[i] = "npu_worker:corrupt-message@p=0.00000001,seed=123456789:always";
    assert_err(fault_list(many, 16, "npu_worker", true, true, list, err), -E2BIG, "faults of npu_worker: more than 512 bytes");
}

static struct faults *make(const char *list, int fd)
{
    struct faults *f;
    assert_ok(fault_open(list, fd, &f, err));
    return f;
}

static void test_none(void **state)
{
    (void)state;
    assert_null(make("", -1));
    fault_close(NULL);
    struct faults *f;
    assert_err(fault_open("loader:eio@1 nonsense", -1, &f, err), -EINVAL, "fault 'nonsense'");
}

/* At which of n chunks the event comes: bit i for chunk i + 1. Layers go 0, 1, 2, 0, 1, 2, ... */
static uint64_t moments(const char *text, int n)
{
    struct faults *f = make(text, -1);
    struct err e = {0};
    uint64_t seen = 0;
    assert_int_equal(fault_start(f, &e), 0);
    for (int i = 0; i < n; i++) {
        if (fault_chunk(f, (uint32_t)i % 3, &e) == -ENODEV)
            seen |= 1ull << i;
    }
    fault_close(f);
    return seen;
}

static void test_moments(void **state)
{
    (void)state;
    assert_int_equal(moments("npu_worker:device-lost@1", 60), 1);
    assert_int_equal(moments("npu_worker:device-lost@5", 60), 1 << 4);
    assert_int_equal(moments("npu_worker:device-lost@61", 60), 0);
    assert_int_equal(moments("npu_worker:device-lost@layer=2", 60), 1 << 2); /* once */
    assert_int_equal(moments("npu_worker:device-lost@layer=3", 60), 0);
    assert_int_equal(moments("npu_worker:device-lost@p=1", 60), (1ull << 60) - 1);
    uint64_t seven = moments("npu_worker:device-lost@p=0.3,seed=7", 60);
    assert_int_equal(seven, moments("npu_worker:device-lost@p=0.3,seed=7", 60));
    assert_int_not_equal(seven, moments("npu_worker:device-lost@p=0.3,seed=8", 60));
    assert_in_range(__builtin_popcountll(seven), 6, 32);
    /* two of one stage */
    assert_int_equal(moments("npu_worker:device-lost@5 npu_worker:device-lost@layer=1", 60), 1 << 4 | 1 << 1);
    struct faults *f = make("npu_worker:device-lost@start", -1);
    assert_err(fault_start(f, err), -ENODEV, "the device is lost (fault 'npu_worker:device-lost@start')");
    fault_close(f);
}

static void test_slots_and_messages(void **state)
{
    struct faults *f = make("npu_worker:corrupt-slot@2 npu_worker:drop-message@3", -1);
    struct err e = {0};
    (void)state;
    assert_int_equal(fault_chunk(f, 0, &e), 0);
    assert_false(fault_slot(f));
    assert_int_equal(fault_chunk(f, 0, &e), 0);
    assert_true(fault_slot(f));
    assert_false(fault_slot(f));
    assert_false(fault_message(f));
    assert_int_equal(fault_chunk(f, 0, &e), 0);
    assert_true(fault_message(f));
    assert_false(fault_message(f));
    fault_close(f);
    int fds[2];
    uint8_t got[64];
    assert_int_equal(pipe(fds), 0);
    f = make("npu_worker:corrupt-message@start", fds[1]);
    assert_int_equal(fault_start(f, &e), 0);
    assert_int_equal(read(fds[0], got, sizeof(got)), 20);
    assert_int_equal(got[0] & got[1] & got[2] & got[3], 0xff); /* the length of a frame, far too long */
    fault_close(f);
    close(fds[0]);
    close(fds[1]);
}

static void test_reads(void **state)
{
    char path[] = "/tmp/tandem-test-XXXXXX", buf[100];
    struct err e = {0};
    struct io_file *file;
    (void)state;
    int fd = mkstemp(path);
    assert_int_equal(ftruncate(fd, 1000), 0);
    close(fd);
    assert_ok(io_open(path, false, &file, err));
    unlink(path);
    struct faults *f = make("loader:eio@2 loader:short-read@3", -1);
    assert_int_equal(fault_chunk(f, 0, &e), 0);
    assert_ok(io_read(file, 0, buf, 100, err));
    assert_int_equal(fault_chunk(f, 0, &e), 0);
    assert_err(io_read(file, 100, buf, 100, err), -EIO, "cannot read 100 bytes at offset 100");
    assert_ok(io_read(file, 100, buf, 100, err)); /* once */
    assert_int_equal(fault_chunk(f, 0, &e), 0);
    assert_err(io_read(file, 200, buf, 100, err), -EIO, "got 50 of 100 bytes at offset 200");
    assert_err(io_read(file, 240, buf, 100, err), -EIO, "got 10 of 100 bytes at offset 240"); /* it stays cut */
    assert_ok(io_read(file, 100, buf, 100, err));
    fault_close(f);
    io_set_system(NULL);
    io_close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {FD_TEST(test_words),
                                       FD_TEST(test_layers),
                                       FD_TEST(test_list),
                                       FD_TEST(test_none),
                                       FD_TEST(test_moments),
                                       FD_TEST(test_reads),
                                       FD_TEST(test_slots_and_messages)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
