/* SPDX-License-Identifier: MIT
 * Plain functions of the input but for fuzz_check_fds, which counts /proc/self/fd. */
#include "tests/fuzz/fuzz_input.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/shm.h"
#include "proto/util.h"

#define LOOK_EVERY 32
#define OTHERS 8 /* that libFuzzer opens, for its symbolizer */

uint64_t fuzz_u64(struct fuzz_input *in)
{
    uint8_t first = fuzz_u8(in);
    if (first < 192)
        return first % 16;
    if (first < 224)
        return (uint64_t)0 - (first % 4);
    if (first < 240)
        return (UINT64_C(1) << (first % 16 * 4)) - first % 2;
    uint64_t v = 0;
    for (int i = 0; i < 8; i++)
        v = v << 8 | fuzz_u8(in);
    return v;
}

uint32_t fuzz_u32(struct fuzz_input *in)
{
    return (uint32_t)fuzz_u64(in);
}

static uint32_t between(struct fuzz_input *in, uint32_t min, uint32_t max)
{
    uint32_t v = fuzz_u32(in);
    return v >= min && v <= max ? v : max - min == UINT32_MAX ? v : min + v % (max - min + 1);
}

static void text(struct fuzz_input *in, char *ret, size_t size)
{
    size_t n = MIN((size_t)fuzz_u8(in) % 32, size - 1);
    for (size_t i = 0; i < n; i++)
        ret[i] = (char)fuzz_u8(in);
    ret[n] = '\0';
}

static uint32_t binary(struct fuzz_input *in, uint8_t *ret, size_t size)
{
    uint32_t n = (uint32_t)MIN((size_t)fuzz_u8(in), size);
    for (uint32_t i = 0; i < n; i++)
        ret[i] = fuzz_u8(in);
    return n;
}

void fuzz_message(struct fuzz_input *in, struct msg *ret)
{
    static const enum msg_type types[] = {
#define MSG_BEGIN(name, number, since, sender, n_fds, doc) MSG_TYPE_##name,
#define MSG_U32(name, field, min, max, doc)
#define MSG_U64(name, field, doc)
#define MSG_I32(name, field, doc)
#define MSG_F32(name, field, doc)
#define MSG_STR(name, field, max, doc)
#define MSG_BIN(name, field, max, doc)
#define MSG_END(name)
#include "proto/messages.def"
#undef MSG_BEGIN
#undef MSG_U32
#undef MSG_U64
#undef MSG_I32
#undef MSG_F32
#undef MSG_STR
#undef MSG_BIN
#undef MSG_END
    };
    memset(ret, 0, sizeof(*ret));
    ret->type = types[fuzz_u8(in) % ARRAY_LEN(types)];
    switch (ret->type) {
#define MSG_BEGIN(name, number, since, sender, n_fds, doc) case MSG_TYPE_##name:
#define MSG_U32(name, field, min, max, doc) ret->name.field = between(in, min, max);
#define MSG_U64(name, field, doc) ret->name.field = fuzz_u64(in);
#define MSG_I32(name, field, doc) ret->name.field = (int32_t)fuzz_u32(in);
#define MSG_F32(name, field, doc) ret->name.field = (float)fuzz_u32(in);
#define MSG_STR(name, field, max, doc) text(in, ret->name.field, max);
#define MSG_BIN(name, field, max, doc) ret->name.field##_len = binary(in, ret->name.field, max);
#define MSG_END(name) break;
#include "proto/messages.def"
#undef MSG_BEGIN
#undef MSG_U32
#undef MSG_U64
#undef MSG_I32
#undef MSG_F32
#undef MSG_STR
#undef MSG_BIN
#undef MSG_END
    case MSG_NONE:
    default:
        abort();
    }
}

int fuzz_fd(uint8_t kind, size_t bytes)
{
    int pair[2], fd;
    switch (kind % (FUZZ_FD_GOOD + 1)) {
    case 0:
        if (pipe2(pair, O_CLOEXEC) < 0)
            abort();
        close(pair[1]);
        return pair[0];
    case 1:
        return open("/dev/null", O_RDWR | O_CLOEXEC);
    case 2: /* neither sealed nor large */
        return memfd_create("fuzz", MFD_CLOEXEC);
    case 3: /* not sealed */
        fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (ftruncate(fd, 1 << 20) < 0)
            abort();
        return fd;
    case 4: /* sealed, and too small for most */
        return shm_make("fuzz", 4096, true, NULL);
    case 5: /* nobody can fill it */
        fd = shm_make("fuzz", MIN(bytes, (size_t)1 << 20), true, NULL);
        fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE);
        return fd;
    default:
        return shm_make("fuzz", bytes && bytes <= 1 << 20 ? bytes : 4096, true, NULL);
    }
}

static int count_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    int n = 0;
    while (d && readdir(d))
        n++;
    closedir(d);
    return n;
}

void fuzz_check_fds(void)
{
    static int first, calls;
    if (calls++ % LOOK_EVERY)
        return;
    int n = count_fds();
    if (!first)
        first = n;
    if (n > first + OTHERS) {
        fprintf(stderr, "%d file descriptors are open, %d were after the first input\n", n, first);
        abort();
    }
}
