/* SPDX-License-Identifier: MIT
 * Reads a JSON file of any size as a stream of events (RFC 8259), with libyajl, in pieces of 64 KiB: memory does not grow with the
 * file. Stricter than the library: strings, numbers and depth are bounded, and a \u escape that is half of a surrogate pair is an
 * error, as in every reader that tokenizer files come from. Threads: any; no state. */
#ifndef TANDEM_QUANTIZER_JSON_STREAM_H
#define TANDEM_QUANTIZER_JSON_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

struct err;

#define JSON_STREAM_DEPTH 32
#define JSON_STREAM_STRING (1u << 20) /* bytes of one string as written */
#define JSON_STREAM_NUMBER 64

enum json_stream_kind {
    JSON_STREAM_NULL,
    JSON_STREAM_BOOL,
    JSON_STREAM_NUMBER_TEXT,
    JSON_STREAM_TEXT,
    JSON_STREAM_KEY,
    JSON_STREAM_MAP,
    JSON_STREAM_MAP_END,
    JSON_STREAM_ARRAY,
    JSON_STREAM_ARRAY_END
};

struct json_stream_event {
    enum json_stream_kind kind;
    bool truth;       /* of BOOL */
    const char *text; /* of TEXT and KEY: valid UTF-8, may hold NUL; of NUMBER_TEXT: as written. Borrowed, not terminated */
    size_t n;
};

/* Negative: the reading ends with that result; the handler has set err. */
typedef int json_stream_handler(void *ctx, const struct json_stream_event *e, struct err *err);

/* A number that is a whole file is not given. -ENOENT when the file does not exist; -EINVAL with the offset when it is no JSON: the
 * caller adds the path. */
int json_stream_read(const char *path, json_stream_handler *handler, void *ctx, struct err *err);

/* Puts a value together again from its events, for the parts of a file that are small. {0} is an empty one. */
struct json_stream_value {
    json_t *stack[JSON_STREAM_DEPTH + 1];
    unsigned depth, nodes;
    size_t bytes; /* of its texts */
    char *key;
    json_t *done; /* owned; complete when depth is 0 */
};

/* Refuses a repeated key, and a value of more than 65536 parts or 1 MiB of texts. */
int json_stream_add(struct json_stream_value *v, const struct json_stream_event *e, struct err *err);
void json_stream_drop(struct json_stream_value *v);

#endif
