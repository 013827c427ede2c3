/* SPDX-License-Identifier: MIT
 * The callbacks behind a generated answer; used by cmd_generate.c and cmd_chat.c on the loop's thread. A failed write or
 * allocation cancels the request and stays in the answer's error; nothing here ends the program. */
#include "coordinator/answer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/journal.h"
#include "coordinator/tokenizer.h"
#include "proto/log.h"
#include "proto/util.h"

int answer_init(struct answer *a, const struct tokenizer *t, FILE *echo, struct err *err)
{
    *a = (struct answer){.tokenizer = t, .echo = echo, .text_room = 256};
    a->beside_log = echo && isatty(fileno(echo)) && isatty(STDERR_FILENO);
    a->text = calloc(1, a->text_room);
    if (!a->text || detokenizer_open(t, &a->detokenizer) < 0) {
        answer_fini(a);
        return err_set(err, -ENOMEM, "answer: out of memory");
    }
    return 0;
}

void answer_fini(struct answer *a)
{
    a->echo = NULL;
    if (a->beside_log)
        log_text_open(false);
    if (a->request)
        engine_cancel(a->engine, a->request);
    if (a->journal && a->leave)
        journal_leave(a->journal);
    else
        journal_end(a->journal);
    detokenizer_close(a->detokenizer);
    free(a->text);
    free(a->ids);
    *a = (struct answer){0};
}

int answer_given(struct answer *a, FILE *f, struct err *err)
{
    if (fflush(f) == EOF || ferror(f))
        return err_set_errno(err, errno ? -errno : -EIO, "standard output: cannot be written");
    if (a->beside_log) /* its line was ended */
        log_text_open(false);
    journal_end(take_ptr(&a->journal));
    return 0;
}

static void stop(struct answer *a, int code, const char *what)
{
    if (!a->error.code)
        err_set_errno(&a->error, code, "%s", what);
    if (a->request)
        engine_cancel(a->engine, a->request);
}

static bool append_text(struct answer *a, const char *s)
{
    size_t n = strlen(s);
    if (a->n_text + n + 1 > a->text_room) {
        size_t room = 2 * (a->n_text + n + 1);
        char *p = realloc(a->text, room);
        if (!p)
            return false;
        a->text = p;
        a->text_room = room;
    }
    memcpy(a->text + a->n_text, s, n + 1);
    a->n_text += n;
    return true;
}

static void give_text(struct answer *a, const char *s)
{
    if (a->error.code || !*s)
        return;
    if (!append_text(a, s)) {
        stop(a, -ENOMEM, "answer: its text");
        return;
    }
    if (a->echo && (fputs(s, a->echo) == EOF || fflush(a->echo) == EOF))
        stop(a, -errno, "standard output: cannot be written");
    if (a->beside_log)
        log_text_open(s[strlen(s) - 1] != '\n');
}

void answer_add(struct answer *a, uint32_t id)
{
    if (a->n_ids == a->ids_room) {
        uint32_t room = a->ids_room ? 2 * a->ids_room : 64;
        uint32_t *p = realloc(a->ids, room * sizeof(*p));
        if (!p) {
            stop(a, -ENOMEM, "answer: its ids");
            return;
        }
        a->ids = p;
        a->ids_room = room;
    }
    a->ids[a->n_ids++] = id;
    give_text(a, detokenizer_push(a->detokenizer, id));
}

void answer_end(struct answer *a)
{
    a->done = true;
    give_text(a, detokenizer_finish(a->detokenizer));
}

static void on_token(void *ctx, uint32_t id, uint32_t index)
{
    (void)index;
    answer_add(ctx, id);
}

static void on_finished(void *ctx, const struct request_result *r)
{
    struct answer *a = ctx;
    a->request = NULL;
    a->result = *r;
    a->result.err = NULL; /* borrowed for the call only */
    a->journal = take_ptr(&a->result.journal);
    if (r->finish == ENGINE_FINISH_ERROR && !a->error.code)
        a->error = r->err ? *r->err : (struct err){.code = -EIO, .text = "request failed"};
    answer_end(a);
}

static bool is_end(void *ctx, uint32_t id)
{
    const struct answer *a = ctx;
    return tokenizer_is_end(a->tokenizer, id);
}

int answer_submit(struct answer *a, struct engine *e, const struct request_params *p, struct err *err)
{
    struct request_params q = *p;
    q.token = on_token;
    q.logits = NULL;
    q.finished = on_finished;
    q.is_end = is_end;
    q.keep_journal = true;
    q.ctx = a;
    a->engine = e;
    return engine_submit(e, &q, &a->request, err);
}

static double rate(double n, uint64_t ns)
{
    return ns && n > 0 ? n * 1e9 / (double)ns : 0.0;
}

double answer_prefill_rate(const struct answer *a)
{
    return rate(a->result.n_prompt - a->result.n_cached, a->result.prefill_ns);
}

double answer_decode_rate(const struct answer *a)
{
    /* The first token comes with the prompt; the end token takes a pass, too. */
    double passes = (double)a->result.n_output + (a->result.finish == ENGINE_FINISH_STOP) - 1.0;
    return rate(passes, a->result.decode_ns);
}
