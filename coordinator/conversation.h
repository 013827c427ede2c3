/* SPDX-License-Identifier: MIT
 * What was said in a chat, in words, and as a file: {"model": ..., "messages": [{"role": ..., "content": ...}, ...]}, which is what
 * the HTTP API takes. Thread: plain data. */
#ifndef TANDEM_COORDINATOR_CONVERSATION_H
#define TANDEM_COORDINATOR_CONVERSATION_H

#include <stddef.h>

struct err;
struct json_t;

struct conversation { /* all zero: empty */
    struct conversation_message {
        const char *role; /* "system", "user", "assistant"; static */
        char *content;    /* UTF-8 with a NUL behind; owned */
    } * messages;
    size_t n, room;
};

void conversation_fini(struct conversation *c); /* it is empty then */
/* role: one of the three above. content: copied. */
int conversation_add(struct conversation *c, const char *role, const char *content, struct err *err);
void conversation_cut(struct conversation *c, size_t n);        /* only the first n messages stay */
struct json_t *conversation_json(const struct conversation *c); /* the list; returns owned, NULL: out of memory */
/* Writes a new file of mode 0600, whole or not at all. -EEXIST: there is one of that name. model: UTF-8. */
int conversation_save(const struct conversation *c, const char *model, const char *path, struct err *err);
/* Into an empty one. What is there must be a first system message or none, then turns of user and assistant, whose the last is. */
int conversation_load(struct conversation *c, const char *path, struct err *err);

#endif
