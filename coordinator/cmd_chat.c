/* SPDX-License-Identifier: MIT
 * The bare call: a conversation on a terminal, or one prompt per line of standard input, each answered for itself. Runs on the
 * main thread; waiting for input goes through the engine's loop, so signals and failing stages are noticed at once.
 *
 * The conversation is kept as token ids, the model's own included, and sent whole with every turn; beside them in words, for /save.
 * An interrupt during an answer on a terminal ends that answer, and what was said stays in the conversation. At the prompt it
 * clears the line; on an empty one it ends the program when it comes twice, since the first may have been meant for an answer that
 * just ended. */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/answer.h"
#include "coordinator/commands.h"
#include "coordinator/conversation.h"
#include "coordinator/line.h"
#include "coordinator/lines.h"
#include "coordinator/monitor.h"
#include "coordinator/report.h"
#include "coordinator/slash.h"
#include "coordinator/tokenizer.h"
#include "proto/config.h"
#include "proto/log.h"
#include "proto/util.h"

struct chat {
    struct command *c;
    bool terminal;
    uint32_t *ids; /* the conversation so far, without an open turn */
    size_t n_ids, ids_room;
    struct conversation said;   /* the same in words; terminal */
    struct line *line;          /* NULL: not on a terminal, or on one that is dumb */
    struct lines lines;         /* otherwise */
    bool interrupted;           /* at an empty prompt, just now */
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

/* The user's turn, and the model's turn opened. system: of the first turn; may be NULL. */
static int append_user(struct chat *t, const char *system, const char *text, struct err *err)
{
    struct tokenizer_message m[2] = {{"system", system}, {"user", text}};
    auto_free uint32_t *ids = NULL;
    size_t n, bos = t->n_ids ? 1 : 0;
    int r =
        system ? tokenizer_chat(t->c->tokenizer, m, 2, &ids, &n, err) : tokenizer_chat(t->c->tokenizer, m + 1, 1, &ids, &n, err);
    return r < 0 ? r : append(t, ids + bos, n - bos, err);
}

static int append_answer(struct chat *t, const uint32_t *answer, size_t n_answer, struct err *err)
{
    static const char end[] = "<end_of_turn>\n";
    auto_free uint32_t *ids = NULL;
    size_t n;
    int r = append(t, answer, n_answer, err);
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

static int remember(struct chat *t, const char *system, const char *text, const char *answer, struct err *err)
{
    int r = system ? conversation_add(&t->said, "system", system, err) : 0;
    if (r == 0)
        r = conversation_add(&t->said, "user", text, err);
    return r < 0 ? r : conversation_add(&t->said, "assistant", answer, err);
}

static int one_turn(struct chat *t, const char *text, struct err *err)
{
    struct answer a;
    struct request_params q;
    const char *system = t->n_ids == 0 ? t->c->options->system : NULL;
    int r = append_user(t, system, text, err);
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
        r = append_answer(t, a.ids, a.n_ids, err);
    if (r == 0 && t->terminal)
        r = remember(t, system, text, a.text, err);
    if (r < 0 && a.n_text && !t->terminal)
        putchar('\n'); /* what comes after it is another answer */
    answer_fini(&a);
    return r;
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

static int save(const struct chat *t, const char *path, struct err *err)
{
    char model[256];
    config_model_name(t->c->config, model, sizeof(model));
    int r = conversation_save(&t->said, model, path, err);
    if (r == 0)
        printf("%zu messages are in '%s'\n", t->said.n, path);
    return r;
}

static int tokens_of(struct chat *t, const struct conversation *said, struct err *err)
{
    size_t first = said->n && strcmp(said->messages[0].role, "system") == 0;
    int r = 0;
    for (size_t i = first; i + 1 < said->n && r == 0; i += 2) {
        const char *text = said->messages[i + 1].content;
        auto_free uint32_t *ids = NULL;
        size_t n = 0;
        r = append_user(t, i && i == first ? said->messages[0].content : NULL, said->messages[i].content, err);
        if (r == 0)
            r = tokenizer_encode(t->c->tokenizer, text, strlen(text), false, &ids, &n, err);
        if (r == 0)
            r = append_answer(t, ids, n, err);
    }
    return r;
}

static int load(struct chat *t, const char *path, struct err *err)
{
    struct conversation said = {0};
    struct chat loaded = {.c = t->c};
    int r = conversation_load(&said, path, err);
    if (r == 0)
        r = tokens_of(&loaded, &said, err);
    if (r < 0) {
        conversation_fini(&said);
        free(loaded.ids);
        return r;
    }
    conversation_fini(&t->said);
    free(t->ids);
    t->said = said;
    t->ids = loaded.ids;
    t->n_ids = loaded.n_ids;
    t->ids_room = loaded.ids_room;
    printf("%zu messages, %zu of %u tokens\n", said.n, t->n_ids, engine_plan(t->c->engine)->context);
    return 0;
}

/* 1: leave. What the person got wrong is said and costs nothing. */
static int handle_command(struct chat *t, const char *line, struct err *err)
{
    enum slash which;
    char file[SLASH_FILE_BYTES];
    struct err wrong;
    int r = slash_parse(line, &which, file, &wrong);
    if (r == 0 && which == SLASH_QUIT)
        return 1;
    if (r == 0 && which == SLASH_STATS)
        return print_stats(t, err);
    if (r == 0 && which == SLASH_RESET) {
        t->n_ids = 0;
        conversation_cut(&t->said, 0);
    }
    if (r == 0 && which == SLASH_HELP)
        slash_help(stdout);
    if (r == 0 && which == SLASH_SAVE)
        r = save(t, file, &wrong);
    if (r == 0 && which == SLASH_LOAD)
        r = load(t, file, &wrong);
    if (r < 0)
        printf("%s\n", wrong.text);
    return 0;
}

/* 1: leave. */
static int handle_line(struct chat *t, char *line, struct err *err)
{
    line[strcspn(line, "\r")] = '\0';
    if (line[strspn(line, " \t")] == '\0')
        return 0;
    if (t->terminal && line[0] == '/')
        return handle_command(t, line, err);
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

static int on_wait(void *ctx, int fd, struct err *err)
{
    return engine_wait_readable(ctx, fd, err);
}

static int on_signal(void *ctx)
{
    return engine_signal(ctx);
}

static void on_forget_signal(void *ctx)
{
    engine_forget_signal(ctx);
}

static int open_input(struct chat *t, struct err *err)
{
    static char history[4096];
    struct line_options o = {.wait = on_wait, .signal = on_signal, .forget_signal = on_forget_signal, .ctx = t->c->engine};
    o.commands = slash_names(&o.n_commands);
    if (t->terminal && t->c->config->history && util_state_folder(history, sizeof(history) - 16) == 0) {
        strcat(history, "/history");
        o.history = history;
    }
    int r = t->terminal && line_possible() ? line_open(&o, &t->line, err) : -ENOTSUP;
    return r == -ENOTSUP ? lines_init(&t->lines, on_wait, t->c->engine, err) : r;
}

static int next_line(struct chat *t, char **ret, struct err *err)
{
    if (t->line)
        return line_read(t->line, ret, err);
    if (t->terminal) {
        printf("> ");
        fflush(stdout);
        log_text_open(isatty(STDERR_FILENO));
    }
    int r = lines_next(&t->lines, ret, err);
    log_text_open(false);
    if (r < 0 && t->terminal)
        putchar('\n');
    return r;
}

int cmd_chat_run(struct command *c, struct err *err)
{
    struct chat t = {.c = c, .terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)};
    int r = open_input(&t, err);
    if (r == 0 && t.terminal)
        printf("%s\n/help lists commands; Ctrl-C stops an answer, Ctrl-D ends\n", c->config->model);
    while (r == 0) {
        char *line = NULL;
        r = next_line(&t, &line, err);
        if (r == 0) {
            t.n_lines++;
            r = handle_line(&t, line, err);
        }
    }
    line_close(t.line);
    lines_fini(&t.lines);
    conversation_fini(&t.said);
    free(t.ids);
    if (r == -ENODATA && t.n_failed)
        return err_set(err, -EIO, "standard input: %u of %u prompts have no answer, or not all of it", t.n_failed, t.n_lines);
    return r == -ENODATA || r == 1 ? 0 : r;
}
