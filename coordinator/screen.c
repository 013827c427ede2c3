/* SPDX-License-Identifier: MIT
 * Owns nothing: formats into the caller's buffer, row by row, and cuts each row to the width of the terminal. Names that come from
 * drivers lose what is no printable ASCII, so that none of it reaches the terminal as a command. */
#include "coordinator/screen.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/meter.h"
#include "coordinator/monitor.h"
#include "proto/util.h"

#define BAR_MIN 10u
#define BAR_MAX 100u
#define BESIDE_BAR 71u /* columns of a process's row that are not its bar */

struct page {
    char *buf;
    size_t size, n;
    unsigned columns, rows;
};

__attribute__((format(printf, 2, 3))) static void row(struct page *p, const char *format, ...)
{
    char text[512];
    va_list ap;
    if (p->rows == 0)
        return;
    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    size_t n = MIN(strlen(text), (size_t)p->columns);
    if (p->n + n + 2 > p->size)
        return;
    for (size_t i = 0; i < n; i++)
        p->buf[p->n++] = text[i] >= 0x20 && text[i] < 0x7f ? text[i] : '?';
    p->buf[p->n++] = '\n';
    p->buf[p->n] = '\0';
    p->rows--;
}

/* `width` cells for `most`; each part gets its letter, as far as the bar goes. */
static void bar(char *ret, unsigned width, uint64_t most, const uint64_t *parts, const char *letters)
{
    uint64_t sum = 0;
    unsigned at = 0;
    for (size_t i = 0; letters[i]; i++) {
        sum += parts[i];
        double cells = most ? (double)sum * width / (double)most : 0.0;
        for (unsigned end = (unsigned)MIN(cells + 0.5, (double)width); at < end;)
            ret[at++] = letters[i];
    }
    memset(ret + at, '.', width - at);
    ret[width] = '\0';
}

static const char *gauge(char ret[32], uint64_t fill, uint64_t most, unsigned width)
{
    bar(ret, MIN(width, 30u), most, &fill, "#");
    return ret;
}

static unsigned share(uint64_t now, uint64_t before, uint64_t ms)
{
    return now > before && ms ? (unsigned)MIN((now - before) / 10000 / ms, UINT64_C(100)) : 0;
}

/* Bytes in the seven columns of a table. */
static const char *short_bytes(char ret[16], uint64_t bytes)
{
    double mib = (double)bytes / (1 << 20);
    snprintf(ret, 16, mib < 9999.95 ? "%6.1fM" : "%6.1fG", mib < 9999.95 ? mib : mib / 1024);
    return ret;
}

static void process_row(struct page *p, const struct monitor_snapshot *now, const struct monitor_snapshot *before, int i)
{
    const struct engine_process_stats *s = &now->process[i];
    uint64_t used = monitor_used(now, (enum config_process)i), known = 0, parts[BUDGET_CATEGORIES + 1];
    for (int k = 0; k < BUDGET_CATEGORIES; k++)
        known += parts[k] = s->budget[k];
    parts[BUDGET_CATEGORIES] = used > known ? used - known : 0;
    unsigned width = MIN(MAX(p->columns, BESIDE_BAR + BAR_MIN) - BESIDE_BAR, BAR_MAX);
    char cells[BAR_MAX + 1], a[16], b[16], c[16], busy[8] = "   -";
    bar(cells, width, s->cap, parts, "WKSRD+");
    if (before && i != CONFIG_COORDINATOR)
        snprintf(busy, sizeof(busy), "%3u%%", share(s->busy_ns, before->process[i].busy_ns, now->uptime_ms - before->uptime_ms));
    row(p, "%-11s %7d %-12.12s [%s] %s/%s %s %s %4" PRIu64 "%s", s->name, s->pid, s->backend, cells, short_bytes(a, used),
        short_bytes(b, s->cap), short_bytes(c, s->peak_bytes), busy, s->restarts, s->answered ? "" : " !");
}

static void rings_row(struct page *p, const struct monitor_snapshot *s)
{
    char text[400], cells[32];
    int n = snprintf(text, sizeof(text), "rings     ");
    for (int i = 0; i < SUPERVISE_RINGS; i++)
        n += snprintf(text + n, sizeof(text) - (size_t)n, " %s [%s]", s->rings[i].name,
                      gauge(cells, s->rings[i].fill, s->rings[i].slots, MIN(s->rings[i].slots, 8u)));
    row(p, "%s", text);
}

