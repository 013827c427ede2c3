/* SPDX-License-Identifier: MIT
 * Owns libcurl's handles and the key. Called by talk.c. Certificates are always verified; redirects are not followed, so that the
 * key goes to the server that was named and to no other; loopback addresses are never asked for by way of a proxy. The transfer
 * runs on a multi handle, because that one can wait for a descriptor of ours at the same time. */
#include "coordinator/client/remote.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/util.h"

#define BODY_MAX_BYTES ((size_t)4 << 20)

struct remote {
    CURL *easy;
    CURLM *multi;
    struct curl_slist *headers;
    char *url, *authorization;
    bool secure;
    int wake_fd;
    char why[CURL_ERROR_SIZE];
    /* of the request under way */
    int (*data)(void *ctx, const char *bytes, size_t n, struct err *err);
    void *ctx;
    struct remote_reply *reply;
    struct err *err;
    int failed; /* by us */
    bool begun; /* bytes of the body have come */
};

static int take_url(struct remote *r, const char *text, struct err *err)
{
    static const char expected[] = "expected an address such as http://127.0.0.1:8080, without a user or a query";
    char *scheme = NULL, *host = NULL, *path = NULL, *user = NULL, *query = NULL, *whole = NULL;
    CURLU *u = curl_url();
    if (!u)
        return err_set(err, -ENOMEM, "address of the server: out of memory");
    bool good = curl_url_set(u, CURLUPART_URL, text, 0) == CURLUE_OK &&
                curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
                curl_url_get(u, CURLUPART_HOST, &host, 0) == CURLUE_OK && curl_url_get(u, CURLUPART_PATH, &path, 0) == CURLUE_OK &&
                (strcmp(scheme, "http") == 0 || strcmp(scheme, "https") == 0) &&
                (strcmp(path, "/") == 0 || strcmp(path, "/v1") == 0 || strcmp(path, "/v1/") == 0) &&
                curl_url_get(u, CURLUPART_USER, &user, 0) != CURLUE_OK && curl_url_get(u, CURLUPART_QUERY, &query, 0) != CURLUE_OK;
    bool loopback = good && (strcmp(host, "localhost") == 0 || strncmp(host, "127.", 4) == 0 || strcmp(host, "[::1]") == 0);
    if (good && curl_url_set(u, CURLUPART_PATH, "", 0) == CURLUE_OK && curl_url_get(u, CURLUPART_URL, &whole, 0) == CURLUE_OK) {
        r->url = strdup(whole);
        for (size_t n = r->url ? strlen(r->url) : 0; n && r->url[n - 1] == '/'; n--)
            r->url[n - 1] = '\0';
        r->secure = strcmp(scheme, "https") == 0 || loopback;
        if (loopback)
            curl_easy_setopt(r->easy, CURLOPT_PROXY, "");
    }
    curl_free(scheme);
    curl_free(host);
    curl_free(path);
    curl_free(user);
    curl_free(query);
    curl_free(whole);
    curl_url_cleanup(u);
    return r->url ? 0 : err_set(err, -EINVAL, "address of the server '%.80s': %s", text, expected);
}

static int take_key(struct remote *r, const char *key, struct err *err)
{
    if (asprintf(&r->authorization, "Authorization: Bearer %s", key) < 0) {
        r->authorization = NULL;
        return err_set(err, -ENOMEM, "key for the server: out of memory");
    }
    struct curl_slist *more = curl_slist_append(r->headers, r->authorization);
    if (!more)
        return err_set(err, -ENOMEM, "key for the server: out of memory");
    r->headers = more;
    if (!r->secure)
        fprintf(stderr, "coordinator: warning: the key goes to '%s' unencrypted; https keeps it secret\n", r->url);
    return 0;
}

static int keep_body(struct remote *r, const char *bytes, size_t n)
{
    struct remote_reply *reply = r->reply;
    if (reply->n + n > BODY_MAX_BYTES)
        return err_set(r->err, -EPROTO, "server '%s': its answer has more than %zu bytes", r->url, BODY_MAX_BYTES);
    char *p = realloc(reply->body, reply->n + n + 1);
    if (!p)
        return err_set(r->err, -ENOMEM, "answer of the server: out of memory");
    memcpy(p + reply->n, bytes, n);
    reply->body = p;
    reply->n += n;
    p[reply->n] = '\0';
    return 0;
}

static size_t on_bytes(char *bytes, size_t size, size_t n, void *ctx)
{
    struct remote *r = ctx;
    long status = 0;
    curl_easy_getinfo(r->easy, CURLINFO_RESPONSE_CODE, &status);
    r->begun = true;
    r->failed = r->data && status == 200 ? r->data(r->ctx, bytes, size * n, r->err) : keep_body(r, bytes, size * n);
    return r->failed < 0 ? 0 : size * n;
}

