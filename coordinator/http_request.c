/* SPDX-License-Identifier: MIT
 * Reads one request and refuses what no handler should see: heads that http_head.c refuses, pages of other origins, missing keys,
 * bodies beyond the limits. Called by libmicrohttpd inside MHD_run, on the loop's thread.
 *
 * A refusal is sent when the body was read and dropped: who is still sending may never see an answer. Where the body's end is not
 * certain, is far away or waits for a "100 Continue", it is sent at once and ends the connection. */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "coordinator/http_auth.h"
#include "coordinator/http_impl.h"
#include "coordinator/page.h"
#include "proto/log.h"
#include "proto/util.h"

#define DROP_FACTOR 4u /* a body is read up to so many times max_body for the sake of an answer that arrives */

struct connection *http_connection_of(struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

/* "127.0.0.1", "[::1]" or "localhost", with or without a port: not a name that somebody else has pointed here. */
static bool host_is_local(const char *host)
{
    size_t n = host[0] == '[' ? strcspn(host, "]") + (strchr(host, ']') != NULL) : strcspn(host, ":");
    const char *port = host + n;
    char name[64];
    struct in6_addr address;
    if (n == 0 || n >= sizeof(name) || (*port && (*port != ':' || port[1 + strspn(port + 1, "0123456789")])))
        return false;
    if (host[0] != '[') {
        snprintf(name, sizeof(name), "%.*s", (int)n, host);
        return inet_pton(AF_INET, name, &address) == 1 || strcasecmp(name, "localhost") == 0;
    }
    snprintf(name, sizeof(name), "%.*s", (int)n - 2, host + 1);
    return host[n - 1] == ']' && inet_pton(AF_INET6, name, &address) == 1;
}

/* A page in somebody's browser may reach this port, too: those of other origins are refused unless 'http.cors' names them. */
static bool check_origin(struct http_exchange *x)
{
    const struct http *h = x->c->h;
    const char *origin = http_header(x, "Origin"), *host = http_header(x, "Host"), *cors = h->config->cors;
    if (h->loopback && !h->auth && host && !host_is_local(host)) {
        http_error(x, 403, NULL, "bad_host", "Host: found '%.80s'; expected localhost or an address, where no API key is asked for",
                   host);
        return false;
    }
    if (!origin)
        return true;
    const char *own = strstr(origin, "://");
    if (own && host && strcasecmp(own + 3, host) == 0)
        return true;
    if (strlen(origin) < sizeof(x->origin) && (strcmp(cors, "*") == 0 || strcmp(cors, origin) == 0)) {
        snprintf(x->origin, sizeof(x->origin), "%s", strcmp(cors, "*") == 0 ? "*" : origin);
        return true;
    }
    http_error(x, 403, NULL, "bad_origin", "pages of '%.80s' may not use this server; 'http.cors' can name them", origin);
    return false;
}

static bool check_key(struct http_exchange *x)
{
    const struct http *h = x->c->h;
    if (!h->auth || strcmp(x->path, "/health") == 0 || page_find(x->path) ||
        http_auth_check(h->auth, http_header(x, "Authorization")))
        return true;
    http_error(x, 401, NULL, "invalid_api_key", "no valid API key; expected the header 'Authorization: Bearer KEY'");
    return false;
}

static bool check_body(struct http_exchange *x, uint64_t length)
{
    const struct http *h = x->c->h;
    const char *type = http_header(x, "Content-Type");
    if (length > h->config->max_body)
        http_error(x, 413, NULL, "body_too_large", "the body has %llu bytes; 'http.max_body' allows %llu",
                   (unsigned long long)length, (unsigned long long)h->config->max_body);
    else if (x->method == HTTP_POST &&
             (!type || strncasecmp(type, "application/json", 16) != 0 || (type[16] && !strchr("; \t", type[16]))))
        http_error(x, 415, NULL, "unsupported_media_type", "Content-Type: found '%.80s'; expected application/json",
                   type ? type : "none");
    return x->state == HTTP_READING;
}

static enum http_method method_of(const char *name)
{
    if (strcmp(name, "GET") == 0 || strcmp(name, "HEAD") == 0)
        return HTTP_GET;
    return strcmp(name, "POST") == 0 ? HTTP_POST : HTTP_OTHER;
}

/* What a target in absolute form ("http://host/path") asks of the host in `host`; one in origin form as it is. NULL: it names
 * another host. */
static const char *path_of(const char *url, size_t scheme, const char *host)
{
    size_t n = scheme ? strcspn(url + scheme, "/") : 0;
    if (scheme && (!host || strlen(host) != n || strncasecmp(host, url + scheme, n) != 0))
        return NULL;
    return scheme && !url[scheme + n] ? "/" : url + scheme + n;
}

/* The head of a request is there. False: it was answered. */
static bool begin(struct http_exchange *x, const char *url, const char *method, const char *version)
{
    struct http *h = x->c->h;
    uint64_t length = 0;
    x->method = method_of(method);
    bool good = http_head_check(x, url, method, version, &length);
    x->close = !good || http_header(x, "Expect") || length > DROP_FACTOR * h->config->max_body;
    if (!good)
        return false;
    const char *path = path_of(url, x->c->scheme_bytes, http_header(x, "Host"));
    if (!path) {
        http_error(x, 400, NULL, "bad_request", "the first line asks another host than the header Host names; expected the same");
        return false;
    }
    snprintf(x->path, sizeof(x->path), "%s", path);
    if (strlen(path) >= sizeof(x->path)) {
        http_error(x, 414, NULL, "bad_request", "the path has %zu bytes; expected at most %zu", strlen(path), sizeof(x->path) - 1);
        return false;
    }
    if (!check_origin(x))
        return false;
    if (strcmp(method, "OPTIONS") == 0) {
        http_reply(x, 204, strdup(""), 0, 0);
        return false;
    }
    return check_key(x) && check_body(x, length);
}

static enum MHD_Result begin_exchange(struct MHD_Connection *mhd, const char *url, const char *method, const char *version,
                                      void **con_cls)
{
    struct connection *c = http_connection_of(mhd);
    struct http_exchange *x = c && !c->x ? calloc(1, sizeof(*x)) : NULL;
    if (!x)
        return MHD_NO;
    x->c = c;
    c->x = x;
    c->h->n_exchanges++;
    *con_cls = x;
    if (!begin(x, url, method, version) && x->close)
        return http_send(x);
    /* How libmicrohttpd reads chunks and trailers cannot be looked at. And before 1.0 a line of a colon alone ends a head (the
     * colon is overwritten, so it cannot be seen): what is a header to another reader is the body here, and its end may be a
     * request. */
    x->close = http_header(x, "Transfer-Encoding") || (!http_library_is_strict() && http_header(x, "Content-Length"));
    return MHD_YES;
}

/* The rest of the body is not kept, nor what came before it. */
static void drop_body(struct http_exchange *x, size_t n)
{
    x->dropped += x->n_body + n;
    http_drop_body(x);
}

static void add_body(struct http_exchange *x, const char *data, size_t n)
{
    struct http *h = x->c->h;
    size_t limit = h->config->max_body;
    if (x->dropped || n > limit - x->n_body) {
        drop_body(x, n);
        return;
    }
    if (x->n_body + n + 1 > x->room) {
        size_t room = MIN(MAX(2 * x->room, MAX(x->n_body + n + 1, (size_t)4096)), limit + 1);
        char *p = h->body_bytes + room - x->room <= HTTP_BODIES * (limit + 1) ? realloc(x->body, room) : NULL;
        if (!p) {
            x->overloaded = true;
            drop_body(x, n);
            return;
        }
        h->body_bytes += room - x->room;
        x->body = p;
        x->room = room;
    }
    memcpy(x->body + x->n_body, data, n);
    x->n_body += n;
    x->body[x->n_body] = '\0';
}

static void handle(struct http_exchange *x)
{
    struct http *h = x->c->h;
    x->state = HTTP_HANDLING;
    if (x->dropped && (!x->overloaded || x->dropped > h->config->max_body)) {
        http_error(x, 413, NULL, "body_too_large", "the body has more bytes than the %llu that 'http.max_body' allows",
                   (unsigned long long)h->config->max_body);
    } else if (x->dropped) {
        http_error(x, 503, NULL, "overloaded", "other requests hold the memory for bodies; try again");
    } else if (http_full(h)) {
        x->close = true;
        http_error(x, 503, NULL, "too_many_connections", "'http.max_connections' allows %u connections, and all wait for an answer",
                   h->config->max_connections);
    } else {
        h->n_requests++;
        h->handle(h->ctx, x);
    }
    if (x->state == HTTP_HANDLING)
        http_error(x, 500, NULL, NULL, "the request was not answered");
}

enum MHD_Result http_on_request(void *cls, struct MHD_Connection *mhd, const char *url, const char *method, const char *version,
                                const char *upload, size_t *upload_size, void **con_cls)
{
    struct http_exchange *x = *con_cls;
    (void)cls;
    if (!x)
        return begin_exchange(mhd, url, method, version, con_cls);
    if (x->cut)
        return MHD_NO;
    if (*upload_size) {
        if (x->state == HTTP_READING)
            add_body(x, upload, *upload_size);
        else
            x->dropped += *upload_size;
        *upload_size = 0;
        return x->dropped > DROP_FACTOR * x->c->h->config->max_body ? MHD_NO : MHD_YES;
    }
    if (x->state == HTTP_READING)
        handle(x);
    return http_send(x);
}

void http_on_completed(void *cls, struct MHD_Connection *mhd, void **con_cls, enum MHD_RequestTerminationCode how)
{
    struct http *h = cls;
    static const char *const methods[] = {[HTTP_GET] = "GET", [HTTP_POST] = "POST", [HTTP_OTHER] = "another method for"};
    struct http_exchange *x = *con_cls;
    (void)mhd;
    if (!x)
        return;
    log_debug("http", "%s %s: %u%s", methods[x->method], x->path, x->status,
              how == MHD_REQUEST_TERMINATED_COMPLETED_OK ? "" : ", cut off");
    *con_cls = NULL;
    x->c->x = NULL;
    x->c->since_ns = util_now_ns();
    h->n_exchanges--;
    h->body_bytes -= x->room;
    if (x->work.ended)
        x->work.ended(x->work.ctx);
    free(x->body);
    free(x->answer);
    free(x);
}
