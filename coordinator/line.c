/* SPDX-License-Identifier: MIT
 * Owns an EditLine, its history and the terminal's mode while a prompt is typed. Called by cmd_chat.c and by the client, on their
 * main thread.
 *
 * libedit takes its characters from on_char, which waits in the caller's way for one descriptor: an epoll that has the terminal, a
 * signalfd, and an eventfd that the log writes. A new size (SIGWINCH), the way back from the shell (SIGCONT) and a line of the log
 * become keys of their own, two control characters that nobody can type, because those of Latin-1 are dropped from the input.
 *
 * libedit decides by the locale how wide a character is and how it is written. Only this thread has one, and only inside libedit:
 * `wait` runs in the one that was there before.
 *
 * What a terminal pastes it brackets when it is told to. Newlines in it are part of the prompt, other control characters are
 * dropped. */
#include "coordinator/line.h"

#include <errno.h>
#include <histedit.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <wchar.h>

#include "coordinator/line_history.h"
#include "proto/err.h"
#include "proto/log.h"
#include "proto/utf8.h"
#include "proto/util.h"

#define BRACKETS_ON "\033[?2004h"
#define BRACKETS_OFF "\033[?2004l"
#define PASTE_END L"\033[201~"
#define PASTE_END_N (ARRAY_LEN(PASTE_END) - 1)
#define KEY_RESIZED L'\x80' /* the bindings below name them in octal */
#define KEY_CONTINUED L'\x81'

struct line {
    struct line_options o;
    EditLine *edit;
    HistoryW *history;
    bool keep_file; /* until it could not be written */
    locale_t locale, outside;
    sigset_t signals, mask; /* to be taken from signal_fd; those of the caller */
    int signal_fd, log_fd, epoll_fd;
    const wchar_t *prompt;
    char pending[4096]; /* bytes read and not yet characters */
    size_t n_pending;
    struct err *err;         /* of the line_read under way */
    int failed;              /* why it ends; 0: it does not */
    bool empty, interrupted; /* nothing was typed; it was so, and SIGINT came, just before */
    char *text;              /* the prompt so far */
    size_t n_text;
    char *last; /* that was kept */
};

bool line_possible(void)
{
    const char *term = getenv("TERM");
    return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && term && *term && strcmp(term, "dumb") != 0;
}

/* One character off the pending bytes. 0: there is none whole. */
static int take_char(struct line *l, wchar_t *ret)
{
    while (l->n_pending) {
        const unsigned char *p = (const unsigned char *)l->pending;
        int n = utf8_length(l->pending, l->n_pending);
        wchar_t c = n == 1 ? p[0] : n > 1 ? p[0] & (0x7f >> n) : 0;
        for (int i = 1; i < n; i++)
            c = c << 6 | (p[i] & 0x3f);
        if (n == 0)
            return 0;
        size_t used = (size_t)abs(n);
        memmove(l->pending, l->pending + used, l->n_pending - used);
        l->n_pending -= used;
        if (n > 0 && !(c >= 0x80 && c < 0xa0)) {
            *ret = c;
            return 1;
        }
    }
    return 0;
}

static bool readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) > 0;
}

