/* SPDX-License-Identifier: MIT
 * Landlock: which files the calling thread, and every thread that it starts from then on, can still open. By the kernel's system
 * calls, of the version that the running kernel knows (ABI 1: Linux 5.13; 2: 5.19; 6 and later: 6.12 and on). Any thread. */
#ifndef TANDEM_PROTO_LANDLOCK_H
#define TANDEM_PROTO_LANDLOCK_H

#include <stddef.h>

enum landlock_access {
    LANDLOCK_READ,   /* files and folders below; nothing can be run */
    LANDLOCK_DEVICE, /* read, write, ioctl; nothing can be made or removed */
    LANDLOCK_WRITE,  /* read, write, make, remove, rename: files and folders */
    LANDLOCK_CORE    /* files can be made and written */
};

struct landlock_rules;

/* NULL: the kernel has no Landlock, or memory is out; *ret_abi holds the version, or a negative errno. Everything is refused that
 * no rule allows: files, and where the kernel can, TCP, abstract sockets and signals to processes outside. */
struct landlock_rules *landlock_open(int *ret_abi);
/* What is not there is left out. */
void landlock_allow(struct landlock_rules *r, const char *path, enum landlock_access access);
/* Needs no_new_privs. 0 or a negative errno; frees r. NULL is fine, and nothing. */
int landlock_enforce(struct landlock_rules *r);

#endif
