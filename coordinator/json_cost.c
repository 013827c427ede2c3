/* SPDX-License-Identifier: MIT
 * Counts what makes values, outside strings. Allocates nothing, reads the text once. The figures are those of jansson's structures
 * with malloc's rounding, and of its arrays and hash tables at the moment when they double: old and new are there at once. */
#include "coordinator/json_cost.h"

#include <stdbool.h>

#define OBJECT 240u    /* with a table of eight buckets */
#define ARRAY 160u     /* with eight places, and a number in the first */
#define ELEMENT 56u    /* behind a comma: a number, and its place in a table that doubles */
#define MEMBER 96u     /* behind a colon: the pair and its buckets; the key is counted as a string, which covers a number, too */
#define STRING 80u     /* and its text */
#define TEXT_FACTOR 4u /* for each byte of the longest string: the scanner's buffer that doubles, and the text that it gives */
#define PARSER 4096u

uint64_t json_cost(const char *text, size_t n)
{
    uint64_t cost = PARSER, longest = 0;
    for (size_t i = 0; i < n; i++) {
        switch (text[i]) {
        case '{':
            cost += OBJECT;
            break;
        case '[':
            cost += ARRAY;
            break;
        case ',':
            cost += ELEMENT;
            break;
        case ':':
            cost += MEMBER;
            break;
        case '"': {
            size_t begin = ++i;
            while (i < n && text[i] != '"')
                i += text[i] == '\\' ? 2 : 1;
            uint64_t length = (i < n ? i : n) - begin;
            cost += STRING + length;
            longest = length > longest ? length : longest;
            break;
        }
        default:
            break;
        }
    }
    return cost + TEXT_FACTOR * longest;
}