/* 1: *ret is a key. 0: look again. */
static int take_signal(struct line *l, wchar_t *ret)
{
    struct signalfd_siginfo info;
    eventfd_t n;
    if (eventfd_read(l->log_fd, &n) == 0) {
        *ret = KEY_CONTINUED;
        return 1;
    }
    if (read(l->signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
        return 0;
    *ret = info.ssi_signo == SIGWINCH ? KEY_RESIZED : KEY_CONTINUED;
    return 1;
}

/* What is logged meanwhile begins below what is typed, which is then drawn again. */
static int wait_for_input(struct line *l)
{
    uselocale(l->outside);
    log_text_open(isatty(STDERR_FILENO));
    int r = l->o.wait(l->o.ctx, l->epoll_fd, l->err);
    log_text_open(false);
    uselocale(l->locale);
    return r;
}

/* 1, or 0 with l->failed. */
static int next_char(struct line *l, wchar_t *ret)
{
    while (!l->failed) {
        if (take_char(l, ret))
            return 1;
        int r = wait_for_input(l);
        if (r < 0)
            l->failed = r;
        else if (take_signal(l, ret))
            return 1;
        else if (readable(STDIN_FILENO)) {
            ssize_t n = read(STDIN_FILENO, l->pending + l->n_pending, sizeof(l->pending) - l->n_pending);
            if (n == 0 || (n < 0 && errno == EIO)) /* hung up */
                l->failed = -ENODATA;
            else if (n < 0 && errno != EINTR && errno != EAGAIN)
                l->failed = err_set_errno(l->err, -errno, "standard input: cannot be read");
            l->n_pending += (size_t)MAX(n, 0);
        }
    }
    return 0;
}

static struct line *line_of(EditLine *e)
{
    void *l = NULL;
    el_wget(e, EL_CLIENTDATA, &l);
    return l;
}

/* A line that is as long as a prompt may be takes keys, and no more characters. */
static int on_char(EditLine *e, wchar_t *ret)
{
    const LineInfoW *typed = el_wline(e);
    int r;
    do
        r = next_char(line_of(e), ret);
    while (r == 1 && typed->lastchar - typed->buffer >= LINE_MAX_BYTES && *ret >= 0x20 && *ret != 0x7f && *ret < KEY_RESIZED);
    return r;
}

static wchar_t *on_prompt(EditLine *e)
{
    return (wchar_t *)(uintptr_t)line_of(e)->prompt;
}

static unsigned char on_resized(EditLine *e, int key)
{
    (void)key;
    el_resize(e);
    return CC_REDISPLAY;
}

/* The shell, or the log, has left the cursor on a line of its own, and the shell the terminal in its own mode. */
static unsigned char on_continued(EditLine *e, int key)
{
    (void)key;
    el_wset(e, EL_PREP_TERM, 0);
    el_wset(e, EL_PREP_TERM, 1);
    fputs(BRACKETS_ON, stdout);
    el_resize(e);
    el_wset(e, EL_REFRESH);
    return CC_NORM;
}

static unsigned char on_newline(EditLine *e, int key)
{
    (void)key;
    return el_winsertstr(e, L"\n") < 0 ? CC_ERROR : CC_REFRESH;
}

/* The terminal's mode makes a newline of a carriage return and the reverse: either is one here, and both together are one. */
static size_t paste_filter(wchar_t *s, size_t n)
{
    size_t to = 0;
    for (size_t i = 0; i < n; i++) {
        bool newline = s[i] == L'\n' || s[i] == L'\r';
        if (newline && i + 1 < n && s[i + 1] != s[i] && (s[i + 1] == L'\n' || s[i + 1] == L'\r'))
            i++;
        if (newline || s[i] == L'\t' || (s[i] >= 0x20 && s[i] != 0x7f && !(s[i] >= 0x80 && s[i] < 0xa0)))
            s[to++] = newline ? L'\n' : s[i];
    }
    while (to && s[to - 1] == L'\n')
        to--;
    s[to] = L'\0';
    return to;
}

static unsigned char on_paste(EditLine *e, int key)
{
    (void)key;
    struct line *l = line_of(e);
    size_t n = 0, room = 1024;
    auto_free wchar_t *s = malloc(room * sizeof(*s));
    bool dropped = false;
    while (s && next_char(l, &s[n])) {
        n++;
        if (n >= PASTE_END_N && wmemcmp(s + n - PASTE_END_N, PASTE_END, PASTE_END_N) == 0) {
            n = paste_filter(s, n - PASTE_END_N);
            const LineInfoW *typed = el_wline(e);
            if (!dropped && (size_t)(typed->lastchar - typed->buffer) + n <= LINE_MAX_BYTES && (n == 0 || el_winsertstr(e, s) == 0))
                return CC_REFRESH;
            l->failed =
                err_set(l->err, -E2BIG, "the pasted text is too long: a prompt on a terminal has at most %u bytes", LINE_MAX_BYTES);
            break;
        }
        wchar_t *more = n == room && room < 2 * LINE_MAX_BYTES ? realloc(s, (room *= 2) * sizeof(*s)) : NULL;
        if (more) {
            s = more;
        } else if (n == room) { /* on to its end: the rest of it is no prompt either */
            dropped = true;
            n = PASTE_END_N;
            wmemmove(s, s + room - n, n);
        }
    }
    return CC_EOF;
}

/* Commands that begin with s[0..n): how many, one of them, and how many characters all of them have in common. */
static size_t candidates(const struct line *l, const wchar_t *s, size_t n, const char **ret, size_t *ret_common)
{
    size_t found = 0;
    for (size_t i = 0; i < l->o.n_commands; i++) {
        const char *c = l->o.commands[i];
        size_t same = 0;
        while (same < n && c[same] && (wchar_t)(unsigned char)c[same] == s[same])
            same++;
        if (same < n)
            continue;
        size_t common = found ? 0 : strlen(c);
        while (found && common < *ret_common && c[common] == (*ret)[common])
            common++;
        *ret = c;
        *ret_common = common;
        found++;
    }
    return found;
}

static unsigned char on_tab(EditLine *e, int key)
{
    const struct line *l = line_of(e);
    const LineInfoW *at = el_wline(e);
    const char *one = NULL;
    wchar_t add[64] = {0};
    size_t n = (size_t)(at->cursor - at->buffer), common = 0;
    if (l->n_text || n == 0 || at->buffer[0] != L'/')
        return CC_ERROR;
    const wchar_t *space = wmemchr(at->buffer, L' ', n);
    size_t found = candidates(l, at->buffer, space ? (size_t)(space - at->buffer) + 1 : n, &one, &common);
    if (space)
        return found == 1 ? _el_fn_complete(e, key) : CC_ERROR;
    for (size_t i = n; found && i < common && i - n + 1 < ARRAY_LEN(add); i++)
        add[i - n] = (wchar_t)(unsigned char)one[i];
    if (add[0])
        return el_winsertstr(e, add) < 0 ? CC_ERROR : CC_REFRESH;
    if (found < 2)
        return CC_ERROR;
    putchar('\n');
    for (size_t i = 0; i < l->o.n_commands; i++) {
        if (candidates(&(struct line){.o = {.commands = &l->o.commands[i], .n_commands = 1}}, at->buffer, n, &one, &common))
            printf("%s  ", l->o.commands[i]);
    }
    putchar('\n');
    el_wset(e, EL_REFRESH);
    return CC_NORM;
}

static void bind_keys(EditLine *e)
{
    static const struct {
        const wchar_t *key, *command;
    } keys[] = {
        {L"\\200", L"tandem-resized"},
        {L"\\201", L"tandem-continued"},
        {L"\\t", L"tandem-complete"},
        {L"\\e[200~", L"tandem-paste"},
        {L"\\e\\n", L"tandem-newline"},
        {L"\\e\\r", L"tandem-newline"},
        /* as in other programs, whatever terminfo says */
        {L"\\e[H", L"ed-move-to-beg"},
        {L"\\eOH", L"ed-move-to-beg"},
        {L"\\e[1~", L"ed-move-to-beg"},
        {L"\\e[F", L"ed-move-to-end"},
        {L"\\eOF", L"ed-move-to-end"},
        {L"\\e[4~", L"ed-move-to-end"},
        {L"\\e[3~", L"ed-delete-next-char"},
        {L"\\e[1;5D", L"ed-prev-word"},
        {L"\\e[1;5C", L"em-next-word"},
        {L"^W", L"ed-delete-prev-word"},
        {L"^U", L"vi-kill-line-prev"},
        {L"^R", L"em-inc-search-prev"},
    };
    el_wset(e, EL_ADDFN, L"tandem-resized", L"the terminal has another size", on_resized);
    el_wset(e, EL_ADDFN, L"tandem-continued", L"back from the shell", on_continued);
    el_wset(e, EL_ADDFN, L"tandem-complete", L"complete a command", on_tab);
    el_wset(e, EL_ADDFN, L"tandem-paste", L"text that the terminal pastes", on_paste);
    el_wset(e, EL_ADDFN, L"tandem-newline", L"begin a new line of the prompt", on_newline);
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        el_wset(e, EL_BIND, keys[i].key, keys[i].command, NULL);
}

static void enter_history(struct line *l, const char *text)
{
    HistEventW event;
    size_t n = strlen(text);
    auto_free wchar_t *wide = malloc((n + 1) * sizeof(*wide));
    if (wide && n <= LINE_HISTORY_ENTRY_BYTES && mbstowcs(wide, text, n + 1) != (size_t)-1)
        history_w(l->history, &event, H_ENTER, wide);
}

static void on_history(void *ctx, const char *text)
{
    enter_history(ctx, text);
}

/* In l->locale. */
static int open_edit(struct line *l, struct err *err)
{
    HistEventW event;
    l->edit = el_init("coordinator", stdin, stdout, stderr);
    l->history = history_winit();
    if (!l->edit || !l->history)
        return err_set(err, -ENOMEM, "line editor: out of memory");
    history_w(l->history, &event, H_SETSIZE, LINE_HISTORY_LINES);
    history_w(l->history, &event, H_SETUNIQUE, 1);
    el_wset(l->edit, EL_CLIENTDATA, l);
    el_wset(l->edit, EL_EDITOR, L"emacs");
    el_wset(l->edit, EL_SIGNAL, 0);
    el_wset(l->edit, EL_HIST, history_w, l->history);
    el_wset(l->edit, EL_GETCFN, on_char);
    el_wset(l->edit, EL_PROMPT, on_prompt);
    bind_keys(l->edit);
    el_source(l->edit, NULL); /* ~/.editrc */
    struct err unread;
    if (l->keep_file && line_history_load(l->o.history, on_history, l, &unread) < 0)
        l->keep_file = false; /* line_keep would say the same again */
    return 0;
}

static int open_descriptors(struct line *l, struct err *err)
{
    struct epoll_event event = {.events = EPOLLIN};
    sigemptyset(&l->signals);
    sigaddset(&l->signals, SIGWINCH);
    sigaddset(&l->signals, SIGCONT);
    l->signal_fd = signalfd(-1, &l->signals, SFD_CLOEXEC | SFD_NONBLOCK);
    l->log_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (l->signal_fd < 0 || l->log_fd < 0 || l->epoll_fd < 0 || epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0 ||
        epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, l->signal_fd, &event) < 0 ||
        epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, l->log_fd, &event) < 0)
        return err_set_errno(err, -errno, "line editor: the terminal cannot be waited for");
    log_text_left(l->log_fd);
    return 0;
}

