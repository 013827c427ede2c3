/* SPDX-License-Identifier: MIT
 * `top`: asks a running coordinator once a second and shows what it says: a full screen where standard input and output are a
 * terminal that is not dumb, else a line each. Runs on the main thread without a loop. Owns the terminal's mode meanwhile: the
 * alternate screen, no echo, no waiting for the end of a line; all is put back on every way out, signals included. */
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "coordinator/commands.h"
#include "coordinator/control_client.h"
#include "coordinator/monitor.h"
#include "coordinator/monitor_json.h"
#include "coordinator/report.h"
#include "coordinator/screen.h"
#include "proto/err.h"
#include "proto/util.h"

#define REFRESH_NS UINT64_C(1000000000)
#define ENTER "\033[?1049h\033[?25l" /* the alternate screen, no cursor */
#define LEAVE "\033[?25h\033[?1049l"

static volatile sig_atomic_t ended_by, resized;

static void on_signal(int number)
{
    if (number == SIGWINCH)
        resized = 1;
    else
        ended_by = number;
}

struct top {
    const struct options *o;
    struct control_client client;
    bool screen, has_before;
    struct termios mode; /* as it was */
    sigset_t signals;    /* let in while this waits */
    struct monitor_snapshot now, before;
};

/* Signals come only while this waits, so that none is missed between a look at the flags and the wait. */
static void take_signals(struct top *t)
{
    static const int which[] = {SIGINT, SIGTERM, SIGHUP, SIGWINCH};
    struct sigaction a = {.sa_handler = on_signal};
    sigset_t block;
    sigemptyset(&block);
    for (size_t i = 0; i < ARRAY_LEN(which); i++) {
        sigaddset(&block, which[i]);
        sigaction(which[i], &a, NULL);
    }
    sigprocmask(SIG_BLOCK, &block, &t->signals);
    for (size_t i = 0; i < ARRAY_LEN(which); i++)
        sigdelset(&t->signals, which[i]);
}

static int put(const char *text, size_t n, struct err *err)
{
    int r = util_write_all(STDOUT_FILENO, text, n);
    return r < 0 ? err_set_errno(err, r, "standard output: cannot be written") : 0;
}

static int enter(struct top *t, struct err *err)
{
    if (tcgetattr(STDIN_FILENO, &t->mode) < 0)
        return err_set_errno(err, -errno, "terminal");
    struct termios m = t->mode;
    m.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    m.c_cc[VSUSP] = _POSIX_VDISABLE; /* a stopped full screen would stay on the shell's */
    m.c_cc[VMIN] = 1;
    m.c_cc[VTIME] = 0;
    if (tcsetattr(STDIN_FILENO, TCSANOW, &m) < 0)
        return err_set_errno(err, -errno, "terminal");
    t->screen = true;
    return put(ENTER, strlen(ENTER), err);
}

static void leave(struct top *t)
{
    if (!t->screen)
        return;
    put(LEAVE, strlen(LEAVE), NULL);
    tcsetattr(STDIN_FILENO, TCSAFLUSH, &t->mode);
    t->screen = false;
}

static int draw(struct top *t, struct err *err)
{
    char text[SCREEN_BYTES], out[SCREEN_BYTES + 4096];
    struct winsize size = {.ws_col = 80, .ws_row = 24};
    size_t n = 0;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0 || !size.ws_col || !size.ws_row)
        size = (struct winsize){.ws_col = 80, .ws_row = 24};
    screen_draw(&t->now, t->has_before ? &t->before : NULL, t->o->config, size.ws_col, size.ws_row - 1u, text, sizeof(text));
    n += (size_t)snprintf(out, sizeof(out), "\033[H");
    for (char *row = text, *end; (end = strchr(row, '\n')) && n + (size_t)(end - row) + 8 < sizeof(out); row = end + 1)
        n += (size_t)snprintf(out + n, sizeof(out) - n, "%.*s\033[K\r\n", (int)(end - row), row);
    n += (size_t)snprintf(out + n, sizeof(out) - n, "\033[J");
    return put(out, n, err);
}

static int show(struct top *t, json_t *j, struct err *err)
{
    char line[1024];
    if (t->o->json)
        return report_print_json(json_incref(j), stdout, err);
    t->before = t->now;
    int r = monitor_json_read(j, &t->now, err);
    if (r < 0)
        return r;
    r = t->screen ? draw(t, err) : put(line, screen_line(&t->now, line, sizeof(line)), err);
    t->has_before = true;
    return r;
}

/* A key that was pressed. 1: leave. */
static int read_key(struct err *err)
{
    char key;
    ssize_t n = read(STDIN_FILENO, &key, 1);
    if (n < 0 && errno != EINTR && errno != EAGAIN)
        return err_set_errno(err, -errno, "terminal");
    return n == 0 || (n == 1 && (key == 'q' || key == 'Q'));
}

/* Until it is time to ask again. 1: leave. */
static int rest(struct top *t, uint64_t until, struct err *err)
{
    for (uint64_t now; !ended_by && (now = util_now_ns()) < until;) {
        struct timespec ts = {.tv_sec = (time_t)((until - now) / 1000000000), .tv_nsec = (long)((until - now) % 1000000000)};
        struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
        int n = ppoll(&p, t->screen ? 1 : 0, &ts, &t->signals), r = 0;
        if (n < 0 && errno != EINTR)
            return err_set_errno(err, -errno, "terminal");
        if (n > 0)
            r = read_key(err);
        if (r == 0 && resized && t->screen) {
            resized = 0;
            r = draw(t, err);
        }
        if (r != 0)
            return r;
    }
    return 0;
}

/* One refresh; -EINTR: a signal came. */
static int refresh(struct top *t, struct err *err)
{
    json_t *j = NULL;
    int r;
    do
        r = ended_by ? -EINTR : control_client_ask(&t->client, "{\"op\":\"stats\"}\n", &t->signals, &j, err);
    while (r == -EINTR && !ended_by); /* a new size: drawn with this answer */
    if (r < 0)
        return r;
    r = show(t, j, err);
    json_decref(j);
    return r;
}

/* A terminal that knows the sequences above; "dumb" ones (Emacs' shell, some CI) show them as text. */
static bool full_screen(void)
{
    const char *term = getenv("TERM");
    return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && term && *term && strcmp(term, "dumb") != 0;
}

int cmd_top_run(const struct options *o, int *ret_signal, struct err *err)
{
    struct top t = {.o = o};
    struct err ended = {0};
    uint64_t next = util_now_ns();
    int r = control_client_find(o->config, o->pid, &t.client, err);
    if (r < 0)
        return r;
    take_signals(&t);
    if (!o->json && full_screen())
        r = enter(&t, err);
    for (uint32_t n = 0; r == 0;) {
        r = refresh(&t, n ? &ended : err);
        if (r < 0 || ++n == o->count)
            break;
        next = MAX(next + REFRESH_NS, util_now_ns()); /* after a pause there is nothing to catch up with */
        r = rest(&t, next, err);
    }
    leave(&t);
    *ret_signal = ended_by;
    if (r == -ESRCH && ended.code) { /* it was there: its end is ours */
        fprintf(stderr, "%s\n", ended.text);
        return 0;
    }
    return r < 0 && ended.code ? err_set(err, r, "%s", ended.text) : MIN(r, 0);
}
