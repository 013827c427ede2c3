/* SPDX-License-Identifier: MIT
 * Text from outside (pieces, names, what a model wrote) is checked here before it is stored or shown. Owns nothing. */
#include "proto/utf8.h"

#include <stdint.h>

int utf8_length(const char *text, size_t n)
{
    const uint8_t *p = (const uint8_t *)text;
    if (p[0] < 0x80)
        return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4)
        return -1;
    int length = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    for (int i = 1; i < length; i++) {
        if ((size_t)i >= n)
            return 0;
        uint8_t low = 0x80, high = 0xbf;
        if (i == 1) {
            low = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;
            high = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;
        }
        if (p[i] < low || p[i] > high)
            return -i;
    }
    return length;
}

bool utf8_valid(const char *p, size_t n)
{
    for (size_t i = 0; i < n;) {
        int length = utf8_length(p + i, n - i);
        if (length <= 0)
            return false;
        i += (size_t)length;
    }
    return true;
}
