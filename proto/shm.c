/* SPDX-License-Identifier: MIT
 * Makes, checks and maps sealed memfds. Owns nothing: fds and mappings belong to the caller. Any thread.
 * The pages are allocated at birth by the maker, so that its cgroup pays for them and nobody can meet a SIGBUS later. */
#include "proto/shm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "proto/err.h"
#include "proto/util.h"

#define HUGE_MIN ((size_t)4 << 20)
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

void shm_advise_huge(void *p, size_t bytes)
{
    if (bytes >= HUGE_MIN)
        madvise(p, bytes, MADV_HUGEPAGE);
}

static int allocate(int fd, size_t bytes)
{
    if (bytes >= HUGE_MIN) { /* touched through a mapping that asks for huge pages; fallocate alone would take small ones */
        void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
            return -errno;
        shm_advise_huge(p, bytes);
#ifdef MADV_POPULATE_WRITE
        madvise(p, bytes, MADV_POPULATE_WRITE);
#endif
        munmap(p, bytes);
    }
    return fallocate(fd, 0, 0, (off_t)bytes) < 0 ? -errno : 0;
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
    int r = allocate(fd, bytes);
    if (r < 0)
        return err_set_errno(err, r, "shared memory '%s': %zu bytes cannot be allocated", name, bytes);
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
    void *p = mmap(NULL, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED && errno == EPERM && !writable) /* write-sealed, and a kernel before 6.7; the pages are the same */
        p = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED)
        return err_set_errno(err, -errno, "cannot map %zu bytes of shared memory", bytes);
    shm_advise_huge(p, bytes);
    *ret = p;
    return 0;
}

void shm_unmap(void *p, size_t bytes)
{
    if (p)
        munmap(p, bytes);
}

int shm_seal_write(int fd, struct err *err)
{
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return err_set_errno(err, -errno, "memfd cannot be sealed against writing (is it still mapped for writing?)");
    return 0;
}
