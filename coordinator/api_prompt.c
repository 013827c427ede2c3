/* SPDX-License-Identifier: MIT
 * From messages or prompts to token ids: the chat template of tokenizer.h for messages, <bos> and the text for a prompt, ids as
 * they are. Called by api_job.c and api_tokens.c on the loop's thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/api_impl.h"
#include "coordinator/tokenizer.h"
#include "proto/util.h"

/* Of the tokenizer. */
static int refuse_text(int r, const char *param, const struct err *err, struct api_refusal *why)
{
    return api_refuse(why, r == -ENOMEM ? 500 : 400, param, r == -E2BIG ? "context_length_exceeded" : "invalid_value", "%s",
                      err->text);
}

static int out_of_memory(struct api_refusal *why)
{
    api_refuse(why, 500, NULL, "out_of_memory", "out of memory");
    return -ENOMEM;
}

/* [{"type": "text", "text": "..."}, ...]: trimmed and put together, as the template does. */
static int join_parts(size_t message, const json_t *parts, char **ret, struct api_refusal *why)
{
    char param[64];
    size_t i, room = 1, used = 0;
    json_t *part;
    json_array_foreach(parts, i, part)
    {
        const json_t *type = json_object_get(part, "type"), *text = json_object_get(part, "text");
        snprintf(param, sizeof(param), "messages[%zu].content[%zu]", message, i);
        if (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0 || !json_is_string(text) ||
            json_object_size(part) != 2)
            return api_refuse(why, 400, param, "invalid_value",
                              "'%s': expected {\"type\": \"text\", \"text\": ...}; there are no other parts", param);
        room += json_string_length(text);
    }
    char *joined = malloc(room);
    if (!joined)
        return out_of_memory(why);
    json_array_foreach(parts, i, part)
    {
        const char *s = json_string_value(json_object_get(part, "text"));
        size_t n = tokenizer_trim(&s, strlen(s));
        memcpy(joined + used, s, n);
        used += n;
    }
    joined[used] = '\0';
    *ret = joined;
    return 0;
}

static int read_message(size_t i, json_t *j, struct tokenizer_message *ret, char **ret_owned, struct api_refusal *why)
{
    static const char *const roles[][2] = {
        {"system", "system"}, {"developer", "system"}, {"user", "user"}, {"assistant", "assistant"}};
    const json_t *role = json_object_get(j, "role"), *content = json_object_get(j, "content");
    const char *key;
    json_t *value;
    char param[64];
    snprintf(param, sizeof(param), "messages[%zu].role", i);
    for (size_t k = 0; json_is_string(role) && k < ARRAY_LEN(roles); k++) {
        if (strcmp(json_string_value(role), roles[k][0]) == 0)
            ret->role = roles[k][1];
    }
    if (!ret->role)
        return api_refuse(why, 400, param, "invalid_value", "'%s': expected system, developer, user or assistant", param);
    json_object_foreach(j, key, value)
    {
        snprintf(param, sizeof(param), "messages[%zu].%.20s", i, key);
        if (strcmp(key, "role") != 0 && strcmp(key, "content") != 0 && !json_is_null(value))
            return api_refuse(why, 400, param, "unsupported_parameter", "parameter '%s' is not supported; leave it out", param);
    }
    snprintf(param, sizeof(param), "messages[%zu].content", i);
    if (json_is_string(content)) {
        ret->content = json_string_value(content);
        return 0;
    }
    if (!json_is_array(content) || json_array_size(content) == 0)
        return api_refuse(why, 400, param, "invalid_value", "'%s': expected a string, or a list of parts", param);
    int r = join_parts(i, content, ret_owned, why);
    ret->content = *ret_owned;
    return r;
}

static int from_messages(const struct api *a, const json_t *list, struct api_prompt *ret, struct api_refusal *why)
{
    size_t n = json_array_size(list), i, n_ids = 0;
    json_t *j;
    int r = 0;
    if (!json_is_array(list) || n == 0)
        return api_refuse(why, 400, "messages", "invalid_value", "parameter 'messages': expected a list of at least one message");
    struct tokenizer_message *m = calloc(n, sizeof(*m));
    char **owned = calloc(n, sizeof(*owned));
    if (!m || !owned)
        r = out_of_memory(why);
    json_array_foreach(list, i, j)
    {
        if (r == 0)
            r = read_message(i, j, &m[i], &owned[i], why);
    }
    if (r == 0) {
        struct err err = {0};
        r = tokenizer_chat(a->tokenizer, m, n, &ret->ids, &n_ids, &err);
        if (r < 0)
            refuse_text(r, "messages", &err, why);
        ret->n = (uint32_t)n_ids;
    }
    for (i = 0; owned && i < n; i++)
        free(owned[i]);
    free(owned);
    free(m);
    return r;
}

