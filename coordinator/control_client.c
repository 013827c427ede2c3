/* SPDX-License-Identifier: MIT
 * Owns one connection for the length of a question. Called by cmd_stats.c and cmd_top.c, which have no loop. What comes back is
 * bounded and checked: the other side is another process. */
#include "coordinator/control_client.h"

#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "coordinator/runtime_dir.h"
#include "proto/err.h"
#include "proto/util.h"

#define ANSWER_MAX ((size_t)1 << 20)
#define PATIENCE_NS UINT64_C(10000000000)

int control_client_find(const char *config, uint32_t pid, struct control_client *ret, struct err *err)
{
    auto_free char *real = realpath(config, NULL);
    if (!real)
        return err_set_errno(err, -errno, "config '%s'", config);
    return runtime_dir_find(real, (int)pid, ret->dir, sizeof(ret->dir), &ret->pid, err);
}

static int connect_to(const struct control_client *c, struct err *err)
{
    struct sockaddr_un address;
    auto_fd dir = -1, fd = -1;
    int r = runtime_dir_address(c->dir, &address, &dir, NULL);
    if (r == 0) {
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct timeval patience = {.tv_sec = (time_t)(PATIENCE_NS / 1000000000)}; /* where its queue is full */
        if (fd >= 0)
            setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
        r = fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
    }
    if (r == -ENOENT || r == -ECONNREFUSED)
        return err_set(err, -ESRCH, "coordinator %d has ended", c->pid);
    return r < 0 ? err_set_errno(err, r, "control socket of coordinator %d", c->pid) : take_fd(&fd);
}

/* Until fd is ready; the deadline is util_now_ns' clock. */
static int wait_for(int fd, uint64_t deadline, const sigset_t *signals, const struct control_client *c, struct err *err)
{
    uint64_t now = util_now_ns(), left = deadline > now ? deadline - now : 0;
    struct timespec ts = {.tv_sec = (time_t)(left / 1000000000), .tv_nsec = (long)(left % 1000000000)};
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int r = ppoll(&p, 1, &ts, signals);
    if (r < 0)
        return err_set_errno(err, -errno, "control socket of coordinator %d", c->pid);
    return r ? 0
             : err_set(err, -ETIMEDOUT, "coordinator %d does not answer; is it stopped, or does nobody read its output?", c->pid);
}

static int read_line(int fd, const struct control_client *c, const sigset_t *signals, char **ret, size_t *ret_n, struct err *err)
{
    uint64_t deadline = util_now_ns() + PATIENCE_NS;
    size_t n = 0;
    auto_free char *buf = malloc(ANSWER_MAX);
    if (!buf)
        return err_set(err, -ENOMEM, "statistics: out of memory");
    while (!memchr(buf, '\n', n)) {
        int r = wait_for(fd, deadline, signals, c, err);
        if (r < 0)
            return r;
        if (n == ANSWER_MAX)
            return err_set(err, -EPROTO, "coordinator %d: its answer is longer than %zu bytes", c->pid, ANSWER_MAX);
        ssize_t got = recv(fd, buf + n, ANSWER_MAX - n, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno == ECONNRESET))
            return err_set(err, -ESRCH, "coordinator %d has ended", c->pid);
        if (got < 0 && errno != EAGAIN && errno != EINTR)
            return err_set_errno(err, -errno, "control socket of coordinator %d", c->pid);
        n += (size_t)MAX(got, 0);
    }
    *ret = take_ptr(&buf);
    *ret_n = n;
    return 0;
}

int control_client_ask(const struct control_client *c, const char *request, const sigset_t *signals, json_t **ret, struct err *err)
{
    auto_fd fd = connect_to(c, err);
    if (fd < 0)
        return fd;
    auto_free char *text = NULL;
    size_t n = strlen(request);
    if (send(fd, request, n, MSG_NOSIGNAL) != (ssize_t)n || shutdown(fd, SHUT_WR) < 0)
        return err_set(err, -ESRCH, "coordinator %d has ended", c->pid);
    int r = read_line(fd, c, signals, &text, &n, err);
    if (r < 0)
        return r;
    json_t *j = json_loadb(text, n, 0, NULL);
    const char *error = json_string_value(json_object_get(j, "error"));
    if (error)
        r = err_set(err, -EREMOTEIO, "coordinator %d: %s", c->pid, error);
    else if (!j)
        r = err_set(err, -EPROTO, "coordinator %d: its answer is no JSON object", c->pid);
    if (r < 0)
        json_decref(j);
    else
        *ret = j;
    return r;
}
