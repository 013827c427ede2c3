/* SPDX-License-Identifier: MIT
 * Stop strings in a text that grows: where the text ends, and how much of it may be shown before that is known. What comes out
 * depends on the text alone, not on the pieces it comes in. Thread: any. */
#ifndef TANDEM_COORDINATOR_STOP_H
#define TANDEM_COORDINATOR_STOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STOP_MAX 16u
#define STOP_MAX_BYTES 256u

struct stop {
    uint32_t n;
    struct {
        const char *text; /* 1 to STOP_MAX_BYTES bytes of whole characters; borrowed */
        size_t n;
    } words[STOP_MAX];
};

/* text[0..from) was scanned before. Of the stop strings that are whole, the one that was so first, of those the longest, ends the
 * text: true, *ret = where it begins. Otherwise false, and *ret = the bytes that no stop string can take back. */
bool stop_scan(const struct stop *s, const char *text, size_t from, size_t n, size_t *ret);

#endif