int line_open(const struct line_options *o, struct line **ret, struct err *err)
{
    struct line *l = calloc(1, sizeof(*l));
    if (!l)
        return err_set(err, -ENOMEM, "line editor: out of memory");
    *l = (struct line){.o = *o, .keep_file = o->history != NULL, .signal_fd = -1, .log_fd = -1, .epoll_fd = -1, .prompt = L""};
    l->locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    int r = l->locale ? open_descriptors(l, err) : err_set(err, -ENOTSUP, "line editor: the system has no locale C.UTF-8");
    if (r == 0) {
        l->outside = uselocale(l->locale);
        r = open_edit(l, err);
        uselocale(l->outside);
    }
    if (r < 0)
        line_close(l);
    else
        *ret = l;
    return r;
}

void line_close(struct line *l)
{
    if (!l)
        return;
    if (l->locale)
        l->outside = uselocale(l->locale);
    el_end(l->edit);
    if (l->history)
        history_wend(l->history);
    if (l->locale) {
        uselocale(l->outside);
        freelocale(l->locale);
    }
    log_text_left(-1);
    util_close_fd(&l->signal_fd);
    util_close_fd(&l->log_fd);
    util_close_fd(&l->epoll_fd);
    free(l->text);
    free(l->last);
    free(l);
}

