/* SPDX-License-Identifier: MIT
 * `--resume`: finishes the answers that coordinators which were killed left in the runtime folder, and prints each whole, from its
 * first token on. What was left by another model stays where it is. Each has its file until it is printed: another kill meanwhile
 * loses nothing, nor does an interrupt or a pipeline that fails. Runs on the main thread. */
#include <errno.h>
#include <stdlib.h>

#include "coordinator/answer.h"
#include "coordinator/commands.h"
#include "coordinator/journal.h"
#include "coordinator/tokenizer.h"
#include "proto/config.h"
#include "proto/util.h"

struct resumed {
    struct resumed *next;
    uint32_t max_tokens; /* as asked for */
    struct answer answer;
};

struct claimed { /* and not begun yet */
    struct claimed *next;
    struct journal_request request;
    struct journal_file *file;
};

struct resume {
    struct claimed *claimed; /* in the order in which they are finished */
    uint32_t others, unfit;  /* what is not ours, and what is but cannot be finished as we are configured */
};

/* How many tokens it would have got at most, had nobody been killed. */
static uint32_t most_tokens(const struct journal_request *q)
{
    return MIN(q->max_tokens, q->context - q->n_prompt + 1);
}

/* One that has less room now would end earlier than it would have. */
static int check_room(uint32_t context, const struct journal_request *q, struct err *err)
{
    uint32_t need = MIN(q->context, q->n_prompt + most_tokens(q) - 1);
    if (context >= need)
        return 0;
    return err_set(
        err, -E2BIG,
        "its prompt has %u tokens and it may get %u; 'context' is %u, and was %u when it was begun: set it to %u at least",
        q->n_prompt, most_tokens(q), context, q->context, need);
}

/* What was generated already, and the rest. A kill between the last token and the moment in which it was printed leaves nothing to
 * do. In more room than it was begun with it ends where it would have. `file` is taken in either case. */
static int go_on(struct command *c, struct answer *a, const struct journal_request *q, struct journal_file *file, struct err *err)
{
    uint32_t most = most_tokens(q);
    for (uint32_t i = 0; i < q->n_done; i++)
        answer_add(a, q->ids[q->n_prompt + i]);
    if (q->ended || q->n_done >= most) {
        a->done = true;
        a->result.finish = q->ended ? q->finish : ENGINE_FINISH_LENGTH;
        a->journal = file;
        answer_end(a);
        return 0;
    }
    const struct request_params p = {.ids = q->ids,
                                     .n_ids = q->n_prompt,
                                     .max_tokens = most,
                                     .sample = q->sample,
                                     .choice = q->choice,
                                     .done = q->ids + q->n_prompt,
                                     .n_done = q->n_done,
                                     .journal = file};
    int r = check_room(engine_plan(c->engine)->context, q, err);
    if (r == 0)
        r = answer_submit(a, c->engine, &p, err);
    if (r < 0)
        journal_leave(file);
    return r;
}

static int take_one(struct command *c, const struct journal_request *q, struct journal_file *file, struct resumed **ret,
                    struct err *err)
{
    struct resumed *one = calloc(1, sizeof(*one));
    if (!one || answer_init(&one->answer, c->tokenizer, NULL, err) < 0) {
        free(one);
        journal_leave(file);
        return err_set(err, -ENOMEM, "out of memory");
    }
    one->answer.leave = true;
    one->max_tokens = q->max_tokens;
    int r = go_on(c, &one->answer, q, file, err);
    if (r < 0) {
        answer_fini(&one->answer);
        free(one);
        return r;
    }
    *ret = one;
    return 0;
}

/* One that cannot go on stays, and keeps no other from it. */
static void take_all(struct command *c, struct resumed **ret)
{
    for (struct claimed *one; (one = c->resume->claimed); free(one)) {
        struct err why = {0};
        c->resume->claimed = one->next;
        if (take_one(c, &one->request, one->file, ret, &why) == 0) {
            ret = &(*ret)->next;
            continue;
        }
        c->resume->unfit++;
        fprintf(stderr, "a request is left for another --resume: %s\n", why.text);
    }
}

