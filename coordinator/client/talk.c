/* SPDX-License-Identifier: MIT
 * A conversation with a server, or one prompt per line of standard input, each answered for itself; --prompt is one alone. Runs on
 * the main thread, without a loop: signals are blocked and come by a descriptor, which is waited for together with the terminal or
 * the connection. Closing the connection ends an answer, and the server frees its sequence.
 *
 * The server is another's: what it sends is bounded, and no control character of it reaches a terminal. */
#include "coordinator/client/talk.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>

#include "coordinator/client/remote.h"
#include "coordinator/client/sse.h"
#include "coordinator/conversation.h"
#include "coordinator/http_auth.h"
#include "coordinator/line.h"
#include "coordinator/lines.h"
#include "coordinator/monitor.h"
#include "coordinator/monitor_json.h"
#include "coordinator/options.h"
#include "coordinator/report.h"
#include "coordinator/slash.h"
#include "proto/config.h"
#include "proto/err.h"
#include "proto/util.h"

#define ANSWER_MAX_BYTES ((size_t)64 << 20)

struct answer_text {
    char *text; /* with a NUL behind; never NULL */
    size_t n, room;
    char finish[32];
    bool done;       /* the server has said that this is all */
    uint64_t tokens; /* of prompt and answer */
};

struct talk {
    const struct options *o;
    struct config *config;
    struct remote *remote;
    int signal_fd, signal; /* 0: none came */
    bool terminal;         /* both sides: a conversation */
    bool on_terminal;      /* what is printed */
    struct line *line;     /* NULL: `lines` */
    struct lines lines;
    struct conversation said;
    char model[128];
    uint64_t tokens; /* of the conversation when the last answer ended */
    uint32_t n_lines, n_failed;
    struct answer_text answer;
};

static int take_signals(struct talk *t, struct err *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    t->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return t->signal_fd < 0 ? err_set_errno(err, -errno, "signals") : 0;
}

