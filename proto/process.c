/* SPDX-License-Identifier: MIT
 * The state that a program finds itself in is its caller's: closed descriptors, signal dispositions, limits. Each main() calls
 * process_begin once, before it opens anything. Owns nothing afterwards. */
#include "proto/process.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "proto/err.h"
#include "proto/log.h"
#include "proto/util.h"

#define STACK_BYTES ((size_t)1 << 20)
#define FILES_MIN 64 /* the coordinator has about 40: sockets, memfds, the loop, the model */

static int fill_standard(void)
{
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF)
            continue;
        int got = open("/dev/null", fd == 2 ? O_RDWR : O_RDONLY); /* the lowest number that is free: this one */
        if (got != fd)
            return -errno;
    }
    return 0;
}

static int raise_files(struct err *err)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l) < 0)
        return 0;
    rlim_t had = l.rlim_cur;
    l.rlim_cur = l.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &l) < 0)
        l.rlim_cur = had;
    if (l.rlim_cur < FILES_MIN)
        return err_set(err, -EMFILE, "limit of open files (ulimit -n) is %" PRIu64 "; expected at least %d", (uint64_t)l.rlim_cur,
                       FILES_MIN);
    return 0;
}

/* Kernels keep blocks of a product on the stack. The main thread's may grow to the soft limit, those of other threads have the size
 * that the C library took from it at start. */
static int raise_stack(struct err *err)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_STACK, &l) < 0 || l.rlim_cur >= STACK_BYTES)
        return 0;
    rlim_t had = l.rlim_cur;
    l.rlim_cur = MIN(l.rlim_max, STACK_BYTES);
    if (l.rlim_cur < STACK_BYTES || setrlimit(RLIMIT_STACK, &l) < 0)
        return err_set(err, -ENOMEM, "limit of the stack (ulimit -s) is %" PRIu64 " KiB; expected at least %zu KiB",
                       (uint64_t)had >> 10, STACK_BYTES >> 10);
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    int r = pthread_attr_setstacksize(&attr, STACK_BYTES);
    if (r == 0)
        r = pthread_setattr_default_np(&attr);
    pthread_attr_destroy(&attr);
    return r ? err_set_errno(err, -r, "size of the threads' stacks") : 0;
}

int process_begin(const char *name, struct err *err)
{
    int r = fill_standard();
    log_init(name, util_env(UTIL_ENV_LOG));
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    if (r < 0)
        return err_set_errno(err, r, "'/dev/null' cannot be opened in place of a closed standard stream");
    const char *trace = util_env(UTIL_ENV_TRACE);
    if (trace && strcmp(trace, "msg") != 0)
        return err_set(err, -EINVAL, "TANDEM_TRACE is '%.40s'; expected msg", trace);
    r = raise_files(err);
    return r < 0 ? r : raise_stack(err);
}

void process_is_asked(unsigned seconds)
{
    struct pollfd answer = {.fd = STDOUT_FILENO};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(seconds);
    if (poll(&answer, 1, 0) == 1 && answer.revents & POLLERR) /* the other ended before that: nobody has the pipe's other end */
        _exit(EXIT_FAILURE);
}
