/* SPDX-License-Identifier: MIT
 * Reads the header of an xclbin and its table of sections (XRT, xclbin.h: struct axlf; little-endian). XRT 2.13 takes offsets and
 * sizes as they stand there, and reads beyond the end of what it has of a file that was cut off. Owns nothing. */
#include "npu_worker/xclbin.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "proto/err.h"
#include "proto/util.h"

#define MAGIC "xclbin2" /* with its NUL */
#define HEADER 456u     /* where the table begins */
#define LENGTH 304u     /* u64 */
#define SECTIONS 448u   /* u32: how many there are */
#define SECTION 40u     /* bytes of one: kind, name, and */
#define OFFSET 24u      /* u64, */
#define SIZE 32u        /* u64 */
#define SECTIONS_MAX 1024u

static uint64_t number(const unsigned char *p, int bytes)
{
    uint64_t n = 0;
    for (int i = bytes; i-- > 0;)
        n = n << 8 | p[i];
    return n;
}

static int check_sections(FILE *f, const char *path, uint64_t n, uint64_t bytes, struct err *err)
{
    unsigned char s[SECTION];
    if (n > SECTIONS_MAX)
        return err_set(err, -ENOEXEC, "xclbin '%.140s': it is damaged: %" PRIu64 " sections; expected at most %u; build it again",
                       path, n, SECTIONS_MAX);
    for (uint64_t i = 0; i < n; i++) {
        bool there = fread(s, sizeof(s), 1, f) == 1;
        uint64_t offset = number(s + OFFSET, 8), size = number(s + SIZE, 8);
        if (!there || offset > bytes || size > bytes - offset)
            return err_set(err, -ENOEXEC,
                           "xclbin '%.140s': it is damaged: section %" PRIu64 " does not lie in its %" PRIu64
                           " bytes; build it again",
                           path, i, bytes);
    }
    return 0;
}

int xclbin_check(const char *path, struct err *err)
{
    unsigned char h[HEADER] = {0};
    struct stat st;
    auto_file f = fopen(path, "re");
    if (!f || fstat(fileno(f), &st) < 0)
        return err_set(err, -ENOEXEC, "xclbin '%.140s': it cannot be read: %s", path, strerror(errno));
    size_t got = fread(h, 1, sizeof(h), f);
    if (got < sizeof(MAGIC) || memcmp(h, MAGIC, sizeof(MAGIC)) != 0)
        return err_set(err, -ENOEXEC, "xclbin '%.140s': it does not begin with '%s'; expected an xclbin as mlir-aie builds it",
                       path, MAGIC);
    uint64_t bytes = (uint64_t)st.st_size, length = number(h + LENGTH, 8);
    if (got < sizeof(h) || length > bytes)
        return err_set(err, -ENOEXEC,
                       "xclbin '%.140s': it was cut off: %" PRIu64 " bytes; expected %" PRIu64 "; copy it again, or build it again",
                       path, bytes, got < sizeof(h) ? (uint64_t)HEADER : length);
    return check_sections(f, path, number(h + SECTIONS, 4), length, err);
}