/* What was typed, n characters, behind what there is. */
static int append(struct line *l, const wchar_t *s, size_t n, struct err *err)
{
    mbstate_t state = {0};
    char *p = realloc(l->text, l->n_text + n * MB_CUR_MAX + 1);
    if (!p)
        return err_set(err, -ENOMEM, "line editor: out of memory");
    l->text = p;
    for (size_t i = 0; i < n; i++) {
        size_t bytes = wcrtomb(l->text + l->n_text, s[i], &state);
        if (bytes != (size_t)-1)
            l->n_text += bytes;
    }
    l->text[l->n_text] = '\0';
    return l->n_text > LINE_MAX_BYTES
               ? err_set(err, -E2BIG, "the prompt is too long: one on a terminal has at most %u bytes", LINE_MAX_BYTES)
               : 0;
}

/* One line of the prompt. 1: another one follows. */
static int read_part(struct line *l, struct err *err)
{
    int n = 0;
    l->prompt = l->n_text ? L". " : L"> ";
    const wchar_t *s = el_wgets(l->edit, &n);
    const LineInfoW *typed = el_wline(l->edit);
    l->empty = l->n_text == 0 && typed->lastchar == typed->buffer;
    if (l->failed)
        return l->failed;
    if (!s || n <= 0) { /* Ctrl-D; behind other lines it ends the prompt */
        putchar('\n');
        return l->n_text ? 0 : -ENODATA;
    }
    size_t length = (size_t)n - (s[n - 1] == L'\n');
    bool more = length && s[length - 1] == L'\\';
    int r = append(l, s, length - more, err);
    if (r == 0 && more)
        r = append(l, L"\n", 1, err);
    return r < 0 ? r : more;
}

