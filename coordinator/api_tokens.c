/* SPDX-License-Identifier: MIT
 * POST /tokenize and /detokenize, with the members of vLLM's. They need the vocabulary alone, so they work while the stages start.
 * Called by api.c on the loop's thread. */
#include <stdlib.h>

#include "coordinator/api_impl.h"
#include "coordinator/tokenizer.h"
#include "proto/util.h"

static json_t *ids_json(const struct api_prompt *p)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < p->n; i++)
        json_array_append_new(list, json_integer(p->ids[i]));
    return list;
}

static int tokenize(const struct api *a, json_t *j, json_t **ret, struct api_refusal *why)
{
    struct api_params p;
    struct api_prompt prompts[API_MAX_PROMPTS];
    uint32_t n = 0;
    int r = api_params_read(a, API_TOKENIZE, j, &p, why);
    if (r == 0 && !p.has_messages && !json_is_string(p.prompt))
        r = api_refuse(why, 400, "prompt", "invalid_value", "parameter 'prompt': expected a string");
    if (r == 0 && p.has_messages && p.no_special)
        r = api_refuse(why, 400, "add_special_tokens", "invalid_value", "'messages' always have their special tokens");
    if (r == 0)
        r = api_prompts_make(a, &p, prompts, &n, why);
    if (r < 0)
        return r;
    *ret = json_pack("{s:I, s:I, s:o}", "count", (json_int_t)prompts[0].n, "max_model_len",
                     (json_int_t)engine_plan(a->engine)->context, "tokens", ids_json(&prompts[0]));
    api_prompts_free(prompts, n);
    return 0;
}

static int detokenize(const struct api *a, json_t *j, json_t **ret, struct api_refusal *why)
{
    struct api_params p;
    struct api_prompt prompt = {0};
    struct err err = {0};
    auto_free char *text = NULL;
    size_t n;
    int r = api_params_read(a, API_DETOKENIZE, j, &p, why);
    if (r == 0 && !json_is_array(p.prompt))
        r = api_refuse(why, 400, "tokens", "invalid_value", "parameter 'tokens': expected a list of token ids");
    if (r == 0)
        r = api_ids_read(a, "tokens", p.prompt, &prompt, why);
    if (r == 0 && tokenizer_decode(a->tokenizer, prompt.ids, prompt.n, &text, &n, &err) < 0)
        r = api_refuse(why, 500, NULL, "out_of_memory", "%s", err.text);
    free(prompt.ids);
    if (r == 0)
        *ret = json_pack("{s:s%}", "prompt", text, n);
    return r;
}

static void answer(struct api *a, struct http_exchange *x, json_t *j,
                   int (*make)(const struct api *a, json_t *j, json_t **ret, struct api_refusal *why))
{
    struct api_refusal why = {0};
    json_t *ret = NULL;
    int r = make(a, j, &ret, &why);
    json_decref(j);
    if (r < 0)
        api_answer_refusal(x, &why);
    else
        api_answer_json(x, 200, ret);
}

void api_tokenize(struct api *a, struct http_exchange *x, json_t *j)
{
    answer(a, x, j, tokenize);
}

void api_detokenize(struct api *a, struct http_exchange *x, json_t *j)
{
    answer(a, x, j, detokenize);
}