/* One line, where there is nothing for us, or something that is not. */
static void say_what_is_left(const struct command *c, bool any, uint32_t others)
{
    const char *s = others == 1 ? "" : "s";
    if (others)
        fprintf(stderr,
                "%s%u request%s of another model (or of this one before the file was changed), or in a file that cannot be read, "
                "%s left for --resume with the configuration of that model\n",
                any ? "" : "nothing to resume with this model: ", others, s, others == 1 ? "is" : "are");
    else if (!any)
        fprintf(stderr, "nothing to resume: no coordinator was killed while it answered with '%s'\n", c->config->model);
}

static enum engine_finish finish_of(const struct resumed *p)
{
    bool room_was_up = p->answer.result.finish == ENGINE_FINISH_LENGTH && p->answer.n_ids < p->max_tokens; /* see most_tokens */
    return room_was_up ? ENGINE_FINISH_CONTEXT : p->answer.result.finish;
}

/* Those that failed, as far as they came, are left. */
static int print_all(struct resumed *all, bool unfit, struct err *err)
{
    int failed = unfit;
    uint32_t n = 0;
    for (struct resumed *p = all; p; p = p->next) {
        if (all->next)
            printf("%s--- answer %u (%s)\n", n ? "\n" : "", n, engine_finish_name(finish_of(p)));
        printf("%s\n", p->answer.text);
        if (p->answer.error.code)
            fprintf(stderr, "answer %u: %s\n", n, p->answer.error.text);
        failed = p->answer.error.code ? p->answer.error.code : failed;
        int r = p->answer.error.code ? 0 : answer_given(&p->answer, stdout, err);
        if (r < 0)
            return r;
        n++;
    }
    return failed ? err_set(err, -EIO, "not every answer could be finished; --resume tries those again") : 0;
}

/* All that there is for us, before a stage is started and reads the model: there may be nothing. */
static int started(void *ctx, struct engine *e, struct err *err)
{
    struct command *c = ctx;
    struct claimed **end = &c->resume->claimed;
    struct journal_request q;
    struct journal_file *file;
    int r;
    while ((r = engine_left_request(e, &q, &file, &c->resume->others, err)) > 0) {
        *end = calloc(1, sizeof(**end));
        if (!*end) {
            journal_leave(file);
            return err_set(err, -ENOMEM, "out of memory");
        }
        **end = (struct claimed){.request = q, .file = file};
        end = &(*end)->next;
    }
    if (r < 0)
        return r;
    say_what_is_left(c, c->resume->claimed != NULL, c->resume->others);
    c->done = !c->resume->claimed;
    return c->done ? err_set(err, -ECANCELED, "nothing to resume") : 0;
}

/* What was claimed and not begun stays for another time. */
static void stopping(void *ctx)
{
    struct command *c = ctx;
    for (struct claimed *one; (one = c->resume->claimed); free(one)) {
        c->resume->claimed = one->next;
        journal_leave(one->file);
    }
    free(take_ptr(&c->resume));
}

int cmd_resume_prepare(struct command *c, struct engine_options *o, struct err *err)
{
    c->resume = calloc(1, sizeof(*c->resume));
    if (!c->resume)
        return err_set(err, -ENOMEM, "out of memory");
    o->started = started;
    o->stopping = stopping;
    o->ctx = c;
    return 0;
}

int cmd_resume_run(struct command *c, struct err *err)
{
    struct resumed *all = NULL;
    take_all(c, &all);
    int r = engine_run(c->engine, err);
    if (r == 0)
        r = print_all(all, c->resume->unfit > 0, err);
    while (all) {
        struct resumed *p = all;
        all = p->next;
        answer_fini(&p->answer);
        free(p);
    }
    return r;
}
