/* SPDX-License-Identifier: MIT
 * The files being written, as one stream: each lies beside its final name with ".partial" behind it until all are complete. Whole
 * pages go out under O_DIRECT where the file system takes it, otherwise through the page cache, from which they are dropped again.
 * One file is open at a time. Threads: one. */
#ifndef TANDEM_QUANTIZER_OUTPUT_H
#define TANDEM_QUANTIZER_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct output;
struct plan;

enum output_mode {
    OUTPUT_NEW,      /* files of an earlier run are emptied */
    OUTPUT_CONTINUE, /* they must be there */
    OUTPUT_RENAMED,  /* some may have their final name already */
};

/* Makes the files in their full size, so that a full disk is found at once, and locks each until close. -ENOSPC names what is
 * needed, -EBUSY a file that another run writes. Links are not followed. Borrows p. */
int output_open(const struct plan *p, enum output_mode mode, struct output **ret, struct err *err);
void output_close(struct output *o); /* leaves the files; NULL is fine */
bool output_is_direct(const struct output *o);
/* Stream offsets and lengths in whole pages; what lies behind the end of a file is cut off by finish. */
int output_write(struct output *o, uint64_t at, const uint8_t *data, size_t n, struct err *err);
int output_read(struct output *o, uint64_t at, uint8_t *data, size_t n, struct err *err);
/* Everything written so far survives a loss of power. */
int output_sync(struct output *o, struct err *err);
/* Writes the checksums (one for each tensor of the plan, in its order) into the metadata, syncs, and gives every file its name. */
int output_finish(struct output *o, const uint64_t *checksums, struct err *err);
void output_remove(const struct plan *p); /* the partial files */
/* Partial files of `out` or of any number of parts of it, which an earlier run may have left. find: NULL, or the name of one, which
 * the caller frees. remove: while the journal's lock is held. */
char *output_find_left(const char *out);
void output_remove_left(const char *out);

#endif
