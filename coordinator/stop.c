/* SPDX-License-Identifier: MIT
 * Plain comparison: there are few stop strings, they are short, and new text comes a token at a time. Called by api_job.c. */
#include "coordinator/stop.h"

#include <string.h>

#include "proto/util.h"

/* The longest stop string that ends at `end`; 0: none. */
static size_t ends_here(const struct stop *s, const char *text, size_t end)
{
    size_t longest = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        size_t n = s->words[i].n;
        if (n > longest && n <= end && memcmp(text + end - n, s->words[i].text, n) == 0)
            longest = n;
    }
    return longest;
}

/* The longest end of the text with which a stop string begins. */
static size_t may_begin(const struct stop *s, const char *text, size_t n)
{
    size_t longest = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        for (size_t k = MIN(s->words[i].n - 1, n); k > longest; k--) {
            if (memcmp(text + n - k, s->words[i].text, k) == 0)
                longest = k;
        }
    }
    return longest;
}

bool stop_scan(const struct stop *s, const char *text, size_t from, size_t n, size_t *ret)
{
    for (size_t end = from + 1; s->n && end <= n; end++) {
        size_t found = ends_here(s, text, end);
        if (found) {
            *ret = end - found;
            return true;
        }
    }
    *ret = n - may_begin(s, text, n);
    return false;
}