static int read_prompt(struct line *l, char **ret, struct err *err)
{
    int r;
    free(take_ptr(&l->text));
    l->n_text = 0;
    l->failed = 0;
    l->err = err;
    pthread_sigmask(SIG_BLOCK, &l->signals, &l->mask);
    l->outside = uselocale(l->locale);
    el_wset(l->edit, EL_PREP_TERM, 1); /* before who sees the prompt types: the other mode changes what is typed */
    fputs(BRACKETS_ON, stdout);
    do
        r = read_part(l, err);
    while (r == 1);
    fputs(BRACKETS_OFF, stdout);
    fflush(stdout);
    uselocale(l->outside);
    pthread_sigmask(SIG_SETMASK, &l->mask, NULL);
    l->err = NULL;
    if (r == 0)
        *ret = l->text;
    return r;
}

static int keep(struct line *l, const char *text, struct err *err)
{
    if (text[0] == ' ' || text[0] == '\0' || (l->last && strcmp(text, l->last) == 0))
        return 0;
    free(l->last);
    l->last = strdup(text);
    l->outside = uselocale(l->locale);
    enter_history(l, text);
    uselocale(l->outside);
    int r = l->keep_file ? line_history_add(l->o.history, text, err) : 0;
    l->keep_file = l->keep_file && r == 0;
    return r;
}

int line_read(struct line *l, char **ret, struct err *err)
{
    struct err wrong = {0};
    int r;
    while ((r = read_prompt(l, ret, &wrong)) == -E2BIG || (r == -EINTR && l->o.signal(l->o.ctx) == SIGINT)) {
        bool empty = r == -EINTR && l->empty;
        if (empty && l->interrupted)
            break;
        if (r == -EINTR)
            l->o.forget_signal(l->o.ctx);
        l->interrupted = empty;
        printf("%s\n", r == -E2BIG ? wrong.text : empty ? "\n(Ctrl-C once more ends, or Ctrl-D; /help lists commands)" : "^C");
    }
    l->interrupted = false;
    if (r == 0 && keep(l, *ret, &wrong) < 0)
        printf("(%s)\n", wrong.text);
    if (r == -EINTR)
        putchar('\n');
    return r < 0 && r != -ENODATA ? err_set(err, r, "%s", wrong.text) : r;
}
