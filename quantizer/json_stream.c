/* SPDX-License-Identifier: MIT
 * Owns one open file and one yajl parser for the time of a call; called by the reader of tokenizer.json, on its thread. Each piece
 * of the file passes a small scanner before yajl sees it. The scanner knows only strings, escapes, brackets and words; it bounds
 * what yajl would otherwise collect in memory, and refuses the surrogate halves that yajl turns into question marks. */
#include "quantizer/json_stream.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <yajl/yajl_parse.h>

#include "proto/err.h"
#include "proto/io.h"
#include "proto/util.h"

#define PIECE 65536u
#define MAX_BYTES (UINT64_C(1) << 30)
#define MAX_NODES 65536u
#define MAX_TEXTS (1u << 20)
#define HALF "a \\u escape that is half of a surrogate pair"

struct scanner {
    bool string, escape;
    unsigned depth, word, hex; /* hex: digits of a \u escape that are still to come */
    size_t length;             /* of the string so far */
    uint32_t unit;
    bool high; /* the escape before was the first half of a pair */
};

struct reader {
    json_stream_handler *handler;
    void *ctx;
    struct err *err;
    int r;
    bool ended; /* all bytes are parsed: what comes now was cut */
};

/* ---- scanner ---- */

static const char *end_of_unit(struct scanner *s)
{
    bool low = s->unit >= 0xdc00 && s->unit <= 0xdfff;
    if (low != s->high)
        return HALF;
    s->high = s->unit >= 0xd800 && s->unit <= 0xdbff;
    return NULL;
}

static int hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static const char *scan_string(struct scanner *s, uint8_t c)
{
    if (++s->length > JSON_STREAM_STRING)
        return "a string of more than 1 MiB";
    if (s->hex) {
        int d = hex_digit(c);
        if (d < 0)
            return "a \\u escape without four hexadecimal digits";
        s->unit = s->unit << 4 | (uint32_t)d;
        return --s->hex == 0 ? end_of_unit(s) : NULL;
    }
    if (s->escape) {
        s->escape = false;
        if (c == 'u') {
            s->hex = 4;
            s->unit = 0;
            return NULL;
        }
        return s->high ? HALF : NULL;
    }
    if (c == '\\') {
        s->escape = true;
        return NULL;
    }
    if (c == '"')
        s->string = false;
    return s->high ? HALF : NULL;
}

static const char *scan_outside(struct scanner *s, uint8_t c)
{
    bool word = false;
    if (c == '"') {
        s->string = true;
        s->length = 0;
    } else if (c == '[' || c == '{') {
        if (++s->depth > JSON_STREAM_DEPTH)
            return "a nesting of more than 32 levels";
    } else if (c == ']' || c == '}') {
        s->depth -= s->depth > 0; /* yajl finds the one too many */
    } else {
        word = c > ' ' && c != ',' && c != ':';
    }
    s->word = word ? s->word + 1 : 0;
    return s->word > JSON_STREAM_NUMBER ? "a number of more than 64 characters" : NULL;
}

/* Where and what is wrong in the piece; NULL: nothing. */
static const char *scan(struct scanner *s, const uint8_t *p, size_t n, size_t *ret_at)
{
    for (size_t i = 0; i < n; i++) {
        const char *wrong = s->string ? scan_string(s, p[i]) : scan_outside(s, p[i]);
        if (wrong) {
            *ret_at = i;
            return wrong;
        }
    }
    return NULL;
}

/* ---- yajl's callbacks ---- */

static int give(void *ctx, enum json_stream_kind kind, bool truth, const void *text, size_t n)
{
    struct reader *p = ctx;
    p->r = p->handler(p->ctx, &(struct json_stream_event){.kind = kind, .truth = truth, .text = text, .n = n}, p->err);
    return p->r >= 0;
}

static int on_null(void *ctx)
{
    return give(ctx, JSON_STREAM_NULL, false, NULL, 0);
}

static int on_bool(void *ctx, int truth)
{
    return give(ctx, JSON_STREAM_BOOL, truth, NULL, 0);
}

static int on_number(void *ctx, const char *text, size_t n)
{
    const struct reader *p = ctx;
    return p->ended || give(ctx, JSON_STREAM_NUMBER_TEXT, false, text, n);
}

static int on_text(void *ctx, const unsigned char *text, size_t n)
{
    return give(ctx, JSON_STREAM_TEXT, false, text, n);
}

static int on_map(void *ctx)
{
    return give(ctx, JSON_STREAM_MAP, false, NULL, 0);
}

static int on_key(void *ctx, const unsigned char *text, size_t n)
{
    return give(ctx, JSON_STREAM_KEY, false, text, n);
}

static int on_map_end(void *ctx)
{
    return give(ctx, JSON_STREAM_MAP_END, false, NULL, 0);
}

static int on_array(void *ctx)
{
    return give(ctx, JSON_STREAM_ARRAY, false, NULL, 0);
}

static int on_array_end(void *ctx)
{
    return give(ctx, JSON_STREAM_ARRAY_END, false, NULL, 0);
}

static const yajl_callbacks callbacks = {
    .yajl_null = on_null,
    .yajl_boolean = on_bool,
    .yajl_number = on_number,
    .yajl_string = on_text,
    .yajl_start_map = on_map,
    .yajl_map_key = on_key,
    .yajl_end_map = on_map_end,
    .yajl_start_array = on_array,
    .yajl_end_array = on_array_end,
};

