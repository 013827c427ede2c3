/* SPDX-License-Identifier: MIT
 * The file of earlier prompts: one a line, with \n and \\ for newline and backslash. Mode 0600, at most LINE_HISTORY_LINES and a
 * fifth more. Several processes may use it at once: each adds its own lines, under a lock. Thread: any. */
#ifndef TANDEM_COORDINATOR_LINE_HISTORY_H
#define TANDEM_COORDINATOR_LINE_HISTORY_H

struct err;

#define LINE_HISTORY_LINES 1000
#define LINE_HISTORY_BYTES (256u << 10)
#define LINE_HISTORY_ENTRY_BYTES (LINE_HISTORY_BYTES / 16)

/* Each prompt, the oldest first, at most LINE_HISTORY_LINES. Lines that are no UTF-8 are left out. A file that is not there, or is
 * no file (a link to /dev/null), has none. */
int line_history_load(const char *path, void (*each)(void *ctx, const char *text), void *ctx, struct err *err);
/* A prompt of more than LINE_HISTORY_ENTRY_BYTES is left out. */
int line_history_add(const char *path, const char *text, struct err *err);

#endif
