/* SPDX-License-Identifier: MIT
 * `serve`: the HTTP server on the running pipeline, until a signal ends it. It listens before the stages start, so that /health can
 * tell what they are at. Runs on the main thread. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/api.h"
#include "coordinator/commands.h"
#include "coordinator/engine.h"
#include "coordinator/http.h"
#include "coordinator/tokenizer.h"
#include "proto/config.h"
#include "proto/err.h"
#include "proto/util.h"

#define FORMAT_BYTES (256u << 10) /* state of an answer that is bound to a format */
#define WORD_BYTES 64u            /* of the vocabulary, in order */
#define ANSWER_TOKEN_BYTES 256u   /* text, and a score with twenty others */

uint64_t cmd_serve_bytes(const struct config *c, uint32_t vocab)
{
    uint64_t formats = (uint64_t)c->sequences * FORMAT_BYTES + (uint64_t)vocab * WORD_BYTES;
    uint64_t queued = (uint64_t)(2 * c->sequences + c->http.max_queue) * c->context * sizeof(uint32_t);
    return http_memory(&c->http) + formats + api_json_bytes(&c->http) + queued +
           (uint64_t)c->sequences * c->context * ANSWER_TOKEN_BYTES;
}

static int started(void *ctx, struct engine *e, struct err *err)
{
    struct command *c = ctx;
    int r = api_open(c->config, e, c->tokenizer, &c->api, err);
    if (r < 0)
        return r;
    printf("listening on %s://%s\n", http_tls(api_http(c->api)) ? "https" : "http", http_address(api_http(c->api)));
    return fflush(stdout) == EOF ? err_set(err, -EIO, "standard output: cannot be written") : 0;
}

static void stopping(void *ctx)
{
    struct command *c = ctx;
    api_close(c->api);
    c->api = NULL;
}

int cmd_serve_prepare(struct command *c, struct engine_options *o, struct err *err)
{
    if (strcmp(c->config->http.listen, "none") == 0)
        return err_set(err, -EINVAL,
                       "config '%s': key 'http.listen' is none; `serve` needs an address, such as --set http.listen=127.0.0.1:8080",
                       c->config->path);
    o->command_bytes = cmd_serve_bytes(c->config, tokenizer_vocab(c->tokenizer));
    o->started = started;
    o->stopping = stopping;
    o->ctx = c;
    return 0;
}

int cmd_serve_run(struct command *c, struct err *err)
{
    return engine_serve(c->engine, err);
}
