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
    struct answer answer;
};

/* What was generated already, and the rest. A kill between the last token and the moment in which it was printed leaves nothing to
 * do. */
static int go_on(struct command *c, struct answer *a, const struct journal_request *q, struct journal_file *file, struct err *err)
{
    uint32_t context = engine_plan(c->engine)->context;
    for (uint32_t i = 0; i < q->n_done; i++)
        answer_add(a, q->ids[q->n_prompt + i]);
    if (q->ended || q->n_done >= q->max_tokens || (q->n_prompt <= context && q->n_done > context - q->n_prompt)) {
        a->done = true;
        a->result.finish = q->ended                     ? (enum engine_finish)q->finish
                           : q->n_done >= q->max_tokens ? ENGINE_FINISH_LENGTH
                                                        : ENGINE_FINISH_CONTEXT;
        a->journal = file;
        answer_end(a);
        return 0;
    }
    const struct request_params p = {.ids = q->ids,
                                     .n_ids = q->n_prompt,
                                     .max_tokens = q->max_tokens,
                                     .sample = q->sample,
                                     .choice = q->choice,
                                     .done = q->ids + q->n_prompt,
                                     .n_done = q->n_done,
                                     .journal = file};
    int r = answer_submit(a, c->engine, &p, err);
    if (r < 0)
        journal_leave(file);
    return r;
}

/* Takes all that there is for us. */
static int take_all(struct command *c, struct resumed **ret, uint32_t *ret_others, struct err *err)
{
    struct journal_request q;
    struct journal_file *file;
    int r;
    while ((r = engine_left_request(c->engine, &q, &file, ret_others, err)) > 0) {
        struct resumed *one = calloc(1, sizeof(*one));
        if (!one) {
            journal_leave(file);
            return err_set(err, -ENOMEM, "resume: out of memory");
        }
        *ret = one;
        ret = &one->next;
        r = answer_init(&one->answer, c->tokenizer, NULL, err);
        one->answer.leave = true;
        if (r < 0)
            journal_leave(file);
        else
            r = go_on(c, &one->answer, &q, file, err);
        if (r < 0)
            return r;
    }
    return r;
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

/* Those that failed, as far as they came, are left. */
static int print_all(struct resumed *all, struct err *err)
{
    int failed = 0;
    uint32_t n = 0;
    for (struct resumed *p = all; p; p = p->next) {
        if (all->next)
            printf("%s--- answer %u (%s)\n", n ? "\n" : "", n, engine_finish_name(p->answer.result.finish));
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

int cmd_resume_run(struct command *c, struct err *err)
{
    struct resumed *all = NULL;
    uint32_t others = 0;
    int r = take_all(c, &all, &others, err);
    if (r == 0)
        say_what_is_left(c, all != NULL, others);
    if (r == 0)
        r = engine_run(c->engine, err);
    if (r == 0)
        r = print_all(all, err);
    while (all) {
        struct resumed *p = all;
        all = p->next;
        answer_fini(&p->answer);
        free(p);
    }
    return r;
}
