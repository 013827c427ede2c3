/* SPDX-License-Identifier: MIT
 * The bare call: a conversation on a terminal, or one prompt per line of standard input, each answered for itself. Runs on the
 * main thread; waiting for input goes through the engine's loop, so signals and failing stages are noticed at once.
 *
 * The conversation is kept as token ids, the model's own included, and sent whole with every turn. An interrupt during an answer
 * on a terminal ends that answer, and what was said stays in the conversation; at the prompt it ends the program. */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/answer.h"
#include "coordinator/commands.h"
#include "coordinator/monitor.h"
#include "coordinator/report.h"
#include "coordinator/tokenizer.h"
#include "proto/config.h"
#include "proto/log.h"
#include "proto/util.h"

#define LINE_MAX_BYTES (1u << 20)

struct chat {
    struct command *c;
    bool terminal;
    uint32_t *ids; /* the conversation so far, without an open turn */
    size_t n_ids, ids_room;
    char *input; /* bytes read and not yet used */
    size_t n_input;
    bool end_of_input;
    uint32_t n_lines, n_failed; /* not on a terminal: prompts so far, and those that have no answer */
    bool answer_failed;         /* the last answer alone: the engine runs on */
};

static int append(struct chat *t, const uint32_t *ids, size_t n, struct err *err)
{
    if (t->n_ids + n > t->ids_room) {
        size_t room = 2 * (t->n_ids + n);
        uint32_t *p = realloc(t->ids, room * sizeof(*p));
        if (!p)
            return err_set(err, -ENOMEM, "chat: out of memory for %zu tokens", room);
        t->ids = p;
        t->ids_room = room;
    }
    memcpy(t->ids + t->n_ids, ids, n * sizeof(*ids));
    t->n_ids += n;
    return 0;
}

/* The user's turn, and the model's turn opened. */
static int append_user(struct chat *t, const char *text, struct err *err)
{
    const char *system = t->n_ids == 0 ? t->c->options->system : NULL;
    struct tokenizer_message m[2] = {{"system", system}, {"user", text}};
    auto_free uint32_t *ids = NULL;
    size_t n, bos = t->n_ids ? 1 : 0;
    int r =
        system ? tokenizer_chat(t->c->tokenizer, m, 2, &ids, &n, err) : tokenizer_chat(t->c->tokenizer, m + 1, 1, &ids, &n, err);
    return r < 0 ? r : append(t, ids + bos, n - bos, err);
}

static int append_answer(struct chat *t, const struct answer *a, struct err *err)
{
    static const char end[] = "<end_of_turn>\n";
    auto_free uint32_t *ids = NULL;
    size_t n;
    int r = append(t, a->ids, a->n_ids, err);
    if (r == 0)
        r = tokenizer_encode(t->c->tokenizer, end, strlen(end), true, &ids, &n, err);
    return r < 0 ? r : append(t, ids, n, err);
}

static int run_answer(struct chat *t, struct answer *a, struct err *err)
{
    struct engine *e = t->c->engine;
    int r = engine_run(e, err);
    if (r == -EINTR && t->terminal && engine_signal(e) == SIGINT && a->request) {
        engine_forget_signal(e);
        engine_cancel(e, a->request);
        r = engine_run(e, err);
    }
    t->answer_failed = r == 0 && a->error.code;
    return t->answer_failed ? err_set(err, a->error.code, "%s", a->error.text) : r;
}

static int one_turn(struct chat *t, const char *text, struct err *err)
{
    struct answer a;
    struct request_params q;
    int r = append_user(t, text, err);
    if (r < 0)
        return r;
    r = answer_init(&a, t->c->tokenizer, stdout, err);
    if (r < 0)
        return r;
    commands_request(t->c, &q);
    q.ids = t->ids;
    q.n_ids = (uint32_t)t->n_ids;
    q.reuse = true;
    r = answer_submit(&a, t->c->engine, &q, err);
    if (r == 0)
        r = run_answer(t, &a, err);
    if (r == 0 && a.result.finish == ENGINE_FINISH_CONTEXT && t->terminal)
        printf("\n(the context of %u tokens is full; /reset begins anew)", engine_plan(t->c->engine)->context);
    if (r == 0 && a.result.finish == ENGINE_FINISH_LENGTH && t->terminal)
        printf("\n(cut after %u tokens: --max-tokens)", a.result.n_output);
    if (r == 0) {
        putchar('\n');
        r = answer_given(&a, stdout, err);
    }
    if (r == 0)
        r = append_answer(t, &a, err);
    if (r < 0 && a.n_text && !t->terminal)
        putchar('\n'); /* what comes after it is another answer */
    answer_fini(&a);
    return r;
}

