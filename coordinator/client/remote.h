/* SPDX-License-Identifier: MIT
 * Requests to an HTTP server of OpenAI's kind, by libcurl. Thread: one. */
#ifndef TANDEM_COORDINATOR_CLIENT_REMOTE_H
#define TANDEM_COORDINATOR_CLIENT_REMOTE_H

#include <stddef.h>

struct err;
struct remote;

struct remote_options {
    const char *url;     /* http[s]://HOST[:PORT], with or without /v1 */
    const char *key;     /* NULL: none is said; copied */
    const char *ca_file; /* certificates to trust instead of the system's; may be NULL; borrowed */
    int wake_fd;         /* a request ends when it can be read; borrowed */
};

struct remote_reply { /* remote_reply_fini afterwards, in any case */
    long status;
    unsigned retry_after; /* seconds; 0: not said */
    char *body;           /* with a NUL behind; NULL: empty, or `data` has taken it */
    size_t n;
};

int remote_open(const struct remote_options *o, struct remote **ret, struct err *err);
void remote_close(struct remote *r);            /* NULL is fine; wipes the key */
const char *remote_url(const struct remote *r); /* as it was understood, for messages; borrowed */
/* POST of a JSON body, or GET where it is NULL. path: "/v1/models". data: takes the body of a reply with status 200 as it comes;
 * below 0 ends the request and is returned. 0: there is a whole reply. -EINTR: wake_fd. Otherwise a negative errno, and the message
 * names the server and what to do. */
int remote_ask(struct remote *r, const char *path, const char *body,
               int (*data)(void *ctx, const char *bytes, size_t n, struct err *err), void *ctx, struct remote_reply *ret,
               struct err *err);
void remote_reply_fini(struct remote_reply *r);

#endif
