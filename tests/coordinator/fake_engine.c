/* SPDX-License-Identifier: MIT
 * An engine that runs requests one after the other inside engine_run; for test_commands.c, on one thread. Queue, callbacks and
 * errors behave as engine.h says. */
#include "tests/coordinator/fake_engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/engine.h"
#include "coordinator/monitor.h"
#include "proto/err.h"
#include "proto/util.h"

struct request {
    struct request *next;
    struct request_params p;
    uint32_t *ids;
};

struct engine {
    struct plan plan;
    struct request *queue;
    uint32_t n_queue;
    bool cancelled; /* the request that runs */
    struct request *running;
};

struct fake_engine_script fake_engine_script = {.fail_after = -1};

float fake_engine_logit(uint32_t token, uint32_t pos, uint32_t id)
{
    return (float)((token * 31u + pos * 17u + id * 7u) % 101u) * 0.05f;
}

int engine_open(const struct config *c, const struct gguf *g, const struct engine_options *o, struct engine **ret, struct err *err)
{
    (void)c, (void)g, (void)o;
    struct engine *e = calloc(1, sizeof(*e));
    if (!e)
        return err_set(err, -ENOMEM, "fake engine");
    e->plan.context = FAKE_ENGINE_CONTEXT;
    e->plan.hparams.context_max = 2 * FAKE_ENGINE_CONTEXT;
    e->plan.sequences = 2;
    e->plan.hparams.vocab = FAKE_ENGINE_VOCAB;
    *ret = e;
    return 0;
}

static void request_free(struct request *r)
{
    free(r->ids);
    free(r);
}

void engine_close(struct engine *e)
{
    while (e && e->queue) {
        struct request *r = e->queue;
        e->queue = r->next;
        request_free(r);
    }
    free(e);
}

const struct plan *engine_plan(const struct engine *e)
{
    return &e->plan;
}

const char *engine_finish_name(enum engine_finish f)
{
    static const char *const names[] = {"stop", "length", "context", "cancelled", "error"};
    return names[f];
}

int engine_submit(struct engine *e, const struct request_params *p, struct request **ret, struct err *err)
{
    struct fake_engine_script *s = &fake_engine_script;
    if (p->n_ids > FAKE_ENGINE_CONTEXT)
        return err_set(err, -E2BIG, "prompt too long");
    struct request *r = calloc(1, sizeof(*r)), **end = &e->queue;
    r->p = *p;
    r->ids = malloc(p->n_ids * sizeof(*r->ids));
    memcpy(r->ids, p->ids, p->n_ids * sizeof(*r->ids));
    memcpy(s->last_prompt, p->ids, p->n_ids * sizeof(*r->ids));
    s->n_last_prompt = p->n_ids;
    s->n_submitted++;
    s->n_at_once = MAX(s->n_at_once, ++e->n_queue);
    while (*end)
        end = &(*end)->next;
    *end = r;
    if (ret)
        *ret = r;
    return 0;
}

static void finish(struct request *r, enum engine_finish why, const struct err *err, uint32_t n_output)
{
    struct request_result result = {.finish = why,
                                    .err = err,
                                    .n_prompt = r->p.n_ids,
                                    .n_output = n_output,
                                    .prefill_ns = 1000000,
                                    .decode_ns = 1000000ull * n_output,
                                    .prefill_chunks = 1,
                                    .decode_chunks = n_output,
                                    .prefill_times = {.loader_ns = 10, .npu_ns = 20, .gpu_ns = 30, .hops = 7}};
    if (r->p.finished)
        r->p.finished(r->p.ctx, &result);
    request_free(r);
}

void engine_cancel(struct engine *e, struct request *r)
{
    if (e->running == r) {
        e->cancelled = true;
        return;
    }
    for (struct request **p = &e->queue; *p; p = &(*p)->next) {
        if (*p != r)
            continue;
        *p = r->next;
        e->n_queue--;
        finish(r, ENGINE_FINISH_CANCELLED, NULL, 0);
        return;
    }
}

