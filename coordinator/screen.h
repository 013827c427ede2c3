/* SPDX-License-Identifier: MIT
 * A snapshot as the text of a screen, or of one line. Plain ASCII; draws nothing itself. Threads: any. */
#ifndef TANDEM_COORDINATOR_SCREEN_H
#define TANDEM_COORDINATOR_SCREEN_H

#include <stddef.h>

struct monitor_snapshot;

#define SCREEN_BYTES 16384 /* enough for whatever fits into 250 columns */
#define SCREEN_COLUMNS 250

/* Rows with a newline behind each, none longer than `columns`, at most `rows`; what does not fit is left out. before: an earlier
 * snapshot of the same coordinator, or NULL. Returns the length. */
size_t screen_draw(const struct monitor_snapshot *now, const struct monitor_snapshot *before, const char *title, unsigned columns,
                   unsigned rows, char *buf, size_t size);
size_t screen_line(const struct monitor_snapshot *now, char *buf, size_t size);

#endif
