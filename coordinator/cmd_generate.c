/* SPDX-License-Identifier: MIT
 * `generate`: one prompt, one or several answers. One answer is printed as it comes; several are printed one after the other
 * when all are there. Runs on the main thread. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/answer.h"
#include "coordinator/commands.h"
#include "coordinator/monitor.h"
#include "coordinator/monitor_json.h"
#include "coordinator/report.h"
#include "coordinator/tokenizer.h"
#include "proto/config.h"
#include "proto/util.h"

struct prompt {
    uint32_t *ids; /* owned */
    size_t n;
};

static int encode_prompt(const struct command *c, struct prompt *ret, struct err *err)
{
    const struct options *o = c->options;
    if (o->chat) {
        struct tokenizer_message m[2] = {{"system", o->system}, {"user", o->prompt}};
        return o->system ? tokenizer_chat(c->tokenizer, m, 2, &ret->ids, &ret->n, err)
                         : tokenizer_chat(c->tokenizer, m + 1, 1, &ret->ids, &ret->n, err);
    }
    auto_free uint32_t *ids = NULL;
    const uint32_t *from = o->ids;
    size_t n = o->n_ids, extra = 0;
    if (!o->has_ids) {
        int r = tokenizer_encode(c->tokenizer, o->prompt, strlen(o->prompt), true, &ids, &n, err);
        if (r < 0)
            return r;
        from = ids;
        extra = 1; /* <bos> */
    }
    ret->ids = malloc((n + extra) * sizeof(*ret->ids));
    if (!ret->ids)
        return err_set(err, -ENOMEM, "prompt: out of memory for %zu tokens", n);
    ret->ids[0] = tokenizer_bos(c->tokenizer);
    if (n)
        memcpy(ret->ids + extra, from, n * sizeof(*from));
    ret->n = n + extra;
    return 0;
}

static json_t *ids_json(const uint32_t *ids, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return list;
}

static json_t *answer_json(const struct answer *a)
{
    const struct request_result *r = &a->result;
    json_t *timings = json_pack("{s:f, s:f, s:f, s:f, s:f}", "queue_ms", (double)r->queue_ns / 1e6, "prefill_ms",
                                (double)r->prefill_ns / 1e6, "decode_ms", (double)r->decode_ns / 1e6, "prefill_tokens_per_s",
                                answer_prefill_rate(a), "decode_tokens_per_s", answer_decode_rate(a));
    json_t *j =
        json_pack("{s:o, s:s%, s:s, s:b, s:o}", "output_ids", ids_json(a->ids, a->n_ids), "text", a->text, a->n_text,
                  "finish_reason", engine_finish_name(r->finish), "numerics_changed", (int)r->numerics_changed, "timings", timings);
    if (a->error.code) {
        json_t *why = json_string(a->error.text);
        json_object_set_new(j, "error", why ? why : json_string("its reason is not UTF-8")); /* it may be cut within a character */
    }
    return j;
}

static int print_json(const struct prompt *p, const struct answer *a, uint32_t n, const struct monitor_snapshot *stats,
                      const struct engine_recovery *recovery, struct err *err)
{
    json_t *j = json_pack("{s:o}", "prompt_ids", ids_json(p->ids, p->n));
    if (n == 1) {
        json_t *one = answer_json(a);
        json_object_update(j, one);
        json_decref(one);
    } else {
        json_t *list = json_array();
        for (uint32_t i = 0; i < n; i++) {
            json_t *one = answer_json(&a[i]);
            json_object_set_new(one, "choice", json_integer(i));
            json_array_append_new(list, one);
        }
        json_object_set_new(j, "choices", list);
    }
    json_object_set_new(j, "processes", monitor_json_processes(stats));
    json_object_set_new(j, "recoveries", report_recovery_json(recovery));
    return report_print_json(j, stdout, err);
}

/* Also where one of them failed: the others are whole. Each is done with when it is written, so that a kill meanwhile leaves those
 * to be resumed that are not. */
static int print_texts(struct answer *a, uint32_t n, struct err *err)
{
    int r = 0;
    for (uint32_t i = 0; i < n && r == 0; i++) {
        printf("%s--- answer %u (%s)\n%s\n", i ? "\n" : "", i, engine_finish_name(a[i].result.finish), a[i].text);
        r = answer_given(&a[i], stdout, err);
    }
    return r;
}

/* The one that was printed as it came, or those that went into one JSON object, also where it says of one that it failed. */
static int all_given(struct answer *a, uint32_t n, struct err *err)
{
    int r = 0;
    for (uint32_t i = 0; i < n && r == 0; i++)
        r = answer_given(&a[i], stdout, err);
    return r;
}

static int run_answers(struct command *c, const struct prompt *p, struct answer *a, uint32_t n, struct err *err)
{
    const struct options *o = c->options;
    int r = 0;
    for (uint32_t i = 0; i < n && r == 0; i++) {
        struct request_params q;
        commands_request(c, &q);
        q.ids = p->ids;
        q.n_ids = (uint32_t)p->n;
        q.choice = i;
        r = answer_init(&a[i], c->tokenizer, n == 1 && !o->json ? stdout : NULL, err);
        if (r == 0)
            r = answer_submit(&a[i], c->engine, &q, err);
    }
    if (r == 0)
        r = engine_run(c->engine, err);
    if (n == 1 && !o->json && a[0].n_text)
        putchar('\n');
    if (r == 0 && n > 1 && !o->json)
        r = print_texts(a, n, err);
    return r;
}

/* Of the first that failed. */
static int check_answers(const struct answer *a, uint32_t n, struct err *err)
{
    for (uint32_t i = 0; i < n; i++) {
        if (!a[i].error.code)
            continue;
        int r = err_set(err, a[i].error.code, "%s", a[i].error.text);
        return n > 1 ? err_wrap(err, r, "answer %u", i) : r;
    }
    return 0;
}

int cmd_generate_run(struct command *c, struct err *err)
{
    const struct options *o = c->options;
    uint32_t n = o->parallel;
    struct prompt p = {0};
    struct monitor_snapshot stats;
    int r = encode_prompt(c, &p, err);
    struct answer *a = r == 0 ? calloc(n, sizeof(*a)) : NULL;
    if (r == 0 && !a)
        r = err_set(err, -ENOMEM, "answers: out of memory");
    if (r == 0)
        r = run_answers(c, &p, a, n, err);
    if (r == 0 && !o->json)
        r = check_answers(a, n, err);
    if (r == 0 && n == 1 && !o->json)
        r = all_given(a, n, err);
    if (r == 0 && (o->json || o->report)) {
        r = engine_stats(c->engine, &stats, err);
        if (r < 0)
            check_answers(a, n, err); /* of two reasons the first */
    }
    if (r == 0 && o->json)
        r = print_json(&p, a, n, &stats, engine_last_recovery(c->engine), err);
    if (r == 0 && o->json)
        r = all_given(a, n, err);
    if (r == 0 && o->json)
        r = check_answers(a, n, err);
    if (r == 0 && o->report && !o->json) {
        putchar('\n');
        report_answers(a, n, stdout);
        putchar('\n');
        report_processes(&stats, stdout);
        report_recovery(engine_last_recovery(c->engine), stdout);
    }
    for (uint32_t i = 0; a && i < n; i++)
        answer_fini(&a[i]);
    free(a);
    free(p.ids);
    return r;
}