static void run_one(struct engine *e, struct request *r)
{
    static float row[FAKE_ENGINE_VOCAB];
    struct fake_engine_script *s = &fake_engine_script;
    struct err err = {.code = -EIO, .text = "the fake engine failed as told"};
    if (s->fail_after >= 0 && s->fail_after-- == 0) {
        finish(r, ENGINE_FINISH_ERROR, &err, 0);
        return;
    }
    for (uint32_t pos = 0; r->p.all_logits && pos < r->p.n_ids && !e->cancelled; pos++) {
        for (uint32_t id = 0; id < FAKE_ENGINE_VOCAB; id++)
            row[id] = fake_engine_logit(r->ids[pos], pos, id);
        r->p.logits(r->p.ctx, pos, row, FAKE_ENGINE_VOCAB);
    }
    uint32_t n = 0;
    enum engine_finish why = ENGINE_FINISH_LENGTH;
    while (n < r->p.max_tokens && !e->cancelled) {
        uint32_t id = s->n_tokens ? (s->tokens[n % s->n_tokens] + r->p.choice) % FAKE_ENGINE_VOCAB : 300;
        if (r->p.is_end && !r->p.ignore_end && r->p.is_end(r->p.ctx, id)) {
            why = ENGINE_FINISH_STOP;
            break;
        }
        if (r->p.token)
            r->p.token(r->p.ctx, id, n);
        n++;
    }
    finish(r, e->cancelled ? ENGINE_FINISH_CANCELLED : why, NULL, n);
}

int engine_run(struct engine *e, struct err *err)
{
    while (e->queue) {
        if (fake_engine_script.signal)
            return err_set(err, -EINTR, "interrupted");
        struct request *r = e->running = e->queue;
        e->queue = r->next;
        e->n_queue--;
        e->cancelled = false;
        run_one(e, r);
        e->running = NULL;
    }
    return 0;
}

int engine_wait_readable(struct engine *e, int fd, struct err *err)
{
    (void)e, (void)fd, (void)err;
    return 0;
}

int engine_signal(const struct engine *e)
{
    (void)e;
    return fake_engine_script.signal;
}

void engine_forget_signal(struct engine *e)
{
    (void)e;
    fake_engine_script.signal = 0;
}

int engine_collect(struct engine *e, double *ret_area[2], struct err *err)
{
    (void)e, (void)ret_area;
    return err_set(err, -ENOTSUP, "the fake engine has no matrices");
}

const struct engine_recovery *engine_last_recovery(const struct engine *e)
{
    static const struct engine_recovery none;
    (void)e;
    return &none;
}

int engine_left_request(struct engine *e, struct journal_request *ret, struct journal_file **ret_file, uint32_t *ret_others,
                        struct err *err)
{
    (void)e, (void)ret, (void)ret_file, (void)ret_others;
    return err_set(err, -ENOTSUP, "the fake engine has no journal");
}

int engine_stats(struct engine *e, struct monitor_snapshot *ret, struct err *err)
{
    (void)e, (void)err;
    *ret = (struct monitor_snapshot){.state = MONITOR_RUNNING};
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        struct engine_process_stats *s = &ret->process[i];
        s->name = plan_process_name((enum config_process)i);
        s->pid = 100 + i;
        strcpy(s->backend, "fake");
        s->budget[BUDGET_WEIGHTS] = 5;
        s->budget[BUDGET_KV] = 6;
        s->cap = 1000;
        s->cap_enforced = i == 2;
        s->spawned = true;
        s->peak_bytes = 900;
    }
    return 0;
}

/* No command under test serves. */
struct uv_loop_s *engine_loop(struct engine *e)
{
    (void)e;
    return NULL;
}

enum engine_state engine_state(const struct engine *e, const char **ret_reason)
{
    (void)e;
    *ret_reason = "ready";
    return ENGINE_READY;
}

int engine_serve(struct engine *e, struct err *err)
{
    (void)e;
    return err_set(err, -ENOTSUP, "the fake engine does not serve");
}

void engine_pump(struct engine *e)
{
    (void)e;
}

struct monitor *engine_monitor(const struct engine *e)
{
    (void)e;
    return NULL;
}

const char *engine_state_name(enum engine_state s)
{
    (void)s;
    return "ready";
}