/* ---- reading ---- */

static int judge(struct reader *p, yajl_handle y, yajl_status status, uint64_t at)
{
    if (status == yajl_status_ok)
        return 0;
    if (status == yajl_status_client_canceled)
        return p->r;
    unsigned char *text = yajl_get_error(y, 0, NULL, 0);
    int n = text ? (int)strcspn((const char *)text, "\n") : 0;
    int r = err_set(p->err, -EINVAL, "JSON: %.*s near offset %" PRIu64, n, text ? (const char *)text : "", at);
    if (text)
        yajl_free_error(y, text);
    return r;
}

static int pump(struct reader *p, yajl_handle y, struct io_file *f, uint8_t *buf)
{
    struct scanner s = {0};
    uint64_t size = io_size(f);
    for (uint64_t at = 0; at < size; at += PIECE) {
        size_t n = (size_t)MIN(size - at, PIECE), where;
        int r = io_read(f, at, buf, n, p->err);
        if (r < 0)
            return r;
        const char *wrong = scan(&s, buf, n, &where);
        if (wrong)
            return err_set(p->err, -EINVAL, "JSON: %s at offset %" PRIu64, wrong, at + where);
        yajl_status status = yajl_parse(y, buf, n);
        r = judge(p, y, status, at + (status == yajl_status_error ? yajl_get_bytes_consumed(y) : 0));
        if (r < 0)
            return r;
    }
    p->ended = true;
    return judge(p, y, yajl_complete_parse(y), size);
}

int json_stream_read(const char *path, json_stream_handler *handler, void *ctx, struct err *err)
{
    struct reader p = {.handler = handler, .ctx = ctx, .err = err};
    struct io_file *f;
    int r = io_open(path, false, &f, err);
    if (r < 0)
        return r;
    auto_free uint8_t *buf = malloc(PIECE);
    yajl_handle y = yajl_alloc(&callbacks, NULL, &p);
    if (io_size(f) > MAX_BYTES)
        r = err_set(err, -EINVAL, "the file has %" PRIu64 " bytes; expected at most 1 GiB", io_size(f));
    else if (!buf || !y)
        r = err_set(err, -ENOMEM, "out of memory for reading JSON");
    else
        r = pump(&p, y, f, buf);
    if (y)
        yajl_free(y);
    io_close(f);
    return r;
}

/* ---- small values ---- */

static json_t *leaf(const struct json_stream_event *e)
{
    char number[JSON_STREAM_NUMBER + 1];
    if (e->kind == JSON_STREAM_NULL)
        return json_null();
    if (e->kind == JSON_STREAM_BOOL)
        return json_boolean(e->truth);
    if (e->kind == JSON_STREAM_TEXT)
        return json_stringn(e->text, e->n);
    if (e->kind == JSON_STREAM_MAP)
        return json_object();
    if (e->kind == JSON_STREAM_ARRAY)
        return json_array();
    size_t n = MIN(e->n, JSON_STREAM_NUMBER);
    memcpy(number, e->text, n);
    number[n] = '\0';
    return json_loads(number, JSON_DECODE_ANY, NULL); /* NULL too when out of a number's range */
}

static int set_key(struct json_stream_value *v, const struct json_stream_event *e, struct err *err)
{
    free(v->key);
    v->key = malloc(e->n + 1);
    if (!v->key)
        return err_set(err, -ENOMEM, "out of memory for a key");
    memcpy(v->key, e->text, e->n);
    v->key[e->n] = '\0';
    if (strlen(v->key) != e->n || json_object_get(v->stack[v->depth - 1], v->key))
        return err_set(err, -EINVAL, "key '%.64s' is there twice or holds a NUL; expected it once", v->key);
    return 0;
}

static int attach(struct json_stream_value *v, json_t *value)
{
    if (v->depth == 0)
        v->done = value;
    else if (json_is_array(v->stack[v->depth - 1]))
        return json_array_append_new(v->stack[v->depth - 1], value);
    else
        return json_object_set_new(v->stack[v->depth - 1], v->key, value);
    return 0;
}

int json_stream_add(struct json_stream_value *v, const struct json_stream_event *e, struct err *err)
{
    if (e->n > MAX_TEXTS - v->bytes)
        return err_set(err, -EINVAL, "more than 1 MiB of text where a few settings are expected");
    v->bytes += e->n;
    if (e->kind == JSON_STREAM_KEY)
        return set_key(v, e, err);
    if (e->kind == JSON_STREAM_MAP_END || e->kind == JSON_STREAM_ARRAY_END) {
        v->depth--;
        return 0;
    }
    if (++v->nodes > MAX_NODES)
        return err_set(err, -EINVAL, "more than %u values where a few settings are expected", MAX_NODES);
    json_t *value = leaf(e);
    if (!value)
        return err_set(err, -EINVAL, "value '%.*s' cannot be kept; expected a number in range, or UTF-8", (int)MIN(e->n, 64u),
                       e->text ? e->text : "");
    bool container = e->kind == JSON_STREAM_MAP || e->kind == JSON_STREAM_ARRAY;
    if (attach(v, value) < 0)
        return err_set(err, -ENOMEM, "out of memory for a value");
    if (container)
        v->stack[v->depth++] = value;
    return 0;
}

void json_stream_drop(struct json_stream_value *v)
{
    free(v->key);
    json_decref(v->done);
    *v = (struct json_stream_value){0};
}
