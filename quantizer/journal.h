/* SPDX-License-Identifier: MIT
 * What a conversion has done, so that a killed one can go on: a file beside the output with the identity of input and arguments,
 * and a record for every group of bytes that has reached the disk. A record that was cut off counts as not there. The file is also
 * the lock by which a second run on the same output is refused. Threads: one. */
#ifndef TANDEM_QUANTIZER_JOURNAL_H
#define TANDEM_QUANTIZER_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct journal;

struct journal_identity {
    uint64_t source, arguments, stream_bytes;
};

enum journal_kind { JOURNAL_GROUP = 1, JOURNAL_COMPLETE }; /* complete: all groups are, only names and checksums may be missing */

struct journal_record {
    uint64_t kind, end, hash; /* end: of the group, in the stream; hash: XXH3 of its bytes */
};

/* Opens or makes "<out>.partial.journal" and locks it. Never follows a link; -EEXIST: a file of that name is no journal. -EBUSY:
 * another run has it. -ESTALE: it belongs to another input or to other arguments, and restart is false; with restart it is emptied.
 */
int journal_open(const char *out, const struct journal_identity *id, bool restart, struct journal **ret, struct err *err);
void journal_close(struct journal *j);  /* leaves the file; NULL is fine */
void journal_remove(struct journal *j); /* and closes */
/* There was none before: no partial file may be there, either. */
bool journal_is_new(const struct journal *j);
uint32_t journal_n(const struct journal *j);
struct journal_record journal_at(const struct journal *j, uint32_t i);
int journal_cut(struct journal *j, uint32_t n, struct err *err); /* keeps the first n records */
/* On disk when it returns. */
int journal_add(struct journal *j, enum journal_kind kind, uint64_t end, uint64_t hash, struct err *err);

#endif
