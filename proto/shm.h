/* SPDX-License-Identifier: MIT
 * Sealed memfds: make, check, map. A receiver refuses an unsealed or too small memfd before mapping (no SIGBUS). */
#ifndef TANDEM_PROTO_SHM_H
#define TANDEM_PROTO_SHM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

/* CLOEXEC, fallocated (charged to the caller's cgroup), F_SEAL_SHRINK|GROW|SEAL (F_SEAL_SEAL only without `more_seals`).
 * Returns an owned fd or a negative errno. */
int shm_make(const char *name, size_t bytes, bool more_seals, struct err *err);
/* Checks: a memfd, sealed against shrinking, at least `bytes`. 0 or -EPROTO. */
int shm_check(int fd, size_t bytes, struct err *err);
/* shm_check, then MAP_SHARED. */
int shm_map(int fd, size_t bytes, bool writable, void **ret, struct err *err);
void shm_unmap(void *p, size_t bytes); /* NULL is fine */
/* One page that two processes write to and that says what it is: its first four bytes are `magic`, the others 0. what: for errors
 * of mapping, which checks both. Unmapped with SHM_PAGE_BYTES. */
#define SHM_PAGE_BYTES ((size_t)4096)
int shm_make_page(const char *name, uint32_t magic, struct err *err);
int shm_map_page(int fd, const char *what, uint32_t magic, void **ret, struct err *err);
/* Forbid writing for ever (no writable mapping may exist; -EBUSY after a second), then seal the seals. */
int shm_seal_write(int fd, struct err *err);

#endif
