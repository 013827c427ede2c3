/* SPDX-License-Identifier: MIT
 * Turns the key 'http.listen' into a socket. Called by http.c at start; keeps nothing. */
#include "coordinator/http_listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/err.h"
#include "proto/util.h"

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static int bad(const char *text, struct err *err)
{
    return err_set(err, -EINVAL,
                   "key 'http.listen': found '%.80s'; expected an address and a port such as 127.0.0.1:8080, [::1]:8080 or "
                   "localhost:8080 (port 0: any free one)",
                   text);
}

static int parse(const char *text, union address *ret, socklen_t *ret_n, bool *ret_loopback, struct err *err)
{
    const char *colon = strrchr(text, ':');
    char host[64], *end;
    size_t n = colon ? (size_t)(colon - text) : 0;
    if (!colon || n == 0 || n >= sizeof(host) || colon[1] < '0' || colon[1] > '9')
        return bad(text, err);
    errno = 0;
    unsigned long port = strtoul(colon + 1, &end, 10);
    if (errno || *end || port > 65535)
        return bad(text, err);
    memcpy(host, text, n);
    host[n] = '\0';
    *ret = (union address){0};
    if (host[0] == '[' && host[n - 1] == ']') {
        host[n - 1] = '\0';
        if (inet_pton(AF_INET6, host + 1, &ret->v6.sin6_addr) != 1)
            return bad(text, err);
        ret->v6.sin6_family = AF_INET6;
        ret->v6.sin6_port = htons((uint16_t)port);
        *ret_n = sizeof(ret->v6);
        *ret_loopback = IN6_IS_ADDR_LOOPBACK(&ret->v6.sin6_addr);
        return 0;
    }
    if (inet_pton(AF_INET, strcmp(host, "localhost") == 0 ? "127.0.0.1" : host, &ret->v4.sin_addr) != 1)
        return bad(text, err);
    ret->v4.sin_family = AF_INET;
    ret->v4.sin_port = htons((uint16_t)port);
    *ret_n = sizeof(ret->v4);
    *ret_loopback = ntohl(ret->v4.sin_addr.s_addr) >> 24 == 127;
    return 0;
}

int http_listen_check(const char *text, bool *ret_loopback, struct err *err)
{
    union address a;
    socklen_t n;
    return parse(text, &a, &n, ret_loopback, err);
}

int http_listen(const char *text, bool *ret_loopback, char *ret_address, size_t address_size, struct err *err)
{
    union address a;
    socklen_t n;
    char host[INET6_ADDRSTRLEN];
    int r = parse(text, &a, &n, ret_loopback, err), on = 1;
    if (r < 0)
        return r;
    auto_fd fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set_errno(err, -errno, "key 'http.listen': no socket for '%.80s'", text);
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 || bind(fd, &a.any, n) < 0 || listen(fd, 128) < 0)
        return err_set_errno(err, -errno, "key 'http.listen': cannot listen on '%.80s'", text);
    if (getsockname(fd, &a.any, &n) < 0)
        return err_set_errno(err, -errno, "key 'http.listen': socket of '%.80s'", text);
    bool v6 = a.any.sa_family == AF_INET6;
    inet_ntop(a.any.sa_family, v6 ? (const void *)&a.v6.sin6_addr : (const void *)&a.v4.sin_addr, host, sizeof(host));
    snprintf(ret_address, address_size, "%s%s%s:%u", v6 ? "[" : "", host, v6 ? "]" : "",
             ntohs(v6 ? a.v6.sin6_port : a.v4.sin_port));
    return take_fd(&fd);
}