size_t screen_draw(const struct monitor_snapshot *now, const struct monitor_snapshot *before, const char *title, unsigned columns,
                   unsigned rows, char *buf, size_t size)
{
    struct page p = {.buf = buf, .size = size, .columns = MIN(columns, (unsigned)SCREEN_COLUMNS), .rows = rows};
    const struct schedule_counts *c = &now->counts;
    char prompt[METER_TEXT], output[METER_TEXT];
    char cells[32];
    uint64_t s = now->uptime_ms / 1000, restarts = 0;
    if (before && (before->uptime_ms > now->uptime_ms || before->process[0].pid != now->process[0].pid))
        before = NULL;
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        restarts += now->process[i].restarts;
    buf[0] = '\0';
    row(&p, "tandem %d  %s  %" PRIu64 ":%02" PRIu64 ":%02" PRIu64 "  %s", now->process[CONFIG_COORDINATOR].pid,
        monitor_state_name(now->state), s / 3600, s / 60 % 60, s % 60, title);
    row(&p, "tokens/s   prompt %8s   answers %8s   tokens since start %" PRIu64 " and %" PRIu64,
        meter_text(prompt, c->prompt_per_second), meter_text(output, c->output_per_second), c->prompt_tokens, c->output_tokens);
    row(&p, "requests   %u running of %u, %u waiting, %" PRIu64 " finished, %" PRIu64 " failed", c->running, c->sequences,
        c->queued, c->finished, c->failed);
    row(&p, "chunks     [%s] %u of %u in flight", gauge(cells, c->in_flight, c->in_flight_most, MIN(c->in_flight_most, 8u)),
        c->in_flight, c->in_flight_most);
    rings_row(&p, now);
    row(&p, "KV cache   [%s] %" PRIu64 " of %" PRIu64 " pages", gauge(cells, now->kv_pages_used, now->kv_pages, 20),
        now->kv_pages_used, now->kv_pages);
    row(&p, "restarts   %" PRIu64, restarts);
    row(&p, "%s", "");
    unsigned width = MIN(MAX(p.columns, BESIDE_BAR + BAR_MIN) - BESIDE_BAR, BAR_MAX) + 2;
    row(&p, "%-11s %7s %-12s %-*.*s %15s %7s %4s %4s", "process", "pid", "backend", (int)width, (int)width, "memory", "used/cap",
        "peak", "busy", "rst");
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        process_row(&p, now, before, i);
    row(&p, "%s", "");
    row(&p, "W weights  K KV  S scratch  R rings  D device  + other   ! silent   q quits");
    return p.n;
}

size_t screen_line(const struct monitor_snapshot *now, char *buf, size_t size)
{
    const struct schedule_counts *c = &now->counts;
    char prompt[METER_TEXT], output[METER_TEXT];
    char text[768], a[16];
    uint64_t restarts = 0;
    int n =
        snprintf(text, sizeof(text),
                 "%s: tokens/s prompt %s answers %s; running %u waiting %u; chunks %u/%u; KV pages %" PRIu64 "/%" PRIu64 "; rings",
                 monitor_state_name(now->state), meter_text(prompt, c->prompt_per_second), meter_text(output, c->output_per_second),
                 c->running, c->queued, c->in_flight, c->in_flight_most, now->kv_pages_used, now->kv_pages);
    for (int i = 0; i < SUPERVISE_RINGS; i++)
        n += snprintf(text + n, sizeof(text) - (size_t)n, " %s %u/%u", now->rings[i].name, now->rings[i].fill, now->rings[i].slots);
    n += snprintf(text + n, sizeof(text) - (size_t)n, "; memory");
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        const char *used = short_bytes(a, monitor_used(now, (enum config_process)i));
        n += snprintf(text + n, sizeof(text) - (size_t)n, " %s %s", now->process[i].name, used + strspn(used, " "));
        restarts += now->process[i].restarts;
    }
    snprintf(text + n, sizeof(text) - (size_t)n, "; restarts %" PRIu64, restarts);
    return (size_t)snprintf(buf, size, "%s\n", text);
}
