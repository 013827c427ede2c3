/* SPDX-License-Identifier: MIT
 * Makes, checks and maps sealed memfds. Owns nothing: fds and mappings belong to the caller. Any thread.
 * The pages are allocated at birth by the maker, so that its cgroup pays for them and nobody can meet a SIGBUS later. */
#include "proto/shm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/err.h"
#include "proto/util.h"

#define PAGE SHM_PAGE_BYTES
#define HUGE_PAGE ((size_t)2 << 20)
#define SEAL_TRIES 40
#define SEAL_WAIT_US 25000
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

/* Large mappings begin at a multiple of a huge page, so that huge pages of the file can be mapped as such. */
static void *map(int fd, size_t bytes, int prot, int flags)
{
    if (bytes < HUGE_PAGE)
        return mmap(NULL, bytes, prot, flags, fd, 0);
    size_t room = util_round_up(bytes, PAGE) + HUGE_PAGE;
    uint8_t *r = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (r == MAP_FAILED)
        return r;
    uint8_t *at = r + (HUGE_PAGE - (uintptr_t)r % HUGE_PAGE), *end = at + util_round_up(bytes, PAGE);
    if (mmap(at, bytes, prot, flags | MAP_FIXED, fd, 0) == MAP_FAILED) {
        int saved = errno;
        munmap(r, room);
        errno = saved;
        return MAP_FAILED;
    }
    munmap(r, (size_t)(at - r));
    if (end < r + room)
        munmap(end, (size_t)(r + room - end));
    return at;
}

/* Huge pages where the kernel gives them: by MADV_HUGEPAGE when shmem_enabled says advise, by MADV_COLLAPSE (Linux 6.1) even when
 * it says never. One touched page per extent is enough, the rest is a hole that the huge page fills. */
static void take_huge_pages(int fd, size_t bytes)
{
    if (bytes < HUGE_PAGE)
        return;
    uint8_t *p = map(fd, bytes, PROT_READ | PROT_WRITE, MAP_SHARED);
    if (p == MAP_FAILED)
        return;
    size_t whole = bytes / HUGE_PAGE * HUGE_PAGE;
    madvise(p, whole, MADV_HUGEPAGE);
#ifdef MADV_POPULATE_WRITE
    for (size_t at = 0; at < whole; at += HUGE_PAGE) {
        if (madvise(p + at, PAGE, MADV_POPULATE_WRITE) < 0 || madvise(p + at, HUGE_PAGE, MADV_COLLAPSE) < 0)
            break;
    }
#endif
    munmap(p, bytes);
}

int shm_make(const char *name, size_t bytes, bool more_seals, struct err *err)
{
    auto_fd fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return err_set_errno(err, -errno, "shared memory '%s'", name);
    if (ftruncate(fd, (off_t)bytes) < 0)
        return err_set_errno(err, -errno, "shared memory '%s' of %zu bytes", name, bytes);
    take_huge_pages(fd, bytes);
    if (fallocate(fd, 0, 0, (off_t)bytes) < 0)
        return err_set_errno(err, -errno, "shared memory '%s': %zu bytes cannot be allocated", name, bytes);
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | (more_seals ? 0 : F_SEAL_SEAL)) < 0)
        return err_set_errno(err, -errno, "shared memory '%s' cannot be sealed", name);
    return take_fd(&fd);
}

int shm_check(int fd, size_t bytes, struct err *err)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0)
        return err_set(err, -EPROTO, "received fd %d is not a sealable memfd; expected one sealed against shrinking", fd);
    if (!(seals & F_SEAL_SHRINK))
        return err_set(err, -EPROTO, "received memfd has seals 0x%x; expected it sealed against shrinking", (unsigned)seals);
    if (fstat(fd, &st) < 0)
        return err_set_errno(err, -errno, "received memfd");
    if (st.st_size < 0 || (uint64_t)st.st_size < bytes)
        return err_set(err, -EPROTO, "received memfd has %" PRId64 " bytes; expected at least %zu", (int64_t)st.st_size, bytes);
    return 0;
}

int shm_map(int fd, size_t bytes, bool writable, void **ret, struct err *err)
{
    int r = shm_check(fd, bytes, err);
    if (r < 0)
        return r;
    void *p = map(fd, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED);
    if (p == MAP_FAILED && errno == EPERM && !writable) /* write-sealed, and a kernel before 6.7; the pages are the same */
        p = map(fd, bytes, PROT_READ, MAP_PRIVATE);
    if (p == MAP_FAILED)
        return err_set_errno(err, -errno, "cannot map %zu bytes of shared memory", bytes);
    *ret = p;
    return 0;
}

void shm_unmap(void *p, size_t bytes)
{
    if (p)
        munmap(p, bytes);
}

int shm_make_page(const char *name, uint32_t magic, struct err *err)
{
    auto_fd fd = shm_make(name, PAGE, false, err);
    void *p = NULL;
    if (fd < 0)
        return fd;
    int r = shm_map(fd, PAGE, true, &p, err);
    if (r < 0)
        return r;
    *(uint32_t *)p = magic;
    shm_unmap(p, PAGE);
    return take_fd(&fd);
}

int shm_map_page(int fd, const char *what, uint32_t magic, void **ret, struct err *err)
{
    void *p = NULL;
    int r = shm_map(fd, PAGE, true, &p, err);
    if (r < 0)
        return err_wrap(err, r, "%s", what);
    uint32_t found = *(volatile uint32_t *)p; /* once: the other side may write */
    if (found != magic) {
        shm_unmap(p, PAGE);
        return err_set(err, -EPROTO, "%s: wrong magic 0x%x; expected 0x%x", what, found, magic);
    }
    *ret = p;
    return 0;
}

int shm_seal_write(int fd, struct err *err)
{
    /* The kernel refuses with EBUSY also while something else, such as page migration, holds a page for a moment. */
    for (int i = 0; fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0; i++) {
        if (errno != EBUSY || i == SEAL_TRIES)
            return err_set_errno(err, -errno, "memfd cannot be sealed against writing (is it still mapped for writing?)");
        usleep(SEAL_WAIT_US);
    }
    return 0;
}
