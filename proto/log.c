/* SPDX-License-Identifier: MIT
 * One line per event on stderr, filtered by level and topic. Owns the process-wide filter, set once by main before threads
 * start; log_line may then be called from any thread (one write a line). Never called on a hot path above debug. */
#include "proto/log.h"

#include <fnmatch.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>

#include "proto/util.h"

#define RULES_MAX 16

static struct {
    const char *process;
    enum log_level level;
    int n_rules;
    struct {
        char topic[32];
        enum log_level level;
    } rules[RULES_MAX];
} filter = {.process = "tandem", .level = LOG_WARN};

static _Atomic bool text_open;
static _Atomic int text_left = -1;

static const char *const level_names[] = {"error", "warn", "info", "debug"};

static bool parse_level(const char *s, size_t n, enum log_level *ret)
{
    for (size_t i = 0; i < ARRAY_LEN(level_names); i++) {
        if (strlen(level_names[i]) == n && memcmp(level_names[i], s, n) == 0) {
            *ret = (enum log_level)i;
            return true;
        }
    }
    return false;
}

static bool parse_rule(const char *s, size_t n)
{
    const char *colon = memchr(s, ':', n);
    if (!colon)
        return parse_level(s, n, &filter.level);
    size_t topic = (size_t)(colon - s);
    if (filter.n_rules == RULES_MAX || topic == 0 || topic >= sizeof(filter.rules[0].topic) ||
        !parse_level(colon + 1, n - topic - 1, &filter.rules[filter.n_rules].level))
        return false;
    memcpy(filter.rules[filter.n_rules].topic, s, topic);
    filter.rules[filter.n_rules].topic[topic] = '\0';
    filter.n_rules++;
    return true;
}

void log_init(const char *process, const char *spec)
{
    filter.process = process;
    filter.level = LOG_WARN;
    filter.n_rules = 0;
    while (spec && *spec) {
        size_t n = strcspn(spec, ",");
        if (n && !parse_rule(spec, n))
            log_warn("log", "'%.*s' is not a log rule, ignoring; expected a level or topic:level", (int)n, spec);
        spec += n + (spec[n] == ',');
    }
}

bool log_enabled(enum log_level level, const char *topic)
{
    enum log_level limit = filter.level;
    for (int i = 0; i < filter.n_rules; i++) {
        if (fnmatch(filter.rules[i].topic, topic, 0) == 0)
            limit = filter.rules[i].level;
    }
    return level <= limit;
}

void log_text_open(bool open)
{
    atomic_store(&text_open, open);
}

void log_text_left(int event_fd)
{
    atomic_store(&text_left, event_fd);
}

void log_line(enum log_level level, const char *topic, const char *fmt, ...)
{
    char line[1200];
    if (!log_enabled(level, topic))
        return;
    int saved = errno;
    bool leave = atomic_exchange(&text_open, false);
    int n = snprintf(line, sizeof(line), "%s%s[%d] %s %s: ", leave ? "\n" : "", filter.process, (int)getpid(), level_names[level],
                     topic);
    va_list ap;
    va_start(ap, fmt);
    int m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
    va_end(ap);
    size_t len = MIN((size_t)n + (size_t)MAX(m, 0), sizeof(line) - 2);
    line[len++] = '\n';
    util_write_all(2, line, len);
    int left = leave ? atomic_load(&text_left) : -1;
    if (left >= 0)
        eventfd_write(left, 1);
    errno = saved;
}