static int from_text(const struct api *a, const char *text, size_t n, bool bos, struct api_prompt *ret, struct api_refusal *why)
{
    auto_free uint32_t *ids = NULL;
    size_t n_ids;
    struct err err = {0};
    int r = tokenizer_encode(a->tokenizer, text, n, true, &ids, &n_ids, &err);
    if (r < 0)
        return refuse_text(r, "prompt", &err, why);
    ret->ids = malloc((n_ids + 1) * sizeof(*ret->ids));
    if (!ret->ids)
        return out_of_memory(why);
    if (bos)
        ret->ids[ret->n++] = tokenizer_bos(a->tokenizer);
    if (n_ids)
        memcpy(ret->ids + ret->n, ids, n_ids * sizeof(*ids));
    ret->n += (uint32_t)n_ids;
    return 0;
}

int api_ids_read(const struct api *a, const char *param, const json_t *list, struct api_prompt *ret, struct api_refusal *why)
{
    size_t n = json_array_size(list), i;
    const json_t *v;
    uint32_t vocab = tokenizer_vocab(a->tokenizer);
    ret->ids = malloc((n + 1) * sizeof(*ret->ids));
    if (!ret->ids)
        return out_of_memory(why);
    json_array_foreach(list, i, v)
    {
        json_int_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0 || id >= vocab)
            return api_refuse(why, 400, param, "invalid_value", "parameter '%s': element %zu: expected a token id below %u", param,
                              i, vocab);
        ret->ids[ret->n++] = (uint32_t)id;
    }
    return 0;
}

static int one_prompt(const struct api *a, const struct api_params *p, const json_t *v, struct api_prompt *ret,
                      struct api_refusal *why)
{
    if (json_is_string(v))
        return from_text(a, json_string_value(v), json_string_length(v), !p->no_special, ret, why);
    if (json_is_array(v))
        return api_ids_read(a, "prompt", v, ret, why);
    return api_refuse(why, 400, "prompt", "invalid_value",
                      "parameter 'prompt': expected a string, a list of strings, a list of token ids, or a list of such lists");
}

static int check_length(const struct api *a, const struct api_prompt *p, const char *param, struct api_refusal *why)
{
    uint32_t context = engine_plan(a->engine)->context;
    if (p->n == 0)
        return api_refuse(why, 400, param, "invalid_value", "the prompt is empty; expected at least one token");
    if (p->n > context)
        return api_refuse(why, 400, param, "context_length_exceeded",
                          "the prompt has %u tokens; the context has %u ('context' in the config)", p->n, context);
    return 0;
}

int api_prompts_make(const struct api *a, const struct api_params *p, struct api_prompt *ret, uint32_t *ret_n,
                     struct api_refusal *why)
{
    bool several = json_is_array(p->prompt) && !p->has_messages && !json_is_integer(json_array_get(p->prompt, 0));
    size_t n = several ? json_array_size(p->prompt) : 1;
    int r = 0;
    *ret_n = 0;
    if (n == 0 || n > API_MAX_PROMPTS)
        return api_refuse(why, 400, "prompt", "invalid_value", "parameter 'prompt': found a list of %zu; expected 1 to %u prompts",
                          n, API_MAX_PROMPTS);
    for (size_t i = 0; i < n && r == 0; i++) {
        ret[i] = (struct api_prompt){0};
        ++*ret_n;
        if (p->has_messages)
            r = from_messages(a, p->prompt, &ret[i], why);
        else
            r = one_prompt(a, p, several ? json_array_get(p->prompt, i) : p->prompt, &ret[i], why);
        if (r == 0 && (p->kind == API_CHAT || p->kind == API_COMPLETION))
            r = check_length(a, &ret[i], p->has_messages ? "messages" : "prompt", why);
    }
    if (r < 0) {
        api_prompts_free(ret, *ret_n);
        *ret_n = 0;
    }
    return r;
}

void api_prompts_free(struct api_prompt *p, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        free(p[i].ids);
}
