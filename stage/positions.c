/* SPDX-License-Identifier: MIT
 * Parses lists of numbers for the command lines of the stage programs. Owns nothing; called once, by main. The text comes from
 * the user, so every number, the order of a range and the total count are checked before memory is taken for them. */
#include "stage/positions.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "proto/err.h"
#include "proto/util.h"

static bool number(const char **p, uint64_t *ret)
{
    if (**p < '0' || **p > '9')
        return false;
    uint64_t v = 0;
    for (; **p >= '0' && **p <= '9'; (*p)++)
        v = MIN(v * 10 + (uint64_t)(**p - '0'), UINT32_MAX);
    *ret = v;
    return true;
}

static int range(const char *option, const char *text, const char **p, uint32_t limit, uint64_t *ret_first, uint64_t *ret_last,
                 struct err *err)
{
    const char *start = *p;
    bool ok = number(p, ret_first);
    *ret_last = *ret_first;
    if (ok && strncmp(*p, "..", 2) == 0) {
        *p += 2;
        ok = number(p, ret_last);
    }
    if (!ok || (**p && **p != ','))
        return err_set(err, -EINVAL, "%s '%s': found '%.20s'; expected numbers such as 2,17,5 or a range such as 0..15", option,
                       text, start);
    if (*ret_first > *ret_last)
        return err_set(err, -EINVAL, "%s '%s': range %" PRIu64 "..%" PRIu64 " ends before it begins", option, text, *ret_first,
                       *ret_last);
    if (*ret_last >= limit)
        return err_set(err, -ERANGE, "%s '%s': %" PRIu64 " is too large; expected less than %u", option, text, *ret_last, limit);
    return 0;
}

/* ret NULL: count only. */
static int walk(const char *option, const char *text, uint32_t limit, size_t max, uint32_t *ret, size_t *ret_n, struct err *err)
{
    size_t n = 0;
    for (const char *p = text;; p++) {
        uint64_t first = 0, last = 0;
        int r = range(option, text, &p, limit, &first, &last, err);
        if (r < 0)
            return r;
        if (last - first + 1 > max - n)
            return err_set(err, -E2BIG, "%s: more than %zu numbers", option, max);
        for (uint64_t v = first; v <= last; v++, n++) {
            if (ret)
                ret[n] = (uint32_t)v;
        }
        if (!*p)
            break;
    }
    *ret_n = n;
    return 0;
}

int positions_parse(const char *option, const char *text, uint32_t limit, size_t max, uint32_t **ret, size_t *ret_n,
                    struct err *err)
{
    size_t n;
    int r = walk(option, text, limit, max, NULL, &n, err);
    if (r < 0)
        return r;
    uint32_t *v = malloc(n * sizeof(*v));
    if (!v)
        return err_set(err, -ENOMEM, "%s: out of memory", option);
    walk(option, text, limit, max, v, &n, NULL);
    *ret = v;
    *ret_n = n;
    return 0;
}