/* Next line without its newline, in t->input's memory until the next call; -ENODATA at the end of input. */
static int next_line(struct chat *t, char **ret, size_t *ret_used, struct err *err)
{
    for (;;) {
        char *newline = memchr(t->input, '\n', t->n_input);
        if (newline || (t->end_of_input && t->n_input)) {
            size_t n = newline ? (size_t)(newline - t->input) : t->n_input;
            t->input[n] = '\0';
            *ret = t->input;
            *ret_used = MIN(n + 1, t->n_input);
            return 0;
        }
        if (t->end_of_input)
            return -ENODATA;
        if (t->n_input == LINE_MAX_BYTES)
            return err_set(err, -E2BIG, "standard input: a line of more than %u bytes; expected one prompt per line",
                           LINE_MAX_BYTES);
        struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
        int r = poll(&p, 1, 0) > 0 ? 0 : engine_wait_readable(t->c->engine, STDIN_FILENO, err);
        if (r < 0)
            return r;
        ssize_t got = read(STDIN_FILENO, t->input + t->n_input, LINE_MAX_BYTES - t->n_input);
        if (got < 0 && errno != EINTR && errno != EAGAIN)
            return err_set_errno(err, -errno, "standard input: cannot be read");
        if (got == 0)
            t->end_of_input = true;
        if (got > 0)
            t->n_input += (size_t)got;
    }
}

static int print_stats(struct chat *t, struct err *err)
{
    struct monitor_snapshot stats;
    int r = engine_stats(t->c->engine, &stats, err);
    if (r < 0)
        return r;
    uint32_t context = engine_plan(t->c->engine)->context;
    printf("conversation: %zu of %u tokens%s\n", MIN(t->n_ids, (size_t)context), context,
           t->n_ids < context ? "" : " (full; /reset begins anew)");
    report_processes(&stats, stdout);
    report_recovery(engine_last_recovery(t->c->engine), stdout);
    return 0;
}

/* 1: leave. */
static int handle_line(struct chat *t, char *line, struct err *err)
{
    line[strcspn(line, "\r")] = '\0';
    if (line[strspn(line, " \t")] == '\0')
        return 0;
    if (t->terminal && line[0] == '/') {
        if (strcmp(line, "/quit") == 0)
            return 1;
        if (strcmp(line, "/stats") == 0)
            return print_stats(t, err);
        if (strcmp(line, "/reset") == 0) {
            t->n_ids = 0;
            return 0;
        }
        printf("unknown command '%.40s'; there are /reset, /stats and /quit\n", line);
        return 0;
    }
    size_t before = t->terminal ? t->n_ids : 0;
    t->n_ids = before;
    t->answer_failed = false;
    int r = one_turn(t, line, err);
    if (r == -E2BIG && t->terminal) { /* the engine runs on; the turn did not fit */
        fprintf(stderr, "%s\n(/reset begins a new conversation)\n", err ? err->text : "the conversation does not fit");
        t->n_ids = before;
        return 0;
    }
    if (!t->terminal && err && (r == -E2BIG || (r < 0 && t->answer_failed)) && !ferror(stdout)) { /* this prompt alone */
        fprintf(stderr, "coordinator: error: standard input, line %u: %s\n", t->n_lines, err->text);
        t->n_failed++;
        return 0;
    }
    if (r < 0 && t->answer_failed && t->terminal) {
        fprintf(stderr, "\n%s\n(the conversation is as it was before this turn)\n", err ? err->text : "the answer failed");
        t->n_ids = before;
        return 0;
    }
    return r;
}

int cmd_chat_run(struct command *c, struct err *err)
{
    struct chat t = {.c = c, .terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)};
    int r = 0;
    t.input = malloc(LINE_MAX_BYTES + 1);
    if (!t.input)
        return err_set(err, -ENOMEM, "chat: out of memory");
    if (t.terminal)
        printf("%s\n/reset begins a new conversation, /stats shows memory, Ctrl-C stops an answer, /quit or Ctrl-D ends\n",
               c->config->model);
    while (r == 0) {
        char *line = NULL;
        size_t used = 0;
        if (t.terminal) {
            printf("> ");
            fflush(stdout);
            log_text_open(isatty(STDERR_FILENO));
        }
        r = next_line(&t, &line, &used, err);
        log_text_open(false);
        if (r == 0) {
            t.n_lines++;
            r = handle_line(&t, line, err);
            memmove(t.input, t.input + used, t.n_input - used);
            t.n_input -= used;
        }
    }
    if (t.terminal && r != 1)
        putchar('\n');
    free(t.input);
    free(t.ids);
    if (r == -ENODATA && t.n_failed)
        return err_set(err, -EIO, "standard input: %u of %u prompts have no answer, or not all of it", t.n_failed, t.n_lines);
    return r == -ENODATA || r == 1 ? 0 : r;
}
