/* SPDX-License-Identifier: MIT
 * Checksums of the output stream as it goes by: XXH3-64 of each tensor's data, and of each group of bytes between two entries of
 * the journal. Places for checksums in the metadata count as zeros, so that they can be filled in afterwards. Threads: one. */
#ifndef TANDEM_QUANTIZER_LEDGER_H
#define TANDEM_QUANTIZER_LEDGER_H

#include <stddef.h>
#include <stdint.h>

struct ledger;
struct plan;

struct ledger *ledger_open(const struct plan *p); /* borrows p; NULL when out of memory */
void ledger_close(struct ledger *l);              /* NULL is fine */
/* The next n bytes of the stream. */
void ledger_feed(struct ledger *l, const uint8_t *data, size_t n);
uint64_t ledger_at(const struct ledger *l); /* how far it has got */
uint64_t ledger_group(struct ledger *l);    /* hash since the last call; begins a new group */
/* Forgets what came after the last call of mark (or the beginning). */
void ledger_mark(struct ledger *l);
void ledger_back(struct ledger *l);
/* One for each tensor of the plan; complete when the stream is. */
const uint64_t *ledger_checksums(const struct ledger *l);

#endif
