/* SPDX-License-Identifier: MIT
 * Sealed memfds: what is made can be mapped, anything less is refused before it is mapped. */
#include "tests/proto/proto_test.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "proto/shm.h"
#include "proto/util.h"

static void test_make(void **state)
{
    (void)state;
    auto_fd fd = shm_make("test", 10000, false, NULL);
    struct stat st;
    void *p = NULL, *q = NULL;
    assert_true(fd >= 0);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(fcntl(fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | F_SEAL_WRITE),
                     F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, 10000);
    assert_true(st.st_blocks * 512 >= 10000); /* allocated at birth */
    assert_int_equal(ftruncate(fd, 5000), -1);
    assert_int_equal(ftruncate(fd, 20000), -1);
    assert_err(shm_seal_write(fd, err), -EPERM, "sealed");
    assert_ok(shm_map(fd, 10000, true, &p, err));
    assert_ok(shm_map(fd, 10000, false, &q, err));
    memset(p, 7, 10000);
    assert_int_equal(((uint8_t *)q)[9999], 7);
    shm_unmap(p, 10000);
    shm_unmap(q, 10000);
    shm_unmap(NULL, 10000);
}

/* Large memory is placed so that huge pages fit, all of it is there, and nothing more is paid for. */
static void test_large(void **state)
{
    (void)state;
    size_t huge = (size_t)2 << 20, bytes = 2 * huge + 12345;
    auto_fd fd = shm_make("test", bytes, false, NULL);
    struct stat st;
    void *p = NULL, *q = NULL;
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_blocks * 512, util_round_up(bytes, 4096));
    assert_ok(shm_map(fd, bytes, true, &p, err));
    assert_ok(shm_map(fd, bytes, false, &q, err));
    assert_int_equal((uintptr_t)p % huge, 0);
    assert_int_equal((uintptr_t)q % huge, 0);
    for (size_t i = 0; i < bytes; i += 1021) {
        assert_int_equal(((uint8_t *)q)[i], 0);
        ((uint8_t *)p)[i] = (uint8_t)(i >> 4);
    }
    for (size_t i = 0; i < bytes; i += 1021)
        assert_int_equal(((uint8_t *)q)[i], (uint8_t)(i >> 4));
    shm_unmap(p, bytes);
    shm_unmap(q, bytes);
}

static void test_sizes(void **state)
{
    (void)state;
    void *p = NULL;
    assert_err(shm_make("test", (size_t)1 << 63, false, err), -EINVAL, "'test'");
    assert_true(shm_make("test", 0, false, NULL) < 0);
    auto_fd fd = shm_make("test", 4096, true, NULL);
    assert_ok(shm_check(fd, 4096, err));
    assert_err(shm_check(fd, 4097, err), -EPROTO, "has 4096 bytes; expected at least 4097");
    assert_err(shm_map(fd, SIZE_MAX, true, &p, err), -EPROTO, "4096 bytes");
    assert_null(p);
}

static void test_refused(void **state)
{
    (void)state;
    void *p = NULL;
    int fds[2];
    auto_fd unsealed = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(unsealed, 4096), 0);
    assert_err(shm_map(unsealed, 4096, true, &p, err), -EPROTO, "expected it sealed against shrinking");
    assert_int_equal(fcntl(unsealed, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_WRITE), 0);
    assert_err(shm_map(unsealed, 4096, false, &p, err), -EPROTO, "sealed against shrinking");
    auto_fd never = memfd_create("test", MFD_CLOEXEC);
    assert_err(shm_map(never, 4096, true, &p, err), -EPROTO, "sealed against shrinking");
    auto_fd file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    assert_err(shm_map(file, 1, false, &p, err), -EPROTO, "not a sealable memfd");
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    assert_err(shm_map(fds[0], 1, false, &p, err), -EPROTO, "not a sealable memfd");
    close(fds[0]);
    close(fds[1]);
    assert_err(shm_map(-1, 1, false, &p, err), -EPROTO, "not a sealable memfd");
    assert_null(p);
}

/* A page says what it is; one of another kind, or that is no page, is not taken for it. */
static void test_pages(void **state)
{
    (void)state;
    void *p = NULL;
    auto_fd fd = shm_make_page("test", 0x11223344, NULL);
    assert_true(fd >= 0);
    assert_ok(shm_map_page(fd, "thing", 0x11223344, &p, err));
    assert_int_equal(*(uint32_t *)p, 0x11223344);
    for (size_t i = 4; i < SHM_PAGE_BYTES; i++)
        assert_int_equal(((uint8_t *)p)[i], 0);
    shm_unmap(p, SHM_PAGE_BYTES);
    p = NULL;
    assert_err(shm_map_page(fd, "thing", 0x11223345, &p, err), -EPROTO, "thing: wrong magic 0x11223344; expected 0x11223345");
    auto_fd small = shm_make("test", 16, false, NULL);
    assert_err(shm_map_page(small, "thing", 0, &p, err), -EPROTO, "thing: received memfd has 16 bytes");
    assert_null(p);
}

static void test_seal_write(void **state)
{
    (void)state;
    void *p = NULL, *q = NULL;
    size_t n = (size_t)5 << 20; /* large enough for the huge page path */
    auto_fd fd = shm_make("test", n, true, NULL);
    assert_ok(shm_map(fd, n, true, &p, err));
    for (size_t i = 0; i < n; i += 4096)
        ((uint8_t *)p)[i] = (uint8_t)(i >> 12);
    assert_err(shm_seal_write(fd, err), -EBUSY, "still mapped for writing");
    shm_unmap(p, n);
    assert_ok(shm_seal_write(fd, err));
    assert_ok(shm_check(fd, n, err));
    p = NULL;
    assert_err(shm_map(fd, n, true, &p, err), -EPERM, "cannot map");
    assert_null(p);
    assert_int_equal(write(fd, "x", 1), -1);
    assert_ok(shm_map(fd, n, false, &q, err));
    for (size_t i = 0; i < n; i += 4096)
        assert_int_equal(((uint8_t *)q)[i], (uint8_t)(i >> 12));
    shm_unmap(q, n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {FD_TEST(test_make),    FD_TEST(test_large),      FD_TEST(test_sizes),
                                       FD_TEST(test_refused), FD_TEST(test_seal_write), FD_TEST(test_pages)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
