/* SPDX-License-Identifier: MIT
 * Owns its messages. Called by cmd_chat.c and the client. A file is somebody else's: bounded, checked, then used. */
#include "coordinator/conversation.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/io.h"
#include "proto/utf8.h"
#include "proto/util.h"

#define FILE_MAX_BYTES (UINT64_C(64) << 20)

static const char *const roles[] = {"system", "user", "assistant"};

void conversation_cut(struct conversation *c, size_t n)
{
    while (c->n > n)
        free(c->messages[--c->n].content);
}

void conversation_fini(struct conversation *c)
{
    conversation_cut(c, 0);
    free(c->messages);
    *c = (struct conversation){0};
}

int conversation_add(struct conversation *c, const char *role, const char *content, struct err *err)
{
    if (c->n == c->room) {
        size_t room = c->room ? 2 * c->room : 16;
        struct conversation_message *m = realloc(c->messages, room * sizeof(*m));
        if (!m)
            return err_set(err, -ENOMEM, "conversation: out of memory");
        c->messages = m;
        c->room = room;
    }
    c->messages[c->n] = (struct conversation_message){0};
    for (size_t i = 0; i < ARRAY_LEN(roles); i++) {
        if (strcmp(role, roles[i]) == 0)
            c->messages[c->n] = (struct conversation_message){.role = roles[i], .content = strdup(content)};
    }
    if (!c->messages[c->n].content)
        return err_set(err, -ENOMEM, "conversation: out of memory");
    c->n++;
    return 0;
}

json_t *conversation_json(const struct conversation *c)
{
    json_t *list = json_array();
    for (size_t i = 0; i < c->n; i++) {
        json_t *m = json_pack("{s:s, s:s}", "role", c->messages[i].role, "content", c->messages[i].content);
        if (json_array_append_new(list, m) < 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

int conversation_save(const struct conversation *c, const char *model, const char *path, struct err *err)
{
    struct io_out *o = NULL;
    for (size_t i = 0; i < c->n; i++) {
        if (!utf8_valid(c->messages[i].content, strlen(c->messages[i].content)))
            return err_set(err, -EILSEQ, "'%s': message %zu is not UTF-8, which JSON needs; nothing was written", path, i + 1);
    }
    json_t *j = json_pack("{s:s, s:o}", "model", model, "messages", conversation_json(c));
    auto_free char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
    json_decref(j);
    if (!text)
        return err_set(err, -ENOMEM, "'%s': the conversation cannot be written: out of memory", path);
    int r = io_out_open_as(path, IO_OUT_PRIVATE | IO_OUT_NEW, &o, NULL);
    if (r < 0)
        return err_set_errno(err, r, "'%s' cannot be written; name a file in a folder that is there and may be written to", path);
    r = io_out_write(o, text, strlen(text), err);
    if (r == 0)
        r = io_out_write(o, "\n", 1, err);
    if (r < 0) {
        io_out_abort(o);
        return r;
    }
    r = io_out_commit(o, err);
    return r == -EEXIST ? err_set(err, r, "'%s' is there already and stays as it is; name another file", path) : r;
}

static int read_json(const char *path, json_t **ret, struct err *err)
{
    struct io_file *f;
    json_error_t why;
    int r = io_open(path, false, &f, err);
    if (r < 0)
        return r;
    uint64_t n = io_size(f);
    auto_free char *text = n <= FILE_MAX_BYTES ? malloc((size_t)n + 1) : NULL;
    if (!text)
        r = err_set(err, -EFBIG, "'%s': has %llu bytes; expected a conversation of at most %llu", path, (unsigned long long)n,
                    (unsigned long long)FILE_MAX_BYTES);
    else
        r = io_read(f, 0, text, (size_t)n, err);
    io_close(f);
    if (r < 0)
        return r;
    *ret = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &why);
    return *ret ? 0 : err_set(err, -EINVAL, "'%s', line %d: not JSON; expected what /save writes", path, why.line);
}

static int add_messages(struct conversation *c, const json_t *list, const char *path, struct err *err)
{
    size_t i;
    const json_t *m;
    json_array_foreach(list, i, m)
    {
        const char *role = json_string_value(json_object_get(m, "role"));
        const char *content = json_string_value(json_object_get(m, "content"));
        size_t turns = c->n && strcmp(c->messages[0].role, "system") == 0 ? i - 1 : i;
        bool first = i == 0 && role && strcmp(role, "system") == 0;
        const char *expected = turns % 2 ? "assistant" : "user";
        if (!role || !content || (!first && strcmp(role, expected) != 0))
            return err_set(err, -EINVAL, "'%s', message %zu: expected a role of '%s' and its content as a string", path, i + 1,
                           expected);
        int r = conversation_add(c, role, content, err);
        if (r < 0)
            return r;
    }
    if (c->n == 0 || strcmp(c->messages[c->n - 1].role, "assistant") != 0)
        return err_set(err, -EINVAL, "'%s': expected messages of which the last is the assistant's", path);
    return 0;
}

int conversation_load(struct conversation *c, const char *path, struct err *err)
{
    json_t *j = NULL;
    int r = read_json(path, &j, err);
    if (r == 0)
        r = add_messages(c, json_object_get(j, "messages"), path, err);
    if (r < 0)
        conversation_cut(c, 0);
    json_decref(j);
    return r;
}