static int interrupted(struct talk *t, struct err *err)
{
    struct signalfd_siginfo info;
    if (read(t->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
        t->signal = (int)info.ssi_signo;
    return t->signal ? err_set(err, -EINTR, "interrupted by signal %d (%s)", t->signal, strsignal(t->signal)) : 0;
}

/* Until fd can be read (-1: none) or the time is over, or a signal comes: -EINTR. */
static int wait_for(struct talk *t, int fd, int timeout_ms, struct err *err)
{
    struct pollfd p[2] = {{.fd = t->signal_fd, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
    int n;
    do
        n = poll(p, 2, timeout_ms);
    while (n < 0 && errno == EINTR); /* stopped and continued */
    if (n < 0)
        return err_set_errno(err, -errno, "standard input");
    return interrupted(t, err);
}

static int on_wait(void *ctx, int fd, struct err *err)
{
    return wait_for(ctx, fd, -1, err);
}

static int on_signal(void *ctx)
{
    return ((struct talk *)ctx)->signal;
}

static void on_forget_signal(void *ctx)
{
    ((struct talk *)ctx)->signal = 0;
}

/* Nothing but text, tabs and newlines. In place; returns the length. */
static size_t harmless(char *s, size_t n)
{
    size_t to = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        bool latin = c == 0xc2 && i + 1 < n && (unsigned char)s[i + 1] < 0xa0; /* the control characters of Latin-1 */
        i += latin;
        if (!latin && (c >= 0x20 || c == '\n' || c == '\t') && c != 0x7f)
            s[to++] = (char)c;
    }
    return to;
}

static int add_text(struct talk *t, const char *text, struct err *err)
{
    struct answer_text *a = &t->answer;
    size_t n = strlen(text);
    auto_free char *shown = strdup(text);
    if (a->n + n > ANSWER_MAX_BYTES)
        return err_set(err, -EPROTO, "server '%s': its answer has more than %zu bytes", remote_url(t->remote), ANSWER_MAX_BYTES);
    if (a->n + n + 1 > a->room) {
        char *p = realloc(a->text, 2 * (a->n + n + 1));
        if (!p)
            return err_set(err, -ENOMEM, "answer: out of memory");
        a->text = p;
        a->room = 2 * (a->n + n + 1);
    }
    memcpy(a->text + a->n, text, n + 1);
    a->n += n;
    if (!shown)
        return err_set(err, -ENOMEM, "answer: out of memory");
    n = t->on_terminal ? harmless(shown, n) : n;
    if (fwrite(shown, 1, n, stdout) != n || fflush(stdout) == EOF)
        return err_set_errno(err, errno ? -errno : -EIO, "standard output: cannot be written");
    return 0;
}

/* What the server says of an error, as one sentence. */
static int refused(const struct talk *t, long status, const json_t *j, struct err *err)
{
    const json_t *e = json_object_get(j, "error");
    const char *said = json_string_value(json_object_get(e, "message"));
    auto_free char *text = strdup(said ? said : "it does not say why");
    if (text)
        text[harmless(text, strlen(text))] = '\0';
    for (char *p = text; p && (p = strpbrk(p, "\n\t"));)
        *p = ' ';
    const char *remedy = status == 401 ? "; --api-key-file names the file with its key" : "";
    return err_set(err, status == 401 ? -EACCES : -EREMOTEIO, "server '%s': %s (status %ld)%s", remote_url(t->remote),
                   text ? text : "out of memory", status, remedy);
}

static int on_event(void *ctx, const char *data, size_t n, struct err *err)
{
    struct talk *t = ctx;
    if (strcmp(data, "[DONE]") == 0) {
        t->answer.done = true;
        return 0;
    }
    json_t *j = json_loadb(data, n, 0, NULL);
    const json_t *choice = json_array_get(json_object_get(j, "choices"), 0), *usage = json_object_get(j, "usage");
    const char *text = json_string_value(json_object_get(json_object_get(choice, "delta"), "content"));
    const char *finish = json_string_value(json_object_get(choice, "finish_reason"));
    int r = 0;
    if (!j)
        r = err_set(err, -EPROTO, "server '%s': an event of its answer is not JSON; is it OpenAI-compatible?",
                    remote_url(t->remote));
    else if (json_object_get(j, "error"))
        r = refused(t, 200, j, err);
    else if (text)
        r = add_text(t, text, err);
    if (finish)
        snprintf(t->answer.finish, sizeof(t->answer.finish), "%s", finish);
    if (json_is_object(usage))
        t->answer.tokens = (uint64_t)json_integer_value(json_object_get(usage, "total_tokens"));
    json_decref(j);
    return r;
}

struct stream {
    struct talk *t;
    struct sse sse;
};

static int on_bytes(void *ctx, const char *bytes, size_t n, struct err *err)
{
    struct stream *s = ctx;
    return sse_feed(&s->sse, bytes, n, on_event, s->t, err);
}

/* Decimal as people write it: 0.7 and not the 0.69999998807907104 of the float. */
static json_t *decimal(float f)
{
    char text[32];
    snprintf(text, sizeof(text), "%.7g", (double)f);
    return json_real(strtod(text, NULL));
}

/* The defaults of the command line are those of the server: only what differs is said, so that servers that do not know it work,
 * too. */
static char *make_body(const struct talk *t, json_t *messages)
{
    const struct options *o = t->o;
    struct sample_params standard;
    sample_params_default(&standard);
    json_t *j =
        json_pack("{s:s, s:o?, s:b, s:{s:b}, s:i, s:I}", "model", t->model, "messages", messages, "stream", 1, "stream_options",
                  "include_usage", 1, "max_tokens", (int)o->max_tokens, "seed", (json_int_t)(o->sample.seed & INT64_MAX));
    const struct {
        const char *name;
        float value, standard;
    } numbers[] = {
        {"temperature", o->sample.temperature, standard.temperature},
        {"top_p", o->sample.top_p, standard.top_p},
        {"min_p", o->sample.min_p, standard.min_p},
        {"repetition_penalty", o->sample.repeat_penalty, standard.repeat_penalty},
    };
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
        if (fabsf(numbers[i].value - numbers[i].standard) > 0)
            json_object_set_new(j, numbers[i].name, decimal(numbers[i].value));
    }
    if (o->sample.top_k != standard.top_k)
        json_object_set_new(j, "top_k", json_integer(o->sample.top_k));
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    json_decref(j);
    return text;
}

/* A request whose answer must be a 200. A server that says that it is not ready, and for how long, is asked again then. ret: the
 * answer as JSON, where `data` does not take it. */
static int ask(struct talk *t, const char *path, const char *body,
               int (*data)(void *ctx, const char *bytes, size_t n, struct err *err), void *ctx, json_t **ret, struct err *err)
{
    for (bool told = false;;) {
        struct remote_reply reply;
        int r = remote_ask(t->remote, path, body, data, ctx, &reply, err);
        json_t *j = reply.body ? json_loadb(reply.body, reply.n, 0, NULL) : NULL;
        long status = reply.status;
        unsigned wait_s = status == 503 || status == 429 ? reply.retry_after : 0;
        remote_reply_fini(&reply);
        if (r == -EINTR)
            r = interrupted(t, err);
        if (r == 0 && status == 200 && ret) {
            *ret = j;
            return 0;
        }
        const char *code = json_string_value(json_object_get(json_object_get(j, "error"), "code"));
        bool later = r == 0 && wait_s && !(code && strcmp(code, "failed") == 0);
        if (r == 0 && status != 200)
            r = refused(t, status, j, err);
        json_decref(j);
        if (!later)
            return r;
        if (!told)
            fprintf(stderr, "(%s; asking again every %u s, Ctrl-C ends that)\n", err->text, wait_s);
        told = true;
        r = wait_for(t, -1, (int)wait_s * 1000, err);
        if (r < 0)
            return r;
    }
}

/* The answer to a list of messages, which is taken, printed as it comes. 0: it is whole, or SIGINT has cut it on a terminal. */
static int answer(struct talk *t, json_t *messages, struct err *err)
{
    struct stream s = {.t = t};
    auto_free char *body = make_body(t, messages);
    t->answer.n = 0;
    t->answer.done = false;
    t->answer.finish[0] = '\0';
    t->answer.tokens = 0;
    int r = body ? add_text(t, "", err) : err_set(err, -ENOMEM, "request: out of memory");
    if (r == 0)
        r = ask(t, "/v1/chat/completions", body, on_bytes, &s, NULL, err);
    sse_fini(&s.sse);
    if (r == 0 && !t->answer.done)
        r = err_set(err, -EPIPE,
                    "server '%s': the connection ended in the middle of the answer; look whether it still runs, and ask again",
                    remote_url(t->remote));
    if (r == -EINTR && t->terminal && t->signal == SIGINT) {
        t->signal = 0;
        r = 0;
    }
    if (r == 0 && t->terminal && strcmp(t->answer.finish, "length") == 0)
        printf("\n(cut: after --max-tokens %u, or because the context is full; /reset begins anew)", t->o->max_tokens);
    if (t->answer.n || r == 0)
        putchar('\n');
    return r;
}

static json_t *messages_with(const struct conversation *c, const char *system, const char *text)
{
    json_t *list = conversation_json(c);
    if (c->n == 0 && system)
        json_array_append_new(list, json_pack("{s:s, s:s}", "role", "system", "content", system));
    json_t *m = json_pack("{s:s, s:s}", "role", "user", "content", text);
    if (json_array_append_new(list, m) < 0) { /* no memory, or no UTF-8 */
        json_decref(list);
        return NULL;
    }
    return list;
}

/* A turn of the conversation on a terminal; otherwise a prompt for itself. */
static int one_turn(struct talk *t, const char *text, struct err *err)
{
    const char *system = t->said.n == 0 ? t->o->system : NULL;
    json_t *messages = messages_with(&t->said, system, text);
    int r = messages ? answer(t, messages, err) : err_set(err, -EILSEQ, "the prompt is not UTF-8");
    if (r < 0 || !t->terminal || t->answer.n == 0)
        return r;
    if (system)
        r = conversation_add(&t->said, "system", system, err);
    if (r == 0)
        r = conversation_add(&t->said, "user", text, err);
    if (r == 0)
        r = conversation_add(&t->said, "assistant", t->answer.text, err);
    t->tokens = t->answer.tokens;
    return r;
}

static int print_stats(struct talk *t, struct err *err)
{
    struct monitor_snapshot stats;
    json_t *j = NULL;
    int r = ask(t, "/v1/stats", NULL, NULL, NULL, &j, err);
    if (r == 0)
        r = monitor_json_read(j, &stats, err);
    if (r == 0 && t->tokens)
        printf("conversation: %zu messages, %llu of %u tokens\n", t->said.n, (unsigned long long)t->tokens, stats.context);
    else if (r == 0)
        printf("conversation: %zu messages\n", t->said.n);
    if (r == 0)
        report_snapshot(&stats, stdout);
    json_decref(j);
    return r;
}

static int load(struct talk *t, const char *path, struct err *err)
{
    struct conversation said = {0};
    int r = conversation_load(&said, path, err);
    if (r < 0) {
        conversation_fini(&said);
        return r;
    }
    conversation_fini(&t->said);
    t->said = said;
    t->tokens = 0;
    printf("%zu messages\n", said.n);
    return 0;
}

/* 1: leave. */
static int handle_command(struct talk *t, const char *line, struct err *err)
{
    enum slash which;
    char file[SLASH_FILE_BYTES];
    int r = slash_parse(line, &which, file, err);
    if (r < 0)
        return r;
    if (which == SLASH_QUIT)
        return 1;
    if (which == SLASH_STATS)
        return print_stats(t, err);
    if (which == SLASH_LOAD)
        return load(t, file, err);
    if (which == SLASH_SAVE) {
        r = conversation_save(&t->said, t->model, file, err);
        if (r == 0)
            printf("%zu messages are in '%s'\n", t->said.n, file);
        return r;
    }
    if (which == SLASH_HELP)
        slash_help(stdout);
    if (which == SLASH_RESET) {
        conversation_cut(&t->said, 0);
        t->tokens = 0;
    }
    return 0;
}

/* 1: leave. On a terminal whatever fails is said, and the conversation is as it was; in a pipe a prompt that the server refuses
 * fails alone, and a server that is gone is the end. */
static int handle_line(struct talk *t, char *line, struct err *err)
{
    line[strcspn(line, "\r")] = '\0';
    if (line[strspn(line, " \t\n")] == '\0')
        return 0;
    int r = t->terminal && line[0] == '/' ? handle_command(t, line, err) : one_turn(t, line, err);
    if (r >= 0 || r == -EINTR || ferror(stdout))
        return r;
    if (t->terminal) {
        fflush(stdout);
        fprintf(stderr, "%s\n", err->text);
        return 0;
    }
    if (r == -EREMOTEIO || r == -EILSEQ) {
        fprintf(stderr, "coordinator: error: standard input, line %u: %s\n", t->n_lines, err->text);
        t->n_failed++;
        return 0;
    }
    return r;
}

static int next_line(struct talk *t, char **ret, struct err *err)
{
    if (t->line)
        return line_read(t->line, ret, err);
    if (t->terminal) {
        printf("> ");
        fflush(stdout);
    }
    return lines_next(&t->lines, ret, err);
}

static int open_input(struct talk *t, struct err *err)
{
    static char history[4096];
    struct line_options o = {.wait = on_wait, .signal = on_signal, .forget_signal = on_forget_signal, .ctx = t};
    o.commands = slash_names(&o.n_commands);
    if (t->terminal && t->config->history && util_state_folder(history, sizeof(history) - 16) == 0) {
        strcat(history, "/history");
        o.history = history;
    }
    int r = t->terminal && line_possible() ? line_open(&o, &t->line, err) : -ENOTSUP;
    return r == -ENOTSUP ? lines_init(&t->lines, on_wait, t, err) : r;
}

static int converse(struct talk *t, struct err *err)
{
    int r = open_input(t, err);
    if (r == 0 && t->terminal)
        printf("%s at %s\n/help lists commands; Ctrl-C stops an answer, Ctrl-D ends\n", t->model, remote_url(t->remote));
    while (r == 0) {
        char *line = NULL;
        r = next_line(t, &line, err);
        if (r == 0) {
            t->n_lines++;
            r = handle_line(t, line, err);
        }
    }
    if (t->terminal && !t->line && r < 0)
        putchar('\n');
    if (r == -ENODATA && t->n_failed)
        return err_set(err, -EIO, "standard input: %u of %u prompts have no answer", t->n_failed, t->n_lines);
    return r == -ENODATA || r == 1 ? 0 : r;
}

/* Of the server that a configuration describes, seen from its own machine. */
static void configured_url(const struct config_http *h, char *buf, size_t size)
{
    const char *colon = strrchr(h->listen, ':'), *scheme = h->tls_cert[0] ? "https" : "http";
    size_t n = colon ? (size_t)(colon - h->listen) : 0;
    if (!colon)
        snprintf(buf, size, "http://127.0.0.1:8080");
    else if (n == 0 || strncmp(h->listen, "0.0.0.0:", 8) == 0)
        snprintf(buf, size, "%s://127.0.0.1%s", scheme, colon);
    else if (strncmp(h->listen, "[::]:", 5) == 0)
        snprintf(buf, size, "%s://[::1]%s", scheme, colon);
    else
        snprintf(buf, size, "%s://%s", scheme, h->listen);
}

static int open_remote(struct talk *t, struct err *err)
{
    const struct config_http *h = &t->config->http;
    const char *key_file = t->o->api_key_file ? t->o->api_key_file : h->api_key_file;
    const char *ca_file = t->o->ca_file ? t->o->ca_file : h->tls_cert;
    char url[256];
    struct http_auth *auth = NULL;
    configured_url(h, url, sizeof(url));
    int r = 0;
    if (key_file[0])
        r = http_auth_open(t->o->api_key_file ? "option '--api-key-file'" : "key 'http.api_key_file'", key_file, &auth, err);
    struct remote_options o = {.url = t->o->url ? t->o->url : url,
                               .key = auth ? http_auth_first(auth) : NULL,
                               .ca_file = ca_file[0] ? ca_file : NULL,
                               .wake_fd = t->signal_fd};
    if (r == 0 && t->o->url && !t->o->api_key_file && auth &&
        strcmp(t->o->url, url) != 0) /* whose key it is, another need not know */
        o.key = NULL;
    if (r == 0)
        r = remote_open(&o, &t->remote, err);
    http_auth_close(auth);
    return r;
}

/* Its name, and whether this is such a server and takes the key, before anything is typed. */
static int find_model(struct talk *t, struct err *err)
{
    json_t *j = NULL;
    int r = ask(t, "/v1/models", NULL, NULL, NULL, &j, err);
    const char *id = json_string_value(json_object_get(json_array_get(json_object_get(j, "data"), 0), "id"));
    if (r == 0 && !id)
        r = err_set(err, -EPROTO, "server '%s': it names no model; is it OpenAI-compatible?", remote_url(t->remote));
    snprintf(t->model, sizeof(t->model), "%s", id ? id : "");
    t->model[harmless(t->model, strlen(t->model))] = '\0';
    json_decref(j);
    return r;
}

int talk_run(const struct options *o, int *ret_signal, struct err *err)
{
    struct talk t = {.o = o, .signal_fd = -1};
    t.on_terminal = isatty(STDOUT_FILENO);
    t.terminal = !o->prompt && isatty(STDIN_FILENO) && t.on_terminal;
    int r = config_load(o->config, o->sets, o->n_sets, &t.config, err);
    if (r < 0)
        return r;
    r = take_signals(&t, err);
    if (r == 0)
        r = open_remote(&t, err);
    if (r == 0)
        r = find_model(&t, err);
    if (r == 0)
        r = o->prompt ? one_turn(&t, o->prompt, err) : converse(&t, err);
    *ret_signal = r == -EINTR ? t.signal : 0;
    line_close(t.line);
    lines_fini(&t.lines);
    conversation_fini(&t.said);
    remote_close(t.remote);
    free(t.answer.text);
    util_close_fd(&t.signal_fd);
    config_free(t.config);
    return r;
}