int remote_open(const struct remote_options *o, struct remote **ret, struct err *err)
{
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        return err_set(err, -ENOMEM, "libcurl does not start");
    struct remote *r = calloc(1, sizeof(*r));
    if (r)
        *r = (struct remote){.easy = curl_easy_init(), .multi = curl_multi_init(), .wake_fd = o->wake_fd};
    if (!r || !r->easy || !r->multi) {
        remote_close(r);
        return err_set(err, -ENOMEM, "libcurl: out of memory");
    }
    static const char *const headers[] = {"Content-Type: application/json", "Expect:"};
    for (size_t i = 0; i < ARRAY_LEN(headers); i++)
        r->headers = curl_slist_append(r->headers, headers[i]);
    int code = take_url(r, o->url, err);
    if (code == 0 && o->key)
        code = take_key(r, o->key, err);
    if (code < 0) {
        remote_close(r);
        return code;
    }
    curl_easy_setopt(r->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(r->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(r->easy, CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(r->easy, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(r->easy, CURLOPT_CONNECTTIMEOUT, 10L);
    curl_easy_setopt(r->easy, CURLOPT_USERAGENT, "tandem/" TANDEM_VERSION);
    curl_easy_setopt(r->easy, CURLOPT_HTTPHEADER, r->headers);
    curl_easy_setopt(r->easy, CURLOPT_ERRORBUFFER, r->why);
    curl_easy_setopt(r->easy, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(r->easy, CURLOPT_WRITEDATA, r);
    if (o->ca_file)
        curl_easy_setopt(r->easy, CURLOPT_CAINFO, o->ca_file);
    *ret = r;
    return 0;
}

void remote_close(struct remote *r)
{
    if (!r)
        return;
    curl_easy_cleanup(r->easy);
    curl_multi_cleanup(r->multi);
    for (struct curl_slist *h = r->headers; h; h = h->next)
        explicit_bzero(h->data, strlen(h->data));
    curl_slist_free_all(r->headers);
    if (r->authorization)
        explicit_bzero(r->authorization, strlen(r->authorization));
    free(r->authorization);
    free(r->url);
    free(r);
    curl_global_cleanup();
}

const char *remote_url(const struct remote *r)
{
    return r->url;
}

static int explain(const struct remote *r, CURLcode code, struct err *err)
{
    const char *why = r->why[0] ? r->why : curl_easy_strerror(code);
    bool ended = code == CURLE_GOT_NOTHING || code == CURLE_RECV_ERROR || code == CURLE_SEND_ERROR || code == CURLE_PARTIAL_FILE;
    if (r->failed < 0)
        return r->failed;
    if (code == CURLE_COULDNT_CONNECT || code == CURLE_OPERATION_TIMEDOUT)
        return err_set(err, -ECONNREFUSED, "server '%s' is not there: %s; is `coordinator serve` running, and is this its address?",
                       r->url, why);
    if (code == CURLE_COULDNT_RESOLVE_HOST)
        return err_set(err, -EHOSTUNREACH, "server '%s': %s; look at the name in the address", r->url, why);
    if (code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE)
        return err_set(err, -EACCES, "server '%s': its certificate is not trusted: %s; --ca-file names one that is to be", r->url,
                       why);
    if (ended)
        return err_set(err, -EPIPE, "server '%s': the connection ended %s: %s; look whether it still runs, and ask again", r->url,
                       r->begun ? "in the middle of the answer" : "before the answer", why);
    return err_set(err, -EIO, "server '%s': %s", r->url, why);
}

/* -EINTR: wake_fd. Otherwise 0, and *ret is how the transfer ended. */
static int transfer(struct remote *r, CURLcode *ret, struct err *err)
{
    for (;;) {
        struct curl_waitfd wake = {.fd = r->wake_fd, .events = CURL_WAIT_POLLIN};
        int running = 0, left = 0;
        CURLMcode m = curl_multi_perform(r->multi, &running);
        for (CURLMsg *message; m == CURLM_OK && (message = curl_multi_info_read(r->multi, &left));) {
            if (message->msg == CURLMSG_DONE) {
                *ret = message->data.result;
                return 0;
            }
        }
        if (m == CURLM_OK)
            m = curl_multi_poll(r->multi, &wake, 1, 1000, NULL);
        if (m != CURLM_OK)
            return err_set(err, -EIO, "server '%s': %s", r->url, curl_multi_strerror(m));
        if (wake.revents)
            return err_set(err, -EINTR, "interrupted by a signal");
    }
}

int remote_ask(struct remote *r, const char *path, const char *body,
               int (*data)(void *ctx, const char *bytes, size_t n, struct err *err), void *ctx, struct remote_reply *ret,
               struct err *err)
{
    char *url = NULL;
    CURLcode code = CURLE_OK;
    curl_off_t seconds = 0;
    *ret = (struct remote_reply){0};
    r->data = data;
    r->ctx = ctx;
    r->reply = ret;
    r->err = err;
    r->failed = 0;
    r->begun = false;
    r->why[0] = '\0';
    if (asprintf(&url, "%s%s", r->url, path) < 0)
        return err_set(err, -ENOMEM, "request: out of memory");
    curl_easy_setopt(r->easy, CURLOPT_URL, url);
    free(url);
    if (body) {
        curl_easy_setopt(r->easy, CURLOPT_POSTFIELDS, body);
        curl_easy_setopt(r->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
    } else {
        curl_easy_setopt(r->easy, CURLOPT_HTTPGET, 1L);
    }
    curl_multi_add_handle(r->multi, r->easy);
    int result = transfer(r, &code, err);
    if (result == 0 && code != CURLE_OK)
        result = explain(r, code, err);
    curl_easy_getinfo(r->easy, CURLINFO_RESPONSE_CODE, &ret->status);
    curl_easy_getinfo(r->easy, CURLINFO_RETRY_AFTER, &seconds);
    ret->retry_after = (unsigned)MIN(MAX(seconds, 0), 3600);
    curl_multi_remove_handle(r->multi, r->easy); /* closes the connection where the transfer is not over */
    return result;
}

void remote_reply_fini(struct remote_reply *r)
{
    free(r->body);
    *r = (struct remote_reply){0};
}
