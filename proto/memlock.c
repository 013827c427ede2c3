/* SPDX-License-Identifier: MIT
 * Reads RLIMIT_MEMLOCK and the one capability that lifts it, and words the refusal. Owns nothing. Called by the coordinator,
 * whose plan keeps to the limit, by npu_worker before it allocates, and by the module of XRT before and after; it changes no limit.
 */
#include "proto/memlock.h"

#include <errno.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "proto/err.h"
#include "proto/util.h"

static bool may_lock_all(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};
    return syscall(SYS_capget, &header, data) == 0 && data[0].effective & 1u << CAP_IPC_LOCK;
}

uint64_t memlock_limit(void)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_MEMLOCK, &l) < 0 || l.rlim_cur == RLIM_INFINITY || may_lock_all())
        return MEMLOCK_UNLIMITED;
    return l.rlim_cur;
}

int memlock_check(uint64_t limit, uint64_t wanted, const char *what, struct err *err)
{
    if (limit == MEMLOCK_UNLIMITED || wanted <= limit)
        return 0;
    return err_set(
        err, -EAGAIN,
        "%s: %llu KiB have to be locked in memory, but the limit (ulimit -l) is %llu KiB; raise it with 'ulimit -l %llu', "
        "for all logins with '* - memlock %llu' in a file of /etc/security/limits.d, or for a service with "
        "LimitMEMLOCK=%llu in its systemd unit",
        what, (unsigned long long)((wanted + 1023) >> 10), (unsigned long long)(limit >> 10),
        (unsigned long long)((wanted + 1023) >> 10), (unsigned long long)((wanted + 1023) >> 10), (unsigned long long)wanted);
}
