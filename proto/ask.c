/* SPDX-License-Identifier: MIT
 * One child at a time per call, owned until it is reaped. A child that does not even die of SIGKILL (a driver may hold it in the
 * kernel) is left behind rather than waited for. Called before a stage has threads that compute; it changes no signal handling. */
#include "proto/ask.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "proto/err.h"
#include "proto/util.h"

#define DEATH_MS 2000 /* from SIGKILL to the end */

extern char **environ;

static int64_t now_ms(void)
{
    return (int64_t)(util_now_ns() / 1000000);
}

/* What comes until the end, of it the last bytes - 1: drivers chatter before the answer. */
static int read_all(int fd, char *text, size_t bytes, int64_t deadline)
{
    size_t n = 0, half = bytes / 2;
    text[0] = '\0';
    for (;;) {
        int64_t left = deadline - now_ms();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (left <= 0 || poll(&p, 1, (int)left) == 0)
            return -ETIMEDOUT;
        if (n == bytes - 1)
            memmove(text, text + half, n -= half);
        ssize_t got = read(fd, text + n, bytes - 1 - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return 0;
        n += (size_t)got;
        text[n] = '\0';
    }
}

static int reap(pid_t pid, int *ret_status, int64_t deadline)
{
    for (;;) {
        pid_t got = waitpid(pid, ret_status, WNOHANG);
        if (got == pid)
            return 0;
        if (got < 0 && errno != EINTR)
            return -errno;
        if (now_ms() >= deadline)
            return -ETIMEDOUT;
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
}

static int start(const char *const *words, pid_t *ret_pid, int *ret_fd, struct err *err)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_set_errno(err, -errno, "a pipe to '%s'", words[0]);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, fds[1], 1);
    posix_spawn_file_actions_adddup2(&actions, fds[1], 2);
    int e = posix_spawn(ret_pid, words[0], &actions, NULL, (char *const *)(uintptr_t)words, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(fds[1]);
    *ret_fd = fds[0];
    if (e == 0)
        return 0;
    close(fds[0]);
    return err_set_errno(err, -e, "'%s' cannot be started", words[0]);
}

int ask_program(const char *const *words, int timeout_ms, char *text, size_t bytes, int *ret_status, struct err *err)
{
    pid_t pid = -1;
    int fd = -1;
    int64_t deadline = now_ms() + timeout_ms;
    int r = start(words, &pid, &fd, err);
    if (r < 0)
        return r;
    r = read_all(fd, text, bytes, deadline);
    close(fd);
    if (r == 0)
        r = reap(pid, ret_status, deadline);
    if (r == 0)
        return 0;
    kill(pid, SIGKILL);
    reap(pid, ret_status, now_ms() + DEATH_MS);
    return err_set(err, r, "'%s' did not answer within %d ms", words[0], timeout_ms);
}
