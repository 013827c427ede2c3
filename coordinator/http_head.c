/* SPDX-License-Identifier: MIT
 * Refuses heads of requests that two readers could understand differently: what a proxy takes for one request must not be another
 * one here. Called by http_request.c for each request, inside MHD_run, on the loop's thread.
 *
 * libmicrohttpd refuses them itself since 1.0, told to be strict; what is left here is what it does not look at.
 *
 * Older ones (Debian 12: 0.9.75) do not refuse what they do not understand: of a header that goes on in the next line they keep the
 * beginning, of a value with a NUL what stands before it, of several spaces in the first line one. But they hand out all parts of
 * a head where they lie in their buffer, so one rule finds what was left out: each part begins where the one before it ended,
 * but for the characters that separate them, and the last one ends where the head ends. Only addresses are compared; should one
 * of them keep its parts elsewhere, nothing passes. What it cannot find is what libmicrohttpd overwrites: a line that ends with
 * NUL LF, and a line of a colon alone, which ends the head; so a request with a body ends the connection (http_request.c). Their
 * MHD_OPTION_STRICT_FOR_CLIENT stays off: it finds less, and its answers are HTML with two heads (no Host), or none (spaces). */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "coordinator/http_impl.h"

#define N_SINGLE 5u /* headers that are there once at most */
static const char *const single_names[N_SINGLE] = {"Content-Length", "Transfer-Encoding", "Host", "Authorization", "Origin"};

struct head {
    const char *next; /* where the next part has to be */
    bool gap, bad_name, bad_value;
    unsigned n[N_SINGLE];
};

bool http_library_is_strict(void)
{
    return atoi(MHD_get_version()) >= 1; /* of the one that runs, not of the one that it was built with */
}

const char *http_header(const struct http_exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->c->mhd, MHD_HEADER_KIND, name);
}

/* A bare CR among them, which others take for the end of a line. */
static bool has_control(const char *text)
{
    for (; *text; text++) {
        if (((unsigned char)*text < ' ' && *text != '\t') || *text == 0x7F)
            return true;
    }
    return false;
}

/* The target as it was sent, before it is decoded in its place. */
void *http_on_target(void *cls, const char *target, struct MHD_Connection *mhd)
{
    struct connection *c = http_connection_of(mhd);
    (void)cls;
    if (c) {
        c->target_bytes = strlen(target);
        c->scheme_bytes = strncasecmp(target, "http://", 7) == 0 ? 7 : strncasecmp(target, "https://", 8) == 0 ? 8 : 0;
        const char *host = target + c->scheme_bytes;
        size_t host_bytes = c->scheme_bytes ? strcspn(host, "/?") : 0;
        c->bad_target = has_control(target) || strpbrk(target, " \t") || strstr(target, "%00") || memchr(host, '%', host_bytes);
    }
    return NULL;
}

static enum MHD_Result look_at_header(void *cls, enum MHD_ValueKind kind, const char *name, size_t name_bytes, const char *value,
                                      size_t value_bytes)
{
    struct head *f = cls;
    (void)kind;
    f->gap = f->gap || name != f->next || value <= name + name_bytes; /* a colon, and spaces, stood before the value */
    f->next = value + value_bytes + 2;
    f->bad_name = f->bad_name || !*name || name[strspn(name, HTTP_TOKEN)];
    f->bad_value = f->bad_value || has_control(value);
    for (unsigned i = 0; i < N_SINGLE; i++)
        f->n[i] += strcasecmp(name, single_names[i]) == 0;
    return MHD_YES;
}

static struct head look_at_head(const struct http_exchange *x, const char *url, const char *method, const char *version)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(x->c->mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    const char *target = method + strlen(method) + 1;
    struct head f = {.next = version + strlen(version) + 2,
                     .gap = !info || url != target || version != target + x->c->target_bytes + 1};
    MHD_get_connection_values_n(x->c->mhd, MHD_HEADER_KIND, look_at_header, &f);
    f.gap = !http_library_is_strict() && (f.gap || f.next + 2 != method + info->header_size);
    return f;
}

bool http_head_check(struct http_exchange *x, const char *url, const char *method, const char *version, uint64_t *ret_length)
{
    const struct head f = look_at_head(x, url, method, version);
    const char *length = http_header(x, "Content-Length"), *encoding = http_header(x, "Transfer-Encoding");
    unsigned twice = 0;
    while (twice < N_SINGLE && f.n[twice] < 2)
        twice++;
    if (!*method || method[strspn(method, HTTP_TOKEN)])
        http_error(x, 400, NULL, "bad_request", "the method has characters that methods do not have");
    else if (f.gap)
        http_error(
            x, 400, NULL, "bad_request",
            "the head is not plain; expected lines that end with CR LF, none that goes on in the next one, no NUL, and single "
            "spaces in the first one");
    else if (f.bad_name)
        http_error(x, 400, NULL, "bad_request", "a header's name has characters that names do not have");
    else if (f.bad_value)
        http_error(x, 400, NULL, "bad_request", "a header's value has control characters");
    else if (x->c->bad_target || has_control(url))
        http_error(x, 400, NULL, "bad_request", "the path or its query has spaces or control characters, or its host has %%");
    else if (!http_header(x, "Host") && strcmp(version, "HTTP/1.0") != 0)
        http_error(x, 400, NULL, "bad_request", "the header Host is missing; expected one");
    else if (twice < N_SINGLE)
        http_error(x, 400, NULL, "bad_request", "the header %s is given %u times; expected it once", single_names[twice],
                   f.n[twice]);
    else if (length && encoding)
        http_error(x, 400, NULL, "bad_request", "both Content-Length and Transfer-Encoding are given; expected one of them");
    else if (encoding && strcasecmp(encoding, "chunked") != 0)
        http_error(x, 501, NULL, "bad_request", "Transfer-Encoding: found '%.40s'; expected chunked", encoding);
    else if (length && (!*length || length[strspn(length, "0123456789")] || strlen(length) > 18))
        http_error(x, 400, NULL, "bad_request", "Content-Length: found '%.40s'; expected a number of bytes", length);
    else if (x->method == HTTP_POST && !length && !encoding)
        http_error(x, 411, NULL, "bad_request", "neither Content-Length nor Transfer-Encoding is given; expected one of them");
    bool good = x->state == HTTP_READING;
    *ret_length = good && length ? strtoull(length, NULL, 10) : 0;
    return good;
}
