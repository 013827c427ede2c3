/* SPDX-License-Identifier: MIT
 * The kernel's Landlock interface by its system calls: the headers of Debian 12 know neither the network nor the scopes, so what
 * the kernel calls them stands here. Owns the descriptor of the rules between open and enforce. Called once by a stage, on its main
 * thread; never logs. */
#include "proto/landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "proto/util.h"

/* Later than ABI 2, whose header this may be. */
#define FS_TRUNCATE (1ull << 14)  /* 3 */
#define FS_IOCTL_DEV (1ull << 15) /* 5 */
#define NET_ALL 3ull              /* 4: bind and connect, TCP */
#define SCOPE_ALL 3ull            /* 6: abstract Unix sockets, signals */

struct attributes {
    uint64_t fs, net, scoped;
};

struct landlock_rules {
    int fd;
    uint64_t handled;
};

#define FS_READ ((uint64_t)(LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR))
#define FS_CREATE ((uint64_t)(LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_MAKE_REG) | FS_TRUNCATE)
#define FS_FILE ((uint64_t)(LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE) | FS_TRUNCATE | FS_IOCTL_DEV)

static uint64_t rights(enum landlock_access access)
{
    switch (access) {
    case LANDLOCK_DEVICE:
        return FS_READ | LANDLOCK_ACCESS_FS_WRITE_FILE | FS_TRUNCATE | FS_IOCTL_DEV;
    case LANDLOCK_WRITE:
        return FS_READ | FS_CREATE | LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_REMOVE_DIR |
               LANDLOCK_ACCESS_FS_REFER;
    case LANDLOCK_CORE:
        return FS_CREATE;
    case LANDLOCK_READ:
    default:
        return FS_READ;
    }
}

struct landlock_rules *landlock_open(int *ret_abi)
{
    struct attributes a = {0};
    int abi = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    *ret_abi = abi < 0 ? -errno : abi;
    if (abi < 1)
        return NULL;
    a.fs = abi >= 5 ? (1ull << 16) - 1 : abi >= 3 ? (1ull << 15) - 1 : abi == 2 ? (1ull << 14) - 1 : (1ull << 13) - 1;
    a.net = abi >= 4 ? NET_ALL : 0;
    a.scoped = abi >= 6 ? SCOPE_ALL : 0;
    size_t bytes = abi >= 6 ? sizeof(a) : abi >= 4 ? offsetof(struct attributes, scoped) : offsetof(struct attributes, net);
    struct landlock_rules *r = malloc(sizeof(*r));
    if (!r) {
        *ret_abi = -ENOMEM;
        return NULL;
    }
    *r = (struct landlock_rules){.fd = (int)syscall(SYS_landlock_create_ruleset, &a, bytes, 0), .handled = a.fs};
    if (r->fd < 0) {
        *ret_abi = -errno;
        free(r);
        return NULL;
    }
    return r;
}

void landlock_allow(struct landlock_rules *r, const char *path, enum landlock_access access)
{
    struct stat st;
    if (!r)
        return;
    auto_fd fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return;
    uint64_t allowed = rights(access) & r->handled & (S_ISDIR(st.st_mode) ? ~0ull : FS_FILE);
    struct landlock_path_beneath_attr a = {.allowed_access = allowed, .parent_fd = fd};
    syscall(SYS_landlock_add_rule, r->fd, LANDLOCK_RULE_PATH_BENEATH, &a, 0);
}

int landlock_enforce(struct landlock_rules *r)
{
    if (!r)
        return 0;
    int e = syscall(SYS_landlock_restrict_self, r->fd, 0) < 0 ? -errno : 0;
    close(r->fd);
    free(r);
    return e;
}
