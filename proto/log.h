/* SPDX-License-Identifier: MIT
 * Topics, levels, one line format on stderr: "gpu_worker[123] warn ring: text". Library code does not log above debug;
 * the one caller that decides does. Threads: any (one write(2) a line). Filter: TANDEM_LOG=info,npu.*:debug */
#ifndef TANDEM_PROTO_LOG_H
#define TANDEM_PROTO_LOG_H

#include <stdbool.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* `process` borrows a string that lives for ever. `filter` may be NULL (= "warn"); a bad part is reported and ignored. */
void log_init(const char *process, const char *filter);
bool log_enabled(enum log_level level, const char *topic);
/* The terminal on which the log appears shows the beginning of a line of other text: the next line of the log leaves it alone and
 * begins a new one, after which no line is open. */
void log_text_open(bool open);
/* Each time that it did so, this eventfd is written, so that whose text it was can show it again. Borrowed; -1: none. */
void log_text_left(int event_fd);
void log_line(enum log_level level, const char *topic, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#define log_error(topic, ...) log_line(LOG_ERROR, topic, __VA_ARGS__)
#define log_warn(topic, ...) log_line(LOG_WARN, topic, __VA_ARGS__)
#define log_info(topic, ...) log_line(LOG_INFO, topic, __VA_ARGS__)
#define log_debug(topic, ...)                        \
    do {                                             \
        if (log_enabled(LOG_DEBUG, topic))           \
            log_line(LOG_DEBUG, topic, __VA_ARGS__); \
    } while (0)

#endif
